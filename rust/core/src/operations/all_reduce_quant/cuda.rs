//! The operation over device memory.

use lamport_rs_kernels::plan::rms_norm::{
    AllReduceRmsNormQuantPlan, AllReduceRmsNormQuantShape, AllReduceRmsNormTensors,
};
use lamport_rs_kernels::sink::Family;
use lamport_rs_protocol::algorithm::Algorithm;

use super::AllReduceQuant;
use crate::error::Result;
use crate::operations::chunk::Chunk;
use crate::operations::launch::{Purpose, launch, without_peers};
use crate::operations::operands::OnDevice;
use crate::operations::rms_norm::cuda::{address_of, plan_norm, rms_norm_shape};
use crate::tensor::Device;
use crate::workspace::cuda::CudaWorkspace;

impl OnDevice for AllReduceQuant {
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
        let Self { input, quantised, has_sum, .. } = self;
        let shape = |chunk: &Chunk| {
            let norm = rms_norm_shape(input, input.dtype, algorithm, world_size, chunk.len());
            Ok(AllReduceRmsNormQuantShape { norm, sink: quantised.sink, is_normalised: false })
        };
        type Plan = AllReduceRmsNormQuantPlan;
        let tensors_of = |plan: &Plan, chunk: &Chunk| {
            let sum = self.sum_place().filter(|_| *has_sum || !plan.is_held());
            AllReduceRmsNormTensors {
                input: address_of(input, chunk.start),
                residual: None,
                weight: 0,
                output: 0,
                residual_output: sum.map_or(0, |sum| address_of(sum, chunk.start)),
            }
        };
        let description = self.describe(algorithm);
        match quantised.sink.format().family {
            Family::Float32Scales => {
                let parameters = |plan: Plan, group, chunk: &Chunk| {
                    let tensors = tensors_of(&plan, chunk);
                    plan.parameters(&geometry, group, tensors, quantised.tensors_from(chunk), 0.0, 0.0)
                };
                // SAFETY: the caller's promises.
                unsafe { launch(workspace, &description, chunks, shape, parameters, purpose) }
            }
            Family::ByteScales => {
                let parameters = |plan: Plan, group, chunk: &Chunk| {
                    let tensors = tensors_of(&plan, chunk);
                    plan.block_parameters(&geometry, group, tensors, quantised.tensors_from(chunk), 0.0, 0.0)
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
    operands: &AllReduceQuant,
) -> Result<(Algorithm, impl Iterator<Item = Chunk> + Clone + use<>)> {
    operands.check(Device::Cuda(workspace.device.index))?;
    plan_norm(workspace, &operands.input, operands.input.dtype, operands.algorithm)
}
