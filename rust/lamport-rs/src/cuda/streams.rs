//! Streams that a communicator uses, and keeps.
//!
//! An operation on another stream than the last one first waits for that, so the last one must still be there: of those that
//! run, and of those that a capture records.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, sys};

use crate::error::{Error, Result};

/// `CU_STREAM_PER_THREAD`.
const PER_THREAD: usize = 2;

/// Refuses streams that nothing can be ordered behind.
pub(super) fn check(stream: &CudaStream, context: &Arc<CudaContext>) -> Result<()> {
    check_context("the stream", stream, context)?;
    if stream.cu_stream().addr() == PER_THREAD {
        return Err(Error::argument(
            "the stream is the thread's own default one, which is another in each thread; pass one of \
             CudaContext::new_stream or CudaContext::default_stream",
        ));
    }
    Ok(())
}

/// Refuses what was made with another `CudaContext` object, even of the same device.
///
/// Each object counts its own streams and has its own switch for events. By those of a buffer's object cudarc decides
/// whether a use of the buffer, or its release, waits for earlier uses.
pub(super) fn check_context(name: &str, stream: &CudaStream, context: &Arc<CudaContext>) -> Result<()> {
    if Arc::ptr_eq(stream.context(), context) {
        return Ok(());
    }
    Err(Error::argument(format!(
        "{name} is of a context of cuda:{}, and not of the CudaContext of cuda:{} that the communicator was made with; \
         use that one, which Communicator::context returns: each CudaContext::new is an object of its own",
        stream.context().ordinal(),
        context.ordinal()
    )))
}

/// The streams that operations may yet have to follow.
#[derive(Debug, Default)]
pub(super) struct KeptStreams(Vec<Arc<CudaStream>>);

impl KeptStreams {
    /// Keeps the stream of the operation that comes, and says whether it was not kept before.
    pub(super) fn keep(&mut self, stream: &Arc<CudaStream>) -> bool {
        let is_new = self.0.iter().all(|kept| kept.cu_stream() != stream.cu_stream());
        if is_new {
            self.0.push(stream.clone());
        }
        is_new
    }

    /// Lets go of all others.
    pub(super) fn forget_all_but(&mut self, remembered: &[Option<sys::CUstream>]) {
        self.0.retain(|stream| remembered.contains(&Some(stream.cu_stream())));
    }
}
