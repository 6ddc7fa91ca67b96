//! The messages: 512 bytes, little-endian, the same in every version.
//!
//! | bytes | what |
//! | --- | --- |
//! | 0 … 8 | `"LAMPORT\0"` |
//! | 8 … 12 | format, [`FORMAT`] |
//! | 12 … 16 | step of the rendezvous |
//! | 16 … 24 | rank that the sender was told |
//! | 24 … 28 | 0: payload, 1: failure |
//! | 28 … 32 | length of what follows |
//! | 32 … 512 | payload, or UTF-8 text of the failure |
//!
//! A message is whatever a peer chose to send: decoding it allocates no more than it has bytes, and believes nothing.

use crate::text::legible;
use crate::wire::{Reader, Writer};

/// Bytes per message: fixed for ever, so that different versions can at least tell each other so.
pub const MESSAGE_BYTES: usize = 512;
const HEADER_BYTES: usize = 32;
const MAGIC: [u8; 8] = *b"LAMPORT\0";
/// Raised when the header or a payload changes its meaning, or when ranks come to another round.
pub const FORMAT: u32 = 6;

/// Something that travels in a message.
pub trait Payload: Sized {
    /// At most 480 bytes.
    fn encode(&self) -> Vec<u8>;
    /// The inverse; `None` if the bytes are no such thing.
    fn decode(bytes: &[u8]) -> Option<Self>;
}

/// Agreement without content.
impl Payload for () {
    fn encode(&self) -> Vec<u8> {
        Vec::new()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.is_empty().then_some(())
    }
}

pub(super) enum Body {
    Payload(Vec<u8>),
    Failure(String),
}

/// Why a message cannot be read.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub reason: String,
    /// The sender runs another version, in which the rounds may be others.
    pub is_of_another_version: bool,
}

impl From<String> for Unreadable {
    fn from(reason: String) -> Self {
        Self { reason, is_of_another_version: false }
    }
}

pub(super) struct Message {
    pub rank: i64,
    pub step: u32,
    pub body: Body,
}

impl Message {
    pub fn encode(&self) -> Vec<u8> {
        let room = MESSAGE_BYTES - HEADER_BYTES;
        let (kind, content) = match &self.body {
            Body::Payload(bytes) => (0_u32, bytes.as_slice()),
            Body::Failure(reason) => (1, &reason.as_bytes()[..reason.floor_char_boundary(room)]),
        };
        assert!(content.len() <= room, "a payload of {} bytes does not fit into a message", content.len());
        let mut writer = Writer::default();
        writer.bytes(&MAGIC).u32(FORMAT).u32(self.step).u64(self.rank as u64).u32(kind).u32(content.len() as u32);
        let mut bytes = writer.bytes(content).finish();
        bytes.resize(MESSAGE_BYTES, 0);
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let unreadable =
            || Unreadable::from("its message is not one of lamport-rs; do all ranks run the same version?".to_owned());
        if bytes.len() != MESSAGE_BYTES {
            return Err(format!("its message has {} bytes instead of {MESSAGE_BYTES}", bytes.len()).into());
        }
        let mut reader = Reader::new(bytes);
        if reader.bytes(MAGIC.len()) != Some(&MAGIC) {
            return Err(unreadable());
        }
        let format = reader.u32().ok_or_else(unreadable)?;
        if format != FORMAT {
            let reason = format!("it runs a version of lamport-rs with message format {format} instead of {FORMAT}");
            return Err(Unreadable { reason, is_of_another_version: true });
        }
        let step = reader.u32().ok_or_else(unreadable)?;
        let rank = reader.u64().ok_or_else(unreadable)? as i64;
        let kind = reader.u32().ok_or_else(unreadable)?;
        let length = reader.u32().ok_or_else(unreadable)? as usize;
        let content = reader.bytes(length).ok_or_else(unreadable)?;
        let body = match kind {
            0 => Body::Payload(content.to_vec()),
            1 => Body::Failure(legible(&String::from_utf8_lossy(content), MESSAGE_BYTES - HEADER_BYTES)),
            _ => return Err(unreadable()),
        };
        Ok(Self { rank, step, body })
    }
}
