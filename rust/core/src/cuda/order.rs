//! Operations on different streams, one after the other.
//!
//! A workspace serves one operation at a time. Called on another stream than the last one, an operation first makes that
//! stream wait for the other. Nothing is recorded as long as the stream stays the same: an event between two kernels
//! would end the overlap of their launches.

use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::device::Device;
use super::driver::{check, new_event, stream_capture};
use crate::error::{Error, Result};

/// Remembers the streams of the last operations: of those that run, and of those that a capture records. The two are
/// not ordered with each other, as nothing says when a graph will be replayed: replays follow the stream that they are
/// launched on.
#[derive(Debug)]
pub struct StreamOrder {
    device: Arc<Device>,
    /// Of the last operation that was not captured.
    eager: Option<sys::CUstream>,
    /// The last capture that recorded an operation, and the stream of its last one. Of two captures that take turns, the
    /// other's streams are forgotten: each is to keep to one stream then.
    captured: Option<(u64, sys::CUstream)>,
    event: Option<sys::CUevent>,
}

// SAFETY: stream and event handles may be used from any thread.
unsafe impl Send for StreamOrder {}

impl StreamOrder {
    /// For operations on `device`.
    pub fn new(device: &Arc<Device>) -> Self {
        Self { device: device.clone(), eager: None, captured: None, event: None }
    }

    /// The streams that later operations may have to wait for.
    pub fn remembered(&self) -> [Option<sys::CUstream>; 2] {
        [self.eager, self.captured.map(|(_, stream)| stream)]
    }

    /// Makes `stream` wait for the last operation, if that was on another stream. The device's context is current. After
    /// an error nothing is remembered of this operation. Returns whether this is the first operation of a capture.
    #[inline]
    pub fn follow(&mut self, stream: sys::CUstream) -> Result<bool> {
        match capture(stream)? {
            None if self.eager == Some(stream) => Ok(false),
            None => self.follow_eager(stream).map(|()| false),
            Some(number) => self.follow_captured(number, stream),
        }
    }

    /// Likewise for what no graph is to have. False, and nothing is remembered, if the stream is captured.
    pub fn follow_unless_captured(&mut self, stream: sys::CUstream) -> Result<bool> {
        if capture(stream)?.is_some() {
            return Ok(false);
        }
        self.follow_eager(stream).map(|()| true)
    }

    fn follow_eager(&mut self, stream: sys::CUstream) -> Result<()> {
        if let Some(last) = self.eager.filter(|last| *last != stream) {
            if capture(last)?.is_some() {
                return Err(Error::StreamIsCaptured);
            }
            self.wait(last, stream)?;
        }
        self.eager = Some(stream);
        Ok(())
    }

    fn follow_captured(&mut self, number: u64, stream: sys::CUstream) -> Result<bool> {
        let last = self.captured.filter(|(before, _)| *before == number).map(|(_, last)| last);
        if let Some(last) = last.filter(|last| *last != stream) {
            self.wait(last, stream)?;
        }
        self.captured = Some((number, stream));
        Ok(last.is_none())
    }

    #[cold]
    fn wait(&mut self, last: sys::CUstream, stream: sys::CUstream) -> Result<()> {
        let event = match self.event {
            Some(event) => event,
            None => *self.event.insert(new_event()?),
        };
        // SAFETY: the event is ours; `last` was a stream when the last operation was called on it. torch's own streams
        // live as long as the process, and of others that is asked of the caller (docs/appendix/decisions.md).
        check("cuEventRecord", unsafe { sys::cuEventRecord(event, last) })?;
        // SAFETY: as above; `stream` is the caller's.
        check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(stream, event, 0) })
    }
}

impl Drop for StreamOrder {
    fn drop(&mut self) {
        if let (Some(event), Ok(_entered)) = (self.event, self.device.enter()) {
            // SAFETY: the event is ours, and nobody records it any more.
            let _ = unsafe { result::event::destroy(event) };
        }
    }
}

/// The number of the capture that `stream` is part of, if any.
fn capture(stream: sys::CUstream) -> Result<Option<u64>> {
    match capture_info(stream) {
        // The answer for the legacy stream while another stream captures, which is no error of this operation.
        Err(sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT) => Ok(None),
        asked => asked.or_else(|error| check("cuStreamGetCaptureInfo", error).map(|()| None)),
    }
}

/// Whether a stream is being captured that follows the legacy stream, which must not be used meanwhile.
pub(super) fn legacy_stream_is_in_use() -> bool {
    matches!(capture_info(std::ptr::null_mut()), Err(sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT))
}

/// The number of the capture that `stream` is part of, if any, or what the driver says instead.
fn capture_info(stream: sys::CUstream) -> std::result::Result<Option<u64>, sys::CUresult> {
    // SAFETY: the caller's stream.
    let (status, number) = unsafe { stream_capture(stream) }?;
    let is_active = status == sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE;
    Ok(is_active.then_some(number))
}
