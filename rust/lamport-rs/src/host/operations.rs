//! The operations.

use lamport_rs_core::operations::all_reduce::AllReduce;
use lamport_rs_core::operations::minimax::{MinimaxRms, Norm};
use lamport_rs_core::operations::operands::OnHost;
use lamport_rs_core::tensor::Tensor;

use super::place::Place;
use super::{Communicator, never};
use crate::element::{Element, RmsNorm, WeightFor, check_length, packed_rows, rows_of};
use crate::error::{Error, Result};

impl Communicator {
    /// `buffer = sum over ranks of buffer`, of as many elements on each rank.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Timeout`], [`Aborted`](crate::ErrorKind::Aborted) and
    /// [`Mismatch`](crate::ErrorKind::Mismatch) if a rank does not come, fails, or calls something else: the result is NaN
    /// then, and the communicator [`Unusable`](crate::ErrorKind::Unusable) until a [reset](Self::reset).
    pub fn all_reduce<T: Element>(&mut self, buffer: &mut [T]) -> Result<()> {
        self.call(|this| {
            let shape = [buffer.len()];
            let mut place = Place::of_mut(buffer);
            let operand = place.operand(shape);
            let operands = AllReduce { input: operand, output: operand, algorithm: None };
            // SAFETY: the operand is `buffer`, or a copy in its place, which nobody else accesses during the call.
            let outcome = unsafe { this.run(&operands) };
            place.give_back();
            outcome
        })
    }

    /// `output = sum over ranks of input`, of as many elements on each rank.
    ///
    /// # Errors
    /// As of [`Self::all_reduce`], and [`crate::ErrorKind::Argument`] if the output has another length.
    pub fn all_reduce_into<T: Element>(&mut self, input: &[T], output: &mut [T]) -> Result<()> {
        self.call(|this| {
            check_length("output", output.len(), input.len())?;
            let shape = [input.len()];
            let (mut input_place, mut output_place) = (Place::of(input), Place::of_mut(output));
            let operands =
                AllReduce { input: input_place.operand(shape), output: output_place.operand(shape), algorithm: None };
            // SAFETY: the operands are the slices, or copies in their place. The output is borrowed by this call alone, and
            // the input, which is only read, is not written meanwhile.
            let outcome = unsafe { this.run(&operands) };
            output_place.give_back();
            outcome
        })
    }

    /// `residual += sum over ranks of hidden; hidden = rms_norm(residual) × weight`, row by row.
    ///
    /// A row has as many elements as `weight`, a multiple of 8. The residual is the same on every rank, and so is the
    /// weight.
    ///
    /// # Errors
    /// As of [`Self::all_reduce`], and [`crate::ErrorKind::Argument`] for what cannot be operands.
    pub fn all_reduce_rms_norm<T: Element, W: WeightFor<T>>(
        &mut self,
        hidden: &mut [T],
        residual: &mut [T],
        weight: &[W],
        norm: RmsNorm,
    ) -> Result<()> {
        self.call(|this| {
            let shape = rows_of("hidden", hidden.len(), weight.len())?;
            check_length("residual", residual.len(), hidden.len())?;
            let (mut hidden_place, mut residual_place) = (Place::of_mut(hidden), Place::of_mut(residual));
            let mut weight_place = Place::of(weight);
            let (input, added) = (hidden_place.operand(shape), residual_place.operand(shape));
            let operands = norm.of_sum(input, Some(added), weight_place.operand([weight.len()]), (input, added));
            // SAFETY: as in `all_reduce_into`.
            let outcome = unsafe { this.run(&operands) };
            hidden_place.give_back();
            residual_place.give_back();
            outcome
        })
    }

