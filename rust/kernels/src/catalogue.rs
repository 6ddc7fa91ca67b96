//! The modules there are. The build script compiles this list, the library looks modules up in it.
//!
//! A module holds one function, for one choice of dtypes and one variant: the driver compiles all of a module when it
//! is loaded, and the first operation waits for that.

use std::ffi::CStr;

use crate::dtype::Dtype::{self, BFloat16, Float16, Float32};
use crate::variants::{MINIMAX_VARIANTS, MinimaxVariant};

/// Names a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ModuleKey {
    /// Writes the sentinel over memory.
    Fill,
    /// Verifies by transfer that peer writes arrive.
    Verify,
    /// MiniMax normalisation of one matrix.
    MinimaxRms(MinimaxKernel),
    /// MiniMax normalisation of two: queries and keys.
    MinimaxRmsQk(MinimaxKernel),
}

/// A MiniMax kernel among those for as many matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MinimaxKernel {
    /// Of inputs and outputs.
    pub dtype: Dtype,
    /// Of the weights: the same, or float32.
    pub weight: Dtype,
    /// One of [`MINIMAX_VARIANTS`].
    pub variant: MinimaxVariant,
}

impl MinimaxKernel {
    fn all() -> impl Iterator<Item = Self> {
        let dtypes =
            [(Float32, Float32), (Float16, Float16), (Float16, Float32), (BFloat16, BFloat16), (BFloat16, Float32)];
        dtypes.into_iter().flat_map(|(dtype, weight)| MINIMAX_VARIANTS.map(|variant| Self { dtype, weight, variant }))
    }
}

impl ModuleKey {
    /// Every module, in a fixed order.
    pub fn all() -> impl Iterator<Item = Self> {
        [Self::Fill, Self::Verify]
            .into_iter()
            .chain(MinimaxKernel::all().map(Self::MinimaxRms))
            .chain(MinimaxKernel::all().map(Self::MinimaxRmsQk))
    }

    /// The module's one function. The source is `kernels/<function>.cu`.
    pub const fn function(self) -> &'static CStr {
        match self {
            Self::Fill => c"fill",
            Self::Verify => c"verify",
            Self::MinimaxRms(_) => c"minimax_rms",
            Self::MinimaxRmsQk(_) => c"minimax_rms_qk",
        }
    }

    /// Macros that the source is compiled with: name and value.
    pub fn definitions(self) -> Vec<(&'static str, String)> {
        match self {
            Self::Fill | Self::Verify => vec![],
            Self::MinimaxRms(kernel) | Self::MinimaxRmsQk(kernel) => vec![
                ("LAMPORT_VALUE", kernel.dtype.cuda_name().to_owned()),
                ("LAMPORT_WEIGHT", kernel.weight.cuda_name().to_owned()),
                ("LAMPORT_TOKENS", kernel.variant.tokens.to_string()),
                ("LAMPORT_VECTORS", kernel.variant.vectors.to_string()),
                ("LAMPORT_MAX_THREADS", kernel.variant.max_threads.to_string()),
                ("LAMPORT_MIN_BLOCKS", kernel.variant.min_blocks.to_string()),
            ],
        }
    }

    /// A name that no other module has, for files and for messages.
    pub fn name(self) -> String {
        let function = self.function().to_str().expect("the names above are ASCII");
        match self {
            Self::Fill | Self::Verify => function.to_owned(),
            Self::MinimaxRms(kernel) | Self::MinimaxRmsQk(kernel) => {
                let MinimaxKernel { dtype, weight, variant } = kernel;
                let (tokens, vectors) = (variant.tokens, variant.vectors);
                format!("{function}.{}.{}.t{tokens}.v{vectors}", dtype.name(), weight.name())
            }
        }
    }
}

/// The virtual architectures that every module is compiled for, as NVRTC numbers them. 90 has programmatic dependent
/// launch.
pub const ARCHITECTURES: [u32; 2] = [80, 90];
