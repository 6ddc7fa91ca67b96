//! Quantised outputs: their formats, and where they go.

use lamport_rs_core::operations::all_reduce_quant::HELD_COLUMNS;
use lamport_rs_core::operations::quantised::{self as core, scales_of};
use lamport_rs_core::operations::rms_norm_quant::Sink;
use lamport_rs_core::tensor::{Dimensions, Dtype, Tensor};

use crate::element::{check_length, elements};
use crate::error::{Error, Result};

/// How rows are quantised: what their codes and scales are, and where the scales lie.
///
/// Rows are rounded to their own type first, and then quantised as below, in float32: codes and scales are the same whether
/// or not the rows are asked for. Codes are rounded to nearest even. They lie row by row, without gaps, and so do scales
/// unless it says otherwise. Numbers of more than one byte are in the machine's order.
///
/// `largest` is the largest magnitude of the values that share a scale, `r` a row, and `g` a group of columns of the row.
/// FP8 e4m3 goes to 448, and FP4 e2m1 to 6; beyond these they saturate. Exponents of powers of two have the bias 127.
///
/// A value that is NaN has the code `0x7f` in FP8, and 6 in FP4, which has no NaN. The scale of a group with a NaN is NaN,
/// too: `0xff` as an exponent. If an operation fails, all codes and scales are NaN; NVFP4's bytes are `0xff` then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum QuantFormat {
    /// FP8 e4m3, a byte an element: the code of `value × (1 / scale)`. The scale is one float32 for all rows, and given.
    Fp8Static,
    /// FP8 e4m3: the code of `value / scale`. The scale is a float32 for each row: `largest / 448`, at least `1 / (448 ×
    /// 512)`.
    Fp8Token,
    /// FP8 e4m3: the code of `value / scale`. The scale is a float32 for each 128 columns: `max(largest, 1e-10) / 448`.
    Fp8Group,
    /// The same with the scales column by column, as DeepGEMM reads them: that of `r` and `g` is number `g × R + r`, where
    /// `R` is the number of rows, rounded up to a multiple of 4. What is between is left as it is.
    Fp8GroupColumnMajor,
    /// FP8 e4m3 with a power of two for each 128 columns: the least that is not below `largest / 448` and `1e-10`. That of
    /// `r` and `g` is byte `(g / 4 × R + r) × 4 + g % 4`, with `R` as above. Bytes of groups that a row does not have are 0,
    /// and those of rows that are not there are left as they are.
    Fp8GroupUe8m0,
    /// MXFP8: FP8 e4m3 with a power of two for each 32 columns: the least that is not below `largest / 448`. Its exponent is
    /// a byte.
    Mxfp8,
    /// The same with the scales in tiles of 128 rows and 4 groups, the tiles row by row: that of `r` and `g` is byte `tile ×
    /// 512 + r % 32 × 16 + r % 128 / 32 × 4 + g % 4`, with `tile = r / 128 × (groups / 4) + g / 4`. Rows that are not there
    /// have 0, unless the operation fails.
    Mxfp8Swizzled,
    /// NVFP4: FP4 e2m1, two columns to a byte, the first in its lower half, with an FP8 e4m3 scale for each 16 columns:
    /// `given × largest / 6`. A code stands for `code × scale / given`. `given` is one float32 for all rows: `448 × 6`,
    /// divided by the largest magnitude that there may be.
    Nvfp4,
    /// The same with the scales in tiles as those of [`Self::Mxfp8Swizzled`].
    Nvfp4Swizzled,
}

impl QuantFormat {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::Fp8Static,
        Self::Fp8Token,
        Self::Fp8Group,
        Self::Fp8GroupColumnMajor,
        Self::Fp8GroupUe8m0,
        Self::Mxfp8,
        Self::Mxfp8Swizzled,
        Self::Nvfp4,
        Self::Nvfp4Swizzled,
    ];

    fn sink(self) -> Sink {
        match self {
            Self::Fp8Static => Sink::Fp8Static,
            Self::Fp8Token => Sink::Fp8Token,
            Self::Fp8Group => Sink::Fp8Group,
            Self::Fp8GroupColumnMajor => Sink::Fp8GroupColumnMajor,
            Self::Fp8GroupUe8m0 => Sink::Fp8GroupUe8m0,
            Self::Mxfp8 => Sink::Mxfp8,
            Self::Mxfp8Swizzled => Sink::Mxfp8Swizzled,
            Self::Nvfp4 => Sink::Nvfp4,
            Self::Nvfp4Swizzled => Sink::Nvfp4Swizzled,
        }
    }

    /// What the length of a row must be a multiple of.
    pub fn column_multiple(self) -> usize {
        self.sink().column_multiple()
    }

    /// Whether a scale for all rows must be given.
    pub fn takes_scale(self) -> bool {
        self.sink().format().is_given
    }

    /// Bytes of the codes of `rows` rows of `columns` columns.
    pub fn code_bytes(self, rows: usize, columns: usize) -> usize {
        elements([rows, columns / self.sink().format().columns_per_code])
    }

    /// Bytes of the scales that are computed of `rows` rows of `columns` columns, with what is between them; 0 if none are.
    pub fn scale_bytes(self, rows: usize, columns: usize) -> usize {
        let sink = self.sink();
        if sink.format().group_columns.is_none() {
            return 0;
        }
        let of_row = sink.scale_elements(columns);
        let [row, element] = sink.element_strides(rows, of_row);
        // Either scales of a row lie side by side, or those of a column do.
        let count = if element == 1 { [sink.scale_rows(rows), row] } else { [of_row, element] };
        elements([count[0], count[1], sink.format().scale.size()])
    }
}

