//! The operations over device memory.

use cudarc::driver::sys;
use lamport_rs_kernels::parameters::Group as KernelGroup;
use lamport_rs_kernels::plan::all_reduce::{AllReduceShape, two_shot_from};
use lamport_rs_kernels::plan::minimax::{MinimaxPlan, MinimaxShape, MinimaxTensors};
use lamport_rs_kernels::plan::rms_norm::{self, AllReduceRmsNormShape, AllReduceRmsNormTensors};
use lamport_rs_protocol::algorithm::Algorithm;
use lamport_rs_protocol::geometry::GeometryError;

use crate::cuda::launch::Function;
use crate::cuda::plans::{Planned, Plans, PlansOf};
use crate::error::{Error, Result};
use crate::operations::arguments::{AllReduce, AllReduceRmsNorm, MinimaxRms, Norm};
use crate::operations::choice::choose;
use crate::operations::operation::Description;
use crate::tensor::Device;
use crate::workspace::cuda::CudaWorkspace;

/// Runs the operation in `stream`'s order. A collective call: all ranks pass as many bytes.
///
/// # Safety
/// The tensors' pointers are valid for their shapes and strides until the stream has passed the operation, and `stream`
/// is a stream of the workspace's device.
pub unsafe fn all_reduce(workspace: &CudaWorkspace, operands: &AllReduce, stream: sys::CUstream) -> Result<()> {
    operands.check(Device::Cuda(workspace.device.index))?;
    let geometry = workspace.member().geometry;
    let world_size = geometry.world_size();
    let bytes = operands.input.bytes();
    let message = |algorithm: Algorithm| algorithm.tensor_message_bytes(bytes, world_size);
    let region_bytes = |algorithm| geometry.region_bytes(message(algorithm));
    let is_large = bytes >= workspace.two_shot_from.unwrap_or_else(|| two_shot_from(world_size));
    let (algorithm, _) = choose(operands.algorithm, is_large, region_bytes)?;
    let shape = AllReduceShape { bytes, dtype: operands.input.dtype, world_size, algorithm };
    let parameters = |plan: <AllReduceShape as Planned>::Plan, group| {
        let (input, output) = (operands.input.pointer as u64, operands.output.pointer as u64);
        plan.parameters(&geometry, group, input, output)
    };
    let shape = (bytes > 0).then_some(shape);
    // SAFETY: the caller's promises.
    unsafe {
        launch(workspace, &operands.describe(algorithm), shape, |plans| &mut plans.all_reduce, parameters, stream)
    }
}

/// Runs the operation in `stream`'s order. A collective call: all ranks pass rows of the same shape.
///
/// # Safety
/// As for [`all_reduce`].
pub unsafe fn all_reduce_rms_norm(
    workspace: &CudaWorkspace,
    operands: &AllReduceRmsNorm,
    stream: sys::CUstream,
) -> Result<()> {
    operands.check(Device::Cuda(workspace.device.index))?;
    let geometry = workspace.member().geometry;
    let world_size = geometry.world_size();
    let input = operands.input;
    let (tokens, hidden) = (input.rows(), input.columns());
    let message = |algorithm: Algorithm| algorithm.message_bytes(tokens, hidden * input.dtype.size(), world_size);
    let is_large = input.bytes() >= workspace.two_shot_from.unwrap_or_else(|| rms_norm::two_shot_from(world_size));
    let region_bytes = |algorithm| geometry.region_bytes(message(algorithm));
    let asked = if rms_norm::has_two_shot(tokens, world_size) { operands.algorithm } else { Some(Algorithm::OneShot) };
    let (algorithm, _) = choose(asked, is_large, region_bytes)?;
    let (dtype, weight) = (input.dtype, operands.weight.dtype);
    let shape = AllReduceRmsNormShape { tokens, hidden, dtype, weight, world_size, algorithm };
    let tensors = AllReduceRmsNormTensors {
        input: input.pointer as u64,
        residual: operands.residual.pointer as u64,
        weight: operands.weight.pointer as u64,
        output: operands.output.pointer as u64,
        residual_output: operands.residual_output.pointer as u64,
    };
    let parameters = |plan: <AllReduceRmsNormShape as Planned>::Plan, group| {
        plan.parameters(&geometry, group, tensors, operands.epsilon, operands.weight_bias)
    };
    let shape = (input.elements() > 0).then_some(shape);
    // SAFETY: the caller's promises.
    unsafe {
        launch(
            workspace,
            &operands.describe(algorithm),
            shape,
            |plans| &mut plans.all_reduce_rms_norm,
            parameters,
            stream,
        )
    }
}

