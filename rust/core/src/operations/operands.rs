//! What every collective does with its operands.

use super::Kind;
#[cfg(feature = "cuda")]
use super::launch::Purpose;
use super::question::{Places, Question};
use crate::error::Result;
use crate::interrupts::Interrupted;
#[cfg(feature = "cuda")]
use crate::workspace::cuda::CudaWorkspace;
use crate::workspace::host::HostWorkspace;

/// The operands of one call of a collective.
///
/// A failed check has changed nothing. First comes what no copy of an operand would mend, then its layout, of which the
/// caller may make a copy and call again. So an [`Error::Layout`] is followed by the operation, unless memory runs out.
/// What one operand shares with another is asked last: copies share nothing. Only outputs are asked before, as they are
/// written in the end.
///
/// [`Error::Layout`]: crate::Error::Layout
pub trait Operands: Send + Sync {
    /// Which collective.
    fn kind(&self) -> Kind;

    /// Operands such as the question is about. An error if no workspace would serve them.
    fn from_question(question: &Question, places: &mut Places) -> Result<Self>
    where
        Self: Sized;
}

/// The operation over shared memory.
pub trait OnHost: Operands {
    /// Says why the workspace would refuse the operands, if it would.
    fn check_on_host(&self, workspace: &HostWorkspace) -> Result<()>;

    /// Runs the operation. A collective call: all ranks pass tensors of the same size and dtype.
    ///
    /// # Safety
    /// The tensors' pointers are valid for their shapes and strides until this returns; nothing else writes them.
    unsafe fn run_on_host(&self, workspace: &HostWorkspace, interrupted: Interrupted<'_>) -> Result<()>;
}

/// The operation over device memory.
#[cfg(feature = "cuda")]
pub trait OnDevice: Operands {
    /// Says why the workspace would refuse the operands, if it would.
    fn check_on_device(&self, workspace: &CudaWorkspace) -> Result<()>;

    /// Runs the operation in a stream's order, or only loads its kernels. To run it is a collective call: all ranks pass
    /// tensors of the same size and dtype.
    ///
    /// # Safety
    /// To run it: the tensors' pointers are valid for their shapes and strides until the stream has passed the operation,
    /// also if this returns an error, and it is a stream of the workspace's device.
    unsafe fn run_on_device(&self, workspace: &CudaWorkspace, purpose: Purpose) -> Result<()>;

    /// Loads the operation's kernels, so that the first call does not. An error if the workspace would refuse the operands.
    fn load(&self, workspace: &CudaWorkspace) -> Result<()> {
        // SAFETY: nothing runs.
        unsafe { self.run_on_device(workspace, Purpose::Load) }
    }
}

/// An operation of every backend that there is.
#[cfg(feature = "cuda")]
pub trait OnEveryBackend: OnHost + OnDevice {}
#[cfg(feature = "cuda")]
impl<Operation: OnHost + OnDevice> OnEveryBackend for Operation {}

/// An operation of every backend that there is.
#[cfg(not(feature = "cuda"))]
pub trait OnEveryBackend: OnHost {}
#[cfg(not(feature = "cuda"))]
impl<Operation: OnHost> OnEveryBackend for Operation {}
