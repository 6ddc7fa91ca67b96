//! Workspace and table.

use lamport_rs_core::cuda::device::{Device, device_count};
use lamport_rs_core::deferred::{drop_deferred_until, let_captured_go};
use lamport_rs_core::lifecycle::hook::abort_hook;
use lamport_rs_core::lifecycle::life;
use lamport_rs_core::lifecycle::watcher::is_watching;
use lamport_rs_core::panics::caught;
use lamport_rs_core::workspace::cuda::CudaWorkspace;
use lamport_rs_core::workspace::host::HostWorkspace;
use lamport_rs_core::workspace::{Settings, reset_timeout, timeout_of};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::backend::AnyWorkspace;
use crate::callable::Callable;
use crate::dlpack;
use crate::errors::{detached, hears_signals, interruptible, to_python};
use crate::registry;
use crate::shared::Shared;

/// What `Workspace.status` returns.
type Status = (u32, Option<String>, Vec<(&'static str, u64, u64)>, f64, Vec<usize>);

/// One rank's workspace: over the memory of CUDA device `cuda_index`, or over shared memory if that is None.
#[pyclass(frozen)]
pub struct Workspace {
    pub(crate) workspace: AnyWorkspace,
}

#[pymethods]
impl Workspace {
    #[new]
    #[pyo3(signature = (rank, world_size, comm_size, timeout, two_shot_from, cuda_index, all_gather))]
    #[allow(clippy::too_many_arguments, reason = "the class's arguments")]
    fn new(
        py: Python<'_>,
        rank: i64,
        world_size: i64,
        comm_size: i64,
        timeout: f64,
        two_shot_from: Option<i64>,
        cuda_index: Option<usize>,
        all_gather: Py<PyAny>,
    ) -> PyResult<Self> {
        let settings = Settings { rank, world_size, comm_size, timeout, two_shot_from };
        let mut transport = Callable::new(py, all_gather);
        let created = interruptible(py, |_| match cuda_index {
            None => HostWorkspace::create(&settings, &mut transport).map(Shared::new).map(AnyWorkspace::Host),
            Some(index) => CudaWorkspace::create(&settings, Device::get(index), &mut transport)
                .map(Shared::from)
                .map(AnyWorkspace::Cuda),
        });
        let workspace = created.map_err(|error| transport.explain(py, error))?;
        registry::register(&workspace);
        Ok(Self { workspace })
    }

    /// The table, for `torch.from_dlpack`.
    fn table(&self) -> Table {
        Table { workspace: self.workspace.clone() }
    }

    /// Refuses all further operations of all ranks, and ends those that wait.
    fn abort(&self, py: Python<'_>, reason: &str) -> PyResult<()> {
        self.workspace.lifecycle().abort(reason).map_err(|error| to_python(py, error))
    }

    /// Addresses of a C function that aborts, and of its argument. They are valid until the process ends.
    fn abort_hook(&self, reason: &str) -> (usize, usize) {
        let (function, argument) = abort_hook(self.workspace.lifecycle().clone(), reason);
        (function as usize, argument as usize)
    }

    /// Begins anew, with all ranks, for which this waits up to `timeout` seconds; 0 or infinite for ever. None: as long as
    /// kernels may still wait, and longer.
    #[pyo3(signature = (timeout))]
    fn reset(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        let timeout = match timeout {
            Some(seconds) => timeout_of(seconds).map_err(|error| to_python(py, error))?,
            None => reset_timeout(self.workspace.timeout()),
        };
        interruptible(py, |interrupted| self.workspace.reset(timeout, interrupted))
    }

    /// Resets, why it cannot be used, work by kind (name, operations, bytes), the longest wait in seconds, and for whom.
    fn status(&self) -> Status {
        let lifecycle = self.workspace.lifecycle();
        let failure = lifecycle.fault().map(|(error, _)| error.to_string());
        let work = lifecycle.tally.work();
        let work = work.iter().map(|work| (work.kind.name(), work.operations, work.bytes)).collect();
        let (wait, ranks) = lifecycle.tally.longest_wait();
        (lifecycle.epoch(), failure, work, wait.as_secs_f64(), ranks.iter().collect())
    }

    /// Why deaths of peers' processes are noticed by the timeout alone; None if they are noticed at once.
    fn unwatched(&self) -> Option<String> {
        self.workspace.lifecycle().unwatched().map(|reason| reason.to_string())
    }

    /// Waits for the last operation, and raises what went wrong in it.
    fn synchronize(&self, py: Python<'_>) -> PyResult<()> {
        match &self.workspace {
            AnyWorkspace::Host(workspace) => detached(py, || workspace.lifecycle().check()),
            AnyWorkspace::Cuda(workspace) if hears_signals(py) => {
                interruptible(py, |interrupted| workspace.synchronise_until(interrupted))
            }
            AnyWorkspace::Cuda(workspace) => detached(py, || workspace.synchronise()),
        }
    }

    /// Bytes of memory that this rank takes.
    fn memory_bytes(&self) -> usize {
        match &self.workspace {
            AnyWorkspace::Host(workspace) => workspace.memory_bytes(),
            AnyWorkspace::Cuda(workspace) => workspace.memory_bytes(),
        }
    }

    /// The parts of its construction, and how many seconds each took.
    fn phases(&self) -> Vec<(&'static str, f64)> {
        let phases = match &self.workspace {
            AnyWorkspace::Host(workspace) => &workspace.phases,
            AnyWorkspace::Cuda(workspace) => &workspace.phases,
        };
        phases.taken().iter().map(|(name, taken)| (*name, taken.as_secs_f64())).collect()
    }

    /// What cleans it up next does so because of an error, of which the process may end.
    fn expect_an_end(&self) {
        self.workspace.lifecycle().expect_an_end();
    }

    /// Refuses all further operations, and waits for the kernels on the device, or for a signal's handler that raises.
    fn clean_up(&self, py: Python<'_>) -> PyResult<()> {
        match &self.workspace {
            AnyWorkspace::Host(workspace) => detached(py, || {
                workspace.lifecycle().clean_up();
                Ok(())
            }),
            AnyWorkspace::Cuda(workspace) if hears_signals(py) => {
                interruptible(py, |interrupted| workspace.clean_up_until(interrupted))
            }
            AnyWorkspace::Cuda(workspace) => detached(py, || {
                workspace.clean_up();
                Ok(())
            }),
        }
    }
}

/// Frees memory of workspaces that are gone, which could not be freed when they went, as a peer had it mapped.
/// Workspaces do so as well when they are made, cleaned up or dropped. It waits for the kernels of this process that run
/// on the device.
///
/// A workspace whose operations a CUDA graph has captured stays, with its memory, when its last reference goes.
/// `captured=True` gives up all that nobody refers to: only when no graph of theirs is replayed again, which would write
/// into memory that is others'.
///
/// Returns how many blocks of memory still wait for a peer.
#[pyfunction]
#[pyo3(signature = (*, captured = false))]
pub fn release_memory(py: Python<'_>, captured: bool) -> PyResult<usize> {
    interruptible(py, |interrupted| {
        if captured {
            // SAFETY: the caller's promise.
            unsafe { let_captured_go() };
        }
        drop_deferred_until(interrupted)
    })
}

/// A workspace's pointer table: a one-dimensional int64 tensor that keeps the workspace's memory alive.
#[pyclass(frozen)]
pub struct Table {
    workspace: AnyWorkspace,
}

#[pymethods]
impl Table {
    #[pyo3(signature = (**_options))]
    fn __dlpack__<'py>(&self, py: Python<'py>, _options: Option<&Bound<'py, PyDict>>) -> PyResult<Bound<'py, PyAny>> {
        let (pointer, length) = self.workspace.table();
        let pointer = std::ptr::with_exposed_provenance_mut(pointer as usize);
        dlpack::capsule(py, pointer, length, self.__dlpack_device__(), self.workspace.clone())
    }

    fn __dlpack_device__(&self) -> (i32, i32) {
        match &self.workspace {
            AnyWorkspace::Host(_) => (dlpack::CPU, 0),
            AnyWorkspace::Cuda(workspace) => (dlpack::CUDA, workspace.device.index as i32),
        }
    }
}

/// Lets peers know that the interpreter ends, which takes a while: at once, or when the kernels have ended that may run.
#[pyfunction]
pub fn interpreter_ends() {
    life::finish(is_watching());
}

/// Says why CUDA cannot be used here; None if it can. Makes no context.
#[pyfunction]
pub fn cuda_obstacle() -> Option<String> {
    caught(device_count).err().map(|error| error.to_string())
}
