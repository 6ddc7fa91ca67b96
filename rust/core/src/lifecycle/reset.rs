//! Beginning anew, with all ranks.

use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use lamport_rs_protocol::geometry::MAX_WORLD_SIZE;
use lamport_rs_protocol::notices::{NoReset, Stage, Stages};

use super::{Lifecycle, notice};
use crate::error::{Error, Result};
use crate::interrupts::{INTERRUPT_INTERVAL, Interrupted};

/// Between two looks of a rank that waits: peers are late by as much as their devices take to stop.
const RESET_INTERVAL: Duration = Duration::from_micros(100);

impl Lifecycle {
    /// Begins anew, with all ranks: `stop` returns when this rank stores nothing more into its peers' slots, `refill`
    /// when its own slots are as they were at first. The workspace works again then.
    pub(crate) fn reset(
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
        // First: what is cancelled from now on ends the wait.
        let cancellations = self.cancellations();
        stop(&mut *interrupted)?;
        let stages = Stages(self.notices());
        stages.arrive(Stage::Stopped);
        let cancelled = || self.cancelled_since(&cancellations);
        self.wait_for(Stage::Stopped, timeout, interrupted, cancelled).inspect_err(|_| stages.arrive(Stage::None))?;
        // From here on some ranks may have begun anew, and others not.
        self.half_reset.store(true, Ordering::Relaxed);
        let filled = refill().and_then(|()| {
            // Calls are counted anew.
            self.notices().serve();
            stages.arrive(Stage::Filled);
            // The others do not wait any more, and an end now would be one by half.
            self.wait_for(Stage::Filled, timeout, interrupted, || None)
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
        // An abort that came too late to end the wait is told in the epoch that begins.
        fence(Ordering::SeqCst);
        if self.cancellations()[self.rank] != cancellations[self.rank] {
            let notices = self.notices();
            notices.tell(&notices.cancellation(self.rank));
        }
        Ok(())
    }

    /// How often each rank has cancelled what waits.
    fn cancellations(&self) -> [u32; MAX_WORLD_SIZE] {
        let (notices, ranks) = (self.notices(), self.everybody());
        std::array::from_fn(|rank| if ranks.contains(rank) { notices.cancellations(rank) } else { 0 })
    }

    /// Why a rank has done so since it had `before`, if one has.
    fn cancelled_since(&self, before: &[u32; MAX_WORLD_SIZE]) -> Option<Error> {
        let now = self.cancellations();
        let rank = self.everybody().iter().find(|rank| now[*rank] != before[*rank])?;
        Some(notice::read(rank, &self.notices().cancellation(rank)))
    }

    fn wait_for(
        &self,
        stage: Stage,
        timeout: Option<Duration>,
        interrupted: &mut dyn FnMut() -> bool,
        cancelled: impl Fn() -> Option<Error>,
    ) -> Result<()> {
        let began = Instant::now();
        let mut asked = began;
        loop {
            // Before it looks: a rank that is stopped between the two looks once more.
            let (now, cancellation) = (Instant::now(), cancelled());
            let missing = Stages(self.notices()).missing(stage);
            if missing.is_empty() {
                return Ok(());
            }
            self.check_here()?;
            if let Some(error) = cancellation {
                return Err(error);
            }
            if let Some(rank) = self.notices().left(missing).iter().next() {
                return Err(self.departure_of(rank).error);
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
    use std::sync::Barrier;

    use super::*;
    use crate::error::Cause;

    const SHORT: Option<Duration> = Some(Duration::from_millis(20));
    const LONG: Option<Duration> = Some(Duration::from_secs(60));

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

    /// It ends the reset, or it is told after it: whenever it comes once the reset has begun.
    #[test]
    fn no_abort_is_lost_beside_a_reset() {
        let lifecycles = Lifecycle::pair();
        let reset_until_done = |lifecycle: &Lifecycle, begun: &Barrier| {
            let mut heard = false;
            loop {
                let stop = |_: Interrupted<'_>| {
                    if !heard {
                        begun.wait();
                    }
                    Ok(())
                };
                match lifecycle.reset(LONG, &mut || false, stop, || Ok(())) {
                    Ok(()) => return heard,
                    Err(Error::Aborted { cause: Cause::Aborted, .. }) => heard = true,
                    Err(error) => panic!("{error:?}"),
                }
            }
        };
        for round in 0..1000 {
            let begun = &Barrier::new(3);
            std::thread::scope(|scope| {
                let reset = |lifecycle| scope.spawn(move || reset_until_done(lifecycle, begun));
                let resets = lifecycles.each_ref().map(|lifecycle| reset(&**lifecycle));
                begun.wait();
                std::thread::sleep(Duration::from_micros(round % 300));
                lifecycles[0].abort("in between").unwrap();
                let heard = resets.map(|reset| reset.join().unwrap());
                let told = lifecycles.iter().all(|lifecycle| lifecycle.check().is_err());
                assert!(told || heard != [false; 2], "an abort was lost in round {round}");
            });
        }
    }

    #[test]
    fn no_reset_is_advised_when_one_peer_has_left_whoever_is_waited_for() {
        let [one, other] = Lifecycle::pair();
        other.notices().leave();
        assert!(advises_none(&one));
    }
}
