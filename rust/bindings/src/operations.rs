//! The operations: tensors in, nothing out. Outputs are passed in, allocated by the package.

use lamport_rs_core::cuda::Stream;
use lamport_rs_core::cuda::device::Device;
use lamport_rs_core::interrupts::Interrupted;
use lamport_rs_core::memory::cuda::fill_and_wait;
use lamport_rs_core::operations::arguments::{AllReduce, AllReduceRmsNorm, MinimaxRms, Norm};
use lamport_rs_core::operations::operation::Kind;
use lamport_rs_core::operations::rms_norm_quant::{self, AllReduceRmsNormQuant, Sink};
use lamport_rs_core::operations::support::{self, Question};
use lamport_rs_core::operations::{cuda, host};
use lamport_rs_core::tensor::{self, Dtype};
use lamport_rs_core::workspace::cuda::CudaWorkspace;
use lamport_rs_core::workspace::exclusive::Entered;
use lamport_rs_core::workspace::host::HostWorkspace;
use lamport_rs_core::{Error, Result};
use lamport_rs_protocol::algorithm::Algorithm;
use pyo3::intern;
use pyo3::prelude::*;

use crate::backend::AnyWorkspace;
use crate::errors::{LamportError, detached, interruptible, to_python};
use crate::registry;
use crate::stream;
use crate::tensor::extract;
use crate::workspace::Workspace;

/// The name that leaves the choice of the algorithm to the library.
const AUTO: &str = "auto";

/// `out = sum over ranks of input`.
#[pyfunction]
pub fn all_reduce(
    workspace: &Bound<'_, PyAny>,
    input: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    algorithm: &str,
) -> PyResult<()> {
    let found = find_workspace(workspace)?;
    let algorithm = find_algorithm(algorithm)?;
    let operands = AllReduce { input: extract(input, "input")?, output: extract(out, "out")?, algorithm };
    // SAFETY: the arguments hold references to the tensors until this function returns, and torch frees tensors in the
    // order of the stream they are used on.
    unsafe {
        run(
            workspace.py(),
            &found,
            Kind::AllReduce.name(),
            |workspace, interrupted| host::all_reduce(workspace, &operands, interrupted),
            |workspace, stream| cuda::all_reduce(workspace, &operands, stream),
        )
    }
}

/// `residual_out = sum over ranks of input + residual`, `out = rms_norm(residual_out) * (weight + weight_bias)`.
#[pyfunction]
#[allow(clippy::too_many_arguments, reason = "the operator's signature")]
pub fn all_reduce_rms_norm(
    workspace: &Bound<'_, PyAny>,
    input: &Bound<'_, PyAny>,
    residual: Option<&Bound<'_, PyAny>>,
    weight: &Bound<'_, PyAny>,
    eps: f32,
    weight_bias: f32,
    out: &Bound<'_, PyAny>,
    residual_out: &Bound<'_, PyAny>,
    algorithm: &str,
) -> PyResult<()> {
    let found = find_workspace(workspace)?;
    let operands = AllReduceRmsNorm {
        input: extract(input, "input")?,
        residual: residual.map(|residual| extract(residual, "residual")).transpose()?,
        weight: extract(weight, "weight")?,
        epsilon: eps,
        weight_bias,
        algorithm: find_algorithm(algorithm)?,
        output: extract(out, "out")?,
        residual_output: extract(residual_out, "residual_out")?,
    };
    // SAFETY: as in `all_reduce`.
    unsafe {
        run(
            workspace.py(),
            &found,
            Kind::AllReduceRmsNorm.name(),
            |workspace, interrupted| host::all_reduce_rms_norm(workspace, &operands, interrupted),
            |workspace, stream| cuda::all_reduce_rms_norm(workspace, &operands, stream),
        )
    }
}

