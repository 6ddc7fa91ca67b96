//! A group's workspace: its memory, its table and its state.
//!
//! | module | concept |
//! | --- | --- |
//! | [`construct`] | allocate → fill → exchange → map → agree |
//! | [`hello`] | what ranks tell each other first, and the mismatches that are errors |
//! | [`host`] | the workspace over shared memory |
//! | [`cuda`] | the workspace over device memory |
//! | [`buffer`] | plain memory that crosses processes, without the protocol |

pub mod buffer;
pub mod construct;
pub mod cuda;
pub mod hello;
pub mod host;

use std::time::Duration;

use lamport_rs_protocol::exchange::Member;
use lamport_rs_protocol::geometry::Geometry;

use crate::error::{Error, Result};

/// What a workspace is created from. Checked by the constructor, whose errors reach all ranks.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// This rank.
    pub rank: i64,
    /// Ranks in the group.
    pub world_size: i64,
    /// Bytes per slot.
    pub comm_size: i64,
    /// How long an operation waits for its peers, in seconds; 0 for ever.
    pub timeout: f64,
}

impl Settings {
    /// The member and its timeout, or what is wrong with them.
    pub(crate) fn check(&self) -> Result<(Member, Option<Duration>)> {
        let geometry = Geometry::new(self.world_size, self.comm_size)?;
        Ok((Member { rank: geometry.check_rank(self.rank)?, geometry }, self.timeout()?))
    }

    /// `None` for ever.
    fn timeout(&self) -> Result<Option<Duration>> {
        let timeout = Duration::try_from_secs_f64(self.timeout).map_err(|_| {
            Error::Argument(format!("timeout is {} seconds, but must be 0 (no limit) or positive", self.timeout))
        })?;
        Ok(Some(timeout).filter(|timeout| !timeout.is_zero()))
    }
}
