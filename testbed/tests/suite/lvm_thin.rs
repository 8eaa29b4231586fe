//! Volumes that are thin volumes of LVM, on a real device-mapper.

use std::{
    fs::{self, File, OpenOptions},
    ops::Range,
    os::unix::fs::{FileExt, OpenOptionsExt},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use rustix::fs::{FlockOperation, OFlags, flock};
use uuid::Uuid;
use zumastor::exit::Failure;
use zumastor_backends::{
    Faults, Making, VolumeSpec,
    conformance::{Bytes, Subject, check, deliver, plan_for},
    let_go_on, open_lvm, reopen_volume,
};
use zumastor_core::{Lineage, NewSnapshot, PageBuf, SegmentIndex, SnapshotNumber, SnapshotStore, StoreError};
use zumastor_testbed::{
    lab::{self, Job, Lab, Machine},
    output,
};

/// The program, built with this test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_zumastor-under-test");

/// What the tests of this file need beside the lab.
pub const TOOLS: &[&str] = &["lvs", "vgcreate", "thin_check", "dmsetup", "mkfs.ext4"];

pub fn machine(lab: &Lab, size: u64) -> Result<Machine, Failure> {
    Ok(Machine::new("solo").modules(&["dm-thin-pool"]).disk(&lab.disk("pv", size)?))
}

pub fn spec() -> VolumeSpec {
    VolumeSpec {
        name: "v".parse().unwrap(),
        origin: "/dev/vg/vol".into(),
        snapstore: "/dev/vg/pool".into(),
        metadev: None,
        chunk: None,
        notes: "/run/lab/notes".into(),
    }
}

pub fn lvm(program: &str, arguments: &str) -> Result<String, Failure> {
    output(program, |command| command.args(arguments.split(' ')))
}

/// A volume group with a pool, of extents so small that volumes may have the sizes that the suite gives them.
fn make_pool() -> Result<(), Failure> {
    lvm("pvcreate", "-ff -y /dev/ubda")?;
    lvm("vgcreate", "-s 512b vg /dev/ubda")?;
    lvm("lvcreate", "--type thin-pool -L 32M --poolmetadatasize 4M -n pool vg").map(drop)
}

/// An empty volume of LVM's.
#[derive(Debug)]
struct Volume;

impl Volume {
    fn new() -> Self {
        if lvm("vgs", "vg").is_err() {
            make_pool().unwrap();
        }
        // What the last case left.
        lvm("lvremove", "-f -y -S segtype=thin vg").unwrap();
        let tags = lvm("vgs", "--noheadings -o vg_tags vg").unwrap();
        for tag in tags.trim().split(',').filter(|tag| !tag.is_empty()) {
            lvm("vgchange", &format!("--deltag {tag} vg")).unwrap();
        }
        lvm("lvcreate", "-V 1M -T vg/pool -n vol").unwrap();
        Self
    }

    fn head(&self) -> File {
        OpenOptions::new().read(true).write(true).open("/dev/mapper/v").unwrap()
    }
}

impl Subject for Volume {
    fn open(&mut self, faults: Faults) -> Result<Arc<dyn SnapshotStore>, StoreError> {
        open_lvm(&spec(), Some(Making::default()), faults)
    }

    fn write_head(&mut self, offset: u64, data: &[u8]) {
        let head = self.head();
        head.write_all_at(data, offset).unwrap();
        head.sync_data().unwrap();
    }

    fn punch_head(&mut self, range: Range<u64>) {
        self.write_head(range.start, &vec![0; (range.end - range.start) as usize]);
    }

    fn read_head(&mut self) -> Vec<u8> {
        fs::read("/dev/mapper/v").unwrap()
    }

    fn unit(&self) -> u64 {
        512
    }
}

#[test]
fn lab_lvm_thin_passes_the_suite() -> Result<(), Failure> {
    lab::inside(
        TOOLS,
        |lab| machine(lab, 64 << 20),
        || {
            check(CASES, Volume::new);
            // What was deleted while somebody read it goes when the store is opened again.
            drop(open_lvm(&spec(), None, Faults::none()).map_err(Failure::doing("opening the store"))?);
            nothing_is_left()
        },
    )
}

/// Histories of the suite; LVM's programs take their time in the lab.
const CASES: u32 = 5;

/// No device and no node is left but those of the volume group.
pub fn nothing_is_left() -> Result<(), Failure> {
    let names = output("dmsetup", |command| command.args(["info", "-c", "--noheadings", "-o", "name"]))?;
    let mut names: Vec<_> = names.lines().map(str::trim).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    let wanted = ["vg-pool", "vg-pool-tpool", "vg-pool_tdata", "vg-pool_tmeta", "vg-vol"];
    assert_eq!(names, wanted, "devices are left");
    let nodes = fs::read_dir("/dev/mapper").unwrap().map(|entry| entry.unwrap().file_name());
    let mut nodes: Vec<_> = nodes.map(|name| name.into_string().unwrap()).collect();
    nodes.sort_unstable();
    assert_eq!(nodes[1..], wanted, "nodes are left");
    Ok(())
}

/// Others rename the volume, deactivate a snapshot, hold a moment of the pool's metadata, and LVM does not see the group for a while:
/// nothing of it is taken for more than it is.
#[test]
fn lab_what_others_do_is_not_mistaken() -> Result<(), Failure> {
    lab::inside(
        TOOLS,
        |lab| machine(lab, 64 << 20),
        || {
            let mut volume = Volume::new();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                only_what_was_activated_for_it_is_deactivated(&mut volume).await?;
                what_stands_still_goes_on(&mut volume).await?;
                let store = volume.open(Faults::none()).map_err(Failure::doing("opening the store"))?;
                store.create_snapshot(number(0)).await?;
                store.create_snapshot(number(1)).await?;

                // The same volume by another name.
                lvm("lvrename", "vg vol other")?;
                let other =
                    VolumeSpec { name: "w".parse().unwrap(), origin: "/dev/vg/other".into(), ..spec() };
                let twice = open_lvm(&other, Some(Making::default()), Faults::none()).map(drop).unwrap_err();
                assert!(twice.to_string().contains("as volume v"), "{twice}");
                // Another in its place, and the store of another.
                lvm("lvcreate", "-V 1M -T vg/pool -n vol")?;
                let none = reopen_volume(&spec(), None).await.map(drop).unwrap_err();
                assert!(none.to_string().contains("/dev/vg/vol is no volume of ours"), "{none}");
                lvm("lvremove", "-f -y vg/vol")?;
                lvm("lvrename", "vg other vol")?;
                let another = reopen_volume(&spec(), Some(Uuid::now_v7())).await.map(drop).unwrap_err();
                assert!(another.to_string().contains("is not the logical volume that"), "{another}");

                // LVM sees nothing for a while.
                lvm("lvchange", "-an vg/vol_zuma0")?;
                fs::create_dir("/run/lab/lvm").map_err(Failure::doing("a directory"))?;
                fs::write("/run/lab/lvm/lvm.conf", "devices { filter = [ \"r|.*|\" ] }\n")
                    .map_err(Failure::doing("writing"))?;
                output("mount", |c| c.args(["--bind", "/run/lab/lvm", "/etc/lvm"]))?;
                assert_eq!(lvm("lvs", "--noheadings")?.trim(), "");
                let unseen = store.snapshots().await.map(drop).unwrap_err();
                output("umount", |c| c.arg("/etc/lvm"))?;
                assert!(unseen.to_string().contains("does not list it"), "{unseen}");
                let found: Vec<_> = store.snapshots().await?.iter().map(|record| record.number().0).collect();
                assert_eq!(found, [0, 1]);
                store.close().await?;
                drop(store);
                what_others_hold_is_theirs(&mut volume).await?;
                what_one_left_another_lets_go(&mut volume).await
            })
        },
    )
}