/// Likewise, and `out` is the normalised rows as `format` has them, with their scales; `norm_out` these rows as they are,
/// if they are asked for. `scale` is where the scales go, or those that are given.
#[pyfunction]
#[allow(clippy::too_many_arguments, reason = "the operator's signature")]
pub fn all_reduce_rms_norm_quant(
    workspace: &Bound<'_, PyAny>,
    input: &Bound<'_, PyAny>,
    residual: Option<&Bound<'_, PyAny>>,
    weight: &Bound<'_, PyAny>,
    format: &str,
    eps: f32,
    weight_bias: f32,
    norm_out: Option<&Bound<'_, PyAny>>,
    out: &Bound<'_, PyAny>,
    scale: &Bound<'_, PyAny>,
    residual_out: &Bound<'_, PyAny>,
    algorithm: &str,
) -> PyResult<()> {
    let found = find_workspace(workspace)?;
    let residual_output = extract(residual_out, "residual_out")?;
    let output = norm_out.map(|output| extract(output, "norm_out")).transpose()?;
    let norm = AllReduceRmsNorm {
        input: extract(input, "input")?,
        residual: residual.map(|residual| extract(residual, "residual")).transpose()?,
        weight: extract(weight, "weight")?,
        epsilon: eps,
        weight_bias,
        algorithm: find_algorithm(algorithm)?,
        output: output.unwrap_or(residual_output),
        residual_output,
    };
    let operands = AllReduceRmsNormQuant {
        norm,
        has_output: output.is_some(),
        sink: find_format(format)?,
        quantised: extract(out, "out")?,
        scales: extract(scale, "scale")?,
    };
    // SAFETY: as in `all_reduce`.
    unsafe {
        run(
            workspace.py(),
            &found,
            Kind::AllReduceRmsNormQuant.name(),
            |workspace, interrupted| rms_norm_quant::host::all_reduce_rms_norm_quant(workspace, &operands, interrupted),
            |workspace, stream| rms_norm_quant::cuda::all_reduce_rms_norm_quant(workspace, &operands, stream),
        )
    }
}

/// The norm of rows that are spread over the ranks. `rank` and `world_size` are checked against the workspace.
#[pyfunction]
#[allow(clippy::too_many_arguments, reason = "the operator's signature")]
pub fn minimax_rms(
    workspace: &Bound<'_, PyAny>,
    rank: i64,
    world_size: i64,
    input: &Bound<'_, PyAny>,
    norm_weight: &Bound<'_, PyAny>,
    eps: f32,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let found = find_workspace(workspace)?;
    check_member(&found, rank, world_size)?;
    let norm = Norm {
        input: extract(input, "input")?,
        weight: extract(norm_weight, "norm_weight")?,
        output: extract(out, "out")?,
    };
    run_minimax(workspace.py(), &found, &MinimaxRms::one(norm, eps))
}

/// Likewise for Q and K out of a packed qkv.
#[pyfunction]
#[allow(clippy::too_many_arguments, reason = "the operator's signature")]
pub fn minimax_rms_qk(
    workspace: &Bound<'_, PyAny>,
    rank: i64,
    world_size: i64,
    qkv: &Bound<'_, PyAny>,
    q_size: i64,
    kv_size: i64,
    norm_weight_q: &Bound<'_, PyAny>,
    norm_weight_k: &Bound<'_, PyAny>,
    eps: f32,
    q_out: &Bound<'_, PyAny>,
    k_out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let found = find_workspace(workspace)?;
    check_member(&found, rank, world_size)?;
    // In this order: outputs that were allocated like an input are not to be blamed for what is wrong with it.
    let packed = extract(qkv, "qkv")?;
    let weights = [extract(norm_weight_q, "norm_weight_q")?, extract(norm_weight_k, "norm_weight_k")?];
    let outputs = [extract(q_out, "q_out")?, extract(k_out, "k_out")?];
    let operands = MinimaxRms::packed(packed, [q_size, kv_size], weights, outputs, eps)
        .map_err(|error| to_python(workspace.py(), error))?;
    run_minimax(workspace.py(), &found, &operands)
}

fn run_minimax(py: Python<'_>, workspace: &AnyWorkspace, operands: &MinimaxRms) -> PyResult<()> {
    // SAFETY: as in `all_reduce`.
    unsafe {
        run(
            py,
            workspace,
            operands.kind().name(),
            |workspace, interrupted| host::minimax_rms(workspace, operands, interrupted),
            |workspace, stream| cuda::minimax_rms(workspace, operands, stream),
        )
    }
}

