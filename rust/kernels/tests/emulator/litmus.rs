//! The machine itself: that it is as weak as it says where it may be, and not where it must not. And one piece of a kernel,
//! for all that it may be given.

use lamport_rs_kernels::variants::WARP_THREADS;
use lamport_rs_protocol::sentinel::SENTINEL;

use crate::machine::{Kernels, Kind, Limits, Machine};
use crate::memory::Memory;

/// As in `message.cu`.
#[repr(C)]
struct MessageParameters {
    message: u64,
    flag: u64,
    result: u64,
    steps: u32,
    reserved: u32,
}

const STORE_MESSAGE: u32 = 1;
const POLL_FLAG: u32 = 2;
const FENCE: u32 = 4;
const STORE_FLAG: u32 = 8;
const LOAD_MESSAGE: u32 = 16;

/// Grids of a rank, and whether they order the first step ahead of the second.
type Side = (&'static [u32], bool);

const WRITERS: [Side; 3] = [
    (&[STORE_MESSAGE | STORE_FLAG], false),
    (&[STORE_MESSAGE | FENCE | STORE_FLAG], true),
    (&[STORE_MESSAGE, STORE_FLAG], true),
];
const READERS: [Side; 3] = [
    (&[POLL_FLAG | LOAD_MESSAGE], false),
    (&[POLL_FLAG | FENCE | LOAD_MESSAGE], true),
    (&[POLL_FLAG, LOAD_MESSAGE], true),
];
const SEEDS: u64 = 300;

/// Whether the reader, which has seen the flag, has seen the message too; and how long that took.
fn has_seen_message(kernels: &Kernels, writer: &[u32], reader: &[u32], seed: u64) -> (bool, u64) {
    let (message, flag) = (Memory::filled(4, 0), Memory::of_words([SENTINEL].into_iter()));
    let result = Memory::filled(4, 0);
    let limits = Limits { resident_blocks: 4, resident_threads: 1024, tick: 0 };
    let mut machine = Machine::new(2, seed, limits);
    machine.add_memory(message.address(), message.len(), Kind::System, 0, "message");
    machine.add_memory(flag.address(), flag.len(), Kind::System, 0, "flag");
    machine.add_memory(result.address(), result.len(), Kind::Device, 1, "result");
    for (rank, grids) in [writer, reader].into_iter().enumerate() {
        for &steps in grids {
            let (message, flag, result) = (message.address(), flag.address(), result.address());
            let parameters = MessageParameters { message, flag, result, steps, reserved: 0 };
            machine.launch_function(kernels, rank, "message", WARP_THREADS, &parameters);
        }
    }
    machine.run().expect("nobody waits for what does not come");
    match result.words()[0] {
        1 => (false, machine.turns()),
        2 => (true, machine.turns()),
        other => panic!("the reader left {other}"),
    }
}

/// A message is missed in some execution if either side does not order, and in none if both do.
pub fn check_message(kernels: &Kernels) {
    for (writer, writer_orders) in WRITERS {
        for (reader, reader_orders) in READERS {
            let missed = (0..SEEDS).find(|&seed| !has_seen_message(kernels, writer, reader, seed).0);
            let expected = !(writer_orders && reader_orders);
            assert_eq!(missed.is_some(), expected, "writer {writer:?}, reader {reader:?}: missed with {missed:?}");
        }
    }
}

/// A seed repeats a run turn by turn, and another seed makes another.
pub fn check_repetition(kernels: &Kernels) {
    let turns = |seed| has_seen_message(kernels, WRITERS[0].0, READERS[0].0, seed).1;
    assert!((0..SEEDS).all(|seed| turns(seed) == turns(seed)));
    assert!((1..SEEDS).any(|seed| turns(seed) != turns(0)));
}

/// As in `division.cu`.
#[repr(C)]
struct DivisionParameters {
    result: u64,
    fraction_bits: u32,
    reserved: u32,
}

/// Values over a scale are the quotients, for all fractions of bfloat16 and of float16, however much a
/// reciprocal lacks; products would not be. Scales are the quotients by 448.
pub fn check_division(kernels: &Kernels) {
    for fraction_bits in [8, 11] {
        let result = Memory::filled(12, 0xa5);
        let limits = Limits { resident_blocks: 4, resident_threads: 1024, tick: 0 };
        let mut machine = Machine::new(1, 0, limits);
        machine.add_memory(result.address(), result.len(), Kind::Device, 0, "result");
        let parameters = DivisionParameters { result: result.address(), fraction_bits, reserved: 0 };
        machine.launch_function(kernels, 0, "division", WARP_THREADS, &parameters);
        machine.run().expect("nobody waits");
        let [quotients, products, scales] = result.words()[..] else { panic!("the result has three words") };
        assert_eq!(scales, 0, "scales that are not those of `/`");
        assert_eq!(quotients, 0, "quotients that are not those of `/`, of {fraction_bits} bits");
        assert!(products > 0, "products with the reciprocal, of {fraction_bits} bits, are all quotients");
    }
}