fn number(number: u64) -> NewSnapshot {
    NewSnapshot::manual(SnapshotNumber(number), Lineage(Uuid::nil()))
}

/// Opens the store, and ends as if the program had been killed.
async fn killed(volume: &mut Volume) -> Result<(), Failure> {
    let store = volume.open(Faults::new(|_| true)).map_err(Failure::doing("opening the store"))?;
    store.create_snapshot(number(99)).await.map(drop).expect_err("it was stopped");
    Ok(())
}

async fn only_what_was_activated_for_it_is_deactivated(volume: &mut Volume) -> Result<(), Failure> {
    let is_active = || fs::exists("/dev/mapper/vg-vol").unwrap();
    for active in [false, true] {
        lvm("lvchange", if active { "-ay vg/vol" } else { "-an vg/vol" })?;
        for kill in [false, false, true] {
            if kill {
                killed(volume).await?;
            }
            let store = volume.open(Faults::none()).map_err(Failure::doing("opening the store"))?;
            assert!(is_active());
            store.close().await?;
            assert_eq!(is_active(), active, "killed before: {kill}");
        }
    }
    Ok(())
}

/// The head goes on without the store being opened, but not under who has it open.
async fn what_stands_still_goes_on(volume: &mut Volume) -> Result<(), Failure> {
    let stands_still =
        || output("dmsetup", |c| c.args(["info", "vg-vol"])).map(|info| info.contains("SUSPENDED"));
    killed(volume).await?;
    output("dmsetup", |c| c.args(["suspend", "vg-vol"]))?;
    assert_eq!(let_go_on(&spec(), None).await?, 1);
    assert!(!stands_still()?);
    let store = volume.open(Faults::none()).map_err(Failure::doing("opening the store"))?;
    output("dmsetup", |c| c.args(["suspend", "vg-vol"]))?;
    let refused = let_go_on(&spec(), None).await.unwrap_err();
    assert!(refused.to_string().contains("in use by another process"), "{refused}");
    assert!(stands_still()?);
    output("dmsetup", |c| c.args(["resume", "vg-vol"]))?;
    store.close().await.map_err(Failure::from)
}

