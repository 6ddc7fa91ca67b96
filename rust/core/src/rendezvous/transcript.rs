//! Whether the transport brought every rank the same messages: all verdicts of the rendezvous rest on that.

use super::Payload;
use crate::error::{Error, Result};
use crate::text::enumerate;
use crate::wire::{Reader, Writer};

/// A digest of all messages that a rank was brought. It finds mistakes of a transport, not forgeries: a transport that
/// means harm can bring whatever digests it likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transcript(u64);

/// FNV-1a: the same in every build, as the hashes of the standard library need not be.
impl Default for Transcript {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Transcript {
    /// Adds what a round brought.
    pub fn add(&mut self, messages: &[Vec<u8>]) {
        for message in messages {
            let length = (message.len() as u64).to_le_bytes();
            for byte in length.iter().chain(message) {
                self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
    }

    /// The digest.
    pub fn digest(self) -> u64 {
        self.0
    }

    /// Whether all ranks, in rank order, were brought the same.
    pub fn check(ranks: &[Self]) -> Result<()> {
        if ranks.iter().all(|rank| *rank == ranks[0]) {
            return Ok(());
        }
        let each = ranks.iter().enumerate().map(|(rank, transcript)| format!("rank {rank} has {:016x}", transcript.0));
        Err(Error::Agreement(format!(
            "the all-gather brought the ranks different messages (digests: {}); it must bring every rank's bytes to \
             every rank",
            enumerate(each, ", ")
        )))
    }
}

impl Payload for Transcript {
    fn encode(&self) -> Vec<u8> {
        Writer::default().u64(self.0).finish()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let transcript = Self(reader.u64()?);
        reader.end().map(|()| transcript)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(messages: &[&[u8]]) -> Transcript {
        let mut transcript = Transcript::default();
        transcript.add(&messages.iter().map(|message| message.to_vec()).collect::<Vec<_>>());
        transcript
    }

    #[test]
    fn other_messages_or_another_order_are_another_transcript() {
        let transcript = of(&[b"one", b"two"]);
        for other in [of(&[b"two", b"one"]), of(&[b"on", b"etwo"]), of(&[b"one"]), of(&[]), of(&[b"one", b"twp"])] {
            let error = Transcript::check(&[transcript, other]).unwrap_err().to_string();
            assert!(error.contains("brought the ranks different messages"), "{error}");
        }
        assert!(Transcript::check(&[transcript, of(&[b"one", b"two"])]).is_ok());
    }

    #[test]
    fn a_transcript_survives_its_encoding_and_takes_no_bytes_but_its_own() {
        let bytes = of(&[b"one"]).encode();
        assert_eq!(Transcript::decode(&bytes), Some(of(&[b"one"])));
        assert_eq!(Transcript::decode(&bytes[1..]), None);
        assert_eq!(Transcript::decode(&[bytes.as_slice(), &[0]].concat()), None);
    }
}
