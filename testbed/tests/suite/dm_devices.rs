//! What volumes on block devices are made of: origins of all sizes, partitions, and devices that grow.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::PathBuf,
};

use zumastor::exit::Failure;
use zumastor_backends::{Faults, Making, VolumeSpec, open_devices};
use zumastor_core::{Lineage, NewSnapshot, SnapshotNumber, StoreError};
use zumastor_testbed::{
    lab::{self, Job, Lab, Machine},
    output,
};

/// What the tests of this file need beside the lab.
const TOOLS: &[&str] = &["thin_check", "blkid", "dmsetup"];

const SIZE: usize = 2 << 20;

fn machine(lab: &Lab, origin: u64, snapdev: u64) -> Result<Machine, Failure> {
    let machine = Machine::new("solo").modules(&["dm-thin-pool"]);
    Ok(machine.disk(&lab.disk("origin", origin)?).disk(&lab.disk("snapdev", snapdev)?))
}

fn spec() -> VolumeSpec {
    VolumeSpec {
        name: "v".parse().expect("a name"),
        origin: "/dev/ubda".into(),
        snapstore: "/dev/ubdb".into(),
        metadev: None,
        chunk: None,
        notes: "/run/lab/notes".into(),
    }
}

fn filled(byte: u8) -> Vec<u8> {
    (0..SIZE).map(|at| if at % 4096 == 17 { (at / 4096) as u8 } else { byte }).collect()
}

fn write_head(content: &[u8]) {
    let head = OpenOptions::new().write(true).open("/dev/mapper/v").expect("the head");
    head.write_all_at(content, 0).and_then(|()| head.sync_data()).expect("the head can be written");
}

fn number(number: u64) -> NewSnapshot {
    NewSnapshot::manual(SnapshotNumber(number), Lineage(uuid::Uuid::nil()))
}

/// An origin is taken as it is, whatever its size: nothing of it is read or moved. Prints the table of `docs/performance.md`.
#[test]
fn lab_origins_of_all_sizes_are_adopted_at_once() -> Result<(), Failure> {
    const GIB: u64 = 1 << 30;
    const ORIGINS: [(&str, u64); 4] = [("a", 1), ("b", 4), ("c", 16), ("d", 64)];
    lab::inside(
        TOOLS,
        |lab| {
            let mut machine = Machine::new("solo").modules(&["dm-thin-pool"]);
            for (name, gib) in ORIGINS {
                machine = machine.disk(&lab.disk(name, gib * GIB)?);
            }
            Ok(machine.disk(&lab.disk("snapdev", 8 * GIB)?))
        },
        || {
            for (disk, (_, gib)) in ["a", "b", "c", "d"].into_iter().zip(ORIGINS) {
                let origin = PathBuf::from(format!("/dev/ubd{disk}"));
                let places = [0, gib * GIB / 2 + 4096, gib * GIB - 4096];
                let device =
                    OpenOptions::new().write(true).open(&origin).map_err(Failure::doing("the disk"))?;
                for place in places {
                    device.write_all_at(&place.to_le_bytes(), place).map_err(Failure::doing("writing"))?;
                }
                device.sync_all().map_err(Failure::doing("writing"))?;
                drop(device);
                let spec = VolumeSpec { origin, snapstore: "/dev/ubde".into(), ..spec() };
                let making = Making { initialize: false, overwrite: true };
                // What the size before left is no store any more.
                let snapdev =
                    OpenOptions::new().write(true).open(&spec.snapstore).expect("the snapshot store");
                for copy in [0, 2 << 20] {
                    snapdev.write_all_at(&[0; 4096], copy).expect("written");
                }
                drop(snapdev);
                let begun = std::time::Instant::now();
                let store = open_devices(&spec, Some(making), Faults::none())?;
                println!("| {gib} GiB | {:.2} s |", begun.elapsed().as_secs_f64());
                let head = File::open("/dev/mapper/v").map_err(Failure::doing("the head"))?;
                for place in places {
                    let mut found = [0; 8];
                    head.read_exact_at(&mut found, place).map_err(Failure::doing("reading"))?;
                    assert_eq!(u64::from_le_bytes(found), place, "of {gib} GiB");
                }
                drop((head, store));
            }
            Ok(())
        },
    )
}

/// The power goes while more of the devices is taken into use: for data, for metadata beside them, and for metadata on a device of
/// their own.
#[test]
fn lab_power_cuts_while_a_store_grows() -> Result<(), Failure> {
    if lab::is_guest() {
        let at = std::env::var("CUT_AT").expect("set by the host");
        let (what, step) = at.split_once('/').expect("what, and at which step");
        return match std::env::var_os("CUT_AFTER") {
            Some(_) => after_growing(what),
            None => cut_while_growing(what, step),
        };
    }
    if !lab::ready(TOOLS) {
        return Ok(());
    }
    for at in [
        "data/grow: noted",
        "data/grow: after",
        "beside/grow: noted",
        "beside/grow: after",
        "apart/grow: noted",
    ] {
        let lab = Lab::new()?;
        let machine = machine(&lab, SIZE as u64, 32 << 20)?.memory(256).disk(&lab.disk("metadev", 8 << 20)?);
        let job = Job::this_test()?.env("CUT_AT", at);
        let mut running = lab.boot(&machine, &job)?;
        running.wait_for("the power goes at")?;
        running.kill();
        lab.run(&machine, &job.env("CUT_AFTER", "1"))?.passed()?;
    }
    Ok(())
}

