//! Loop devices: image files as block devices. One that is made here is gone by itself when nothing uses it any more.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

/// A loop device that stays at least as long as this.
#[derive(Debug)]
pub struct LoopDevice {
    /// Where it is.
    pub path: PathBuf,
    _open: File,
}

/// What a loop device says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// The note that it was made with.
    pub note: String,
    /// The file behind it: its device and inode.
    pub file: (u64, u64),
}

impl LoopDevice {
    /// Makes a loop device of a file, with a note of at most 63 bytes.
    pub fn attach(file: &File, read_only: bool, note: &str) -> io::Result<Self> {
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        for _ in 0..ATTEMPTS {
            let number = call(&control, LOOP_CTL_GET_FREE, std::ptr::null_mut::<u8>())?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = OpenOptions::new().read(true).write(!read_only).open(&path)?;
            let mut config = Config {
                fd: u32::try_from(file.as_raw_fd()).expect("an open file's number is not negative"),
                ..Config::default()
            };
            config.info.flags = LO_FLAGS_AUTOCLEAR | if read_only { LO_FLAGS_READ_ONLY } else { 0 };
            config.info.file_name[..note.len().min(63)]
                .copy_from_slice(&note.as_bytes()[..note.len().min(63)]);
            match call(&device, LOOP_CONFIGURE, &raw mut config) {
                Ok(_) => return Ok(Self { path, _open: device }),
                // Somebody else was faster.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("no loop device could be had: others take each free one"))
    }
}

/// What the loop device at a path says of itself; nothing if it is none, or has no file.
pub fn described(path: &Path) -> Option<Described> {
    let name = path.file_name()?.to_str()?;
    let number = name.strip_prefix("loop")?;
    if !number.bytes().all(|byte| byte.is_ascii_digit())
        || !Path::new("/sys/block").join(name).join("loop").exists()
    {
        return None;
    }
    let device = File::open(path).ok()?;
    let mut info = Info::default();
    call(&device, LOOP_GET_STATUS64, &raw mut info).ok()?;
    let length = info.file_name.iter().position(|byte| *byte == 0).unwrap_or(info.file_name.len());
    let note = String::from_utf8_lossy(&info.file_name[..length]).into_owned();
    Some(Described { note, file: (info.device, info.inode) })
}

/// The loop devices that were made with this note and are still in use.
pub fn with_note(note: &str) -> Vec<PathBuf> {
    let Ok(devices) = fs::read_dir("/sys/block") else { return Vec::new() };
    let paths = devices.filter_map(|entry| Some(Path::new("/dev").join(entry.ok()?.file_name())));
    paths.filter(|path| described(path).is_some_and(|described| described.note == note)).collect()
}

/// Lets the loop devices of a file know that it has another size.
pub fn grown(file: &Path) -> io::Result<()> {
    let metadata = fs::metadata(file)?;
    let of = (metadata.dev(), metadata.ino());
    for entry in fs::read_dir("/sys/block")? {
        let path = Path::new("/dev").join(entry?.file_name());
        if described(&path).is_some_and(|described| described.file == of) {
            call(&File::open(&path)?, LOOP_SET_CAPACITY, std::ptr::null_mut::<u8>())?;
        }
    }
    Ok(())
}

/// A nameless copy of a file that shares its blocks, gone when nothing uses it any more.
pub fn nameless_clone(file: &Path) -> io::Result<File> {
    let directory = file.parent().unwrap_or(Path::new("/"));
    let copy = OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_TMPFILE)
        .open(directory)?;
    rustix::fs::ioctl_ficlone(&copy, File::open(file)?)?;
    Ok(copy)
}

fn call<T>(device: &File, request: u64, argument: *mut T) -> io::Result<i32> {
    // SAFETY: each request here is given the structure it is defined with, or needs none.
    #[allow(unsafe_code)]
    let done = unsafe { libc::ioctl(device.as_raw_fd(), request as _, argument) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}

/// `struct loop_info64` of include/uapi/linux/loop.h.
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
#[derive(Default)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

impl Default for Info {
    fn default() -> Self {
        Self {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: 0,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}

// From include/uapi/linux/loop.h.
const LOOP_GET_STATUS64: u64 = 0x4C05;
const LOOP_SET_CAPACITY: u64 = 0x4C07;
const LOOP_CONFIGURE: u64 = 0x4C0A;
const LOOP_CTL_GET_FREE: u64 = 0x4C82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// How often a free device is looked for that somebody else takes first.
const ATTEMPTS: u32 = 200;
