//! The operation over shared memory: the sum of `all_reduce`, which a quantiser takes row by row.

use std::marker::PhantomData;

use lamport_rs_protocol::algorithm::Algorithm;
use lamport_rs_protocol::exchange::Collective;
use lamport_rs_protocol::memory::Line;
use lamport_rs_protocol::sentinel::{VECTOR_BYTES, Vector};

use super::AllReduceQuant;
use crate::error::{Error, Result};
use crate::interrupts::Interrupted;
use crate::operations::all_reduce::host::round_sum;
use crate::operations::host::element::{Element, Lanes, with_element};
use crate::operations::host::operand::Operand;
use crate::operations::host::processor::{Job, Processor, dispatch};
use crate::operations::host::segments::exchange_segments;
use crate::operations::host::{CHUNK_VECTORS, with_nan_on_failure};
use crate::operations::operands::{OnHost, Operands};
use crate::operations::quantised::rows::RowQuantiser;
use crate::operations::rms_norm::host::check_host;
use crate::tensor::Device;
use crate::workspace::host::{HostWorkspace, Running};

impl OnHost for AllReduceQuant {
    fn check_on_host(&self, workspace: &HostWorkspace) -> Result<()> {
        self.check(Device::Cpu)?;
        check_host(workspace, self.kind(), self.algorithm)
    }

    unsafe fn run_on_host(&self, workspace: &HostWorkspace, interrupted: Interrupted<'_>) -> Result<()> {
        // SAFETY: the caller's promise.
        let outcome = unsafe { with_nan_on_failure(run(workspace, self, interrupted), self.rows()) };
        if outcome.as_ref().is_err_and(Error::spoils_outputs) {
            // SAFETY: such errors come after the checks; the caller's promise.
            let quantiser = unsafe { RowQuantiser::new(&self.quantised, &self.input) };
            quantiser.spoil_scales(self.input.rows(), self.input.columns());
        }
        outcome
    }
}

unsafe fn run(workspace: &HostWorkspace, operands: &AllReduceQuant, interrupted: Interrupted<'_>) -> Result<()> {
    operands.check_on_host(workspace)?;
    if operands.input.elements() == 0 {
        return workspace.skip();
    }
    let mut running = workspace.begin(&operands.describe(Algorithm::OneShot), interrupted)?;
    let running = &mut running;
    with_element!(operands.input.dtype, E => {
        dispatch(Run { workspace, running, operands, element: PhantomData::<E> })
    })
}

struct Run<'a, 't, E> {
    workspace: &'a HostWorkspace,
    running: &'a mut Running<'t>,
    operands: &'a AllReduceQuant,
    element: PhantomData<E>,
}

impl<E: Element> Job for Run<'_, '_, E> {
    type Output = Result<()>;

    #[inline(always)]
    fn run<P: Processor>(self) -> Result<()> {
        let memory = self.running.blocks.accessed::<P::Access>();
        let AllReduceQuant { input, quantised, .. } = self.operands;
        // SAFETY: the promise of `run_on_host`'s caller; the operands were checked.
        let mut rows = unsafe {
            QuantisedSum::<E, P> {
                input: Operand::contiguous(input),
                output: self.operands.sum_place().map(|sum| Operand::contiguous(sum)),
                quantiser: RowQuantiser::new(quantised, input),
                row_vectors: input.columns() * input.dtype.size() / VECTOR_BYTES,
                sum: E::Lanes::ZERO,
                processor: PhantomData,
            }
        };
        exchange_segments(self.workspace, self.running, &memory, input.bytes(), CHUNK_VECTORS, &mut rows)
    }
}

struct QuantisedSum<E: Element, P> {
    input: Operand,
    /// Where the sum goes, if anywhere.
    output: Option<Operand>,
    quantiser: RowQuantiser,
    row_vectors: usize,
    /// Of the vector being received.
    sum: E::Lanes,
    processor: PhantomData<P>,
}

impl<E: Element, P: Processor> Collective for QuantisedSum<E, P> {
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
        let sum = round_sum::<E, P>(self.sum);
        if let Some(output) = self.output {
            output.write(at, sum);
        }
        self.quantiser.take(sum);
        if (at + 1).is_multiple_of(self.row_vectors) {
            self.quantiser.finish(at / self.row_vectors);
        }
    }
}
