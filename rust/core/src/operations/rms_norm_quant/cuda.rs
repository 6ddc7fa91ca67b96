//! The operation over device memory.

use lamport_rs_kernels::plan::rms_norm::{AllReduceRmsNormQuantPlan, AllReduceRmsNormQuantShape};
use lamport_rs_kernels::sink::Family;
use lamport_rs_protocol::algorithm::Algorithm;

use super::AllReduceRmsNormQuant;
use crate::cuda::plans::{Planned, planned};
use crate::error::Result;
use crate::operations::chunk::Chunk;
use crate::operations::launch::{Purpose, launch, without_peers};
use crate::operations::operands::OnDevice;
use crate::operations::rms_norm::cuda::{plan_norm, rms_norm_shape, tensors_from};
use crate::tensor::Device;
use crate::workspace::cuda::CudaWorkspace;

planned!(AllReduceRmsNormQuantShape, AllReduceRmsNormQuantPlan);

impl OnDevice for AllReduceRmsNormQuant {
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
        let norm = &self.norm;
        let shape = |chunk: &Chunk| {
            let norm = rms_norm_shape(&norm.input, norm.weight.dtype, algorithm, world_size, chunk.len());
            Ok(AllReduceRmsNormQuantShape { norm, sink: self.quantised.sink, is_normalised: true })
        };
        let (epsilon, weight_bias) = (norm.epsilon, norm.weight_bias);
        let description = self.describe(algorithm);
        type Plan = <AllReduceRmsNormQuantShape as Planned>::Plan;
        match self.quantised.sink.format().family {
            Family::Float32Scales => {
                let parameters = |plan: Plan, group, chunk: &Chunk| {
                    let tensors = tensors_from(norm, self.output(), chunk.start);
                    plan.parameters(&geometry, group, tensors, self.quantised.tensors_from(chunk), epsilon, weight_bias)
                };
                // SAFETY: the caller's promises.
                unsafe { launch(workspace, &description, chunks, shape, parameters, purpose) }
            }
            Family::ByteScales => {
                let parameters = |plan: Plan, group, chunk: &Chunk| {
                    let tensors = tensors_from(norm, self.output(), chunk.start);
                    plan.block_parameters(
                        &geometry,
                        group,
                        tensors,
                        self.quantised.tensors_from(chunk),
                        epsilon,
                        weight_bias,
                    )
                };
                // SAFETY: the caller's promises.
                unsafe { launch(workspace, &description, chunks, shape, parameters, purpose) }
            }
        }
    }
}

/// Checks the operands, and says how the operation runs: the algorithm, and the rows of each launch.
fn check(
    workspace: &CudaWorkspace,
    operands: &AllReduceRmsNormQuant,
) -> Result<(Algorithm, impl Iterator<Item = Chunk> + Clone + use<>)> {
    operands.check(Device::Cuda(workspace.device.index))?;
    plan_norm(workspace, &operands.norm.input, operands.norm.weight.dtype, operands.norm.algorithm)
}