/// What is said of a moment that somebody else holds.
async fn foreign(store: &dyn SnapshotStore) -> Result<Option<String>, Failure> {
    Ok(store.pool().await?.expect("it is in a pool").held)
}

async fn what_others_hold_is_theirs(volume: &mut Volume) -> Result<(), Failure> {
    let tell = |message| output("dmsetup", |c| c.args(["message", "vg-pool-tpool", "0", message]));
    for (reboot, ours) in [(false, false), (true, true)] {
        killed(volume).await?;
        if reboot {
            // As what was held before.
            for entry in fs::read_dir("/run/lock/zumastor").unwrap() {
                fs::remove_file(entry.unwrap().path()).unwrap();
            }
        }
        tell("reserve_metadata_snap")?;
        let store = volume.open(Faults::none()).map_err(Failure::doing("opening the store"))?;
        let status = output("dmsetup", |c| c.args(["status", "vg-pool-tpool"]))?;
        let held = status.split(' ').nth(6).expect("what is held");
        assert_eq!(held == "-", ours, "{status}");
        if !ours {
            let refused = store.head().await.unwrap_err();
            assert!(refused.to_string().contains("somebody else holds a moment"), "{refused}");
            assert!(foreign(&*store).await?.is_some());
            // Also while another of ours looks.
            let metadata = File::open("/dev/mapper/vg-pool_tmeta").map_err(Failure::doing("the metadata"))?;
            flock(&metadata, FlockOperation::LockExclusive).map_err(Failure::doing("locking"))?;
            assert!(foreign(&*store).await?.is_some());
            drop(metadata);
            tell("release_metadata_snap")?;
            assert_eq!(foreign(&*store).await?, None);
        }
        store.head().await?;
        store.close().await?;
    }
    Ok(())
}

