//! The operations over shared memory: the rows are finalised where the result will be, and summed in place.

use std::marker::PhantomData;

use half::{bf16, f16};
use lamport_rs_protocol::sentinel::VECTOR_BYTES;

use super::{Experts, MoeFinalizeAllReduce, MoeFinalizeAllReduceRmsNorm};
use crate::error::Result;
use crate::interrupts::Interrupted;
use crate::operations::all_reduce::host::{plan, run_sum};
use crate::operations::host::element::{Element, Lanes};
use crate::operations::host::operand::Operand;
use crate::operations::host::processor::{Job, Processor};
use crate::operations::host::with_nan_on_failure;
use crate::operations::operands::{OnHost, Operands};
use crate::operations::rms_norm::host::{check_host, run_norm};
use crate::tensor::{Device, Dtype, Tensor};
use crate::workspace::host::HostWorkspace;

impl OnHost for MoeFinalizeAllReduceRmsNorm {
    fn check_on_host(&self, workspace: &HostWorkspace) -> Result<()> {
        self.check(Device::Cpu)?;
        check_host(workspace, self.kind(), self.norm.algorithm)
    }

    unsafe fn run_on_host(&self, workspace: &HostWorkspace, interrupted: Interrupted<'_>) -> Result<()> {
        let mut run = || {
            self.check_on_host(workspace)?;
            let (experts, output) = (Some(&self.experts), Some(&self.norm.output));
            let description = self.describe();
            // SAFETY: the caller's promise; the operands were checked.
            unsafe { run_norm(workspace, &self.norm, experts, output, None, &description, interrupted) }
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

/// Writes rows of `E` that experts made to a place. Products and sums are each rounded: what the kernels do.
pub(in crate::operations) struct Finalisation<'a, E> {
    experts: &'a Experts,
    place: &'a Tensor,
    element: PhantomData<E>,
}

impl<'a, E> Finalisation<'a, E> {
    /// Of `experts`, at `place`.
    ///
    /// # Safety
    /// The operands were checked, and `place` is of the finalised rows' shape, and contiguous. Their pointers are valid
    /// until this has run; nothing else writes them.
    pub(in crate::operations) unsafe fn new(experts: &'a Experts, place: &'a Tensor) -> Self {
        Self { experts, place, element: PhantomData }
    }
}

impl<E: Element> Job for Finalisation<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<P: Processor>(self) {
        let Experts { rows, index, shared, .. } = self.experts;
        // SAFETY: `new`'s promise.
        let (expert_rows, place) = unsafe { (Operand::contiguous(rows), Operand::contiguous(self.place)) };
        // SAFETY: as above.
        let shared = shared.map(|shared| unsafe { Operand::contiguous(&shared) });
        let (row_vectors, per_token) = (rows.columns() * rows.dtype.size() / VECTOR_BYTES, index.columns());
        let mut terms = Vec::with_capacity(per_token);
        for token in 0..index.rows() {
            let entries = token * per_token..(token + 1) * per_token;
            terms.clear();
            // SAFETY: as above; each of these is an entry.
            terms.extend(entries.filter_map(|entry| unsafe { self.experts.term(entry) }));
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
