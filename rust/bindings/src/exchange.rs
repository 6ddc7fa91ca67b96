//! A Python callable as the exchange's transport.

use lamport_rs_core::Error;
use lamport_rs_core::exchange::{AllGather, Exchange};
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors::interruptible;

/// `all_gather(bytes) -> list[bytes]`.
pub struct Callable {
    callable: Py<PyAny>,
    /// What the callable raised, so that it reaches the caller as the cause.
    pub raised: Option<PyErr>,
}

impl Callable {
    /// Wraps the callable.
    pub fn new(callable: Py<PyAny>) -> Self {
        Self { callable, raised: None }
    }

    /// `error`, with what the callable raised as its cause.
    pub fn explain(self, py: Python<'_>, error: PyErr) -> PyErr {
        if let Some(raised) = self.raised {
            // An interrupt or an exit is no failure of the exchange, and not for those who handle such failures.
            if !raised.is_instance_of::<PyException>(py) {
                return raised;
            }
            error.set_cause(py, Some(raised));
        }
        error
    }
}

impl AllGather for Callable {
    fn all_gather(&mut self, message: &[u8]) -> Result<Vec<Vec<u8>>, String> {
        Python::attach(|py| {
            let gathered = self.callable.call1(py, (PyBytes::new(py, message),));
            gathered.and_then(|gathered| gathered.extract::<Vec<Vec<u8>>>(py)).map_err(|error| {
                let text = error.to_string();
                self.raised = Some(error);
                text
            })
        })
    }
}

/// Takes part in an exchange only to say why this rank cannot: all ranks raise the same error, and none is left waiting.
/// Never returns a value.
#[pyfunction]
pub fn refuse(py: Python<'_>, rank: i64, world_size: i64, reason: &str, all_gather: Py<PyAny>) -> PyResult<()> {
    let mut transport = Callable::new(all_gather);
    let refused = interruptible(py, |_| {
        Err(Exchange::new(&mut transport, rank, world_size).refuse(Error::Argument(reason.to_owned())))
    });
    refused.map_err(|error| transport.explain(py, error))
}
