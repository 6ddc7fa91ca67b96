//! torch's current stream.

use lamport_rs_core::cuda::Stream;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::exchange_api::ExchangeApi;

/// The current stream of device `index`, as a driver's handle.
pub fn current(py: Python<'_>, index: usize) -> PyResult<Stream> {
    if let Some(stream) = ExchangeApi::current_stream(py, index) {
        return Ok(stream.cast());
    }
    // What `torch.cuda.current_stream(index).cuda_stream` returns, without the object in between.
    static CURRENT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let function = CURRENT.get_or_try_init(py, || {
        Ok::<_, PyErr>(py.import("torch._C")?.getattr("_cuda_getCurrentRawStream")?.unbind())
    })?;
    let handle: usize = function.call1(py, (index,))?.extract(py)?;
    Ok(std::ptr::with_exposed_provenance_mut(handle))
}
