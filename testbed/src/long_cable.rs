//! A cable that is long, slow and loses packets, between two network namespaces: what `tc netem` does, for kernels without it and
//! for rates that a guest of the kernel lab does not reach.
//!
//! At each end is a TUN device; what the kernel sends into one, a thread takes and gives to the other when it has come through.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    ioctl::{Opcode, Setter, ioctl, opcode},
};
use serde::Serialize;
use zumastor::exit::Failure;

use crate::Namespaces;

/// What a cable does to what goes over it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LongPath {
    /// Milliseconds there and back.
    pub rtt: u64,
    /// Part of the packets that is lost, each way.
    pub loss: f64,
    /// Bits per second, each way.
    pub rate: u64,
}

impl LongPath {
    /// Bytes that are on their way there and back when it is full.
    fn holds(self) -> u64 {
        self.rate / 8 * self.rtt / 1000
    }

    /// How long it takes to put so many bytes onto it.
    fn lasts(self, bytes: usize) -> Duration {
        Duration::from_nanos(bytes as u64 * 8 * 1_000_000_000 / self.rate)
    }
}

/// Carries packets until it is dropped.
#[derive(Debug)]
pub struct LongCable {
    path: Arc<Mutex<LongPath>>,
    ended: Arc<AtomicBool>,
    ways: Vec<JoinHandle<()>>,
}

impl LongCable {
    /// Joins two namespaces that nothing joins yet. Needs root.
    pub fn join(namespaces: &Namespaces, path: LongPath) -> Result<Self, Failure> {
        let ends = thread::scope(|scope| {
            // A device is made where the thread is, and threads of others stay where they are.
            let make = |side| {
                scope.spawn(move || {
                    namespaces.enter(side)?;
                    device(Namespaces::CABLE).map_err(Failure::doing("making a TUN device"))
                })
            };
            [make(0), make(1)].map(|end| end.join().expect("it does not panic"))
        });
        let [one, two] = ends;
        let (one, two) = (Arc::new(one?), Arc::new(two?));
        namespaces.plug()?;
        // The queue is the cable's own.
        namespaces.queue(QUEUE)?;
        namespaces.usual_tcp()?;
        let (path, ended) = (Arc::new(Mutex::new(path)), Arc::new(AtomicBool::new(false)));
        let ways = [(one.clone(), two.clone()), (two, one)].into_iter().zip(0..).map(|((from, to), seed)| {
            let way = Way { path: path.clone(), ended: ended.clone(), from, to };
            thread::spawn(move || way.carry(seed))
        });
        let ways = ways.collect();
        Ok(Self { path, ended, ways })
    }

    /// Makes it another one, for what comes from now on.
    pub fn become_like(&self, path: LongPath) {
        *self.path.lock().expect("no panic while locked") = path;
    }
}

impl Drop for LongCable {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for way in self.ways.drain(..) {
            let _ = way.join();
        }
    }
}

/// One direction.
struct Way {
    path: Arc<Mutex<LongPath>>,
    ended: Arc<AtomicBool>,
    from: Arc<File>,
    to: Arc<File>,
}

/// Packets are looked after so often: what comes and goes between is done at once.
const TICK: Duration = Duration::from_micros(200);

/// Packets that come between two looks, at any rate that this machine has.
const QUEUE: u32 = 20_000;

/// Longest wait for a packet when none is on its way.
const IDLE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// Packets that are taken before others are given.
const AT_ONCE: usize = 256;

/// More than a packet has bytes.
const PACKET: usize = 2048;

impl Way {
    fn carry(self, seed: u64) {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut under_way: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
        let mut spare: Vec<Vec<u8>> = Vec::new();
        // When the last packet is on the cable with its last bit.
        let mut free = Instant::now();
        while !self.ended.load(Ordering::Relaxed) {
            let path = *self.path.lock().expect("no panic while locked");
            for _ in 0..AT_ONCE {
                let mut packet = spare.pop().unwrap_or_default();
                packet.resize(PACKET, 0);
                let Ok(length) = rustix::io::read(&*self.from, &mut packet[..]) else {
                    spare.push(packet);
                    break;
                };
                packet.truncate(length);
                let begins = free.max(Instant::now());
                // Before the cable is a queue of as much as it holds; what finds it full is lost, and so is some of the rest.
                let full = begins.duration_since(Instant::now()) > path.lasts(path.holds() as usize);
                if full || random.random_bool(path.loss) {
                    if !full {
                        free = begins + path.lasts(length);
                    }
                    spare.push(packet);
                    continue;
                }
                free = begins + path.lasts(length);
                under_way.push_back((free + Duration::from_millis(path.rtt) / 2, packet));
            }
            let now = Instant::now();
            while under_way.front().is_some_and(|(due, _)| *due <= now) {
                let (_, packet) = under_way.pop_front().expect("it is there");
                // What the other end does not take is lost.
                let _ = rustix::io::write(&*self.to, &packet);
                spare.push(packet);
            }
            match under_way.front() {
                // This is the delay itself, and nobody waits for something to have happened.
                Some((due, _)) => thread::sleep(due.duration_since(now).min(TICK)),
                None => drop(poll(&mut [PollFd::new(&*self.from, PollFlags::IN)], Some(&IDLE))),
            }
        }
    }
}

/// `struct ifreq` of `linux/if.h`, as far as TUN devices read it.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// `TUNSETIFF`, `IFF_TUN` and `IFF_NO_PI` of `linux/if_tun.h`.
const SET_DEVICE: Opcode = opcode::write::<i32>(b'T', 202);
const TUN: u16 = 0x0001;
const PLAIN_PACKETS: u16 = 0x1000;

/// Makes a TUN device in the network namespace of this thread. It is gone when the file is closed.
#[allow(unsafe_code)]
fn device(name: &str) -> io::Result<File> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    let mut request = Request { name: [0; 16], flags: TUN | PLAIN_PACKETS, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the kernel reads a `struct ifreq`, which this is, and writes the name of the device back into it at most.
    unsafe { ioctl(&file, Setter::<SET_DEVICE, Request>::new(request))? };
    fcntl_setfl(&file, fcntl_getfl(&file)? | OFlags::NONBLOCK)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_holds_what_it_takes_a_round_trip_to_send() {
        let path = LongPath { rtt: 100, loss: 0.0, rate: 80_000_000 };
        assert_eq!(path.holds(), 1_000_000);
        assert_eq!(path.lasts(1_000_000), Duration::from_millis(100));
    }
}
