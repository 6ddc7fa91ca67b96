//! Tensors as operations are given them: a pointer, and what is known about it.

use std::fmt;

pub use lamport_rs_kernels::Dtype;

use crate::error::{Error, Result};

/// Alignment that every operand has, in bytes: that of the vector accesses.
pub const ALIGNMENT: usize = 16;
const MAX_DIMENSIONS: usize = 8;

/// Where a tensor or a workspace lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// Host memory.
    Cpu,
    /// The CUDA device of this index in this process.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// Sizes or strides, in elements, outermost first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Dimensions {
    values: [usize; MAX_DIMENSIONS],
    count: usize,
}

impl Dimensions {
    /// `None` for more than eight dimensions.
    pub fn new(values: impl IntoIterator<Item = usize>) -> Option<Self> {
        let mut dimensions = Self { values: [0; MAX_DIMENSIONS], count: 0 };
        for value in values {
            *dimensions.values.get_mut(dimensions.count)? = value;
            dimensions.count += 1;
        }
        Some(dimensions)
    }

    /// The same but for the last value.
    pub fn with_columns(mut self, columns: usize) -> Self {
        if let Some(last) = self.values[..self.count].last_mut() {
            *last = columns;
        }
        self
    }

    /// The values.
    pub fn as_slice(&self) -> &[usize] {
        &self.values[..self.count]
    }
}

impl fmt::Debug for Dimensions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_slice().fmt(f)
    }
}

/// An operand. The pointer is valid for the elements that shape and strides reach: whoever makes one promises that to
/// the operation it is given to.
#[derive(Clone, Copy, Debug)]
pub struct Tensor {
    /// The first element.
    pub pointer: *mut u8,
    /// The elements' type.
    pub dtype: Dtype,
    /// Where they are.
    pub device: Device,
    /// Sizes.
    pub shape: Dimensions,
    /// Strides, in elements.
    pub strides: Dimensions,
}

// SAFETY: a tensor is a description; dereferencing its pointer is unsafe and the business of those who do it.
unsafe impl Send for Tensor {}
// SAFETY: as above.
unsafe impl Sync for Tensor {}

impl Tensor {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.as_slice().iter().product()
    }

    /// Bytes of the elements, without gaps.
    pub fn bytes(&self) -> usize {
        self.elements() * self.dtype.size()
    }

    /// Size of the last dimension; 1 for a scalar.
    pub fn columns(&self) -> usize {
        self.shape.as_slice().last().copied().unwrap_or(1)
    }

    /// Number of rows: the product of all dimensions but the last.
    pub fn rows(&self) -> usize {
        let shape = self.shape.as_slice();
        shape[..shape.len().saturating_sub(1)].iter().product()
    }

    /// Elements from one row to the next, if rows are evenly spaced and contiguous in themselves.
    pub fn row_stride(&self) -> Option<usize> {
        let (shape, strides) = (self.shape.as_slice(), self.strides.as_slice());
        let Some((&columns, outer)) = shape.split_last() else { return Some(1) };
        if self.elements() == 0 {
            // There is no element whose place a stride could tell.
            return Some(columns);
        }
        if columns > 1 && strides[outer.len()] != 1 {
            return None;
        }
        let mut rows = outer.iter().zip(strides).rev().filter(|(size, _)| **size != 1);
        let Some((&size, &stride)) = rows.next() else { return Some(columns) };
        let mut expected = size * stride;
        for (&size, &stride) in rows {
            if stride != expected {
                return None;
            }
            expected *= size;
        }
        Some(stride)
    }

    /// Whether the elements lie side by side in row-major order.
    pub fn is_contiguous(&self) -> bool {
        self.row_stride() == Some(self.columns())
    }

    /// The bytes from the first element to the last, for overlap checks.
    fn span(&self) -> std::ops::Range<usize> {
        let last: usize = self
            .shape
            .as_slice()
            .iter()
            .zip(self.strides.as_slice())
            .map(|(size, stride)| size.saturating_sub(1) * stride)
            .sum();
        let start = self.pointer as usize;
        if self.elements() == 0 { start..start } else { start..start + (last + 1) * self.dtype.size() }
    }
}

