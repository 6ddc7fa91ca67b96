//! The arguments of a collective, as Python passes them and as the core takes them.

use lamport_rs_core::floating_point::narrow;
use lamport_rs_core::operations::rms_norm_quant::Sink;
use lamport_rs_core::tensor::Tensor;
use lamport_rs_protocol::algorithm::Algorithm;
use lamport_rs_protocol::geometry::MAX_WORLD_SIZE;
use lamport_rs_protocol::table::table_len;
use pyo3::intern;
use pyo3::prelude::*;

use crate::backend::AnyWorkspace;
use crate::errors::LamportError;
use crate::registry;
use crate::tensor::extract;
use crate::workspace::Workspace;

/// The name that leaves the choice of the algorithm to the library.
const AUTO: &str = "auto";

/// What an argument becomes.
pub trait Argument: Sized {
    /// What Python passes.
    type Given<'a, 'py: 'a>;
    /// Its type in the schema of an operator of torch.
    const SCHEMA: &'static str;

    /// What it comes to. `name` is for errors.
    fn take<'a, 'py: 'a>(given: Self::Given<'a, 'py>, name: &str) -> PyResult<Self>;
}

impl Argument for Tensor {
    type Given<'a, 'py: 'a> = &'a Bound<'py, PyAny>;
    const SCHEMA: &'static str = "Tensor";

    fn take<'a, 'py: 'a>(given: Self::Given<'a, 'py>, name: &str) -> PyResult<Self> {
        extract(given, name)
    }
}

impl Argument for Option<Tensor> {
    type Given<'a, 'py: 'a> = Option<&'a Bound<'py, PyAny>>;
    const SCHEMA: &'static str = "Tensor?";

    fn take<'a, 'py: 'a>(given: Self::Given<'a, 'py>, name: &str) -> PyResult<Self> {
        given.map(|tensor| extract(tensor, name)).transpose()
    }
}

/// Operators know a workspace by its table.
impl Argument for AnyWorkspace {
    type Given<'a, 'py: 'a> = &'a Bound<'py, PyAny>;
    const SCHEMA: &'static str = "Tensor";

    fn take<'a, 'py: 'a>(given: Self::Given<'a, 'py>, _name: &str) -> PyResult<Self> {
        find_workspace(given)
    }
}

impl Argument for Option<Algorithm> {
    type Given<'a, 'py: 'a> = &'a str;
    const SCHEMA: &'static str = "str";

    fn take<'a, 'py: 'a>(given: Self::Given<'a, 'py>, _name: &str) -> PyResult<Self> {
        find_algorithm(given)
    }
}

impl Argument for Sink {
    type Given<'a, 'py: 'a> = &'a str;
    const SCHEMA: &'static str = "str";

    fn take<'a, 'py: 'a>(given: Self::Given<'a, 'py>, name: &str) -> PyResult<Self> {
        find_format(given, name)
    }
}

macro_rules! as_they_are {
    ($($type:ty = $schema:literal),+) => {$(
        impl Argument for $type {
            type Given<'a, 'py: 'a> = $type;
            const SCHEMA: &'static str = $schema;

            fn take<'a, 'py: 'a>(given: Self::Given<'a, 'py>, _name: &str) -> PyResult<Self> {
                Ok(given)
            }
        }
    )+};
}

as_they_are!(i64 = "int", bool = "bool");

/// Taken as Python has it: the conversion depends on the thread's settings.
impl Argument for f32 {
    type Given<'a, 'py: 'a> = f64;
    const SCHEMA: &'static str = "float";

    fn take<'a, 'py: 'a>(given: f64, _name: &str) -> PyResult<Self> {
        Ok(narrow(given))
    }
}

/// `None` for the fastest.
pub fn find_algorithm(name: &str) -> PyResult<Option<Algorithm>> {
    if name == AUTO {
        return Ok(None);
    }
    Algorithm::named(name).map(Some).ok_or_else(|| {
        let names = Algorithm::ALL.map(|algorithm| format!("{:?}", algorithm.name())).join(", ");
        LamportError::new_err(format!("algorithm is {name:?}, but must be {AUTO:?} or one of {names}"))
    })
}

/// The quantiser of that name. `argument` is for the error.
pub fn find_format(name: &str, argument: &str) -> PyResult<Sink> {
    Sink::named(name).ok_or_else(|| {
        let names = Sink::ALL.map(|sink| format!("{:?}", sink.name())).join(", ");
        LamportError::new_err(format!("{argument} is {name:?}, but must be one of {names}"))
    })
}

/// The workspace that Python passes as such, or as its table.
pub fn find_workspace(workspace: &Bound<'_, PyAny>) -> PyResult<AnyWorkspace> {
    if let Ok(workspace) = workspace.cast::<Workspace>() {
        return Ok(workspace.get().workspace.clone());
    }
    let py = workspace.py();
    let pointer = workspace.call_method0(intern!(py, "data_ptr")).and_then(|pointer| pointer.extract());
    pointer.ok().and_then(registry::find).or_else(|| find_copied(workspace)).ok_or_else(|| {
        LamportError::new_err(
            "workspace must be a LamportWorkspace, or the tensor that its `workspace` property or \
             get_allreduce_workspace() returned, not a copy of it on a GPU",
        )
    })
}

/// By the values of a tensor on the CPU.
fn find_copied(table: &Bound<'_, PyAny>) -> Option<AnyWorkspace> {
    let py = table.py();
    if !table.getattr(intern!(py, "is_cpu")).and_then(|is_cpu| is_cpu.is_truthy()).unwrap_or(false) {
        return None;
    }
    // Any tensor may come here: a large one is none.
    let elements: usize = table.call_method0(intern!(py, "numel")).ok()?.extract().ok()?;
    if elements > table_len(MAX_WORLD_SIZE) {
        return None;
    }
    let entries: Vec<i64> = table.call_method0(intern!(py, "tolist")).ok()?.extract().ok()?;
    registry::find_copied(&entries)
}
