//! The variants of a kernel, and how large a launch of each may be. The build script passes these numbers on to the
//! CUDA sources.

use crate::catalogue::AllReduceMethod;

/// Threads of a warp.
pub const WARP_THREADS: u32 = 32;
/// Threads of a block of `fill`.
pub const FILL_THREADS: u32 = 256;

/// Blocks of every operation's grid that have no data, but speak for the rank.
pub const SPEAKING_BLOCKS: u32 = 1;

/// Bounds of a launch, which in turn bound the registers of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LaunchBounds {
    /// Most threads of a block.
    pub max_threads: u32,
    /// Blocks of `max_threads` that a multiprocessor must be able to hold.
    pub min_blocks: u32,
}

impl LaunchBounds {
    const fn new(max_threads: u32, min_blocks: u32) -> Self {
        Self { max_threads, min_blocks }
    }

    /// Registers of a thread that leave room for `min_blocks` blocks of `max_threads`, of the 65536 of a
    /// multiprocessor. They are dealt out in eights, 255 at most.
    pub const fn max_registers(&self) -> u32 {
        let registers = 65536 / (self.max_threads * self.min_blocks) / 8 * 8;
        if registers > 255 { 255 } else { registers }
    }

    /// Threads that a multiprocessor holds at once.
    pub const fn resident_threads(&self) -> u32 {
        self.max_threads * self.min_blocks
    }
}

/// Group sizes that the kernels which exchange vectors are compiled for. A thread keeps a vector of each rank in
/// registers, so a kernel for many ranks is slow for few.
pub const CAPACITIES: [u32; 4] = [2, 4, 8, 16];

/// Those of them that the two-shot kernel in phases is compiled for. With one peer each warp has the same to do as in the
/// other kernel; with fifteen a block of a warp for each leaves a thread too few registers.
pub const PHASED_CAPACITIES: [u32; 2] = [4, 8];

/// The smallest capacity that holds the group. Kernels rely on it: they take the first half of the ranks, and one more, to
/// be there.
pub const fn capacity(world_size: u32) -> u32 {
    let power = world_size.next_power_of_two();
    if power < CAPACITIES[0] { CAPACITIES[0] } else { power }
}

/// Bounds of the all-reduce kernels.
pub const fn all_reduce_bounds(method: AllReduceMethod, capacity: u32) -> LaunchBounds {
    match (method, capacity) {
        // Large tensors: all the threads that a multiprocessor holds.
        (AllReduceMethod::TwoShot, 2) => LaunchBounds::new(512, 4),
        (AllReduceMethod::OneShot, 2) => LaunchBounds::new(512, 3),
        (_, 4) => LaunchBounds::new(512, 2),
        (_, 8) => LaunchBounds::new(512, 1),
        _ => LaunchBounds::new(256, 1),
    }
}

/// Bounds of the all-reduce kernels with RMSNorm, of whose rows a thread keeps so many `vectors`. A wider row takes more of
/// them, or is not kept in registers.
pub const fn rms_norm_bounds(capacity: u32, vectors: u32) -> LaunchBounds {
    match (capacity, vectors) {
        (2 | 4, 0 | 1) => LaunchBounds::new(1024, 1),
        (2 | 4 | 8, _) => LaunchBounds::new(512, 1),
        _ => LaunchBounds::new(256, 1),
    }
}

/// Bounds of the kernels that finalise experts: what a thread has in flight takes half of the registers of a thread of 512.
pub const fn moe_finalize_bounds(capacity: u32) -> LaunchBounds {
    match capacity {
        2 | 4 | 8 => LaunchBounds::new(512, 1),
        _ => LaunchBounds::new(256, 1),
    }
}

/// Columns of 16 bits that a row may have and be kept in registers, by a vector a thread, in groups of every size.
pub const HELD_COLUMNS: usize = 8 * rms_norm_bounds(CAPACITIES[CAPACITIES.len() - 1], 1).max_threads as usize;

/// How a MiniMax kernel deals its rows out to threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MinimaxVariant {
    /// Tokens of a block.
    pub tokens: u32,
    /// 16-byte vectors of each row that a thread keeps in registers; 0: none, the row is read twice and may be of any
    /// width.
    pub vectors: u32,
    /// Bounds of the launch.
    pub bounds: LaunchBounds,
}

/// Rows of any width.
pub const MINIMAX_WIDE: MinimaxVariant = variant(1, 0, 1024, 1);

/// Sorted by `vectors`, then by `tokens`, the wide one last.
pub const MINIMAX_VARIANTS: [MinimaxVariant; 7] = [
    variant(1, 1, 1024, 1),
    variant(2, 1, 512, 2),
    variant(4, 1, 512, 2),
    variant(8, 1, 512, 2),
    variant(1, 2, 1024, 1),
    variant(4, 2, 512, 1),
    MINIMAX_WIDE,
];

const fn variant(tokens: u32, vectors: u32, max_threads: u32, min_blocks: u32) -> MinimaxVariant {
    MinimaxVariant { tokens, vectors, bounds: LaunchBounds::new(max_threads, min_blocks) }
}
