//! Both ends of a transfer, apart from sockets: they talk over any pair of byte streams.

mod batch;
mod checkpoints;
mod choose;
mod circle;
mod data;
mod downstream;
mod era;
mod fetch;
mod mend;
mod patience;
mod receive;
mod send;
mod terms;
mod upstream;
mod verify;

pub use choose::Offer;
pub use circle::{trace, trace_patience};
pub use downstream::{PullError, Replica, finish, pull, pull_finished};
pub use era::{Epochs, ForgetfulEpochs, believable};
pub use mend::{Mended, Mending, mend};
pub use patience::Patience;
pub use terms::push_period;
pub use upstream::{AnnounceError, announce, serve};
