//! The layer norm of a sum.

use std::sync::Arc;

use cudarc::driver::{CudaStream, CudaView};

use super::{Buffer, BufferMut, Communicator};
use crate::element::{HalfElement, LayerNorm, WeightFor};
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
        self.normalise_into(
            input,
            residual,
            (weight, bias),
            (output, sum),
            stream,
            |input, residual, scaling, outputs| norm.of_sum(input, residual, scaling, outputs),
        )
    }
}
