//! What the walker reads of metadata that `thin_restore` wrote, beside what `thin_delta` and `thin_dump` say of it.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use crate::common::skip;
use proptest::{prelude::*, test_runner::TestRunner};
use zumastor_backends::thin_metadata::{DiffRun, Difference, MappedRun, NewPool, ThinMetadata};

/// Whether a device begins as a copy of the one before, and runs that are written to it: where, how many blocks, and whether apart.
type Plan = (bool, Vec<(u64, u64, bool)>);

/// A device: virtual block → data block and time.
type Mappings = BTreeMap<u64, (u64, u32)>;

/// A program of thin-provisioning-tools.
fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    places.find_map(|dir| Some(dir.join(name)).filter(|path| path.is_file()))
}

fn output(name: &str, arguments: &[&str]) -> String {
    let output = Command::new(tool(name).expect("was found before")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs of blocks at random, on one device after the other.
fn devices() -> impl Strategy<Value = Vec<Plan>> {
    let run = (0..30_000_u64, 1..400_u64, any::<bool>());
    prop::collection::vec((any::<bool>(), prop::collection::vec(run, 0..60)), 2..5)
}

fn mappings(devices: &[Plan]) -> Vec<Mappings> {
    let (mut all, mut data) = (Vec::<Mappings>::new(), 0);
    for (time, (copy, runs)) in devices.iter().enumerate() {
        let mut mappings = all.last().filter(|_| *copy).cloned().unwrap_or_default();
        for (begin, length, scattered) in runs {
            for at in 0..*length {
                let block = if *scattered { begin + at * 7 } else { begin + at };
                mappings.insert(block, (data, time as u32));
                data += 1;
            }
        }
        all.push(mappings);
    }
    all
}

fn xml(devices: &[Mappings]) -> String {
    let blocks =
        devices.iter().flat_map(|device| device.values()).map(|(data, _)| data + 1).max().unwrap_or(1);
    let mut xml = format!(
        "<superblock uuid=\"\" time=\"9\" transaction=\"3\" version=\"2\" data_block_size=\"128\" nr_data_blocks=\"{blocks}\">\n"
    );
    for (device, mappings) in devices.iter().enumerate() {
        writeln!(
            xml,
            "<device dev_id=\"{}\" mapped_blocks=\"{}\" transaction=\"{}\" creation_time=\"1\" snap_time=\"2\">",
            device + 1,
            mappings.len(),
            device
        )
        .unwrap();
        for (block, (data, time)) in mappings {
            writeln!(xml, "<single_mapping origin_block=\"{block}\" data_block=\"{data}\" time=\"{time}\"/>")
                .unwrap();
        }
        xml.push_str("</device>\n");
    }
    xml + "</superblock>\n"
}

/// The number of an attribute.
fn attribute(line: &str, name: &str) -> Option<u64> {
    let (_, rest) = line.split_once(&format!(" {name}=\""))?;
    rest.split('"').next()?.parse().ok()
}

fn deltas(metadata: &str, left: usize, right: usize) -> Vec<DiffRun> {
    let ids = [left + 1, right + 1].map(|id| id.to_string());
    let text = output("thin_delta", &["--thin1", &ids[0], "--thin2", &ids[1], metadata]);
    let run = |line: &str| {
        let kind = match line.trim_start().split(' ').next()? {
            "<different" => Difference::Different,
            "<left_only" => Difference::LeftOnly,
            "<right_only" => Difference::RightOnly,
            _ => return None,
        };
        Some(DiffRun { begin: attribute(line, "begin")?, length: attribute(line, "length")?, kind })
    };
    text.lines().filter_map(run).collect()
}

/// Makes metadata of these devices and reads it in both ways.
fn compare(dir: &Path, devices: &[Mappings]) {
    let (source, metadata) = (dir.join("x.xml"), dir.join("metadata"));
    fs::write(&source, xml(devices)).unwrap();
    File::create(&metadata).unwrap().set_len(16 << 20).unwrap();
    let path = metadata.to_str().unwrap();
    output("thin_restore", &["-i", source.to_str().unwrap(), "-o", path]);

    let read = ThinMetadata::open_current(&metadata).unwrap();
    let found = read.devices().unwrap();
    assert_eq!(found.len(), devices.len());
    for (at, mappings) in devices.iter().enumerate() {
        assert_eq!((found[at].device, found[at].mapped_blocks), (at as u32 + 1, mappings.len() as u64));
        assert_eq!(
            (found[at].transaction_id, found[at].creation_time, found[at].snapshot_time),
            (at as u64, 1, 2)
        );
        let runs: Result<Vec<MappedRun>, _> = read.mappings(at as u32 + 1, 0..u64::MAX).unwrap().collect();
        let blocks = runs
            .unwrap()
            .into_iter()
            .flat_map(|run| (0..run.length).map(move |n| (run.begin + n, run.data + n)));
        assert!(blocks.eq(mappings.iter().map(|(block, (data, _))| (*block, *data))), "device {at}");
        for right in 0..devices.len() {
            let ours: Result<Vec<_>, _> =
                read.diff(at as u32 + 1, right as u32 + 1, 0..u64::MAX).unwrap().collect();
            assert_eq!(ours.unwrap(), deltas(path, at, right), "devices {at} and {right}");
        }
    }
    let dump = output("thin_dump", &[path]);
    let mapped: u64 = dump.lines().filter_map(|line| attribute(line, "mapped_blocks")).sum();
    assert_eq!(mapped, found.iter().map(|details| details.mapped_blocks).sum::<u64>());
}

#[test]
fn the_tools_say_the_same() {
    let tools = ["thin_restore", "thin_delta", "thin_dump"];
    if tools.iter().any(|name| tool(name).is_none()) {
        return skip("needs thin-provisioning-tools").unwrap_or(());
    }
    let dir = tempfile::tempdir().unwrap();
    let config = ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new(config)
        .run(&devices(), |devices| {
            compare(dir.path(), &mappings(&devices));
            Ok(())
        })
        .unwrap();
}

/// What is written for a new pool is what thin_restore makes of the same, and thin_check finds nothing.
#[test]
fn a_new_pool_is_as_the_tools_make_it() {
    let tools = ["thin_restore", "thin_check", "thin_dump"];
    if tools.iter().any(|name| tool(name).is_none()) {
        return skip("needs thin-provisioning-tools").unwrap_or(());
    }
    let dir = tempfile::tempdir().unwrap();
    let (source, ours, theirs) =
        (dir.path().join("x.xml"), dir.path().join("ours"), dir.path().join("theirs"));
    let (ours_path, theirs_path) = (ours.to_str().unwrap(), theirs.to_str().unwrap());
    // Nothing; less than a leaf has room for, as much, more; more than a node of leaves; where bitmaps end; all data blocks.
    for (mapped, data_blocks, metadata_blocks) in [
        (0, 1, 1024),
        (1, 5, 1024),
        (252, 300, 1024),
        (253, 16_320, 1024),
        (16_319, 16_321, 1024),
        (63_505, 63_505, 16_320),
        (100_003, 3_000_000, 16_325),
    ] {
        let new = NewPool { device: 3, mapped, data_blocks, data_block_size: 256, metadata_blocks };
        for path in [&ours, &theirs] {
            File::create(path).unwrap().set_len(metadata_blocks * 4096).unwrap();
        }
        new.write(&ours).unwrap();
        output("thin_check", &[ours_path]);
        let range = format!(r#"<range_mapping origin_begin="0" data_begin="0" length="{mapped}" time="0"/>"#);
        let text = format!(
            r#"<superblock uuid="" time="0" transaction="0" version="2" data_block_size="256" nr_data_blocks="{data_blocks}">
<device dev_id="3" mapped_blocks="{mapped}" transaction="0" creation_time="0" snap_time="0">
{}
</device></superblock>"#,
            if mapped > 0 { &range } else { "" }
        );
        fs::write(&source, text).unwrap();
        output("thin_restore", &["-i", source.to_str().unwrap(), "-o", theirs_path]);
        assert_eq!(output("thin_dump", &[ours_path]), output("thin_dump", &[theirs_path]), "{new:?}");
    }
    let small = NewPool {
        device: 0,
        mapped: 63_505,
        data_blocks: 63_505,
        data_block_size: 128,
        metadata_blocks: 256,
    };
    let refused = small.write(&ours).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::StorageFull, "{refused}");
}
