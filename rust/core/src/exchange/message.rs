//! The messages: 512 bytes, little-endian, the same in every version.
//!
//! | bytes | what |
//! | --- | --- |
//! | 0 … 8 | `"LAMPORT\0"` |
//! | 8 … 12 | format, [`FORMAT`] |
//! | 12 … 16 | step of the exchange |
//! | 16 … 24 | rank that the sender was told |
//! | 24 … 28 | 0: payload, 1: failure |
//! | 28 … 32 | length of what follows |
//! | 32 … 512 | payload, or UTF-8 text of the failure |
//!
//! A message is whatever a peer chose to send: decoding it allocates no more than it has bytes, and believes nothing.

use super::text::legible;

/// Bytes per message: fixed for ever, so that different versions can at least tell each other so.
pub const MESSAGE_BYTES: usize = 512;
const HEADER_BYTES: usize = 32;
const MAGIC: [u8; 8] = *b"LAMPORT\0";
/// Raised when the header or a payload changes its meaning.
const FORMAT: u32 = 4;

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

    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let unreadable = || "its message is not one of lamport-rs; do all ranks run the same version?".to_owned();
        if bytes.len() != MESSAGE_BYTES {
            return Err(format!("its message has {} bytes instead of {MESSAGE_BYTES}", bytes.len()));
        }
        let mut reader = Reader::new(bytes);
        if reader.bytes(MAGIC.len()) != Some(&MAGIC) {
            return Err(unreadable());
        }
        let format = reader.u32().ok_or_else(unreadable)?;
        if format != FORMAT {
            return Err(format!("it runs a version of lamport-rs with message format {format} instead of {FORMAT}"));
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

/// Writes fields one after the other.
#[derive(Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// Raw bytes, without their length.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A number.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// A number.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// A number.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// A text of at most `most` bytes; longer ones are cut.
    pub fn text(&mut self, text: &str, most: u8) -> &mut Self {
        let text = &text[..text.floor_char_boundary(most.into())];
        self.bytes(&[text.len() as u8]).bytes(text.as_bytes())
    }

    /// What was written.
    pub fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

/// Reads fields one after the other; `None` where the bytes end early.
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads from `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next `length` raw bytes.
    pub fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    /// The next number.
    pub fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.bytes(2)?.try_into().ok()?))
    }

    /// The next number.
    pub fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes(4)?.try_into().ok()?))
    }

    /// The next number.
    pub fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(8)?.try_into().ok()?))
    }

    /// The next text, of at most `most` bytes, with escapes for what is not to be seen in a text.
    pub fn text(&mut self, most: u8) -> Option<String> {
        let length = *self.bytes(1)?.first()?;
        if length > most {
            return None;
        }
        let text = str::from_utf8(self.bytes(length.into())?).ok()?;
        Some(legible(text, most.into()))
    }

    /// The end: nothing is left to read.
    pub fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}
