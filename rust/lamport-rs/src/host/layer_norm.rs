//! The layer norm of a sum.

use super::Communicator;
use super::place::Place;
use crate::element::{HalfElement, LayerNorm, WeightFor, check_length, rows_of};
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
        self.call(|this| {
            let (output, sum) = outputs;
            let (shape, weights) = (rows_of("input", input.len(), weight.len())?, [weight.len()]);
            if let Some(residual) = residual {
                check_length("residual", residual.len(), input.len())?;
            }
            if let Some(bias) = bias {
                check_length("bias", bias.len(), weight.len())?;
            }
            check_length("output", output.len(), input.len())?;
            check_length("the output of the sum", sum.len(), input.len())?;
            let (mut input_place, mut residual_place) = (Place::of(input), residual.map(Place::of));
            let (mut weight_place, mut bias_place) = (Place::of(weight), bias.map(Place::of));
            let (mut output_place, mut sum_place) = (Place::of_mut(output), Place::of_mut(sum));
            let operands = norm.of_sum(
                input_place.operand(shape),
                residual_place.as_mut().map(|place| place.operand(shape)),
                (weight_place.operand(weights), bias_place.as_mut().map(|place| place.operand(weights))),
                (output_place.operand(shape), sum_place.operand(shape)),
            );
            // SAFETY: as in `all_reduce_into`.
            let outcome = unsafe { this.run(&operands) };
            output_place.give_back();
            sum_place.give_back();
            outcome
        })
    }
}
