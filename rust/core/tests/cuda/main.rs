//! The CUDA half of the core, without a GPU: on a stand-in for the driver. See docs/appendix/emulator.md.

#[path = "../../../kernels/tests/emulator/compile.rs"]
#[allow(dead_code, reason = "the emulator's")]
mod compile;
#[path = "../../../kernels/build/constants.rs"]
mod constants;
mod construction;
mod contexts;
mod failures;
mod lifecycle;
mod loading;
mod operations;
mod processes;
mod refusals;
mod standin;
mod streams;
mod strictness;

// Where `constants.rs` looks for them.
use lamport_rs_kernels::{parameters, sink, variants};
