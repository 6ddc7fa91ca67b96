//! Element types.

/// The element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 binary32.
    Float32,
    /// IEEE 754 binary16.
    Float16,
    /// The upper half of a binary32.
    BFloat16,
    /// FP8 with four bits of exponent, without infinities. Results only.
    Float8E4M3,
    /// Bytes of a format that has no dtype of its own. Results only.
    UInt8,
    /// Four such bytes. Results only.
    Int32,
}

impl Dtype {
    /// Those that operations compute with, in the order in which ranks tell each other of them.
    pub const ALL: [Self; 3] = [Self::Float32, Self::Float16, Self::BFloat16];

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::Float32 | Self::Int32 => 4,
            Self::Float16 | Self::BFloat16 => 2,
            Self::Float8E4M3 | Self::UInt8 => 1,
        }
    }

    /// The bytes of a NaN in memory. Bytes without a dtype of their own have none, and all bits set.
    pub const fn nan(self) -> &'static [u8] {
        match self {
            Self::Float32 => &[0x00, 0x00, 0xc0, 0x7f],
            Self::Float16 => &[0x00, 0x7e],
            Self::BFloat16 => &[0xc0, 0x7f],
            Self::Float8E4M3 => &[0x7f],
            Self::UInt8 => &[0xff],
            Self::Int32 => &[0xff; 4],
        }
    }

    /// The name that PyTorch gives it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::BFloat16 => "bfloat16",
            Self::Float8E4M3 => "float8_e4m3fn",
            Self::UInt8 => "uint8",
            Self::Int32 => "int32",
        }
    }

    /// The one of that name, of those.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// The type of `numeric.cuh` that stands for it.
    pub(crate) const fn cuda_name(self) -> &'static str {
        match self {
            Self::Float32 => "Float32",
            Self::Float16 => "Float16",
            Self::BFloat16 => "BFloat16",
            Self::Float8E4M3 | Self::UInt8 | Self::Int32 => panic!("no kernel is compiled for it"),
        }
    }
}
