//! Fuzzes the exchange: messages of lying peers go through the construction of workspaces and buffers, on the host and
//! on the stand-in's devices, and through the decoders; then peers store what they like into the status pages and
//! the blocks, before this rank's calls and while they run. Whatever it is, it ends in an error or in the memory of
//! honest peers: not in a panic, a wait, a large allocation, an unprintable text, a leak, or a stranger's memory, nor in
//! a number that nobody sent.
//!
//! `make fuzz` runs it for minutes, a plain test for seconds. All is determined by `LAMPORT_RS_FUZZ_SEED` and the batch,
//! which a failure tells; proptest then finds the shortest list of lies that does it. What peers store while a call runs
//! is determined too, but not when: to repeat that may take several runs of the batch.
//!
//! | module | concept |
//! | --- | --- |
//! | `lies` | what may be wrong, and how it is chosen |
//! | `peers` | the transport that tells it |
//! | `pages` | the status pages in which it is told |
//! | `devices` | device memory of the peers |
//! | `case` | one construction, and what must hold |
//! | `calls` | operations beside peers that send what they like |
//! | `results` | what these may come to |
//! | `runner` | batches, seeds, the process in which they run |
//! | `allocations` | the largest allocation of a thread |

mod allocations;
mod calls;
mod case;
#[path = "../../../kernels/tests/emulator/compile.rs"]
#[allow(dead_code, reason = "the emulator's")]
mod compile;
#[path = "../../../kernels/build/constants.rs"]
mod constants;
mod devices;
mod lies;
mod pages;
mod peers;
mod results;
mod runner;
#[path = "../cuda/standin/mod.rs"]
#[allow(dead_code, unused_imports, reason = "other tests'")]
mod standin;

// Where `constants.rs` looks for them.
use lamport_rs_kernels::{parameters, sink, variants};

use self::case::{cases, cases_of_calls};
use self::devices::Devices;
use self::peers::Strangers;
use self::runner::{Fuzzer, open_files};
use self::standin::Kind;

const FUZZER: Fuzzer = Fuzzer { cargo: "-p lamport-rs-core --features cuda --test fuzz", worker: "worker" };
const CASES: u32 = 256;
/// Each takes a hundred times as long.
const CASES_ON_DEVICES: u32 = 64;
const CALLS: u32 = 256;
const CALLS_ON_DEVICES: u32 = 32;

/// Runs the cases.
#[test]
#[ignore = "what the test below runs, as a process of its own: a fault may end it"]
fn worker() {
    let (strangers, devices) = (Strangers::new(), Devices::new());
    // The stand-in has files of its own. The core's pools keep some of its allocations.
    let files = || open_files() as i64 - devices.standin.live(Kind::Memory) - devices.standin.live(Kind::Kernel);
    let at_first = files();
    FUZZER.work(|batch| {
        batch.run(CASES, &cases(false), |case| case.check(&strangers, &devices));
        batch.run(CASES_ON_DEVICES, &cases(true), |case| case.check(&strangers, &devices));
        batch.run(CALLS, &cases_of_calls(false), |case| case.check(&strangers, &devices));
        batch.run(CALLS_ON_DEVICES, &cases_of_calls(true), |case| case.check(&strangers, &devices));
        devices.standin.check_all_is_given_back();
        assert_eq!(files(), at_first, "descriptors are left open");
    });
}

#[test]
fn whatever_peers_send_ends_in_an_error_or_in_their_memory() {
    FUZZER.supervise();
}
