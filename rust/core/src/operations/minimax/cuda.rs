//! The norm of rows that are spread over the ranks, over device memory.

use lamport_rs_kernels::plan::minimax::{MinimaxPlan, MinimaxShape, MinimaxTensors};

use super::{MinimaxRms, Norm};
use crate::cuda::plans::{Planned, planned};
use crate::error::{Error, Result};
use crate::operations::chunk::{self, Chunk};
use crate::operations::launch::{Purpose, launch, narrow, without_peers};
use crate::operations::operands::OnDevice;
use crate::tensor::Device;
use crate::workspace::cuda::CudaWorkspace;

planned!(MinimaxShape<1>, MinimaxPlan<1>, None);
planned!(MinimaxShape<2>, MinimaxPlan<2>, None);

impl OnDevice for MinimaxRms {
    fn check_on_device(&self, workspace: &CudaWorkspace) -> Result<()> {
        check(workspace, self).map(drop)
    }

    unsafe fn run_on_device(&self, workspace: &CudaWorkspace, purpose: Purpose) -> Result<()> {
        let most = check(workspace, self)?;
        if workspace.member().geometry.world_size() == 1 {
            return without_peers(workspace, purpose);
        }
        match self.norms {
            // SAFETY: the caller's promises.
            [Some(one), None] => unsafe { run_minimax(workspace, self, most, [one], purpose) },
            // SAFETY: as above.
            [Some(q), Some(k)] => unsafe { run_minimax(workspace, self, most, [q, k], purpose) },
            _ => unreachable!("the first matrix is always there"),
        }
    }
}

/// Checks the operands, and says how the operation runs: the most rows of a launch.
fn check(workspace: &CudaWorkspace, operands: &MinimaxRms) -> Result<usize> {
    operands.check(Device::Cuda(workspace.device.index))?;
    for norm in operands.norms.iter().flatten() {
        tensors(norm)?;
    }
    Ok(chunk::most_tokens(operands.matrices(), &workspace.member().geometry)?)
}

unsafe fn run_minimax<const MATRICES: usize>(
    workspace: &CudaWorkspace,
    operands: &MinimaxRms,
    most: usize,
    norms: [Norm; MATRICES],
    purpose: Purpose,
) -> Result<()>
where
    MinimaxShape<MATRICES>: Planned<Plan = MinimaxPlan<MATRICES>>,
{
    let geometry = workspace.member().geometry;
    let widths = try_map(norms, |norm| narrow(norm.input.columns()))?;
    let tensors = try_map(norms, |norm| tensors(&norm))?;
    let shape = |chunk: &Chunk| {
        Ok(MinimaxShape {
            tokens: narrow(chunk.len())?,
            widths,
            dtype: norms[0].input.dtype,
            weight: norms[0].weight.dtype,
            world_size: geometry.world_size() as u32,
        })
    };
    let parameters = |plan: MinimaxPlan<MATRICES>, group, chunk: &Chunk| {
        let tensors = tensors.map(|tensors| tensors.from_row(chunk.start));
        plan.parameters(&geometry, group, tensors, operands.epsilon)
    };
    let rows = norms[0].input.rows();
    // SAFETY: the caller's promises.
    unsafe { launch(workspace, &operands.describe(), chunk::all(rows, most), shape, parameters, purpose) }
}

fn tensors(norm: &Norm) -> Result<MinimaxTensors> {
    let size = norm.input.dtype.size();
    Ok(MinimaxTensors {
        input: norm.input.pointer as u64,
        input_row_bytes: u32::try_from(norm.input.row_stride().unwrap_or(0) * size)
            .map_err(|_| Error::Layout("rows lie 4 GiB apart or more".to_owned()))?,
        weight: norm.weight.pointer as u64,
        output: norm.output.pointer as u64,
        output_row_bytes: narrow(norm.output.columns() * size)?,
    })
}

fn try_map<T, U, const N: usize>(values: [T; N], map: impl Fn(T) -> Result<U>) -> Result<[U; N]> {
    let mut failure = None;
    let mapped = values.map(|value| map(value).map_err(|error| failure = Some(error)).ok());
    match failure {
        Some(failure) => Err(failure),
        None => Ok(mapped.map(|value| value.expect("no value failed"))),
    }
}
