//! `zumastor peer ticket|add|list|remove`

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};

use zumastor_core::{NodeName, config::DEFAULT_PORT};
use zumastor_net::Ticket;

use super::node_name;
use crate::{
    api::{NodeStatus, PeerList},
    client::Client,
    exit::Failure,
    ui,
};

/// Make nodes known to each other
///
/// Each node needs the other's ticket: it says who the node is and where it can be reached, and is no secret.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Print this node's ticket, for `peer add` on another node
    Ticket {
        /// Where the other node can reach this one; may be given several times [default: what this host knows]
        #[arg(long, value_name = "HOST[:PORT]", value_parser = address)]
        address: Vec<String>,
    },
    /// Trust a node
    Add {
        /// What to call it here
        #[arg(value_parser = node_name)]
        name: NodeName,
        /// What `peer ticket` printed there
        ticket: String,
    },
    /// List the nodes that are trusted
    List {
        /// As JSON; its field `schema` says which version
        #[arg(long)]
        json: bool,
    },
    /// Trust a node no more, and close its connections
    Remove {
        /// What it is called here
        #[arg(value_parser = node_name)]
        name: NodeName,
    },
}

pub async fn run(args: Args, client: Client) -> Result<(), Failure> {
    match args.what {
        What::Ticket { address } => ticket(client.status(None).await?.node, address),
        What::Add { name, ticket } => ui::outcome(&client.add_peer(name, &ticket).await?),
        What::List { json } => list(&client.peers().await?, json),
        What::Remove { name } => ui::outcome(&client.remove_peer(&name).await?),
    }
}

fn ticket(node: NodeStatus, given: Vec<String>) -> Result<(), Failure> {
    let key = node.key.parse().map_err(Failure::doing("the daemon's key"))?;
    let addresses =
        if given.is_empty() { own_addresses(node.listen) } else { with_port(given, node.listen.port()) };
    let ticket = Ticket { name: node.name, key, addresses };
    ui::answer(&ticket)?;
    let addresses = ticket.addresses.join(", ");
    ui::comment(format_args!("  there: `zumastor peer add {} TICKET` (reached at {addresses})", ticket.name));
    Ok(())
}

/// A host's name or address, with a port or without.
fn address(text: &str) -> Result<String, String> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((six, rest)) => (six, rest.strip_prefix(':').or_else(|| rest.is_empty().then_some("0"))),
        None if text.parse::<Ipv6Addr>().is_ok() => (text, Some("0")),
        None => text.split_once(':').map_or((text, Some("0")), |(host, port)| (host, Some(port))),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:%".contains(c);
    match port.is_some_and(|port| port.parse::<u16>().is_ok()) && !host.is_empty() && host.chars().all(plain)
    {
        true => Ok(text.to_owned()),
        false => {
            Err("no HOST or HOST:PORT, such as beta.example, 192.0.2.7:11235 or [2001:db8::7]:11235"
                .to_owned())
        }
    }
}

/// Addresses without a port get the one that the daemon listens on, unless it is the usual one.
fn with_port(mut addresses: Vec<String>, port: u16) -> Vec<String> {
    if port == DEFAULT_PORT {
        return addresses;
    }
    for address in &mut addresses {
        if address.parse::<Ipv6Addr>().is_ok() {
            *address = format!("[{address}]:{port}");
        } else if address.ends_with(']') || !address.contains(':') {
            *address = format!("{address}:{port}");
        }
    }
    addresses
}

/// Where a daemon that listens there can be reached, as far as this host can tell.
fn own_addresses(listen: SocketAddr) -> Vec<String> {
    if !listen.ip().is_unspecified() {
        return vec![listen.to_string()];
    }
    let port = listen.port();
    // The route to a documentation address (RFC 5737, RFC 3849) tells which of ours goes out; nothing is sent.
    let outward = |from: &str, to: &str| -> Option<IpAddr> {
        let socket = UdpSocket::bind((from, 0)).ok()?;
        socket.connect((to, DEFAULT_PORT)).ok()?;
        socket
            .local_addr()
            .ok()
            .map(|address| address.ip())
            .filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
    };
    let four = outward("0.0.0.0", "192.0.2.1");
    let six = if listen.is_ipv6() { outward("::", "2001:db8::1") } else { None };
    let mut addresses: Vec<_> =
        four.into_iter().chain(six).map(|ip| SocketAddr::new(ip, port).to_string()).collect();
    let uname = rustix::system::uname();
    match uname.nodename().to_str() {
        Ok(name) if !name.is_empty() && name != "localhost" => addresses.push(format!("{name}:{port}")),
        _ if addresses.is_empty() => addresses.push(format!("127.0.0.1:{port}")),
        _ => {}
    }
    addresses
}

fn list(list: &PeerList, json: bool) -> Result<(), Failure> {
    if json {
        return ui::answer(serde_json::to_string_pretty(list).map_err(Failure::doing("writing JSON"))?);
    }
    let peers = &list.peers;
    if peers.is_empty() {
        ui::comment("no peers yet: `zumastor peer add NAME TICKET` adds one");
    }
    let width = peers.iter().map(|peer| peer.name.as_str().len()).max().unwrap_or(0);
    for peer in peers {
        let key = ui::short_key(&peer.key);
        let connected = peer
            .connected
            .map_or_else(|| "not connected".to_owned(), |address| format!("connected at {address}"));
        let addresses =
            if peer.addresses.is_empty() { "no address".to_owned() } else { peer.addresses.join(" ") };
        ui::answer(format_args!("{:width$}  {key}  {connected}  {addresses}", peer.name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_specific_address_is_all_a_ticket_needs() {
        assert_eq!(own_addresses("10.0.0.1:77".parse().unwrap()), ["10.0.0.1:77"]);
        let addresses = own_addresses("0.0.0.0:77".parse().unwrap());
        assert!(
            !addresses.is_empty() && addresses.iter().all(|address| address.ends_with(":77")),
            "{addresses:?}"
        );
    }

    #[test]
    fn a_port_that_is_not_the_usual_one_goes_with_every_address() {
        let given =
            || ["h", "h:7", "10.0.0.1", "fd00::1", "[fd00::1]", "[fd00::1]:7"].map(str::to_owned).to_vec();
        assert_eq!(with_port(given(), DEFAULT_PORT), given());
        let with = ["h:9", "h:7", "10.0.0.1:9", "[fd00::1]:9", "[fd00::1]:9", "[fd00::1]:7"];
        assert_eq!(with_port(given(), 9), with);
        assert!(given().iter().all(|given| address(given).is_ok()));
        for bad in ["", ":7", "a b:7", "h:port", "h:70000", "[fd00::1", "[fd00::1]7", "udp://h"] {
            assert!(address(bad).is_err(), "{bad:?}");
        }
    }
}
