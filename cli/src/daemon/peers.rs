//! The nodes that this one trusts.

use std::{
    net::{IpAddr, UdpSocket},
    sync::Arc,
};

use zumastor_core::{
    NodeName,
    config::{DEFAULT_PORT, PeerConfig, PeersConfig},
};
use zumastor_net::{Peer, PublicKey, Ticket};

use super::Daemon;
use crate::{
    api::{AddPeer, Outcome, PEERS_SCHEMA, PeerList, PeerStatus},
    exit::Failure,
};

impl Daemon {
    /// The peers.
    pub fn peers(&self) -> PeersConfig {
        self.peers.read().expect("no panic while locked").clone()
    }

    /// `peer list`.
    pub fn peer_list(&self) -> PeerList {
        let volumes = self.all_volumes();
        let uses = |name: &NodeName| {
            let used = volumes.iter().filter(|volume| {
                let config = volume.config();
                config.target.contains_key(name) || config.source.is_some_and(|source| source.host == *name)
            });
            used.map(|volume| volume.name.clone()).collect()
        };
        let status = |(name, peer): (NodeName, PeerConfig)| PeerStatus {
            connected: self.node().connected(&name),
            volumes: uses(&name),
            name,
            key: peer.key,
            addresses: peer.addresses,
        };
        PeerList { schema: PEERS_SCHEMA, peers: self.peers().peer.into_iter().map(status).collect() }
    }

    /// `peer add`.
    pub async fn add_peer(&self, add: AddPeer) -> Result<Outcome, Failure> {
        let _editing = self.editing.lock().await;
        let AddPeer { name, ticket } = add;
        let ticket: Ticket = ticket.trim().parse().map_err(|error: zumastor_net::InvalidTicket| {
            Failure::usage(error.to_string()).remedy("`zumastor peer ticket`, over there, prints one")
        })?;
        if ticket.key == self.key {
            return Err(Failure::refused("that is this node's own ticket")
                .remedy("add the ticket that `zumastor peer ticket` prints on the other node"));
        }
        let mut peers = self.peers();
        let key = ticket.key.to_string();
        if let Some((known, _)) = peers.peer.iter().find(|(known, peer)| **known != name && peer.key == key) {
            return Err(Failure::refused(format!("that node is known already, as {known}"))
                .remedy(format!("`zumastor peer remove {known}` first, to give it another name")));
        }
        match peers.peer.get_mut(&name) {
            Some(peer) if peer.key != key => {
                return Err(Failure::refused(format!("{name} is another node, with another key"))
                    .remedy(format!("choose another name, or `zumastor peer remove {name}` first")));
            }
            Some(peer) if peer.addresses == ticket.addresses => {
                return Ok(Outcome::already(format!("{name} is a peer already")));
            }
            Some(peer) => peer.addresses = ticket.addresses,
            None => {
                peers.peer.insert(name.clone(), PeerConfig { key, addresses: ticket.addresses });
            }
        }
        self.set_peers(peers).await?;
        let outcome = Outcome::changed(format!("{name} is a peer now (key {})", ticket.key.short()));
        Ok(outcome
            .note(format!("it must know this node too: there, `zumastor peer add {} TICKET`", self.name)))
    }

    /// `peer remove`.
    pub async fn remove_peer(&self, name: &NodeName) -> Result<Outcome, Failure> {
        let _editing = self.editing.lock().await;
        let mut peers = self.peers();
        if peers.peer.remove(name).is_none() {
            return Err(
                Failure::failed(format!("there is no peer {name}")).remedy("`zumastor peer list` names them")
            );
        }
        for volume in self.all_volumes() {
            let config = volume.config();
            let volume = &volume.name;
            if config.target.contains_key(name) {
                return Err(Failure::refused(format!("volume {volume} is sent to {name}"))
                    .remedy(format!("`zumastor forget target {volume} {name}` first")));
            }
            if config.source.is_some_and(|source| source.host == *name) {
                return Err(Failure::refused(format!("volume {volume} comes from {name}"))
                    .remedy(format!("`zumastor forget source {volume}` first")));
            }
        }
        self.set_peers(peers).await?;
        Ok(Outcome::changed(format!("{name} is no peer any more, and its connections are closed")))
    }

