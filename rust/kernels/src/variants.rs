//! The variants of a kernel, and how large a launch of each may be. The build script passes these numbers on to the
//! CUDA sources.

/// Threads of a warp.
pub const WARP_THREADS: u32 = 32;
/// Threads of a block of `fill`.
pub const FILL_THREADS: u32 = 256;

/// How a MiniMax kernel deals its rows out to threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MinimaxVariant {
    /// Tokens of a block.
    pub tokens: u32,
    /// 16-byte vectors of each row that a thread keeps in registers; 0: none, the row is read twice and may be of any
    /// width.
    pub vectors: u32,
    /// Most threads of a block.
    pub max_threads: u32,
    /// Blocks of `max_threads` that a multiprocessor must be able to hold, which bounds the registers of a thread.
    pub min_blocks: u32,
}

impl MinimaxVariant {
    /// Registers of a thread that leave room for `min_blocks` blocks of `max_threads`, of the 65536 of a
    /// multiprocessor. They are dealt out in eights.
    pub const fn max_registers(&self) -> u32 {
        65536 / (self.max_threads * self.min_blocks) / 8 * 8
    }
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
    MinimaxVariant { tokens, vectors, max_threads, min_blocks }
}
