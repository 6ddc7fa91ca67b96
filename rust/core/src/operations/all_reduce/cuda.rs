//! The sum over device memory.

use lamport_rs_kernels::plan::all_reduce::{AllReducePlan, AllReduceShape, two_shot_from};
use lamport_rs_protocol::algorithm::Algorithm;
use lamport_rs_protocol::sentinel::VECTOR_BYTES;

use super::AllReduce;
use crate::cuda::plans::{Planned, planned};
use crate::error::Result;
use crate::operations::choice::choose;
use crate::operations::chunk::{self, Chunk};
use crate::operations::launch::{Purpose, launch};
use crate::operations::operands::OnDevice;
use crate::tensor::Device;
use crate::workspace::cuda::CudaWorkspace;

planned!(AllReduceShape, AllReducePlan);

impl OnDevice for AllReduce {
    fn check_on_device(&self, workspace: &CudaWorkspace) -> Result<()> {
        check(workspace, self).map(drop)
    }

    unsafe fn run_on_device(&self, workspace: &CudaWorkspace, purpose: Purpose) -> Result<()> {
        let (algorithm, most) = check(workspace, self)?;
        let geometry = workspace.member().geometry;
        let world_size = geometry.world_size();
        let bytes = self.input.bytes();
        let (input, output) = (self.input.pointer as u64, self.output.pointer as u64);
        if world_size == 1 {
            return match purpose {
                Purpose::Load => Ok(()),
                // SAFETY: the caller's promises.
                Purpose::Run(stream) => unsafe { workspace.copy(input, output, bytes, stream) },
            };
        }
        let shape = |chunk: &Chunk| {
            let bytes = chunk.len();
            Ok(AllReduceShape { bytes, dtype: self.input.dtype, world_size, algorithm })
        };
        let parameters = |plan: <AllReduceShape as Planned>::Plan, group, chunk: &Chunk| {
            plan.parameters(&geometry, group, input + chunk.start as u64, output + chunk.start as u64)
        };
        let description = self.describe(algorithm);
        // SAFETY: the caller's promises.
        unsafe {
            let chunks = chunk::all(bytes, most);
            launch(workspace, &description, chunks, shape, parameters, purpose)
        }
    }
}

/// Checks the operands, and says how the operation runs: the algorithm, and the most bytes of a launch.
fn check(workspace: &CudaWorkspace, operands: &AllReduce) -> Result<(Algorithm, usize)> {
    operands.check(Device::Cuda(workspace.device.index))?;
    let geometry = workspace.member().geometry;
    let (world_size, bytes) = (geometry.world_size(), operands.input.bytes());
    let is_large = bytes >= workspace.two_shot_from.unwrap_or_else(|| two_shot_from(world_size));
    let algorithm = choose(operands.algorithm, is_large, &geometry, bytes.div_ceil(VECTOR_BYTES), VECTOR_BYTES);
    Ok((algorithm, chunk::most_bytes(algorithm, &geometry)?))
}
