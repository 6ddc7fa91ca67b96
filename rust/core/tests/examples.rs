//! The programs in `examples`, run as their heads say.

use std::process::Command;

#[test]
fn two_processes_sum_without_python() {
    // With the profile of the tests, for which the example has been built already.
    let finished = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--profile", "test", "--package", "lamport-rs-core", "--example", "all_reduce"])
        .output()
        .unwrap();
    let said = String::from_utf8(finished.stderr).unwrap();
    assert!(finished.status.success(), "{said}");
    for rank in 0..2 {
        let own: Vec<_> = said.lines().filter(|line| line.starts_with(&format!("rank {rank}: "))).collect();
        let expected = ["1 + 2 = 3", "2 + 4 = 6", "3 + 6 = 9"].map(|sum| format!("rank {rank}: {sum}"));
        assert_eq!(own, expected, "{said}");
    }
}
