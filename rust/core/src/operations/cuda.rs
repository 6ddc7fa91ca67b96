//! The operations over device memory.

use cudarc::driver::sys;
use lamport_rs_kernels::parameters::Group as KernelGroup;
use lamport_rs_kernels::plan::all_reduce::{AllReduceShape, two_shot_from};
use lamport_rs_kernels::plan::minimax::{MinimaxPlan, MinimaxShape, MinimaxTensors};
use lamport_rs_kernels::plan::rms_norm::{self, AllReduceRmsNormShape, AllReduceRmsNormTensors};
use lamport_rs_protocol::algorithm::Algorithm;
use lamport_rs_protocol::geometry::GeometryError;
use lamport_rs_protocol::sentinel::VECTOR_BYTES;

use crate::cuda::launch::Function;
use crate::cuda::plans::{Planned, Plans, PlansOf};
use crate::error::{Error, Result};
use crate::operations::arguments::{AllReduce, AllReduceRmsNorm, MinimaxRms, Norm};
use crate::operations::choice::choose;
use crate::operations::chunk::{self, Chunk};
use crate::operations::operation::Description;
use crate::tensor::{Device, Tensor};
use crate::workspace::cuda::CudaWorkspace;

/// What an operation's plans are made for.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    /// To run it on a stream.
    Run(sys::CUstream),
    /// To have its kernels loaded: later, that would wait for kernels that run.
    Load,
}

/// Runs the operation in `stream`'s order. A collective call: all ranks pass as many bytes.
///
/// # Safety
/// The tensors' pointers are valid for their shapes and strides until the stream has passed the operation, and `stream`
/// is a stream of the workspace's device.
pub unsafe fn all_reduce(workspace: &CudaWorkspace, operands: &AllReduce, stream: sys::CUstream) -> Result<()> {
    // SAFETY: the caller's promises.
    unsafe { do_all_reduce(workspace, operands, Purpose::Run(stream)) }
}

/// Runs it, or loads its kernels.
///
/// # Safety
/// As for [`all_reduce`], to run it.
pub(super) unsafe fn do_all_reduce(workspace: &CudaWorkspace, operands: &AllReduce, purpose: Purpose) -> Result<()> {
    let (algorithm, most) = check_all_reduce(workspace, operands)?;
    let geometry = workspace.member().geometry;
    let world_size = geometry.world_size();
    let bytes = operands.input.bytes();
    let (input, output) = (operands.input.pointer as u64, operands.output.pointer as u64);
    if world_size == 1 {
        return match purpose {
            Purpose::Load => Ok(()),
            // SAFETY: the caller's promises.
            Purpose::Run(stream) => unsafe { workspace.copy(input, output, bytes, stream) },
        };
    }
    let shape = |chunk: &Chunk| {
        let bytes = chunk.len();
        Ok(AllReduceShape { bytes, dtype: operands.input.dtype, world_size, algorithm })
    };
    let parameters = |plan: <AllReduceShape as Planned>::Plan, group, chunk: &Chunk| {
        plan.parameters(&geometry, group, input + chunk.start as u64, output + chunk.start as u64)
    };
    let description = operands.describe(algorithm);
    // SAFETY: the caller's promises.
    unsafe {
        let chunks = chunk::all(bytes, most);
        launch(workspace, &description, chunks, |plans| &mut plans.all_reduce, shape, parameters, purpose)
    }
}

/// Checks the operands, and says how the operation runs: the algorithm, and the most bytes of a launch.
pub fn check_all_reduce(workspace: &CudaWorkspace, operands: &AllReduce) -> Result<(Algorithm, usize)> {
    operands.check(Device::Cuda(workspace.device.index))?;
    let geometry = workspace.member().geometry;
    let (world_size, bytes) = (geometry.world_size(), operands.input.bytes());
    let is_large = bytes >= workspace.two_shot_from.unwrap_or_else(|| two_shot_from(world_size));
    let algorithm = choose(operands.algorithm, is_large, &geometry, bytes.div_ceil(VECTOR_BYTES), VECTOR_BYTES);
    Ok((algorithm, chunk::most_bytes(algorithm, &geometry)?))
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
    // SAFETY: the caller's promises.
    unsafe { do_all_reduce_rms_norm(workspace, operands, Purpose::Run(stream)) }
}

