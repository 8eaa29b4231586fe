//! `zumastor define volume|master|schedule|source|target`

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use zumastor_core::{
    GroupName, Selection, VolumeName, check_chunk,
    config::{TargetConfig, TestFeature},
    parse_size,
};

use super::{confirm::confirmed, rotations::Rotations, seconds, volume_name};
use crate::{
    api::{DefineMaster, DefineSource, DefineTarget, DefineVolume, Mounts},
    client::Client,
    exit::Failure,
    ui,
};

/// Define a volume, and what this node does with it
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    pub what: What,
}

#[derive(Debug, clap::Subcommand)]
pub enum What {
    Volume(Volume),
    #[command(disable_help_flag = true)]
    Master(Master),
    #[command(disable_help_flag = true)]
    Schedule(Schedule),
    Source(Source),
    Target(Target),
}

/// Define a volume by where its data and its snapshots are
#[derive(Debug, clap::Args)]
pub struct Volume {
    /// Name of the volume
    #[arg(value_parser = volume_name)]
    volume: VolumeName,
    /// File with the volume's data; may be absent on a node that will receive it. Or a block device, or VG/LV for a thin volume of
    /// LVM's
    orgdev: PathBuf,
    /// Directory for the snapshots, best on the same file system; or a block device. For a thin volume of LVM's, its pool, VG/POOL,
    /// which may be left out if the volume exists
    snapdev: Option<PathBuf>,
    /// Overwrite the origin with zeros; asks first if it holds anything
    #[arg(short, long, visible_short_alias = 'z', visible_alias = "zero")]
    initialize: bool,
    /// Block device for the metadata, where the volume is on block devices [default: a part of SNAPDEV]
    #[arg(short, long, value_name = "DEV")]
    metadev: Option<PathBuf>,
    #[command(flatten)]
    mounts: MountOptions,
    /// Size of a block of metadata; may differ from --chunksize only with --metadev
    #[arg(short, long, value_name = "SIZE", value_parser = chunk, allow_negative_numbers = true)]
    blocksize: Option<u64>,
    /// Size of a chunk of data, a power of two larger than 512 bytes; K, M and G stand for powers of 1024 [default: what suits]
    #[arg(short, long, value_name = "SIZE", value_parser = chunk, allow_negative_numbers = true)]
    chunksize: Option<u64>,
    /// Memory that the daemon may take for the volume [default: 128M, or a quarter of the machine's if that is less]
    #[arg(short = 'k', long, value_name = "SIZE", value_parser = size, allow_negative_numbers = true)]
    cachesize: Option<u64>,
    /// Do not ask before data are overwritten
    #[arg(short, long)]
    yes: bool,
}

/// Take snapshots of the volume on this node, by hand and by schedule
///
/// On a volume that this node masters already, only what is named changes. With 0, no more are taken of a
/// rotation, and those there are go when the next snapshot comes.
#[derive(Debug, clap::Args)]
pub struct Master {
    /// Name of the volume
    #[arg(value_parser = volume_name)]
    volume: VolumeName,
    #[command(flatten)]
    rotations: Rotations,
    /// Do not mount the snapshots; `--no-snapmount=false` mounts them again
    #[arg(short, long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    no_snapmount: Option<bool>,
    /// Let the snapshots be seen as .snapshot in the volume; `--dotsnapshot=false` ends that
    #[arg(short = 's', long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    dotsnapshot: Option<bool>,
    /// Share the volume by Samba, with its snapshots as previous versions; `--samba=false` ends that
    #[arg(short = 'p', long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    samba: Option<bool>,
    /// Export the volume and its snapshots by NFS, read only, to these clients (exports(5)) [default: to all]; `--export=` ends
    /// that
    #[arg(short, long, value_name = "CLIENT,…", num_args = 0..=1, default_missing_value = "*", require_equals = true)]
    export: Option<String>,
    /// Take its snapshots together with those of the other volumes of this group
    #[arg(short, long)]
    group: Option<GroupName>,
    /// Take its snapshots by themselves again
    #[arg(long, conflicts_with = "group")]
    no_group: bool,
}

