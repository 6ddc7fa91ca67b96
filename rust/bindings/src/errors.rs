//! The core's errors as exceptions.

use std::cell::OnceCell;

use lamport_rs_core::Error;
use lamport_rs_core::panics::caught;
use lamport_rs_protocol::geometry::GeometryError;
use pyo3::create_exception;
use pyo3::exceptions::{PyBaseException, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

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
    LamportMismatchError,
    LamportError,
    "The ranks run different operations. `rank` and `operation` say what this rank runs, `peer` and `peer_operation` what a \
     rank that differs does."
);

create_exception!(
    lamport_rs,
    LamportAbortedError,
    LamportError,
    "A rank has ended: aborted, cleaned up, failed or dead. `rank` says which, `reason` why in its own words, and `cause` how: \
     \"aborted\", \"cleaned_up\", \"failed\" or \"ended\"."
);

create_exception!(
    lamport_rs,
    LamportSizeError,
    LamportError,
    "Slots that have no room for a row or a vector of every rank. The text says what would do. Nothing was changed."
);

create_exception!(
    lamport_rs,
    LamportLayoutError,
    LamportError,
    "An operand of which a copy will do: the package makes it, and calls again. Nothing was changed."
);

create_exception!(
    lamport_rs,
    LamportSingleRankError,
    LamportError,
    "An operation for which a group of one needs no kernel of ours: the package computes it with torch's. Nothing was \
     changed."
);

/// The exception for `error`.
pub fn to_python(py: Python<'_>, error: Error) -> PyErr {
    let text = error.to_string();
    match error.itself().clone() {
        Error::Timeout { missing, .. } | Error::ResetTimeout { missing, .. } => {
            with_attributes(py, LamportTimeoutError::new_err(text), |value| {
                value.setattr("missing_ranks", PyTuple::new(py, missing.iter().collect::<Vec<_>>())?)
            })
        }
        Error::Mismatch { rank, own, peer, theirs } => {
            with_attributes(py, LamportMismatchError::new_err(text), |value| {
                value.setattr("rank", rank)?;
                value.setattr("operation", own.to_string())?;
                value.setattr("peer", peer)?;
                value.setattr("peer_operation", theirs.to_string())
            })
        }
        Error::PeerRefused { rank, operation, peer } => {
            with_attributes(py, LamportMismatchError::new_err(text), |value| {
                value.setattr("rank", rank)?;
                value.setattr("operation", operation.to_string())?;
                value.setattr("peer", peer)?;
                value.setattr("peer_operation", "a call that was refused")
            })
        }
        Error::Aborted { rank, cause, reason } | Error::BufferLost { rank, cause, reason } => {
            with_attributes(py, LamportAbortedError::new_err(text), |value| {
                value.setattr("rank", rank)?;
                value.setattr("cause", cause.name())?;
                value.setattr("reason", reason)
            })
        }
        Error::Geometry(GeometryError::MessageTooLarge { .. }) | Error::TooLarge(_) => LamportSizeError::new_err(text),
        Error::Layout(_) => LamportLayoutError::new_err(text),
        Error::SingleRank => LamportSingleRankError::new_err(text),
        _ => LamportError::new_err(text),
    }
}

/// `exception`, or what setting its attributes raised.
fn with_attributes(
    py: Python<'_>,
    exception: PyErr,
    set: impl FnOnce(&Bound<'_, PyBaseException>) -> PyResult<()>,
) -> PyErr {
    set(exception.value(py)).err().unwrap_or(exception)
}

/// Runs `wait` without the interpreter's lock. It is given a question to ask from time to time: whether a signal came
/// whose handler raised; that exception is then raised in the place of the error that `wait` returns. In other threads
/// than the main one Python runs no handlers. They do not ask, as they would wait for whoever has the lock.
pub fn interruptible<T: Send>(
    py: Python<'_>,
    wait: impl FnOnce(&mut dyn FnMut() -> bool) -> lamport_rs_core::Result<T> + Send,
) -> PyResult<T> {
    let mut raised: Option<PyErr> = None;
    let is_main_thread = is_main_thread(py);
    let mut asked = || {
        if !is_main_thread && !is_first_thread() {
            return false;
        }
        raised = Python::attach(|py| py.check_signals()).err();
        raised.is_some()
    };
    let outcome = py.detach(|| caught(|| wait(&mut asked)));
    match (outcome, raised) {
        (Err(_), Some(raised)) => Err(raised),
        (outcome, _) => outcome.map_err(|error| to_python(py, error)),
    }
}

/// Runs `run` without the interpreter's lock. A panic in it is an error as well.
pub fn detached<T: Send>(py: Python<'_>, run: impl FnOnce() -> lamport_rs_core::Result<T> + Send) -> PyResult<T> {
    py.detach(|| caught(run)).map_err(|error| to_python(py, error))
}

/// Whether the calling thread is one that hears signals: what it waits for must then ask for them.
pub fn hears_signals(py: Python<'_>) -> bool {
    is_main_thread(py) || is_first_thread()
}

/// Whether Python says that the calling thread is its main one. Asked for once per thread, as that takes as long as an
/// operation.
fn is_main_thread(py: Python<'_>) -> bool {
    thread_local!(static KNOWN: OnceCell<bool> = const { OnceCell::new() });
    let ask = || -> PyResult<bool> {
        let threading = py.import("threading")?;
        let main = threading.call_method0("main_thread")?.getattr("ident")?;
        main.eq(threading.call_method0("get_ident")?)
    };
    // Where it cannot say, the thread asks for signals, and may have to wait for the interpreter's lock.
    KNOWN.with(|known| *known.get_or_init(|| ask().unwrap_or(true)))
}

/// Whether this is the process's first thread. It is Python's main one, unless a program of another language has
/// started Python in another; in a process that another thread has forked, that thread has become both.
pub fn is_first_thread() -> bool {
    rustix::thread::gettid() == rustix::process::getpid()
}
