//! The operations whose rows are quantised.

use lamport_rs_core::operations::all_reduce_quant::AllReduceQuant;
use lamport_rs_core::operations::rms_norm_quant::AllReduceRmsNormQuant;

use super::Communicator;
use super::place::Place;
use crate::element::{HalfElement, RmsNorm, WeightFor, check_length, rows_in, rows_of, tensor};
use crate::error::Result;
use crate::quantised::check_sum;

/// How rows are quantised, and the slices that the results go to.
pub type Quantised<'a> = crate::quantised::Quantised<&'a mut [u8], f32>;
type Places<'a> = crate::quantised::Quantised<Place<'a, u8>, f32>;

impl<'a> Quantised<'a> {
    fn places(self) -> Places<'a> {
        let Self { format, codes, scales, scale } = self;
        Places { format, codes: Place::of_mut(codes), scales: scales.map(Place::of_mut), scale }
    }
}

impl Places<'_> {
    /// As the core has it, of rows of this shape.
    fn operands(&mut self, shape: [usize; 2]) -> Result<lamport_rs_core::operations::quantised::Quantised> {
        let bytes = |place: &mut Place<'_, u8>, dtype, shape| place.operand_of(dtype, shape);
        self.of_rows(shape, Place::length, bytes, |scale| tensor(scale, lamport_rs_core::tensor::Device::Cpu, [1]))
    }

    fn give_back(self) {
        self.codes.give_back();
        self.scales.into_iter().for_each(Place::give_back);
    }
}

impl Communicator {
    /// Codes and scales of the sum over ranks of `input`, whose rows have `columns` elements: a multiple of
    /// [`QuantFormat::column_multiple`](crate::QuantFormat::column_multiple). The sum itself goes to `sum`, if it is asked
    /// for; rows of more than 2048 columns need it.
    ///
    /// ```
    /// use half::bf16;
    /// use lamport_rs::QuantFormat;
    /// use lamport_rs::host::Quantised;
    /// # use std::time::Duration;
    /// # use lamport_rs::host::Communicator;
    /// # use lamport_rs::{Options, TcpRendezvous};
    /// # let mut alone = TcpRendezvous::meet("127.0.0.1:0", "example", 0, 1, Duration::from_secs(30))?;
    /// # let mut communicator = Communicator::new(0, 1, &mut alone, Options::default())?;
    /// let (rows, columns, format) = (2, 16, QuantFormat::Fp8Token);
    /// let input = vec![bf16::from_f32(896.0); rows * columns];
    /// let mut codes = vec![0; format.code_bytes(rows, columns)];
    /// let mut scales = vec![0; format.scale_bytes(rows, columns)];
    /// let quantised = Quantised::new(format, &mut codes).with_scales(&mut scales);
    /// communicator.all_reduce_quant(&input, columns, quantised, None)?;
    /// // 448, the largest FP8 e4m3, times 2.
    /// assert_eq!((codes, scales), (vec![0x7e; 32], [2.0_f32.to_ne_bytes(); 2].concat()));
    /// # Ok::<(), lamport_rs::Error>(())
    /// ```
    ///
    /// # Errors
    /// As of [`Self::all_reduce`], and [`crate::ErrorKind::Argument`] for what cannot be operands.
    pub fn all_reduce_quant<T: HalfElement>(
        &mut self,
        input: &[T],
        columns: usize,
        quantised: Quantised<'_>,
        sum: Option<&mut [T]>,
    ) -> Result<()> {
        self.call(|this| {
            let shape = rows_in("input", input.len(), columns)?;
            check_sum(sum.as_ref().map(|sum| sum.len()), shape)?;
            let (mut input_place, mut sum_place) = (Place::of(input), sum.map(Place::of_mut));
            let mut places = quantised.places();
            let input = input_place.operand(shape);
            let operands = AllReduceQuant {
                input,
                quantised: places.operands(shape)?,
                has_sum: sum_place.is_some(),
                // Not looked at, if there is none.
                sum: sum_place.as_mut().map_or(input, |place| place.operand(shape)),
                algorithm: None,
            };
            // SAFETY: as in `all_reduce_into`.
            let outcome = unsafe { this.run(&operands) };
            places.give_back();
            sum_place.into_iter().for_each(Place::give_back);
            outcome
        })
    }

    /// `sum = sum over ranks of input + residual`, and codes and scales of `rms_norm(sum) × weight`, row by row. `outputs`
    /// are these rows as they are, if they are asked for, and `sum`. Without a residual nothing is added.
    ///
    /// A row has as many elements as `weight`, a multiple of
    /// [`QuantFormat::column_multiple`](crate::QuantFormat::column_multiple). The residual and the weight are the same on
    /// every rank.
    ///
    /// # Errors
    /// As of [`Self::all_reduce`], and [`crate::ErrorKind::Argument`] for what cannot be operands.
    pub fn all_reduce_rms_norm_quant<T: HalfElement, W: WeightFor<T>>(
        &mut self,
        input: &[T],
        residual: Option<&[T]>,
        weight: &[W],
        quantised: Quantised<'_>,
        outputs: (Option<&mut [T]>, &mut [T]),
        norm: RmsNorm,
    ) -> Result<()> {
        self.call(|this| {
            let (output, sum) = outputs;
            let shape = rows_of("input", input.len(), weight.len())?;
            if let Some(residual) = residual {
                check_length("residual", residual.len(), input.len())?;
            }
            if let Some(output) = &output {
                check_length("output", output.len(), input.len())?;
            }
            check_length("the output of the sum", sum.len(), input.len())?;
            let (mut input_place, mut residual_place) = (Place::of(input), residual.map(Place::of));
            let (mut weight_place, mut places) = (Place::of(weight), quantised.places());
            let (mut output_place, mut sum_place) = (output.map(Place::of_mut), Place::of_mut(sum));
            let input = input_place.operand(shape);
            let residual = residual_place.as_mut().map(|place| place.operand(shape));
            // Not looked at, if there is none.
            let output = output_place.as_mut().map_or(input, |place| place.operand(shape));
            let weight = weight_place.operand([weight.len()]);
            let operands = AllReduceRmsNormQuant {
                norm: norm.of_sum(input, residual, weight, (output, sum_place.operand(shape))),
                has_output: output_place.is_some(),
                quantised: places.operands(shape)?,
            };
            // SAFETY: as in `all_reduce_into`.
            let outcome = unsafe { this.run(&operands) };
            places.give_back();
            output_place.into_iter().for_each(Place::give_back);
            sum_place.give_back();
            outcome
        })
    }
}
