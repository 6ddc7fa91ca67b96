//! One program for both backends: their results must have the same bits.

use std::time::Duration;

use lamport_rs_core::error::Result;
use lamport_rs_core::memory::cuda::DeviceMemory;
use lamport_rs_core::operations::launch::Purpose;
use lamport_rs_core::operations::operands::OnEveryBackend;
use lamport_rs_core::operations::rms_norm::AllReduceRmsNorm;
use lamport_rs_core::tensor::{Device, Dimensions, Dtype, Tensor};
use lamport_rs_core::workspace::Settings;
use lamport_rs_core::workspace::cuda::CudaWorkspace;
use lamport_rs_core::workspace::host::HostWorkspace;

use super::group::{Rank, on_ranks};

/// A workspace of a backend. Operations on CUDA are launched on the default stream.
#[derive(Clone, Copy)]
pub enum Either<'a> {
    /// Shared memory.
    Host(&'a HostWorkspace),
    /// The stand-in's devices.
    Cuda(&'a CudaWorkspace),
}

fn never() -> bool {
    false
}

impl Either<'_> {
    /// A tensor whose element `at` is `value(at)`.
    pub fn tensor(&self, dtype: Dtype, shape: &[usize], value: impl Fn(usize) -> f32) -> TestTensor {
        let on_host = TestTensor::on_host(dtype, shape, value);
        match (self, &on_host.place) {
            (Self::Cuda(workspace), Place::Host(words)) => {
                let memory = DeviceMemory::allocate(&workspace.device, words.len() * 16).unwrap();
                // SAFETY: the stand-in's device memory is this process's, as large, and nobody else has it yet.
                unsafe { std::ptr::copy_nonoverlapping(words.as_ptr(), memory.address() as *mut u128, words.len()) };
                TestTensor { place: Place::Device(memory), device: Device::Cuda(workspace.device.index), ..on_host }
            }
            _ => on_host,
        }
    }

    /// Runs or launches the operation.
    pub fn run(&self, operands: &impl OnEveryBackend) -> Result<()> {
        match self {
            // SAFETY: test tensors live longer than what is done with them.
            Self::Host(workspace) => unsafe { operands.run_on_host(workspace, &mut never) },
            // SAFETY: as above.
            Self::Cuda(workspace) => unsafe { operands.run_on_device(workspace, Purpose::Run(std::ptr::null_mut())) },
        }
    }

    /// Likewise. The host's has one algorithm.
    pub fn run_norm(&self, operands: &AllReduceRmsNorm) -> Result<()> {
        match self {
            Self::Host(_) => self.run(&AllReduceRmsNorm { algorithm: None, ..*operands }),
            Self::Cuda(_) => self.run(operands),
        }
    }

    /// Waits for what was launched.
    pub fn finish(&self) -> Result<()> {
        match self {
            Self::Host(_) => Ok(()),
            Self::Cuda(workspace) => workspace.synchronise(),
        }
    }
}

fn encode(dtype: Dtype, value: f32) -> Vec<u8> {
    match dtype {
        Dtype::Float32 => value.to_le_bytes().to_vec(),
        Dtype::Float16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::BFloat16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::Int32 => (value as i32).to_le_bytes().to_vec(),
        // Results only: anything that is not what will be there.
        _ => vec![0xa5; dtype.size()],
    }
}

enum Place {
    Host(Vec<u128>),
    Device(DeviceMemory),
}

/// A tensor with its memory.
pub struct TestTensor {
    place: Place,
    dtype: Dtype,
    shape: Vec<usize>,
    device: Device,
    bytes: usize,
}

impl TestTensor {
    /// On the host; its element `at` is `value(at)`.
    pub fn on_host(dtype: Dtype, shape: &[usize], value: impl Fn(usize) -> f32) -> Self {
        let elements: usize = shape.iter().product();
        let bytes: Vec<u8> = (0..elements).flat_map(|at| encode(dtype, value(at))).collect();
        let mut words = vec![0_u128; bytes.len().div_ceil(16).max(1)];
        // SAFETY: the words are as long, and plain data.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), words.as_mut_ptr().cast(), bytes.len()) };
        Self { place: Place::Host(words), dtype, shape: shape.to_vec(), device: Device::Cpu, bytes: bytes.len() }
    }

    /// As operations take it.
    pub fn tensor(&mut self) -> Tensor {
        let strides = (0..self.shape.len()).map(|dimension| self.shape[dimension + 1..].iter().product());
        Tensor {
            pointer: self.pointer().cast_mut().cast(),
            dtype: self.dtype,
            device: self.device,
            shape: Dimensions::new(self.shape.iter().copied()).unwrap(),
            strides: Dimensions::new(strides).unwrap(),
            is_negated: false,
        }
    }

    /// Its bytes, once the operations on it are finished.
    pub fn bytes(&self) -> Vec<u8> {
        // SAFETY: the memory is as long, and a device's can be read here.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.bytes) }.to_vec()
    }

    fn pointer(&self) -> *const u8 {
        match &self.place {
            Place::Host(words) => words.as_ptr().cast(),
            Place::Device(memory) => memory.address() as *const u8,
        }
    }
}

/// Runs `program` as all ranks of a group over shared memory, with slots of `comm_size` bytes.
pub fn on_host<R: Send>(
    world_size: usize,
    comm_size: usize,
    program: impl Fn(usize, Either<'_>) -> R + Sync,
) -> Vec<R> {
    let workspaces =
        HostWorkspace::in_process(world_size as i64, comm_size as i64, Some(Duration::from_secs(60))).unwrap();
    std::thread::scope(|scope| {
        let program = &program;
        let threads: Vec<_> = workspaces
            .iter()
            .enumerate()
            .map(|(rank, workspace)| scope.spawn(move || program(rank, Either::Host(workspace))))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Likewise on the stand-in's devices.
pub fn on_cuda<R: Send>(
    world_size: usize,
    comm_size: usize,
    program: impl Fn(usize, Either<'_>) -> R + Sync,
) -> Vec<R> {
    on_ranks(world_size, |rank: &mut Rank| {
        let workspace = rank.create_with(&Settings { comm_size: comm_size as i64, ..rank.settings() }).unwrap();
        let results = program(rank.rank, Either::Cuda(&workspace));
        workspace.lifecycle().clean_up();
        results
    })
}