/// Say how many snapshots of which rotations are kept here
///
/// On a master they are taken as well; on a replica, what is received counts. Only the rotations that are named change.
/// With 0, no more are taken, and those there are go when the next snapshot comes.
#[derive(Debug, clap::Args)]
pub struct Schedule {
    /// Name of the volume
    #[arg(value_parser = volume_name)]
    volume: VolumeName,
    #[command(flatten)]
    rotations: Rotations,
}

/// Receive the volume from another node
#[derive(Debug, clap::Args)]
pub struct Source {
    /// Name of the volume
    #[arg(value_parser = volume_name)]
    volume: VolumeName,
    /// The node it comes from: a peer's name, or an address of it
    #[arg(value_name = "HOST[:PORT]")]
    host: String,
    /// Ask for something new every so many seconds, and when the daemon starts; 15m or 6h will do as well
    #[arg(short, long, value_name = "SECONDS", value_parser = period, allow_negative_numbers = true)]
    period: Option<u64>,
    /// The volume's name there, if it is another
    #[arg(short, long, value_name = "REMOTE", value_parser = volume_name)]
    name: Option<VolumeName>,
    /// Mount the snapshots that are received
    #[arg(short, long)]
    mount_snap: bool,
    /// Export the volume and its snapshots by NFS, read only, to these clients (exports(5)) [default: to all]
    #[arg(short, long, value_name = "CLIENT,…", num_args = 0..=1, default_missing_value = "*", require_equals = true)]
    export: Option<String>,
    /// Call this replica late when nothing was heard for the period and so many seconds [default: half the period, at least
    /// 60; without a period, a day in all]
    #[arg(long, value_name = "SECONDS", value_parser = seconds, allow_negative_numbers = true)]
    margin: Option<u64>,
    /// Do not ask before a master is made a replica
    #[arg(short, long)]
    yes: bool,
}

/// Send the volume to another node
#[derive(Debug, clap::Args)]
pub struct Target {
    /// Name of the volume
    #[arg(value_parser = volume_name)]
    pub volume: VolumeName,
    /// The node it is sent to: a peer's name, or an address of it
    #[arg(value_name = "HOST[:PORT]")]
    pub host: String,
    /// Replicate every so many seconds if there is something new; 15m or 6h will do as well
    #[arg(short, long, value_name = "SECONDS", value_parser = period, allow_negative_numbers = true)]
    pub period: Option<u64>,
    /// The volume's name there, if it is another
    #[arg(short, long, value_name = "REMOTE", value_parser = volume_name)]
    pub name: Option<VolumeName>,
    /// Send at most so many bytes a second; K, M and G stand for powers of 1024
    #[arg(short, long, value_name = "BYTES", value_parser = rate, allow_negative_numbers = true)]
    pub ratelimit: Option<u64>,
    /// Send without compressing
    #[arg(short, long)]
    pub uncompressed: bool,
    /// Send only snapshots of these rotations; `manual` stands for those of none [default: every snapshot]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', required = false)]
    pub rotations: Vec<String>,
    /// Send each of those snapshots, in order [default: the newest at the time]
    #[arg(long)]
    pub all: bool,
    /// Call the target late when a snapshot has waited for the period and so many seconds [default: half the period, at
    /// least 60; without a period, a day in all]
    #[arg(long, value_name = "SECONDS", value_parser = seconds, allow_negative_numbers = true)]
    pub margin: Option<u64>,
    /// For tests: `fullvolume` sends the whole volume each time, whatever has changed
    #[arg(short, long, value_name = "FEATURE")]
    pub test: Option<Test>,
}

/// What `--test` can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "lowercase")]
pub enum Test {
    /// All of the volume each time
    FullVolume,
}

/// The path that is meant: `VG/LV` is a logical volume, if there is no directory of the volume group's name here.
fn place(given: PathBuf) -> Result<PathBuf, Failure> {
    let relative = given.is_relative() && !given.starts_with(".") && !given.starts_with("..");
    let group = given.parent().filter(|group| relative && group.components().count() == 1 && !group.is_dir());
    if group.is_some() { Ok(Path::new("/dev").join(given)) } else { absolute(given) }
}

