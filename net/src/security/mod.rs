//! Who nodes are, and how they prove it.

mod identity;
mod ticket;
mod tls;

pub(crate) use identity::TLS_NAME;
pub use identity::{IdentityError, InvalidKey, NodeKey, PublicKey};
pub use ticket::{InvalidTicket, Ticket};
pub(crate) use tls::{Trust, client_config, peer_key, server_config};
