//! The sum over ranks: float32, in rank order, the same bits on every rank.

use std::marker::PhantomData;

use lamport_rs_protocol::algorithm::Algorithm;
use lamport_rs_protocol::exchange::Collective;
use lamport_rs_protocol::geometry::Geometry;
use lamport_rs_protocol::memory::{LINE_BYTES, Line};
use lamport_rs_protocol::sentinel::{VECTOR_BYTES, Vector};
use lamport_rs_protocol::two_shot::ShardedCollective;

use super::AllReduce;
use crate::error::Result;
use crate::interrupts::Interrupted;
use crate::operations::choice::choose;
use crate::operations::description::Description;
use crate::operations::host::element::{Element, Lanes, with_element};
use crate::operations::host::operand::Operand;
use crate::operations::host::processor::{Job, Processor, dispatch};
use crate::operations::host::segments::{check_room, exchange_segments, exchange_segments_two_shot};
use crate::operations::host::{CHUNK_VECTORS, with_nan_on_failure};
use crate::operations::moe_finalize::Experts;
use crate::operations::moe_finalize::host::finalise;
use crate::operations::operands::OnHost;
use crate::tensor::Device;
use crate::workspace::host::{HostWorkspace, Running};

/// Bytes from which two-shot is faster than one-shot, as measured on two cores: eight ranks gain, up to four do not.
fn two_shot_from(world_size: usize) -> usize {
    if world_size < 8 { usize::MAX } else { 8 << 10 }
}

impl OnHost for AllReduce {
    fn check_on_host(&self, workspace: &HostWorkspace) -> Result<()> {
        check(workspace, self).map(drop)
    }

    unsafe fn run_on_host(&self, workspace: &HostWorkspace, interrupted: Interrupted<'_>) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { with_nan_on_failure(run(workspace, self, interrupted), [&self.output]) }
    }
}

unsafe fn run(workspace: &HostWorkspace, operands: &AllReduce, interrupted: Interrupted<'_>) -> Result<()> {
    let (algorithm, region_bytes) = check(workspace, operands)?;
    let description = operands.describe(algorithm);
    // SAFETY: the caller's promise; the operands were checked.
    unsafe { run_sum(workspace, operands, None, region_bytes, &description, interrupted) }
}

/// Runs the operation with checked operands. The input is what `experts` made, if there are any, for which it is the
/// place.
///
/// # Safety
/// As for [`OnHost::run_on_host`].
pub(in crate::operations) unsafe fn run_sum(
    workspace: &HostWorkspace,
    operands: &AllReduce,
    experts: Option<&Experts>,
    region_bytes: usize,
    description: &Description,
    interrupted: Interrupted<'_>,
) -> Result<()> {
    if operands.input.elements() == 0 {
        return workspace.skip();
    }
    let mut running = workspace.begin(description, interrupted)?;
    // SAFETY: the caller's promise.
    let (input, output) = unsafe { (Operand::contiguous(&operands.input), Operand::streamed(&operands.output)) };
    let running = &mut running;
    with_element!(operands.input.dtype, E => {
        if let Some(experts) = experts {
            // SAFETY: as above.
            unsafe { finalise::<E>(workspace, running, experts, &operands.input)? };
        }
        let sum = Sum { workspace, running, region_bytes, input, output, element: PhantomData::<E> };
        match description.algorithm {
            Algorithm::OneShot => dispatch(sum),
            Algorithm::TwoShot => dispatch(TwoShotSum(sum)),
        }
    })
}

/// Checks the operands, and says how the operation runs.
fn check(workspace: &HostWorkspace, operands: &AllReduce) -> Result<(Algorithm, usize)> {
    operands.check(Device::Cpu)?;
    plan(workspace, operands)
}

/// How the operation runs with checked operands: the algorithm, and the bytes of a rank's message.
pub(in crate::operations) fn plan(workspace: &HostWorkspace, operands: &AllReduce) -> Result<(Algorithm, usize)> {
    let (geometry, bytes) = (workspace.member().geometry, operands.input.bytes());
    let is_large = bytes >= workspace.two_shot_from.unwrap_or_else(|| two_shot_from(geometry.world_size()));
    let algorithm = choose(operands.algorithm, is_large, &geometry, bytes.div_ceil(VECTOR_BYTES), VECTOR_BYTES);
    check_room(workspace, algorithm)?;
    Ok((algorithm, region_bytes(algorithm, geometry, bytes)))
}

/// Of regions in whole lines, unless vectors fit into the slots at once and lines do not: what is too much is sent as
/// zeros.
fn region_bytes(algorithm: Algorithm, geometry: Geometry, bytes: usize) -> usize {
    let of_units = |unit| algorithm.message_bytes(bytes.div_ceil(unit), unit, geometry.world_size());
    let [lines, vectors] = [LINE_BYTES, VECTOR_BYTES].map(of_units);
    let most = geometry.largest_region_bytes();
    if vectors <= most && most < lines { vectors } else { lines }
}

