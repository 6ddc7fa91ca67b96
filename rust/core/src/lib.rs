//! Lamport workspaces, free of Python.
//!
//! It is public for its siblings of the same release, and any release may change its API: engines in Rust use the crate
//! `lamport-rs`.
//!
//! Layers, each using only those to its right: [`operations`] → [`workspace`] → [`rendezvous`] → [`lifecycle`] →
//! [`memory`] → `cuda` → `lamport_rs_protocol`.

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod deferred;
pub mod error;
pub mod floating_point;
pub mod interrupts;
pub mod lifecycle;
pub mod limits;
pub mod memory;
pub mod operations;
pub mod panics;
pub mod parking;
pub mod rendezvous;
pub mod tensor;
pub mod text;
pub mod wait;
pub mod wire;
pub mod workspace;

pub use error::{Error, Result};
