//! What a notice says: why a rank has ended, as words for its peers. Peers' bytes are believed nothing: each reads what
//! it makes sense of.

use std::time::Duration;

use lamport_rs_protocol::header::Header;
use lamport_rs_protocol::notices::NOTICE_WORDS;
use lamport_rs_protocol::rank_set::RankSet;

use crate::error::{Cause, Error};
use crate::operations::description::Operation;
use crate::text::legible;

const ABORTED: u32 = 1;
const CLEANED_UP: u32 = 2;
const ENDED: u32 = 3;
const FAILED: u32 = 4;
const TIMEOUT: u32 = 5;
const MISMATCH: u32 = 6;
const REFUSED: u32 = 7;

// Words of a notice.
const KIND: usize = 0;
const ABOUT: usize = 1;
const MISSING: usize = 2;
const MILLISECONDS: usize = 3;
const OWN: usize = 4;
const THEIRS: usize = 8;
const TEXT_BYTES: usize = 12;
const TEXT: usize = 13;
/// Bytes of a text, at most.
const MOST_TEXT: usize = (NOTICE_WORDS - TEXT) * size_of::<u32>();

/// A notice in words. Made without allocating, so that a signal's handler can make one.
pub struct Notice([u32; NOTICE_WORDS]);

impl Notice {
    /// That `rank` has ended for `cause`, and why.
    pub fn ended(rank: usize, cause: Cause, reason: &str) -> Self {
        let kind = match cause {
            Cause::Aborted => ABORTED,
            Cause::CleanedUp => CLEANED_UP,
            Cause::Ended => ENDED,
            Cause::Failed => FAILED,
        };
        let mut words = [0; NOTICE_WORDS];
        (words[KIND], words[ABOUT]) = (kind, rank as u32);
        let text = &reason.as_bytes()[..reason.floor_char_boundary(MOST_TEXT)];
        words[TEXT_BYTES] = text.len() as u32;
        for (at, bytes) in text.chunks(size_of::<u32>()).enumerate() {
            let mut word = [0; size_of::<u32>()];
            word[..bytes.len()].copy_from_slice(bytes);
            words[TEXT + at] = u32::from_le_bytes(word);
        }
        Self(words)
    }

    /// That an operation of `rank` has failed with `error`.
    pub fn failed(rank: usize, error: &Error) -> Self {
        let mut words = [0; NOTICE_WORDS];
        let mut put = |at: usize, header: Header| words[at..at + header.len()].copy_from_slice(&header);
        match error.itself() {
            Error::Timeout { rank, operation, waited, missing } => {
                put(OWN, operation.0);
                (words[KIND], words[ABOUT]) = (TIMEOUT, *rank as u32);
                words[MISSING] = missing.0.into();
                words[MILLISECONDS] = u32::try_from(waited.as_millis()).unwrap_or(u32::MAX);
            }
            Error::Mismatch { rank, own, peer, theirs } => {
                put(OWN, own.0);
                put(THEIRS, theirs.0);
                (words[KIND], words[ABOUT], words[MISSING]) = (MISMATCH, *rank as u32, *peer as u32);
            }
            Error::PeerRefused { rank, operation, peer } => {
                put(OWN, operation.0);
                (words[KIND], words[ABOUT], words[MISSING]) = (REFUSED, *rank as u32, *peer as u32);
            }
            Error::Aborted { rank, cause, reason } => return Self::ended(*rank, *cause, reason),
            other => return Self::ended(rank, Cause::Failed, &other.reason()),
        }
        Self(words)
    }

    /// What the words say.
    pub fn words(&self) -> &[u32] {
        &self.0
    }
}

