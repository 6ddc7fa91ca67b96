//! Plans for the MiniMax normalisation.
//!
//! Few tokens: one per block, one vector per thread, so that nothing but the exchange takes time. Many tokens: several
//! per block, so that the whole grid runs at once and the way over NVLink is paid for once, not once per wave.

use lamport_rs_protocol::geometry::{Geometry, GeometryError};

use crate::catalogue::{MinimaxKernel, ModuleKey};
use crate::dtype::Dtype;
use crate::parameters::{Group, MinimaxMatrix, MinimaxParameters};
use crate::plan::{Device, LaunchPlan, PlanError, check_weight, row_vectors};
use crate::variants::{MINIMAX_VARIANTS, MINIMAX_WIDE, MinimaxVariant, WARP_THREADS};

/// Rows that one operation can normalise: more would overflow the kernels' 32-bit offsets within a region.
pub const MAX_TOKENS: u32 = 1 << 24;
/// Warps of a block that have no rows: one, which reads the control words, arrives and rotates.
const SERVICE_WARPS: u32 = 1;

/// A MiniMax operation on `MATRICES` matrices: 1, or 2 for queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MinimaxShape<const MATRICES: usize> {
    /// Rows.
    pub tokens: u32,
    /// Columns of each matrix on this rank.
    pub widths: [u32; MATRICES],
    /// Of inputs and outputs.
    pub dtype: Dtype,
    /// Of the weights.
    pub weight: Dtype,
    /// The group's size.
    pub world_size: u32,
}

/// Where one matrix's tensors are on the device. All rows begin at multiples of 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MinimaxTensors {
    /// The input's first row, at the first own column.
    pub input: u64,
    /// Bytes from a row of the input to the next.
    pub input_row_bytes: u32,
    /// One weight per own column.
    pub weight: u64,
    /// The output's first row. May be the input.
    pub output: u64,
    /// Bytes from a row of the output to the next.
    pub output_row_bytes: u32,
}

impl MinimaxTensors {
    /// The same tensors without the rows before `row`.
    pub fn from_row(self, row: usize) -> Self {
        let input = self.input + row as u64 * u64::from(self.input_row_bytes);
        let output = self.output + row as u64 * u64::from(self.output_row_bytes);
        Self { input, output, ..self }
    }
}

/// A launch, and how its blocks are divided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MinimaxPlan<const MATRICES: usize> {
    /// The launch.
    pub launch: LaunchPlan,
    /// Tokens of a block.
    pub tokens_per_block: u32,
    tokens: u32,
    vectors: [u32; MATRICES],
    warps: [u32; MATRICES],
    inverse_counts: [f32; MATRICES],
}

impl<const MATRICES: usize> MinimaxPlan<MATRICES> {
    /// The kernel's parameters. An error if the group's slots are too small.
    pub fn parameters(
        &self,
        geometry: &Geometry,
        group: Group,
        tensors: [MinimaxTensors; MATRICES],
        epsilon: f32,
    ) -> Result<MinimaxParameters<MATRICES>, GeometryError> {
        let region_bytes = geometry.region_bytes(self.tokens as usize * MATRICES * size_of::<f32>())? as u32;
        let matrix = std::array::from_fn(|index| {
            let MinimaxTensors { input, input_row_bytes, weight, output, output_row_bytes } = tensors[index];
            let (vectors, warps) = (self.vectors[index], self.warps[index]);
            let inverse_count = self.inverse_counts[index];
            MinimaxMatrix {
                input,
                weight,
                output,
                input_row_bytes,
                output_row_bytes,
                vectors,
                warps,
                inverse_count,
                reserved: 0,
            }
        });
        Ok(MinimaxParameters { group, matrix, region_bytes, tokens: self.tokens, epsilon, reserved: 0 })
    }
}

impl<const MATRICES: usize> MinimaxShape<MATRICES> {
    /// Whether there is a plan.
    pub fn check(&self) -> Result<(), PlanError> {
        if self.tokens == 0 || self.tokens > MAX_TOKENS {
            return Err(PlanError::Tokens { tokens: self.tokens, most: MAX_TOKENS });
        }
        check_weight(self.dtype, self.weight)?;
        self.vectors().map(drop)
    }