/// Runs an operation on the workspace's backend, on torch's current stream if it is a device.
///
/// # Safety
/// The operands stay valid until this returns, and what is on a device until the stream has passed the operation.
unsafe fn run(
    py: Python<'_>,
    workspace: &AnyWorkspace,
    operation: &'static str,
    on_host: impl FnOnce(&HostWorkspace, Interrupted<'_>) -> Result<()> + Send,
    on_device: impl FnOnce(&CudaWorkspace, Stream) -> Result<()> + Send,
) -> PyResult<()> {
    let _entered = enter(py, workspace, operation)?;
    match workspace {
        AnyWorkspace::Host(workspace) => interruptible(py, |interrupted| on_host(workspace, interrupted)),
        AnyWorkspace::Cuda(workspace) => {
            let stream = stream::current(py, workspace.device.index)? as usize;
            // A launch waits where too many are enqueued: other threads need not wait with it.
            detached(py, || on_device(workspace, std::ptr::with_exposed_provenance_mut(stream)))
        }
    }
}

/// Lets the call in, if it is of the workspace's thread or in its place.
#[inline]
fn enter<'a>(py: Python<'_>, workspace: &'a AnyWorkspace, operation: &'static str) -> PyResult<Entered<'a>> {
    let calls = workspace.calls();
    let entered = match calls.enter(operation) {
        Err(Error::OtherThread { .. }) if runs_for_another_thread(py)? => calls.enter_for_another(operation),
        entered => entered,
    };
    entered.map_err(|error| to_python(py, error))
}

#[cold]
fn runs_for_another_thread(py: Python<'_>) -> PyResult<bool> {
    py.import(intern!(py, "lamport_rs.autograd"))?.call_method0(intern!(py, "in_thread_of_autograd"))?.extract()
}

/// Lets the calling thread's operations in from now on, and no other's.
#[pyfunction]
pub fn bind_to_thread(workspace: &Bound<'_, PyAny>) -> PyResult<()> {
    let found = find_workspace(workspace)?;
    found.calls().bind().map_err(|error| to_python(workspace.py(), error))
}

