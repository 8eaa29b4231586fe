//! The kernel lab itself: guests boot, run scripts and tests, lose their power, and reach each other.

use std::{fs, path::Path};

use zumastor::exit::Failure;
use zumastor_testbed::lab::{self, Job, Lab, Machine};

#[test]
fn lab_a_thin_pool_and_a_snapshot() -> Result<(), Failure> {
    if !lab::ready(&["dmsetup", "thin_check", "mkfs.ext4"]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let machine = Machine::new("solo")
        .modules(&["dm-thin-pool"])
        .disk(&lab.disk("metadata", 16 << 20)?)
        .disk(&lab.disk("data", 1 << 30)?);
    let log = lab.run(&machine, &Job::session("thin_snapshot.sh"))?.passed()?;
    assert!(log.contains("the metadata is sound"), "{log}");
    Ok(())
}

#[test]
fn lab_two_guests_reach_each_other() -> Result<(), Failure> {
    if !lab::ready_for_network(&["ping"]) {
        return Ok(());
    }
    let lab = Lab::with_network(&["a", "b"])?;
    let boot =
        |name, other| lab.boot(&Machine::new(name).memory(256), &Job::session("ping.sh").args([other]));
    let (a, b) = (boot("a", "b")?, boot("b", "a")?);
    for guest in [a, b] {
        let log = guest.wait()?.passed()?;
        assert!(log.contains("3 received"), "{log}");
    }
    Ok(())
}

/// The guest is this test again.
#[test]
fn lab_tests_run_on_the_guests_kernel() -> Result<(), Failure> {
    let marker = format!("/var/lib/zumastor-lab-{}", if lab::is_guest() { 0 } else { std::process::id() });
    lab::inside(
        &[],
        |lab| Ok(Machine::new("solo").disk(&lab.disk("a", 4 << 20)?)),
        || {
            let version =
                fs::read_to_string("/proc/version").map_err(Failure::doing("the kernel's version"))?;
            println!("this is {version}");
            // Written by root, and yet not on the host.
            fs::write(&marker, "guest").map_err(Failure::doing("writing"))?;
            fs::write("/dev/ubda", "disk").map_err(Failure::doing("writing to a disk"))
        },
    )?;
    assert!(lab::is_guest() || !Path::new("/var/lib/zumastor-lab-0").exists(), "a guest wrote on the host");
    Ok(())
}

#[test]
fn lab_what_fails_is_not_taken_for_success() -> Result<(), Failure> {
    if !lab::ready(&[]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let shell = |script: &str| Job::program(Path::new("/bin/sh")).args(["-c", script]);
    let machine = Machine::new("solo").memory(256);
    let outcome = lab.run(&machine, &shell("echo said; exit 7"))?;
    assert_eq!(outcome.code, Some(7));
    assert!(outcome.log.contains("said"), "{outcome}");
    assert!(outcome.passed().is_err());

    let outcome = lab.run(&machine, &Job::test("no_such_test")?)?;
    assert_eq!(outcome.code, Some(0), "{outcome}");
    let error = outcome.passed().expect_err("no test ran");
    assert!(error.error.to_string().contains("did not run"), "{}", error.error);

    // A guest without what it needs, and one that ends by itself.
    let outcome = lab.run(&machine.clone().modules(&["no-such-module"]), &shell("true"))?;
    assert_eq!(outcome.code, Some(122), "{outcome}");
    let outcome = lab.run(&machine, &shell("poweroff -f; sleep 1000"))?;
    assert_eq!(outcome.code, None, "{outcome}");
    Ok(())
}

#[test]
fn lab_a_power_cut_leaves_what_was_synced() -> Result<(), Failure> {
    if !lab::ready(&["mkfs.ext4"]) {
        return Ok(());
    }
    let lab = Lab::new()?;
    let machine = Machine::new("solo").memory(256).disk(&lab.disk("disk", 64 << 20)?);
    let shell = |script: &str| Job::program(Path::new("/bin/sh")).args(["-e", "-c", script]);
    let write = "mkfs.ext4 -q /dev/ubda; mount /dev/ubda /mnt; echo kept >/mnt/kept; sync; echo lost >/mnt/lost; \
                 echo now; sleep 1000";
    let mut guest = lab.boot(&machine, &shell(write))?;
    guest.wait_for("now")?;
    let before = alive(&lab);
    assert!(before > 0);
    guest.kill();
    assert_eq!(alive(&lab), 0, "a guest was left behind");
    let read = "mount /dev/ubda /mnt; cat /mnt/kept; test ! -s /mnt/lost";
    let log = lab.run(&machine, &shell(read))?.passed()?;
    assert!(log.contains("kept"), "{log}");
    Ok(())
}

/// Processes whose command line names something in the lab's directory.
fn alive(lab: &Lab) -> usize {
    let shared = lab.shared();
    let dir = shared.parent().expect("below the lab").to_string_lossy().into_owned();
    let entries = fs::read_dir("/proc").expect("there is /proc").flatten();
    let names = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    names.filter(|name| String::from_utf8_lossy(name).contains(&dir)).count()
}
