//! The other ends of TCP connections, which send what they like, in pieces, and go when they like.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lamport_rs::{Result, TcpRendezvous};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::{
    Brought, EXCHANGES, LARGEST_ALLOCATION, LONG_TIMEOUT, LONGEST, LONGEST_TEXT, TIMEOUT, allocations, check_text,
    exchange, is_truth, length, message, number, text,
};

const MAGIC: &[u8; 8] = b"LAMPRDV1";
const HELLO_BYTES: usize = 84;
const RUN: &str = "run";

/// What an end does next.
#[derive(Clone, Debug)]
enum Step {
    Send(Vec<u8>),
    /// Hears so many bytes.
    Await(usize),
}

/// What is wrong with the steps of an end. The first number says with which.
#[derive(Clone, Debug)]
enum Lie {
    Byte(usize, usize, u8),
    /// A word: by its place, and its value.
    Number(usize, usize, u32),
    /// It sends so many bytes of it, and then nothing more.
    Cut(usize, usize),
    Replaced(usize, Vec<u8>),
    /// A failure with this text. Its length is told truly, or as this.
    Failure(usize, Vec<u8>, Option<u32>),
    Skipped(usize),
    Twice(usize),
    /// It hears nothing from there on.
    Deaf(usize),
}

/// How an end goes.
#[derive(Clone, Copy, Debug)]
enum End {
    Closed,
    /// What it has not heard by then is an error of the other end.
    Early,
    /// It stays, and says nothing.
    Kept,
}

/// How an end lies, and how it sends.
#[derive(Clone, Debug)]
struct Manner {
    lies: Vec<Lie>,
    /// Bytes of each piece, if it sends in pieces, and milliseconds between them.
    pieces: Option<(usize, u64)>,
    end: End,
}

/// The exchanges of one honest rank.
#[derive(Clone, Debug)]
pub struct Case {
    rank: usize,
    ranks: usize,
    /// Bytes of messages.
    length: usize,
    /// By rank.
    peers: Vec<Manner>,
    /// Others who connect to rank 0: what they say at first.
    strangers: Vec<(Vec<u8>, End)>,
}

/// Tells the other ends that the case is over, also where it ends in a panic.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn lie() -> impl Strategy<Value = Lie> {
    let step = || 0..5_usize;
    let word = select(vec![0, 4, 8, 12, 16]);
    prop_oneof![
        2 => (step(), prop_oneof![0..24_usize, 0..600_usize], any::<u8>())
            .prop_map(|(step, at, value)| Lie::Byte(step, at, value)),
        4 => (step(), word, number()).prop_map(|(step, at, value)| Lie::Number(step, at, value)),
        2 => (step(), prop_oneof![0..90_usize, 0..70_000_usize]).prop_map(|(step, at)| Lie::Cut(step, at)),
        1 => (step(), vec(any::<u8>(), 0..200)).prop_map(|(step, bytes)| Lie::Replaced(step, bytes)),
        3 => (step(), text(), proptest::option::weighted(0.3, number()))
            .prop_map(|(step, text, length)| Lie::Failure(step, text, length)),
        1 => step().prop_map(Lie::Skipped),
        1 => step().prop_map(Lie::Twice),
        1 => step().prop_map(Lie::Deaf),
    ]
}

fn manner() -> impl Strategy<Value = Manner> {
    let pieces = proptest::option::weighted(0.3, (select(vec![1_usize, 2, 3, 50, 5000]), 0..3_u64));
    let end = select(vec![End::Closed, End::Early, End::Kept]);
    let lies = prop_oneof![2 => Just(vec![]), 3 => vec(lie(), 1..3)];
    (lies, pieces, end).prop_map(|(lies, pieces, end)| Manner { lies, pieces, end })
}

pub fn cases() -> impl Strategy<Value = Case> {
    let numbers = (number(), number(), number(), select(vec!["run", "ruin", "", "r\n", "é\u{202e}"]));
    let hello = prop_oneof![
        1 => numbers.prop_map(|(rank, ranks, length, id)| hello_of(rank, ranks, length, id)),
        2 => (0..4_u32, 2..4_u32, 2..5_u32).prop_map(|(rank, ranks, length)| hello_of(rank, ranks, length, RUN)),
    ];
    let said = prop_oneof![
        2 => hello,
        1 => vec(any::<u8>(), 0..200),
        1 => (0..9_usize).prop_map(|length| MAGIC[..length.min(8)].to_vec()),
    ];
    let stranger = (said, select(vec![End::Closed, End::Early, End::Kept]));
    let strangers = prop_oneof![1 => Just(vec![]), 1 => vec(stranger, 0..4)];
    (2..4_usize, 0..3_usize, length(), vec(manner(), 3), strangers).prop_map(
        |(ranks, rank, length, peers, strangers)| Case { rank: rank % ranks, ranks, length, peers, strangers },
    )
}

