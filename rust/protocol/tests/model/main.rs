//! The protocol's proof: all interleavings of the real `exchange` and `exchange_two_shot`, explored over weak memory.
//!
//! Ranks run operations without end; sizes and payloads repeat, so the states are finitely many and all of them are
//! visited. Of each search is proven, for any number of operations, that every vector received is the one its source
//! sent in that operation, and that no rank ever gets into a state from which it cannot complete one more.
//!
//! | module | concept |
//! | --- | --- |
//! | `job` | what is exchanged, and what must arrive |
//! | `protocol` | the protocol as shipped, and the ways to break it |
//! | `rank` | the real code, run from load to load |
//! | `weak_memory` | stores that become visible late and out of order; what that stands for and what it leaves out |
//! | `system` | states and transitions |
//! | `search` | exhaustive search, and the proof of progress |
//! | `report`, `describe` | what is found, in words |
//! | `intern` | numbers for parts of states |
//!
//! A broken protocol must be caught for the right reason: that is what the tests of the second half are for. They show
//! the failures which the first half rules out to be within the checker's sight.

mod describe;
mod intern;
mod job;
mod protocol;
mod rank;
mod report;
mod search;
mod system;
mod weak_memory;

use job::{Headers, Job};
use protocol::Protocol;
use report::{Counterexample, Kind};
use search::search;
use system::Commits;

fn prove(job: Job, commits: Commits) {
    match search(job, Protocol::AsShipped, commits) {
        Ok(proof) => println!("{} ranks, {commits:?} commit: {proof} ({job:?})", job.world_size),
        Err(counterexample) => panic!("{job:?}: {counterexample}"),
    }
}

fn refute(protocol: Protocol) -> Counterexample {
    refute_in(Job::of(2), protocol)
}

fn refute_in(job: Job, protocol: Protocol) -> Counterexample {
    match search(job, protocol, Commits::Needed) {
        Ok(proof) => panic!("{protocol:?} was not caught: {proof}"),
        Err(counterexample) => {
            println!("{protocol:?}: {counterexample}");
            counterexample
        }
    }
}

#[test]
fn two_ranks_neither_lose_nor_tear_nor_mix_up_data_nor_wait_for_ever() {
    prove(Job::of(2), Commits::Every);
}

#[test]
fn two_ranks_are_correct_when_every_word_arrives_on_its_own() {
    prove(Job { parts: 4, ..Job::of(2) }, Commits::Needed);
}

#[test]
fn three_ranks_are_correct() {
    prove(Job::of(3), Commits::Needed);
}

#[test]
fn three_ranks_are_correct_in_chunks_pushed_ahead_of_the_polls() {
    prove(Job { chunk_vectors: 1, ..Job::of(3) }, Commits::Needed);
}

#[test]
fn three_ranks_are_correct_in_chunks_pushed_between_the_polls() {
    prove(Job { chunk_vectors: 1, lead_chunks: 0, ..Job::of(3) }, Commits::Needed);
}

/// Vectors arrive whole here: with four ranks, their parts are too many states.
#[test]
fn four_ranks_are_correct() {
    prove(Job { parts: 1, ..Job::of(4) }, Commits::Needed);
}

#[test]
fn two_ranks_are_correct_in_two_shots_when_every_word_arrives_on_its_own() {
    prove(Job { parts: 4, one_size: true, ..Job::two_shot(2) }, Commits::Needed);
}

#[test]
fn two_ranks_are_correct_in_a_mix_of_one_shot_and_two_shot() {
    prove(Job { one_size: true, ..Job::mixed(2) }, Commits::Every);
}

#[test]
fn three_ranks_are_correct_in_a_mix_of_one_shot_and_two_shot() {
    prove(Job::mixed(3), Commits::Needed);
}

#[test]
fn three_ranks_are_correct_in_two_shots_of_chunks_pushed_between_the_polls() {
    prove(Job { chunk_vectors: 1, lead_chunks: 0, ..Job::two_shot(3) }, Commits::Needed);
}

#[test]
fn four_ranks_are_correct_in_two_shots_and_in_a_mix() {
    prove(Job { parts: 1, ..Job::two_shot(4) }, Commits::Needed);
    prove(Job { parts: 1, ..Job::mixed(4) }, Commits::Needed);
}

#[test]
fn headers_are_neither_lost_nor_torn_nor_mixed_up_and_change_nothing_for_the_data() {
    prove(Job { headers: Headers::All, ..Job::of(2) }, Commits::Needed);
    prove(Job { headers: Headers::All, one_size: true, parts: 4, ..Job::of(2) }, Commits::Needed);
    prove(Job { headers: Headers::EveryOther, ..Job::mixed(2) }, Commits::Needed);
    prove(Job { headers: Headers::All, one_size: true, parts: 1, ..Job::of(2) }, Commits::Every);
    prove(Job { headers: Headers::All, parts: 1, ..Job::of(3) }, Commits::Needed);
    prove(Job { headers: Headers::All, parts: 1, ..Job::mixed(3) }, Commits::Needed);
    prove(Job { headers: Headers::EveryOther, parts: 1, ..Job::mixed(4) }, Commits::Needed);
}

