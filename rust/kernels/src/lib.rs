//! The protocol's CUDA kernels, as PTX that the driver compiles on first use, and how to launch them.
pub mod catalogue;
pub mod dtype;
pub mod parameters;
pub mod variants;
