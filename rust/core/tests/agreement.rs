//! What ranks that construct something agree on without a second round, and what becomes of those that do not come so far.

mod sums;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use lamport_rs_core::Result;
use lamport_rs_core::error::{Cause, Error};
use lamport_rs_core::memory::host::HostMemory;
use lamport_rs_core::rendezvous::AllGather;
use lamport_rs_core::workspace::Settings;
use lamport_rs_core::workspace::buffer::Buffer;
use lamport_rs_core::workspace::host::HostWorkspace;

use sums::sum_of_ones;

const RANKS: usize = 3;
/// For what is to happen at once, on a busy machine.
const PROMPTLY: Duration = Duration::from_secs(5);
const LATE: Duration = Duration::from_millis(2500);

/// What becomes of one rank once the first round has brought it all messages.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Good,
    /// It is held up.
    Late(Duration),
    /// A signal comes while it waits.
    Interrupted,
    /// A signal's handler begins while it waits, and raises when all others have what they construct.
    InterruptedLast,
    /// Its transport fails.
    Unserved,
}

/// Where ranks meet for one round: any other fails.
struct Meeting {
    barrier: Barrier,
    messages: Mutex<Vec<Vec<u8>>>,
    /// Ranks that have returned.
    returned: AtomicUsize,
}

struct Visitor {
    rank: usize,
    fate: Fate,
    meeting: Arc<Meeting>,
    rounds: usize,
}

impl AllGather for Visitor {
    fn all_gather(&mut self, message: &[u8]) -> std::result::Result<Vec<Vec<u8>>, String> {
        self.rounds += 1;
        if self.rounds > 1 {
            return Err("there is no second round".to_owned());
        }
        self.meeting.messages.lock().unwrap()[self.rank] = message.to_vec();
        self.meeting.barrier.wait();
        let gathered = self.meeting.messages.lock().unwrap().clone();
        match self.fate {
            Fate::Late(by) => std::thread::sleep(by),
            Fate::Unserved => return Err("the wire is cut".to_owned()),
            _ => {}
        }
        Ok(gathered)
    }

    fn is_interrupted(&mut self) -> bool {
        if self.fate == Fate::InterruptedLast {
            let (began, others) = (Instant::now(), self.meeting.messages.lock().unwrap().len() - 1);
            while self.meeting.returned.load(Ordering::Relaxed) < others && began.elapsed() < PROMPTLY {
                std::thread::sleep(Duration::from_millis(1));
            }
            return true;
        }
        self.fate == Fate::Interrupted
    }
}

/// What a rank got, how many rounds it came to, and after how long.
struct Outcome<T> {
    result: Result<T>,
    rounds: usize,
    took: Duration,
}

impl<T> Outcome<T> {
    fn error(&self) -> String {
        self.result.as_ref().map(drop).unwrap_err().to_string()
    }
}

/// How a rank of so many constructs something, with this timeout.
type Create<T> = fn(&mut Visitor, usize, f64) -> Result<T>;

fn buffer(visitor: &mut Visitor, world_size: usize, timeout: f64) -> Result<Buffer<HostMemory>> {
    Buffer::create(&HostMemory, visitor.rank as i64, world_size as i64, 5000, timeout, visitor)
}

fn workspace(visitor: &mut Visitor, world_size: usize, timeout: f64) -> Result<HostWorkspace> {
    let (rank, world_size) = (visitor.rank as i64, world_size as i64);
    let settings = Settings { rank, world_size, comm_size: 4096, timeout, two_shot_from: None };
    HostWorkspace::create(&settings, visitor)
}

fn construct<T: Send + 'static, const N: usize>(create: Create<T>, fates: [Fate; N], timeout: f64) -> Vec<Outcome<T>> {
    let messages = Mutex::new(vec![vec![]; N]);
    let meeting = Arc::new(Meeting { barrier: Barrier::new(N), messages, returned: AtomicUsize::new(0) });
    let start = |(rank, fate): (usize, Fate)| {
        let mut visitor = Visitor { rank, fate, meeting: meeting.clone(), rounds: 0 };
        std::thread::spawn(move || {
            let began = Instant::now();
            let result = create(&mut visitor, N, timeout);
            visitor.meeting.returned.fetch_add(1, Ordering::Relaxed);
            Outcome { result, rounds: visitor.rounds, took: began.elapsed() }
        })
    };
    let threads: Vec<_> = fates.into_iter().enumerate().map(start).collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

