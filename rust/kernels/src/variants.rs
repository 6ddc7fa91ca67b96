//! The variants of a kernel that a module holds, and what a launch of each may be. The build script passes these
//! numbers on to the CUDA sources.

use std::ffi::CStr;

/// Threads of a warp.
pub const WARP_THREADS: u32 = 32;
/// Threads of a block of `fill`.
pub const FILL_THREADS: u32 = 256;
/// Most threads of a block of a wide MiniMax kernel.
pub const MINIMAX_WIDE_THREADS: u32 = 1024;

/// A MiniMax kernel that keeps its rows in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MinimaxVariant {
    /// Tokens of a block.
    pub tokens: u32,
    /// 16-byte vectors of each row that a thread holds.
    pub vectors: u32,
    /// Most threads of a block.
    pub max_threads: u32,
    /// Blocks of `max_threads` that a multiprocessor must be able to hold, which bounds the registers of a thread.
    pub min_blocks: u32,
    /// The functions' names, for one matrix and for two.
    pub functions: [&'static CStr; 2],
}

/// Sorted by `vectors`, then by `tokens`.
pub const MINIMAX_VARIANTS: [MinimaxVariant; 6] = [
    variant(1, 1, 1024, 1, [c"minimax_rms_t1_v1", c"minimax_rms_qk_t1_v1"]),
    variant(2, 1, 512, 2, [c"minimax_rms_t2_v1", c"minimax_rms_qk_t2_v1"]),
    variant(4, 1, 512, 2, [c"minimax_rms_t4_v1", c"minimax_rms_qk_t4_v1"]),
    variant(8, 1, 512, 2, [c"minimax_rms_t8_v1", c"minimax_rms_qk_t8_v1"]),
    variant(1, 2, 1024, 1, [c"minimax_rms_t1_v2", c"minimax_rms_qk_t1_v2"]),
    variant(4, 2, 512, 2, [c"minimax_rms_t4_v2", c"minimax_rms_qk_t4_v2"]),
];

/// The functions for rows of any width, for one matrix and for two.
pub const MINIMAX_WIDE_FUNCTIONS: [&CStr; 2] = [c"minimax_rms_wide", c"minimax_rms_qk_wide"];

const fn variant(
    tokens: u32,
    vectors: u32,
    max_threads: u32,
    min_blocks: u32,
    functions: [&'static CStr; 2],
) -> MinimaxVariant {
    MinimaxVariant { tokens, vectors, max_threads, min_blocks, functions }
}