/// Each rank stops, none takes data of the operation in which they differ, and none waits for ever.
#[test]
fn ranks_that_differ_all_notice_and_none_takes_data() {
    for operation in [0, 1] {
        prove(Job { headers: Headers::Disagree(operation), parts: 4, ..Job::of(2) }, Commits::Needed);
        prove(Job { headers: Headers::Disagree(operation), ..Job::mixed(3) }, Commits::Needed);
        prove(Job { headers: Headers::Disagree(operation), parts: 1, ..Job::mixed(4) }, Commits::Needed);
    }
    for operation in [3, 6] {
        prove(Job { headers: Headers::Disagree(operation), ..Job::of(2) }, Commits::Needed);
        prove(Job { headers: Headers::Disagree(operation), parts: 1, ..Job::mixed(3) }, Commits::Needed);
    }
}

#[test]
fn headers_that_are_not_cleared_or_of_which_the_first_word_counts_are_caught() {
    let job = Job { headers: Headers::All, one_size: true, ..Job::of(2) };
    assert_eq!(refute_in(job, Protocol::NoClear).kind, Kind::Stale);
    assert_eq!(refute_in(job, Protocol::KeepsHeaders).kind, Kind::Stale);
    assert_eq!(refute_in(job, Protocol::FirstWordOnly).kind, Kind::Torn);
}

#[test]
fn two_slots_lose_data() {
    assert_eq!(refute(Protocol::TwoSlots).kind, Kind::Lost);
}

#[test]
fn sentinels_that_are_not_scrubbed_are_waited_for_for_ever() {
    assert_eq!(refute(Protocol::UnscrubbedSentinels).kind, Kind::Stuck);
}

#[test]
fn clearing_after_the_next_push_loses_data() {
    assert_eq!(refute(Protocol::ClearAfterNextPush).kind, Kind::Lost);
}

#[test]
fn filling_after_the_handles_are_exchanged_loses_data() {
    assert_eq!(refute(Protocol::FillAfterExchange).kind, Kind::Lost);
}

#[test]
fn leaving_out_the_release_fence_loses_data() {
    assert_eq!(refute(Protocol::NoRelease).kind, Kind::Lost);
}

#[test]
fn a_reader_that_checks_the_first_word_only_takes_torn_vectors() {
    assert_eq!(refute(Protocol::FirstWordOnly).kind, Kind::Torn);
}

#[test]
fn leaving_out_the_clearing_delivers_old_data() {
    assert_eq!(refute(Protocol::NoClear).kind, Kind::Stale);
}

#[test]
fn clearing_the_extent_of_the_wrong_operation_delivers_old_data() {
    assert_eq!(refute(Protocol::ClearsOwnExtent).kind, Kind::Stale);
}

#[test]
fn sums_that_are_not_scrubbed_are_waited_for_for_ever() {
    assert_eq!(refute_in(Job::two_shot(2), Protocol::UnscrubbedSums).kind, Kind::Stuck);
}

#[test]
fn clearing_contributions_but_no_sums_delivers_old_data() {
    assert_eq!(refute_in(Job::two_shot(2), Protocol::ClearsFirstHalves).kind, Kind::Stale);
}

#[test]
fn what_breaks_one_shot_breaks_two_shot() {
    for (protocol, kind) in [
        (Protocol::TwoSlots, Kind::Lost),
        (Protocol::UnscrubbedSentinels, Kind::Stuck),
        (Protocol::ClearAfterNextPush, Kind::Lost),
        (Protocol::FillAfterExchange, Kind::Lost),
        (Protocol::NoRelease, Kind::Lost),
        (Protocol::FirstWordOnly, Kind::Torn),
        (Protocol::NoClear, Kind::Stale),
    ] {
        assert_eq!(refute_in(Job::two_shot(2), protocol).kind, kind, "{protocol:?}");
    }
    assert_eq!(refute_in(Job::mixed(2), Protocol::ClearsOwnExtent).kind, Kind::Stale);
    assert_eq!(refute_in(Job::two_shot(3), Protocol::TwoSlots).kind, Kind::Lost);
}

/// The searches of more than two ranks rest on `weak_memory::needed_commits`. Its argument is in its comment; here it is
/// compared with the search that makes every commit, on all protocols but two: where stores pile up that nothing orders,
/// the orders of their commits are too many to go through one by one.
#[test]
fn leaving_out_commits_that_do_not_matter_changes_no_verdict() {
    compare_searches(Job { one_size: true, ..Job::of(2) });
    compare_searches(Job { one_size: true, parts: 1, ..Job::mixed(2) });
}

fn compare_searches(job: Job) {
    let kind = |protocol, commits| search(job, protocol, commits).err().map(|found| found.kind);
    let piles_up = |protocol| matches!(protocol, Protocol::FillAfterExchange | Protocol::NoRelease);
    for protocol in Protocol::ALL.into_iter().filter(|&protocol| !piles_up(protocol)) {
        assert_eq!(kind(protocol, Commits::Every), kind(protocol, Commits::Needed), "{protocol:?} in {job:?}");
    }
}
