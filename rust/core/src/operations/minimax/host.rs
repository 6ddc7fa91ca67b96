//! The norm of rows that are spread over the ranks, as MiniMax's attention has it for Q and K.
//!
//! Rank r has `width` of a row's `world_size × width` columns. Per row,
//! `out = input / sqrt(sum over ranks and columns of input² / (world_size × width) + eps) × weight`
//! (`MiniMaxText01RMSNormTP` of vLLM). Only the sums of squares travel: one float32 per token and matrix, token by
//! token.

use std::marker::PhantomData;

use lamport_rs_protocol::algorithm::Algorithm;
use lamport_rs_protocol::exchange::Collective;
use lamport_rs_protocol::sentinel::{VECTOR_BYTES, VECTOR_WORDS, Vector};

use super::{MinimaxRms, Norm};
use crate::error::Result;
use crate::interrupts::Interrupted;
use crate::operations::host::element::{Element, Lanes, with_element};
use crate::operations::host::operand::{Operand, Weight};
use crate::operations::host::processor::{Job, Processor, dispatch};
use crate::operations::host::segments::{check_room, exchange_segments};
use crate::operations::host::{CHUNK_VECTORS, with_nan_on_failure};
use crate::operations::operands::OnHost;
use crate::tensor::Device;
use crate::workspace::host::{HostWorkspace, Running};

impl OnHost for MinimaxRms {
    fn check_on_host(&self, workspace: &HostWorkspace) -> Result<()> {
        check(workspace, self)
    }

    unsafe fn run_on_host(&self, workspace: &HostWorkspace, interrupted: Interrupted<'_>) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe {
            with_nan_on_failure(run(workspace, self, interrupted), self.norms.iter().flatten().map(|norm| &norm.output))
        }
    }
}

unsafe fn run(workspace: &HostWorkspace, operands: &MinimaxRms, interrupted: Interrupted<'_>) -> Result<()> {
    check(workspace, operands)?;
    let words = operands.tokens() * operands.matrices();
    let region_bytes = (words * size_of::<f32>()).next_multiple_of(VECTOR_BYTES);
    if words == 0 {
        return workspace.skip();
    }
    let mut running = workspace.begin(&operands.describe(), interrupted)?;
    // The own sums, then the group's, in whole vectors.
    let padded = words.next_multiple_of(VECTOR_WORDS);
    let mut scratch = running.take_scratch();
    scratch.resize(scratch.len().max(2 * padded), 0.0);
    let (own, totals) = scratch[..2 * padded].split_at_mut(padded);
    own[words..].fill(0.0);

    let matrices = operands.matrices();
    for (index, norm) in operands.norms.iter().flatten().enumerate() {
        let sums = &mut own[index..words];
        with_element!(norm.input.dtype, E => dispatch(Squares { norm, matrices, sums, element: PhantomData::<E> }));
    }
    let mut run = Totals { workspace, running: &mut running, region_bytes, own, totals };
    let outcome = dispatch(&mut run);
    if outcome.is_ok() {
        let world_size = workspace.member().geometry.world_size();
        for (index, norm) in operands.norms.iter().flatten().enumerate() {
            let columns = (norm.input.columns() * world_size) as f32;
            let totals = &totals[index..words];
            let scale = |total: f32| 1.0 / (total / columns + operands.epsilon).sqrt();
            with_element!(norm.input.dtype, E => {
                dispatch(Scaling { norm, matrices, totals, scale, element: PhantomData::<E> })
            });
        }
    }
    running.return_scratch(scratch);
    outcome
}

/// Checks the operands.
fn check(workspace: &HostWorkspace, operands: &MinimaxRms) -> Result<()> {
    operands.check(Device::Cpu)?;
    check_room(workspace, Algorithm::OneShot)
}

/// The own sum of squares of each row, `matrices` words apart.
struct Squares<'a, E> {
    norm: &'a Norm,
    matrices: usize,
    sums: &'a mut [f32],
    element: PhantomData<E>,
}

impl<E: Element> Job for Squares<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<P: Processor>(self) {
        // SAFETY: the promise of `run_on_host`'s caller.
        let inputs = unsafe { Operand::rows(&self.norm.input) };
        for (sum, input) in self.sums.iter_mut().step_by(self.matrices).zip(inputs) {
            let mut squares = E::Lanes::ZERO;
            for at in 0..input.vectors() {
                let values = E::widen::<P>(input.read(at));
                squares = squares.add(values.multiply(values));
            }
            *sum = squares.sum();
        }
    }
}

/// The exchange of the sums.
struct Totals<'a, 't> {
    workspace: &'a HostWorkspace,
    running: &'a mut Running<'t>,
    region_bytes: usize,
    own: &'a [f32],
    totals: &'a mut [f32],
}

impl Job for &mut Totals<'_, '_> {
    type Output = Result<()>;

    #[inline(always)]
    fn run<P: Processor>(self) -> Result<()> {
        let memory = self.running.blocks.accessed::<P::Access>();
        let mut sum = RankSum { own: self.own, totals: self.totals };
        exchange_segments(self.workspace, self.running, &memory, self.region_bytes, CHUNK_VECTORS, &mut sum)
    }
}

struct RankSum<'a> {
    own: &'a [f32],
    totals: &'a mut [f32],
}

impl Collective for RankSum<'_> {
    #[inline(always)]
    fn contribution(&mut self, at: usize) -> Vector {
        std::array::from_fn(|word| self.own[at * VECTOR_WORDS + word].to_bits())
    }

    #[inline(always)]
    fn receive(&mut self, rank: usize, at: usize, vector: Vector) {
        for (word, bits) in vector.into_iter().enumerate() {
            let total = &mut self.totals[at * VECTOR_WORDS + word];
            let value = f32::from_bits(bits);
            *total = if rank == 0 { value } else { *total + value };
        }
    }

    #[inline(always)]
    fn complete(&mut self, _at: usize) {}
}

/// Each row times the scale of its total, times the weight.
struct Scaling<'a, E, F> {
    norm: &'a Norm,
    matrices: usize,
    totals: &'a [f32],
    scale: F,
    element: PhantomData<E>,
}

impl<E: Element, F: Fn(f32) -> f32> Job for Scaling<'_, E, F> {
    type Output = ();

    #[inline(always)]
    fn run<P: Processor>(self) {
        // SAFETY: the promise of `run_on_host`'s caller.
        let weight = unsafe { Weight::new(&self.norm.weight) };
        // SAFETY: as above.
        let rows = unsafe { Operand::rows(&self.norm.input).zip(Operand::rows(&self.norm.output)) };
        for (total, (input, output)) in self.totals.iter().step_by(self.matrices).zip(rows) {
            let scale = (self.scale)(*total);
            for at in 0..input.vectors() {
                let values = E::widen::<P>(input.read(at)).scale(scale);
                output.write(at, E::narrow::<P>(values.multiply(weight.lanes::<E, P>(at))));
            }
        }
    }
}
