//! The operations on rows that experts made.

use std::sync::Arc;

use cudarc::driver::{CudaStream, CudaView, DevicePtr as _, DeviceSlice as _};
use lamport_rs_core::operations::moe_finalize::{self as core, MoeFinalizeAllReduce, MoeFinalizeAllReduceRmsNorm};
use lamport_rs_core::tensor::Dtype;

use super::{Buffer, BufferMut, Communicator};
use crate::element::{Element, HalfElement, RmsNorm, WeightFor, check_length, elements};
use crate::error::Result;

/// The rows that this rank's experts made, in device memory. Views begin at multiples of 16 bytes.
pub type Experts<'a, T, W> = crate::experts::Experts<CudaView<'a, T>, CudaView<'a, i32>, CudaView<'a, W>>;

impl Communicator {
    /// Calls `run` with the experts' rows as the core has them, and the shape of the tokens' rows.
    fn with_experts<T: HalfElement, W: Element>(
        &self,
        experts: &Experts<'_, T, W>,
        stream: &Arc<CudaStream>,
        run: impl FnOnce(core::Experts, [usize; 2]) -> Result<()>,
    ) -> Result<()> {
        self.check_contexts([
            ("the buffer of experts' rows", experts.rows.stream()),
            ("the index", experts.index.stream()),
            ("the buffer of experts' weights", experts.weights.stream()),
        ])?;
        if let Some(shared) = &experts.shared {
            self.check_contexts([("the buffer of shared rows", shared.stream())])?;
        }
        let (of_rows, of_index, tokens) =
            experts.shapes(|rows| rows.len(), experts.index.len(), experts.weights.len())?;
        let (rows, _rows) = experts.rows.device_ptr(stream);
        let (index, _index) = experts.index.device_ptr(stream);
        let (weights, _weights) = experts.weights.device_ptr(stream);
        let (shared, _shared) = experts.shared.as_ref().map(|shared| shared.device_ptr(stream)).unzip();
        let experts = core::Experts {
            rows: self.operand::<T, 2>(rows, of_rows),
            index: self.operand_of(index, Dtype::Int32, of_index),
            weights: self.operand::<W, 2>(weights, of_index),
            shared: shared.map(|address| self.operand::<T, 2>(address, tokens)),
        };
        run(experts, tokens)
    }

    /// `output = sum over ranks of the tokens' rows`, which are made of what each rank's experts made. The output has a row for
    /// each token. Views begin at multiples of 16 bytes.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Argument`] for what cannot be operands, and [`Unsupported`](crate::ErrorKind::Unsupported) in a
    /// group of one rank. What goes wrong later, a later call says: see [`crate::cuda`].
    pub fn moe_finalize_all_reduce<T: HalfElement, W: WeightFor<T>>(
        &mut self,
        experts: &Experts<'_, T, W>,
        output: &mut impl BufferMut<T>,
        stream: &Arc<CudaStream>,
    ) -> Result<()> {
        self.enqueue(stream, |this| {
            this.check_contexts([("output", output.stream())])?;
            this.with_experts(experts, stream, |experts, shape| {
                check_length("output", output.len(), elements(shape))?;
                let (output, _output) = output.device_ptr_mut(stream);
                let operands = MoeFinalizeAllReduce::new(experts, this.operand::<T, 2>(output, shape));
                // SAFETY: as in `all_reduce_rms_norm`.
                unsafe { this.run_behind(&operands, stream) }
            })
        })
    }

    /// `sum = sum over ranks of the tokens' rows + residual`, and `output = rms_norm(sum) × weight`, row by row. `outputs`
    /// are `output` and `sum`. Without a residual nothing is added.
    ///
    /// A row has as many elements as `weight`. The residual and the weight are the same on every rank. Views
    /// begin at multiples of 16 bytes.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Argument`] for what cannot be operands, and [`Unsupported`](crate::ErrorKind::Unsupported) in a
    /// group of one rank. What goes wrong later, a later call says: see [`crate::cuda`].
    pub fn moe_finalize_all_reduce_rms_norm<T: HalfElement, E: WeightFor<T>, W: WeightFor<T>>(
        &mut self,
        experts: &Experts<'_, T, E>,
        residual: Option<CudaView<'_, T>>,
        weight: &impl Buffer<W>,
        (output, sum): (&mut impl BufferMut<T>, &mut impl BufferMut<T>),
        norm: RmsNorm,
        stream: &Arc<CudaStream>,
    ) -> Result<()> {
        self.enqueue(stream, |this| {
            this.check_contexts([
                ("weight", weight.stream()),
                ("output", output.stream()),
                ("the output of the sum", sum.stream()),
            ])?;
            if let Some(residual) = &residual {
                this.check_contexts([("residual", residual.stream())])?;
            }
            this.with_experts(experts, stream, |experts, shape| {
                let length = elements(shape);
                check_length("weight", weight.len(), shape[1])?;
                if let Some(residual) = &residual {
                    check_length("residual", residual.len(), length)?;
                }
                check_length("output", output.len(), length)?;
                check_length("the output of the sum", sum.len(), length)?;
                let (residual, _residual) = residual.as_ref().map(|residual| residual.device_ptr(stream)).unzip();
                let (weight, _weight) = weight.device_ptr(stream);
                let (output, _output) = output.device_ptr_mut(stream);
                let (sum, _sum) = sum.device_ptr_mut(stream);
                let rows = |address| this.operand::<T, 2>(address, shape);
                let weight = this.operand::<W, 1>(weight, [shape[1]]);
                let norm = norm.of_sum(rows(output), residual.map(rows), weight, (rows(output), rows(sum)));
                // SAFETY: as in `all_reduce_rms_norm`.
                unsafe { this.run_behind(&MoeFinalizeAllReduceRmsNorm::new(experts, norm), stream) }
            })
        })
    }
}
