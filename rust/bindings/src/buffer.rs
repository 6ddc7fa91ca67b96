//! Plain memory that crosses processes.

use lamport_rs_core::cuda::device::Device;
use lamport_rs_core::memory::cuda::CudaMemory;
use lamport_rs_core::memory::host::HostMemory;
use lamport_rs_core::rendezvous::Rendezvous;
use lamport_rs_core::workspace::buffer::Buffer as CoreBuffer;
use pyo3::prelude::*;

use crate::callable::Callable;
use crate::errors::interruptible;
use crate::shared::Shared;

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
    #[pyo3(signature = (rank, world_size, size, cuda_index, all_gather))]
    fn new(
        py: Python<'_>,
        rank: i64,
        world_size: i64,
        size: i64,
        cuda_index: Option<usize>,
        all_gather: Py<PyAny>,
    ) -> PyResult<Self> {
        let mut transport = Callable::new(all_gather);
        let created = interruptible(py, |_| match cuda_index {
            None => CoreBuffer::create(&HostMemory, rank, world_size, size, &mut transport)
                .map(Shared::new)
                .map(AnyBuffer::Host),
            Some(index) => match Device::get(index) {
                Ok(device) => CoreBuffer::create(&CudaMemory::new(device), rank, world_size, size, &mut transport)
                    .map(Shared::new)
                    .map(AnyBuffer::Cuda),
                // The peers are already waiting in the exchange.
                Err(error) => Err(Rendezvous::new(&mut transport, rank, world_size).refuse(error)),
            },
        });
        Ok(Self { buffer: created.map_err(|error| transport.explain(py, error))? })
    }

    /// Where each rank's buffer is in this process.
    fn pointers(&self) -> Vec<u64> {
        match &self.buffer {
            AnyBuffer::Host(buffer) => buffer.addresses(),
            AnyBuffer::Cuda(buffer) => buffer.addresses(),
        }
    }
}
