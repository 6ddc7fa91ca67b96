//! Beginning anew, with all ranks.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lamport_rs_protocol::notices::{Stage, Stages};

use super::Lifecycle;
use crate::error::{Cause, Error, Result};
use crate::interrupts::{INTERRUPT_INTERVAL, Interrupted};

/// Between two looks of a rank that waits: peers are late by as much as their devices take to stop.
const RESET_INTERVAL: Duration = Duration::from_micros(100);

impl Lifecycle {
    /// Begins anew, with all ranks: `stop` returns when this rank stores nothing more into its peers' slots, `refill`
    /// when its own slots are as they were at first. The workspace works again then.
    pub fn reset(
        &self,
        timeout: Option<Duration>,
        interrupted: Interrupted<'_>,
        stop: impl FnOnce(Interrupted<'_>) -> Result<()>,
        refill: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.check_here()?;
        if self.half_reset.load(Ordering::Relaxed) {
            return Err(Error::HalfReset);
        }
        if !self.pages.serve_a_reset() {
            return Err(Error::PagesMissing);
        }
        stop(&mut *interrupted)?;
        let stages = Stages(self.notices());
        stages.arrive(Stage::Stopped);
        self.wait_for(Stage::Stopped, timeout, interrupted).inspect_err(|_| stages.arrive(Stage::None))?;
        // From here on some ranks may have begun anew, and others not.
        self.half_reset.store(true, Ordering::Relaxed);
        let filled = refill().and_then(|()| {
            // Calls are counted anew.
            self.notices().serve();
            stages.arrive(Stage::Filled);
            self.wait_for(Stage::Filled, timeout, interrupted)
        });
        filled.inspect_err(|_| self.failure.replace(Error::HalfReset))?;
        self.failure.begin_epoch();
        self.half_reset.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn wait_for(&self, stage: Stage, timeout: Option<Duration>, interrupted: &mut dyn FnMut() -> bool) -> Result<()> {
        let began = Instant::now();
        let mut asked = began;
        loop {
            // Before it looks: a rank that is stopped between the two looks once more.
            let now = Instant::now();
            let missing = Stages(self.notices()).missing(stage);
            if missing.is_empty() {
                return Ok(());
            }
            self.check_here()?;
            if let Some(rank) = self.notices().left(missing).iter().next() {
                return Err(Error::Aborted { rank, cause: Cause::CleanedUp, reason: String::new() });
            }
            if let Some((_, error)) = self.death_of(missing) {
                return Err(error);
            }
            let waited = now - began;
            if timeout.is_some_and(|timeout| waited >= timeout) {
                return Err(Error::ResetTimeout { waited, missing });
            }
            if now - asked >= INTERRUPT_INTERVAL {
                asked = now;
                if interrupted() {
                    return Err(Error::ResetTimeout { waited, missing });
                }
            }
            std::thread::sleep(RESET_INTERVAL);
        }
    }
}
