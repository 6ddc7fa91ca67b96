//! Faults that are told to the peers, and what makes a workspace work again, with ranks as threads that are joined by
//! hand, as in `host_faults.rs`.

mod sums;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lamport_rs_core::error::{Cause, Error};
use lamport_rs_core::workspace::host::HostWorkspace;

use sums::{Aligned, sum, sum_of_ones};

/// More than any test here waits for.
const LONG: Duration = Duration::from_secs(60);
/// By when a peer has heard of a fault, on a machine that does much else.
const SOON: Duration = Duration::from_secs(5);

fn never() -> bool {
    false
}

fn group(world_size: i64) -> Vec<HostWorkspace> {
    HostWorkspace::in_process(world_size, 4096, Some(LONG)).unwrap()
}

fn each<R: Send>(workspaces: &[HostWorkspace], run: impl Fn(&HostWorkspace) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = workspaces.iter().map(|workspace| scope.spawn(move || run(workspace))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Runs `fault` while all ranks but the last wait for it; what they get, and when.
fn while_they_wait(workspaces: &[HostWorkspace], fault: impl FnOnce(&HostWorkspace)) -> Vec<(Error, Duration)> {
    let (last, others) = workspaces.split_last().unwrap();
    std::thread::scope(|scope| {
        let wait = |workspace| {
            let (outcome, memory) = sum_of_ones(workspace);
            assert!(memory.iter().all(|value| value.is_nan()), "{memory:?}");
            (outcome.unwrap_err(), Instant::now())
        };
        let threads: Vec<_> = others.iter().map(|workspace| scope.spawn(move || wait(workspace))).collect();
        std::thread::sleep(Duration::from_millis(50));
        let began = Instant::now();
        fault(last);
        let ended = threads.into_iter().map(|thread| thread.join().unwrap());
        ended.map(|(error, when)| (error, when - began)).collect()
    })
}

#[test]
fn an_abort_ends_all_waits_at_once_and_leaves_nan() {
    let workspaces = group(3);
    for (error, took) in while_they_wait(&workspaces, |last| last.lifecycle().abort("no memory").unwrap()) {
        let Error::Aborted { rank: 2, cause: Cause::Aborted, reason } = error else { panic!("{error:?}") };
        assert!(reason == "no memory" && took < SOON, "{reason}, {took:?}");
    }
    for workspace in &workspaces {
        assert!(matches!(workspace.lifecycle().check(), Err(Error::Aborted { rank: 2, .. })));
        assert!(matches!(sum_of_ones(workspace).0, Err(Error::Aborted { .. } | Error::Failed { .. })));
    }
}

#[test]
fn a_rank_that_is_cleaned_up_or_refuses_its_call_is_not_waited_for() {
    for (error, took) in while_they_wait(&group(3), |last| last.lifecycle().clean_up()) {
        assert!(matches!(error, Error::Aborted { rank: 2, cause: Cause::CleanedUp, .. }), "{error:?}");
        assert!(took < SOON, "{took:?}");
    }
    for (error, took) in while_they_wait(&group(3), HostWorkspace::note_refusal) {
        assert!(matches!(error, Error::PeerRefused { peer: 2, .. }), "{error:?}");
        assert!(took < SOON, "{took:?}");
    }
}

#[test]
fn what_one_rank_found_out_all_know_whether_they_wait_or_not() {
    let workspaces = HostWorkspace::in_process(3, 4096, Some(Duration::from_millis(100))).unwrap();
    let (outcome, _) = sum_of_ones(&workspaces[0]);
    assert!(matches!(outcome, Err(Error::Timeout { missing, .. }) if missing.iter().eq([1, 2])), "{outcome:?}");
    for workspace in &workspaces[1..] {
        assert!(matches!(workspace.lifecycle().check(), Err(Error::Timeout { .. })));
        assert!(matches!(sum_of_ones(workspace).0, Err(Error::Failed { .. })));
    }
}

#[test]
fn a_rank_that_has_done_its_part_may_go_while_others_still_read() {
    for _ in 0..200 {
        let workspaces = group(3);
        let outcomes = each(&workspaces, |workspace| {
            let outcome = sum_of_ones(workspace);
            workspace.lifecycle().clean_up();
            outcome
        });
        for (outcome, memory) in outcomes {
            outcome.unwrap();
            assert_eq!(memory, [3.0; 8]);
        }
    }
}

#[test]
fn a_group_that_is_reset_works_again_whatever_had_happened() {
    let faults: [fn(&HostWorkspace); 4] = [
        |last| last.lifecycle().abort("once").unwrap(),
        HostWorkspace::note_refusal,
        |last| drop(sum(last, &mut Aligned([1.0; 8]).0[..4])),
        |last| last.lifecycle().fail(&Error::Argument("a launch was refused".into())),
    ];
    let workspaces = group(3);
    for round in 0..20 {
        for (outcome, memory) in each(&workspaces, sum_of_ones) {
            outcome.unwrap();
            assert_eq!(memory, [3.0; 8]);
        }
        while_they_wait(&workspaces, faults[round % faults.len()]);
        // Calls that are refused meanwhile count on their rank, until then.
        (0..round).for_each(|_| workspaces[0].note_refusal());
        for outcome in each(&workspaces, |workspace| workspace.reset(Some(LONG), &mut never)) {
            outcome.unwrap();
        }
        assert!(workspaces.iter().all(|workspace| workspace.lifecycle().check().is_ok()));
        assert!(workspaces.iter().all(|workspace| workspace.lifecycle().epoch() == round as u32 + 1));
    }
}

#[test]
fn a_check_beside_a_reset_does_not_bring_the_old_fault_back() {
    let workspaces = group(2);
    let (over, mut brought_back) = (AtomicBool::new(false), false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let _ = workspaces[0].lifecycle().check();
            }
        });
        for _ in 0..500 {
            workspaces[1].lifecycle().abort("again").unwrap();
            for outcome in each(&workspaces, |workspace| workspace.reset(Some(LONG), &mut never)) {
                outcome.unwrap();
            }
            brought_back |= workspaces.iter().any(|workspace| workspace.lifecycle().check().is_err());
        }
        over.store(true, Ordering::Relaxed);
        watcher.join().unwrap();
    });
    assert!(!brought_back);
}

