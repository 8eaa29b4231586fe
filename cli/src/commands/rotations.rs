//! The options that name rotations, of `define master` and `define schedule`.

use zumastor_core::{RotationName, RotationSpec};

use crate::api::{DefineRotations, Rotation};

/// How many snapshots of which rotations are kept. A rotation that is not named stays as it is; with 0, none is taken
/// any more, and those there are go when the next snapshot comes.
#[derive(Debug, clap::Args)]
pub struct Rotations {
    /// Keep so many hourly snapshots
    #[arg(short = 'h', long, value_name = "N", value_parser = keep, allow_negative_numbers = true)]
    hourly: Option<u32>,
    /// Keep so many daily snapshots
    #[arg(short, long, value_name = "N", value_parser = keep, allow_negative_numbers = true)]
    daily: Option<u32>,
    /// Keep so many weekly snapshots
    #[arg(short, long, value_name = "N", value_parser = keep, allow_negative_numbers = true)]
    weekly: Option<u32>,
    /// Keep so many monthly snapshots
    #[arg(short, long, value_name = "N", value_parser = keep, allow_negative_numbers = true)]
    monthly: Option<u32>,
    /// Keep so many snapshots of a rotation with a name of your own; EVERY says when they are taken: an interval such as
    /// 15m, 6h or 2d, or a calendar expression such as "30 2 * * mon-fri"; may be given several times
    #[arg(short, long, value_name = "NAME,N[,EVERY]", value_parser = custom)]
    custom: Vec<RotationSpec>,
    /// Print help (-h means hourly here)
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

impl Rotations {
    /// As the daemon takes them.
    pub fn define(self) -> DefineRotations {
        let builtin = [
            (RotationName::Hourly, self.hourly),
            (RotationName::Daily, self.daily),
            (RotationName::Weekly, self.weekly),
            (RotationName::Monthly, self.monthly),
        ];
        let builtin = builtin.into_iter().filter_map(|(name, keep)| Some(RotationSpec::new(name, keep?)));
        DefineRotations { rotations: builtin.chain(self.custom).map(Rotation::from).collect() }
    }
}

fn keep(text: &str) -> Result<u32, String> {
    RotationSpec::parse_keep(text).map_err(|error| error.to_string())
}

fn custom(text: &str) -> Result<RotationSpec, String> {
    RotationSpec::parse_custom(text).map_err(|error| error.to_string())
}
