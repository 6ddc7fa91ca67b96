//! The operations on rows that experts made.

use lamport_rs_core::operations::moe_finalize::{self as core, MoeFinalizeAllReduce, MoeFinalizeAllReduceRmsNorm};
use lamport_rs_core::tensor::Dtype;

use super::Communicator;
use super::place::Place;
use crate::element::{Element, HalfElement, RmsNorm, WeightFor, check_length, elements};
use crate::error::Result;

/// The rows that this rank's experts made, in slices.
pub type Experts<'a, T, W> = crate::experts::Experts<&'a [T], &'a [i32], &'a [W]>;
type Places<'a, T, W> = crate::experts::Experts<Place<'a, T>, Place<'a, i32>, Place<'a, W>>;

impl<'a, T: HalfElement, W: Element> Experts<'a, T, W> {
    fn places(&self) -> Places<'a, T, W> {
        Places {
            rows: Place::of(self.rows),
            columns: self.columns,
            index: Place::of(self.index),
            weights: Place::of(self.weights),
            top_k: self.top_k,
            shared: self.shared.map(Place::of),
        }
    }
}

impl<T: HalfElement, W: Element> Places<'_, T, W> {
    /// As the core has them, and the shape of the tokens' rows.
    fn operands(&mut self) -> Result<(core::Experts, [usize; 2])> {
        let (rows, index, tokens) = self.shapes(Place::length, self.index.length(), self.weights.length())?;
        let experts = core::Experts {
            rows: self.rows.operand(rows),
            index: self.index.operand_of(Dtype::Int32, index),
            weights: self.weights.operand(index),
            shared: self.shared.as_mut().map(|place| place.operand(tokens)),
        };
        Ok((experts, tokens))
    }
}

impl Communicator {
    /// `output = sum over ranks of the tokens' rows`, which are made of what each rank's experts made. The output has a row for
    /// each token.
    ///
    /// ```
    /// use half::bf16;
    /// use lamport_rs::host::Experts;
    /// # use std::time::Duration;
    /// # use lamport_rs::host::Communicator;
    /// # use lamport_rs::{Options, TcpRendezvous};
    /// # let mut alone = TcpRendezvous::meet("127.0.0.1:0", "example", 0, 1, Duration::from_secs(30))?;
    /// # let mut communicator = Communicator::new(0, 1, &mut alone, Options::default())?;
    /// // Two rows of experts, and a token that takes both.
    /// let rows = [[bf16::from_f32(3.0); 8], [bf16::from_f32(5.0); 8]].concat();
    /// let mut output = [bf16::ZERO; 8];
    /// let experts = Experts::new(&rows, 8, (&[1, 0], &[2.0_f32, 1.0]), 2);
    /// communicator.moe_finalize_all_reduce(&experts, &mut output)?;
    /// assert_eq!(output, [bf16::from_f32(13.0); 8]);
    /// # Ok::<(), lamport_rs::Error>(())
    /// ```
    ///
    /// # Errors
    /// As of [`Self::all_reduce`], and [`crate::ErrorKind::Argument`] for what cannot be operands.
    pub fn moe_finalize_all_reduce<T: HalfElement, W: WeightFor<T>>(
        &mut self,
        experts: &Experts<'_, T, W>,
        output: &mut [T],
    ) -> Result<()> {
        self.call(|this| {
            let mut places = experts.places();
            let (experts, shape) = places.operands()?;
            check_length("output", output.len(), elements(shape))?;
            let mut output_place = Place::of_mut(output);
            // SAFETY: as in `all_reduce_into`.
            let outcome = unsafe { this.run(&MoeFinalizeAllReduce::new(experts, output_place.operand(shape))) };
            output_place.give_back();
            outcome
        })
    }

    /// `sum = sum over ranks of the tokens' rows + residual`, and `output = rms_norm(sum) × weight`, row by row. `outputs`
    /// are `output` and `sum`. Without a residual nothing is added.
    ///
    /// A row has as many elements as `weight`. The residual and the weight are the same on every rank.
    ///
    /// # Errors
    /// As of [`Self::all_reduce`], and [`crate::ErrorKind::Argument`] for what cannot be operands.
    pub fn moe_finalize_all_reduce_rms_norm<T: HalfElement, E: WeightFor<T>, W: WeightFor<T>>(
        &mut self,
        experts: &Experts<'_, T, E>,
        residual: Option<&[T]>,
        weight: &[W],
        outputs: (&mut [T], &mut [T]),
        norm: RmsNorm,
    ) -> Result<()> {
        self.call(|this| {
            let (output, sum) = outputs;
            let mut places = experts.places();
            let (experts, shape) = places.operands()?;
            let length = elements(shape);
            check_length("weight", weight.len(), shape[1])?;
            if let Some(residual) = residual {
                check_length("residual", residual.len(), length)?;
            }
            check_length("output", output.len(), length)?;
            check_length("the output of the sum", sum.len(), length)?;
            let (mut residual_place, mut weight_place) = (residual.map(Place::of), Place::of(weight));
            let (mut output_place, mut sum_place) = (Place::of_mut(output), Place::of_mut(sum));
            let (output, sum) = (output_place.operand(shape), sum_place.operand(shape));
            let residual = residual_place.as_mut().map(|place| place.operand(shape));
            let norm = norm.of_sum(output, residual, weight_place.operand([weight.len()]), (output, sum));
            // SAFETY: as in `all_reduce_into`.
            let outcome = unsafe { this.run(&MoeFinalizeAllReduceRmsNorm::new(experts, norm)) };
            output_place.give_back();
            sum_place.give_back();
            outcome
        })
    }
}
