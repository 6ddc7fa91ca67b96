//! What a container allows, for the command line: no driver and no torch is needed to ask.

use std::path::PathBuf;

use lamport_rs_core::memory::control_groups::ControlGroups;
use pyo3::prelude::*;

fn groups(root: Option<PathBuf>, own: Option<PathBuf>) -> ControlGroups {
    let here = ControlGroups::default();
    ControlGroups { own: own.unwrap_or(here.own), root: root.unwrap_or(here.root) }
}

/// How many cores' time this process may use; None for no limit, or where nothing can be read.
#[pyfunction]
#[pyo3(signature = (root=None, own=None))]
pub fn cpu_quota(root: Option<PathBuf>, own: Option<PathBuf>) -> Option<f64> {
    groups(root, own).cpu_quota().ok().flatten()
}

/// The limit that leaves the least memory, and what is used of it, in bytes; None for no limit, or where nothing can be
/// read.
#[pyfunction]
#[pyo3(signature = (root=None, own=None))]
pub fn memory_limit(root: Option<PathBuf>, own: Option<PathBuf>) -> Option<(u64, u64)> {
    let limits = groups(root, own).memory_limits().ok()?;
    limits
        .iter()
        .map(|limit| (limit.bytes, limit.used))
        .min_by_key(|(bytes, used)| i128::from(*bytes) - i128::from(*used))
}
