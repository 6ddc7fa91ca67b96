//! Python bindings: they convert, and nothing else. Arguments become the core's types, errors exceptions.

mod argument;
mod backend;
mod buffer;
mod callable;
mod calls;
mod checked;
mod collectives;
mod control_groups;
mod dlpack;
mod errors;
mod exchange_api;
mod registry;
mod running;
mod shared;
mod sizing;
mod stream;
mod tensor;
mod workspace;

use pyo3::prelude::*;

/// The Rust core of lamport_rs. Use the package, not this module.
///
/// Free-threaded Python takes its lock again when it is imported: nothing here was tested without.
#[pymodule(gil_used = true)]
mod _core {
    #[pymodule_export]
    use super::buffer::{Buffer, fill_sentinel};
    #[pymodule_export]
    use super::callable::refuse;
    #[pymodule_export]
    use super::calls::{obstacle, prepare, quant_formats};
    #[pymodule_export]
    use super::checked::Checked;
    #[pymodule_export]
    use super::collectives::collectives;
    #[pymodule_export]
    use super::control_groups::{cpu_quota, memory_limit};
    #[pymodule_export]
    use super::errors::{
        LamportAbortedError, LamportError, LamportLayoutError, LamportMismatchError, LamportSingleRankError,
        LamportSizeError, LamportTimeoutError,
    };
    #[pymodule_export]
    use super::running::{bind_to_thread, note_refusal, refusals_noted};
    #[pymodule_export]
    use super::sizing::{all_reduce_comm_size, comm_size_within, minimax_comm_size};
    #[pymodule_export]
    use super::workspace::{Table, Workspace, cuda_obstacle, interpreter_ends, release_memory};

    use super::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::collectives::add_to(module)?;
        module.add("__version__", lamport_rs_core::rendezvous::hello::VERSION)?;
        module.add("MAX_WORLD_SIZE", lamport_rs_protocol::geometry::MAX_WORLD_SIZE)?;
        module.add("HELD_COLUMNS", lamport_rs_core::operations::all_reduce_quant::HELD_COLUMNS)?;
        module.add("TABLE_ABI_VERSION", lamport_rs_protocol::table::ABI_VERSION)
    }
}
