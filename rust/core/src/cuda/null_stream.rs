//! The null streams of two contexts of one device. A null handle means that of the current context, and nothing orders
//! the two.

use cudarc::driver::{result, sys};

use super::driver::{check, error_of, new_event};
use super::launch::RelaxedCapture;
use super::order::legacy_stream_is_in_use;
use crate::error::Result;

const NULL_STREAM: sys::CUstream = std::ptr::null_mut();

/// Makes a context, or none, the calling thread's. One that is set here is the device's primary one, which is never
/// destroyed, or has been the thread's just before.
#[inline]
pub(super) fn set_current(context: sys::CUcontext) -> Result<()> {
    // SAFETY: a context, or null.
    unsafe { result::ctx::set_current(context) }.map_err(|error| error_of("cuCtxSetCurrent", error))
}

/// Two contexts.
#[derive(Debug)]
pub(super) struct NullStreams {
    /// The device's primary one, in which everything of ours is enqueued.
    pub ours: sys::CUcontext,
    /// That of the caller.
    pub other: sys::CUcontext,
}

impl NullStreams {
    /// The device of the other one. Ours is current before and after.
    pub fn device_of_other(&self) -> Result<sys::CUdevice> {
        set_current(self.other)?;
        let mut device = 0;
        // SAFETY: `device` is written.
        let asked = check("cuCtxGetDevice", unsafe { sys::cuCtxGetDevice(&mut device) });
        set_current(self.ours)?;
        asked.map(|()| device)
    }

    /// Our stream waits for what is enqueued on the other. Ours is current before and after.
    pub fn ours_follows(&self) -> Result<()> {
        set_current(self.other)?;
        let followed = follow(self.ours);
        set_current(self.ours)?;
        followed
    }

    /// The other stream waits for what is enqueued on ours. Ours is current before. If it cannot be made to wait, the
    /// thread does.
    pub fn other_follows(&self) {
        if follow(self.other).is_err() && set_current(self.ours).is_ok() {
            // SAFETY: the default stream.
            let _ = unsafe { sys::cuStreamSynchronize(NULL_STREAM) };
        }
    }
}

/// Waits for what is enqueued on the null stream of the current context, and on those that follow it. Other threads can
/// launch meanwhile. Not while one of these streams is being captured: that would spoil it.
pub(super) fn wait() -> Result<()> {
    let _relaxed = RelaxedCapture::begin()?;
    if legacy_stream_is_in_use() {
        return Ok(());
    }
    let event = new_event()?;
    // SAFETY: the event is of the current context.
    let recorded = check("cuEventRecord", unsafe { sys::cuEventRecord(event, NULL_STREAM) });
    let waited = recorded.and_then(|()| {
        // SAFETY: as above.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(event) })
    });
    // SAFETY: nobody records it any more.
    let _ = unsafe { result::event::destroy(event) };
    waited
}

/// Makes the null stream of `follower`, which is current afterwards, wait for that of the current context.
fn follow(follower: sys::CUcontext) -> Result<()> {
    let event = new_event()?;
    // SAFETY: the event is of the current context, and as long as the streams need it the driver keeps it.
    let recorded = check("cuEventRecord", unsafe { sys::cuEventRecord(event, NULL_STREAM) });
    let waits = recorded.and_then(|()| set_current(follower)).and_then(|()| {
        // SAFETY: the event was recorded.
        check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(NULL_STREAM, event, 0) })
    });
    // SAFETY: nobody records it any more.
    let _ = unsafe { result::event::destroy(event) };
    waits
}
