//! torch tensors as the core's tensors. torch is not linked: its attributes are read.

use lamport_rs_core::tensor::{Device, Dimensions, Dtype, Tensor};
use pyo3::exceptions::PyException;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use crate::dlpack::{self, DlTensor};
use crate::errors::LamportError;
use crate::exchange_api::ExchangeApi;

/// The operand `name`. The caller keeps `tensor` alive for as long as the result is used.
pub fn extract(tensor: &Bound<'_, PyAny>, name: &str) -> PyResult<Tensor> {
    let described = ExchangeApi::of(tensor).and_then(|api| api.describe(tensor)).and_then(|tensor| convert(&tensor));
    // What the fast way cannot describe is no operand, and the slow one says why.
    let operand = described.map_or_else(|| extract_attributes(tensor, name), Ok)?;
    // Some views are negated when torch reads them, and only then.
    let is_negated = tensor.call_method0(intern!(tensor.py(), "is_neg"))?.is_truthy()?;
    Ok(Tensor { is_negated, ..operand })
}

fn convert(tensor: &DlTensor) -> Option<Tensor> {
    let dtype = match (tensor.type_code, tensor.type_bits, tensor.type_lanes) {
        (dlpack::FLOAT, 32, 1) => Dtype::Float32,
        (dlpack::FLOAT, 16, 1) => Dtype::Float16,
        (dlpack::BFLOAT, 16, 1) => Dtype::BFloat16,
        (dlpack::INT, 32, 1) => Dtype::Int32,
        _ => return None,
    };
    let device = match tensor.device_type {
        dlpack::CPU | dlpack::CUDA_HOST => Device::Cpu,
        dlpack::CUDA => Device::Cuda(usize::try_from(tensor.device_id).ok()?),
        _ => return None,
    };
    let count = usize::try_from(tensor.dimensions).ok()?;
    if count > 0 && (tensor.shape.is_null() || tensor.strides.is_null()) {
        return None;
    }
    let dimensions = |values: *const i64| {
        // SAFETY: DLPack's promise: `dimensions` values, which live as long as the tensor. None are read if there are
        // none.
        Dimensions::new((0..count).map(|index| unsafe { *values.add(index) } as usize))
    };
    Some(Tensor {
        pointer: tensor.data.cast::<u8>().wrapping_add(tensor.byte_offset as usize),
        dtype,
        device,
        shape: dimensions(tensor.shape)?,
        strides: dimensions(tensor.strides)?,
        is_negated: false,
    })
}

/// Reads the attributes of a tensor.
fn extract_attributes(tensor: &Bound<'_, PyAny>, name: &str) -> PyResult<Tensor> {
    static TENSOR: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let py = tensor.py();
    // Arrays of other libraries have attributes of the same names with other meanings.
    if !tensor.is_instance(TENSOR.import(py, "torch", "Tensor")?)? {
        let kind = tensor.get_type().name()?;
        return Err(LamportError::new_err(format!("{name} must be a torch.Tensor, not {kind}")));
    }
    read_attributes(tensor, name).map_err(|error| {
        if error.is_instance_of::<LamportError>(py) || !error.is_instance_of::<PyException>(py) {
            return error;
        }
        // Nested tensors, for one, lack what dense ones have, and torch says so in many ways.
        let refused = LamportError::new_err(format!("{name} is {}, but must be a dense tensor", layout_of(tensor)));
        refused.set_cause(py, Some(error));
        refused
    })
}

/// In words.
fn layout_of(tensor: &Bound<'_, PyAny>) -> String {
    let is_nested = tensor.getattr(intern!(tensor.py(), "is_nested")).and_then(|nested| nested.is_truthy());
    if is_nested.unwrap_or(false) {
        return "nested".to_owned();
    }
    tensor
        .getattr(intern!(tensor.py(), "layout"))
        .map_or_else(|_| "of no layout".to_owned(), |layout| layout.to_string())
}

fn read_attributes(tensor: &Bound<'_, PyAny>, name: &str) -> PyResult<Tensor> {
    let py = tensor.py();
    let dtype = tensor.getattr(intern!(py, "dtype"))?;
    let dimensions = |values: Vec<usize>| {
        Dimensions::new(values).ok_or_else(|| LamportError::new_err(format!("{name} has more than 8 dimensions")))
    };
    let device = extract_device(tensor, name)?;
    let pointer = tensor.call_method0(intern!(py, "data_ptr")).map_err(|error| {
        LamportError::new_err(format!("{name} has no memory of its own, as dense tensors have it: {}", error.value(py)))
    })?;
    let pointer: usize = pointer.extract()?;
    Ok(Tensor {
        pointer: std::ptr::with_exposed_provenance_mut(pointer),
        dtype: extract_dtype(&dtype, name)?,
        device,
        shape: dimensions(tensor.getattr(intern!(py, "shape"))?.extract()?)?,
        strides: dimensions(tensor.call_method0(intern!(py, "stride"))?.extract()?)?,
        is_negated: false,
    })
}

fn extract_dtype(dtype: &Bound<'_, PyAny>, name: &str) -> PyResult<Dtype> {
    static DTYPES: PyOnceLock<[(Py<PyAny>, Dtype); 6]> = PyOnceLock::new();
    let py = dtype.py();
    let dtypes = DTYPES.get_or_try_init(py, || {
        let torch = py.import("torch")?;
        let dtype = |name: &str, dtype| PyResult::Ok((torch.getattr(name)?.unbind(), dtype));
        PyResult::Ok([
            dtype("bfloat16", Dtype::BFloat16)?,
            dtype("float16", Dtype::Float16)?,
            dtype("float32", Dtype::Float32)?,
            dtype("float8_e4m3fn", Dtype::Float8E4M3)?,
            dtype("uint8", Dtype::UInt8)?,
            dtype("int32", Dtype::Int32)?,
        ])
    })?;
    let known = dtypes.iter().find(|(known, _)| known.is(dtype)).map(|(_, dtype)| *dtype);
    known.ok_or_else(|| {
        LamportError::new_err(format!(
            "{name} is {dtype}, which no operand may be: they are torch.float32, torch.float16 or torch.bfloat16, and indices \
             torch.int32"
        ))
    })
}

fn extract_device(tensor: &Bound<'_, PyAny>, name: &str) -> PyResult<Device> {
    let py = tensor.py();
    if tensor.getattr(intern!(py, "is_cpu"))?.is_truthy()? {
        return Ok(Device::Cpu);
    }
    if tensor.getattr(intern!(py, "is_cuda"))?.is_truthy()? {
        return Ok(Device::Cuda(tensor.call_method0(intern!(py, "get_device"))?.extract()?));
    }
    let device = tensor.getattr(intern!(py, "device"))?;
    Err(LamportError::new_err(format!("{name} is on {device}, but must be on the workspace's device (cpu or cuda)")))
}
