//! What operations work on.

use half::{bf16, f16};
use lamport_rs_core::tensor::{Device, Dimensions, Dtype, Tensor};

use crate::error::{Error, Result};

mod sealed {
    pub trait Sealed {
        const DTYPE: super::Dtype;
    }
}
use sealed::Sealed;

/// An element of a buffer: `f32`, [`half::f16`] or [`half::bf16`]. Sums are computed in `f32`.
pub trait Element: Sealed + Copy + Send + Sync + 'static {}

/// An element of the weights of rows of `T`: `T` itself, or `f32`.
pub trait WeightFor<T>: Element {}

macro_rules! element {
    ($type:ty, $dtype:ident) => {
        impl Sealed for $type {
            const DTYPE: Dtype = Dtype::$dtype;
        }
        impl Element for $type {}
        impl WeightFor<$type> for $type {}
    };
}
element!(f32, Float32);
element!(f16, Float16);
element!(bf16, BFloat16);
impl WeightFor<f16> for f32 {}
impl WeightFor<bf16> for f32 {}

/// How rows are normalised: `x / sqrt(mean(x²) + epsilon) × (weight + weight_bias)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNorm {
    epsilon: f32,
    weight_bias: f32,
}

impl RmsNorm {
    /// With this epsilon, and weights as they are.
    pub fn new(epsilon: f32) -> Self {
        Self { epsilon, weight_bias: 0.0 }
    }

    /// With weights that are kept as their distance from `bias`: 1 for Gemma.
    pub fn with_weight_bias(self, bias: f32) -> Self {
        Self { weight_bias: bias, ..self }
    }

    pub(crate) fn epsilon(&self) -> f32 {
        self.epsilon
    }

    pub(crate) fn weight_bias(&self) -> f32 {
        self.weight_bias
    }
}

/// The number of rows of `columns` elements in a buffer of `length`.
pub(crate) fn rows_of(name: &str, length: usize, columns: usize) -> Result<usize> {
    if columns == 0 || !length.is_multiple_of(columns) {
        return Err(Error::argument(format!(
            "{name} has {length} elements, but must have whole rows of {columns}, as many as there are weights"
        )));
    }
    Ok(length / columns)
}

/// Buffers that belong together are of one length.
pub(crate) fn check_length(name: &str, length: usize, expected: usize) -> Result<()> {
    if length == expected {
        return Ok(());
    }
    Err(Error::argument(format!("{name} has {length} elements, but must have {expected}")))
}

/// `T` as the core names it, at a place: the description of an operand.
pub(crate) fn tensor<T: Element, const N: usize>(pointer: *mut T, device: Device, shape: [usize; N]) -> Tensor {
    let mut strides = [1; N];
    for at in (0..N.saturating_sub(1)).rev() {
        strides[at] = strides[at + 1] * shape[at + 1];
    }
    let dimensions = |values| Dimensions::new(values).expect("no operation here has more than eight dimensions");
    Tensor {
        pointer: pointer.cast(),
        dtype: T::DTYPE,
        device,
        shape: dimensions(shape),
        strides: dimensions(strides),
        is_negated: false,
    }
}
