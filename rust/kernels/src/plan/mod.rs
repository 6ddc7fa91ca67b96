//! Launch plans: pure functions from an operation's shape and the device to grid, block and module.

pub mod all_reduce;
pub mod minimax;
pub mod one_shot_rows;
pub mod rms_norm;

use lamport_rs_protocol::sentinel::VECTOR_BYTES;
use thiserror::Error;

use crate::catalogue::ModuleKey;
use crate::dtype::Dtype;
use crate::variants::{FILL_THREADS, LaunchBounds, SPEAKING_BLOCKS, WARP_THREADS};

/// What a plan needs to know of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Threads that a multiprocessor holds.
    pub threads_per_multiprocessor: u32,
    /// Blocks that a multiprocessor holds.
    pub blocks_per_multiprocessor: u32,
}

impl Device {
    /// Blocks of `threads` threads that the device holds at once, of a kernel that was compiled for `bounds`.
    pub fn resident_blocks(&self, bounds: LaunchBounds, threads: u32) -> u32 {
        let most_threads = bounds.resident_threads().min(self.threads_per_multiprocessor);
        self.multiprocessors * (most_threads / threads).clamp(1, self.blocks_per_multiprocessor)
    }

    /// Whether launches may ask for programmatic dependent launch. Every kernel is safe with it.
    pub const fn has_dependent_launch(&self) -> bool {
        self.compute_capability.0 >= 9
    }
}

/// How to launch a kernel. Grid and block are one-dimensional; no kernel takes dynamic shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchPlan {
    /// The module, and with it the function.
    pub module: ModuleKey,
    /// Blocks.
    pub grid: u32,
    /// Threads of a block.
    pub block: u32,
    /// Whether to set the attribute of programmatic stream serialisation.
    pub dependent_launch: bool,
}

/// Why there is no plan.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// Nothing to do, or more than the kernels can count.
    #[error("the operation has {tokens} tokens, but must have between 1 and {most}")]
    Tokens {
        /// How many there are.
        tokens: u32,
        /// How many there may be.
        most: u32,
    },
    /// Likewise, in bytes.
    #[error("the tensor has {bytes} bytes, but must have between 1 and {most}")]
    Bytes {
        /// How many there are.
        bytes: usize,
        /// How many there may be.
        most: usize,
    },
    /// Fewer rows than two-shot needs.
    #[error("two-shot needs a row for every rank, but there are {tokens} rows for {world_size} ranks")]
    Rows {
        /// How many rows there are.
        tokens: usize,
        /// How many ranks.
        world_size: usize,
    },
    /// Rows that are not whole vectors.
    #[error("a row of {width} elements of {dtype} is not a positive multiple of 16 bytes")]
    Width {
        /// Elements of a row.
        width: u32,
        /// Their type.
        dtype: &'static str,
    },
    /// A choice of tokens per block that the width does not allow, or that no variant has.
    #[error("{tokens} tokens per block are not possible for rows of this width; choose one of {possible:?}")]
    TokensPerBlock {
        /// What was asked for.
        tokens: u32,
        /// What there is.
        possible: Vec<u32>,
    },
    /// Rows that a quantiser does not take.
    #[error("{format} takes rows of float16 or bfloat16 and a multiple of {multiple} columns, not {width} of {dtype}")]
    Quantised {
        /// Elements of a row.
        width: usize,
        /// Their type.
        dtype: &'static str,
        /// The quantiser.
        format: &'static str,
        /// Of columns.
        multiple: usize,
    },
    /// Rows that have kernels of 16 bits and one shot only.
    #[error("{operation} takes rows of float16 or bfloat16, in one shot, not {dtype} in {algorithm}")]
    OneShotRows {
        /// What was to be done with them.
        operation: &'static str,
        /// Their type.
        dtype: &'static str,
        /// How they were to be summed.
        algorithm: &'static str,
    },
    /// A weight dtype that the dtype does not come with.
    #[error("a {dtype} operation takes weights of {dtype} or float32, not {weight}")]
    Weight {
        /// Of inputs and outputs.
        dtype: &'static str,
        /// Of the weights.
        weight: &'static str,
    },
}

/// Blocks that a reduction has at least, be it that most of them have nothing to reduce: they clear what the operation
/// before left. With the blocks that 8 KiB need, that takes 45 us after a sum of 4 MiB; with these 7.
/// Measured on two H100: with up to 66 blocks, sums of up to 32 KiB take 0.03 us more at most, and the smallest less.
pub const MIN_BLOCKS: u32 = 32;

/// The grid of a reduction whose data makes work for `blocks` blocks, where the device holds `resident` at once: all blocks
/// run at once, so that none waits for a peer's block that waits for room.
fn reduction_grid(blocks: u32, resident: u32) -> u32 {
    (blocks + SPEAKING_BLOCKS).max(MIN_BLOCKS).min(resident).max(1 + SPEAKING_BLOCKS)
}

/// Bytes of a tensor that one operation can reduce: more would overflow the kernels' 32-bit offsets within a region.
pub const MAX_BYTES: usize = 1 << 30;

/// Checks the size of a tensor that travels.
fn check_bytes(bytes: usize) -> Result<(), PlanError> {
    if (1..=MAX_BYTES).contains(&bytes) { Ok(()) } else { Err(PlanError::Bytes { bytes, most: MAX_BYTES }) }
}

/// Checks that weights of dtype `weight` come with rows of `dtype`.
fn check_weight(dtype: Dtype, weight: Dtype) -> Result<(), PlanError> {
    if weight == dtype || weight == Dtype::Float32 {
        return Ok(());
    }
    Err(PlanError::Weight { dtype: dtype.name(), weight: weight.name() })
}

/// The 16-byte vectors of a row of `width` elements.
fn row_vectors(width: usize, dtype: Dtype) -> Result<u32, PlanError> {
    let bytes = width * dtype.size();
    if bytes == 0 || !bytes.is_multiple_of(VECTOR_BYTES) {
        return Err(PlanError::Width { width: width as u32, dtype: dtype.name() });
    }
    Ok((bytes / VECTOR_BYTES) as u32)
}

/// Fills `words` words with the sentinel.
pub fn fill(words: u64, device: Device) -> LaunchPlan {
    // A thread writes a vector at a time; four blocks a multiprocessor keep its store path busy.
    let blocks = words.div_ceil(4 * u64::from(FILL_THREADS));
    let grid = blocks.clamp(1, 4 * u64::from(device.multiprocessors)) as u32;
    LaunchPlan { module: ModuleKey::Fill, grid, block: FILL_THREADS, dependent_launch: device.has_dependent_launch() }
}

/// Verifies the mapping of all peers' memory: one lane per peer.
pub fn verify(device: Device) -> LaunchPlan {
    one_warp(ModuleKey::Verify, device)
}

/// Counts calls that send nothing: one lane per copy of the control words.
pub fn skip(device: Device) -> LaunchPlan {
    one_warp(ModuleKey::Skip, device)
}

fn one_warp(module: ModuleKey, device: Device) -> LaunchPlan {
    LaunchPlan { module, grid: 1, block: WARP_THREADS, dependent_launch: device.has_dependent_launch() }
}