    /// The peer that `HOST[:PORT]` means; with a port that is new, the address to [remember](Self::remember).
    pub fn resolve_host(&self, host: &str) -> Result<(NodeName, Option<String>), Failure> {
        let found = find_host(&self.peers(), host);
        let new = match &found {
            Ok((_, None)) => return found,
            Ok((_, Some(address))) => address,
            Err(_) => host,
        };
        match own_address(new, self.address().port()) || (found.is_err() && parts(host).0 == self.name.as_str()) {
            true => Err(Failure::refused(format!("{host} is this node itself")).remedy(
                "name the other node: `zumastor peer list` shows those that are known, `zumastor peer add NAME TICKET` makes one known",
            )),
            false => found,
        }
    }

    /// Notes one more address of a peer.
    pub async fn remember(&self, name: &NodeName, address: Option<String>) -> Result<(), Failure> {
        let mut peers = self.peers();
        match (peers.peer.get_mut(name), address) {
            (Some(peer), Some(address)) => peer.addresses.push(address),
            _ => return Ok(()),
        }
        self.set_peers(peers).await
    }

    /// The peer that `HOST` means.
    pub fn known_host(&self, host: &str) -> Result<NodeName, Failure> {
        find_host(&self.peers(), host).map(|(name, _)| name)
    }

    /// Writes the peers down and trusts exactly them.
    async fn set_peers(&self, peers: PeersConfig) -> Result<(), Failure> {
        trusted(&peers)?;
        let written = peers.clone();
        self.configuring(move |files| files.write_peers(&written)).await?;
        self.set_trusted(peers)
    }

    /// Trusts exactly these peers.
    pub fn set_trusted(&self, peers: PeersConfig) -> Result<(), Failure> {
        let trusted = trusted(&peers)?;
        *self.peers.write().expect("no panic while locked") = peers;
        self.node().set_peers(trusted);
        Ok(())
    }

    /// Trusts the peers that are configured.
    pub fn trust_peers(self: &Arc<Self>) -> Result<(), Failure> {
        self.node().set_peers(trusted(&self.peers())?);
        Ok(())
    }
}

/// The peers as the network knows them.
pub fn trusted(peers: &PeersConfig) -> Result<Vec<Peer>, Failure> {
    let peer = |(name, peer): (&NodeName, &PeerConfig)| {
        let key: PublicKey = peer.key.parse().map_err(|_| {
            Failure::failed(format!("peers.toml: the key of {name} is not 64 hexadecimal digits"))
        })?;
        Ok(Peer { name: name.clone(), key, addresses: peer.addresses.clone() })
    };
    peers.peer.iter().map(peer).collect()
}

/// Finds the peer that `HOST[:PORT]` means, by name or by address; with a port that is not among its addresses, also
/// the address to add. Several peers may be behind one address: then only a port that one of them has tells which is meant.
fn find_host(peers: &PeersConfig, text: &str) -> Result<(NodeName, Option<String>), Failure> {
    let (host, port) = split_port(text)?;
    let by_name = host.parse().ok().and_then(|name: NodeName| peers.peer.get_key_value(&name));
    let (name, peer) = match by_name {
        Some(found) => found,
        None => find_address(peers, host, port)?,
    };
    let has = |port| peer.addresses.iter().any(|address| parts(address).1 == port);
    let Some(port) = port.filter(|port| !has(*port)) else { return Ok((name.clone(), None)) };
    let at = match peer.addresses.first() {
        Some(first) if by_name.is_some() => parts(first).0,
        _ => host,
    };
    let address = if at.contains(':') { format!("[{at}]:{port}") } else { format!("{at}:{port}") };
    Ok((name.clone(), Some(address)))
}

/// The peer at an address: the one that has it with this port, or else the only one at this host.
fn find_address<'a>(
    peers: &'a PeersConfig,
    host: &str,
    port: Option<u16>,
) -> Result<(&'a NodeName, &'a PeerConfig), Failure> {
    let at = |fits: &dyn Fn(u16) -> bool| -> Vec<_> {
        let fits = |address: &String| {
            let (its_host, its_port) = parts(address);
            its_host == host && fits(its_port)
        };
        peers.peer.iter().filter(|(_, peer)| peer.addresses.iter().any(fits)).collect()
    };
    let exactly = at(&|its| its == port.unwrap_or(DEFAULT_PORT));
    let all = at(&|_| true);
    match (exactly.as_slice(), all.as_slice()) {
        ([found], _) | ([], [found]) => Ok(*found),
        ([], []) => Err(Failure::failed(format!("{host} is no peer of this node")).remedy(format!(
            "there, `zumastor peer ticket`; here, `zumastor peer add {host} TICKET`; and the other way round"
        ))),
        _ => {
            let names: Vec<_> = all.iter().map(|(name, _)| name.to_string()).collect();
            Err(Failure::refused(format!("{host} is the address of several peers: {}", names.join(", ")))
                .remedy("say which is meant by its name"))
        }
    }
}

