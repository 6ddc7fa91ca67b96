//! How a communicator is created.

use std::time::Duration;

use lamport_rs_core::workspace::Settings;
use lamport_rs_protocol::geometry::{GeometryError, all_reduce_comm_size, comm_size_within};

/// The largest tensor that goes in one piece, and the most memory, where nobody says a size. As in Python.
const DEFAULT_MAX_BYTES: i64 = 8 << 20;
const DEFAULT_MEMORY: i64 = 64 << 20;

/// How long operations wait where nobody says: long enough for a first pass in which one of the ranks compiles. As in
/// Python.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);

/// How a [communicator](crate) is created: the same on every rank.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    comm_size: Option<usize>,
    timeout: Option<Duration>,
    two_shot_from: Option<usize>,
}

impl Default for Options {
    /// Tensors of up to 8 MiB in one piece, within 64 MiB of memory; operations wait for 300 seconds.
    fn default() -> Self {
        Self { comm_size: None, timeout: Some(DEFAULT_TIMEOUT), two_shot_from: None }
    }
}

impl Options {
    /// The bytes of a slot. A rank takes about three times as much memory. Longer tensors take several steps.
    pub fn comm_size(self, bytes: usize) -> Self {
        Self { comm_size: Some(bytes), ..self }
    }

    /// How long an operation waits for the other ranks, and so do ranks for each other's memory while they create a
    /// communicator; `None` for ever.
    pub fn timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        Self { timeout: timeout.into(), ..self }
    }

    /// The bytes of a tensor from which each rank sums a part of it, instead of all. As measured, if nobody says so.
    pub fn two_shot_from(self, bytes: usize) -> Self {
        Self { two_shot_from: Some(bytes), ..self }
    }

    /// As the core takes it. What is wrong with the numbers is for the construction to say, on all ranks.
    pub(crate) fn settings(&self, rank: usize, world_size: usize) -> Settings {
        let number = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        let comm_size = match self.comm_size {
            Some(bytes) => number(bytes),
            None => default_comm_size(number(world_size)).unwrap_or(DEFAULT_MAX_BYTES),
        };
        // Less than a nanosecond would mean for ever.
        let timeout = self.timeout.map_or(0.0, |timeout| timeout.as_secs_f64().max(1e-9));
        let two_shot_from = self.two_shot_from.map(number);
        Settings { rank: number(rank), world_size: number(world_size), comm_size, timeout, two_shot_from }
    }
}

fn default_comm_size(world_size: i64) -> Result<i64, GeometryError> {
    let wanted = all_reduce_comm_size(DEFAULT_MAX_BYTES, world_size)? as i64;
    Ok(wanted.min(comm_size_within(DEFAULT_MEMORY, world_size)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_the_group_where_nobody_says_one() {
        let [two, sixteen] = [2, 16].map(|ranks| Options::default().settings(0, ranks).comm_size);
        assert!(two >= 2 * DEFAULT_MAX_BYTES, "{two}");
        assert!(3 * two.max(sixteen) <= DEFAULT_MEMORY, "{two} {sixteen}");
        assert_eq!(Options::default().comm_size(4096).settings(0, 2).comm_size, 4096);
    }

    #[test]
    fn no_timeout_is_for_ever_and_none_at_all_is_short() {
        assert_eq!(Options::default().settings(0, 2).timeout, DEFAULT_TIMEOUT.as_secs_f64());
        assert_eq!(Options::default().timeout(None).settings(0, 2).timeout, 0.0);
        assert!(Options::default().timeout(Duration::ZERO).settings(0, 2).timeout > 0.0);
    }
}
