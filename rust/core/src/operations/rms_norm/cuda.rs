//! The norm of a sum over device memory.

use lamport_rs_kernels::plan::one_shot_rows::OneShotRowsShape;
use lamport_rs_kernels::plan::rms_norm::{self, AllReduceRmsNormPlan, AllReduceRmsNormShape, AllReduceRmsNormTensors};
use lamport_rs_protocol::algorithm::Algorithm;

use super::AllReduceRmsNorm;
use crate::cuda::plans::{Planned, planned};
use crate::error::Result;
use crate::operations::choice::choose;
use crate::operations::chunk::{self, Chunk};
use crate::operations::launch::{Purpose, launch, without_peers};
use crate::operations::operands::OnDevice;
use crate::tensor::{Device, Dtype, Tensor};
use crate::workspace::cuda::CudaWorkspace;

planned!(AllReduceRmsNormShape, AllReduceRmsNormPlan);
planned!(OneShotRowsShape, AllReduceRmsNormPlan);

impl OnDevice for AllReduceRmsNorm {
    fn check_on_device(&self, workspace: &CudaWorkspace) -> Result<()> {
        check(workspace, self).map(drop)
    }

    unsafe fn run_on_device(&self, workspace: &CudaWorkspace, purpose: Purpose) -> Result<()> {
        let (algorithm, chunks) = check(workspace, self)?;
        let geometry = workspace.member().geometry;
        let world_size = geometry.world_size();
        if world_size == 1 {
            return without_peers(workspace, purpose);
        }
        let shape =
            |chunk: &Chunk| Ok(rms_norm_shape(&self.input, self.weight.dtype, algorithm, world_size, chunk.len()));
        let parameters = |plan: <AllReduceRmsNormShape as Planned>::Plan, group, chunk: &Chunk| {
            let tensors = tensors_from(self, Some(&self.output), chunk.start);
            plan.parameters(&geometry, group, tensors, self.epsilon, self.weight_bias)
        };
        let description = self.describe(algorithm);
        // SAFETY: the caller's promises.
        unsafe { launch(workspace, &description, chunks, shape, parameters, purpose) }
    }
}

/// Where row `row` of a tensor is.
pub(in crate::operations) fn address_of(tensor: &Tensor, row: usize) -> u64 {
    tensor.pointer as u64 + (row * tensor.columns() * tensor.dtype.size()) as u64
}

/// Where the tensors are from row `row` on. The normalised rows go to `output`, if anywhere.
pub(in crate::operations) fn tensors_from(
    operands: &AllReduceRmsNorm,
    output: Option<&Tensor>,
    row: usize,
) -> AllReduceRmsNormTensors {
    AllReduceRmsNormTensors {
        input: address_of(&operands.input, row),
        residual: operands.residual.as_ref().map(|residual| address_of(residual, row)),
        weight: operands.weight.pointer as u64,
        output: output.map_or(0, |output| address_of(output, row)),
        residual_output: address_of(&operands.residual_output, row),
    }
}

/// The shape of `tokens` of the rows. The last rows may be too few for two shots.
pub(in crate::operations) fn rms_norm_shape(
    input: &Tensor,
    weight: Dtype,
    algorithm: Algorithm,
    world_size: usize,
    tokens: usize,
) -> AllReduceRmsNormShape {
    let algorithm = if rms_norm::has_two_shot(tokens, world_size) { algorithm } else { Algorithm::OneShot };
    let (hidden, dtype) = (input.columns(), input.dtype);
    AllReduceRmsNormShape { tokens, hidden, dtype, weight, world_size, algorithm }
}

/// Checks the operands, and says how the operation runs: the algorithm, and the rows of each launch.
fn check(
    workspace: &CudaWorkspace,
    operands: &AllReduceRmsNorm,
) -> Result<(Algorithm, impl Iterator<Item = Chunk> + Clone + use<>)> {
    operands.check(Device::Cuda(workspace.device.index))?;
    plan_norm(workspace, &operands.input, operands.weight.dtype, operands.algorithm)
}

/// The algorithm, and the rows of each launch, for checked operands.
pub(in crate::operations) fn plan_norm(
    workspace: &CudaWorkspace,
    input: &Tensor,
    weight: Dtype,
    algorithm: Option<Algorithm>,
) -> Result<(Algorithm, impl Iterator<Item = Chunk> + Clone + use<>)> {
    let geometry = workspace.member().geometry;
    let world_size = geometry.world_size();
    let (tokens, row_bytes) = (input.rows(), input.columns() * input.dtype.size());
    let is_large =
        input.bytes() >= workspace.two_shot_from.unwrap_or_else(|| rms_norm::two_shot_from(world_size, row_bytes));
    let asked = if rms_norm::has_two_shot(tokens, world_size) { algorithm } else { Some(Algorithm::OneShot) };
    let algorithm = choose(asked, is_large, &geometry, tokens, row_bytes);
    let chunks = chunk::rows(tokens, algorithm, &geometry, row_bytes)?;
    if let Some(first) = chunks.clone().next() {
        rms_norm_shape(input, weight, algorithm, world_size, first.len()).check()?;
    }
    Ok((algorithm, chunks))
}
