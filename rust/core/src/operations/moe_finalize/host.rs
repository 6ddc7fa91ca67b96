//! The operations over shared memory: the rows are finalised where the result will be, and summed in place.

use std::marker::PhantomData;
use std::ops::Range;

use half::{bf16, f16};
use lamport_rs_protocol::sentinel::VECTOR_BYTES;

use super::{Experts, MoeFinalizeAllReduce, MoeFinalizeAllReduceRmsNorm};
use crate::error::Result;
use crate::interrupts::Interrupted;
use crate::operations::all_reduce::host::{plan, run_sum};
use crate::operations::host::element::{Element, Lanes};
use crate::operations::host::operand::Operand;
use crate::operations::host::processor::{Job, Processor, dispatch};
use crate::operations::host::with_nan_on_failure;
use crate::operations::operands::{OnHost, Operands};
use crate::operations::rms_norm::host::{Normalisation, check_host, run_norm};
use crate::tensor::{Device, Dtype, Tensor};
use crate::workspace::host::{HostWorkspace, Running};

/// Vectors that are read between two looks at whether to go on: a millisecond or so.
const VECTORS_BETWEEN_CHECKS: usize = 1 << 16;

impl OnHost for MoeFinalizeAllReduceRmsNorm {
    fn check_on_host(&self, workspace: &HostWorkspace) -> Result<()> {
        self.check(Device::Cpu)?;
        check_host(workspace, self.kind(), self.norm.algorithm)
    }

    unsafe fn run_on_host(&self, workspace: &HostWorkspace, interrupted: Interrupted<'_>) -> Result<()> {
        let mut run = || {
            self.check_on_host(workspace)?;
            let (experts, description) = (Some(&self.experts), self.describe());
            let normalisation = Normalisation { output: Some(&self.norm.output), ..Normalisation::default() };
            // SAFETY: the caller's promise; the operands were checked.
            unsafe { run_norm(workspace, &self.norm, experts, normalisation, &description, interrupted) }
        };
        // SAFETY: the caller's promise.
        unsafe { with_nan_on_failure(run(), [&self.norm.output, &self.norm.residual_output]) }
    }
}

impl OnHost for MoeFinalizeAllReduce {
    fn check_on_host(&self, workspace: &HostWorkspace) -> Result<()> {
        self.check(Device::Cpu)?;
        plan(workspace, &self.sum).map(drop)
    }

    unsafe fn run_on_host(&self, workspace: &HostWorkspace, interrupted: Interrupted<'_>) -> Result<()> {
        let mut run = || {
            self.check(Device::Cpu)?;
            let (_, region_bytes) = plan(workspace, &self.sum)?;
            let description = self.describe();
            // SAFETY: the caller's promise; the operands were checked.
            unsafe { run_sum(workspace, &self.sum, Some(&self.experts), region_bytes, &description, interrupted) }
        };
        // SAFETY: the caller's promise.
        unsafe { with_nan_on_failure(run(), [&self.sum.output]) }
    }
}

/// Writes the finalised rows of `E`, all tokens', to `place`. An error if the operation, which is `running`, should stop.
///
/// # Safety
/// The operands were checked, and `place` is of the finalised rows' shape, and contiguous. Their pointers are valid until
/// this returns; nothing else writes them.
pub(in crate::operations) unsafe fn finalise<E: Element>(
    workspace: &HostWorkspace,
    running: &mut Running<'_>,
    experts: &Experts,
    place: &Tensor,
) -> Result<()> {
    let vectors_of_a_token = (1 + experts.index.columns()) * place.columns() * place.dtype.size() / VECTOR_BYTES;
    let (tokens, between_checks) = (place.rows(), (VECTORS_BETWEEN_CHECKS / vectors_of_a_token).max(1));
    for first in (0..tokens).step_by(between_checks) {
        if first > 0 {
            workspace.check(running)?;
        }
        let tokens = first..tokens.min(first + between_checks);
        dispatch(Finalisation::<E> { experts, place, tokens, element: PhantomData });
    }
    Ok(())
}

/// Some tokens' rows. Products and sums are each rounded: what the kernels do.
struct Finalisation<'a, E> {
    experts: &'a Experts,
    place: &'a Tensor,
    tokens: Range<usize>,
    element: PhantomData<E>,
}

impl<E: Element> Job for Finalisation<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<P: Processor>(self) {
        // A copy: the compiler knows then that no write to the place changes it.
        let experts @ Experts { rows, index, shared, .. } = *self.experts;
        // SAFETY: the promise of `finalise`'s caller.
        let (expert_rows, place) = unsafe { (Operand::contiguous(&rows), Operand::contiguous(self.place)) };
        // SAFETY: as above.
        let shared = shared.map(|shared| unsafe { Operand::contiguous(&shared) });
        let (row_vectors, per_token) = (rows.columns() * rows.dtype.size() / VECTOR_BYTES, index.columns());
        let mut terms = Vec::with_capacity(per_token);
        for token in self.tokens {
            let entries = token * per_token..(token + 1) * per_token;
            terms.clear();
            // SAFETY: as above; each of these is an entry.
            terms.extend(entries.filter_map(|entry| unsafe { experts.term(entry) }));
            for at in token * row_vectors..(token + 1) * row_vectors {
                let column = at - token * row_vectors;
                let mut sum = E::Lanes::ZERO;
                for &(row, weight) in &terms {
                    let term = match row {
                        Some(row) => E::widen::<P>(expert_rows.read(row * row_vectors + column)).scale(weight),
                        None => E::Lanes::splat(f32::NAN),
                    };
                    sum = sum.add(term);
                }
                if let Some(shared) = shared {
                    sum = sum.add(E::widen::<P>(shared.read(at)));
                }
                place.write(at, E::narrow::<P>(sum));
            }
        }
    }
}

impl Experts {
    /// The number of an entry's row and its weight; no number, if there is no such row; nothing, if the entry is -1.
    ///
    /// # Safety
    /// The entry is one of the index and of the weights, which are contiguous.
    unsafe fn term(&self, entry: usize) -> Option<(Option<usize>, f32)> {
        // SAFETY: the caller's promise.
        let index = unsafe { self.index.pointer.cast::<i32>().add(entry).read_unaligned() };
        if index == -1 {
            return None;
        }
        let row = usize::try_from(index).ok().filter(|row| *row < self.rows.rows());
        let place = self.weights.pointer.wrapping_add(entry * self.weights.dtype.size());
        // SAFETY: the caller's promise.
        let weight = unsafe {
            match self.weights.dtype {
                Dtype::Float16 => place.cast::<f16>().read_unaligned().to_f32(),
                Dtype::BFloat16 => place.cast::<bf16>().read_unaligned().to_f32(),
                _ => place.cast::<f32>().read_unaligned(),
            }
        };
        Some((row, weight))
    }
}
