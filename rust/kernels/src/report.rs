//! What kernels and the host tell each other beside parameters: the report, and the control words' copies.

use lamport_rs_protocol::geometry::MAX_WORLD_SIZE;
use lamport_rs_protocol::sentinel::Vector;

/// Kernels that wait count time in units of about a millisecond: a register holds weeks.
pub const TIME_UNIT_BITS: u32 = 20;

/// What kernels tell the host of faults, and what the host tells kernels that wait, in pinned memory.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Bit r: rank r's data had not arrived when the time was up. Bit 16 + r: rank r runs another operation; of the own
    /// rank: a foreign kernel has used the table.
    pub ranks: u32,
    /// What `verify` found: see [`VerifyParameters::result`](crate::parameters::VerifyParameters::result).
    pub verification: u32,
    /// The host's. Bit r: rank r sends nothing more, and what it has sent is here. Kernels that wait for it give up.
    pub ended: u32,
    /// Number of the first call in a row of which this rank sends nothing, with [`SKIPPED_IS_THERE`]; 0 once the host knows.
    pub skipped: u32,
    /// Header of the operation that failed.
    pub operation: Vector,
    /// Header of the operation that has waited for long for a peer's header; its second word is 0 once the host knows.
    pub waiting: Vector,
    /// Headers of the ranks that run another operation, by rank.
    pub peers: [Vector; MAX_WORLD_SIZE],
}

/// Says that [`Report::skipped`] is a number, which has 31 bits.
pub const SKIPPED_IS_THERE: u32 = 1 << 31;
/// Copies of what an operation reads first, and of the mark of one that gave up waiting, with the header of the operation
/// in progress behind them. Every warp reads these words first thing: one copy for many would be a queue. A warp's lanes
/// write them.
pub const CONTROL_COPIES: usize = 32;
/// A line of the cache each.
pub const CONTROL_COPY_BYTES: usize = 128;
/// Where a copy has the mark of a workspace that has failed, in bytes.
pub const MARK_OFFSET: usize = 2 * size_of::<u32>();
