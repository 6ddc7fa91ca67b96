//! Plain memory that crosses processes.

use lamport_rs_core::workspace::buffer::HostBuffer;
use pyo3::prelude::*;

use crate::errors::interruptible;
use crate::exchange::Callable;

/// One rank's buffer, and its mappings of the peers' buffers.
#[pyclass(frozen)]
pub struct Buffer {
    buffer: HostBuffer,
}

#[pymethods]
impl Buffer {
    #[new]
    fn new(py: Python<'_>, rank: i64, world_size: i64, size: i64, all_gather: Py<PyAny>) -> PyResult<Self> {
        let mut transport = Callable::new(all_gather);
        let created = interruptible(py, |_| HostBuffer::create(rank, world_size, size, &mut transport));
        Ok(Self { buffer: created.map_err(|error| transport.explain(py, error))? })
    }

    /// Where each rank's buffer is in this process.
    fn pointers(&self) -> Vec<u64> {
        self.buffer.pointers()
    }
}
