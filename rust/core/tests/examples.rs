//! The programs in `examples`, run as their heads say.

use std::process::Command;

#[test]
fn two_processes_sum_without_python() {
    // What `cargo test` has built beside this test; where it was told to build this test only, cargo builds it now.
    let built = std::env::current_exe().unwrap().parent().unwrap().with_file_name("examples").join("all_reduce");
    let mut command = if built.exists() { Command::new(built) } else { Command::new(env!("CARGO")) };
    if command.get_program() == env!("CARGO") {
        command.args(["run", "--quiet", "--package", "lamport-rs-core", "--example", "all_reduce"]);
    }
    let finished = command.output().unwrap();
    let said = String::from_utf8(finished.stderr).unwrap();
    assert!(finished.status.success(), "{said}");
    for rank in 0..2 {
        let own: Vec<_> = said.lines().filter(|line| line.starts_with(&format!("rank {rank}: "))).collect();
        let expected = ["1 + 2 = 3", "2 + 4 = 6", "3 + 6 = 9"].map(|sum| format!("rank {rank}: {sum}"));
        assert_eq!(own, expected, "{said}");
    }
}
