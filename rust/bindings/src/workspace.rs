//! Workspace and table.

use std::sync::Arc;

use lamport_rs_core::workspace::Settings;
use lamport_rs_core::workspace::host::HostWorkspace;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::dlpack;
use crate::errors::interruptible;
use crate::exchange::Callable;
use crate::registry;

/// One rank's workspace over shared memory.
#[pyclass(frozen)]
pub struct Workspace {
    pub(crate) workspace: Arc<HostWorkspace>,
}

#[pymethods]
impl Workspace {
    #[new]
    fn new(
        py: Python<'_>,
        rank: i64,
        world_size: i64,
        comm_size: i64,
        timeout: f64,
        all_gather: Py<PyAny>,
    ) -> PyResult<Self> {
        let settings = Settings { rank, world_size, comm_size, timeout };
        let mut transport = Callable::new(all_gather);
        let created = interruptible(py, |interrupted| HostWorkspace::create(&settings, &mut transport, interrupted));
        let workspace = Arc::new(created.map_err(|error| transport.explain(py, error))?);
        registry::register(&workspace);
        Ok(Self { workspace })
    }

    /// The table, for `torch.from_dlpack`.
    fn table(&self) -> Table {
        Table { workspace: self.workspace.clone() }
    }

    /// Refuses all further operations.
    fn clean_up(&self, py: Python<'_>) {
        py.detach(|| self.workspace.clean_up());
    }
}

/// A workspace's pointer table: a one-dimensional int64 tensor that keeps the workspace's memory alive.
#[pyclass(frozen)]
pub struct Table {
    workspace: Arc<HostWorkspace>,
}

#[pymethods]
impl Table {
    #[pyo3(signature = (**_options))]
    fn __dlpack__<'py>(&self, py: Python<'py>, _options: Option<&Bound<'py, PyDict>>) -> PyResult<Bound<'py, PyAny>> {
        let table = self.workspace.table();
        let pointer = table.as_ptr().cast_mut().cast();
        dlpack::capsule(py, pointer, table.len(), self.__dlpack_device__(), self.workspace.clone())
    }

    fn __dlpack_device__(&self) -> (i32, i32) {
        (dlpack::CPU, 0)
    }
}