/// Runs it, or loads its kernels.
///
/// # Safety
/// As for [`all_reduce`], to run it.
pub(super) unsafe fn do_all_reduce_rms_norm(
    workspace: &CudaWorkspace,
    operands: &AllReduceRmsNorm,
    purpose: Purpose,
) -> Result<()> {
    let (algorithm, chunks) = check_all_reduce_rms_norm(workspace, operands)?;
    let geometry = workspace.member().geometry;
    let world_size = geometry.world_size();
    if world_size == 1 {
        return without_peers(workspace, purpose);
    }
    let row_bytes = operands.input.columns() * operands.input.dtype.size();
    let shape = |chunk: &Chunk| Ok(rms_norm_shape(operands, algorithm, world_size, chunk.len()));
    let parameters = |plan: <AllReduceRmsNormShape as Planned>::Plan, group, chunk: &Chunk| {
        let row = |tensor: &Tensor| tensor.pointer as u64 + (chunk.start * row_bytes) as u64;
        let tensors = AllReduceRmsNormTensors {
            input: row(&operands.input),
            residual: operands.residual.as_ref().map(row),
            weight: operands.weight.pointer as u64,
            output: row(&operands.output),
            residual_output: row(&operands.residual_output),
        };
        plan.parameters(&geometry, group, tensors, operands.epsilon, operands.weight_bias)
    };
    let description = operands.describe(algorithm);
    // SAFETY: the caller's promises.
    unsafe {
        launch(workspace, &description, chunks, |plans| &mut plans.all_reduce_rms_norm, shape, parameters, purpose)
    }
}

/// Kernels of norms take a peer to exist: the caller does without them, and has none to load.
pub(super) fn without_peers(workspace: &CudaWorkspace, purpose: Purpose) -> Result<()> {
    workspace.check_open()?;
    match purpose {
        Purpose::Load => Ok(()),
        Purpose::Run(_) => Err(Error::SingleRank),
    }
}

/// The shape of `tokens` of the rows. The last rows may be too few for two shots.
pub(super) fn rms_norm_shape(
    operands: &AllReduceRmsNorm,
    algorithm: Algorithm,
    world_size: usize,
    tokens: usize,
) -> AllReduceRmsNormShape {
    let algorithm = if rms_norm::has_two_shot(tokens, world_size) { algorithm } else { Algorithm::OneShot };
    let (hidden, dtype, weight) = (operands.input.columns(), operands.input.dtype, operands.weight.dtype);
    AllReduceRmsNormShape { tokens, hidden, dtype, weight, world_size, algorithm }
}

/// Checks the operands, and says how the operation runs: the algorithm, and the rows of each launch.
pub fn check_all_reduce_rms_norm(
    workspace: &CudaWorkspace,
    operands: &AllReduceRmsNorm,
) -> Result<(Algorithm, impl Iterator<Item = Chunk> + Clone + use<>)> {
    operands.check(Device::Cuda(workspace.device.index))?;
    plan_norm(workspace, operands)
}

/// The algorithm, and the rows of each launch, for checked operands.
pub(super) fn plan_norm(
    workspace: &CudaWorkspace,
    operands: &AllReduceRmsNorm,
) -> Result<(Algorithm, impl Iterator<Item = Chunk> + Clone + use<>)> {
    let geometry = workspace.member().geometry;
    let (world_size, input) = (geometry.world_size(), operands.input);
    let (tokens, row_bytes) = (input.rows(), input.columns() * input.dtype.size());
    let is_large =
        input.bytes() >= workspace.two_shot_from.unwrap_or_else(|| rms_norm::two_shot_from(world_size, row_bytes));
    let asked = if rms_norm::has_two_shot(tokens, world_size) { operands.algorithm } else { Some(Algorithm::OneShot) };
    let algorithm = choose(asked, is_large, &geometry, tokens, row_bytes);
    let chunks = chunk::rows(tokens, algorithm, &geometry, row_bytes)?;
    if let Some(first) = chunks.clone().next() {
        rms_norm_shape(operands, algorithm, world_size, first.len()).check()?;
    }
    Ok((algorithm, chunks))
}