/// The error that a notice of rank `sender` is for those who read it.
pub fn read(sender: usize, words: &[u32; NOTICE_WORDS]) -> Error {
    let header = |at: usize| Operation([words[at], words[at + 1], words[at + 2], words[at + 3]]);
    let rank_at = |at: usize| words[at] as usize;
    let ended = |cause| Error::Aborted { rank: rank_at(ABOUT), cause, reason: text(words) };
    match words[KIND] {
        ABORTED => ended(Cause::Aborted),
        CLEANED_UP => ended(Cause::CleanedUp),
        ENDED => ended(Cause::Ended),
        TIMEOUT => Error::Timeout {
            rank: rank_at(ABOUT),
            operation: header(OWN),
            waited: Duration::from_millis(words[MILLISECONDS].into()),
            missing: RankSet(words[MISSING] as u16),
        },
        MISMATCH => {
            Error::Mismatch { rank: rank_at(ABOUT), own: header(OWN), peer: rank_at(MISSING), theirs: header(THEIRS) }
        }
        REFUSED => Error::PeerRefused { rank: rank_at(ABOUT), operation: header(OWN), peer: rank_at(MISSING) },
        FAILED => ended(Cause::Failed),
        _ => Error::Aborted { rank: sender, cause: Cause::Failed, reason: "its notice cannot be read".into() },
    }
}

fn text(words: &[u32; NOTICE_WORDS]) -> String {
    let bytes: Vec<u8> = words[TEXT..].iter().flat_map(|word| word.to_le_bytes()).collect();
    let length = (words[TEXT_BYTES] as usize).min(MOST_TEXT);
    legible(&String::from_utf8_lossy(&bytes[..length]), MOST_TEXT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn returned(error: &Error) -> Error {
        read(1, Notice::failed(1, error).words().try_into().unwrap())
    }

    #[test]
    fn what_ranks_know_by_name_arrives_as_it_was() {
        let (own, theirs) = (Operation([1, 2, 3, 4]), Operation([5, 6, 7, 8]));
        let all = [
            Error::Timeout { rank: 2, operation: own, waited: Duration::from_millis(30_001), missing: RankSet(0b1010) },
            Error::Mismatch { rank: 1, own, peer: 3, theirs },
            Error::PeerRefused { rank: 2, operation: own, peer: 0 },
            Error::Aborted { rank: 2, cause: Cause::Aborted, reason: "out of memory: \u{e9}".into() },
            Error::Aborted { rank: 2, cause: Cause::Ended, reason: "process 12".into() },
            Error::Aborted { rank: 2, cause: Cause::CleanedUp, reason: String::new() },
        ];
        for error in all {
            assert_eq!(format!("{:?}", returned(&error)), format!("{error:?}"));
            // What this rank may advise is not what its peers may.
            assert_eq!(format!("{:?}", returned(&error.clone().without_reset())), format!("{error:?}"));
        }
    }

    #[test]
    fn another_failure_arrives_as_its_text_and_a_long_one_is_cut() {
        let driver = Error::system("cuLaunchKernel", "no such device");
        let Error::Aborted { rank: 1, cause: Cause::Failed, reason } = returned(&driver) else { panic!() };
        assert_eq!(reason, driver.to_string());
        let interrupted = Error::Interrupted { operation: Operation([1, 2, 3, 4]), missing: RankSet(1) };
        let Error::Aborted { reason, .. } = returned(&interrupted) else { panic!() };
        assert!(reason.ends_with("interrupted while waiting for rank 0"), "{reason}");
        let long = "\u{e9}".repeat(MOST_TEXT);
        let Error::Aborted { reason, .. } = returned(&Error::Argument(long)) else { panic!() };
        assert!(reason.len() <= MOST_TEXT && reason.len() > MOST_TEXT - 4, "{}", reason.len());
    }

    #[test]
    fn bytes_that_are_no_notice_are_an_error_that_names_the_sender() {
        for fill in [0, 9, u32::MAX] {
            let error = read(3, &[fill; NOTICE_WORDS]);
            assert!(matches!(error, Error::Aborted { rank: 3, cause: Cause::Failed, .. }), "{error:?}");
        }
        let mut words = [u32::MAX; NOTICE_WORDS];
        words[KIND] = ABORTED;
        assert!(read(3, &words).to_string().len() < 2000);
    }
}
