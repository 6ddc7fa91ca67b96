//! Plans for the all-reduce.

use std::iter::once;
use std::ops::RangeInclusive;

use lamport_rs_protocol::algorithm::Algorithm;
use lamport_rs_protocol::geometry::{Geometry, GeometryError};
use lamport_rs_protocol::sentinel::VECTOR_BYTES;

use crate::catalogue::{AllReduceKernel, AllReduceMethod, ModuleKey};
use crate::dtype::Dtype;
use crate::parameters::{AllReduceParameters, Group};
use crate::plan::{Device, LaunchPlan, PlanError, check_bytes, reduction_grid};
use crate::variants::{PHASED_CAPACITIES, SPEAKING_BLOCKS, WARP_THREADS, all_reduce_bounds, capacity};

/// Threads of a one-shot block beside the service warp.
const ONE_SHOT_WORKERS: u32 = 128;
/// Of two ranks, vectors of a tensor (192 to 448 KiB) for which fewer and larger blocks are faster by 2 to 3 %.
const TWO_RANKS_LARGE_BLOCKS: RangeInclusive<u32> = 12_288..=28_672;
const LARGE_WORKERS: u32 = 480;
/// Two-shot shards of up to so many vectors (1 MiB; of two ranks, 1.5 MiB) are spread over small blocks.
const TWO_SHOT_SMALL: u32 = 1 << 16;
const TWO_RANKS_TWO_SHOT_SMALL: u32 = 3 << 15;
const TWO_SHOT_SMALL_BLOCK: u32 = 128;
/// Warps with a vector each that a tensor has for each multiprocessor, beyond which the kernel in phases has its smallest
/// blocks: with 132 multiprocessors, tensors of 800 KiB.
const PHASED_LARGE: u32 = 12;

/// Bytes from which two-shot is faster than one-shot: as measured for groups of up to four ranks
/// (docs/appendix/experiments.md), and for larger ones as those let expect.
///
/// Two-shot has one more way over the link, and pushes `2 (N-1)/N` tensors where one-shot pushes `N-1`: it gains once
/// the difference takes the link longer than a way. With two ranks there is no difference; what two-shot then gains for
/// very large tensors is that each rank sums half of it.
pub fn two_shot_from(world_size: usize) -> usize {
    match world_size {
        1 => usize::MAX,
        2 => 2375 << 10,
        3 => 296 << 10,
        4 => 160 << 10,
        _ => WAY_BYTES * world_size / ((world_size - 1) * (world_size - 2)),
    }
}

/// What the links of one GPU move while a tensor's last words travel to a peer and are seen there, so that the formula
/// gives what was measured with three and with four ranks, to a tenth.
const WAY_BYTES: usize = 222_000;

/// An all-reduce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AllReduceShape {
    /// Of the tensor.
    pub bytes: usize,
    /// Of its elements.
    pub dtype: Dtype,
    /// The group's size.
    pub world_size: usize,
    /// How to reduce.
    pub algorithm: Algorithm,
}

/// A kernel with its blocks.
struct Blocks {
    method: AllReduceMethod,
    /// Vectors of a rank's share that a block takes in a round.
    workers: u32,
    /// Threads of a block.
    block: u32,
}

/// A launch, and how the tensor is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllReducePlan {
    /// The launch.
    pub launch: LaunchPlan,
    shape: AllReduceShape,
}

impl AllReduceShape {
    /// Whether there is a plan.
    pub fn check(&self) -> Result<(), PlanError> {
        check_bytes(self.bytes)
    }

    /// Plans the launch.
    pub fn plan(&self, device: Device) -> Result<AllReducePlan, PlanError> {
        self.check()?;
        let (dtype, capacity) = (self.dtype, capacity(self.world_size as u32));
        let vectors = self.vectors();
        let Blocks { method, workers, block } = self.blocks(vectors, capacity, device);
        let resident = device.resident_blocks(all_reduce_bounds(method, capacity), block);
        let launch = LaunchPlan {
            module: ModuleKey::AllReduce(AllReduceKernel { method, dtype, capacity }),
            grid: reduction_grid(vectors.div_ceil(workers), resident),
            block,
            dependent_launch: device.has_dependent_launch(),
        };
        Ok(AllReducePlan { launch, shape: *self })
    }

