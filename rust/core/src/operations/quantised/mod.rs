//! What operations that quantise their rows have in common.
//!
//! | module | concept |
//! | --- | --- |
//! | this | where the results go, and the checks of that |
//! | [`format`](mod@format) | what a row becomes, on the host |

pub mod format;

use lamport_rs_kernels::Sink;
#[cfg(feature = "cuda")]
use lamport_rs_kernels::plan::rms_norm::QuantisedTensors;

use super::operand_checks::{Named, named};
use super::question::{Places, Question};
use crate::error::{Error, Result};
use crate::tensor::{Device, Dimensions, Dtype, Tensor};

/// How rows of an operation's input's shape are quantised, and where the results go.
#[derive(Clone, Copy, Debug)]
pub struct Quantised {
    /// The quantiser.
    pub sink: Sink,
    /// Where the quantised rows go, of the input's shape.
    pub rows: Tensor,
    /// Where the scales go, float32: `[…, scales of a row]`. If they are given, one.
    pub scales: Tensor,
}

impl Quantised {
    /// What they are passed as.
    fn named(&self) -> [Named<'_>; 2] {
        let scales = if self.sink.group_columns().is_none() { "scale" } else { "scale_out" };
        [named("out", &self.rows), named(scales, &self.scales)]
    }

    /// Checks what no copy of an operand would mend.
    pub(super) fn check(&self, input: &Tensor, device: Device) -> Result<()> {
        named("input", input).check_dtype(&[Dtype::Float16, Dtype::BFloat16])?;
        named("input", input).check_columns(self.sink.column_multiple())?;
        let [rows, scales] = self.named();
        rows.check_dtype(&[Dtype::Float8E4M3])?;
        rows.check_shape(input.shape.as_slice())?;
        scales.check_dtype(&[Dtype::Float32])?;
        match self.sink.scales_of_row(input.columns()) {
            Some(count) => scales.check_shape(input.shape.with_columns(count).as_slice())?,
            None if self.scales.elements() != 1 => {
                return Err(Error::Argument(format!(
                    "scale has shape {:?}, but must have one element",
                    self.scales.shape
                )));
            }
            None => {}
        }
        for operand in [rows, scales] {
            operand.check_place(device)?;
            operand.check_writable()?;
        }
        Ok(())
    }

    /// Checks how they lie, and that they share nothing with each other and with `others`, which were checked before.
    pub(super) fn check_layout<'a>(
        &self,
        input: &Tensor,
        others: impl Iterator<Item = (&'static str, &'a Tensor)> + Clone,
    ) -> Result<()> {
        let [rows, scales] = self.named();
        rows.check_layout()?;
        self.check_scales_layout(scales, input)?;
        for operand in [rows, scales] {
            for (name, other) in others.clone() {
                operand.check_separate(named(name, other))?;
            }
        }
        rows.check_separate(scales)
    }

    fn check_scales_layout(&self, scales: Named<'_>, input: &Tensor) -> Result<()> {
        if self.sink.is_column_major() {
            let expected = scale_strides(self.sink, scales.tensor.shape, input.columns());
            let lies = scales.tensor.shape.as_slice().iter().zip(scales.tensor.strides.as_slice());
            let mut lies = lies.zip(expected.as_slice());
            let is_empty = scales.tensor.elements() == 0;
            if scales.tensor.is_negated
                || !is_empty && !lies.all(|((&size, own), expected)| size == 1 || own == expected)
            {
                return Err(Error::Argument(format!(
                    "scale_out has shape {:?} and strides {:?}, but must have strides {expected:?}: leave scale_out to the \
                     operation",
                    scales.tensor.shape, scales.tensor.strides
                )));
            }
            return Ok(());
        }
        // One number may lie anywhere.
        if scales.tensor.elements() != 1 || scales.tensor.is_negated {
            scales.check_layout()?;
        }
        Ok(())
    }

    pub(super) fn from_question(question: &Question, places: &mut Places) -> Result<Self> {
        let sink = question.format.ok_or_else(|| {
            let names = Sink::ALL.map(Sink::name).join(", ");
            Error::Argument(format!("{} needs a format, one of {names}", question.kind.name()))
        })?;
        let rows = places.tensor(&question.shape, Dtype::Float8E4M3)?;
        let columns = question.columns();
        let scales = match sink.scales_of_row(columns) {
            Some(count) => {
                let mut scales = places.tensor(&question.with_columns(count), Dtype::Float32)?;
                scales.strides = scale_strides(sink, scales.shape, columns);
                scales
            }
            None => places.tensor(&[1], Dtype::Float32)?,
        };
        Ok(Self { sink, rows, scales })
    }

    /// Where they are from row `row` on.
    #[cfg(feature = "cuda")]
    pub(super) fn tensors_from(&self, row: usize) -> QuantisedTensors {
        let scale_strides = self.sink.scale_strides(self.rows.rows(), self.rows.columns());
        let scales = self.scales.pointer as u64 + (row * scale_strides[0] * size_of::<f32>()) as u64;
        QuantisedTensors { quantised: super::rms_norm::cuda::address_of(&self.rows, row), scales, scale_strides }
    }
}

/// Strides of scales of `shape`, where the rows that are quantised have `columns` columns.
fn scale_strides(sink: Sink, shape: Dimensions, columns: usize) -> Dimensions {
    let sizes = shape.as_slice();
    let outer = &sizes[..sizes.len().saturating_sub(1)];
    let [row, next] = sink.scale_strides(outer.iter().product(), columns);
    let mut strides = shape.with_columns(next);
    let mut stride = row;
    for dimension in (0..outer.len()).rev() {
        strides = strides.with(dimension, stride);
        stride *= outer[dimension].max(1);
    }
    strides
}
