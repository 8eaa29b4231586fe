//! `zumastor reload`

use crate::{client::Client, exit::Failure, ui};

/// Read the configuration again and apply what changed; if a file is bad, nothing changes
///
/// SIGHUP to the daemon does the same. What zumastor.toml says is read only when the daemon starts.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub async fn run(Args {}: Args, client: Client) -> Result<(), Failure> {
    ui::outcome(&client.reload().await?)
}