    /// Vectors that a rank sums.
    fn vectors(&self) -> u32 {
        self.algorithm.share(self.bytes.div_ceil(VECTOR_BYTES), self.world_size) as u32
    }

    /// The kernel, and its blocks.
    ///
    /// Measured on H200 and H100: small blocks are best for small tensors, which they spread over many multiprocessors,
    /// and again for large ones; two-shot is for the largest, which want every thread there is.
    fn blocks(&self, vectors: u32, capacity: u32, device: Device) -> Blocks {
        let needed = vectors.next_multiple_of(WARP_THREADS);
        match self.algorithm {
            Algorithm::OneShot => {
                let large = self.world_size == 2 && TWO_RANKS_LARGE_BLOCKS.contains(&vectors);
                let workers = if large { LARGE_WORKERS } else { ONE_SHOT_WORKERS }.min(needed);
                Blocks { method: AllReduceMethod::OneShot, workers, block: workers + WARP_THREADS }
            }
            Algorithm::TwoShot => self.phased_blocks(vectors, capacity, device).unwrap_or_else(|| {
                let method = AllReduceMethod::TwoShot;
                let most = all_reduce_bounds(method, capacity).max_threads;
                let small = if self.world_size == 2 { TWO_RANKS_TWO_SHOT_SMALL } else { TWO_SHOT_SMALL };
                let threads = if needed <= small { TWO_SHOT_SMALL_BLOCK } else { most };
                let threads = threads.min(most).min(needed);
                Blocks { method, workers: threads, block: threads }
            }),
        }
    }

    /// The blocks of the kernel in phases, if there is one for the group, and they take all of the shard in one round.
    ///
    /// Measured on H100 and H200 with three and four ranks: best are three blocks for five multiprocessors, as long as a
    /// block has no more than four warps of a shard. Large tensors have the smallest blocks: up to 6 % faster.
    fn phased_blocks(&self, vectors: u32, capacity: u32, device: Device) -> Option<Blocks> {
        if !PHASED_CAPACITIES.contains(&capacity) {
            return None;
        }
        let method = AllReduceMethod::TwoShotPhased;
        let bounds = all_reduce_bounds(method, capacity);
        let peers = self.world_size as u32 - 1;
        let most_warps = bounds.max_threads / WARP_THREADS / peers;
        let warps = vectors.div_ceil(WARP_THREADS);
        let fits = |warps_of_block: &u32| {
            let resident = device.resident_blocks(bounds, warps_of_block * WARP_THREADS * peers);
            warps.div_ceil(*warps_of_block) + SPEAKING_BLOCKS <= resident
        };
        let is_large = warps * self.world_size as u32 > PHASED_LARGE * device.multiprocessors;
        let best = if is_large { 1 } else { (5 * warps).div_ceil(3 * device.multiprocessors).min(4) };
        let warps_of_block = once(best.min(most_warps)).chain(1..=most_warps).find(fits)?;
        let workers = warps_of_block * WARP_THREADS;
        Some(Blocks { method, workers, block: workers * peers })
    }
}

impl AllReducePlan {
    /// The kernel's parameters. An error if the group's slots are too small.
    pub fn parameters(
        &self,
        geometry: &Geometry,
        group: Group,
        input: u64,
        output: u64,
    ) -> Result<AllReduceParameters, GeometryError> {
        let AllReduceShape { bytes, world_size, algorithm, .. } = self.shape;
        let region_bytes = geometry.region_bytes(algorithm.tensor_message_bytes(bytes, world_size))? as u32;
        let vectors = self.shape.vectors();
        Ok(AllReduceParameters { group, input, output, bytes: bytes as u64, region_bytes, vectors })
    }
}