/// Runs the operation in `stream`'s order. A collective call: all ranks pass as many tokens.
///
/// # Safety
/// As for [`all_reduce`].
pub unsafe fn minimax_rms(workspace: &CudaWorkspace, operands: &MinimaxRms, stream: sys::CUstream) -> Result<()> {
    operands.check(Device::Cuda(workspace.device.index))?;
    match operands.norms {
        // SAFETY: the caller's promises.
        [Some(one), None] => unsafe { run_minimax(workspace, operands, [one], |plans| &mut plans.minimax_rms, stream) },
        // SAFETY: as above.
        [Some(q), Some(k)] => unsafe {
            run_minimax(workspace, operands, [q, k], |plans| &mut plans.minimax_rms_qk, stream)
        },
        _ => unreachable!("the first matrix is always there"),
    }
}

unsafe fn run_minimax<const MATRICES: usize>(
    workspace: &CudaWorkspace,
    operands: &MinimaxRms,
    norms: [Norm; MATRICES],
    plans: impl FnOnce(&mut Plans) -> &mut PlansOf<MinimaxShape<MATRICES>>,
    stream: sys::CUstream,
) -> Result<()>
where
    MinimaxShape<MATRICES>: Planned<Plan = MinimaxPlan<MATRICES>>,
{
    let geometry = workspace.member().geometry;
    let rows = norms[0].input.rows();
    // First: an operation that does not fit changes nothing.
    geometry.region_bytes(rows * MATRICES * size_of::<f32>())?;
    let shape = MinimaxShape {
        tokens: narrow(rows)?,
        widths: try_map(norms, |norm| narrow(norm.input.columns()))?,
        dtype: norms[0].input.dtype,
        weight: norms[0].weight.dtype,
        world_size: geometry.world_size() as u32,
    };
    let tensors = try_map(norms, |norm| tensors(&norm))?;
    let parameters = |plan: MinimaxPlan<MATRICES>, group| plan.parameters(&geometry, group, tensors, operands.epsilon);
    let shape = (rows > 0).then_some(shape);
    // SAFETY: the caller's promises.
    unsafe { launch(workspace, &operands.describe(), shape, plans, parameters, stream) }
}

/// Launches the plan for `shape`; `None` if there is nothing to do but to be counted.
unsafe fn launch<Shape: Planned, P>(
    workspace: &CudaWorkspace,
    description: &Description,
    shape: Option<Shape>,
    plans: impl FnOnce(&mut Plans) -> &mut PlansOf<Shape>,
    parameters: impl FnOnce(Shape::Plan, KernelGroup) -> std::result::Result<P, GeometryError>,
    stream: sys::CUstream,
) -> Result<()> {
    let Some(shape) = shape else { return workspace.skip() };
    // First: a shape that has no plan changes nothing.
    shape.check()?;
    let mut launching = workspace.begin(description, stream)?;
    let group = launching.group;
    let planned = plans(launching.plans()).get(shape, &workspace.device);
    let launched = planned.and_then(|(plan, function): (Shape::Plan, Function)| {
        let parameters = parameters(plan, group)?;
        // SAFETY: `begin` made the context current; these are the kernel's parameters, and the caller keeps the
        // operands.
        unsafe { function.launch(&Shape::launch(&plan), stream, &parameters) }
    });
    // The peers' operations go ahead: this rank would be one behind them for ever.
    launched.inspect_err(|error| launching.fail(error))
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
