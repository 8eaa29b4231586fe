//! What is mounted, offered to other machines: by NFS through `exportfs`, by Samba through a file that `smb.conf` includes.
//! Everything here blocks.

mod clients;
mod nfs;
mod samba;

pub use clients::{Device, clients_on, devices_in_use};
pub use nfs::{
    Client, Export, Own, flush, is_exported, leases_note, moved, retract, sync, take_back, volume_fsid,
};
pub use samba::{Share, write_shares};
