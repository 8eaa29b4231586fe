//! Replication between nodes: who they are, what they say to each other, and both ends of a transfer.

mod buffers;
mod channel;
mod compression;
mod endpoint;
pub mod frame;
mod host;
mod permit;
mod progress;
mod rate;
mod room;
mod security;
mod transfer;
pub mod wire;

pub use channel::{Capacity, Channel, Outlet};
pub use compression::Compression;
pub use endpoint::{ConnectError, Node, NodeError, NodeOptions, Peer, endpoint, transport_config};
pub use host::{Broken, Holds, Host, Link, MakeRoom, Meter, Outgoing, Planned, PullState, Served, Unheard};
pub use permit::Permit;
pub use progress::{Phase, Progress, PullSummary, Reporter};
pub use rate::RateLimiter;
pub use room::{LEAST_FOR_A_TARGET, MOST_STREAMS, SendRoom};
pub use security::{IdentityError, InvalidKey, InvalidTicket, NodeKey, PublicKey, Ticket};
pub use transfer::{
    AnnounceError, Epochs, ForgetfulEpochs, Mended, Mending, Offer, Patience, PullError, Replica, announce,
    believable, finish, mend, pull, pull_finished, push_period, serve, trace, trace_patience,
};