struct Sum<'a, 't, E> {
    workspace: &'a HostWorkspace,
    running: &'a mut Running<'t>,
    region_bytes: usize,
    input: Operand,
    output: Operand,
    element: PhantomData<E>,
}

impl<E: Element> Job for Sum<'_, '_, E> {
    type Output = Result<()>;

    #[inline(always)]
    fn run<P: Processor>(self) -> Result<()> {
        let memory = self.running.blocks.accessed::<P::Access>();
        let mut reduction = self.reduction::<P>();
        let outcome =
            exchange_segments(self.workspace, self.running, &memory, self.region_bytes, CHUNK_VECTORS, &mut reduction);
        reduction.output.finish::<P>();
        outcome
    }
}

impl<E: Element> Sum<'_, '_, E> {
    #[inline(always)]
    fn reduction<P: Processor>(&self) -> Reduction<E, P> {
        Reduction { input: self.input, output: self.output, sum: E::Lanes::ZERO, processor: PhantomData }
    }
}

/// The sum in two shots: a job of its own, so that it costs the other's loops no registers.
struct TwoShotSum<'a, 't, E>(Sum<'a, 't, E>);

impl<E: Element> Job for TwoShotSum<'_, '_, E> {
    type Output = Result<()>;

    #[inline(always)]
    fn run<P: Processor>(self) -> Result<()> {
        let Self(sum) = self;
        let memory = sum.running.blocks.accessed::<P::Access>();
        let (rank, shard) = (sum.workspace.member().rank, sum.region_bytes / 2 / VECTOR_BYTES);
        let mut sharded = Sharded { reduction: sum.reduction::<P>(), rank, shard };
        let outcome = exchange_segments_two_shot(
            sum.workspace,
            sum.running,
            &memory,
            sum.region_bytes,
            CHUNK_VECTORS,
            &mut sharded,
        );
        sharded.reduction.output.finish::<P>();
        outcome
    }
}

struct Reduction<E: Element, P> {
    input: Operand,
    output: Operand,
    /// Of the vector being received.
    sum: E::Lanes,
    processor: PhantomData<P>,
}

impl<E: Element, P: Processor> Collective for Reduction<E, P> {
    #[inline(always)]
    fn contribution(&mut self, at: usize) -> Vector {
        self.input.read(at)
    }

    #[inline(always)]
    fn contribution_line(&mut self, at: usize) -> Line {
        self.input.read_line(at)
    }

    #[inline(always)]
    fn receive(&mut self, rank: usize, _at: usize, vector: Vector) {
        let values = E::widen::<P>(vector);
        self.sum = if rank == 0 { values } else { self.sum.add(values) };
    }

    #[inline(always)]
    fn complete(&mut self, at: usize) {
        self.output.write(at, round_sum::<E, P>(self.sum));
    }

    #[inline(always)]
    fn receive_line(&mut self, at: usize, lines: &[Line]) {
        let mut sums = lines[0];
        for (vector, sum) in sums.iter_mut().enumerate() {
            let mut lanes = E::widen::<P>(*sum);
            for line in &lines[1..] {
                lanes = lanes.add(E::widen::<P>(line[vector]));
            }
            *sum = E::round::<P>(lanes.add(E::Lanes::ZERO));
        }
        if sums.iter().fold(false, |any, sum| any | E::has_several_nans(*sum)) {
            sums = sums.map(E::with_one_nan);
        }
        self.output.write_line::<P>(at, sums);
    }
}

/// The reduction in two shots.
struct Sharded<E: Element, P> {
    reduction: Reduction<E, P>,
    rank: usize,
    /// Vectors per shard.
    shard: usize,
}

impl<E: Element, P: Processor> ShardedCollective for Sharded<E, P> {
    #[inline(always)]
    fn contribution(&mut self, shard: usize, at: usize) -> Vector {
        self.reduction.input.read(shard * self.shard + at)
    }

    #[inline(always)]
    fn receive(&mut self, rank: usize, at: usize, vector: Vector) {
        self.reduction.receive(rank, at, vector);
    }

    #[inline(always)]
    fn complete(&mut self, at: usize) -> Vector {
        let sum = round_sum::<E, P>(self.reduction.sum);
        self.receive_sum(self.rank, at, sum);
        sum
    }

    #[inline(always)]
    fn receive_sum(&mut self, shard: usize, at: usize, sum: Vector) {
        self.reduction.output.write(shard * self.shard + at, sum);
    }
}

/// Rounds a sum, once. To add +0.0 makes -0.0 the other zero, and changes nothing else: so a zero's sign depends neither on
/// the ranks nor on the value beside it.
#[inline(always)]
pub(in crate::operations) fn round_sum<E: Element, P: Processor>(sum: E::Lanes) -> Vector {
    E::narrow::<P>(sum.add(E::Lanes::ZERO))
}

#[cfg(test)]
mod tests {
    use super::two_shot_from;

    #[test]
    fn eight_ranks_take_two_shots_for_eight_kibibytes() {
        assert_eq!(two_shot_from(7), usize::MAX);
        assert_eq!([8, 16].map(two_shot_from), [8 << 10; 2]);
    }
}