fn hello_of(rank: u32, ranks: u32, length: u32, id: &str) -> Vec<u8> {
    let numbers = [rank, ranks, length].map(u32::to_le_bytes).concat();
    let mut bytes = [MAGIC.as_slice(), &numbers, id.as_bytes()].concat();
    bytes.resize(HELLO_BYTES, 0);
    bytes
}

fn frame(content: &[u8]) -> Vec<u8> {
    [&(content.len() as u32).to_le_bytes(), content].concat()
}

impl Case {
    /// What an honest `rank` does: another rank to rank 0, or rank 0 to the rank of this case.
    fn honest(&self, rank: usize) -> Vec<Step> {
        let length = 4 + self.length;
        let all = |number| (0..self.ranks).flat_map(|rank| frame(&message(number, rank, self.length))).collect();
        if rank > 0 {
            let hello = hello_of(rank as u32, self.ranks as u32, RUN.len() as u32, RUN);
            let exchange =
                |number| [Step::Send(frame(&message(number, rank, self.length))), Step::Await(self.ranks * length)];
            let first = [Step::Send(hello), Step::Await(4 + MAGIC.len())];
            return first.into_iter().chain((0..EXCHANGES).flat_map(exchange)).collect();
        }
        let first = [Step::Await(HELLO_BYTES), Step::Send(frame(MAGIC))];
        let exchange = |number| [Step::Await(length), Step::Send(all(number))];
        first.into_iter().chain((0..EXCHANGES).flat_map(exchange)).collect()
    }

    /// The ranks at the other ends.
    fn others(&self) -> std::ops::Range<usize> {
        if self.rank == 0 { 1..self.ranks } else { 0..1 }
    }

    /// Whether a stranger says that it is one of the ranks.
    fn is_a_rank(&self, said: &[u8]) -> bool {
        (1..self.ranks).any(|rank| said.starts_with(&self.hello_without_padding(rank)) && said.len() >= HELLO_BYTES)
    }

    fn hello_without_padding(&self, rank: usize) -> Vec<u8> {
        hello_of(rank as u32, self.ranks as u32, RUN.len() as u32, RUN)[..20 + RUN.len()].to_vec()
    }

    fn is_true(&self) -> bool {
        self.others().all(|rank| self.peers[rank].lies.is_empty())
            && (self.rank > 0 || !self.strangers.iter().any(|(said, _)| self.is_a_rank(said)))
    }

    fn timeout(&self) -> Duration {
        if self.is_true() { LONG_TIMEOUT } else { TIMEOUT }
    }