/// Whether an address is of this machine, and `port`, which this node listens on, the one that it names.
fn own_address(address: &str, port: u16) -> bool {
    let (host, its_port) = parts(address);
    let local = || match host.parse::<IpAddr>() {
        // Only an address of this machine can be listened on.
        Ok(ip) => UdpSocket::bind((ip, 0)).is_ok(),
        Err(_) => host == "localhost" || rustix::system::uname().nodename().to_bytes() == host.as_bytes(),
    };
    its_port == port && local()
}

/// Host and port of an address that was written down.
fn parts(address: &str) -> (&str, u16) {
    let (host, port) = split_port(address).unwrap_or((address, None));
    (host, port.unwrap_or(DEFAULT_PORT))
}

/// Splits `HOST[:PORT]`; an IPv6 address with a port stands in brackets.
fn split_port(text: &str) -> Result<(&str, Option<u16>), Failure> {
    let bad = || Failure::usage(format!("{text:?} is not HOST or HOST:PORT"));
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(bad)?;
        match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if rest.is_empty() => (host, None),
            None => return Err(bad()),
        }
    } else {
        match text.split_once(':') {
            // Several colons are an IPv6 address.
            Some((_, rest)) if rest.contains(':') => (text, None),
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let port = port.map(|port| port.parse().ok().filter(|port| *port != 0).ok_or_else(bad)).transpose()?;
    if host.is_empty() { Err(bad()) } else { Ok((host, port)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn hosts_are_found_by_name_and_address() {
        let mut peers = PeersConfig::default();
        let mut add = |name: &str, addresses: &[&str]| {
            let addresses = addresses.iter().map(|address| (*address).to_owned()).collect();
            peers.peer.insert(name.parse().unwrap(), PeerConfig { key: String::new(), addresses });
        };
        add("beta", &["10.0.0.2", "[fd00::2]:9000"]);
        add("gamma", &[]);
        add("one", &["192.0.2.1:1001"]);
        add("two", &["192.0.2.1:1002", "192.0.2.2"]);
        add("three", &["192.0.2.2:1003"]);
        let find = |text: &str| find_host(&peers, text).map(|(name, address)| (name.to_string(), address));
        for (text, name, added) in [
            ("beta", "beta", None),
            ("beta:11235", "beta", None),
            ("beta:9000", "beta", None),
            ("beta:7", "beta", Some("10.0.0.2:7")),
            ("10.0.0.2", "beta", None),
            ("10.0.0.2:7", "beta", Some("10.0.0.2:7")),
            ("fd00::2", "beta", None),
            ("[fd00::2]:9000", "beta", None),
            ("[fd00::2]:7", "beta", Some("[fd00::2]:7")),
            ("gamma:7", "gamma", Some("gamma:7")),
            // Two behind one address.
            ("192.0.2.1:1001", "one", None),
            ("192.0.2.1:1002", "two", None),
            ("192.0.2.2", "two", None),
            ("192.0.2.2:11235", "two", None),
            ("192.0.2.2:1003", "three", None),
        ] {
            assert_eq!(find(text).unwrap(), (name.to_owned(), added.map(str::to_owned)), "{text}");
        }
        assert_eq!(find("delta").unwrap_err().exit, Exit::Failed);
        for either in ["192.0.2.1", "192.0.2.1:1003"] {
            let error = find(either).unwrap_err();
            assert!(
                error.exit == Exit::Refused && error.error.ends_with("several peers: one, two"),
                "{error:?}"
            );
        }
        for bad in ["beta:", "beta:0", "beta:x", "[::1", "[::1]7", ":7", ""] {
            assert_eq!(find(bad).unwrap_err().exit, Exit::Usage, "{bad}");
        }
    }
}
