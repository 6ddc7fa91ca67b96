//! How a workspace on a device is given up: not before its kernels have ended.

use std::sync::Arc;
use std::time::Duration;

use super::CudaWorkspace;
use crate::deferred::{DroppedByUser, Teardown, drop_deferred, drop_deferred_until};
use crate::error::Result;
use crate::interrupts::{Interrupted, beside, interrupted_wait};
use crate::lifecycle::life;
use crate::panics::caught;

/// How long kernels that wait when their workspace is cleaned up may still wait.
const CLEAN_UP_GRACE: Duration = Duration::from_secs(1);

impl CudaWorkspace {
    /// Gives it up, once the kernels that run have ended: refuses all further operations, and tells the peers. The memory
    /// goes when the last reference does.
    pub fn clean_up(&self) {
        if !self.lifecycle().is_cleaned_up() {
            // If this fails, the peers must hear of the end still.
            let _ = self.await_kernels();
            self.lifecycle().clean_up();
        }
        drop_deferred();
    }

    /// What was sent is then there, for peers that still need it.
    fn await_kernels(&self) -> Result<()> {
        if self.lifecycle().is_elsewhere() {
            return Ok(());
        }
        self.faults.give_up_after(CLEAN_UP_GRACE);
        // Whatever streams are captured meanwhile.
        let ended = self.device.wait_for_kernels();
        life::kernels_have_ended();
        ended
    }

    /// Likewise, but waits no longer than until `interrupted` says so, which is an error. It is given up then all the same,
    /// and the memory stays until the kernels have ended.
    pub fn clean_up_until(&self, interrupted: Interrupted<'_>) -> Result<()> {
        if !self.lifecycle().is_cleaned_up() {
            let ended = self.await_kernels_until(&mut *interrupted);
            self.lifecycle().clean_up();
            ended?;
        }
        drop_deferred_until(interrupted).map(drop)
    }

    fn await_kernels_until(&self, interrupted: Interrupted<'_>) -> Result<()> {
        if self.lifecycle().is_elsewhere() {
            return Ok(());
        }
        self.faults.give_up_after(CLEAN_UP_GRACE);
        let (device, kept) = (self.device.clone(), self.this.upgrade());
        let wait = move || {
            let _ = caught(|| device.wait_for_kernels());
            // If the caller was interrupted, and has let go, this is the last, and a later call drops it.
            if let Some(last) = kept.and_then(Arc::into_inner) {
                drop(DroppedByUser::new(last));
            }
        };
        match beside(wait, interrupted) {
            Ok(Some(())) => Ok(()),
            Ok(None) => Err(interrupted_wait()),
            Err(_) => {
                // Without another thread for the wait. If it fails, the kernels do not go on.
                let _ = self.device.wait_for_kernels();
                Ok(())
            }
        }
    }
}

impl Teardown for CudaWorkspace {
    fn give_up(&self) {
        let _ = self.await_kernels();
        self.lifecycle().let_go();
    }
}

impl Drop for CudaWorkspace {
    fn drop(&mut self) {
        if self.lifecycle().is_elsewhere() {
            // It is the other process's, and the driver's memory with it.
            std::mem::forget(self.watching.take());
            self.abandon();
            return;
        }
        let ended = self.await_kernels();
        self.lifecycle().let_go();
        self.watching = None;
        if ended.is_err() {
            // Kernels may still run: neither the peers nor the next workspace must get what they write.
            self.abandon();
        }
        drop_deferred();
    }
}

impl CudaWorkspace {
    /// Nobody is to get any of its memory after this.
    fn abandon(&mut self) {
        self.memory.abandon();
        self.control.abandon();
        if let Some(faults) = Arc::get_mut(&mut self.faults) {
            faults.words.abandon();
        }
    }
}
