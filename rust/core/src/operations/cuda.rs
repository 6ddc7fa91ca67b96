//! The operations over device memory.

use cudarc::driver::sys;
use lamport_rs_kernels::plan::minimax::{MinimaxShape, MinimaxTensors};

use crate::cuda::plans::{MinimaxPlans, PlansFor};
use crate::error::{Error, Result};
use crate::operations::arguments::{MinimaxRms, Norm};
use crate::tensor::Device;
use crate::workspace::cuda::CudaWorkspace;

/// Runs the operation in `stream`'s order. A collective call: all ranks pass as many tokens.
///
/// # Safety
/// The tensors' pointers are valid for their shapes and strides until the stream has passed the operation, and `stream`
/// is a stream of the workspace's device.
pub unsafe fn minimax_rms(workspace: &CudaWorkspace, operands: &MinimaxRms, stream: sys::CUstream) -> Result<()> {
    operands.check(Device::Cuda(workspace.device.index))?;
    match operands.norms {
        // SAFETY: the caller's promises.
        [Some(one), None] => unsafe { run(workspace, [one], operands.epsilon, stream) },
        // SAFETY: as above.
        [Some(q), Some(k)] => unsafe { run(workspace, [q, k], operands.epsilon, stream) },
        _ => unreachable!("the first matrix is always there"),
    }
}

unsafe fn run<const MATRICES: usize>(
    workspace: &CudaWorkspace,
    norms: [Norm; MATRICES],
    epsilon: f32,
    stream: sys::CUstream,
) -> Result<()>
where
    MinimaxPlans: PlansFor<MATRICES>,
{
    let geometry = workspace.member().geometry;
    let rows = norms[0].input.rows();
    // Before the turn: an operation that does not fit changes nothing.
    geometry.region_bytes(rows * MATRICES * size_of::<f32>())?;
    let shape = MinimaxShape {
        tokens: narrow(rows)?,
        widths: try_map(norms, |norm| narrow(norm.input.columns()))?,
        dtype: norms[0].input.dtype,
        weight: norms[0].weight.dtype,
        world_size: geometry.world_size() as u32,
    };
    let tensors = try_map(norms, |norm| tensors(&norm))?;
    let mut turn = workspace.take_turn(stream)?;
    if rows == 0 {
        return Ok(());
    }
    let launched = turn.plans().get(&shape, &workspace.device).and_then(|(plan, function)| {
        let parameters = plan.parameters(&geometry, *workspace.kernel_group(), tensors, epsilon)?;
        // SAFETY: the turn made the context current; these are the kernel's parameters, and the caller keeps the
        // operands.
        unsafe { function.launch(&plan.launch, stream, &parameters) }
    });
    // The peers' operations go ahead: this rank would be one behind them for ever.
    launched.inspect_err(|error| turn.fail(error))
}

fn tensors(norm: &Norm) -> Result<MinimaxTensors> {
    let size = norm.input.dtype.size();
    Ok(MinimaxTensors {
        input: norm.input.pointer as u64,
        input_row_bytes: narrow(norm.input.row_stride().unwrap_or(0) * size)?,
        weight: norm.weight.pointer as u64,
        output: norm.output.pointer as u64,
        output_row_bytes: narrow(norm.output.columns() * size)?,
    })
}

fn narrow(value: usize) -> Result<u32> {
    u32::try_from(value)
        .map_err(|_| Error::Argument(format!("{value} is more than a kernel can count; split the tensor")))
}

fn try_map<T, U, const N: usize>(values: [T; N], map: impl Fn(T) -> Result<U>) -> Result<[U; N]> {
    let mut failure = None;
    let mapped = values.map(|value| map(value).map_err(|error| failure = Some(error)).ok());
    match failure {
        Some(failure) => Err(failure),
        None => Ok(mapped.map(|value| value.expect("no value failed"))),
    }
}
