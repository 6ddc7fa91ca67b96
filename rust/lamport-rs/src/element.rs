//! What operations work on.

use half::{bf16, f16};
use lamport_rs_core::operations::layer_norm::AllReduceLayerNorm;
use lamport_rs_core::operations::rms_norm::AllReduceRmsNorm;
use lamport_rs_core::tensor::{ALIGNMENT, Device, Dimensions, Dtype, Tensor};

use crate::error::{Error, Result};

mod sealed {
    pub trait Sealed {
        const DTYPE: super::Dtype;
    }
}
use sealed::Sealed;

/// An element of a buffer: `f32`, [`half::f16`] or [`half::bf16`]. Sums are computed in `f32`.
pub trait Element: Sealed + Copy + Send + Sync + 'static {}

/// An element of 16 bits, [`half::f16`] or [`half::bf16`]: what rows are made of that are quantised, or that experts made.
pub trait HalfElement: Element + WeightFor<Self> {}

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
impl HalfElement for f16 {}
impl HalfElement for bf16 {}
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

    /// Of a sum over ranks. `outputs` are the normalised rows, and the sum.
    pub(crate) fn of_sum(
        self,
        input: Tensor,
        residual: Option<Tensor>,
        weight: Tensor,
        outputs: (Tensor, Tensor),
    ) -> AllReduceRmsNorm {
        let Self { epsilon, weight_bias } = self;
        let (output, residual_output) = outputs;
        AllReduceRmsNorm { input, residual, weight, epsilon, weight_bias, algorithm: None, output, residual_output }
    }
}

/// How rows are normalised by their mean and variance: `(x - mean) / sqrt(variance + epsilon) × weight`, with the variance
/// of all elements, as of a population.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerNorm {
    epsilon: f32,
}

impl LayerNorm {
    /// With this epsilon.
    pub fn new(epsilon: f32) -> Self {
        Self { epsilon }
    }

    /// Of a sum over ranks. `outputs` are the normalised rows, and the sum.
    pub(crate) fn of_sum(
        self,
        input: Tensor,
        residual: Option<Tensor>,
        (weight, bias): (Tensor, Option<Tensor>),
        outputs: (Tensor, Tensor),
    ) -> AllReduceLayerNorm {
        AllReduceLayerNorm { norm: RmsNorm::new(self.epsilon).of_sum(input, residual, weight, outputs), bias }
    }
}

/// The shape of a buffer of `length` elements, whose rows have as many as there are weights: rows and columns.
pub(crate) fn rows_of(name: &str, length: usize, weights: usize) -> Result<[usize; 2]> {
    whole_rows(name, length, weights, "as many as there are weights")
}

/// The shapes of `qkv` and of the outputs of Q and K, whose rows are parts of its rows, as long as their weights.
pub(crate) fn packed_rows<T: Element>(
    qkv: usize,
    columns: usize,
    weights: [usize; 2],
    outputs: [usize; 2],
) -> Result<[[usize; 2]; 3]> {
    let whole = rows_in("qkv", qkv, columns)?;
    let aligned = ALIGNMENT / size_of::<T>();
    if !columns.is_multiple_of(aligned) {
        return Err(Error::argument(format!("columns is {columns}, but must be a multiple of {aligned}")));
    }
    let ([rows, _], [q, k]) = (whole, weights);
    check_length("the output of Q", outputs[0], rows.saturating_mul(q))?;
    check_length("the output of K", outputs[1], rows.saturating_mul(k))?;
    Ok([whole, [rows, q], [rows, k]])
}

/// Elements of a row, at most: as many as the kernels' numbers of 32 bits count in bytes.
const MOST_COLUMNS: usize = 1 << 28;

/// The shape of a buffer of `length` elements in rows of `columns`.
pub(crate) fn rows_in(name: &str, length: usize, columns: usize) -> Result<[usize; 2]> {
    whole_rows(name, length, columns, "which is `columns`")
}

fn whole_rows(name: &str, length: usize, columns: usize, why: &str) -> Result<[usize; 2]> {
    // Products of a shape's sizes are then below the largest number, also of no rows, which any number divides.
    if columns > MOST_COLUMNS {
        return Err(Error::argument(format!("rows have {columns} elements, but must have at most {MOST_COLUMNS}")));
    }
    if columns == 0 || !length.is_multiple_of(columns) {
        return Err(Error::argument(format!(
            "{name} has {length} elements, but must have whole rows of {columns}, {why}"
        )));
    }
    Ok([length / columns, columns])
}

/// Elements of a shape; the largest number, if they are more than that.
pub(crate) fn elements<const N: usize>(shape: [usize; N]) -> usize {
    shape.into_iter().fold(1, usize::saturating_mul)
}

/// Buffers that belong together are of one length.
pub(crate) fn check_length(name: &str, length: usize, expected: usize) -> Result<()> {
    if length == expected {
        return Ok(());
    }
    Err(Error::argument(format!("{name} has {length} elements, but must have {expected}")))
}

/// `T` as the core names it, at a place: the description of an operand, whose elements lie side by side.
pub(crate) fn tensor<T: Element, const N: usize>(pointer: *mut T, device: Device, shape: [usize; N]) -> Tensor {
    tensor_of(pointer.cast(), T::DTYPE, device, shape)
}

/// Likewise, of elements of any dtype.
pub(crate) fn tensor_of<const N: usize>(pointer: *mut u8, dtype: Dtype, device: Device, shape: [usize; N]) -> Tensor {
    let mut strides = [1; N];
    for at in (0..N.saturating_sub(1)).rev() {
        strides[at] = strides[at + 1] * shape[at + 1];
    }
    let dimensions = |values| Dimensions::new(values).expect("no operation here has more than eight dimensions");
    Tensor { pointer, dtype, device, shape: dimensions(shape), strides: dimensions(strides), is_negated: false }
}
