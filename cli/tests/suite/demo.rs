//! The demo cleans up after itself.

use std::{
    fs,
    process::{Command, Stdio},
};

/// The processes of the demo below a directory, daemons included.
fn daemons(dir: &str) -> usize {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let environments = processes.filter_map(|process| fs::read(process.path().join("environ")).ok());
    let root = format!("ZUMASTOR_ROOT={dir}/");
    environments.filter(|e| e.split(|byte| *byte == 0).any(|v| v.starts_with(root.as_bytes()))).count()
}

#[test]
fn a_demo_that_is_terminated_leaves_no_daemon_behind() {
    let dir = tempfile::tempdir().unwrap();
    let keep = crate::common::text(&dir.path().join("demo"));
    let mut demo = Command::new(env!("CARGO_BIN_EXE_zumastor"))
        .args(["demo", "--keep", &keep])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    crate::common::wait_for("a daemon", || (daemons(&keep) > 0).then_some(()));
    let pid = rustix::process::Pid::from_child(&demo);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let status = crate::common::wait_for("the end of the demo", || demo.try_wait().unwrap());
    assert_eq!(status.code(), Some(1));
    crate::common::wait_for("the end of the daemons", || (daemons(&keep) == 0).then_some(()));
}
