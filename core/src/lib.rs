//! What Zumastor is about, without sockets, devices or an async runtime: volumes and their snapshots, the
//! store that keeps them, the digest that names their content, and the words of the configuration.

mod buffer;
mod catalogue;
pub mod config;
mod cron;
pub mod digest;
mod error;
mod every;
mod extent;
pub mod files;
mod ids;
mod memory;
pub mod retention;
mod rotation;
pub mod schedule;
pub mod scrub;
mod selection;
pub mod steps;
mod store;
mod units;

pub use buffer::PageBuf;
pub use catalogue::{Hold, HoldOwner, NewSnapshot, SnapshotRecord};
pub use cron::{CronExpression, InvalidCron};
pub use error::StoreError;
pub use every::{Every, Interval, InvalidEvery, InvalidSeconds, parse_seconds};
pub use extent::{Changes, Extent, ExtentKind};
pub use ids::{GroupId, GroupName, InvalidName, Lineage, NodeName, SnapshotGuid, SnapshotNumber, VolumeName};
pub use memory::MemoryStore;
pub use rotation::{CustomName, InvalidRotation, RotationName, RotationSpec};
pub use selection::Selection;
pub use store::{
    Fill, Frozen, Geometry, HeadRepair, HeadState, PoolRoom, Repair, SnapshotReader, SnapshotStore,
    SnapshotUsage, StagePlan, Staging, StoreInfo, Usage, UsageBySnapshot,
};
pub use units::{
    ByteSize, HumanBytes, InvalidChunk, InvalidSize, LEAF, LEAVES_PER_SEGMENT, LeafIndex, PAGE, SEGMENT,
    SegmentIndex, check_chunk, is_zero, parse_size,
};
