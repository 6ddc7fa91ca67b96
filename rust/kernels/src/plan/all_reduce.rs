//! Plans for the all-reduce.

use std::ops::RangeInclusive;

use lamport_rs_protocol::algorithm::Algorithm;
use lamport_rs_protocol::geometry::{Geometry, GeometryError};
use lamport_rs_protocol::sentinel::VECTOR_BYTES;

use crate::catalogue::{AllReduceKernel, ModuleKey};
use crate::dtype::Dtype;
use crate::parameters::{AllReduceParameters, Group};
use crate::plan::{Device, LaunchPlan, PlanError, check_bytes, reduction_grid};
use crate::variants::{WARP_THREADS, all_reduce_bounds, capacity};

/// Threads of a one-shot block beside the service warp.
const ONE_SHOT_WORKERS: u32 = 128;
/// Of two ranks, vectors of a tensor (192 to 448 KiB) for which fewer and larger blocks are faster by 2 to 3 %.
const TWO_RANKS_LARGE_BLOCKS: RangeInclusive<u32> = 12_288..=28_672;
const LARGE_WORKERS: u32 = 480;
/// Two-shot shards of up to so many vectors (1 MiB) are spread over small blocks.
const TWO_SHOT_SMALL: u32 = 1 << 16;
const TWO_SHOT_SMALL_BLOCK: u32 = 128;

/// Bytes from which two-shot is faster than one-shot.
///
/// Two-shot has one more way over the link, and pushes `2 (N-1)/N` tensors where one-shot pushes `N-1`: it gains once
/// the difference takes the link longer than a way. With two ranks there is no difference; what two-shot then gains for
/// very large tensors is that each rank sums half of it.
pub fn two_shot_from(world_size: usize) -> usize {
    match world_size {
        1 => usize::MAX,
        2 => TWO_RANKS_TWO_SHOT_FROM,
        _ => WAY_BYTES * world_size / ((world_size - 1) * (world_size - 2)),
    }
}

/// Measured on H200.
const TWO_RANKS_TWO_SHOT_FROM: usize = 4 << 20;
/// What the links of one GPU move while a tensor's last words travel to a peer and are seen there: 1.1 us at 360 GB/s, by
/// the fit of docs/scaling.md.
const WAY_BYTES: usize = 400_000;

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
        let Self { dtype, algorithm, .. } = *self;
        let capacity = capacity(self.world_size as u32);
        let bounds = all_reduce_bounds(algorithm, capacity);
        let vectors = self.vectors();
        let (workers, block) = self.block(vectors, bounds.max_threads);
        let resident = device.resident_blocks(bounds, block);
        let launch = LaunchPlan {
            module: ModuleKey::AllReduce(AllReduceKernel { algorithm, dtype, capacity }),
            grid: reduction_grid(vectors.div_ceil(workers), resident, device),
            block,
            dependent_launch: device.has_dependent_launch(),
        };
        Ok(AllReducePlan { launch, shape: *self })
    }

    /// Vectors that a rank sums.
    fn vectors(&self) -> u32 {
        self.algorithm.share(self.bytes.div_ceil(VECTOR_BYTES), self.world_size) as u32
    }

    /// Threads of a block that have vectors, and all of them.
    ///
    /// Measured on H200 and H100: small blocks are best for small tensors, which they spread over many multiprocessors,
    /// and again for large ones; two-shot is for the largest, which want every thread there is.
    fn block(&self, vectors: u32, most: u32) -> (u32, u32) {
        let needed = vectors.next_multiple_of(WARP_THREADS);
        match self.algorithm {
            Algorithm::OneShot => {
                let large = self.world_size == 2 && TWO_RANKS_LARGE_BLOCKS.contains(&vectors);
                let workers = if large { LARGE_WORKERS } else { ONE_SHOT_WORKERS }.min(needed);
                (workers, workers + WARP_THREADS)
            }
            Algorithm::TwoShot => {
                let threads = if needed <= TWO_SHOT_SMALL { TWO_SHOT_SMALL_BLOCK } else { most };
                let threads = threads.min(most).min(needed);
                (threads, threads)
            }
        }
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
