//! The layer norm of a sum.

use super::Communicator;
use crate::element::{HalfElement, LayerNorm, WeightFor};
use crate::error::Result;

impl Communicator {
    /// `sum = sum over ranks of input + residual`, and `output = layer_norm(sum) × weight + bias`, row by row. `outputs`
    /// are `output` and `sum`. Without a residual, or a bias, nothing is added.
    ///
    /// All but the weight and the bias are of one length. A row has as many elements as `weight`, a multiple of 8. The
    /// residual, the weight and the bias are the same on every rank.
    ///
    /// # Errors
    /// As of [`Self::all_reduce`], and [`crate::ErrorKind::Argument`] for what cannot be operands.
    pub fn all_reduce_layer_norm_into<T: HalfElement, W: WeightFor<T>>(
        &mut self,
        input: &[T],
        residual: Option<&[T]>,
        (weight, bias): (&[W], Option<&[W]>),
        outputs: (&mut [T], &mut [T]),
        norm: LayerNorm,
    ) -> Result<()> {
        self.normalise_into(input, residual, (weight, bias), outputs, |input, residual, scaling, outputs| {
            norm.of_sum(input, residual, scaling, outputs)
        })
    }
}