/// An operand under its name in the operation's signature, for checks whose errors say what would do.
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

    /// On `device`, with an aligned first element.
    pub fn check_place(&self, device: Device) -> Result<()> {
        if self.tensor.device != device {
            return self.error(format_args!("is on {}, but the workspace is on {device}", self.tensor.device));
        }
        if self.tensor.pointer.is_null() && self.tensor.elements() > 0 {
            return self.error("has no memory of its own, as a materialised dense tensor has");
        }
        if !(self.tensor.pointer as usize).is_multiple_of(ALIGNMENT) && self.tensor.elements() > 0 {
            return self.error(format_args!("is not aligned to {ALIGNMENT} bytes; pass {}.clone()", self.name));
        }
        Ok(())
    }

    /// Contiguous.
    pub fn check_contiguous(&self) -> Result<()> {
        if !self.tensor.is_contiguous() {
            return self.error(format_args!("is not contiguous; pass {}.contiguous()", self.name));
        }
        Ok(())
    }

    /// Contiguous within rows, with evenly spaced and aligned rows; returns the elements between rows.
    pub fn check_rows(&self) -> Result<usize> {
        let Some(stride) = self.tensor.row_stride() else {
            return self.error(format_args!("has rows that are not contiguous; pass {}.contiguous()", self.name));
        };
        if self.tensor.rows() > 1 && !(stride * self.tensor.dtype.size()).is_multiple_of(ALIGNMENT) {
            return self.error(format_args!(
                "has rows {stride} elements apart, but each must start at a multiple of {ALIGNMENT} bytes; pass {}.contiguous()",
                self.name
            ));
        }
        Ok(stride)
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

    /// Not overlapping `input`, or exactly in its place.
    pub fn check_overlap(&self, input: Named<'_>) -> Result<()> {
        let (own, other) = (self.tensor.span(), input.tensor.span());
        let same = own == other && self.tensor.strides == input.tensor.strides;
        if !same && own.start < other.end && other.start < own.end {
            return self
                .error(format_args!("overlaps {} in part; they may be the same tensor or separate ones", input.name));
        }
        Ok(())
    }

    /// Not overlapping `input` at all.
    pub fn check_separate(&self, input: Named<'_>) -> Result<()> {
        let (own, other) = (self.tensor.span(), input.tensor.span());
        if own.start < other.end && other.start < own.end {
            return self.error(format_args!("overlaps {}; they must be separate tensors", input.name));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize], strides: &[usize]) -> Tensor {
        Tensor {
            pointer: std::ptr::without_provenance_mut(4096),
            dtype: Dtype::BFloat16,
            device: Device::Cpu,
            shape: Dimensions::new(shape.iter().copied()).unwrap(),
            strides: Dimensions::new(strides.iter().copied()).unwrap(),
        }
    }

    #[test]
    fn row_stride_is_known_only_for_evenly_spaced_contiguous_rows() {
        assert_eq!(tensor(&[5, 8], &[8, 1]).row_stride(), Some(8));
        assert_eq!(tensor(&[5, 8], &[24, 1]).row_stride(), Some(24));
        assert_eq!(tensor(&[2, 5, 8], &[120, 24, 1]).row_stride(), Some(24));
        assert_eq!(tensor(&[2, 5, 8], &[240, 24, 1]).row_stride(), None);
        assert_eq!(tensor(&[5, 8], &[1, 5]).row_stride(), None);
        assert_eq!(tensor(&[1, 8], &[999, 1]).row_stride(), Some(8));
        assert_eq!(tensor(&[8], &[1]).row_stride(), Some(8));
        assert_eq!(tensor(&[], &[]).row_stride(), Some(1));
    }

    #[test]
    fn contiguity_is_that_of_row_major_order() {
        assert!(tensor(&[2, 5, 8], &[40, 8, 1]).is_contiguous());
        assert!(tensor(&[0, 8], &[24, 1]).is_contiguous());
        assert!(!tensor(&[5, 8], &[24, 1]).is_contiguous());
        assert!(!tensor(&[5, 8], &[1, 5]).is_contiguous());
        assert!(!tensor(&[8], &[2]).is_contiguous());
    }

    #[test]
    fn partial_overlap_is_refused_and_in_place_is_not() {
        let input = tensor(&[4, 8], &[8, 1]);
        let mut shifted = input;
        shifted.pointer = std::ptr::without_provenance_mut(4096 + 16);
        let name = |tensor| Named { name: "out", tensor };
        assert!(name(&input).check_overlap(Named { name: "input", tensor: &input }).is_ok());
        let error = name(&shifted).check_overlap(Named { name: "input", tensor: &input }).unwrap_err();
        assert!(error.to_string().contains("out overlaps input"), "{error}");
    }
}
