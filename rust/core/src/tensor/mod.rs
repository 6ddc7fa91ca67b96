//! Tensors as operations are given them: a pointer, and what is known about it.

mod overlap;

use std::fmt;

pub use lamport_rs_kernels::Dtype;

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

    /// The same but for the value of a dimension.
    pub fn with(mut self, dimension: usize, value: usize) -> Self {
        self.values[..self.count][dimension] = value;
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
    /// Whether the values are those in memory with the other sign, as in some views of torch.
    pub is_negated: bool,
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
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of 2-byte elements, from address 4096 on.
    pub fn tensor(shape: &[usize], strides: &[usize]) -> Tensor {
        Tensor {
            pointer: std::ptr::without_provenance_mut(4096),
            dtype: Dtype::BFloat16,
            device: Device::Cpu,
            shape: Dimensions::new(shape.iter().copied()).unwrap(),
            strides: Dimensions::new(strides.iter().copied()).unwrap(),
            is_negated: false,
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
}
