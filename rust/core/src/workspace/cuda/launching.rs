//! Launching one operation at a time, and calls that launch none.

use cudarc::driver::sys;
use lamport_rs_kernels::ModuleKey;
use lamport_rs_kernels::parameters::{Group as KernelGroup, SkipParameters};
use lamport_rs_kernels::plan;

use super::CudaWorkspace;
use crate::cuda::device::Entered;
use crate::cuda::order::StreamOrder;
use crate::cuda::plans::Plans;
use crate::deferred::keep_captured;
use crate::error::{Error, Result};
use crate::lifecycle::Lifecycle;
use crate::operations::description::Description;
use crate::workspace::exclusive::Access;

/// What one operation at a time may touch.
#[derive(Debug)]
pub(super) struct State {
    pub(super) order: StreamOrder,
    pub(super) plans: Plans,
    /// Whether a graph may use the workspace: it is kept then.
    pub(super) is_captured: bool,
}

impl CudaWorkspace {
    /// What kernels are told, for an operation with this header, whose number follows the one before.
    fn kernel_group(&self, description: &Description) -> KernelGroup {
        self.group.with_header(description.header(1_u32.wrapping_add(self.skipped.take())))
    }

    /// Takes the workspace for one operation on `stream`, and makes the stream wait for the last one. An error if another
    /// thread is launching one.
    ///
    /// # Safety
    /// As of [`Self::note_refusal`].
    #[inline]
    pub(crate) unsafe fn begin(&self, description: &Description, stream: sys::CUstream) -> Result<Launching<'_>> {
        self.faults.check()?;
        let state = self.state.access(description.kind.name())?;
        self.lifecycle().tally.count(description);
        let entered = self.device.enter_for(stream)?;
        let mut launching =
            Launching { lifecycle: self.lifecycle(), state, group: self.kernel_group(description), _entered: entered };
        // The peers' operations go ahead: this rank would be one behind them for ever.
        let begins_capture = launching.state.order.follow(stream).inspect_err(|error| launching.fail(error))?;
        if begins_capture && !launching.state.is_captured {
            launching.state.is_captured = true;
            self.this.upgrade().into_iter().for_each(|this| keep_captured(this));
        }
        Ok(launching)
    }

    /// Takes the workspace, if it has failed, for an operation on `stream` that was refused: what is launched sends nothing,
    /// has no number, and leaves NaN. `None` where that cannot be: another operation is inside, `stream` is captured, the
    /// workspace was cleaned up or is another process's, or the driver is in error.
    ///
    /// # Safety
    /// As of [`Self::note_refusal`].
    #[cold]
    pub(crate) unsafe fn begin_failed(&self, operation: &'static str, stream: sys::CUstream) -> Option<Launching<'_>> {
        let mut state = self.state.access_failed(operation).ok()?;
        // Now: a reset has the same access, and what it ends must not be marked again.
        let lifecycle = self.lifecycle();
        if !lifecycle.has_failed() || lifecycle.is_cleaned_up() || lifecycle.is_elsewhere() {
            return None;
        }
        let entered = self.device.enter_for(stream).ok()?;
        // A graph would leave the mark again when it is replayed, also after a reset.
        if !state.order.follow_unless_captured(stream).ok()? {
            return None;
        }
        // SAFETY: the context is current; the caller's promise.
        unsafe { self.control.mark_failed(stream) }.ok()?;
        Some(Launching { lifecycle, state, group: self.group, _entered: entered })
    }

    /// Takes part in a call that has nothing to do: the peers' has nothing to do either, or theirs differs.
    ///
    /// # Safety
    /// As of [`Self::note_refusal`].
    pub(crate) unsafe fn skip(&self, stream: sys::CUstream) -> Result<()> {
        self.check()?;
        // SAFETY: the caller's promise.
        unsafe { self.note_refusal(stream) };
        Ok(())
    }

    /// The streams that later operations may have to wait for: they must be there until then. `None` if an operation of
    /// another thread has begun.
    pub fn remembered_streams(&self) -> Option<[Option<sys::CUstream>; 2]> {
        let state = self.state.access_failed("remembered_streams").ok()?;
        Some(state.order.remembered())
    }

    /// Counts a call that sends nothing, in `stream`'s order: it was refused on this rank, or has nothing to do here. Peers
    /// that wait for it are told.
    ///
    /// # Safety
    /// `stream` is one of the device's streams, or null for the default one, and stays as long as it is among the
    /// [remembered](Self::remembered_streams): whoever passes a handle says so.
    ///
    /// ```compile_fail,E0133
    /// use lamport_rs_core::{cuda::Stream, workspace::cuda::CudaWorkspace};
    ///
    /// fn count(workspace: &CudaWorkspace, stream: Stream) {
    ///     workspace.note_refusal(stream);
    /// }
    /// ```
    pub unsafe fn note_refusal(&self, stream: sys::CUstream) {
        self.skipped.note(1);
        // What cannot be told now is told by the header of the next operation.
        // SAFETY: the caller's promise.
        let _ = unsafe { self.move_on(stream) };
    }

    /// Moves the operations' numbers on by the calls that were skipped, if no graph and no other thread stands against it.
    ///
    /// # Safety
    /// As of [`Self::note_refusal`].
    unsafe fn move_on(&self, stream: sys::CUstream) -> Result<()> {
        if !self.device.checks_operations || self.member.geometry.world_size() == 1 {
            return Ok(());
        }
        let mut state = self.state.access("a call that was refused")?;
        let _entered = self.device.enter_for(stream)?;
        if !state.order.follow_unless_captured(stream)? {
            return Ok(());
        }
        let function = self.device.modules.function(ModuleKey::Skip, &self.device)?;
        let calls = self.skipped.take();
        let parameters = SkipParameters { group: self.group.with_header([calls, 0, 0, 0]) };
        // SAFETY: the context is current; these are the parameters of `skip`, and the workspace's memory goes when no kernel
        // runs any more.
        let launched = unsafe { function.launch(&plan::skip(self.device.plan), stream, &parameters) };
        launched.inspect_err(|_| self.skipped.note(calls))
    }
}

/// One operation's hold on a workspace, while it is launched.
pub(crate) struct Launching<'a> {
    lifecycle: &'a Lifecycle,
    state: Access<'a, State>,
    /// What its kernel is told.
    pub group: KernelGroup,
    _entered: Entered,
}

impl Launching<'_> {
    /// Notes that the operation failed: this rank is out of step with its peers, and the workspace refuses further work.
    pub fn fail(&self, error: &Error) {
        self.lifecycle.fail(error);
    }

    /// What is launched next belongs to the same call, and has its number.
    pub fn go_on(&mut self) {
        self.group.header[0] = 0;
    }

    /// The launch plans made so far.
    pub fn plans(&mut self) -> &mut Plans {
        &mut self.state.plans
    }
}
