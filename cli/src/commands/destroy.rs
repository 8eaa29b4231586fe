//! `zumastor destroy`

use std::path::PathBuf;

use super::{confirm::confirmed, volume_name};
use crate::{api::Destroy, client::Client, exit::Failure, ui};

/// Delete all snapshots of a volume for good, with their store, and forget the volume
///
/// The origin stays: it is a plain file. Refused while any snapshot is held. A volume that was forgotten is named by the origin and the
/// snapshot store that it had. If this is interrupted, the same command goes on.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the volume; or the origin of one that was forgotten
    #[arg(value_name = "VOLUME|ORGDEV")]
    what: String,
    /// The snapshot store of a volume that was forgotten
    snapdev: Option<PathBuf>,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

pub async fn run(args: Args, client: Client) -> Result<(), Failure> {
    let absolute = |path: PathBuf| std::path::absolute(&path).map_err(Failure::doing(path.display()));
    let what = match args.snapdev {
        None => {
            Destroy { volume: Some(volume_name(&args.what).map_err(Failure::usage)?), ..Destroy::default() }
        }
        Some(snapdev) => Destroy {
            origin: Some(absolute(args.what.into())?),
            snapstore: Some(absolute(snapdev)?),
            ..Destroy::default()
        },
    };
    let attempt = async |yes| client.destroy(&Destroy { yes, ..what.clone() }).await;
    ui::outcome(&confirmed(args.yes, attempt).await?)
}
