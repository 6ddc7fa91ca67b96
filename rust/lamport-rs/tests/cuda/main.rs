//! The collectives over device memory, through the crate's API, on the core's stand-in for the CUDA driver. See
//! docs/appendix/emulator.md.

#[path = "../../../kernels/tests/emulator/compile.rs"]
#[allow(dead_code, reason = "the emulator's")]
mod compile;
#[path = "../../../kernels/build/constants.rs"]
mod constants;
mod fused;
mod operations;
mod refusals;
#[path = "../../../core/tests/cuda/standin/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the core's")]
mod standin;
mod streams;
#[path = "../threads/mod.rs"]
#[allow(dead_code, reason = "other tests' too")]
mod threads;

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use lamport_rs::Options;
use lamport_rs::cuda::Communicator;
// Where `constants.rs` looks for them.
use lamport_rs_kernels::{parameters, sink, variants};

use crate::threads::{LONGEST_WAIT, on_ranks};

/// One rank's communicator, and a stream of its device.
struct Rank {
    communicator: Communicator,
    stream: Arc<CudaStream>,
}

impl Rank {
    fn number(&self) -> usize {
        self.communicator.rank()
    }

    fn context(&self) -> &Arc<CudaContext> {
        self.communicator.context()
    }

    /// Values on the device.
    fn upload(&self, length: usize, value: impl Fn(usize) -> f32) -> CudaSlice<f32> {
        self.stream.clone_htod(&(0..length).map(value).collect::<Vec<_>>()).unwrap()
    }

    /// What they came to.
    fn download(&self, values: &CudaSlice<f32>) -> Vec<f32> {
        self.stream.clone_dtoh(values).unwrap()
    }
}

fn options() -> Options {
    Options::default().comm_size(4096).timeout(LONGEST_WAIT)
}

/// Runs `run` as every rank of a group, with a device each.
fn communicate<R: Send>(world_size: usize, options: Options, run: impl Fn(Rank) -> R + Sync) -> Vec<R> {
    on_ranks(world_size, |rank, rendezvous| {
        let context = CudaContext::new(rank).unwrap();
        let communicator = Communicator::new(rank, world_size, &context, rendezvous, options).unwrap();
        run(Rank { communicator, stream: context.new_stream().unwrap() })
    })
}
