//! How long kernels wait for their peers, as far as the host sees it.

use std::time::{Duration, Instant};

use lamport_rs_protocol::rank_set::RankSet;

/// A kernel that waits says so every 8 ms at least, and the host looks every 5 ms. Who has not said so for longer does not
/// wait any more.
const SILENCE: Duration = Duration::from_millis(20);

/// An operation that waits, or did so a little ago.
#[derive(Clone, Copy, Debug)]
struct Wait {
    number: u32,
    first_seen: Instant,
    last_seen: Instant,
    missing: RankSet,
}

/// The waits of one rank's kernels.
#[derive(Debug, Default)]
pub(super) struct Waits(Option<Wait>);

impl Waits {
    /// One look, at `now`, which has found that an operation of that number waits for these ranks, or that none does. Returns
    /// how long a wait was that is over, from the first look that found it to the last, and for whom at last.
    pub(super) fn look(&mut self, now: Instant, waiting: Option<(u32, RankSet)>) -> Option<(Duration, RankSet)> {
        let goes_on = self.0.is_some_and(|wait| match waiting {
            Some((number, _)) => number == wait.number,
            None => now - wait.last_seen < SILENCE,
        });
        let over = if goes_on { None } else { self.0.take() };
        if let Some((number, missing)) = waiting {
            let wait = self.0.get_or_insert(Wait { number, first_seen: now, last_seen: now, missing });
            (wait.last_seen, wait.missing) = (now, missing);
        }
        over.map(|wait| (wait.last_seen - wait.first_seen, wait.missing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_lasts_from_its_first_look_to_its_last_and_is_over_when_none_or_another_is_seen() {
        let (mut waits, began) = (Waits::default(), Instant::now());
        let mut look = |milliseconds, number: Option<u32>, missing| {
            let over = waits.look(began + Duration::from_millis(milliseconds), number.map(|it| (it, RankSet(missing))));
            over.map(|(waited, missing)| (waited.as_millis(), missing.0))
        };
        assert_eq!(look(0, None, 0), None);
        assert_eq!(look(5, Some(1), 0b110), None);
        assert_eq!(look(15, Some(1), 0b110), None);
        assert_eq!(look(25, Some(1), 0b100), None);
        assert_eq!(look(40, None, 0), None);
        assert_eq!(look(45, None, 0), Some((20, 0b100)));
        assert_eq!(look(50, None, 0), None);
        assert_eq!(look(55, Some(2), 0b10), None);
        assert_eq!(look(60, Some(3), 0b100), Some((0, 0b10)));
        assert_eq!(look(100, Some(3), 0b100), None);
        assert_eq!(look(105, Some(4), 0b10), Some((40, 0b100)));
    }
}
