//! How an operation over device memory is launched.

use cudarc::driver::sys;
use lamport_rs_kernels::parameters::Group as KernelGroup;
use lamport_rs_protocol::geometry::GeometryError;

use super::chunk::Chunk;
use super::description::Description;
use crate::cuda::launch::Function;
use crate::cuda::plans::{Planned, Plans};
use crate::error::{Error, Result};
use crate::workspace::cuda::{CudaWorkspace, Launching};

/// What an operation's plans are made for.
#[derive(Clone, Copy, Debug)]
pub enum Purpose {
    /// To run it on a stream.
    Run(sys::CUstream),
    /// To have its kernels loaded: later, that would wait for kernels that run.
    Load,
}

/// Kernels of norms take a peer to exist: the caller does without them, and has none to load.
pub(super) fn without_peers(workspace: &CudaWorkspace, purpose: Purpose) -> Result<()> {
    workspace.check_open()?;
    match purpose {
        Purpose::Load => Ok(()),
        Purpose::Run(_) => Err(Error::SingleRank),
    }
}

/// Launches an operation for each of the chunks, or loads its kernels. With none there is nothing to do but to be counted.
///
/// All chunks are told to the peers as the whole operation, so that they differ from the first on if that does.
pub(super) unsafe fn launch<Shape: Planned, P>(
    workspace: &CudaWorkspace,
    description: &Description,
    chunks: impl Iterator<Item = Chunk> + Clone,
    shape: impl Fn(&Chunk) -> Result<Shape>,
    parameters: impl Fn(Shape::Plan, KernelGroup, &Chunk) -> std::result::Result<P, GeometryError>,
    purpose: Purpose,
) -> Result<()> {
    // First: a shape that has no plan changes nothing.
    for chunk in chunks.clone() {
        shape(&chunk)?.check()?;
    }
    let Purpose::Run(stream) = purpose else {
        workspace.check_open()?;
        let _entered = workspace.device.enter()?;
        // The device keeps what is loaded. The workspace's own plans are for whoever runs an operation.
        let mut loaded = Plans::default();
        for chunk in chunks {
            loaded.get(shape(&chunk)?, &workspace.device)?;
        }
        return Ok(());
    };
    if chunks.clone().next().is_none() {
        // SAFETY: the caller's promise.
        return unsafe { workspace.skip(stream) };
    }
    let launch_chunks = |launching: &mut Launching<'_>, may_load: bool| {
        for chunk in chunks.clone() {
            let (group, shape, device) = (launching.group, shape(&chunk)?, &workspace.device);
            let (plan, function): (Shape::Plan, Function) = if may_load {
                launching.plans().get(shape, device)?
            } else {
                let Some(loaded) = launching.plans().get_loaded(shape, device) else { return Ok(()) };
                loaded
            };
            let parameters = parameters(plan, group, &chunk)?;
            // SAFETY: `begin` made the context current; these are the kernel's parameters, and the caller keeps the operands.
            unsafe { function.launch(&Shape::launch(&plan), stream, &parameters) }?;
            launching.go_on();
        }
        Ok(())
    };
    // SAFETY: the caller's promise.
    let outcome = unsafe { workspace.begin(description, stream) }.and_then(|mut launching| {
        // The peers' operations go ahead: this rank would be one behind them for ever.
        launch_chunks(&mut launching, true).inspect_err(|error| launching.fail(error))
    });
    if outcome.is_err()
        // SAFETY: the caller's promise.
        && let Some(mut launching) = unsafe { workspace.begin_failed(description.kind.name(), stream) }
    {
        // The outputs are NaN then, as on the host: what was there must not be taken for a result. What fails here as well
        // has been said; and nothing is loaded, which might wait for a kernel that waits for this thread.
        let _ = launch_chunks(&mut launching, false);
    }
    outcome
}

/// A size as kernels count.
pub(super) fn narrow(value: usize) -> Result<u32> {
    u32::try_from(value)
        .map_err(|_| Error::Argument(format!("{value} is more than a kernel can count; split the tensor")))
}
