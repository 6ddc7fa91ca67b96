//! Numbers and texts as bytes: how what ranks tell each other is written and read. Little-endian.

use crate::text::legible;

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
