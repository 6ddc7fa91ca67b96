//! A thousand groups, each with a fault, a reset and an end: nothing of them stays behind. In a process of its own, whose
//! descriptors, threads and memory nobody else changes.

mod sums;

use std::fs;
use std::sync::Barrier;
use std::time::Duration;

use lamport_rs_core::error::Error;
use lamport_rs_core::workspace::host::HostWorkspace;

use sums::{Aligned, sum, sum_of_ones};

const ROUNDS: usize = 1000;
/// After which all that is made once is there.
const FIRST_ROUNDS: usize = 100;
const LONG: Duration = Duration::from_secs(60);
/// A group's slots are 36 KiB: a tenth of those that are not given back would show.
const MOST_GROWTH: usize = 3 << 20;

/// What the last rank does while the others wait for it.
const FAULTS: [fn(&HostWorkspace); 4] = [
    |last| last.lifecycle().abort("once").unwrap(),
    HostWorkspace::note_refusal,
    |last| drop(sum(last, &mut Aligned([1.0; 8]).0[..4])),
    |last| last.lifecycle().fail(&Error::Argument("a launch was refused".into())),
];

fn round(fault: fn(&HostWorkspace)) {
    let workspaces = HostWorkspace::in_process(3, 4096, Some(LONG)).unwrap();
    // An abort may end a sum that a peer has not yet left, so all leave the first one before it.
    let summed = &Barrier::new(workspaces.len());
    std::thread::scope(|scope| {
        let start = |(rank, workspace)| {
            scope.spawn(move || {
                let (outcome, memory) = sum_of_ones(workspace);
                summed.wait();
                outcome.unwrap();
                assert_eq!(memory, [3.0; 8]);
                if rank == 2 {
                    fault(workspace);
                } else {
                    let (outcome, memory) = sum_of_ones(workspace);
                    assert!(outcome.is_err() && memory.iter().all(|value| value.is_nan()), "{outcome:?} {memory:?}");
                }
                workspace.reset(Some(LONG), &mut || false).unwrap();
                let (outcome, memory) = sum_of_ones(workspace);
                outcome.unwrap();
                assert_eq!(memory, [3.0; 8]);
            })
        };
        // By hand: the scope waits for what they do, and not for their end.
        let threads: Vec<_> = workspaces.iter().enumerate().map(start).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

/// Descriptors, threads, and bytes of memory.
fn resources() -> (usize, usize, usize) {
    let entries = |folder: &str| fs::read_dir(folder).unwrap().count();
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    let resident: usize = pages.split(' ').nth(1).unwrap().parse().unwrap();
    (entries("/proc/self/fd"), entries("/proc/self/task"), resident * 4096)
}

#[test]
fn a_thousand_groups_with_faults_leave_nothing_behind() {
    (0..FIRST_ROUNDS).for_each(|at| round(FAULTS[at % FAULTS.len()]));
    let (descriptors, threads, bytes) = resources();
    (0..ROUNDS).for_each(|at| round(FAULTS[at % FAULTS.len()]));
    let after = resources();
    assert_eq!((after.0, after.1), (descriptors, threads));
    assert!(after.2 <= bytes + MOST_GROWTH, "{bytes} bytes before, {} after", after.2);
}
