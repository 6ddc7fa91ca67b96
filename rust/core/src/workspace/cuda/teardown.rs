//! How a workspace on a device is given up: not before its kernels have ended.

use std::sync::Arc;
use std::time::Duration;

use super::CudaWorkspace;

/// How long kernels that wait when their workspace is cleaned up may still wait.
const CLEAN_UP_GRACE: Duration = Duration::from_secs(1);

impl CudaWorkspace {
    /// Gives it up, once the kernels that run have ended: refuses all further operations, and tells the peers. The memory
    /// goes when the last reference does.
    pub fn clean_up(&self) {
        if self.lifecycle().is_cleaned_up() {
            return;
        }
        if !self.lifecycle().is_elsewhere() {
            self.faults.give_up_after(CLEAN_UP_GRACE);
            // What was sent is then there, for peers that still need it. If this fails, they must hear of the end still.
            let _ = self.device.wait_for_kernels();
        }
        self.lifecycle().clean_up();
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
        self.faults.give_up_after(CLEAN_UP_GRACE);
        // Whatever streams are captured meanwhile.
        let ended = self.device.wait_for_kernels();
        self.lifecycle().clean_up();
        self.watching = None;
        if ended.is_err() {
            // Kernels may still run: neither the peers nor the next workspace must get what they write.
            self.abandon();
        }
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
