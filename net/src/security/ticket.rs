//! Tickets: what one administrator hands to another so that their nodes trust each other.

use std::{fmt, str::FromStr};

use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};
use zumastor_core::NodeName;

use super::PublicKey;

/// A node's name, key and addresses in one word. It holds no secret, but whoever can swap it on the way can take the
/// node's place: hand it over by a way you trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// What the node calls itself.
    pub name: NodeName,
    /// What it is.
    pub key: PublicKey,
    /// Where it can be reached, as `HOST:PORT`.
    pub addresses: Vec<String>,
}

/// What was given is no ticket.
#[derive(Debug, thiserror::Error)]
#[error("this is no ticket ({0}): it takes the whole word that the other node prints")]
pub struct InvalidTicket(&'static str);

#[derive(Serialize, Deserialize)]
struct Content {
    name: NodeName,
    key: [u8; 32],
    addresses: Vec<String>,
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let content = Content { name: self.name.clone(), key: self.key.0, addresses: self.addresses.clone() };
        let mut bytes = postcard::to_stdvec(&content).expect("tickets can be encoded");
        let check = blake3::hash(&bytes);
        bytes.extend_from_slice(&check.as_bytes()[..CHECK]);
        write!(f, "{PREFIX}{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
    }
}

impl FromStr for Ticket {
    type Err = InvalidTicket;

    fn from_str(text: &str) -> Result<Self, InvalidTicket> {
        let text = text.trim();
        if text.len() > MAX_LENGTH {
            return Err(InvalidTicket("it is too long"));
        }
        let encoded = text.strip_prefix(PREFIX).ok_or(InvalidTicket("it does not begin with zuma1-"))?;
        let bytes = BASE32_NOPAD.decode(encoded.to_ascii_uppercase().as_bytes());
        let bytes = bytes.map_err(|_| InvalidTicket("it has letters that no ticket has, or lacks some"))?;
        let split = bytes.len().checked_sub(CHECK).ok_or(InvalidTicket("it is too short"))?;
        let (content, check) = bytes.split_at(split);
        if &blake3::hash(content).as_bytes()[..CHECK] != check {
            return Err(InvalidTicket("its checksum is wrong: something was lost in copying"));
        }
        let content = postcard::from_bytes::<Content>(content)
            .map_err(|_| InvalidTicket("it is of another version"))?;
        if content.addresses.len() > 16 {
            return Err(InvalidTicket("it has too many addresses"));
        }
        Ok(Self { name: content.name, key: PublicKey(content.key), addresses: content.addresses })
    }
}

const PREFIX: &str = "zuma1-";
/// Bytes of checksum: enough to notice what copying loses.
const CHECK: usize = 4;
const MAX_LENGTH: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_are_read_back_and_damage_is_noticed() {
        let ticket = Ticket {
            name: "alpha".parse().unwrap(),
            key: PublicKey([5; 32]),
            addresses: vec!["10.0.0.1:11235".into(), "alpha.example".into()],
        };
        let text = ticket.to_string();
        assert_eq!(text.parse::<Ticket>().unwrap(), ticket);
        assert_eq!(format!(" {text}\n").parse::<Ticket>().unwrap(), ticket);
        for at in 0..text.len() {
            let mut damaged = text.clone().into_bytes();
            damaged[at] = if damaged[at] == b'a' { b'b' } else { b'a' };
            assert!(String::from_utf8(damaged).unwrap().parse::<Ticket>().is_err(), "letter {at}");
            assert!(text[..at].parse::<Ticket>().is_err());
        }
    }
}
