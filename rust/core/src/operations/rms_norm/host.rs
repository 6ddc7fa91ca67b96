//! The sum over ranks, plus a residual if there is one, and the norm of its rows.
//!
//! `residual_out = input summed over ranks + residual`, and per row
//! `out = residual_out / sqrt(mean(residual_out²) + eps) × (weight + weight_bias)` (RMSNorm: Zhang and Sennrich, 2019,
//! arXiv:1910.07467). All in float32, with `residual_out` rounded to the dtype in between, as if the norm were an
//! operation of its own.

use std::marker::PhantomData;

use lamport_rs_protocol::algorithm::Algorithm;
use lamport_rs_protocol::exchange::Collective;
use lamport_rs_protocol::memory::Line;
use lamport_rs_protocol::sentinel::{VECTOR_BYTES, Vector};

use super::AllReduceRmsNorm;
use crate::error::{Error, Result};
use crate::interrupts::Interrupted;
use crate::operations::Kind;
use crate::operations::all_reduce::host::round_sum;
use crate::operations::description::Description;
use crate::operations::host::element::{Element, Lanes, with_element};
use crate::operations::host::operand::{Operand, Weight};
use crate::operations::host::processor::{Job, Processor, dispatch};
use crate::operations::host::segments::{check_room, exchange_segments};
use crate::operations::host::{CHUNK_VECTORS, with_nan_on_failure};
use crate::operations::moe_finalize::Experts;
use crate::operations::moe_finalize::host::finalise;
use crate::operations::operands::{OnHost, Operands};
use crate::operations::quantised::rows::RowQuantiser;
use crate::tensor::{Device, Tensor};
use crate::workspace::host::{HostWorkspace, Running};

impl OnHost for AllReduceRmsNorm {
    fn check_on_host(&self, workspace: &HostWorkspace) -> Result<()> {
        check(workspace, self)
    }

    unsafe fn run_on_host(&self, workspace: &HostWorkspace, interrupted: Interrupted<'_>) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { with_nan_on_failure(run(workspace, self, interrupted), [&self.output, &self.residual_output]) }
    }
}

unsafe fn run(workspace: &HostWorkspace, operands: &AllReduceRmsNorm, interrupted: Interrupted<'_>) -> Result<()> {
    check(workspace, operands)?;
    let description = operands.describe(Algorithm::OneShot);
    let normalisation = Normalisation { output: Some(&operands.output), ..Normalisation::default() };
    // SAFETY: the caller's promise; the operands were checked.
    unsafe { run_norm(workspace, operands, None, normalisation, &description, interrupted) }
}

/// How rows are normalised, and where they go.
#[derive(Default)]
pub(in crate::operations) struct Normalisation<'a> {
    /// Where they go as they are, if anywhere.
    pub output: Option<&'a Tensor>,
    /// What else becomes of them.
    pub quantiser: Option<RowQuantiser>,
    /// Whether the mean is subtracted first.
    pub is_centred: bool,
    /// Added at last, one to each column, if there are any.
    pub bias: Option<&'a Tensor>,
}

/// Runs the operation with checked operands. The input is what `experts` made, if there are any, for which it is the
/// place.
///
/// # Safety
/// As for [`OnHost::run_on_host`].
pub(in crate::operations) unsafe fn run_norm(
    workspace: &HostWorkspace,
    operands: &AllReduceRmsNorm,
    experts: Option<&Experts>,
    normalisation: Normalisation<'_>,
    description: &Description,
    interrupted: Interrupted<'_>,
) -> Result<()> {
    let region_bytes = operands.input.bytes();
    if operands.input.elements() == 0 {
        return workspace.skip();
    }
    let mut running = workspace.begin(description, interrupted)?;
    let row_vectors = operands.input.columns() * operands.input.dtype.size() / VECTOR_BYTES;
    let mut scratch = running.take_scratch();
    scratch.resize(scratch.len().max(row_vectors * LANES), 0.0);
    let outcome = with_element!(operands.input.dtype, E => {
        let sums = <E as Element>::Lanes::cast(&mut scratch);
        let sums = &mut sums[..row_vectors];
        let finalised = experts.map_or(Ok(()), |experts| {
            // SAFETY: the caller's promise; the operands were checked.
            unsafe { finalise::<E>(workspace, &mut running, experts, &operands.input) }
        });
        finalised.and_then(|()| {
            dispatch(Run::<E> { workspace, running: &mut running, operands, normalisation, region_bytes, sums })
        })
    });
    running.return_scratch(scratch);
    outcome
}

/// Checks the operands.
fn check(workspace: &HostWorkspace, operands: &AllReduceRmsNorm) -> Result<()> {
    operands.check(Device::Cpu)?;
    check_host(workspace, operands.kind(), operands.algorithm)
}

/// Refuses what this backend does not do, or has no room for.
pub(in crate::operations) fn check_host(
    workspace: &HostWorkspace,
    kind: Kind,
    algorithm: Option<Algorithm>,
) -> Result<()> {
    check_algorithm(kind, algorithm)?;
    check_room(workspace, Algorithm::OneShot)
}

