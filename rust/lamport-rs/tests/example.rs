//! The program in `examples`, run as its head says.

use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    // What `cargo test` has built beside this test; where it was told to build this test only, cargo builds it now.
    let built = std::env::current_exe().unwrap().parent().unwrap().with_file_name("examples").join("all_reduce");
    let mut command = if built.exists() { Command::new(built) } else { Command::new(env!("CARGO")) };
    if command.get_program() == env!("CARGO") {
        command.args(["run", "--quiet", "--release", "--package", "lamport-rs", "--example", "all_reduce", "--"]);
    }
    command.args(arguments).output().unwrap()
}

#[test]
fn processes_sum_and_say_how_long_it_takes() {
    for ranks in ["2", "4"] {
        let finished = run(&["--ranks", ranks]);
        let [said, errors] = [finished.stdout, finished.stderr].map(|text| String::from_utf8(text).unwrap());
        assert!(finished.status.success() && errors.is_empty(), "{errors}");
        let right = format!("host memory, {ranks} ranks, ");
        assert_eq!(
            said.lines().filter(|line| line.starts_with(&right) && line.contains("the sum is right")).count(),
            4
        );
    }
}

#[test]
fn what_it_does_not_know_is_an_error() {
    let finished = run(&["--no-such-option"]);
    assert!(!finished.status.success());
    assert!(String::from_utf8(finished.stderr).unwrap().contains("--no-such-option is not known"));
}