    /// `sum = sum over ranks of input + residual`, and `output = rms_norm(sum) × weight`, row by row. `outputs` are
    /// `output` and `sum`. Without a residual nothing is added.
    ///
    /// All but the weight are of one length. A row has as many elements as `weight`, a multiple of 8. The residual is the
    /// same on every rank, and so is the weight.
    ///
    /// ```
    /// use lamport_rs::RmsNorm;
    /// # use std::time::Duration;
    /// # use lamport_rs::host::Communicator;
    /// # use lamport_rs::{Options, TcpRendezvous};
    /// # let mut alone = TcpRendezvous::meet("127.0.0.1:0", "example", 0, 1, Duration::from_secs(30))?;
    /// # let mut communicator = Communicator::new(0, 1, &mut alone, Options::default())?;
    /// let (input, residual) = ([1.0_f32; 32], [2.0_f32; 32]);
    /// let weight = [0.5_f32; 16];
    /// let (mut output, mut sum) = ([0.0; 32], [0.0; 32]);
    /// let norm = RmsNorm::new(0.0);
    /// communicator.all_reduce_rms_norm_into(&input, Some(&residual), &weight, (&mut output, &mut sum), norm)?;
    /// assert_eq!((sum, output), ([3.0; 32], [0.5; 32]));
    /// # Ok::<(), lamport_rs::Error>(())
    /// ```
    ///
    /// An output cannot be what is read:
    ///
    /// ```compile_fail,E0502
    /// use lamport_rs::RmsNorm;
    /// # use std::time::Duration;
    /// # use lamport_rs::host::Communicator;
    /// # use lamport_rs::{Options, TcpRendezvous};
    /// # let mut alone = TcpRendezvous::meet("127.0.0.1:0", "example", 0, 1, Duration::from_secs(30))?;
    /// # let mut communicator = Communicator::new(0, 1, &mut alone, Options::default())?;
    /// let mut input = [1.0_f32; 32];
    /// let weight = [0.5_f32; 16];
    /// let mut sum = [0.0; 32];
    /// communicator.all_reduce_rms_norm_into(&input, None, &weight, (&mut input, &mut sum), RmsNorm::new(0.0))?;
    /// # Ok::<(), lamport_rs::Error>(())
    /// ```
    ///
    /// # Errors
    /// As of [`Self::all_reduce`], and [`crate::ErrorKind::Argument`] for what cannot be operands.
    pub fn all_reduce_rms_norm_into<T: Element, W: WeightFor<T>>(
        &mut self,
        input: &[T],
        residual: Option<&[T]>,
        weight: &[W],
        outputs: (&mut [T], &mut [T]),
        norm: RmsNorm,
    ) -> Result<()> {
        self.normalise_into(input, residual, (weight, None), outputs, |input, residual, (weight, _), outputs| {
            norm.of_sum(input, residual, weight, outputs)
        })
    }

