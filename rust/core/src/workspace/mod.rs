//! A group's workspace: its memory, its table and its state.
//!
//! | module | concept |
//! | --- | --- |
//! | [`host`] | the workspace over shared memory |
//! | [`exclusive`] | who may use it: one operation at a time |
//! | `cuda` | the workspace over device memory |
//! | [`buffer`] | plain memory that crosses processes, without the protocol |

pub mod buffer;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod exclusive;
pub mod host;

use std::time::Duration;

use lamport_rs_protocol::exchange::{Awaited, Member};
use lamport_rs_protocol::geometry::Geometry;
use lamport_rs_protocol::sentinel::SENTINEL;

use crate::error::{Error, Result};
use crate::rendezvous::construct::Request;

/// What a workspace is created from. Checked by the constructor, whose errors reach all ranks.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// This rank.
    pub rank: i64,
    /// Ranks in the group.
    pub world_size: i64,
    /// Bytes per slot.
    pub comm_size: i64,
    /// How long an operation waits for its peers, and so do the ranks for each other's mappings when they create the
    /// workspace. In seconds; 0 or infinite for ever.
    pub timeout: f64,
    /// Bytes of a tensor from which it is summed in two shots, where the caller leaves the choice; `None`: as measured.
    pub two_shot_from: Option<i64>,
}

impl Settings {
    /// The member and its timeout, or what is wrong with them.
    pub(crate) fn check(&self) -> Result<(Member, Option<Duration>)> {
        let geometry = Geometry::new(self.world_size, self.comm_size)?;
        if let Some(bytes) = self.two_shot_from.filter(|bytes| *bytes < 0) {
            return Err(Error::Argument(format!("two_shot_from is {bytes} bytes, but must not be negative")));
        }
        Ok((Member { rank: geometry.check_rank(self.rank)?, geometry }, timeout_of(self.timeout)?))
    }

    /// The blocks that `member` asks for, of `bytes` bytes, full of the sentinel. Checked before.
    pub(crate) fn request(
        &self,
        Member { rank, geometry }: Member,
        timeout: Option<Duration>,
        bytes: usize,
    ) -> Request {
        Request {
            rank,
            world_size: geometry.world_size(),
            bytes,
            word: SENTINEL,
            comm_size: geometry.comm_size(),
            size_name: "comm_size",
            two_shot_from: self.two_shot_from,
            has_operations: true,
            timeout,
        }
    }

    /// Checked before.
    pub(crate) fn two_shot_from(&self) -> Option<usize> {
        self.two_shot_from.map(|bytes| bytes as usize)
    }
}

/// A limit of `seconds`, 0 or infinite for none.
pub fn timeout_of(seconds: f64) -> Result<Option<Duration>> {
    if seconds.is_nan() || seconds < 0.0 {
        return Err(Error::Argument(format!(
            "timeout is {seconds} seconds, but must be positive, or 0 or infinite for no limit"
        )));
    }
    if seconds == 0.0 || seconds.is_infinite() {
        return Ok(None);
    }
    // A limit stays one, however short or long: what rounds to 0 must not mean "no limit".
    Ok(Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX).max(Duration::from_nanos(1))))
}

/// How long a reset waits for a peer whose kernels must have given up.
const RESET_SLACK: Duration = Duration::from_secs(30);

/// How long the ranks wait for each other in a reset where nobody says, if their operations wait for `timeout`: until
/// kernels that wait for what a peer was to pass on have given up, and some time more. `None`: for ever.
pub fn reset_timeout(timeout: Option<Duration>) -> Option<Duration> {
    timeout.map(|timeout| Awaited::SecondHand.limit(timeout).saturating_add(RESET_SLACK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_waits_until_kernels_have_given_up_and_longer() {
        assert_eq!(reset_timeout(Some(Duration::from_secs(300))), Some(Duration::from_secs(480)));
        assert_eq!(reset_timeout(Some(Duration::MAX)), Some(Duration::MAX));
        assert_eq!(reset_timeout(None), None);
    }

    fn timeout(timeout: f64) -> Result<Option<Duration>> {
        Settings { rank: 0, world_size: 2, comm_size: 4096, timeout, two_shot_from: None }
            .check()
            .map(|(_, timeout)| timeout)
    }

    #[test]
    fn every_timeout_but_none_is_a_limit_and_what_is_no_time_is_refused() {
        assert_eq!(timeout(1.5).unwrap(), Some(Duration::from_millis(1500)));
        for no_limit in [0.0, -0.0, f64::INFINITY] {
            assert_eq!(timeout(no_limit).unwrap(), None);
        }
        for short in [1e-10, 5e-10, f64::MIN_POSITIVE] {
            assert_eq!(timeout(short).unwrap(), Some(Duration::from_nanos(1)), "{short}");
        }
        for long in [1e20, 1e300, f64::MAX] {
            assert_eq!(timeout(long).unwrap(), Some(Duration::MAX), "{long}");
        }
        for wrong in [f64::NAN, -1.0, -1e-10, f64::NEG_INFINITY] {
            let error = timeout(wrong).unwrap_err().to_string();
            assert!(error.contains("must be positive, or 0 or infinite for no limit"), "{error}");
        }
    }
}
