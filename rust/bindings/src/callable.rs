//! A Python callable as the transport of a rendezvous.

use lamport_rs_core::Error;
use lamport_rs_core::rendezvous::{AllGather, MESSAGE_BYTES, Rendezvous};
use pyo3::exceptions::{PyException, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PySequence};

use crate::errors::{hears_signals, interruptible};

/// `all_gather(bytes) -> list[bytes]`.
pub struct Callable {
    callable: Py<PyAny>,
    /// What the callable raised, so that it reaches the caller as the cause.
    pub raised: Option<PyErr>,
    /// Whether the calling thread is one that hears signals. Others do not ask for them, as they would wait for whoever
    /// has the interpreter's lock.
    hears_signals: bool,
}

impl Callable {
    /// Wraps the callable, for the calling thread.
    pub fn new(py: Python<'_>, callable: Py<PyAny>) -> Self {
        Self { callable, raised: None, hears_signals: hears_signals(py) }
    }

    /// `error`, with what the callable raised as its cause.
    pub fn explain(self, py: Python<'_>, error: PyErr) -> PyErr {
        if let Some(raised) = self.raised {
            // An interrupt or an exit is no failure of the rendezvous, and not for those who handle such failures.
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
            let gathered = self.callable.bind(py).call1((PyBytes::new(py, message),));
            gathered.and_then(|gathered| messages(&gathered)).map_err(|error| {
                let text = error.to_string();
                self.raised = Some(error);
                text
            })
        })
    }

    fn is_interrupted(&mut self) -> bool {
        if !self.hears_signals {
            return false;
        }
        match Python::attach(|py| py.check_signals()) {
            Ok(()) => false,
            Err(raised) => {
                self.raised = Some(raised);
                true
            }
        }
    }
}

/// More messages than any group has ranks.
const MOST_MESSAGES: usize = 1 << 16;
/// More bytes than a message has in any version.
const MOST_BYTES: usize = 1 << 16;

/// What the callable returned. It may be anything, and say anything about itself, so nothing is allocated by its word.
fn messages(gathered: &Bound<'_, PyAny>) -> PyResult<Vec<Vec<u8>>> {
    let sequence = gathered.cast::<PySequence>().map_err(|_| {
        let kind = kind_of(gathered);
        PyTypeError::new_err(format!("all_gather returned {kind}, but must return a list of every rank's bytes"))
    })?;
    let count = sequence.len()?;
    if count > MOST_MESSAGES {
        return Err(PyValueError::new_err(format!(
            "all_gather returned {count} messages; one of every rank is needed"
        )));
    }
    (0..count).map(|rank| message(rank, &sequence.get_item(rank)?)).collect()
}

fn message(rank: usize, gathered: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    let bytes = gathered.extract::<PyBackedBytes>().map_err(|_| {
        let kind = kind_of(gathered);
        PyTypeError::new_err(format!("all_gather returned {kind} as the message of rank {rank}, but must return bytes"))
    })?;
    if bytes.len() > MOST_BYTES {
        let length = bytes.len();
        return Err(PyValueError::new_err(format!(
            "all_gather returned {length} bytes as the message of rank {rank}, but a message has {MESSAGE_BYTES}"
        )));
    }
    Ok(bytes.to_vec())
}

fn kind_of(object: &Bound<'_, PyAny>) -> String {
    object.get_type().name().map_or_else(|_| "an object".to_owned(), |name| name.to_string())
}

/// Takes part in a rendezvous only to say why this rank cannot: all ranks raise the same error, and none is left waiting.
/// Never returns a value.
#[pyfunction]
pub fn refuse(py: Python<'_>, rank: i64, world_size: i64, reason: &str, all_gather: Py<PyAny>) -> PyResult<()> {
    let mut transport = Callable::new(py, all_gather);
    let refused = interruptible(py, |_| {
        Err(Rendezvous::new(&mut transport, rank, world_size).refuse(Error::Argument(reason.to_owned())))
    });
    refused.map_err(|error| transport.explain(py, error))
}
