//! The checks of one operand, whose errors say what would do.

use std::fmt;

use crate::error::{Error, Result};
use crate::tensor::{ALIGNMENT, Device, Dtype, Tensor};

/// Widths of normalised rows are multiples of this many elements: a vector of 16-bit values.
pub(super) const COLUMN_MULTIPLE: usize = 8;

/// An operand under its name in the operation's signature.
#[derive(Clone, Copy)]
pub struct Named<'a> {
    /// The name.
    pub name: &'a str,
    /// The operand.
    pub tensor: &'a Tensor,
}

impl Named<'_> {
    fn error<T>(&self, text: impl fmt::Display) -> Result<T> {
        Err(Error::Argument(format!("{} {text}", self.name)))
    }

    fn layout<T>(&self, text: impl fmt::Display) -> Result<T> {
        Err(Error::Layout(format!("{} {text}", self.name)))
    }

    /// On `device`, in memory of its own.
    pub fn check_place(&self, device: Device) -> Result<()> {
        if self.tensor.device != device {
            return self.error(format_args!("is on {}, but the workspace is on {device}", self.tensor.device));
        }
        if self.tensor.pointer.is_null() && self.tensor.elements() > 0 {
            return self.error("has no memory of its own, as a materialised dense tensor has");
        }
        Ok(())
    }

    /// Of elements that share no memory, so that each can be written. It need not be contiguous.
    pub fn check_writable(&self) -> Result<()> {
        if self.tensor.shares_memory_within() {
            return self.error(format_args!(
                "has elements that share memory (shape {:?}, strides {:?}), but each must have its own",
                self.tensor.shape, self.tensor.strides
            ));
        }
        Ok(())
    }

    /// Of no byte that is one of `other`, another output. Neither need be contiguous.
    pub fn check_apart(&self, other: Named<'_>) -> Result<()> {
        if self.tensor.shares_memory_with(other.tensor) {
            return self.error(format_args!("overlaps {}; they must be separate tensors", other.name));
        }
        Ok(())
    }

    /// Contiguous, with an aligned first element, of the values that its memory holds.
    pub fn check_layout(&self) -> Result<()> {
        self.check_values()?;
        if !self.tensor.is_contiguous() {
            return self.layout(format_args!("is not contiguous; pass {}.contiguous()", self.name));
        }
        Ok(())
    }

    /// As [`Self::check_layout`], but rows may lie apart, evenly and at aligned places.
    pub fn check_rows(&self) -> Result<()> {
        self.check_values()?;
        let Some(stride) = self.tensor.row_stride() else {
            return self.layout(format_args!("has rows that are not contiguous; pass {}.contiguous()", self.name));
        };
        if self.tensor.rows() > 1 && !(stride * self.tensor.dtype.size()).is_multiple_of(ALIGNMENT) {
            return self.layout(format_args!(
                "has rows {stride} elements apart, but each must start at a multiple of {ALIGNMENT} bytes; pass {}.contiguous()",
                self.name
            ));
        }
        Ok(())
    }

    fn check_values(&self) -> Result<()> {
        if self.tensor.is_negated {
            return self.layout(format_args!("is negated when it is read; pass {}.resolve_neg()", self.name));
        }
        if !self.is_aligned_to(ALIGNMENT) {
            return self.layout(format_args!("is not aligned to {ALIGNMENT} bytes; pass {}.clone()", self.name));
        }
        Ok(())
    }

    /// Whether it begins at a multiple of `bytes`, if it is anywhere.
    pub fn is_aligned_to(&self, bytes: usize) -> bool {
        (self.tensor.pointer as usize).is_multiple_of(bytes) || self.tensor.elements() == 0
    }

    /// Of this dtype.
    pub fn check_dtype(&self, expected: &[Dtype]) -> Result<()> {
        if !expected.contains(&self.tensor.dtype) {
            let expected: Vec<String> = expected.iter().map(|dtype| dtype.name().to_owned()).collect();
            return self.error(format_args!("is {}, but must be {}", self.tensor.dtype.name(), expected.join(" or ")));
        }
        Ok(())
    }

    /// Of this shape.
    pub fn check_shape(&self, expected: &[usize]) -> Result<()> {
        if self.tensor.shape.as_slice() != expected {
            return self.error(format_args!("has shape {:?}, but must have {expected:?}", self.tensor.shape));
        }
        Ok(())
    }

    /// Rows of a positive multiple of `multiple` elements.
    pub fn check_columns(&self, multiple: usize) -> Result<()> {
        let columns = self.tensor.columns();
        if self.tensor.shape.as_slice().is_empty() || columns == 0 || !columns.is_multiple_of(multiple) {
            return self.error(format_args!(
                "has shape {:?}, but its last dimension must be a positive multiple of {multiple}",
                self.tensor.shape
            ));
        }
        Ok(())
    }

    /// Not overlapping `input`, or exactly in its place. This is contiguous, and `input` has evenly spaced rows.
    pub fn check_overlap(&self, input: Named<'_>) -> Result<()> {
        let (own, other) = (self.tensor.span(), input.tensor.span());
        let same = own == other && self.tensor.strides == input.tensor.strides;
        if !same && self.tensor.overlaps(input.tensor) {
            return self
                .error(format_args!("overlaps {} in part; they may be the same tensor or separate ones", input.name));
        }
        Ok(())
    }

    /// Not overlapping `input` at all. This is contiguous, and `input` has evenly spaced rows.
    pub fn check_separate(&self, input: Named<'_>) -> Result<()> {
        if self.tensor.overlaps(input.tensor) {
            return self.error(format_args!("overlaps {}; they must be separate tensors", input.name));
        }
        Ok(())
    }
}

