//! Sums over the host, of ranks that are threads.

use lamport_rs_core::error::Result;
use lamport_rs_core::operations::all_reduce::AllReduce;
use lamport_rs_core::operations::operands::OnHost;
use lamport_rs_core::tensor::{Device, Dimensions, Dtype, Tensor};
use lamport_rs_core::workspace::host::HostWorkspace;

#[repr(align(16))]
pub struct Aligned(pub [f32; 8]);

/// Sums as many float32 as there are, in place.
pub fn sum(workspace: &HostWorkspace, memory: &mut [f32]) -> Result<()> {
    let tensor = Tensor {
        pointer: memory.as_mut_ptr().cast(),
        dtype: Dtype::Float32,
        device: Device::Cpu,
        shape: Dimensions::new([memory.len()]).unwrap(),
        strides: Dimensions::new([1]).unwrap(),
        is_negated: false,
    };
    let operands = AllReduce { input: tensor, output: tensor, algorithm: None };
    // SAFETY: the memory is this function's alone until it returns.
    unsafe { operands.run_on_host(workspace, &mut || false) }
}

pub fn sum_of_ones(workspace: &HostWorkspace) -> (Result<()>, [f32; 8]) {
    let mut memory = Aligned([1.0; 8]);
    let outcome = sum(workspace, &mut memory.0);
    (outcome, memory.0)
}
