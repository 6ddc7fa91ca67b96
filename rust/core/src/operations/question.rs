//! Whether an operation on tensors of some shape would be served, before there are such tensors.
//!
//! The answer depends on what all ranks have in common, and so is the same on all of them.

use lamport_rs_kernels::Sink;
use lamport_rs_protocol::algorithm::Algorithm;

use super::operands::OnEveryBackend;
use super::{Kind, boxed_operands};
use crate::error::{Error, Result};
use crate::tensor::{Device, Dimensions, Dtype, Tensor};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Question {
    /// Which collective.
    pub kind: Kind,
    /// Of the first operand.
    pub shape: Vec<usize>,
    /// Of the first operand.
    pub dtype: Dtype,
    /// Of the weights, if there are any.
    pub weight: Dtype,
    /// Where the tensors are.
    pub device: Device,
    /// How to reduce; `None` for the fastest.
    pub algorithm: Option<Algorithm>,
    /// How the result is quantised.
    pub format: Option<Sink>,
    /// Columns of Q and K.
    pub sizes: [i64; 2],
}

impl Question {
    /// Operands such as this is about: to be checked, or to have their kernels loaded. An error if no workspace would
    /// serve them.
    pub fn operands(&self) -> Result<Box<dyn OnEveryBackend>> {
        boxed_operands(self)
    }

    /// Columns of the first operand.
    pub(super) fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The first operand's shape, with other columns.
    pub(super) fn with_columns(&self, columns: usize) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = columns;
        }
        shape
    }
}

/// Between operands that are not there: an address that is none, and aligned.
const PLACE: usize = 4096;

/// Places of dense tensors on one device, that share no memory. Nobody looks at what they point to.
#[derive(Debug)]
pub struct Places {
    device: Device,
    next: usize,
}

impl Places {
    pub(super) fn new(device: Device) -> Self {
        Self { device, next: PLACE }
    }

    /// A tensor in the next place.
    pub(super) fn tensor(&mut self, shape: &[usize], dtype: Dtype) -> Result<Tensor> {
        let tensor = dense(self.next, shape, dtype, self.device)?;
        self.next = self.next.saturating_add(tensor.bytes().next_multiple_of(PLACE));
        Ok(tensor)
    }
}

fn dense(place: usize, shape: &[usize], dtype: Dtype, device: Device) -> Result<Tensor> {
    let too_many = || Error::Argument(format!("a tensor has {} dimensions, which are too many", shape.len()));
    let bytes = shape.iter().try_fold(dtype.size(), |product, size| product.checked_mul(*size));
    if !shape.contains(&0) && bytes.is_none_or(|bytes| bytes > isize::MAX as usize / 16) {
        return Err(Error::Argument(format!("a tensor of shape {shape:?} is more than this machine can address")));
    }
    let mut strides = vec![1; shape.len()];
    for dimension in (1..shape.len()).rev() {
        strides[dimension - 1] = usize::saturating_mul(strides[dimension], shape[dimension].max(1));
    }
    Ok(Tensor {
        pointer: std::ptr::without_provenance_mut(place),
        dtype,
        device,
        shape: Dimensions::new(shape.iter().copied()).ok_or_else(too_many)?,
        strides: Dimensions::new(strides).ok_or_else(too_many)?,
        is_negated: false,
    })
}