/// How rows are quantised, and where the results go. [`host::Quantised`](crate::host::Quantised) is the one of slices, and
/// `cuda::Quantised` that of device memory.
#[derive(Debug)]
pub struct Quantised<Bytes, Scale> {
    pub(crate) format: QuantFormat,
    pub(crate) codes: Bytes,
    pub(crate) scales: Option<Bytes>,
    pub(crate) scale: Option<Scale>,
}

impl<Bytes, Scale> Quantised<Bytes, Scale> {
    /// The codes go to `codes`, [as many bytes](QuantFormat::code_bytes) as the rows have.
    pub fn new(format: QuantFormat, codes: Bytes) -> Self {
        Self { format, codes, scales: None, scale: None }
    }

    /// The scales that are computed go to `scales`, [as many bytes](QuantFormat::scale_bytes) as the rows have: all formats
    /// but [`QuantFormat::Fp8Static`] need it.
    pub fn with_scales(self, scales: Bytes) -> Self {
        Self { scales: Some(scales), ..self }
    }

    /// The scale for all rows, which the formats need that [take one](QuantFormat::takes_scale): positive and finite, and the
    /// same on every rank. Neither is checked: where ranks differ, so do their codes.
    pub fn with_scale(self, scale: Scale) -> Self {
        Self { scale: Some(scale), ..self }
    }

    /// As the core has it, of rows of this shape. `length` is that of a buffer; `bytes` makes an operand of one whose length
    /// was checked, and `scale` one of the scale.
    pub(crate) fn of_rows(
        &mut self,
        [rows, columns]: [usize; 2],
        length: impl Fn(&Bytes) -> usize,
        mut bytes: impl FnMut(&mut Bytes, Dtype, [usize; 2]) -> Tensor,
        scale: impl FnOnce(&mut Scale) -> Tensor,
    ) -> Result<core::Quantised> {
        let (sink, format) = (self.format.sink(), self.format.sink().format());
        if !columns.is_multiple_of(sink.column_multiple()) {
            let multiple = sink.column_multiple();
            return Err(Error::argument(format!(
                "rows have {columns} columns, but must have a multiple of {multiple}"
            )));
        }
        check_length("the buffer of codes", length(&self.codes), self.format.code_bytes(rows, columns))?;
        let codes = bytes(&mut self.codes, format.code, [rows, columns / format.columns_per_code]);
        let scales = match &mut self.scales {
            Some(scales) => {
                check_length("the buffer of scales", length(scales), self.format.scale_bytes(rows, columns))?;
                let shape = Dimensions::new([rows, columns]).expect("two dimensions");
                let (shape, strides) = scales_of(sink, shape);
                let &[outer, inner] = shape.as_slice() else { unreachable!("scales of a matrix are one") };
                Tensor { strides, ..bytes(scales, format.scale, [outer, inner]) }
            }
            None if format.group_columns.is_none() => codes,
            None => {
                let bytes = self.format.scale_bytes(rows, columns);
                return Err(Error::argument(format!(
                    "{:?} needs a buffer of {bytes} bytes for its scales; pass it by with_scales",
                    self.format
                )));
            }
        };
        if self.scale.is_some() != self.format.takes_scale() {
            let what = match self.scale {
                Some(_) => "takes no scale; leave with_scale out",
                None => "needs a scale; pass it by with_scale",
            };
            return Err(Error::argument(format!("{:?} {what}", self.format)));
        }
        Ok(core::Quantised { sink, rows: codes, scale: self.scale.as_mut().map(scale), scales })
    }
}

/// Checks that the sum has as many elements as the rows have, and is there if these are longer than kernels hold.
pub(crate) fn check_sum(sum: Option<usize>, [rows, columns]: [usize; 2]) -> Result<()> {
    match sum {
        Some(length) => check_length("the output of the sum", length, elements([rows, columns])),
        None if columns <= HELD_COLUMNS => Ok(()),
        None => Err(Error::argument(format!(
            "rows have {columns} columns, and those of more than {HELD_COLUMNS} need a buffer for the sum; pass it as `sum`"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_quantiser_has_a_format() {
        let sinks: Vec<_> = QuantFormat::ALL.iter().map(|format| format.sink()).collect();
        assert_eq!(sinks, Sink::ALL);
    }

    #[test]
    fn buffers_are_as_long_as_the_layouts_of_scales_need() {
        let lengths = |format: QuantFormat| (format.code_bytes(5, 512), format.scale_bytes(5, 512));
        assert_eq!(lengths(QuantFormat::Fp8Static), (5 * 512, 0));
        assert_eq!(lengths(QuantFormat::Fp8Token), (5 * 512, 5 * 4));
        assert_eq!(lengths(QuantFormat::Fp8Group), (5 * 512, 5 * 4 * 4));
        // Columns begin at multiples of 16 bytes.
        assert_eq!(lengths(QuantFormat::Fp8GroupColumnMajor), (5 * 512, 8 * 4 * 4));
        assert_eq!(lengths(QuantFormat::Fp8GroupUe8m0), (5 * 512, 8 * 4));
        assert_eq!(lengths(QuantFormat::Mxfp8), (5 * 512, 5 * 16));
        assert_eq!(lengths(QuantFormat::Mxfp8Swizzled), (5 * 512, 128 * 16));
        assert_eq!(lengths(QuantFormat::Nvfp4), (5 * 256, 5 * 32));
        assert_eq!(lengths(QuantFormat::Nvfp4Swizzled), (5 * 256, 128 * 32));
    }
}