    /// An operation that normalises the sum, with its outputs in slices of their own. `operands` makes it of the input, the
    /// residual, the weight and the bias, and the outputs, which are of the normalised rows and of the sum.
    pub(super) fn normalise_into<T: Element, W: WeightFor<T>, O: OnHost>(
        &mut self,
        input: &[T],
        residual: Option<&[T]>,
        (weight, bias): (&[W], Option<&[W]>),
        (output, sum): (&mut [T], &mut [T]),
        operands: impl FnOnce(Tensor, Option<Tensor>, (Tensor, Option<Tensor>), (Tensor, Tensor)) -> O,
    ) -> Result<()> {
        self.call(|this| {
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
            let operands = operands(
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

    /// `output = rms_norm(row) × weight` of rows that are spread over the ranks, as in MiniMax's attention: each rank has
    /// its part of every row, as many elements as its `weight`, a multiple of 8.
    ///
    /// # Errors
    /// As of [`Self::all_reduce`], and [`crate::ErrorKind::Argument`] for what cannot be operands.
    pub fn minimax_rms<T: Element, W: WeightFor<T>>(
        &mut self,
        input: &[T],
        weight: &[W],
        output: &mut [T],
        epsilon: f32,
    ) -> Result<()> {
        self.call(|this| {
            let shape = rows_of("input", input.len(), weight.len())?;
            check_length("output", output.len(), input.len())?;
            let (mut input_place, mut weight_place) = (Place::of(input), Place::of(weight));
            let mut output_place = Place::of_mut(output);
            let norm = Norm {
                input: input_place.operand(shape),
                weight: weight_place.operand([weight.len()]),
                output: output_place.operand(shape),
            };
            // SAFETY: as in `all_reduce_into`.
            let outcome = unsafe { this.run(&MinimaxRms::one(norm, epsilon)) };
            output_place.give_back();
            outcome
        })
    }

    /// [`Self::minimax_rms`] for Q and K at once, out of the rows `[q | k | …]` of a packed `qkv`.
    ///
    /// `weights` and `outputs` are of Q and of K. `columns` is the number of elements of a row of `qkv`, a multiple of 16
    /// bytes. This rank's part of Q has as many columns as Q's weight, and that of K as many as K's, each a multiple of 8;
    /// what stands behind them is not read. An output has as many rows as `qkv`, side by side.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use lamport_rs::host::Communicator;
    /// # use lamport_rs::{Options, TcpRendezvous};
    /// # let mut alone = TcpRendezvous::meet("127.0.0.1:0", "example", 0, 1, Duration::from_secs(30))?;
    /// # let mut communicator = Communicator::new(0, 1, &mut alone, Options::default())?;
    /// // Two rows: 16 elements of Q, 8 of K, and 8 of V.
    /// let row = [[3.0_f32; 16].as_slice(), &[5.0; 8], &[7.0; 8]].concat();
    /// let qkv = [row.clone(), row].concat();
    /// let (mut q, mut k) = ([0.0; 2 * 16], [0.0; 2 * 8]);
    /// communicator.minimax_rms_qk(&qkv, 32, (&[1.0_f32; 16], &[2.0_f32; 8]), (&mut q, &mut k), 0.0)?;
    /// assert_eq!((q, k), ([1.0; 32], [2.0; 16]));
    /// # Ok::<(), lamport_rs::Error>(())
    /// ```
    ///
    /// # Errors
    /// As of [`Self::all_reduce`], and [`crate::ErrorKind::Argument`] for what cannot be operands.
    pub fn minimax_rms_qk<T: Element, W: WeightFor<T>>(
        &mut self,
        qkv: &[T],
        columns: usize,
        weights: (&[W], &[W]),
        outputs: (&mut [T], &mut [T]),
        epsilon: f32,
    ) -> Result<()> {
        self.call(|this| {
            let (q, k) = outputs;
            let widths = [weights.0.len(), weights.1.len()];
            let [qkv_shape, q_shape, k_shape] = packed_rows::<T>(qkv.len(), columns, widths, [q.len(), k.len()])?;
            let mut qkv_place = Place::of(qkv);
            let mut weight_places = [Place::of(weights.0), Place::of(weights.1)];
            let (mut q_place, mut k_place) = (Place::of_mut(q), Place::of_mut(k));
            let operands = MinimaxRms::packed(
                qkv_place.operand(qkv_shape),
                widths.map(|width| width as i64),
                weight_places.each_mut().map(|place| place.operand([place.length()])),
                [q_place.operand(q_shape), k_place.operand(k_shape)],
                epsilon,
            )
            .map_err(Error::of_core)?;
            // SAFETY: as in `all_reduce_into`. Q and K are parts of `qkv`: `packed` has checked that a row holds them.
            let outcome = unsafe { this.run(&operands) };
            q_place.give_back();
            k_place.give_back();
            outcome
        })
    }

    /// # Safety
    /// The operands' places are valid until this returns. Nobody else accesses an output meanwhile, or writes an input.
    pub(super) unsafe fn run(&self, operands: &impl OnHost) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { operands.run_on_host(&self.workspace, &mut never) }.map_err(Error::of_core)
    }
}
