//! Fuzzes the exchange: messages of lying peers go through the construction of workspaces and buffers, and through the
//! decoders. Whatever they are, they end in an error or in the memory of honest peers: not in a panic, a wait, a large
//! allocation, an unprintable text, a leak, or a stranger's memory.
//!
//! `make fuzz` runs it for ten minutes, a plain test for seconds. All is determined by `LAMPORT_RS_FUZZ_SEED` and the
//! batch, which a failure tells; proptest then finds the shortest list of lies that does it.
//!
//! | module | concept |
//! | --- | --- |
//! | `lies` | what may be wrong, and how it is chosen |
//! | `peers` | the transport that tells it |
//! | `allocations` | the largest allocation of a thread |

mod allocations;
mod lies;
mod peers;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lamport_rs_core::error::Result;
use lamport_rs_core::memory::host::HostMemory;
use lamport_rs_core::workspace::Settings;
use lamport_rs_core::workspace::buffer::Buffer;
use lamport_rs_core::workspace::host::HostWorkspace;
use lamport_rs_protocol::geometry::Geometry;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

use self::lies::{Lie, Told, lie, told};
use self::peers::{Peers, Strangers};

const COMM_SIZE: usize = 4096;
const CASES_PER_BATCH: u32 = 256;
/// How long peers are waited for, in seconds.
const TIMEOUT: f64 = 1.0;
/// Longest case; most take a tenth of a millisecond.
const LONGEST: Duration = Duration::from_secs(20);
/// Bytes of the largest allocation, and of the longest error: more than the fill of a block takes.
const LARGEST_ALLOCATION: usize = 128 << 10;
const LONGEST_TEXT: usize = 32 << 10;

/// One construction, and what the peers of one rank lie in.
#[derive(Clone, Debug)]
struct Case {
    workspace: bool,
    rank: usize,
    ranks: usize,
    /// Step, peer and lie.
    lies: Vec<(usize, usize, Lie)>,
    /// What the peers' pages say.
    told: Told,
}

fn case() -> impl Strategy<Value = Case> {
    let lies = vec((prop_oneof![3 => Just(0_usize), 1 => Just(1)], 0..4_usize, lie()), 0..4);
    (any::<bool>(), 2..=4_usize, 0..4_usize, lies, told()).prop_map(|(workspace, ranks, rank, lies, told)| Case {
        workspace,
        rank: rank % ranks,
        ranks,
        lies,
        told,
    })
}

/// What one rank has, in the end: kept, for its memory to stay.
enum Made {
    Workspace(Box<HostWorkspace>),
    Buffer(Buffer<HostMemory>),
}

impl Made {
    fn addresses(&self, ranks: usize) -> Vec<u64> {
        match self {
            Self::Workspace(workspace) => {
                workspace.table()[2 * ranks..3 * ranks].iter().map(|address| *address as u64).collect()
            }
            Self::Buffer(buffer) => buffer.addresses(),
        }
    }
}

impl Case {
    /// Bytes of a block.
    fn bytes(&self) -> usize {
        let geometry = Geometry::new(self.ranks as i64, COMM_SIZE as i64).unwrap();
        if self.workspace { geometry.used_bytes() } else { COMM_SIZE }
    }

    fn construct(&self, peers: &mut Peers<'_>) -> Result<Made> {
        let (rank, world_size, comm_size) = (self.rank as i64, self.ranks as i64, COMM_SIZE as i64);
        if self.workspace {
            let settings = Settings { rank, world_size, comm_size, timeout: TIMEOUT, two_shot_from: None };
            return HostWorkspace::create(&settings, peers).map(Box::new).map(Made::Workspace);
        }
        Buffer::create(&HostMemory, rank, world_size, comm_size, TIMEOUT, peers).map(Made::Buffer)
    }

    fn check(&self, strangers: &Strangers) -> std::result::Result<(), TestCaseError> {
        let started = Instant::now();
        let mut peers = Peers::new(self.rank, self.ranks, self.bytes(), (&self.lies, self.told), strangers);
        let (outcome, largest) = allocations::largest_of(|| self.construct(&mut peers));
        prop_assert!(started.elapsed() < LONGEST, "took {:?}", started.elapsed());
        prop_assert!(largest <= LARGEST_ALLOCATION, "allocated {largest} bytes at once");
        prop_assert!(strangers.is_untouched(), "a stranger's file was written to");
        match outcome {
            Err(error) => {
                prop_assert!(!self.lies.is_empty(), "the truth is refused: {error}");
                let text = error.to_string();
                prop_assert!(text.len() <= LONGEST_TEXT, "an error of {} bytes", text.len());
                prop_assert!(!text.chars().any(char::is_control), "{text:?}");
            }
            Ok(made) => self.check_memory(&made, &peers)?,
        }
        Ok(())
    }