/// An operand under its name.
pub(super) fn named<'a>(name: &'a str, tensor: &'a Tensor) -> Named<'a> {
    Named { name, tensor }
}

/// One weight for each of `columns` columns, of the input's dtype or float32.
pub(super) fn check_weight(weight: Named<'_>, input: &Tensor, columns: usize) -> Result<()> {
    weight.check_shape(&[columns])?;
    check_weight_dtype(weight, input.dtype)
}

/// Weights of values of `dtype`: that, or float32.
pub(super) fn check_weight_dtype(weight: Named<'_>, dtype: Dtype) -> Result<()> {
    if dtype == Dtype::Float32 {
        weight.check_dtype(&[Dtype::Float32])
    } else {
        weight.check_dtype(&[dtype, Dtype::Float32])
    }
}

/// What is added to a mean of squares: finite, and not negative.
pub(super) fn check_epsilon(epsilon: f32) -> Result<()> {
    // As bits: the caller's settings may take subnormal numbers for zeros.
    let (bits, zero) = (epsilon.to_bits(), (-0.0_f32).to_bits());
    if bits < f32::INFINITY.to_bits() || bits == zero {
        return Ok(());
    }
    Err(Error::Argument(format!("eps is {epsilon}, but must be finite and not negative")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dimensions;

    #[test]
    fn partial_overlap_is_refused_and_in_place_is_not() {
        let dimensions = |values: [usize; 2]| Dimensions::new(values).unwrap();
        let input = Tensor {
            pointer: std::ptr::without_provenance_mut(4096),
            dtype: Dtype::BFloat16,
            device: Device::Cpu,
            shape: dimensions([4, 8]),
            strides: dimensions([8, 1]),
            is_negated: false,
        };
        let mut shifted = input;
        shifted.pointer = std::ptr::without_provenance_mut(4096 + 16);
        let name = |tensor| Named { name: "out", tensor };
        assert!(name(&input).check_overlap(Named { name: "input", tensor: &input }).is_ok());
        let error = name(&shifted).check_overlap(Named { name: "input", tensor: &input }).unwrap_err();
        assert!(error.to_string().contains("out overlaps input"), "{error}");
    }
}
