//! What operations that quantise their rows have in common.
//!
//! | module | concept |
//! | --- | --- |
//! | this | where the results go, and the checks of that |
//! | `rows` | rows that are quantised on the host |
//! | `format` | what their values become: the formats' definitions, and their numbers |

mod format;
pub(crate) mod rows;

use lamport_rs_kernels::Sink;
#[cfg(feature = "cuda")]
use lamport_rs_kernels::plan::rms_norm::QuantisedTensors;
use lamport_rs_kernels::sink::ScaleLayout;

#[cfg(feature = "cuda")]
use super::chunk::Chunk;
use super::operand_checks::{Named, named};
use super::question::{Places, Question};
#[cfg(feature = "cuda")]
use super::rms_norm::cuda::address_of;
use crate::error::{Error, Result};
use crate::tensor::{Device, Dimensions, Dtype, Tensor};

/// How rows of an operation's input's shape are quantised, and where the results go.
#[derive(Clone, Copy, Debug)]
pub struct Quantised {
    /// The quantiser.
    pub sink: Sink,
    /// Where the quantised rows go, of the input's shape but for how many columns an element holds.
    pub rows: Tensor,
    /// The tensor's scale, if the quantiser takes one: one float32.
    pub scale: Option<Tensor>,
    /// Where the scales go that it computes: `[…, elements of a row]`, or two dimensions of whole tiles. Not looked at, if
    /// there are none.
    pub scales: Tensor,
}