/// A volume on devices that can be made larger, with metadata apart or not.
fn growing_spec(what: &str) -> VolumeSpec {
    let metadev = (what == "apart").then(|| "/dev/mapper/meta".into());
    VolumeSpec { snapstore: "/dev/mapper/snap".into(), metadev, ..spec() }
}

/// Gives the devices of [`growing_spec`] these sizes in MiB, by `create` or `reload`.
fn set_sizes(verb: &str, snap: u64, meta: u64) -> Result<(), Failure> {
    for (name, disk, mib) in [("snap", "ubdb", snap), ("meta", "ubdc", meta)] {
        let table = format!("0 {} linear /dev/{disk} 0", mib * 2048);
        output("dmsetup", |command| command.args([verb, name, "--table", &table]))?;
        output("dmsetup", |command| command.args(["suspend", name]))?;
        output("dmsetup", |command| command.args(["resume", name]))?;
    }
    Ok(())
}

fn cut_while_growing(what: &str, step: &str) -> Result<(), Failure> {
    let wanted = step.to_owned();
    let faults = Faults::new(move |passed| passed == wanted);
    fs::write("/dev/ubda", filled(1)).map_err(Failure::doing("writing"))?;
    set_sizes("create", 24, 4)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let store = open_devices(&growing_spec(what), Some(Making::default()), faults.clone())?;
    let done = runtime.block_on(async {
        store.create_snapshot(number(0)).await?;
        write_head(&filled(2));
        set_sizes("reload", 32, 8).expect("dmsetup works");
        match what {
            "data" => store.resize_store(Some(32 << 20), None).await,
            _ => store.resize_store(None, Some(8 << 20)).await,
        }
    });
    assert!(faults.stopped(), "{step} was not passed: {done:?}");
    println!("the power goes at {step}");
    loop {
        std::thread::park();
    }
}

fn after_growing(what: &str) -> Result<(), Failure> {
    set_sizes("create", 32, 8)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let table = runtime.block_on(async {
        let store = open_devices(&growing_spec(what), None, Faults::none())?;
        let room = store.pool().await?.expect("it has a pool");
        // In front of the data are the two copies of the header, and the metadata unless they are apart.
        let data = if what == "apart" {
            24 - 4
        } else if what == "data" {
            32 - 8
        } else {
            24 - 8
        };
        assert_eq!(room.data.total >> 20, data + (SIZE as u64 >> 20), "{what}");
        assert_eq!(room.metadata.total >> 20, if what == "data" { 4 } else { 8 }, "{what}");
        let reader = store.open_snapshot(SnapshotNumber(0)).await?;
        let mut content = vec![0; SIZE];
        reader.read_at(0, &mut content)?;
        assert!(content == filled(1) && fs::read("/dev/mapper/v").expect("a head") == filled(2));
        drop(reader);
        store.create_snapshot(number(1)).await?;
        write_head(&filled(3));
        let table = output("dmsetup", |command| command.args(["table", "v:metadata"]));
        store.close().await?;
        Ok::<_, StoreError>(table)
    })??;
    output("dmsetup", |command| command.args(["create", "check", "--table", table.trim_end()]))?;
    output("thin_check", |command| command.arg("/dev/mapper/check")).map(drop)
}

/// Of two partitions of one disk, the one that the volume was made of is told from the other.
#[test]
fn lab_the_wrong_partition_is_refused() -> Result<(), Failure> {
    lab::inside(
        &[TOOLS, &["losetup"]].concat(),
        |lab| Ok(machine(lab, 64 << 20, 32 << 20)?.modules(&["loop"])),
        || {
            // A table with two partitions of 16 MiB each, as DOS had it.
            let mut table = [0; 512];
            table[440..444].copy_from_slice(&0x1234_5678u32.to_le_bytes());
            for (entry, begin) in [(446, 2048u32), (462, 2048 + (16 << 11))] {
                table[entry + 4] = 0x83;
                table[entry + 8..entry + 12].copy_from_slice(&begin.to_le_bytes());
                table[entry + 12..entry + 16].copy_from_slice(&(16u32 << 11).to_le_bytes());
            }
            table[510..].copy_from_slice(&[0x55, 0xAA]);
            fs::write("/dev/ubda", table).map_err(Failure::doing("writing"))?;
            let disk = output("losetup", |command| command.args(["-P", "-f", "--show", "/dev/ubda"]))?;
            let on = |part: u32| VolumeSpec { origin: format!("{}p{part}", disk.trim()).into(), ..spec() };
            drop(open_devices(&on(1), Some(Making::default()), Faults::none())?);
            let wrong =
                open_devices(&on(2), None, Faults::none()).expect_err("it is another one").to_string();
            assert!(
                wrong.contains("partition 12345678-02") && wrong.contains("partition 12345678-01"),
                "{wrong}"
            );
            drop(open_devices(&on(1), None, Faults::none())?);
            output("losetup", |command| command.args(["-d", disk.trim()])).map(drop)
        },
    )
}