/// A volume is killed while it holds a moment of the pool: another that is open lets go of it, or is opened then and does.
async fn what_one_left_another_lets_go(volume: &mut Volume) -> Result<(), Failure> {
    let is_held = || -> Result<bool, Failure> {
        let status = output("dmsetup", |c| c.args(["status", "vg-pool-tpool"]))?;
        Ok(status.split(' ').nth(6) != Some("-"))
    };
    lvm("lvcreate", "-V 1M -T vg/pool -n second")?;
    let second = VolumeSpec {
        name: "second".parse().unwrap(),
        origin: "/dev/vg/second".into(),
        notes: "/run/lab/second".into(),
        ..spec()
    };
    let open = |volume: &mut Volume| volume.open(Faults::none()).map_err(Failure::doing("opening the store"));
    let mut first = open(volume)?;
    for is_open in [true, false] {
        let other = first.clone();
        let faults = Faults::new(move |step| {
            let stop = step == "moment: held";
            if stop && is_open {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                assert_eq!(
                    runtime.block_on(foreign(&*other)).unwrap(),
                    None,
                    "what is ours is taken for another's"
                );
            }
            stop
        });
        if !is_open {
            first.close().await?;
        }
        let killed = open_lvm(&second, Some(Making::default()), faults);
        let killed = killed.map_err(Failure::doing("opening the store"))?;
        killed.head().await.expect_err("it was stopped");
        drop(killed);
        assert!(is_held()?);
        if !is_open {
            first = open(volume)?;
            assert!(!is_held()?, "it is held still");
        } else {
            assert_eq!(foreign(&*first).await?, None);
            assert!(!is_held()?, "it is held still");
        }
        first.head().await?;
        assert!(!is_held()?, "it is held still");
    }
    first.close().await.map_err(Failure::from)
}

/// Locks of LVM's and of ours that others take at the moment of a flip: nobody who reads the head waits for them.
#[test]
fn lab_a_flip_waits_for_no_lock_while_the_head_stands_still() -> Result<(), Failure> {
    lab::inside(
        TOOLS,
        |lab| machine(lab, 64 << 20),
        || {
            let mut volume = Volume::new();
            let metadata = output("dmsetup", |c| {
                c.args(["info", "-c", "--noheadings", "-o", "minor", "vg-pool_tmeta"])
            })?;
            let metadata = format!("/dev/dm-{}", metadata.trim());
            for (step, lock) in
                [("flip: before saving", "/run/lock/lvm/V_vg"), ("flip: after cloning", metadata.as_str())]
            {
                let direct = OFlags::DIRECT.bits() as i32;
                let head = OpenOptions::new().read(true).custom_flags(direct).open("/dev/mapper/vg-vol");
                let head = Arc::new(head.map_err(Failure::doing("the head"))?);
                let (lock, held) = (lock.to_owned(), Arc::new(Mutex::new(None)));
                let reading = held.clone();
                let faults = Faults::new(move |passed| {
                    let mut reading = reading.lock().unwrap();
                    if passed == step && reading.is_none() {
                        let file = File::options().create(true).append(true).open(&lock).unwrap();
                        flock(&file, FlockOperation::LockExclusive).unwrap();
                        let head = head.clone();
                        // It is let go when something was read, and not before.
                        *reading = Some(thread::spawn(move || {
                            let read = head.read_exact_at(&mut PageBuf::new(4096), 0);
                            drop(file);
                            read
                        }));
                    }
                    false
                });
                let store = volume.open(faults).map_err(Failure::doing("opening the store"))?;
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                runtime.block_on(async {
                    let there = store.snapshots().await?.len() as u64;
                    volume.write_head(0, &[there as u8 + 1; 4096]);
                    store.create_snapshot(number(there)).await?;
                    volume.write_head(0, &[77; 4096]);
                    store.create_snapshot(number(there + 1)).await?;
                    store.show(SnapshotNumber(there)).await?;
                    assert_eq!(volume.read_head()[..4096], [there as u8 + 1; 4096]);
                    store.close().await
                })?;
                let reading = held.lock().unwrap().take().expect("the step was passed");
                reading.join().unwrap().map_err(Failure::doing("reading the head"))?;
            }
            Ok(())
        },
    )
}