    pub fn check(&self) -> std::result::Result<(), TestCaseError> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let is_over = AtomicBool::new(false);
        let began = Instant::now();
        let (outcome, largest) = std::thread::scope(|scope| {
            let is_over = &is_over;
            let rank_0 = if self.rank == 0 {
                Some(listener)
            } else {
                scope.spawn(move || self.answer(&listener, is_over));
                None
            };
            if self.rank == 0 {
                for (said, end) in &self.strangers {
                    let steps = vec![Step::Send(said.clone())];
                    scope.spawn(move || self.connect(address, steps, None, *end, is_over));
                }
                for rank in self.others() {
                    let Manner { pieces, end, .. } = self.peers[rank];
                    scope.spawn(move || self.connect(address, self.steps(rank), pieces, end, is_over));
                }
            }
            let _over = Over(is_over);
            allocations::largest_of(|| self.run(rank_0, address))
        });
        let took = began.elapsed();
        prop_assert!(self.is_true() || took < LONGEST, "took {took:?}");
        prop_assert!(largest <= LARGEST_ALLOCATION, "allocated {largest} bytes at once");
        let (all, error) = outcome?;
        prop_assert!(!self.is_true() || is_truth(&all, self.ranks, self.length), "the truth is refused: {error:?}");
        Ok(())
    }

    /// The honest rank.
    fn run(&self, listener: Option<TcpListener>, address: SocketAddr) -> std::result::Result<Brought, TestCaseError> {
        let met: Result<_> = match listener {
            Some(listener) => TcpRendezvous::listen(listener, RUN, self.ranks, self.timeout()),
            None => TcpRendezvous::meet(address, RUN, self.rank, self.ranks, self.timeout()),
        };
        match met {
            Ok(mut rendezvous) => exchange(&mut rendezvous, (self.rank, self.ranks), self.length),
            Err(error) => {
                check_text(&error.to_string(), LONGEST_TEXT)?;
                Ok((vec![], Some(error.to_string())))
            }
        }
    }

    /// What the end of `rank` does.
    fn steps(&self, rank: usize) -> Vec<Step> {
        let mut steps = self.honest(rank);
        for lie in &self.peers[rank].lies {
            tell(lie, &mut steps);
        }
        steps
    }

    fn answer(&self, listener: &TcpListener, is_over: &AtomicBool) {
        listener.set_nonblocking(true).unwrap();
        while !is_over.load(Ordering::Relaxed) {
            let Ok((link, _)) = listener.accept() else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            link.set_nonblocking(false).unwrap();
            let Manner { pieces, end, .. } = self.peers[0];
            return self.act(link, self.steps(0), pieces, end, is_over);
        }
    }

    fn connect(
        &self,
        address: SocketAddr,
        steps: Vec<Step>,
        pieces: Option<(usize, u64)>,
        end: End,
        is_over: &AtomicBool,
    ) {
        if let Ok(link) = TcpStream::connect(address) {
            self.act(link, steps, pieces, end, is_over);
        }
    }

    /// Sends, in pieces if so. Whether it was all sent.
    fn send(&self, link: &mut TcpStream, bytes: &[u8], pieces: Option<(usize, u64)>, is_over: &AtomicBool) -> bool {
        let Some((size, pause)) = pieces else { return link.write_all(bytes).is_ok() };
        // A long message would take minutes. If the other end is to give up, it may.
        let most = if self.is_true() { 100 * size } else { bytes.len() };
        let (begin, rest) = bytes.split_at(bytes.len().min(most));
        for piece in begin.chunks(size) {
            if is_over.load(Ordering::Relaxed) || link.write_all(piece).is_err() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(pause));
        }
        link.write_all(rest).is_ok()
    }

    fn act(&self, mut link: TcpStream, steps: Vec<Step>, pieces: Option<(usize, u64)>, end: End, is_over: &AtomicBool) {
        link.set_nodelay(true).unwrap();
        link.set_read_timeout(Some(self.timeout())).unwrap();
        link.set_write_timeout(Some(self.timeout())).unwrap();
        for step in steps {
            let done = match step {
                Step::Send(bytes) => self.send(&mut link, &bytes, pieces, is_over),
                Step::Await(length) => std::io::copy(&mut (&link).take(length as u64), &mut std::io::sink()).is_ok(),
            };
            if !done {
                break;
            }
        }
        match end {
            // It hears the rest.
            End::Closed => {
                let _ = link.shutdown(std::net::Shutdown::Write);
                let _ = std::io::copy(&mut link, &mut std::io::sink());
            }
            End::Early => {}
            End::Kept => {
                while !is_over.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }
}

fn tell(lie: &Lie, steps: &mut Vec<Step>) {
    let place_of = |step: usize| step % steps.len();
    match lie {
        Lie::Byte(step, at, value) => set(steps, *step, *at, &[*value]),
        Lie::Number(step, at, value) => set(steps, *step, *at, &value.to_le_bytes()),
        Lie::Cut(step, at) => {
            let place = place_of(*step);
            steps.truncate(place + 1);
            if let Step::Send(bytes) = &mut steps[place] {
                bytes.truncate(*at);
            }
        }
        Lie::Replaced(step, bytes) => {
            let place = place_of(*step);
            steps[place] = Step::Send(bytes.clone());
        }
        Lie::Failure(step, text, length) => {
            let place = place_of(*step);
            let length = length.unwrap_or(text.len() as u32).to_le_bytes();
            steps[place] = Step::Send([u32::MAX.to_le_bytes().as_slice(), &length, text].concat());
        }
        Lie::Skipped(step) => {
            let place = place_of(*step);
            steps[place] = Step::Send(vec![]);
        }
        Lie::Twice(step) => {
            let place = place_of(*step);
            steps.insert(place, steps[place].clone());
        }
        Lie::Deaf(step) => {
            let place = place_of(*step);
            for step in &mut steps[place..] {
                if matches!(step, Step::Await(_)) {
                    *step = Step::Send(vec![]);
                }
            }
        }
    }
}

/// In the first bytes that are sent from that step on.
fn set(steps: &mut [Step], from: usize, at: usize, bytes: &[u8]) {
    let from = from % steps.len();
    let sent = steps[from..].iter_mut().find_map(|step| if let Step::Send(bytes) = step { Some(bytes) } else { None });
    if let Some(place) = sent.and_then(|sent| sent.get_mut(at..at + bytes.len())) {
        place.copy_from_slice(bytes);
    }
}
