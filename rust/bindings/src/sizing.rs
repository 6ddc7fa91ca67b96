//! How large a slot must be.

use lamport_rs_core::Error;
use lamport_rs_protocol::geometry;
use pyo3::prelude::*;

use crate::errors::to_python;

/// Bytes per slot for the MiniMax operations.
#[pyfunction]
pub fn minimax_comm_size(py: Python<'_>, max_tokens: i64, world_size: i64, fused_qk: bool) -> PyResult<usize> {
    geometry::minimax_comm_size(max_tokens, world_size, fused_qk).map_err(|error| to_python(py, Error::from(error)))
}

/// Bytes per slot for an all-reduce of up to `max_bytes` bytes.
#[pyfunction]
pub fn all_reduce_comm_size(py: Python<'_>, max_bytes: i64, world_size: i64) -> PyResult<usize> {
    geometry::all_reduce_comm_size(max_bytes, world_size).map_err(|error| to_python(py, Error::from(error)))
}

/// The most bytes per slot with which a workspace's block takes `memory_bytes` bytes at most.
#[pyfunction]
pub fn comm_size_within(py: Python<'_>, memory_bytes: i64, world_size: i64) -> PyResult<i64> {
    geometry::comm_size_within(memory_bytes, world_size).map_err(|error| to_python(py, Error::from(error)))
}
