//! `docs/manual.md` is complete: it has every command and every option, and the tests that it names are there.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn manual() -> String {
    fs::read_to_string(repository().join("docs/manual.md")).unwrap()
}

fn help(command: &[String]) -> String {
    let mut program = Command::new(env!("CARGO_BIN_EXE_zumastor"));
    let output = program.args(command).arg("--help").output().unwrap();
    assert!(output.status.success(), "{command:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// All commands that do something, with their options, as `--help` tells them.
fn commands(command: &[String], all: &mut Vec<(String, BTreeSet<String>)>) {
    let help = help(command);
    let within = |heading: &str| {
        let lines = help.lines().skip_while(|line| *line != heading).skip(1);
        lines
            .take_while(|line| line.is_empty() || line.starts_with(' '))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let below = within("Commands:");
    for name in below.iter().filter_map(|line| line.split_whitespace().next()) {
        // What stands deeper goes on with the line before.
        let is_name = below.iter().any(|line| line.starts_with(&format!("  {name}")));
        if is_name && name != "help" {
            commands(&[command, &[name.to_owned()]].concat(), all);
        }
    }
    if below.is_empty() {
        let options = within("Options:");
        let is_option = |line: &&String| line.trim_start().starts_with('-');
        let words = |line: &String| line.split([' ', ',', '=', '[']).map(str::to_owned).collect::<Vec<_>>();
        let long =
            |word: &String| word.strip_prefix("--").is_some_and(|name| !name.is_empty() && name != "help");
        let options = options.iter().filter(is_option);
        let options = options.filter_map(|line| words(line).into_iter().find(|word| long(word))).collect();
        all.push((format!("zumastor {}", command.join(" ")), options));
    }
}

#[test]
fn every_command_and_option_is_in_the_manual() {
    let manual = manual();
    let mut all = Vec::new();
    commands(&[], &mut all);
    assert!(all.len() > 30, "{all:?}");
    let mut missing = Vec::new();
    for (command, options) in all {
        let heading = format!("### {command}\n");
        let Some((_, section)) = manual.split_once(&heading) else {
            missing.push(command);
            continue;
        };
        let section = section.split("\n#").next().unwrap();
        let named = |option: &String| {
            [" ", "`", "=", "[", "]"].iter().any(|end| section.contains(&format!("{option}{end}")))
        };
        missing.extend(
            options.into_iter().filter(|option| !named(option)).map(|option| format!("{command} {option}")),
        );
    }
    assert!(missing.is_empty(), "not in docs/manual.md: {missing:#?}");
}

#[test]
fn the_tests_that_the_manual_names_are_there() {
    fn sources(dir: &Path, all: &mut String) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                sources(&path, all);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                all.push_str(&fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut code = String::new();
    for part in ["core", "backends", "net", "cli", "testbed"] {
        sources(&repository().join(part), &mut code);
    }
    let manual = manual();
    let table = manual.split_once("sentence by sentence").unwrap().1;
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| it says"))
        .map(|line| line.split('|').collect())
        .collect();
    assert!(rows.len() > 40);
    for row in rows {
        let tests: Vec<&str> = row[2].split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty() || row[2].contains("*not yet*"), "nothing shows that {}", row[1].trim());
        for test in tests {
            assert!(
                code.contains(&format!("fn {test}(")),
                "there is no test {test}, which is to show that {}",
                row[1].trim()
            );
        }
    }
}
