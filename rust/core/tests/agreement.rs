//! What ranks that construct something agree on without a second round, and what becomes of those that do not come so far.

use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use lamport_rs_core::Result;
use lamport_rs_core::memory::host::HostMemory;
use lamport_rs_core::rendezvous::AllGather;
use lamport_rs_core::workspace::buffer::Buffer;

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
    /// Its transport fails.
    Unserved,
}

/// Where ranks meet for one round: any other fails.
struct Meeting {
    barrier: Barrier,
    messages: Mutex<Vec<Vec<u8>>>,
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
        self.fate == Fate::Interrupted
    }
}

/// What a rank got, how many rounds it came to, and after how long.
struct Outcome {
    result: Result<Buffer<HostMemory>>,
    rounds: usize,
    took: Duration,
}

impl Outcome {
    fn error(&self) -> String {
        self.result.as_ref().map(drop).unwrap_err().to_string()
    }
}

fn construct<const N: usize>(fates: [Fate; N], timeout: f64) -> Vec<Outcome> {
    let meeting = Arc::new(Meeting { barrier: Barrier::new(N), messages: Mutex::new(vec![vec![]; N]) });
    let start = |(rank, fate): (usize, Fate)| {
        let mut visitor = Visitor { rank, fate, meeting: meeting.clone(), rounds: 0 };
        std::thread::spawn(move || {
            let began = Instant::now();
            let result = Buffer::create(&HostMemory, rank as i64, N as i64, 5000, timeout, &mut visitor);
            Outcome { result, rounds: visitor.rounds, took: began.elapsed() }
        })
    };
    let threads: Vec<_> = fates.into_iter().enumerate().map(start).collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

#[test]
fn ranks_that_all_have_everything_need_one_round() {
    for outcome in construct([Fate::Good], 1e-9).into_iter().chain(construct([Fate::Good; RANKS], 0.0)) {
        assert!(outcome.result.is_ok(), "{:?}", outcome.result);
        assert_eq!(outcome.rounds, 1);
    }
}

#[test]
fn a_rank_that_is_late_is_waited_for() {
    // Whatever the timeout of an operation.
    for outcome in construct([Fate::Good, Fate::Late(Duration::from_millis(200)), Fate::Good], 1e-9) {
        assert!(outcome.result.is_ok(), "{:?}", outcome.result);
        assert_eq!(outcome.rounds, 1);
    }
}

#[test]
fn a_rank_that_is_later_than_the_timeout_is_named_and_finds_no_peers() {
    let outcomes = construct([Fate::Good, Fate::Late(LATE), Fate::Good], 1.3);
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
    let outcomes = construct([Fate::Interrupted, Fate::Late(LATE), Fate::Good], 0.0);
    assert!(outcomes[0].error().contains("interrupted while waiting for rank 1"), "{}", outcomes[0].error());
    assert_eq!(outcomes[2].error(), format!("rank 0: {}", outcomes[0].error()));
    assert!(outcomes[0].took < LATE && outcomes[2].took < LATE);
    assert!(outcomes[1].error().contains("cannot map the memory of rank"), "{}", outcomes[1].error());
}

#[test]
fn ranks_do_not_wait_for_one_whose_transport_failed_when_it_had_served_them() {
    let outcomes = construct([Fate::Good, Fate::Unserved, Fate::Good], 0.0);
    assert!(outcomes[1].error().contains("the wire is cut"), "{}", outcomes[1].error());
    for outcome in outcomes {
        assert!(outcome.took < PROMPTLY, "{:?}", outcome.took);
        assert!(outcome.result.is_err());
    }
}
