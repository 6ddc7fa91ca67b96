//! The operation over device memory.

use lamport_rs_kernels::parameters::AllReduceLayerNormParameters;
use lamport_rs_kernels::plan::one_shot_rows::{OneShotRows, OneShotRowsShape};
use lamport_rs_kernels::plan::rms_norm::AllReduceRmsNormPlan;
use lamport_rs_protocol::algorithm::Algorithm;

use super::AllReduceLayerNorm;
use crate::error::Result;
use crate::operations::chunk::Chunk;
use crate::operations::launch::{Purpose, launch, without_peers};
use crate::operations::operands::OnDevice;
use crate::operations::rms_norm::cuda::{plan_norm, rms_norm_shape, tensors_from};
use crate::tensor::Device;
use crate::workspace::cuda::CudaWorkspace;

impl OnDevice for AllReduceLayerNorm {
    fn check_on_device(&self, workspace: &CudaWorkspace) -> Result<()> {
        check(workspace, self).map(drop)
    }

    unsafe fn run_on_device(&self, workspace: &CudaWorkspace, purpose: Purpose) -> Result<()> {
        let chunks = check(workspace, self)?;
        let geometry = workspace.member().geometry;
        let world_size = geometry.world_size();
        if world_size == 1 {
            return without_peers(workspace, purpose);
        }
        let norm = &self.norm;
        let shape = |chunk: &Chunk| {
            let norm = rms_norm_shape(&norm.input, norm.weight.dtype, Algorithm::OneShot, world_size, chunk.len());
            Ok(OneShotRowsShape { norm, operation: OneShotRows::LayerNorm })
        };
        let bias = self.bias.as_ref().map_or(0, |bias| bias.pointer as u64);
        let parameters = |plan: AllReduceRmsNormPlan, group, chunk: &Chunk| {
            let tensors = tensors_from(norm, Some(&norm.output), chunk.start);
            let base = plan.parameters(&geometry, group, tensors, norm.epsilon, 0.0)?;
            Ok(AllReduceLayerNormParameters { base, bias })
        };
        // SAFETY: the caller's promises.
        unsafe { launch(workspace, &self.describe(), chunks, shape, parameters, purpose) }
    }
}

/// Checks the operands, and says which are the rows of each launch.
fn check(
    workspace: &CudaWorkspace,
    operands: &AllReduceLayerNorm,
) -> Result<impl Iterator<Item = Chunk> + Clone + use<>> {
    operands.check(Device::Cuda(workspace.device.index))?;
    let AllReduceLayerNorm { norm, .. } = operands;
    Ok(plan_norm(workspace, &norm.input, norm.weight.dtype, Some(Algorithm::OneShot))?.1)
}
