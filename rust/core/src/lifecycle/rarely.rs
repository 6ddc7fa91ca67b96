//! What is done at intervals, by a caller that comes far more often.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Says when the next time has come.
#[derive(Debug)]
pub(super) struct Rarely {
    interval: Duration,
    /// Milliseconds of the clock, from which on it has.
    next: AtomicI64,
}

impl Rarely {
    /// Once in `interval`, at first when one is over.
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, next: AtomicI64::new(after(interval)) }
    }

    /// Whether it has; the one after it is an interval away then.
    #[inline]
    pub(super) fn is_due(&self) -> bool {
        let is_due = now() >= self.next.load(Ordering::Relaxed);
        if is_due {
            self.next.store(after(self.interval), Ordering::Relaxed);
        }
        is_due
    }
}

fn after(interval: Duration) -> i64 {
    now() + interval.as_millis() as i64
}

/// Milliseconds, some 4 late. To read the exact clock is a system call where the processor's counter is no clock, as on
/// some virtual machines.
#[inline]
fn now() -> i64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    now.tv_sec * 1000 + now.tv_nsec / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_due_once_in_an_interval() {
        let interval = Duration::from_millis(40);
        let rarely = Rarely::new(interval);
        assert!(!rarely.is_due());
        std::thread::sleep(interval + Duration::from_millis(20));
        assert!(rarely.is_due());
        assert!(!rarely.is_due());
    }
}
