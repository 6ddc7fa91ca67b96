//! How a rank has ended, and what that means for its group.

use std::fmt;

use super::words::{GONE, NO_LONGER};

/// How a rank has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its program has called `abort`.
    Aborted,
    /// Its program has cleaned its workspace up.
    CleanedUp,
    /// Its process has ended.
    Ended,
    /// An operation has failed there, and peers cannot know how.
    Failed,
}

impl Cause {
    /// Its name in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aborted => "aborted",
            Self::CleanedUp => "cleaned_up",
            Self::Ended => "ended",
            Self::Failed => "failed",
        }
    }

    /// What to do about it.
    pub(super) fn advice(self) -> &'static str {
        match self {
            Self::Aborted | Self::Failed => NO_LONGER,
            Self::CleanedUp | Self::Ended => GONE,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aborted => "has aborted",
            Self::CleanedUp => "has cleaned its workspace up",
            Self::Ended => "has ended",
            Self::Failed => "has failed",
        })
    }
}
