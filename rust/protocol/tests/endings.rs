//! What kernels are told of ranks that have ended, as loom explores it: no data that was sent is missed, and nothing of an
//! earlier epoch is told.

use lamport_rs_protocol::endings::Endings;
use lamport_rs_protocol::rank_set::RankSet;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Arc, Mutex};

/// The peer whose end is told.
const PEER: usize = 1;
/// More looks than a kernel has.
const NO_MORE_LOOKS: u32 = 100;

/// Which protocol runs: the one shipped, or one that lacks something.
#[derive(Clone, Copy, PartialEq)]
enum Protocol {
    AsShipped,
    /// Of whom it is found out that they have ended, kernels are told at once.
    ToldAtOnce,
    /// A rank ends before what it sends is there.
    EndedBeforeItsData,
    /// A reset leaves what was known before.
    RememberedByAReset,
    /// Who has ended is asked for before the lock is taken.
    AskedBeforeTheLock,
}

/// What one look tells, as the protocol has it.
fn look(protocol: Protocol, endings: &mut Endings, ended: RankSet) -> RankSet {
    let told = endings.look(ended);
    if protocol == Protocol::ToldAtOnce { ended } else { told }
}

#[derive(Default)]
struct Group {
    /// What the peer sends.
    data: AtomicU32,
    /// That it has ended, in shared memory of the host.
    ended: AtomicU32,
    /// What this rank's kernel is told.
    told: AtomicU32,
    /// The kernel's looks that have begun: what stands for time, of which the kernel needs less than the host.
    kernel_looks: AtomicU32,
}

/// A kernel looks for data, and then whether the peer has ended, as `kernels/protocol/wait.cuh` does. Two such looks are enough for
/// any order of events.
fn wait_as_a_kernel(group: &Group) {
    for _ in 0..2 {
        group.kernel_looks.fetch_add(1, Ordering::AcqRel);
        if group.data.load(Ordering::Relaxed) != 0 {
            break;
        }
        let gives_up = group.told.load(Ordering::Acquire) & (1 << PEER) != 0;
        assert!(!gives_up || group.data.load(Ordering::SeqCst) == 0, "the kernel missed data that was there");
    }
    group.kernel_looks.fetch_add(NO_MORE_LOOKS, Ordering::AcqRel);
}

/// The watcher's looks, between which the kernel begins at least one, or has ended.
fn watch(protocol: Protocol, group: &Group) {
    let mut endings = Endings::default();
    for _ in 0..2 {
        let ended = RankSet((group.ended.load(Ordering::Acquire) << PEER) as u16);
        let told = look(protocol, &mut endings, ended);
        group.told.store(told.0.into(), Ordering::Release);
        // As much time as a kernel takes for a look.
        let before = group.kernel_looks.fetch_add(0, Ordering::AcqRel);
        while before < NO_MORE_LOOKS && group.kernel_looks.fetch_add(0, Ordering::AcqRel) == before {
            loom::thread::yield_now();
        }
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
            start(watch),
        ];
        wait_as_a_kernel(&group);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn a_kernel_finds_what_a_rank_has_sent_before_it_ended() {
    data_is_found(Protocol::AsShipped);
}

#[test]
#[should_panic(expected = "missed data")]
fn told_at_once_it_misses_some() {
    data_is_found(Protocol::ToldAtOnce);
}

#[test]
#[should_panic(expected = "missed data")]
fn of_a_rank_that_ends_before_its_data_is_there_it_misses_some() {
    data_is_found(Protocol::EndedBeforeItsData);
}

/// A watcher that looks beside a reset. The peer had ended before it, and takes part again.
fn nothing_is_told_after_a_reset(protocol: Protocol) {
    loom::model(move || {
        let endings = Arc::new(Mutex::new(Endings::default()));
        let group = Arc::new(Group::default());
        group.ended.store(1, Ordering::Release);
        let watcher = {
            let (endings, group) = (endings.clone(), group.clone());
            loom::thread::spawn(move || {
                for _ in 0..2 {
                    let ask = || RankSet((group.ended.load(Ordering::Acquire) << PEER) as u16);
                    let early = (protocol == Protocol::AskedBeforeTheLock).then(ask);
                    let mut endings = endings.lock().unwrap();
                    let told = look(protocol, &mut endings, early.unwrap_or_else(ask));
                    group.told.store(told.0.into(), Ordering::Release);
                }
            })
        };
        // The reset: first nobody counts as ended any more, then the words are told anew.
        group.ended.store(0, Ordering::Release);
        {
            let mut endings = endings.lock().unwrap();
            let told = if protocol == Protocol::RememberedByAReset { RankSet(0) } else { endings.begin_epoch() };
            group.told.store(told.0.into(), Ordering::Release);
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
fn a_reset_that_leaves_what_was_known_tells_of_an_earlier_epoch() {
    nothing_is_told_after_a_reset(Protocol::RememberedByAReset);
}

#[test]
#[should_panic(expected = "told of an earlier epoch")]
fn who_asks_before_taking_the_lock_tells_of_an_earlier_epoch() {
    nothing_is_told_after_a_reset(Protocol::AskedBeforeTheLock);
}
