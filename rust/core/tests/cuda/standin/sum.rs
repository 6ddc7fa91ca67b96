//! The simplest operation: a sum of ones, in place.

use cudarc::driver::sys;
use lamport_rs_core::error::Result;
use lamport_rs_core::operations::all_reduce::AllReduce;
use lamport_rs_core::operations::launch::Purpose;
use lamport_rs_core::operations::operands::OnDevice;
use lamport_rs_core::tensor::Dtype;
use lamport_rs_core::workspace::cuda::CudaWorkspace;

use super::either::{Either, TestTensor};

/// The stream that operations are on where it does not matter.
pub const DEFAULT_STREAM: sys::CUstream = std::ptr::null_mut();

/// A tensor of ones, to be summed over the ranks any number of times. It must not go before what was launched is done.
pub struct Sum {
    tensor: TestTensor,
}

impl Sum {
    /// Allocates it.
    pub fn of_ones(workspace: &CudaWorkspace, elements: usize) -> Self {
        Self { tensor: Either::Cuda(workspace).tensor(Dtype::Float32, &[elements], |_| 1.0) }
    }

    /// Launches a sum.
    pub fn launch(&mut self, workspace: &CudaWorkspace, stream: sys::CUstream) -> Result<()> {
        let input = self.tensor.tensor();
        // SAFETY: the tests wait for the stream before the tensor goes.
        unsafe { AllReduce { input, output: input, algorithm: None }.run_on_device(workspace, Purpose::Run(stream)) }
    }

    /// Where the tensor is, and its bytes.
    pub fn place(&mut self) -> (u64, usize) {
        let tensor = self.tensor.tensor();
        (tensor.pointer as u64, tensor.bytes())
    }

    /// What it came to, once all is done.
    pub fn values(&self) -> Vec<f32> {
        self.tensor.bytes().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
    }
}

/// Sums ones, and waits for that.
pub fn sum(workspace: &CudaWorkspace, elements: usize) -> Result<Vec<f32>> {
    let mut sum = Sum::of_ones(workspace, elements);
    let launched = sum.launch(workspace, DEFAULT_STREAM);
    let synchronised = workspace.synchronise();
    launched.and(synchronised)?;
    Ok(sum.values())
}