    /// Plans the launch. `tokens_per_block` overrides the choice that this module makes.
    pub fn plan(&self, device: Device, tokens_per_block: Option<u32>) -> Result<MinimaxPlan<MATRICES>, PlanError> {
        const { assert!(MATRICES == 1 || MATRICES == 2, "kernels take one matrix or two") };
        self.check()?;
        let vectors = self.vectors()?;
        let candidates: Vec<Division<MATRICES>> = self.divisions(vectors);
        let division = match tokens_per_block {
            None => choose(&candidates, self.tokens, device),
            Some(tokens) => *candidates.iter().find(|division| division.variant.tokens == tokens).ok_or_else(|| {
                let possible = candidates.iter().map(|division| division.variant.tokens).collect();
                PlanError::TokensPerBlock { tokens, possible }
            })?,
        };

        let kernel = MinimaxKernel { dtype: self.dtype, weight: self.weight, variant: division.variant };
        let module = if MATRICES == 1 { ModuleKey::MinimaxRms(kernel) } else { ModuleKey::MinimaxRmsQk(kernel) };
        let tokens_per_block = division.variant.tokens;
        let grid = self.tokens.div_ceil(tokens_per_block) + device.speaking_blocks;
        let launch =
            LaunchPlan { module, grid, block: division.threads, dependent_launch: device.has_dependent_launch() };
        let inverse_counts = self.widths.map(|width| (1.0 / (f64::from(width) * f64::from(self.world_size))) as f32);
        let Division { warps, .. } = division;
        Ok(MinimaxPlan { launch, tokens_per_block, tokens: self.tokens, vectors, warps, inverse_counts })
    }

    fn vectors(&self) -> Result<[u32; MATRICES], PlanError> {
        let mut vectors = [0; MATRICES];
        for (count, width) in vectors.iter_mut().zip(self.widths) {
            *count = row_vectors(width as usize, self.dtype)?;
        }
        Ok(vectors)
    }

    /// What the width allows, in ascending order of tokens per block; never empty. Of the variants that differ only in
    /// vectors per thread, the one with the most threads.
    fn divisions(&self, vectors: [u32; MATRICES]) -> Vec<Division<MATRICES>> {
        let mut divisions: Vec<Division<MATRICES>> = Vec::new();
        for variant in MINIMAX_VARIANTS {
            let is_new = divisions.iter().all(|division| division.variant.tokens != variant.tokens);
            let division = self.divide(variant, vectors);
            if is_new && division.threads <= variant.bounds.max_threads {
                divisions.push(division);
            }
        }
        divisions.sort_by_key(|division| division.variant.tokens);
        divisions
    }

    fn divide(&self, variant: MinimaxVariant, vectors: [u32; MATRICES]) -> Division<MATRICES> {
        let warps = if variant == MINIMAX_WIDE {
            share(variant.bounds.max_threads / WARP_THREADS - SERVICE_WARPS, vectors)
        } else {
            vectors.map(|count| count.div_ceil(WARP_THREADS * variant.vectors))
        };
        // One thread exchanges one word with one peer. These are the block's first warps, whether they have rows or
        // not; its last, the service warp, must not be among them.
        let exchanging = (variant.tokens * MATRICES as u32 * (self.world_size - 1)).div_ceil(WARP_THREADS);
        let block_warps = warps.iter().sum::<u32>().max(exchanging) + SERVICE_WARPS;
        Division { variant, warps, threads: WARP_THREADS * block_warps }
    }
}

/// A block of a variant: which of its warps work on which matrix.
#[derive(Clone, Copy)]
struct Division<const MATRICES: usize> {
    variant: MinimaxVariant,
    warps: [u32; MATRICES],
    threads: u32,
}

impl<const MATRICES: usize> Division<MATRICES> {
    /// Blocks that a multiprocessor holds at once. Registers decide, which the variant's bounds let a thread have so
    /// many of.
    fn blocks_per_multiprocessor(&self) -> u32 {
        self.variant.bounds.resident_threads() / self.threads
    }
}

/// Divides `warps` between one or two matrices, roughly in proportion to their vectors.
fn share<const MATRICES: usize>(warps: u32, vectors: [u32; MATRICES]) -> [u32; MATRICES] {
    let total: u64 = vectors.iter().map(|&count| u64::from(count)).sum();
    let mut shares = [warps; MATRICES];
    if let [first, second] = shares.as_mut_slice() {
        let proportion = (u64::from(warps) * u64::from(vectors[0]) + total / 2) / total;
        *first = proportion.clamp(1, u64::from(warps) - 1) as u32;
        *second = warps - *first;
    }
    shares
}

/// The fewest tokens per block with which all blocks of the grid run at once; the most there are, if none does it.
///
/// Measured on an H200 (3072 + 512 columns): 2.4 us for 264 tokens, one per block and two blocks per multiprocessor;
/// with more blocks than that, the second wave's way over NVLink comes on top (4.0 us for 320 tokens), and two tokens
/// per block are faster (2.9 us). Likewise at every doubling.
fn choose<const MATRICES: usize>(divisions: &[Division<MATRICES>], tokens: u32, device: Device) -> Division<MATRICES> {
    let one_wave = |division: &&Division<MATRICES>| {
        let grid = tokens.div_ceil(division.variant.tokens) + device.speaking_blocks;
        grid <= device.multiprocessors * division.blocks_per_multiprocessor()
    };
    *divisions.iter().find(one_wave).or(divisions.last()).expect("rows of any width have a variant")
}
