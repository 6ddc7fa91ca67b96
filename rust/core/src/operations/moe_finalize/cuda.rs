//! The operations over device memory.

use lamport_rs_kernels::parameters::{self, MoeFinalizeParameters};
use lamport_rs_kernels::plan::one_shot_rows::{OneShotRows, OneShotRowsShape};
use lamport_rs_kernels::plan::rms_norm::{AllReduceRmsNormPlan, AllReduceRmsNormTensors};

use super::{Experts, MoeFinalizeAllReduce, MoeFinalizeAllReduceRmsNorm};
use crate::error::Result;
use crate::operations::chunk::Chunk;
use crate::operations::description::Description;
use crate::operations::launch::{Purpose, launch, narrow, without_peers};
use crate::operations::operands::OnDevice;
use crate::operations::rms_norm::cuda::{address_of, plan_norm, rms_norm_shape, tensors_from};
use crate::tensor::{Device, Dtype, Tensor};
use crate::workspace::cuda::CudaWorkspace;

impl OnDevice for MoeFinalizeAllReduceRmsNorm {
    fn check_on_device(&self, workspace: &CudaWorkspace) -> Result<()> {
        self.plan(workspace).map(drop)
    }

    unsafe fn run_on_device(&self, workspace: &CudaWorkspace, purpose: Purpose) -> Result<()> {
        let (norm, chunks) = (&self.norm, self.plan(workspace)?);
        let launched = Launched {
            experts: &self.experts,
            output: &norm.output,
            weight: norm.weight.dtype,
            operation: OneShotRows::MoeFinalizeRmsNorm,
            scalars: [norm.epsilon, norm.weight_bias],
            description: self.describe(),
        };
        let tensors = |row| tensors_from(norm, Some(&norm.output), row);
        // SAFETY: the caller's promises.
        unsafe { launched.run(workspace, chunks, tensors, purpose) }
    }
}

impl MoeFinalizeAllReduceRmsNorm {
    /// Checks the operands, and says which are the rows of each launch.
    fn plan(&self, workspace: &CudaWorkspace) -> Result<impl Iterator<Item = Chunk> + Clone + use<>> {
        self.check(Device::Cuda(workspace.device.index))?;
        narrow(self.experts.index.columns())?;
        Ok(plan_norm(workspace, &self.norm.input, self.norm.weight.dtype, self.norm.algorithm)?.1)
    }
}

impl OnDevice for MoeFinalizeAllReduce {
    fn check_on_device(&self, workspace: &CudaWorkspace) -> Result<()> {
        self.plan(workspace).map(drop)
    }

    unsafe fn run_on_device(&self, workspace: &CudaWorkspace, purpose: Purpose) -> Result<()> {
        let (output, chunks) = (&self.sum.output, self.plan(workspace)?);
        let launched = Launched {
            experts: &self.experts,
            output,
            weight: output.dtype,
            operation: OneShotRows::MoeFinalize,
            scalars: [0.0; 2],
            description: self.describe(),
        };
        let tensors = |row| {
            let output = address_of(output, row);
            AllReduceRmsNormTensors { input: 0, residual: None, weight: 0, output, residual_output: 0 }
        };
        // SAFETY: the caller's promises.
        unsafe { launched.run(workspace, chunks, tensors, purpose) }
    }
}

impl MoeFinalizeAllReduce {
    /// As above.
    fn plan(&self, workspace: &CudaWorkspace) -> Result<impl Iterator<Item = Chunk> + Clone + use<>> {
        self.check(Device::Cuda(workspace.device.index))?;
        narrow(self.experts.index.columns())?;
        Ok(plan_norm(workspace, &self.sum.input, self.sum.input.dtype, self.sum.algorithm)?.1)
    }
}

/// What is launched, but for where the tensors are.
struct Launched<'a> {
    experts: &'a Experts,
    output: &'a Tensor,
    /// Of the norm's weight; the rows' where there is none.
    weight: Dtype,
    operation: OneShotRows,
    /// Epsilon and the weight's bias.
    scalars: [f32; 2],
    description: Description,
}

impl Launched<'_> {
    /// Launches it in `chunks`, with the tensors from a row on.
    ///
    /// # Safety
    /// As for [`OnDevice::run_on_device`], with checked operands.
    unsafe fn run(
        &self,
        workspace: &CudaWorkspace,
        chunks: impl Iterator<Item = Chunk> + Clone,
        tensors: impl Fn(usize) -> AllReduceRmsNormTensors,
        purpose: Purpose,
    ) -> Result<()> {
        let Self { experts, output, weight, operation, scalars: [epsilon, weight_bias], description } = *self;
        let geometry = workspace.member().geometry;
        let world_size = geometry.world_size();
        if world_size == 1 {
            return without_peers(workspace, purpose);
        }
        let shape = |chunk: &Chunk| {
            let norm = rms_norm_shape(output, weight, description.algorithm, world_size, chunk.len());
            Ok(OneShotRowsShape { norm, operation })
        };
        let parameters = |plan: AllReduceRmsNormPlan, group, chunk: &Chunk| {
            // The rows are the experts', and not of an input.
            let tensors = AllReduceRmsNormTensors { input: 0, ..tensors(chunk.start) };
            let base = plan.parameters(&geometry, group, tensors, epsilon, weight_bias)?;
            Ok(MoeFinalizeParameters { base, experts: experts.parameters(chunk.start) })
        };
        // SAFETY: the caller's promises.
        unsafe { launch(workspace, &description, chunks, shape, parameters, purpose) }
    }
}

impl Experts {
    /// As kernels take them, for the rows from `token` on.
    fn parameters(&self, token: usize) -> parameters::Experts {
        parameters::Experts {
            rows: self.rows.pointer as u64,
            index: address_of(&self.index, token),
            weights: address_of(&self.weights, token),
            shared_rows: self.shared.map_or(0, |shared| address_of(&shared, token)),
            // No index is larger.
            row_count: self.rows.rows().min(1 << 31) as u32,
            per_token: self.index.columns() as u32,
            has_float32_weights: u32::from(self.weights.dtype != self.rows.dtype),
            reserved: 0,
        }
    }
}