pub async fn run(args: Args, client: Client) -> Result<(), Failure> {
    let outcome = match args.what {
        What::Volume(Volume {
            volume,
            orgdev,
            snapdev,
            initialize,
            metadev,
            blocksize,
            chunksize,
            cachesize,
            mounts,
            yes,
        }) => {
            let (origin, snapstore) = (place(orgdev)?, snapdev.map(place).transpose()?);
            let (metadev, mounts) = (metadev.map(absolute).transpose()?, mounts.define()?);
            let define = DefineVolume {
                origin,
                snapstore,
                metadev,
                blocksize,
                chunksize,
                cachesize,
                initialize,
                yes,
                mounts,
            };
            let attempt =
                async |yes| client.define_volume(&volume, &DefineVolume { yes, ..define.clone() }).await;
            confirmed(yes, attempt).await?
        }
        What::Master(Master {
            volume,
            rotations,
            no_snapmount,
            dotsnapshot,
            samba,
            export,
            group,
            no_group,
        }) => {
            let rotations = rotations.define().rotations;
            let export = export.as_deref().map(clients);
            let define =
                DefineMaster { rotations, group, no_group, no_snapmount, dotsnapshot, samba, export };
            client.define_master(&volume, &define).await?
        }
        What::Schedule(Schedule { volume, rotations }) => {
            client.define_schedule(&volume, &rotations.define()).await?
        }
        What::Source(Source { volume, host, period, name, mount_snap, export, margin, yes }) => {
            let export = export.as_deref().map(clients).unwrap_or_default();
            let name = name.map(String::from);
            let define = DefineSource { host, period, name, mount_snap, export, margin, yes };
            let attempt =
                async |yes| client.define_source(&volume, &DefineSource { yes, ..define.clone() }).await;
            confirmed(yes, attempt).await?
        }
        What::Target(Target {
            volume,
            host,
            period,
            name,
            ratelimit,
            uncompressed,
            rotations,
            all,
            margin,
            test,
        }) => {
            let test = test.map(|Test::FullVolume| TestFeature::FullVolume);
            let rotations = Selection::new(rotations).map_err(|error| Failure::usage(error.to_string()))?;
            let name = name.map(String::from);
            let options =
                TargetConfig { period, name, ratelimit, uncompressed, rotations, all, margin, test };
            client.define_target(&volume, &DefineTarget { host, options }).await?
        }
    };
    ui::outcome(&outcome)
}

/// Where a volume is mounted, and how.
#[derive(Debug, clap::Args)]
pub struct MountOptions {
    /// Directory to mount the volume on, on which nothing else is mounted; with '', a device is mounted where it is by
    /// default, and an image file nowhere
    #[arg(short = 'p', long, value_name = "DIR")]
    mountpoint: Option<OsString>,
    /// Options of that mount, as `mount -o` takes them
    #[arg(short = 'o', long, value_name = "OPTS")]
    mountopts: Option<String>,
    /// Directory to mount the snapshots below; with '', the default
    #[arg(short = 's', long, value_name = "DIR")]
    snappath: Option<OsString>,
}

impl MountOptions {
    /// As the daemon takes them.
    pub fn define(self) -> Result<Mounts, Failure> {
        let directory = |path: Option<OsString>| {
            let path = path.map(PathBuf::from);
            path.map(|path| if path.as_os_str().is_empty() { Ok(path) } else { absolute(path) }).transpose()
        };
        let Self { mountpoint, mountopts, snappath } = self;
        Ok(Mounts { mountpoint: directory(mountpoint)?, mountopts, snappath: directory(snappath)? })
    }
}

fn absolute(path: PathBuf) -> Result<PathBuf, Failure> {
    std::path::absolute(&path).map_err(Failure::doing(path.display()))
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|error| error.to_string())
}

fn chunk(text: &str) -> Result<u64, String> {
    check_chunk(size(text)?).map_err(|error| error.to_string())
}

/// The clients of an export.
fn clients(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|client| !client.is_empty()).map(str::to_owned).collect()
}

/// Seconds between two replications.
fn period(text: &str) -> Result<u64, String> {
    match seconds(text)? {
        0 => Err("a period is at least one second".to_owned()),
        seconds => Ok(seconds),
    }
}

fn rate(text: &str) -> Result<u64, String> {
    match parse_size(text) {
        Ok(0) => Err("at least one byte a second".to_owned()),
        Ok(rate) => Ok(rate),
        Err(error) => Err(error.to_string()),
    }
}
