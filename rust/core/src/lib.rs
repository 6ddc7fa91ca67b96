//! Lamport workspaces, free of Python.
//!
//! Layers, each using only those to its right: [`operations`] → [`workspace`] → [`lifecycle`] → [`memory`], [`exchange`],
//! `cuda` → `lamport_rs_protocol`.

#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "cuda")]
mod deferred;
pub mod error;
pub mod exchange;
pub mod floating_point;
pub mod interrupts;
pub mod lifecycle;
pub mod limits;
pub mod memory;
pub mod operations;
pub mod panics;
pub mod parking;
pub mod tensor;
pub mod wait;
pub mod workspace;

pub use error::{Error, Result};
