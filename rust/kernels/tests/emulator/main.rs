//! Runs the kernels without a GPU: see docs/emulator.md.

mod compile;
#[path = "../../build/constants.rs"]
mod constants;
mod machine;
mod memory;
mod operations;
mod run;
mod values;
mod workspace;

// Where `build/constants.rs` looks for them.
use lamport_rs_kernels::{parameters, variants};

use lamport_rs_kernels::Dtype;
use lamport_rs_kernels::plan::Device;
use lamport_rs_protocol::algorithm::Algorithm;

use compile::Sources;
use machine::Kernels;
use operations::AllReduce;
use run::Case;

#[test]
fn all_reduce() {
    let kernels = Kernels::new(Sources::of_kernels());
    let device = Device {
        compute_capability: (9, 0),
        multiprocessors: 2,
        threads_per_multiprocessor: 1024,
        blocks_per_multiprocessor: 2,
    };
    let operation = |elements, in_place| {
        Box::new(AllReduce { algorithm: Algorithm::OneShot, dtype: Dtype::BFloat16, elements, in_place }) as _
    };
    let case = Case {
        name: "one-shot",
        world_size: 2,
        device,
        resident_blocks: 8,
        operations: vec![operation(1, false), operation(1000, true), operation(6001, false), operation(6001, false)],
    };
    case.check(&kernels, 1..21);
}
