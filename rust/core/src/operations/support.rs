//! Whether an operation on tensors of some shape would be served, before there are such tensors.
//!
//! The answer depends on what all ranks have in common, and so is the same on all of them.

use super::arguments::{AllReduce, AllReduceRmsNorm, MinimaxRms, Norm};
#[cfg(feature = "cuda")]
use super::cuda::{self, Purpose};
use super::host;
use super::operation::Kind;
use super::rms_norm_quant::{self, AllReduceRmsNormQuant};
use crate::error::{Error, Result};
use crate::tensor::{Device, Dimensions, Dtype, Tensor};
#[cfg(feature = "cuda")]
use crate::workspace::cuda::CudaWorkspace;
use crate::workspace::host::HostWorkspace;
use lamport_rs_kernels::Sink;
use lamport_rs_protocol::algorithm::Algorithm;

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

/// Says why the workspace would refuse the operation, if it would.
pub fn check_on_host(workspace: &HostWorkspace, question: &Question) -> Result<()> {
    match operands(question)? {
        Operands::AllReduce(operands) => host::all_reduce::check(workspace, &operands).map(drop),
        Operands::AllReduceRmsNorm(operands) => host::rms_norm::check(workspace, &operands),
        Operands::AllReduceRmsNormQuant(operands) => rms_norm_quant::host::check(workspace, &operands),
        Operands::MinimaxRms(operands) => host::minimax::check(workspace, &operands),
    }
}

/// Likewise.
#[cfg(feature = "cuda")]
pub fn check_on_device(workspace: &CudaWorkspace, question: &Question) -> Result<()> {
    match operands(question)? {
        Operands::AllReduce(operands) => cuda::check_all_reduce(workspace, &operands).map(drop),
        Operands::AllReduceRmsNorm(operands) => cuda::check_all_reduce_rms_norm(workspace, &operands).map(drop),
        Operands::AllReduceRmsNormQuant(operands) => rms_norm_quant::cuda::check(workspace, &operands).map(drop),
        Operands::MinimaxRms(operands) => cuda::check_minimax_rms(workspace, &operands).map(drop),
    }
}

/// Loads what the operation takes on the workspace's device.
#[cfg(feature = "cuda")]
pub fn prepare_on_device(workspace: &CudaWorkspace, question: &Question) -> Result<()> {
    check_on_device(workspace, question)?;
    // SAFETY: nothing runs.
    unsafe {
        match operands(question)? {
            Operands::AllReduce(operands) => cuda::do_all_reduce(workspace, &operands, Purpose::Load),
            Operands::AllReduceRmsNorm(operands) => cuda::do_all_reduce_rms_norm(workspace, &operands, Purpose::Load),
            Operands::AllReduceRmsNormQuant(operands) => {
                rms_norm_quant::cuda::run_or_load(workspace, &operands, Purpose::Load)
            }
            Operands::MinimaxRms(operands) => cuda::do_minimax_rms(workspace, &operands, Purpose::Load),
        }
    }
}

enum Operands {
    AllReduce(AllReduce),
    AllReduceRmsNorm(AllReduceRmsNorm),
    AllReduceRmsNormQuant(AllReduceRmsNormQuant),
    MinimaxRms(MinimaxRms),
}

/// Dense tensors that share no memory. Nobody looks at what they point to.
fn operands(question: &Question) -> Result<Operands> {
    let Question { kind, ref shape, dtype, weight, device, algorithm, format, sizes } = *question;
    let mut place = PLACE;
    let mut tensor = |shape: &[usize], dtype: Dtype| -> Result<Tensor> {
        let tensor = dense(place, shape, dtype, device)?;
        place = place.saturating_add(tensor.bytes().next_multiple_of(PLACE));
        Ok(tensor)
    };
    let columns = shape.last().copied().unwrap_or(1);
    let with_columns = |columns: i64| {
        let mut shape = shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = usize::try_from(columns).unwrap_or(0);
        }
        shape
    };
    let input = tensor(shape, dtype)?;
    Ok(match kind {
        Kind::AllReduce => Operands::AllReduce(AllReduce { input, output: tensor(shape, dtype)?, algorithm }),
        Kind::AllReduceRmsNorm => Operands::AllReduceRmsNorm(norm_of(input, weight, algorithm, &mut tensor)?),
        Kind::AllReduceRmsNormQuant => {
            let sink = format.ok_or_else(|| {
                let names = Sink::ALL.map(Sink::name).join(", ");
                Error::Argument(format!("{} needs a format, one of {names}", kind.name()))
            })?;
            let scales = match sink.scales_of_row(columns) {
                Some(count) => with_columns(count as i64),
                None => vec![1],
            };
            let norm = norm_of(input, weight, algorithm, &mut tensor)?;
            let quantised = tensor(shape, Dtype::Float8E4M3)?;
            let mut scales = tensor(&scales, Dtype::Float32)?;
            if sink.scales_of_row(columns).is_some() {
                scales.strides = rms_norm_quant::scale_strides(sink, scales.shape, columns);
            }
            Operands::AllReduceRmsNormQuant(AllReduceRmsNormQuant { norm, has_output: true, sink, quantised, scales })
        }
        Kind::MinimaxRms => {
            let norm = Norm { input, weight: tensor(&[columns], weight)?, output: tensor(shape, dtype)? };
            Operands::MinimaxRms(MinimaxRms::one(norm, 0.0))
        }
        Kind::MinimaxRmsQk => {
            let [q, k] = sizes.map(with_columns);
            let weights =
                [tensor(&q[q.len().saturating_sub(1)..], weight)?, tensor(&k[k.len().saturating_sub(1)..], weight)?];
            let outputs = [tensor(&q, dtype)?, tensor(&k, dtype)?];
            Operands::MinimaxRms(MinimaxRms::packed(input, sizes, weights, outputs, 0.0)?)
        }
    })
}

/// The norm of a sum of `input`, with or without a quantiser behind it.
fn norm_of(
    input: Tensor,
    weight: Dtype,
    algorithm: Option<Algorithm>,
    tensor: &mut impl FnMut(&[usize], Dtype) -> Result<Tensor>,
) -> Result<AllReduceRmsNorm> {
    let shape = input.shape.as_slice();
    Ok(AllReduceRmsNorm {
        input,
        residual: None,
        weight: tensor(&[shape.last().copied().unwrap_or(1)], weight)?,
        epsilon: 0.0,
        weight_bias: 0.0,
        algorithm,
        output: tensor(shape, input.dtype)?,
        residual_output: tensor(shape, input.dtype)?,
    })
}

/// Between operands that are not there: an address that is none, and aligned.
const PLACE: usize = 4096;

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
