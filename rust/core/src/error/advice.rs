//! What errors advise: a reset, where there can be one.

use super::words::NO_LONGER;
use super::{Cause, Error};

impl Error {
    /// What later operations raise after this one.
    pub fn failed_earlier(&self) -> Self {
        let is_gone = matches!(self, Self::Aborted { cause: Cause::CleanedUp | Cause::Ended, .. });
        let can_reset = !is_gone && !matches!(self, Self::HalfReset | Self::PagesMissing);
        Self::Failed { first: self.reason(), can_reset }
    }

    /// The same error, with other advice where this one says to reset: there can be none.
    pub fn without_reset(self) -> Self {
        match self {
            Self::Failed { first, .. } => Self::Failed { first, can_reset: false },
            error if error.to_string().ends_with(NO_LONGER) => Self::WithoutReset(Box::new(error)),
            error => error,
        }
    }

    /// The error, whatever it advises.
    pub fn itself(&self) -> &Self {
        match self {
            Self::WithoutReset(error) => error,
            error => error,
        }
    }
}
