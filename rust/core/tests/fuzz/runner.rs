//! Batches of cases, in a process of their own: a fault may end it. All is determined by the seed and the batch, which a
//! failure tells.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::{Strategy, TestCaseError};
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use proptest::{prop_assert, prop_assert_eq};

/// Longest case; most take a tenth of a millisecond.
pub const LONGEST: Duration = Duration::from_secs(20);
const AT_BATCH: &str = "at batch ";

/// The batch that runs now, and when its case began, in milliseconds of the fuzzer's time.
static NUMBER: AtomicU64 = AtomicU64::new(0);
static BEGAN: AtomicU64 = AtomicU64::new(0);
/// Panics in it, those among them that somebody catches and makes an error of.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// What a test binary fuzzes.
#[derive(Clone, Copy)]
pub struct Fuzzer {
    /// Cargo's arguments for it.
    pub cargo: &'static str,
    /// Its ignored test, which calls [`Fuzzer::work`].
    pub worker: &'static str,
}

/// Cases in a row, each kind with its own sequence.
pub struct Batch {
    fuzzer: Fuzzer,
    start: Instant,
    kinds: u8,
    cases: u64,
}

impl Batch {
    /// Runs `cases` cases. proptest looks for the simplest that fails.
    pub fn run<S: Strategy>(
        &mut self,
        cases: u32,
        strategy: &S,
        check: impl Fn(&S::Value) -> Result<(), TestCaseError>,
    ) {
        let number = NUMBER.load(Ordering::Relaxed);
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed().to_le_bytes());
        bytes[8..16].copy_from_slice(&number.to_le_bytes());
        bytes[16] = self.kinds;
        self.kinds += 1;
        self.cases += u64::from(cases);
        let config = Config { cases, failure_persistence: None, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
        let outcome = runner.run(strategy, |case| {
            BEGAN.store(self.start.elapsed().as_millis() as u64, Ordering::Relaxed);
            PANICS.store(0, Ordering::Relaxed);
            check(&case)?;
            prop_assert_eq!(PANICS.load(Ordering::Relaxed), 0, "there was a panic");
            Ok(())
        });
        let repeat = self.fuzzer.how_to_repeat(number);
        match outcome {
            Ok(()) => {}
            Err(TestError::Fail(reason, case)) => panic!("{reason}: {case:#?}\n{repeat}"),
            Err(TestError::Abort(reason)) => panic!("{reason}\n{repeat}"),
        }
    }
}

impl Fuzzer {
    /// Runs batches for as long as the environment says, and says on its standard output which it is at.
    pub fn work(self, mut run: impl FnMut(&mut Batch)) {
        let only = number("LAMPORT_RS_FUZZ_BATCH");
        let (start, time) = (Instant::now(), Duration::from_secs(number("LAMPORT_RS_FUZZ_SECONDS").unwrap_or(5)));
        self.watch(start);
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            hook(panic);
        }));
        let mut cases = 0;
        for at in only.unwrap_or(0).. {
            NUMBER.store(at, Ordering::Relaxed);
            println!("{AT_BATCH}{at}");
            let mut batch = Batch { fuzzer: self, start, kinds: 0, cases: 0 };
            run(&mut batch);
            cases += batch.cases;
            if only.is_some() || start.elapsed() >= time {
                break;
            }
        }
        println!("seed {}: {cases} cases in {:?}", seed(), start.elapsed());
    }

    /// Ends the process if a case does not end: no test could fail then.
    fn watch(self, start: Instant) {
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_secs(1));
                let case_began = Duration::from_millis(BEGAN.load(Ordering::Relaxed));
                if start.elapsed().saturating_sub(case_began) > 2 * LONGEST {
                    eprintln!("a case does not end: {}", self.how_to_repeat(NUMBER.load(Ordering::Relaxed)));
                    std::process::abort();
                }
            }
        });
    }

    fn how_to_repeat(self, batch: u64) -> String {
        let (seed, cargo) = (seed(), self.cargo);
        format!("LAMPORT_RS_FUZZ_SEED={seed} LAMPORT_RS_FUZZ_BATCH={batch} cargo test {cargo} repeats it")
    }

    /// Runs the worker in a process of its own. Fails as it does, and says which batch that was.
    pub fn supervise(self) {
        let mut worker = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", self.worker, "--ignored", "--nocapture"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut batch = 0;
        for line in BufReader::new(worker.stdout.take().unwrap()).lines().map_while(Result::ok) {
            match line.strip_prefix(AT_BATCH) {
                Some(at) => batch = at.parse().unwrap(),
                None => println!("{line}"),
            }
        }
        let status = worker.wait().unwrap();
        assert!(status.success(), "the fuzzer ended with {status}; {}", self.how_to_repeat(batch));
    }
}

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is {value:?}, but must be a number")))
}

fn seed() -> u64 {
    number("LAMPORT_RS_FUZZ_SEED").unwrap_or(1)
}

/// Descriptors of this process.
pub fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// An error's text has `most` bytes at most, and all of it can be seen: nothing begins a line or moves a cursor.
pub fn check_text(text: &str, most: usize) -> Result<(), TestCaseError> {
    prop_assert!(text.len() <= most, "an error of {} bytes", text.len());
    let is_seen = |character: &char| character.escape_debug().len() == 1 || "\"'\\".contains(*character);
    prop_assert_eq!(text.chars().find(|character| !is_seen(character)), None, "in {:?}", text);
    Ok(())
}
