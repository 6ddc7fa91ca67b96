//! The modules there are. The build script compiles this list, the library looks modules up in it.
//!
//! A module is small, one operation for one choice of dtypes, because the driver compiles all of a module when any of
//! its functions is first used.

use crate::dtype::Dtype::{self, BFloat16, Float16, Float32};

/// Names a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ModuleKey {
    /// Writes the sentinel over memory.
    Fill,
    /// Verifies by transfer that peer writes arrive.
    Verify,
    /// MiniMax normalisation of one matrix.
    MinimaxRms {
        /// Of input and output.
        dtype: Dtype,
        /// Of the weight: the same, or float32.
        weight: Dtype,
    },
    /// MiniMax normalisation of queries and keys.
    MinimaxRmsQk {
        /// Of input and outputs.
        dtype: Dtype,
        /// Of both weights: the same, or float32.
        weight: Dtype,
    },
}

/// Pairs of value and weight dtype that operations with a weight come in.
const WEIGHTED: [(Dtype, Dtype); 5] =
    [(Float32, Float32), (Float16, Float16), (Float16, Float32), (BFloat16, BFloat16), (BFloat16, Float32)];

impl ModuleKey {
    /// Every module, in a fixed order.
    pub fn all() -> impl Iterator<Item = Self> {
        let rms = WEIGHTED.map(|(dtype, weight)| Self::MinimaxRms { dtype, weight });
        let qk = WEIGHTED.map(|(dtype, weight)| Self::MinimaxRmsQk { dtype, weight });
        [Self::Fill, Self::Verify].into_iter().chain(rms).chain(qk)
    }

    /// The source file in `kernels/`, without `.cu`: the operation's name.
    pub const fn operation(self) -> &'static str {
        match self {
            Self::Fill => "fill",
            Self::Verify => "verify",
            Self::MinimaxRms { .. } => "minimax_rms",
            Self::MinimaxRmsQk { .. } => "minimax_rms_qk",
        }
    }

    /// Macros that the source is compiled with: name and value.
    pub fn definitions(self) -> Vec<(&'static str, &'static str)> {
        match self {
            Self::Fill | Self::Verify => vec![],
            Self::MinimaxRms { dtype, weight } | Self::MinimaxRmsQk { dtype, weight } => {
                vec![("VALUE", dtype.cuda_name()), ("WEIGHT", weight.cuda_name())]
            }
        }
    }

    /// A name that no other module has, for files and for messages.
    pub fn name(self) -> String {
        match self {
            Self::Fill | Self::Verify => self.operation().to_owned(),
            Self::MinimaxRms { dtype, weight } | Self::MinimaxRmsQk { dtype, weight } => {
                format!("{}.{}.{}", self.operation(), dtype.name(), weight.name())
            }
        }
    }
}

/// The virtual architectures that every module is compiled for, as NVRTC numbers them. 90 has programmatic dependent
/// launch.
pub const ARCHITECTURES: [u32; 2] = [80, 90];
