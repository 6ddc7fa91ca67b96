//! The protocol's CUDA kernels, as machine code and as PTX that the driver compiles, and how to launch them. No CUDA
//! library is needed here: whoever launches brings the driver.
//!
//! It is public for its siblings of the same release, and any release may change its API: engines in Rust use the crate
//! `lamport-rs`.
//!
//! | module | concept |
//! | --- | --- |
//! | [`catalogue`] | which modules there are |
//! | [`image`] | what they are compiled to |
//! | `modules` | that, with the feature `embed` |
//! | [`group`] | what every kernel is told about its group |
//! | [`parameters`] | the structs that kernels take, laid out as in CUDA |
//! | [`report`] | what kernels tell the host of faults, and where both find the control words |
//! | [`sink`] | what becomes of normalised rows |
//! | [`plan`] | grid, block and module of a launch, from the operation's shape and the device |
//! | [`variants`] | what the plans choose from |
//!
//! Every kernel takes one struct of [`parameters`] by value.

#![forbid(unsafe_code)]

pub mod catalogue;
pub mod dtype;
pub mod group;
pub mod image;
mod layout;
#[cfg(feature = "embed")]
pub mod modules;
pub mod parameters;
pub mod plan;
pub mod report;
pub mod scale_places;
pub mod sink;
pub mod variants;

pub use catalogue::ModuleKey;
pub use dtype::Dtype;
pub use sink::Sink;
