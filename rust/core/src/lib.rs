//! Lamport workspaces, free of Python.
//!
//! It is public for its siblings of the same release, and any release may change its API: engines in Rust use the crate
//! `lamport-rs`.
//!
//! What needs a promise is `unsafe`, or private. So whoever has a workspace can give it up, but cannot have peers free
//! memory that is mapped here:
//!
//! ```
//! fn end(workspace: &lamport_rs_core::workspace::host::HostWorkspace) {
//!     workspace.lifecycle().clean_up();
//! }
//! ```
//!
//! ```compile_fail,E0624
//! fn end(workspace: &lamport_rs_core::workspace::host::HostWorkspace) {
//!     workspace.lifecycle().unmap();
//! }
//! ```
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
mod parking;
pub mod rendezvous;
pub mod tensor;
pub mod text;
mod wait;
pub mod wire;
pub mod workspace;

pub use error::{Error, Result};
