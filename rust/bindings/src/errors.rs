//! The core's errors as exceptions.

use lamport_rs_core::Error;
use lamport_rs_protocol::geometry::GeometryError;
use pyo3::create_exception;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

create_exception!(
    lamport_rs,
    LamportError,
    PyRuntimeError,
    "What lamport_rs raises: bad arguments, disagreement between ranks, and faults. The text says what to do next."
);
create_exception!(
    lamport_rs,
    LamportTimeoutError,
    LamportError,
    "Peers did not come within the timeout. `missing_ranks` is the tuple of their ranks."
);

create_exception!(
    lamport_rs,
    LamportSizeError,
    LamportError,
    "A tensor that is too large for the workspace, or for any. The text says what would do. Nothing was changed."
);

create_exception!(
    lamport_rs,
    LamportLayoutError,
    LamportError,
    "An operand of which a copy will do: the package makes it, and calls again. Nothing was changed."
);

/// The exception for `error`.
pub fn to_python(py: Python<'_>, error: Error) -> PyErr {
    let missing = match &error {
        Error::Timeout { missing, .. } => missing,
        Error::Geometry(GeometryError::MessageTooLarge { .. }) | Error::TooLarge(_) => {
            return LamportSizeError::new_err(error.to_string());
        }
        Error::Layout(text) => return LamportLayoutError::new_err(text.clone()),
        _ => return LamportError::new_err(error.to_string()),
    };
    let exception = LamportTimeoutError::new_err(error.to_string());
    let ranks: Vec<usize> = missing.iter().collect();
    let set =
        pyo3::types::PyTuple::new(py, ranks).and_then(|ranks| exception.value(py).setattr("missing_ranks", ranks));
    set.err().unwrap_or(exception)
}

/// Runs `wait` without the interpreter's lock. It is given a question to ask from time to time: whether a signal came
/// whose handler raised; that exception is then raised in the place of the error that `wait` returns.
pub fn interruptible<T: Send>(
    py: Python<'_>,
    wait: impl FnOnce(&mut dyn FnMut() -> bool) -> lamport_rs_core::Result<T> + Send,
) -> PyResult<T> {
    let mut raised: Option<PyErr> = None;
    let outcome = py.detach(|| {
        wait(&mut || {
            raised = Python::attach(|py| py.check_signals()).err();
            raised.is_some()
        })
    });
    match (outcome, raised) {
        (Err(_), Some(raised)) => Err(raised),
        (outcome, _) => outcome.map_err(|error| to_python(py, error)),
    }
}
