//! Fuzzes both kinds of rendezvous: whoever is at the other end of a connection, and whatever lies in the folder, an
//! exchange ends in the messages of the ranks or in an error: not in a panic, a wait beyond its timeout, a large
//! allocation, an unprintable text, a leak, or a stranger's file.
//!
//! `make fuzz` runs it for minutes, a plain test for seconds. The core's fuzzer says how a failure is repeated, and goes
//! over what the messages have in them.
//!
//! | module | concept |
//! | --- | --- |
//! | `links` | TCP: scripts of the other ends |
//! | `folders` | files |

#[path = "../../../core/tests/fuzz/allocations.rs"]
mod allocations;
mod folders;
mod links;
#[path = "../../../core/tests/fuzz/runner.rs"]
mod runner;

use std::time::Duration;

use lamport_rs::{ErrorKind, Rendezvous};
use proptest::prelude::*;

use self::runner::{Fuzzer, check_text, open_files};

const FUZZER: Fuzzer = Fuzzer { cargo: "-p lamport-rs --test fuzz", worker: "worker" };
/// Cases of each kind in a batch.
const CASES: u32 = 32;
/// Most bytes of a message, as the crate has it.
const MAX_MESSAGE: usize = 64 << 10;
/// Of the largest allocation: a message and its length, with room to grow.
const LARGEST_ALLOCATION: usize = 2 * MAX_MESSAGE + 1024;
const LONGEST_TEXT: usize = 2048;
/// Exchanges in a case.
const EXCHANGES: usize = 2;
/// Of a case in which somebody lies.
const TIMEOUT: Duration = Duration::from_millis(20);
/// Of another: more than any thread is late.
const LONG_TIMEOUT: Duration = Duration::from_secs(10);
/// Of a case in which somebody lies, on a machine that does much else.
const LONGEST: Duration = Duration::from_secs(5);

/// What an honest rank sends in an exchange.
fn message(exchange: usize, rank: usize, length: usize) -> Vec<u8> {
    vec![(10 * exchange + rank + 1) as u8; length]
}

/// Lengths of messages.
fn length() -> impl Strategy<Value = usize> {
    prop_oneof![3 => 0..600_usize, 1 => Just(MAX_MESSAGE)]
}

/// Numbers near which programs go wrong, and any.
fn number() -> impl Strategy<Value = u32> {
    let edges = vec![0, 3, 16, 84, 512, 1 << 16, 1 << 31, u32::MAX - 1];
    prop_oneof![
        4 => (proptest::sample::select(edges), 0..3_u32).prop_map(|(edge, by)| u32::wrapping_add(edge, by)),
        1 => any::<u32>(),
    ]
}

/// Bytes of a text: what people write, what terminals obey, what is none.
fn text() -> impl Strategy<Value = Vec<u8>> {
    let parts = vec!["\u{1b}[2J", "\n", "\0", "\u{202e}", "\u{200b}", "é", "x", "\"", "\\"];
    prop_oneof![
        ".{0,80}".prop_map(String::into_bytes),
        proptest::collection::vec(proptest::sample::select(parts), 0..400)
            .prop_map(|parts| parts.concat().into_bytes()),
        proptest::collection::vec(any::<u8>(), 0..600),
    ]
}

/// What exchanges have brought, each the messages of all ranks, and why there are no more.
type Brought = (Vec<Vec<Vec<u8>>>, Option<String>);

/// What the exchanges of an honest rank bring, up to the first error. After it there is another.
fn exchange(
    rendezvous: &mut dyn Rendezvous,
    (rank, ranks): (usize, usize),
    length: usize,
) -> Result<Brought, TestCaseError> {
    let mut all = vec![];
    for number in 0..EXCHANGES {
        match rendezvous.all_gather(&message(number, rank, length)) {
            Ok(gathered) => {
                prop_assert_eq!(gathered.len(), ranks);
                prop_assert!(gathered.iter().all(|message| message.len() <= MAX_MESSAGE));
                all.push(gathered);
            }
            Err(error) => {
                check_text(&error.to_string(), LONGEST_TEXT)?;
                let kind = error.downcast_ref::<lamport_rs::Error>().map(lamport_rs::Error::kind);
                prop_assert_eq!(kind, Some(ErrorKind::Rendezvous));
                prop_assert!(rendezvous.all_gather(b"").is_err(), "an exchange after one that failed");
                return Ok((all, Some(error.to_string())));
            }
        }
    }
    Ok((all, None))
}

/// Whether all of the exchanges brought what honest ranks send.
fn is_truth(all: &[Vec<Vec<u8>>], ranks: usize, length: usize) -> bool {
    let of = |number| (0..ranks).map(|rank| message(number, rank, length)).collect::<Vec<_>>();
    all.len() == EXCHANGES && all.iter().enumerate().all(|(number, gathered)| *gathered == of(number))
}

/// Runs the cases.
#[test]
#[ignore = "what the test below runs, as a process of its own: a fault may end it"]
fn worker() {
    let folder = folders::Folder::new();
    let files = open_files();
    FUZZER.work(|batch| {
        batch.run(CASES, &links::cases(), links::Case::check);
        batch.run(CASES, &folders::cases(), |case| case.check(&folder));
        assert_eq!(open_files(), files, "descriptors are left open");
    });
}

#[test]
fn whoever_is_at_the_other_end_an_exchange_ends_in_messages_or_in_an_error() {
    FUZZER.supervise();
}