#[test]
fn ranks_that_all_have_everything_need_one_round() {
    for outcome in construct(buffer, [Fate::Good], 1e-9).into_iter().chain(construct(buffer, [Fate::Good; RANKS], 0.0))
    {
        assert!(outcome.result.is_ok(), "{:?}", outcome.result);
        assert_eq!(outcome.rounds, 1);
    }
}

#[test]
fn a_rank_that_is_late_is_waited_for() {
    // Whatever the timeout of an operation.
    for outcome in construct(buffer, [Fate::Good, Fate::Late(Duration::from_millis(200)), Fate::Good], 1e-9) {
        assert!(outcome.result.is_ok(), "{:?}", outcome.result);
        assert_eq!(outcome.rounds, 1);
    }
}

#[test]
fn a_rank_that_is_later_than_the_timeout_is_named_and_finds_no_peers() {
    let outcomes = construct(buffer, [Fate::Good, Fate::Late(LATE), Fate::Good], 1.3);
    for rank in [0, 2] {
        // Whichever gives up first tells the other.
        let text = outcomes[rank].error();
        assert!(text.contains("waited 1.3 s for rank 1 to map all memory"), "{text}");
        assert!(outcomes[rank].took < LATE, "{:?}", outcomes[rank].took);
    }
    assert!(outcomes[1].error().contains("cannot map the memory of rank"), "{}", outcomes[1].error());
    assert!(outcomes.iter().all(|outcome| outcome.rounds == 1), "nobody waits in the transport");
}

#[test]
fn a_rank_that_is_interrupted_waits_no_longer_and_neither_do_its_peers() {
    let outcomes = construct(buffer, [Fate::Interrupted, Fate::Late(LATE), Fate::Good], 0.0);
    assert!(outcomes[0].error().contains("interrupted while waiting for rank 1"), "{}", outcomes[0].error());
    assert_eq!(outcomes[2].error(), format!("rank 0: {}", outcomes[0].error()));
    assert!(outcomes[0].took < LATE && outcomes[2].took < LATE);
    assert!(outcomes[1].error().contains("cannot map the memory of rank"), "{}", outcomes[1].error());
}

#[test]
fn ranks_do_not_wait_for_one_whose_transport_failed_when_it_had_served_them() {
    let outcomes = construct(buffer, [Fate::Good, Fate::Unserved, Fate::Good], 0.0);
    assert!(outcomes[1].error().contains("the wire is cut"), "{}", outcomes[1].error());
    for outcome in outcomes {
        assert!(outcome.took < PROMPTLY, "{:?}", outcome.took);
        assert!(outcome.result.is_err());
    }
}

/// What the error says of who gave up, and why.
fn assert_names_rank_0(error: &Error) {
    let Error::Aborted { rank: 0, cause: Cause::Failed, reason } = error.itself() else { panic!("{error:?}") };
    assert_eq!(reason, "interrupted while waiting for rank 1 to map all memory");
}

#[test]
fn who_has_a_buffer_of_which_a_rank_was_interrupted_at_the_end_hears_of_it_at_once() {
    let mut outcomes = construct(buffer, LAST, 0.0);
    assert!(outcomes.remove(0).error().contains("interrupted while waiting for rank 1"));
    for outcome in outcomes {
        let error = outcome.result.unwrap().check().unwrap_err();
        let Error::BufferLost { rank: 0, cause: Cause::Failed, reason } = &error else { panic!("{error:?}") };
        assert_eq!(reason, "interrupted while waiting for rank 1 to map all memory");
        assert!(!error.to_string().contains("reset"), "{error}");
    }
}

#[test]
fn the_buffers_of_ranks_that_were_cleaned_up_may_be_used() {
    let mut outcomes = construct(buffer, [Fate::Good; RANKS], 0.0);
    drop(outcomes.remove(0));
    for outcome in outcomes {
        outcome.result.unwrap().check().unwrap();
    }
}

const LAST: [Fate; RANKS] = [Fate::InterruptedLast, Fate::Late(Duration::from_millis(200)), Fate::Good];

#[test]
fn who_has_a_workspace_of_which_a_rank_was_interrupted_at_the_end_hears_of_it_at_once() {
    let mut outcomes = construct(workspace, LAST, 0.0);
    assert!(outcomes.remove(0).error().contains("interrupted while waiting for rank 1"));
    for outcome in outcomes {
        let (workspace, began) = (outcome.result.unwrap(), Instant::now());
        let (summed, memory) = sum_of_ones(&workspace);
        assert_names_rank_0(&summed.unwrap_err());
        assert!(memory.iter().all(|value| value.is_nan()), "{memory:?}");
        assert_names_rank_0(&workspace.lifecycle().check().unwrap_err());
        assert!(began.elapsed() < PROMPTLY, "it has no timeout");
    }
}
