//! What modules are compiled to. The build script compiles these, the library chooses among them.

use Image::Ptx;

/// One form of a module, as the driver loads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// PTX for a virtual architecture, as NVRTC numbers them. The driver compiles it when it loads it.
    Ptx(u32),
}

impl Image {
    /// All that every module has, in groups of those that are nearly the same: they are compressed together. 90 has
    /// programmatic dependent launch.
    pub const GROUPS: [&[Self]; 1] = [&[Ptx(80), Ptx(90)]];

    /// All, in the order of the groups.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::GROUPS.into_iter().flatten().copied()
    }

    /// Whether a device of compute capability `(major, minor)` can run it.
    pub const fn runs_on(self, (major, minor): (u32, u32)) -> bool {
        match self {
            Self::Ptx(architecture) => architecture <= 10 * major + minor,
        }
    }

    /// What the name of its file ends with.
    pub fn suffix(self) -> String {
        match self {
            Self::Ptx(architecture) => format!("compute_{architecture}.ptx"),
        }
    }
}
