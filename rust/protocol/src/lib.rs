//! The Lamport protocol, free of Python, of CUDA and of any operating system.
//!
//! It is public for its siblings of the same release, and any release may change its API: engines in Rust use the crate
//! `lamport-rs`.
//!
//! Every rank owns a block of memory that its peers can write. A block has three *slots*, used in turn, and a slot has
//! one *region* per rank. A sender stores its data straight into its own region of each peer's slot; a reader polls its
//! own slot until no word is the [sentinel](sentinel). The data is its own flag, so there is no barrier.
//!
//! | module | concept |
//! | --- | --- |
//! | [`sentinel`] | the word that means "nothing has arrived here yet", and the rewriting of payloads equal to it |
//! | [`geometry`] | slots, regions, limits, and how large a slot must be for a given job |
//! | [`table`] | the pointer table and the control words that kernels read: an ABI |
//! | [`algorithm`] | one-shot and two-shot reduction, and the room each takes |
//! | [`memory`] | what the protocol asks of the memory under it: word-sized relaxed loads and stores, two fences |
//! | [`exchange`] | one operation: push, clear, poll, rotate, with the memory-order argument |
//! | [`header`] | what ranks say of an operation ahead of its data, so that those that differ notice |
//! | `section` | how one operation pushes and polls, and whom it names when it gives up |
//! | [`two_shot`] | one operation in which every rank sums a shard: why the same argument covers it |
//! | [`parking`] | how a rank that waits announces that it sleeps, and why no push leaves it asleep |
//! | [`construction`] | what ranks tell each other while they construct |
//! | [`notices`] | how a rank tells its peers that it has ended, and how all reset |
//! | [`cancellation`] | how an abort ends what waits for that |
//! | [`life`] | how peers hear that a process ends |
//!
//! The same [`exchange::exchange`] and [`two_shot::exchange_two_shot`] run over shared memory between processes and under
//! the model checkers of `tests/`; the CUDA kernels restate it over `relaxed.sys` accesses.

#![forbid(unsafe_code)]

pub mod algorithm;
pub mod cancellation;
pub mod construction;
pub mod exchange;
pub mod geometry;
pub mod header;
pub mod life;
pub mod memory;
pub mod notices;
pub mod parking;
pub mod rank_set;
mod section;
pub mod sentinel;
pub mod table;
pub mod two_shot;
