//! A workspace's check, which a program calls after each step.

use std::sync::{Mutex, PoisonError};

use lamport_rs_core::Error;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::backend::WeakWorkspace;
use crate::errors::to_python;
use crate::workspace::Workspace;

/// What a workspace's class inherits, so that its check takes no frame of the interpreter.
#[pyclass(frozen, subclass)]
#[derive(Default)]
pub struct Checked {
    /// It keeps none: a check that somebody holds on to keeps no memory of a workspace that was cleaned up.
    workspace: Mutex<Option<WeakWorkspace>>,
}

#[pymethods]
impl Checked {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self::default()
    }

    /// Says whose check it is.
    fn _check_for(&self, workspace: &Workspace) {
        *self.workspace.lock().unwrap_or_else(PoisonError::into_inner) = Some(workspace.workspace.downgrade());
    }

    /// Raise what went wrong, if anything has on this rank or was told by a peer. Waits for nothing: under 0.3 us.
    ///
    /// For after each step, above all where all operations are in CUDA graphs: on a GPU, an operation that cannot
    /// complete leaves NaN and ends, and the host hears of it here, by the next call, or by `synchronize`.
    ///
    /// Raises:
    ///     LamportTimeoutError: If an operation missed a peer, on this rank or on another.
    ///     LamportMismatchError: If the ranks called different operations.
    ///     LamportAbortedError: If a rank has aborted or failed otherwise, or its process has ended, which is asked for
    ///         every 50 ms at most. That a peer was cleaned up is told by the next operation only, which needs it.
    ///     LamportError: If the workspace was cleaned up.
    fn check(&self, py: Python<'_>) -> PyResult<()> {
        let known = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        let workspace = known.as_ref().and_then(WeakWorkspace::upgrade);
        drop(known);
        match workspace {
            Some(workspace) => workspace.check(),
            None => Err(Error::CleanedUp),
        }
        .map_err(|error| logged(py, error))
    }
}

/// The exception for `error`, of which the log is told, or what telling it raised.
#[cold]
fn logged(py: Python<'_>, error: Error) -> PyErr {
    let error = to_python(py, error);
    let log =
        || py.import(intern!(py, "lamport_rs.observation"))?.call_method1(intern!(py, "log_fault"), (error.value(py),));
    log().err().unwrap_or(error)
}