#[test]
fn a_fault_is_named_rather_than_what_followed_from_it() {
    let workspaces = group(3);
    workspaces[2].lifecycle().abort("the cause").unwrap();
    workspaces[0].lifecycle().clean_up();
    let error = sum_of_ones(&workspaces[1]).0.unwrap_err();
    assert!(matches!(error.itself(), Error::Aborted { rank: 2, .. }), "{error:?}");
    // The first rank takes part in no reset.
    assert!(error.to_string().ends_with("create a new one on every rank"), "{error}");
}

#[test]
fn a_rank_that_was_cleaned_up_is_not_awaited_whatever_it_had_told_before() {
    let workspaces = group(2);
    workspaces[0].lifecycle().abort("first").unwrap();
    for outcome in each(&workspaces, |workspace| workspace.reset(Some(LONG), &mut never)) {
        outcome.unwrap();
    }
    for (error, took) in while_they_wait(&workspaces, |last| last.lifecycle().clean_up()) {
        assert!(matches!(error, Error::Aborted { rank: 1, cause: Cause::CleanedUp, .. }), "{error:?}");
        assert!(took < SOON, "{took:?}");
    }
}

#[test]
fn a_reset_waits_for_all_for_so_long_names_who_is_missing_and_can_be_repeated() {
    let workspaces = group(3);
    let short = Some(Duration::from_millis(50));
    let outcomes = each(&workspaces[..2], |workspace| workspace.reset(short, &mut never));
    for outcome in outcomes {
        assert!(matches!(outcome, Err(Error::ResetTimeout { missing, .. }) if missing.contains(2)), "{outcome:?}");
    }
    for outcome in each(&workspaces, |workspace| workspace.reset(Some(LONG), &mut never)) {
        outcome.unwrap();
    }
    assert!(each(&workspaces, sum_of_ones).iter().all(|(_, memory)| *memory == [3.0; 8]));
}

#[test]
fn a_reset_without_a_rank_that_is_gone_is_an_error_at_once() {
    let workspaces = group(3);
    workspaces[2].lifecycle().clean_up();
    for outcome in each(&workspaces[..2], |workspace| workspace.reset(None, &mut never)) {
        assert!(matches!(outcome, Err(Error::Aborted { rank: 2, cause: Cause::CleanedUp, .. })), "{outcome:?}");
    }
    assert!(matches!(workspaces[2].reset(None, &mut never), Err(Error::CleanedUp)));
}

#[test]
fn a_refusal_is_named_though_a_reset_follows_at_once() {
    let workspaces = group(3);
    for _ in 0..20 {
        std::thread::scope(|scope| {
            let (last, others) = workspaces.split_last().unwrap();
            let refused = |workspace: &HostWorkspace| {
                let error = sum_of_ones(workspace).0.unwrap_err();
                assert!(matches!(error, Error::PeerRefused { peer: 2, .. }), "{error:?}");
                workspace.reset(Some(LONG), &mut never).unwrap();
            };
            let others = others.iter().map(|workspace| scope.spawn(move || refused(workspace))).collect::<Vec<_>>();
            std::thread::sleep(Duration::from_millis(5));
            last.note_refusal();
            last.reset(Some(LONG), &mut never).unwrap();
            // The race detector sees a thread's end where it is joined, and not where the scope counts it.
            others.into_iter().for_each(|other| other.join().unwrap());
        });
    }
}

#[test]
fn an_abort_ends_resets_that_wait_and_none_that_follows() {
    let workspaces = group(3);
    // Whatever they had told before.
    workspaces.iter().for_each(|workspace| workspace.lifecycle().abort("before").unwrap());
    for aborter in [2, 0] {
        std::thread::scope(|scope| {
            let waits: Vec<_> = workspaces[..2]
                .iter()
                .map(|workspace| scope.spawn(move || workspace.reset(Some(LONG), &mut never).unwrap_err()))
                .collect();
            std::thread::sleep(Duration::from_millis(50));
            let began = Instant::now();
            workspaces[aborter].lifecycle().abort("not now").unwrap();
            for wait in waits {
                let error = wait.join().unwrap();
                let is_it = matches!(&error, Error::Aborted { rank, cause: Cause::Aborted, reason } if *rank == aborter && reason == "not now");
                assert!(is_it && began.elapsed() < SOON, "{error:?} after {:?}", began.elapsed());
            }
        });
    }
    for outcome in each(&workspaces, |workspace| workspace.reset(Some(LONG), &mut never)) {
        outcome.unwrap();
    }
    assert!(each(&workspaces, sum_of_ones).iter().all(|(_, memory)| *memory == [3.0; 8]));
}

#[test]
fn a_workspace_says_what_it_has_done() {
    let workspaces = group(2);
    each(&workspaces, sum_of_ones);
    each(&workspaces, sum_of_ones);
    for workspace in &workspaces {
        let work = workspace.lifecycle().tally.work();
        assert_eq!(
            work.iter().map(|work| (work.kind.name(), work.operations, work.bytes)).collect::<Vec<_>>(),
            [("all_reduce", 2, 64)]
        );
    }
}