/// Counts a call on `workspace`, or on that of the table, which was refused before it came here or by what is here: this
/// rank's next operation differs from that of ranks whose call was served. Nothing happens if there is no such workspace.
#[pyfunction]
pub fn note_refusal(workspace: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = workspace.py();
    match find_workspace(workspace) {
        Err(_) => {}
        Ok(AnyWorkspace::Host(workspace)) => workspace.note_refusal(),
        Ok(AnyWorkspace::Cuda(workspace)) => {
            let stream = stream::current(py, workspace.device.index)? as usize;
            detached(py, || {
                workspace.note_refusal(std::ptr::with_exposed_provenance_mut(stream));
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// What is asked about before it is called: the operation, the shape and the dtype of its first tensor, the weights' dtype,
/// the algorithm, how the result is quantised (empty: not), and the columns of Q and K.
type Call = (String, Vec<usize>, String, String, String, String, i64, i64);

/// Says why the workspace, or that of the table, would refuse the call on its device; None if it would serve it. The answer
/// is the same on every rank.
#[pyfunction]
pub fn obstacle(workspace: &Bound<'_, PyAny>, call: Call) -> PyResult<Option<String>> {
    let found = find_workspace(workspace)?;
    let question = match question(&found, call)? {
        Ok(question) => question,
        Err(refusal) => return Ok(Some(refusal)),
    };
    let checked = match &found {
        AnyWorkspace::Host(workspace) => support::check_on_host(workspace, &question),
        AnyWorkspace::Cuda(workspace) => support::check_on_device(workspace, &question),
    };
    Ok(checked.err().map(|error| error.to_string()))
}

/// Loads what the call takes, so that the first one does not. An error if the workspace would refuse it.
#[pyfunction]
pub fn prepare(py: Python<'_>, workspace: &Bound<'_, PyAny>, call: Call) -> PyResult<()> {
    let found = find_workspace(workspace)?;
    let question = question(&found, call)?.map_err(LamportError::new_err)?;
    detached(py, || match &found {
        AnyWorkspace::Host(workspace) => support::check_on_host(workspace, &question),
        AnyWorkspace::Cuda(workspace) => support::prepare_on_device(workspace, &question),
    })
}

/// The question, or why no workspace would serve it.
fn question(workspace: &AnyWorkspace, call: Call) -> PyResult<std::result::Result<Question, String>> {
    let (operation, shape, dtype, weight_dtype, algorithm, format, q_size, kv_size) = call;
    let kind = Kind::named(&operation).ok_or_else(|| LamportError::new_err(format!("there is no {operation:?}")))?;
    let [Some(dtype), Some(weight)] = [&dtype, &weight_dtype].map(|name| Dtype::named(name)) else {
        return Ok(Err(format!("{operation} takes float32, float16 and bfloat16, not {dtype} and {weight_dtype}")));
    };
    let algorithm = find_algorithm(&algorithm)?;
    let format = if format.is_empty() { None } else { Some(find_format(&format)?) };
    let device = match workspace {
        AnyWorkspace::Host(_) => tensor::Device::Cpu,
        AnyWorkspace::Cuda(workspace) => tensor::Device::Cuda(workspace.device.index),
    };
    Ok(Ok(Question { kind, shape, dtype, weight, device, algorithm, format, sizes: [q_size, kv_size] }))
}

/// Fills `size_bytes` bytes at `device_ptr`, memory of CUDA device `index`, with the sentinel, and waits for that.
#[pyfunction]
pub fn fill_sentinel(py: Python<'_>, device_ptr: u64, size_bytes: i64, index: usize) -> PyResult<()> {
    if size_bytes < 0 || size_bytes % 4 != 0 || !device_ptr.is_multiple_of(4) {
        return Err(LamportError::new_err(format!(
            "device_ptr {device_ptr:#x} and size_bytes {size_bytes} must be multiples of 4, and not negative"
        )));
    }
    let stream = stream::current(py, index)? as usize;
    detached(py, || {
        let stream = std::ptr::with_exposed_provenance_mut(stream);
        let device = Device::get(index)?;
        // SAFETY: that the memory is there is the caller's promise, as it is for the driver's own functions.
        unsafe { fill_and_wait(&device, device_ptr, size_bytes as u64, stream) }
    })
}

/// `None` for the fastest.
fn find_algorithm(name: &str) -> PyResult<Option<Algorithm>> {
    if name == AUTO {
        return Ok(None);
    }
    Algorithm::named(name).map(Some).ok_or_else(|| {
        let names = Algorithm::ALL.map(|algorithm| format!("{:?}", algorithm.name())).join(", ");
        LamportError::new_err(format!("algorithm is {name:?}, but must be {AUTO:?} or one of {names}"))
    })
}

fn find_format(name: &str) -> PyResult<Sink> {
    Sink::named(name).ok_or_else(|| {
        let names = Sink::ALL.map(|sink| format!("{:?}", sink.name())).join(", ");
        LamportError::new_err(format!("format is {name:?}, but must be one of {names}"))
    })
}

fn find_workspace(workspace: &Bound<'_, PyAny>) -> PyResult<AnyWorkspace> {
    if let Ok(workspace) = workspace.cast::<Workspace>() {
        return Ok(workspace.get().workspace.clone());
    }
    let py = workspace.py();
    let pointer = workspace.call_method0(intern!(py, "data_ptr")).and_then(|pointer| pointer.extract());
    pointer.ok().and_then(registry::find).or_else(|| find_copied(workspace)).ok_or_else(|| {
        LamportError::new_err(
            "workspace must be a LamportWorkspace, or the tensor that its `workspace` property or \
             get_allreduce_workspace() returned, not a copy of it on a GPU",
        )
    })
}

/// By the values of a tensor on the CPU.
fn find_copied(table: &Bound<'_, PyAny>) -> Option<AnyWorkspace> {
    let py = table.py();
    if !table.getattr(intern!(py, "is_cpu")).and_then(|is_cpu| is_cpu.is_truthy()).unwrap_or(false) {
        return None;
    }
    let entries: Vec<i64> = table.call_method0(intern!(py, "tolist")).ok()?.extract().ok()?;
    registry::find_copied(&entries)
}

fn check_member(workspace: &AnyWorkspace, rank: i64, world_size: i64) -> PyResult<()> {
    let member = workspace.member();
    let expected = (member.rank as i64, member.geometry.world_size() as i64);
    if (rank, world_size) == expected {
        return Ok(());
    }
    let (own_rank, own_size) = expected;
    Err(LamportError::new_err(format!(
        "rank {rank} of {world_size} was asked for, but the workspace is that of rank {own_rank} of {own_size}"
    )))
}
