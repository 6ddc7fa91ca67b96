//! Plain memory that crosses processes.

use lamport_rs_core::cuda::device::Device;
use lamport_rs_core::memory::cuda::{CudaMemory, fill_and_wait};
use lamport_rs_core::memory::host::HostMemory;
use lamport_rs_core::rendezvous::Rendezvous;
use lamport_rs_core::workspace::buffer::Buffer as CoreBuffer;
use pyo3::prelude::*;

use crate::callable::Callable;
use crate::errors::{LamportError, detached, interruptible, to_python};
use crate::shared::Shared;
use crate::stream;

/// One rank's buffer, and its mappings of the peers' buffers: memory of CUDA device `cuda_index`, or shared memory if
/// that is None.
#[pyclass(frozen)]
pub struct Buffer {
    buffer: AnyBuffer,
}

enum AnyBuffer {
    Host(Shared<CoreBuffer<HostMemory>>),
    Cuda(Shared<CoreBuffer<CudaMemory>>),
}

#[pymethods]
impl Buffer {
    #[new]
    #[pyo3(signature = (rank, world_size, size, timeout, cuda_index, all_gather))]
    #[allow(clippy::too_many_arguments, reason = "the class's arguments")]
    fn new(
        py: Python<'_>,
        rank: i64,
        world_size: i64,
        size: i64,
        timeout: f64,
        cuda_index: Option<usize>,
        all_gather: Py<PyAny>,
    ) -> PyResult<Self> {
        let mut transport = Callable::new(py, all_gather);
        let created = interruptible(py, |_| match cuda_index {
            None => CoreBuffer::create(&HostMemory, rank, world_size, size, timeout, &mut transport)
                .map(Shared::new)
                .map(AnyBuffer::Host),
            Some(index) => match Device::get(index) {
                Ok(device) => {
                    CoreBuffer::create(&CudaMemory::new(device), rank, world_size, size, timeout, &mut transport)
                        .map(Shared::new)
                        .map(AnyBuffer::Cuda)
                }
                // The peers are already waiting in the rendezvous.
                Err(error) => Err(Rendezvous::new(&mut transport, rank, world_size).refuse(error)),
            },
        });
        Ok(Self { buffer: created.map_err(|error| transport.explain(py, error))? })
    }

    /// Where each rank's buffer is in this process, if all have one.
    fn pointers(&self, py: Python<'_>) -> PyResult<Vec<u64>> {
        let addresses = match &self.buffer {
            AnyBuffer::Host(buffer) => buffer.check().map(|()| buffer.addresses()),
            AnyBuffer::Cuda(buffer) => buffer.check().map(|()| buffer.addresses()),
        };
        addresses.map_err(|error| to_python(py, error))
    }
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