/// Refuses what only GPUs do.
fn check_algorithm(kind: Kind, algorithm: Option<Algorithm>) -> Result<()> {
    match algorithm {
        None | Some(Algorithm::OneShot) => Ok(()),
        Some(Algorithm::TwoShot) => Err(Error::Argument(format!(
            "the host backend's {} is one-shot only; pass algorithm=\"auto\" or \"one_shot\"",
            kind.name()
        ))),
    }
}

/// Most lanes of a vector.
const LANES: usize = 8;

struct Run<'a, 't, E: Element> {
    workspace: &'a HostWorkspace,
    running: &'a mut Running<'t>,
    operands: &'a AllReduceRmsNorm,
    normalisation: Normalisation<'a>,
    region_bytes: usize,
    sums: &'a mut [E::Lanes],
}

impl<E: Element> Job for Run<'_, '_, E> {
    type Output = Result<()>;

    #[inline(always)]
    fn run<P: Processor>(self) -> Result<()> {
        let memory = self.running.blocks.accessed::<P::Access>();
        let operands = self.operands;
        let Normalisation { output, quantiser, is_centred, bias } = self.normalisation;
        // SAFETY: the promise of `run_on_host`'s caller.
        let mut norm = unsafe {
            NormalisedSum::<E, P> {
                input: Operand::contiguous(&operands.input),
                residual: operands.residual.as_ref().map(|residual| Operand::contiguous(residual)),
                weight: Weight::new(&operands.weight),
                bias: bias.map(|bias| Weight::new(bias)),
                is_centred,
                output: output.map(|output| Operand::contiguous(output)),
                quantiser,
                residual_output: Operand::contiguous(&operands.residual_output),
                epsilon: operands.epsilon,
                weight_bias: operands.weight_bias,
                columns: operands.input.columns(),
                row: 0,
                sums: self.sums,
                processor: PhantomData,
            }
        };
        exchange_segments(self.workspace, self.running, &memory, self.region_bytes, CHUNK_VECTORS, &mut norm)
    }
}

struct NormalisedSum<'a, E: Element, P> {
    input: Operand,
    residual: Option<Operand>,
    weight: Weight,
    bias: Option<Weight>,
    is_centred: bool,
    output: Option<Operand>,
    quantiser: Option<RowQuantiser>,
    residual_output: Operand,
    epsilon: f32,
    weight_bias: f32,
    columns: usize,
    /// First vector of the row being received.
    row: usize,
    /// Of that row.
    sums: &'a mut [E::Lanes],
    processor: PhantomData<P>,
}

impl<E: Element, P: Processor> Collective for NormalisedSum<'_, E, P> {
    #[inline(always)]
    fn contribution(&mut self, at: usize) -> Vector {
        self.input.read(at)
    }

    #[inline(always)]
    fn contribution_line(&mut self, at: usize) -> Line {
        self.input.read_line(at)
    }

    #[inline(always)]
    fn receive(&mut self, rank: usize, at: usize, vector: Vector) {
        let values = E::widen::<P>(vector);
        let sum = &mut self.sums[at - self.row];
        *sum = if rank == 0 { values } else { sum.add(values) };
    }

    #[inline(always)]
    fn complete(&mut self, at: usize) {
        if at + 1 - self.row == self.sums.len() {
            self.normalise_row();
            self.row = at + 1;
        }
    }
}

impl<E: Element, P: Processor> NormalisedSum<'_, E, P> {
    #[inline(always)]
    fn normalise_row(&mut self) {
        let mut squares = E::Lanes::ZERO;
        for (at, sum) in (self.row..).zip(self.sums.iter_mut()) {
            let total = self.residual.map_or(*sum, |residual| sum.add(E::widen::<P>(residual.read(at))));
            let rounded = round_sum::<E, P>(total);
            self.residual_output.write(at, rounded);
            *sum = E::widen::<P>(rounded);
            squares = squares.add(sum.multiply(*sum));
        }
        if self.is_centred {
            squares = self.centre();
        }
        let scale = 1.0 / (squares.sum() / self.columns as f32 + self.epsilon).sqrt();
        for (column, sum) in self.sums.iter().enumerate() {
            let weight = self.weight.lanes::<E, P>(column).add(E::Lanes::splat(self.weight_bias));
            let weighted = sum.scale(scale).multiply(weight);
            let normalised =
                E::narrow::<P>(self.bias.map_or(weighted, |bias| weighted.add(bias.lanes::<E, P>(column))));
            if let Some(output) = self.output {
                output.write(self.row + column, normalised);
            }
            if let Some(quantiser) = &mut self.quantiser {
                quantiser.take(normalised);
            }
        }
        if let Some(quantiser) = &mut self.quantiser {
            quantiser.finish(self.row / self.sums.len());
        }
    }

    /// Subtracts the row's mean, and returns the squares of what is left: these do not cancel, as the mean of squares and
    /// the square of the mean would.
    #[inline(always)]
    fn centre(&mut self) -> E::Lanes {
        let total = self.sums.iter().fold(E::Lanes::ZERO, |total, sum| total.add(*sum));
        let mean = E::Lanes::splat(-(total.sum() / self.columns as f32));
        self.sums.iter_mut().fold(E::Lanes::ZERO, |squares, sum| {
            *sum = sum.add(mean);
            squares.add(sum.multiply(*sum))
        })
    }
}
