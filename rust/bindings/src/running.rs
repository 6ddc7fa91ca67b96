//! How a collective runs: in its thread, on its backend, and told from a call that was refused.

use std::cell::Cell;

use lamport_rs_core::Error;
use lamport_rs_core::operations::launch::Purpose;
use lamport_rs_core::operations::operands::OnEveryBackend;
use lamport_rs_core::workspace::exclusive::Entered;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::argument::find_workspace;
use crate::backend::AnyWorkspace;
use crate::errors::{detached, interruptible, to_python};
use crate::stream;

/// Runs an operation on the workspace's backend, on torch's current stream if it is a device.
///
/// # Safety
/// The operands stay valid until this returns, and what is on a device until the stream has passed the operation.
pub unsafe fn run(py: Python<'_>, workspace: &AnyWorkspace, operands: &impl OnEveryBackend) -> PyResult<()> {
    let _entered = enter(py, workspace, operands.kind().name())?;
    match workspace {
        AnyWorkspace::Host(workspace) => {
            // SAFETY: the caller's promise.
            interruptible(py, |interrupted| unsafe { operands.run_on_host(workspace, interrupted) })
        }
        AnyWorkspace::Cuda(workspace) => {
            let stream = stream::current(py, workspace.device.index)? as usize;
            // A launch waits where too many are enqueued: other threads need not wait with it.
            detached(py, || {
                let stream = Purpose::Run(std::ptr::with_exposed_provenance_mut(stream));
                // SAFETY: the caller's promise; the stream is the device's.
                unsafe { operands.run_on_device(workspace, stream) }
            })
        }
    }
}

/// Lets the call in, if it is of the workspace's thread or in its place.
#[inline]
fn enter<'a>(py: Python<'_>, workspace: &'a AnyWorkspace, operation: &'static str) -> PyResult<Entered<'a>> {
    let calls = workspace.calls();
    let entered = match calls.enter(operation) {
        Err(Error::OtherThread { .. }) if runs_for_another_thread(py)? => calls.enter_for_another(operation),
        entered => entered,
    };
    entered.map_err(|error| to_python(py, error))
}

#[cold]
fn runs_for_another_thread(py: Python<'_>) -> PyResult<bool> {
    py.import(intern!(py, "lamport_rs.autograd"))?.call_method0(intern!(py, "in_thread_of_autograd"))?.extract()
}

/// Lets the calling thread's operations in from now on, and no other's.
#[pyfunction]
pub fn bind_to_thread(workspace: &Bound<'_, PyAny>) -> PyResult<()> {
    let found = find_workspace(workspace)?;
    found.calls().bind().map_err(|error| to_python(workspace.py(), error))
}

thread_local! {
    static NOTED: Cell<u64> = const { Cell::new(0) };
}

/// How many refusals this thread has noted: so whoever passes an error on knows whether its call was counted.
#[pyfunction]
pub fn refusals_noted() -> u64 {
    NOTED.get()
}

/// Counts a call that was refused before it came here or by what is here: this rank's next operation differs from that of
/// ranks whose call was served. `named` is what the call named, in any order: each workspace or table among it counts it.
#[pyfunction]
#[pyo3(signature = (*named))]
pub fn note_refusal(named: &Bound<'_, PyTuple>) -> PyResult<()> {
    let py = named.py();
    NOTED.set(NOTED.get().wrapping_add(1));
    let mut tables = Vec::new();
    for each in named {
        let Some(workspace) = find_named(&each) else { continue };
        if tables.contains(&workspace.table()) {
            continue;
        }
        tables.push(workspace.table());
        match workspace {
            AnyWorkspace::Host(workspace) => workspace.note_refusal(),
            AnyWorkspace::Cuda(workspace) => {
                let stream = stream::current(py, workspace.device.index)? as usize;
                detached(py, || {
                    // SAFETY: torch keeps its streams, and whoever brings others promises to keep them.
                    unsafe { workspace.note_refusal(std::ptr::with_exposed_provenance_mut(stream)) };
                    Ok(())
                })?;
            }
        }
    }
    Ok(())
}

/// The workspace that it is, that it has, or that it is the table of.
fn find_named(named: &Bound<'_, PyAny>) -> Option<AnyWorkspace> {
    find_workspace(named).ok().or_else(|| find_workspace(&named.getattr(intern!(named.py(), "_core")).ok()?).ok())
}
