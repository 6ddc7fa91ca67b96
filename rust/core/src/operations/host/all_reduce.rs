//! The sum over ranks: float32, in rank order, the same bits on every rank.

use std::marker::PhantomData;

use lamport_rs_protocol::exchange::Collective;
use lamport_rs_protocol::memory::{LINE_BYTES, Line};
use lamport_rs_protocol::sentinel::{Vector, scrub};

use super::element::{Element, Lanes, with_element};
use super::operand::Operand;
use super::pieces::run;
use super::processor::{Job, Processor, dispatch};
use super::{CHUNK_VECTORS, check_algorithm};
use crate::error::Result;
use crate::operations::arguments::AllReduce;
use crate::tensor::Device;
use crate::wait::Interrupted;
use crate::workspace::host::{HostWorkspace, Turn};

/// Runs the operation. A collective call: all ranks pass tensors of the same size and dtype.
///
/// # Safety
/// The tensors' pointers are valid for their shapes and strides until this returns; nothing else writes them.
pub unsafe fn all_reduce(workspace: &HostWorkspace, operands: &AllReduce, interrupted: Interrupted<'_>) -> Result<()> {
    operands.check(Device::Cpu)?;
    check_algorithm(operands.algorithm)?;
    let (geometry, bytes) = (workspace.member().geometry, operands.input.bytes());
    // In whole lines, if they fit: what is too much is sent as zeros.
    let whole_lines = geometry.region_bytes(bytes.next_multiple_of(LINE_BYTES));
    let region_bytes = whole_lines.or_else(|_| geometry.region_bytes(bytes))?;
    let mut turn = workspace.take_turn("all_reduce", interrupted)?;
    if operands.input.elements() == 0 {
        return Ok(());
    }
    // SAFETY: the caller's promise.
    let (input, output) = unsafe { (Operand::contiguous(&operands.input), Operand::streamed(&operands.output)) };
    let turn = &mut turn;
    with_element!(operands.input.dtype, E => {
        dispatch(Sum { workspace, turn, region_bytes, input, output, element: PhantomData::<E> })
    })
}

struct Sum<'a, 't, E> {
    workspace: &'a HostWorkspace,
    turn: &'a mut Turn<'t>,
    region_bytes: usize,
    input: Operand,
    output: Operand,
    element: PhantomData<E>,
}

impl<E: Element> Job for Sum<'_, '_, E> {
    type Output = Result<()>;

    #[inline(always)]
    fn run<P: Processor>(self) -> Result<()> {
        let memory = self.turn.blocks.accessed::<P::Access>();
        let mut reduction =
            Reduction::<E, P> { input: self.input, output: self.output, sum: E::Lanes::ZERO, processor: PhantomData };
        let outcome = run(self.workspace, self.turn, &memory, self.region_bytes, CHUNK_VECTORS, &mut reduction);
        reduction.output.finish::<P>();
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
        self.output.write(at, round_and_scrub::<E, P>(self.sum));
    }

    #[inline(always)]
    fn receive_line(&mut self, at: usize, lines: &[Line]) {
        let mut sums = lines[0];
        for (vector, sum) in sums.iter_mut().enumerate() {
            let mut lanes = E::widen::<P>(*sum);
            for line in &lines[1..] {
                lanes = lanes.add(E::widen::<P>(line[vector]));
            }
            *sum = round_and_scrub::<E, P>(lanes);
        }
        self.output.write_line::<P>(at, sums);
    }
}

/// Scrubbed, because a sum that travels (two-shot, on GPUs) is: the same bits everywhere.
#[inline(always)]
pub(super) fn round_and_scrub<E: Element, P: Processor>(sum: E::Lanes) -> Vector {
    scrub(E::narrow::<P>(sum))
}