/// A volume that was made smaller before it was defined is mapped beyond its end. A larger snapshot that is received upon it does not show
/// that, wherever the program was killed while it was made zero.
#[test]
fn lab_what_lies_beyond_a_smaller_base_does_not_show_after_a_kill() -> Result<(), Failure> {
    const SMALL: usize = 1 << 20;
    lab::inside(
        TOOLS,
        |lab| machine(lab, 64 << 20),
        || {
            let mut volume = Volume::new();
            lvm("lvextend", "-L 2M vg/vol")?;
            let stale = OpenOptions::new().write(true).open("/dev/vg/vol").expect("the volume");
            // In two places, so that one may be cleared and the other not.
            for chunk in [17, 24] {
                stale
                    .write_all_at(&[0xAA; 64 << 10], chunk << 16)
                    .and_then(|()| stale.sync_data())
                    .expect("written");
            }
            drop(stale);
            lvm("lvreduce", "-f -y -L 1M vg/vol")?;
            let base = Bytes(vec![7; SMALL]);
            fs::write("/dev/vg/vol", &base.0).map_err(Failure::doing("writing"))?;
            let mut target = base.0.clone();
            target.resize(2 * SMALL, 0);
            target[SMALL + 4096..SMALL + 8192].fill(9);
            let target = Bytes(target);
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let plan = plan_for(SnapshotNumber(1), Lineage(Uuid::nil()), Some(SnapshotNumber(0)), &target);
            let mut clearing = 0;
            for steps in 0.. {
                let (passed, cleared) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
                let count = cleared.clone();
                let faults = Faults::new(move |step| {
                    if !step.starts_with("stage: ") {
                        return false;
                    }
                    let stop = passed.fetch_add(1, Ordering::Relaxed) == steps;
                    count.fetch_add(usize::from(stop && step == "stage: while clearing"), Ordering::Relaxed);
                    stop
                });
                let store = volume.open(faults.clone()).map_err(Failure::doing("opening the store"))?;
                if steps == 0 {
                    runtime.block_on(store.create_snapshot(number(0)))?;
                }
                let killed = runtime.block_on(store.stage(plan.clone())).map(drop);
                assert_eq!(killed.is_err(), faults.stopped(), "{killed:?}");
                drop(store);
                clearing += cleared.load(Ordering::Relaxed);
                let store = volume.open(Faults::none()).map_err(Failure::doing("opening the store"))?;
                runtime.block_on(async {
                    let staging = store.stage(plan.clone()).await?;
                    let leaves =
                        deliver(&*staging, &Bytes(base.0.clone()), &target, 0..target.0.len() as u64)?;
                    staging.checkpoint(&leaves, &[SegmentIndex(0)])?;
                    staging.commit(target.digest())?;
                    let reader = store.open_snapshot(SnapshotNumber(1)).await?;
                    let mut found = vec![0; target.0.len()];
                    reader.read_at(0, &mut found)?;
                    assert!(found == target.0, "step {steps}: what lies beyond the base shows");
                    drop(reader);
                    store.delete_snapshot(SnapshotNumber(1)).await?;
                    store.close().await
                })?;
                if killed.is_ok() {
                    assert!(steps > 3 && clearing == 2, "{steps} steps, {clearing} while it was cleared");
                    break;
                }
            }
            Ok(())
        },
    )
}

/// Daemons and their commands, and LVM's tools beside them, as an administrator types them.
#[test]
fn lab_a_session_on_thin_volumes() -> Result<(), Failure> {
    session(TOOLS, |machine| machine)
}

/// LVM waits for udev at each step, and so this is one to be asked for.
#[test]
#[ignore = "takes twice as long as the one without udev"]
fn lab_a_session_on_thin_volumes_with_udev() -> Result<(), Failure> {
    session(&[TOOLS, &["udevadm"]].concat(), Machine::udev)
}

fn session(tools: &[&str], with: impl FnOnce(Machine) -> Machine) -> Result<(), Failure> {
    if !lab::ready(tools) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let mut machine = with(machine(&lab, 400 << 20)?.memory(1024));
    for (name, mib) in [("b", 64), ("c", 64), ("d", 16), ("e", 32)] {
        machine = machine.disk(&lab.disk(name, mib << 20)?);
    }
    let log = lab.run(&machine, &Job::session("lvm_thin.sh").env("ZUMASTOR", PROGRAM))?.passed()?;
    assert!(log.contains("all of the session held"), "{log}");
    Ok(())
}
