//! Calls that are asked about, or prepared, before they are made.

use lamport_rs_core::operations::Kind;
use lamport_rs_core::operations::question::Question;
use lamport_rs_core::operations::rms_norm_quant::{Format, Sink};
use lamport_rs_core::tensor::{Device, Dtype};
use pyo3::prelude::*;

use crate::argument::{find_algorithm, find_format, find_workspace};
use crate::backend::AnyWorkspace;
use crate::errors::{LamportError, detached};

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
    let checked = question.operands().and_then(|operands| match &found {
        AnyWorkspace::Host(workspace) => operands.check_on_host(workspace),
        AnyWorkspace::Cuda(workspace) => operands.check_on_device(workspace),
    });
    Ok(checked.err().map(|error| error.to_string()))
}

/// Loads what the call takes, so that the first one does not. An error if the workspace would refuse it.
#[pyfunction]
pub fn prepare(py: Python<'_>, workspace: &Bound<'_, PyAny>, call: Call) -> PyResult<()> {
    let found = find_workspace(workspace)?;
    let question = question(&found, call)?.map_err(LamportError::new_err)?;
    detached(py, || {
        let operands = question.operands()?;
        match &found {
            AnyWorkspace::Host(workspace) => operands.check_on_host(workspace),
            AnyWorkspace::Cuda(workspace) => operands.load(workspace),
        }
    })
}

/// A format: its name; whether a scale is given; columns that share a scale that is computed (0 for all of a row, None if
/// none is); the dtype of quantised rows, and columns in an element of it; the dtype of scales, how many an element of it
/// holds, and their layout.
type QuantFormat = (&'static str, bool, Option<usize>, &'static str, usize, &'static str, usize, &'static str);

/// What rows are quantised to.
#[pyfunction]
pub fn quant_formats() -> Vec<QuantFormat> {
    let described = Sink::ALL.map(|sink| {
        let Format { name, is_given, group_columns, code, columns_per_code, scale, scales_per_element, layout, .. } =
            sink.format();
        (name, is_given, group_columns, code.name(), columns_per_code, scale.name(), scales_per_element, layout.name())
    });
    described.to_vec()
}

/// The question, or why no workspace would serve it.
fn question(workspace: &AnyWorkspace, call: Call) -> PyResult<std::result::Result<Question, String>> {
    let (operation, shape, dtype, weight_dtype, algorithm, format, q_size, kv_size) = call;
    let kind = Kind::named(&operation).ok_or_else(|| LamportError::new_err(format!("there is no {operation:?}")))?;
    let [Some(dtype), Some(weight)] = [&dtype, &weight_dtype].map(|name| Dtype::named(name)) else {
        return Ok(Err(format!("{operation} takes float32, float16 and bfloat16, not {dtype} and {weight_dtype}")));
    };
    let algorithm = find_algorithm(&algorithm)?;
    let format = if format.is_empty() { None } else { Some(find_format(&format, "quant_format")?) };
    let device = match workspace {
        AnyWorkspace::Host(_) => Device::Cpu,
        AnyWorkspace::Cuda(workspace) => Device::Cuda(workspace.device.index),
    };
    Ok(Ok(Question { kind, shape, dtype, weight, device, algorithm, format, sizes: [q_size, kv_size] }))
}