    /// Every peer has a block of its own: one that a peer made, from its first word to its last. (Peers that lie together
    /// can exchange theirs.) Read as a file, where what is not there is an error and not a fault.
    fn check_memory(&self, made: &Made, peers: &Peers<'_>) -> std::result::Result<(), TestCaseError> {
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        let mut found = vec![];
        for (peer, address) in made.addresses(self.ranks).into_iter().enumerate().filter(|(peer, _)| *peer != self.rank)
        {
            let [mut first, mut last] = [[0; 4]; 2];
            let read = memory.read_exact_at(&mut first, address);
            let read = read.and(memory.read_exact_at(&mut last, address + self.bytes() as u64 - 4));
            prop_assert!(read.is_ok(), "the block of rank {peer} is not there: {read:?}");
            let word = u32::from_le_bytes(first);
            prop_assert!(first == last && peers.is_tag(word), "{first:x?} to {last:x?} in the block of rank {peer}");
            prop_assert!(!found.contains(&word), "the block of rank {peer} is another's too");
            found.push(word);
        }
        Ok(())
    }
}

/// When the case began that runs now, in milliseconds of the fuzzer's time.
static BEGAN: AtomicU64 = AtomicU64::new(0);

/// Ends the process if a case does not end: no test could fail then.
fn watch(start: Instant, seed: u64, batch: &'static AtomicU64) {
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let case_began = Duration::from_millis(BEGAN.load(Ordering::Relaxed));
            if start.elapsed().saturating_sub(case_began) > 2 * LONGEST {
                eprintln!("a case does not end: {}", how_to_repeat(seed, batch.load(Ordering::Relaxed)));
                std::process::abort();
            }
        }
    });
}

fn how_to_repeat(seed: u64, batch: u64) -> String {
    format!(
        "LAMPORT_RS_FUZZ_SEED={seed} LAMPORT_RS_FUZZ_BATCH={batch} cargo test -p lamport-rs-core --test fuzz repeats it"
    )
}

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is {value:?}, but must be a number")))
}

fn seed() -> u64 {
    number("LAMPORT_RS_FUZZ_SEED").unwrap_or(1)
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn run_batch(seed: u64, batch: u64, start: Instant, strangers: &Strangers) {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&batch.to_le_bytes());
    let config = Config { cases: CASES_PER_BATCH, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let outcome = runner.run(&case(), |case| {
        BEGAN.store(start.elapsed().as_millis() as u64, Ordering::Relaxed);
        case.check(strangers)
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(reason, case)) => panic!("{reason}: {case:#?}\n{}", how_to_repeat(seed, batch)),
        Err(TestError::Abort(reason)) => panic!("{reason}\n{}", how_to_repeat(seed, batch)),
    }
}

/// Runs the cases, and says on its standard output which batch it is at.
#[test]
#[ignore = "what the test below runs, as a process of its own: a fault may end it"]
fn worker() {
    static BATCH: AtomicU64 = AtomicU64::new(0);
    let (seed, only) = (seed(), number("LAMPORT_RS_FUZZ_BATCH"));
    let (start, time) = (Instant::now(), Duration::from_secs(number("LAMPORT_RS_FUZZ_SECONDS").unwrap_or(5)));
    watch(start, seed, &BATCH);
    let strangers = Strangers::new();
    let files = open_files();
    let mut batch = only.unwrap_or(0);
    loop {
        BATCH.store(batch, Ordering::Relaxed);
        println!("{AT_BATCH}{batch}");
        run_batch(seed, batch, start, &strangers);
        assert_eq!(open_files(), files, "descriptors are left open; {}", how_to_repeat(seed, batch));
        batch += 1;
        if only.is_some() || start.elapsed() >= time {
            break;
        }
    }
    let cases = (batch - only.unwrap_or(0)) * u64::from(CASES_PER_BATCH);
    println!("seed {seed}: {cases} cases in {:?}", start.elapsed());
}

const AT_BATCH: &str = "at batch ";

#[test]
fn whatever_peers_send_ends_in_an_error_or_in_their_memory() {
    let mut worker = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "worker", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut batch = 0;
    for line in BufReader::new(worker.stdout.take().unwrap()).lines().map_while(std::result::Result::ok) {
        match line.strip_prefix(AT_BATCH) {
            Some(at) => batch = at.parse().unwrap(),
            None => println!("{line}"),
        }
    }
    let status = worker.wait().unwrap();
    assert!(status.success(), "the fuzzer ended with {status}; {}", how_to_repeat(seed(), batch));
}