impl Quantised {
    /// The scales that are computed, if there are any.
    fn computed(&self) -> Option<Named<'_>> {
        self.sink.format().group_columns.map(|_| named("scale_out", &self.scales))
    }

    /// What the quantiser writes, or reads beside the rows.
    fn named(&self) -> impl Iterator<Item = Named<'_>> {
        let given = self.scale.as_ref().map(|scale| named("scale", scale));
        [named("out", &self.rows)].into_iter().chain(self.computed()).chain(given)
    }

    /// Checks what no copy of an operand would mend.
    pub(super) fn check(&self, input: &Tensor, device: Device) -> Result<()> {
        let format = self.sink.format();
        named("input", input).check_dtype(&[Dtype::Float16, Dtype::BFloat16])?;
        named("input", input).check_columns(self.sink.column_multiple())?;
        let rows = named("out", &self.rows);
        rows.check_dtype(&[format.code])?;
        rows.check_shape(input.shape.with_columns(input.columns() / format.columns_per_code).as_slice())?;
        if let Some(scales) = self.computed() {
            scales.check_dtype(&[format.scale])?;
            scales.check_shape(scales_of(self.sink, input.shape).0.as_slice())?;
        }
        self.check_given_scale()?;
        for operand in self.named() {
            operand.check_place(device)?;
            operand.check_writable()?;
        }
        Ok(())
    }

    /// Checks that no two outputs share memory, these and `others`, however they lie: they may be copied back.
    pub(super) fn check_apart<'a>(
        &self,
        others: impl Iterator<Item = (&'static str, &'a Tensor)> + Clone,
    ) -> Result<()> {
        let rows = named("out", &self.rows);
        for operand in [rows].into_iter().chain(self.computed()) {
            others.clone().try_for_each(|(name, other)| operand.check_apart(named(name, other)))?;
        }
        self.computed().map_or(Ok(()), |scales| rows.check_apart(scales))
    }

    fn check_given_scale(&self) -> Result<()> {
        match &self.scale {
            Some(scale) if self.sink.format().is_given => {
                named("scale", scale).check_dtype(&[Dtype::Float32])?;
                if scale.elements() != 1 {
                    return Err(Error::Argument(format!(
                        "scale has shape {:?}, but must have one element",
                        scale.shape
                    )));
                }
                Ok(())
            }
            None if !self.sink.format().is_given => Ok(()),
            scale => {
                let what = if scale.is_some() { "takes no scale" } else { "needs a scale" };
                Err(Error::Argument(format!("{} {what}", self.sink.name())))
            }
        }
    }

    /// Checks how they lie, and that they share nothing with each other and with `others`, which were checked before.
    pub(super) fn check_layout<'a>(
        &self,
        input: &Tensor,
        others: impl Iterator<Item = (&'static str, &'a Tensor)> + Clone,
    ) -> Result<()> {
        named("out", &self.rows).check_layout()?;
        if let Some(scales) = self.computed() {
            self.check_scales_layout(scales, input)?;
        }
        if let Some(scale) = self.scale.filter(|scale| scale.is_negated) {
            named("scale", &scale).check_layout()?;
        }
        for (index, operand) in self.named().enumerate() {
            for (name, other) in others.clone() {
                operand.check_separate(named(name, other))?;
            }
            for other in self.named().skip(index + 1) {
                operand.check_separate(other)?;
            }
        }
        Ok(())
    }

    fn check_scales_layout(&self, scales: Named<'_>, input: &Tensor) -> Result<()> {
        if self.sink.format().layout != ScaleLayout::RowMajor {
            let (_, expected) = scales_of(self.sink, input.shape);
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
            // Bytes are stored four at a time.
            if !scales.is_aligned_to(size_of::<u32>()) {
                return Err(Error::Argument(
                    "scale_out is not aligned to 4 bytes: leave scale_out to the operation".to_owned(),
                ));
            }
            return Ok(());
        }
        // One number may lie anywhere that its dtype may.
        let is_one = scales.tensor.elements() == 1 && scales.is_aligned_to(scales.tensor.dtype.size());
        if is_one && !scales.tensor.is_negated { Ok(()) } else { scales.check_layout() }
    }

    pub(super) fn from_question(question: &Question, places: &mut Places) -> Result<Self> {
        let sink = question.format.ok_or_else(|| {
            let names = Sink::ALL.map(Sink::name).join(", ");
            Error::Argument(format!("{} needs a format, one of {names}", question.kind.name()))
        })?;
        let format = sink.format();
        let rows = places.tensor(&question.with_columns(question.columns() / format.columns_per_code), format.code)?;
        let scale = if format.is_given { Some(places.tensor(&[1], Dtype::Float32)?) } else { None };
        let (shape, strides) = scales_of(sink, rows.shape.with_columns(question.columns()));
        let scales = Tensor { strides, ..places.tensor(shape.as_slice(), format.scale)? };
        Ok(Self { sink, rows, scale, scales })
    }

    /// Where they are on the device, for the rows of `chunk`.
    #[cfg(feature = "cuda")]
    pub(super) fn tensors_from(&self, chunk: &Chunk) -> QuantisedTensors {
        let rows = self.rows.rows();
        let columns = self.rows.columns() * self.sink.format().columns_per_code;
        QuantisedTensors {
            quantised: address_of(&self.rows, chunk.start),
            scales: self.scales.pointer as u64,
            given_scale: self.scale.map(|scale| scale.pointer as u64),
            places: self.sink.scale_places(rows, columns),
            first_row: chunk.start,
            padding_rows: if chunk.end == rows { self.sink.scale_rows(rows) - rows } else { 0 },
        }
    }
}

/// Shape and strides of the scales that a quantiser computes of rows of `shape`.
pub fn scales_of(sink: Sink, shape: Dimensions) -> (Dimensions, Dimensions) {
    let sizes = shape.as_slice();
    let outer = &sizes[..sizes.len().saturating_sub(1)];
    let rows = outer.iter().product();
    let elements = sink.scale_elements(sizes.last().copied().unwrap_or(1));
    let [row, next] = sink.element_strides(rows, elements);
    if sink.format().layout == ScaleLayout::Swizzled {
        let two = |values: [usize; 2]| Dimensions::new(values).expect("there may be more than two dimensions");
        return (two([sink.scale_rows(rows), elements]), two([row, next]));
    }
    let mut strides = shape.with_columns(next);
    let mut stride = row;
    for dimension in (0..outer.len()).rev() {
        strides = strides.with(dimension, stride);
        stride *= outer[dimension].max(1);
    }
    (shape.with_columns(elements), strides)
}
