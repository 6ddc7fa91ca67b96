//! The operation over device memory.

use lamport_rs_kernels::plan::layer_norm::{AllReduceLayerNormPlan, AllReduceLayerNormShape};
use lamport_rs_protocol::algorithm::Algorithm;

use super::AllReduceLayerNorm;
use crate::cuda::plans::{Planned, planned};
use crate::error::Result;
use crate::operations::chunk::Chunk;
use crate::operations::launch::{Purpose, launch, without_peers};
use crate::operations::operands::OnDevice;
use crate::operations::rms_norm::cuda::{plan_norm, rms_norm_shape, tensors_from};
use crate::tensor::Device;
use crate::workspace::cuda::CudaWorkspace;

planned!(AllReduceLayerNormShape, AllReduceLayerNormPlan);

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
            Ok(AllReduceLayerNormShape { norm })
        };
        let bias = self.bias.as_ref().map(|bias| bias.pointer as u64);
        let parameters = |plan: <AllReduceLayerNormShape as Planned>::Plan, group, chunk: &Chunk| {
            let tensors = tensors_from(norm, Some(&norm.output), chunk.start);
            plan.parameters(&geometry, group, tensors, bias, norm.epsilon)
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