/// Runs the operation in `stream`'s order. A collective call: all ranks pass as many tokens.
///
/// # Safety
/// As for [`all_reduce`].
pub unsafe fn minimax_rms(workspace: &CudaWorkspace, operands: &MinimaxRms, stream: sys::CUstream) -> Result<()> {
    // SAFETY: the caller's promises.
    unsafe { do_minimax_rms(workspace, operands, Purpose::Run(stream)) }
}

/// Runs it, or loads its kernels.
///
/// # Safety
/// As for [`all_reduce`], to run it.
pub(super) unsafe fn do_minimax_rms(workspace: &CudaWorkspace, operands: &MinimaxRms, purpose: Purpose) -> Result<()> {
    let most = check_minimax_rms(workspace, operands)?;
    if workspace.member().geometry.world_size() == 1 {
        return without_peers(workspace, purpose);
    }
    match operands.norms {
        // SAFETY: the caller's promises.
        [Some(one), None] => unsafe {
            run_minimax(workspace, operands, most, [one], |plans| &mut plans.minimax_rms, purpose)
        },
        // SAFETY: as above.
        [Some(q), Some(k)] => unsafe {
            run_minimax(workspace, operands, most, [q, k], |plans| &mut plans.minimax_rms_qk, purpose)
        },
        _ => unreachable!("the first matrix is always there"),
    }
}

/// Checks the operands, and says how the operation runs: the most rows of a launch.
pub fn check_minimax_rms(workspace: &CudaWorkspace, operands: &MinimaxRms) -> Result<usize> {
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
    plans: impl Fn(&mut Plans) -> &mut PlansOf<MinimaxShape<MATRICES>>,
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
    unsafe { launch(workspace, &operands.describe(), chunk::all(rows, most), plans, shape, parameters, purpose) }
}

/// Launches an operation for each of the chunks, or loads its kernels. With none there is nothing to do but to be counted.
///
/// All chunks are told to the peers as the whole operation, so that they differ from the first on if that does.
#[allow(clippy::too_many_arguments, reason = "what differs between operations")]
pub(super) unsafe fn launch<Shape: Planned, P>(
    workspace: &CudaWorkspace,
    description: &Description,
    chunks: impl Iterator<Item = Chunk> + Clone,
    plans: impl Fn(&mut Plans) -> &mut PlansOf<Shape>,
    shape: impl Fn(&Chunk) -> Result<Shape>,
    parameters: impl Fn(Shape::Plan, KernelGroup, &Chunk) -> std::result::Result<P, GeometryError>,
    purpose: Purpose,
) -> Result<()> {
    // First: a shape that has no plan changes nothing.
    for chunk in chunks.clone() {
        shape(&chunk)?.check()?;
    }
    let Purpose::Run(stream) = purpose else {
        workspace.check_open()?;
        let _entered = workspace.device.enter()?;
        // The device keeps what is loaded. The workspace's own plans are for whoever runs an operation.
        let mut loaded = Plans::default();
        for chunk in chunks {
            plans(&mut loaded).get(shape(&chunk)?, &workspace.device)?;
        }
        return Ok(());
    };
    if chunks.clone().next().is_none() {
        return workspace.skip(stream);
    }
    let mut launching = workspace.begin(description, stream)?;
    for chunk in chunks {
        let group = launching.group;
        let launched = shape(&chunk).and_then(|shape| {
            let (plan, function): (Shape::Plan, Function) = plans(launching.plans()).get(shape, &workspace.device)?;
            let parameters = parameters(plan, group, &chunk)?;
            // SAFETY: `begin` made the context current; these are the kernel's parameters, and the caller keeps the
            // operands.
            unsafe { function.launch(&Shape::launch(&plan), stream, &parameters) }
        });
        // The peers' operations go ahead: this rank would be one behind them for ever.
        launched.inspect_err(|error| launching.fail(error))?;
        launching.go_on();
    }
    Ok(())
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
