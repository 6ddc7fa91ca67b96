//! What modules are compiled to. The build script compiles these, the library chooses among them.

use Image::{MachineCode, Ptx};

/// One form of a module, as the driver loads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// PTX for a virtual architecture, as NVRTC numbers them. The driver compiles it when it loads it.
    Ptx(u32),
    /// Machine code for an architecture, which the driver loads as it is.
    MachineCode(u32),
}

impl Image {
    /// All that every module has, in groups of those that are nearly the same: they are compressed together. 90 has
    /// programmatic dependent launch.
    pub const GROUPS: [&[Self]; 3] = [&[Ptx(80), Ptx(90)], &[MachineCode(90)], &[MachineCode(100)]];

    /// All, in the order of the groups.
    pub fn all() -> impl Iterator<Item = Self> + Clone {
        Self::GROUPS.into_iter().flatten().copied()
    }

    /// Whether a device of compute capability `(major, minor)` can run it.
    pub const fn runs_on(self, (major, minor): (u32, u32)) -> bool {
        match self {
            Self::Ptx(architecture) => architecture <= 10 * major + minor,
            Self::MachineCode(architecture) => architecture / 10 == major && architecture % 10 <= minor,
        }
    }

    /// The PTX that it is made of: the newest one for its architecture.
    pub fn source(self) -> Option<Self> {
        match self {
            Self::Ptx(_) => None,
            Self::MachineCode(architecture) => {
                let is_source =
                    |image: &Self| matches!(image, Ptx(_)) && image.runs_on((architecture / 10, architecture % 10));
                Self::all().filter(is_source).last()
            }
        }
    }

    /// The name of its architecture.
    pub fn architecture(self) -> String {
        match self {
            Self::Ptx(architecture) => format!("compute_{architecture}"),
            Self::MachineCode(architecture) => format!("sm_{architecture}"),
        }
    }
}
