//! The layer norm of a sum.

use std::sync::Arc;

use cudarc::driver::{CudaStream, CudaView, DevicePtr as _, DeviceSlice as _};

use super::{Buffer, BufferMut, Communicator};
use crate::element::{HalfElement, LayerNorm, WeightFor, check_length, rows_of};
use crate::error::Result;

impl Communicator {
    /// `sum = sum over ranks of input + residual`, and `output = layer_norm(sum) × weight + bias`, row by row. `outputs`
    /// are `output` and `sum`. Without a residual, or a bias, nothing is added.
    ///
    /// All but the weight and the bias are of one length. A row has as many elements as `weight`, a multiple of 8. The
    /// residual, the weight and the bias are the same on every rank. Views begin at multiples of 16 bytes.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Argument`] for what cannot be operands, and [`Unsupported`](crate::ErrorKind::Unsupported) in a
    /// group of one rank. What goes wrong later, a later call says: see [`crate::cuda`].
    pub fn all_reduce_layer_norm_into<T: HalfElement, W: WeightFor<T>>(
        &mut self,
        input: &impl Buffer<T>,
        residual: Option<CudaView<'_, T>>,
        (weight, bias): (&impl Buffer<W>, Option<CudaView<'_, W>>),
        (output, sum): (&mut impl BufferMut<T>, &mut impl BufferMut<T>),
        norm: LayerNorm,
        stream: &Arc<CudaStream>,
    ) -> Result<()> {
        self.enqueue(stream, |this| {
            this.check_contexts([
                ("input", input.stream()),
                ("weight", weight.stream()),
                ("output", output.stream()),
                ("the output of the sum", sum.stream()),
            ])?;
            let (shape, weights) = (rows_of("input", input.len(), weight.len())?, [weight.len()]);
            if let Some(residual) = &residual {
                this.check_contexts([("residual", residual.stream())])?;
                check_length("residual", residual.len(), input.len())?;
            }
            if let Some(bias) = &bias {
                this.check_contexts([("bias", bias.stream())])?;
                check_length("bias", bias.len(), weight.len())?;
            }
            check_length("output", output.len(), input.len())?;
            check_length("the output of the sum", sum.len(), input.len())?;
            let (input, _input) = input.device_ptr(stream);
            let (residual, _residual) = residual.as_ref().map(|residual| residual.device_ptr(stream)).unzip();
            let (weight, _weight) = weight.device_ptr(stream);
            let (bias, _bias) = bias.as_ref().map(|bias| bias.device_ptr(stream)).unzip();
            let (output, _output) = output.device_ptr_mut(stream);
            let (sum, _sum) = sum.device_ptr_mut(stream);
            let rows = |address| this.operand::<T, 2>(address, shape);
            let of_columns = |address| this.operand::<W, 1>(address, weights);
            let scaling = (of_columns(weight), bias.map(of_columns));
            let operands = norm.of_sum(rows(input), residual.map(rows), scaling, (rows(output), rows(sum)));
            // SAFETY: as in `all_reduce_rms_norm`.
            unsafe { this.run_behind(&operands, stream) }
        })
    }
}
