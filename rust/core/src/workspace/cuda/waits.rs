//! How long kernels wait for their peers, as far as the host sees it.

use std::time::{Duration, Instant};

use lamport_rs_protocol::rank_set::RankSet;

/// A kernel that waits says so every 8 ms at least, and the host looks every 5 ms. Who has not said so for longer most
/// likely waits no more.
const SILENCE: Duration = Duration::from_millis(20);

/// An operation that waits, or did so a little ago.
#[derive(Clone, Copy, Debug)]
struct Wait {
    number: u32,
    first_seen: Instant,
    last_seen: Instant,
    missing: RankSet,
    is_told: bool,
}

/// The waits of one rank's kernels: the last one that was seen.
#[derive(Debug, Default)]
pub(super) struct Waits(Option<Wait>);

impl Waits {
    /// One look, at `now`, which has found that an operation of that number waits for these ranks, or that none does. Returns
    /// how long a wait was that seems over, from the first look that found it to the last, and for whom at last. If it goes
    /// on after all, it is returned once more.
    pub(super) fn look(&mut self, now: Instant, waiting: Option<(u32, RankSet)>) -> Option<(Duration, RankSet)> {
        let before = self.0;
        match waiting {
            Some((number, missing)) => {
                let first_seen = before.filter(|wait| wait.number == number).map_or(now, |wait| wait.first_seen);
                self.0 = Some(Wait { number, first_seen, last_seen: now, missing, is_told: false });
            }
            None => self.0.iter_mut().for_each(|wait| wait.is_told |= now - wait.last_seen >= SILENCE),
        }
        let is_over = match (&before, &self.0) {
            (Some(before), Some(wait)) => !before.is_told && (wait.is_told || wait.number != before.number),
            _ => false,
        };
        before.filter(|_| is_over).map(|wait| (wait.last_seen - wait.first_seen, wait.missing))
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
        assert_eq!(look(51, Some(1), 0b100), None);
        assert_eq!(look(80, None, 0), Some((46, 0b100)));
        assert_eq!(look(85, Some(2), 0b10), None);
        assert_eq!(look(90, Some(3), 0b100), Some((0, 0b10)));
        assert_eq!(look(130, Some(3), 0b100), None);
        assert_eq!(look(135, Some(4), 0b10), Some((40, 0b100)));
    }
}
