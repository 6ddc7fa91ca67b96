//! Beginning anew, with all ranks.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lamport_rs_protocol::notices::{NoReset, Stage, Stages};

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
        match self.pages.reset_ruled_out() {
            None => {}
            Some(NoReset::PagesMissing) => return Err(Error::PagesMissing),
            Some(NoReset::HalfReset) => return Err(Error::HalfReset),
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
        filled.map_err(|error| {
            self.failure.replace(Error::HalfReset);
            // The others may have begun anew.
            self.notices().rule_out_reset(NoReset::HalfReset);
            // Nobody can repeat what has timed out.
            if matches!(error, Error::ResetTimeout { .. }) { Error::HalfReset } else { error }
        })?;
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
            if let Some((_, error)) = self.death_of(missing, true) {
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

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Option<Duration> = Some(Duration::from_millis(20));

    fn reset(lifecycle: &Lifecycle, refilled: Result<()>) -> Result<()> {
        lifecycle.reset(SHORT, &mut || false, |_| Ok(()), || refilled)
    }

    /// Whether `lifecycle`, whose operation then fails, says that there can be no reset, first and later.
    fn advises_none(lifecycle: &Lifecycle) -> bool {
        let failed = || Error::ResetTimeout { waited: Duration::ZERO, missing: Default::default() };
        lifecycle.fail(&failed());
        let text = lifecycle.check_usable().unwrap_err().to_string();
        assert_ne!(
            text.contains("reset() on every rank"),
            text.ends_with("; create a new one on every rank"),
            "{text}"
        );
        !text.contains("reset() on every rank")
    }

    #[test]
    fn a_reset_is_advised_while_all_ranks_are_there() {
        let [one, other] = Lifecycle::pair();
        assert!(!advises_none(&one) && !advises_none(&other));
    }

    #[test]
    fn no_reset_is_advised_nor_begun_once_one_has_failed_half_way_on_a_peer() {
        let [one, other] = Lifecycle::pair();
        std::thread::scope(|scope| {
            let outcomes = [
                scope.spawn(|| reset(&one, Ok(()))),
                scope.spawn(|| reset(&other, Err(Error::Argument("no memory".into())))),
            ];
            outcomes.into_iter().for_each(|outcome| assert!(outcome.join().unwrap().is_err()));
        });
        for lifecycle in [&one, &other] {
            assert!(matches!(reset(lifecycle, Ok(())), Err(Error::HalfReset)));
            assert!(advises_none(lifecycle));
        }
    }

    /// A rank that has begun anew hears of one that could not.
    #[test]
    fn a_rank_that_has_begun_anew_knows_that_a_peer_takes_part_in_no_other_reset() {
        let [one, other] = Lifecycle::pair();
        Stages(other.notices()).arrive(Stage::Filled);
        reset(&one, Ok(())).unwrap();
        Stages(one.notices()).arrive(Stage::None);
        assert!(!advises_none(&one));
        other.notices().rule_out_reset(NoReset::HalfReset);
        assert!(advises_none(&one));
        assert!(matches!(reset(&one, Ok(())), Err(Error::HalfReset)));
    }

    #[test]
    fn no_reset_is_advised_when_one_peer_has_left_whoever_is_waited_for() {
        let [one, other] = Lifecycle::pair();
        other.notices().leave();
        assert!(advises_none(&one));
    }
}
