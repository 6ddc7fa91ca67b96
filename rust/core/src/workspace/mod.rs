//! A group's workspace: its memory, its table and its state.
//!
//! | module | concept |
//! | --- | --- |
//! | [`construct`] | allocate → fill → exchange → map → verify → agree |
//! | [`hello`] | what ranks tell each other first, and the mismatches that are errors |
//! | [`host`] | the workspace over shared memory |
//! | [`buffer`] | plain memory that crosses processes, without the protocol |

pub mod buffer;
pub mod construct;
pub mod hello;
pub mod host;

use std::time::Duration;

/// What a workspace is created from. Checked by the constructor, whose errors reach all ranks.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// This rank.
    pub rank: i64,
    /// Ranks in the group.
    pub world_size: i64,
    /// Bytes per slot.
    pub comm_size: i64,
    /// How long an operation waits for its peers; `None` for ever.
    pub timeout: Option<Duration>,
}
