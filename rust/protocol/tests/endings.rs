//! What kernels are told of ranks that have ended, as loom explores it: no data that was sent is missed, and nothing of an
//! earlier epoch is told.

use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Arc, Mutex};

/// Which protocol runs: the one shipped, or one that lacks something.
#[derive(Clone, Copy, PartialEq)]
enum Protocol {
    AsShipped,
    /// A kernel that is told does not poll again: its last poll may have been long ago.
    NoLastPoll,
    /// A rank ends before what it sends is there.
    EndedBeforeItsData,
    /// A reset leaves what kernels were told before.
    NotToldByAReset,
    /// Who has ended is asked for before the lock is taken.
    AskedBeforeTheLock,
}

#[derive(Default)]
struct Group {
    /// What the peer sends.
    data: AtomicU32,
    /// That it has ended, in shared memory of the host.
    ended: AtomicU32,
    /// What this rank's kernel is told.
    told: AtomicU32,
}

/// A kernel polls for data, looks whether the peer has ended, and if so polls once more, as `kernels/protocol/wait.cuh`
/// does.
fn wait_as_a_kernel(protocol: Protocol, group: &Group) {
    for _ in 0..2 {
        if group.data.load(Ordering::Relaxed) != 0 {
            return;
        }
        if group.told.load(Ordering::Acquire) != 0 {
            let is_there = protocol != Protocol::NoLastPoll && group.data.load(Ordering::Relaxed) != 0;
            assert!(is_there || group.data.load(Ordering::SeqCst) == 0, "the kernel missed data that was there");
            return;
        }
    }
}

/// The watcher's looks.
fn watch(group: &Group) {
    for _ in 0..2 {
        group.told.store(group.ended.load(Ordering::Acquire), Ordering::Release);
    }
}

fn data_is_found(protocol: Protocol) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let group = Arc::new(Group::default());
        let start = |run: fn(Protocol, &Group)| {
            let group = group.clone();
            loom::thread::spawn(move || run(protocol, &group))
        };
        let threads = [
            start(|protocol, group| {
                if protocol == Protocol::EndedBeforeItsData {
                    group.ended.store(1, Ordering::Release);
                }
                group.data.store(1, Ordering::Relaxed);
                group.ended.store(1, Ordering::Release);
            }),
            start(|_, group| watch(group)),
        ];
        wait_as_a_kernel(protocol, &group);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn a_kernel_finds_what_a_rank_has_sent_before_it_ended() {
    data_is_found(Protocol::AsShipped);
}

#[test]
#[should_panic(expected = "missed data")]
fn without_a_last_poll_it_misses_some() {
    data_is_found(Protocol::NoLastPoll);
}

#[test]
#[should_panic(expected = "missed data")]
fn of_a_rank_that_ends_before_its_data_is_there_it_misses_some() {
    data_is_found(Protocol::EndedBeforeItsData);
}

/// A watcher that looks beside a reset. The peer had ended before it, and takes part again.
fn nothing_is_told_after_a_reset(protocol: Protocol) {
    loom::model(move || {
        let lock = Arc::new(Mutex::new(()));
        let group = Arc::new(Group::default());
        group.ended.store(1, Ordering::Release);
        let watcher = {
            let (lock, group) = (lock.clone(), group.clone());
            loom::thread::spawn(move || {
                for _ in 0..2 {
                    let ask = || group.ended.load(Ordering::Acquire);
                    let early = (protocol == Protocol::AskedBeforeTheLock).then(ask);
                    let _telling = lock.lock().unwrap();
                    group.told.store(early.unwrap_or_else(ask), Ordering::Release);
                }
            })
        };
        // The reset: first nobody counts as ended any more, then the words are told anew.
        group.ended.store(0, Ordering::Release);
        if protocol != Protocol::NotToldByAReset {
            let _telling = lock.lock().unwrap();
            group.told.store(0, Ordering::Release);
        }
        assert_eq!(group.told.load(Ordering::Acquire), 0, "told of an earlier epoch");
        watcher.join().unwrap();
        assert_eq!(group.told.load(Ordering::Acquire), 0, "told of an earlier epoch");
    });
}

#[test]
fn after_a_reset_kernels_are_told_of_nobody_who_ended_before() {
    nothing_is_told_after_a_reset(Protocol::AsShipped);
}

#[test]
#[should_panic(expected = "told of an earlier epoch")]
fn a_reset_that_tells_nothing_leaves_what_was_told_in_an_earlier_epoch() {
    nothing_is_told_after_a_reset(Protocol::NotToldByAReset);
}

#[test]
#[should_panic(expected = "told of an earlier epoch")]
fn who_asks_before_taking_the_lock_tells_of_an_earlier_epoch() {
    nothing_is_told_after_a_reset(Protocol::AskedBeforeTheLock);
}
