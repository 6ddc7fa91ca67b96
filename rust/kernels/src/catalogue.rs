//! The modules there are. The build script compiles this list, the library looks modules up in it.
//!
//! A module holds one function, for one choice of dtypes and one variant: the driver compiles all of a module when it
//! is loaded, and the first operation waits for that.

use std::ffi::CStr;

use lamport_rs_protocol::algorithm::Algorithm;

use crate::dtype::Dtype::{self, BFloat16, Float16, Float32};
use crate::variants::{
    CAPACITIES, LaunchBounds, MINIMAX_VARIANTS, MinimaxVariant, PHASED_CAPACITIES, all_reduce_bounds,
    moe_finalize_bounds, rms_norm_bounds,
};

/// Names a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ModuleKey {
    /// Writes the sentinel over memory.
    Fill,
    /// Verifies by transfer that peer writes arrive.
    Verify,
    /// Counts calls that send nothing.
    Skip,
    /// The sum over ranks.
    AllReduce(AllReduceKernel),
    /// The sum over ranks, a residual, and RMSNorm.
    AllReduceRmsNorm(AllReduceRmsNormKernel),
    /// The same, and a quantiser whose scales are float32.
    AllReduceRmsNormQuant(AllReduceRmsNormKernel),
    /// The same, and a quantiser whose scales are bytes.
    AllReduceRmsNormQuantBlocks(AllReduceRmsNormKernel),
    /// The sum over ranks of rows, and a quantiser whose scales are float32.
    AllReduceQuant(AllReduceRmsNormKernel),
    /// The same, and a quantiser whose scales are bytes.
    AllReduceQuantBlocks(AllReduceRmsNormKernel),
    /// The sum over ranks, a residual, and layer norm.
    AllReduceLayerNorm(AllReduceRmsNormKernel),
    /// The sum over ranks of rows that experts made.
    MoeFinalizeAllReduce(AllReduceRmsNormKernel),
    /// The same, a residual, and RMSNorm.
    MoeFinalizeAllReduceRmsNorm(AllReduceRmsNormKernel),
    /// MiniMax normalisation of one matrix.
    MinimaxRms(MinimaxKernel),
    /// MiniMax normalisation of two: queries and keys.
    MinimaxRmsQk(MinimaxKernel),
}

/// How an all-reduce kernel works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AllReduceMethod {
    /// One-shot.
    OneShot,
    /// Two-shot: a thread has a vector of every shard. Tensors of any size.
    TwoShot,
    /// Two-shot, where a warp has vectors of one peer's shard: three to eight ranks, and tensors that the grid takes in
    /// one round.
    TwoShotPhased,
}

/// An all-reduce kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AllReduceKernel {
    /// How it reduces.
    pub method: AllReduceMethod,
    /// Of the tensor.
    pub dtype: Dtype,
    /// Largest group: one of [`CAPACITIES`].
    pub capacity: u32,
}

impl AllReduceKernel {
    fn all() -> impl Iterator<Item = Self> {
        [AllReduceMethod::OneShot, AllReduceMethod::TwoShot, AllReduceMethod::TwoShotPhased]
            .into_iter()
            .flat_map(|method| per_dtype_and_capacity(move |dtype, capacity| Self { method, dtype, capacity }))
            .filter(|kernel| {
                kernel.method != AllReduceMethod::TwoShotPhased || PHASED_CAPACITIES.contains(&kernel.capacity)
            })
    }
}

fn per_dtype_and_capacity<Kernel>(kernel: impl Fn(Dtype, u32) -> Kernel) -> impl Iterator<Item = Kernel> {
    let pairs = Dtype::ALL.into_iter().flat_map(|dtype| CAPACITIES.map(|capacity| (dtype, capacity)));
    pairs.map(move |(dtype, capacity)| kernel(dtype, capacity))
}

/// An all-reduce kernel with RMSNorm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AllReduceRmsNormKernel {
    /// How it reduces.
    pub algorithm: Algorithm,
    /// Of the rows.
    pub dtype: Dtype,
    /// Largest group: one of [`CAPACITIES`].
    pub capacity: u32,
    /// Vectors of a row that a thread keeps in registers. If 0, it keeps none, and rows may be of any width.
    pub vectors: u32,
}

impl AllReduceRmsNormKernel {
    /// All kernels of rows of any width.
    fn all() -> impl Iterator<Item = Self> {
        Algorithm::ALL.into_iter().flat_map(|algorithm| {
            per_dtype_and_capacity(move |dtype, capacity| Self { algorithm, dtype, capacity, vectors: 0 })
        })
    }

    /// Those of them that finalise experts, or end in a layer norm: of 16-bit rows, in one shot.
    fn of_one_shot() -> impl Iterator<Item = Self> {
        Self::quantising().filter(|kernel| kernel.algorithm == Algorithm::OneShot)
    }

    /// Those of them with a quantiser: of 16-bit rows.
    fn quantising() -> impl Iterator<Item = Self> {
        Self::all().filter(|kernel| kernel.dtype != Float32)
    }
}

/// The modules of such kernels, for rows of any width and for those whose vectors are kept.
fn of_rows(
    kernels: impl Iterator<Item = AllReduceRmsNormKernel>,
    module: impl Fn(AllReduceRmsNormKernel) -> ModuleKey + Copy,
) -> impl Iterator<Item = ModuleKey> {
    kernels.flat_map(move |kernel| {
        let kept = module(kernel).kept_vectors().iter().copied();
        kept.chain([0]).map(move |vectors| module(AllReduceRmsNormKernel { vectors, ..kernel }))
    })
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
        [Self::Fill, Self::Verify, Self::Skip]
            .into_iter()
            .chain(AllReduceKernel::all().map(Self::AllReduce))
            .chain(of_rows(AllReduceRmsNormKernel::all(), Self::AllReduceRmsNorm))
            .chain(of_rows(AllReduceRmsNormKernel::quantising(), Self::AllReduceRmsNormQuant))
            .chain(of_rows(AllReduceRmsNormKernel::quantising(), Self::AllReduceRmsNormQuantBlocks))
            .chain(of_rows(AllReduceRmsNormKernel::quantising(), Self::AllReduceQuant))
            .chain(of_rows(AllReduceRmsNormKernel::quantising(), Self::AllReduceQuantBlocks))
            .chain(of_rows(AllReduceRmsNormKernel::of_one_shot(), Self::AllReduceLayerNorm))
            .chain(of_rows(AllReduceRmsNormKernel::of_one_shot(), Self::MoeFinalizeAllReduce))
            .chain(of_rows(AllReduceRmsNormKernel::of_one_shot(), Self::MoeFinalizeAllReduceRmsNorm))
            .chain(MinimaxKernel::all().map(Self::MinimaxRms))
            .chain(MinimaxKernel::all().map(Self::MinimaxRmsQk))
    }

    /// The module's one function. The source is `kernels/<function>.cu`.
    pub const fn function(self) -> &'static CStr {
        match self {
            Self::Fill => c"fill",
            Self::Verify => c"verify",
            Self::Skip => c"skip",
            Self::AllReduce(AllReduceKernel { method, .. }) => match method {
                AllReduceMethod::OneShot => c"all_reduce_one_shot",
                AllReduceMethod::TwoShot => c"all_reduce_two_shot",
                AllReduceMethod::TwoShotPhased => c"all_reduce_two_shot_phased",
            },
            Self::AllReduceRmsNorm(kernel) => match kernel.algorithm {
                Algorithm::OneShot => c"all_reduce_rms_norm_one_shot",
                Algorithm::TwoShot => c"all_reduce_rms_norm_two_shot",
            },
            Self::AllReduceRmsNormQuant(kernel) => match kernel.algorithm {
                Algorithm::OneShot => c"all_reduce_rms_norm_quant_one_shot",
                Algorithm::TwoShot => c"all_reduce_rms_norm_quant_two_shot",
            },
            Self::AllReduceRmsNormQuantBlocks(kernel) => match kernel.algorithm {
                Algorithm::OneShot => c"all_reduce_rms_norm_quant_blocks_one_shot",
                Algorithm::TwoShot => c"all_reduce_rms_norm_quant_blocks_two_shot",
            },
            Self::AllReduceQuant(_) => c"all_reduce_quant",
            Self::AllReduceQuantBlocks(_) => c"all_reduce_quant_blocks",
            Self::AllReduceLayerNorm(_) => c"all_reduce_layer_norm",
            Self::MoeFinalizeAllReduce(_) => c"moe_finalize_all_reduce",
            Self::MoeFinalizeAllReduceRmsNorm(_) => c"moe_finalize_all_reduce_rms_norm",
            Self::MinimaxRms(_) => c"minimax_rms",
            Self::MinimaxRmsQk(_) => c"minimax_rms_qk",
        }
    }

    /// The kernel, if it is one of rows.
    const fn of_rows(self) -> Option<AllReduceRmsNormKernel> {
        match self {
            Self::AllReduceRmsNorm(kernel)
            | Self::AllReduceRmsNormQuant(kernel)
            | Self::AllReduceRmsNormQuantBlocks(kernel)
            | Self::AllReduceQuant(kernel)
            | Self::AllReduceQuantBlocks(kernel)
            | Self::AllReduceLayerNorm(kernel)
            | Self::MoeFinalizeAllReduce(kernel)
            | Self::MoeFinalizeAllReduceRmsNorm(kernel) => Some(kernel),
            _ => None,
        }
    }

    /// How many vectors a thread of such a kernel may keep, ascending; empty if it is not of rows.
    pub const fn kept_vectors(self) -> &'static [u32] {
        match self {
            Self::AllReduceRmsNorm(kernel) => match kernel {
                AllReduceRmsNormKernel { dtype: Float32, .. } | AllReduceRmsNormKernel { capacity: 2 | 4, .. } => &[1],
                _ => &[1, 2, 4],
            },
            Self::MoeFinalizeAllReduce(_) | Self::MoeFinalizeAllReduceRmsNorm(_) => &[1, 2],
            _ if self.of_rows().is_some() => &[1],
            _ => &[],
        }
    }

    /// The bounds of its launches, where the host may choose their size.
    pub const fn bounds(self) -> Option<LaunchBounds> {
        match self {
            Self::AllReduce(kernel) => Some(all_reduce_bounds(kernel.method, kernel.capacity)),
            Self::MoeFinalizeAllReduce(kernel) | Self::MoeFinalizeAllReduceRmsNorm(kernel) => {
                Some(moe_finalize_bounds(kernel.capacity))
            }
            Self::MinimaxRms(kernel) | Self::MinimaxRmsQk(kernel) => Some(kernel.variant.bounds),
            _ => match self.of_rows() {
                Some(kernel) => Some(rms_norm_bounds(kernel.capacity, kernel.vectors)),
                None => None,
            },
        }
    }

    /// Macros that the source is compiled with: name and value.
    pub fn definitions(self) -> Vec<(&'static str, String)> {
        let mut definitions = vec![];
        let mut define = |name, value: &dyn ToString| definitions.push((name, value.to_string()));
        match self {
            Self::AllReduce(kernel) => {
                define("LAMPORT_VALUE", &kernel.dtype.cuda_name());
                define("LAMPORT_CAPACITY", &kernel.capacity);
            }
            Self::MinimaxRms(kernel) | Self::MinimaxRmsQk(kernel) => {
                define("LAMPORT_VALUE", &kernel.dtype.cuda_name());
                define("LAMPORT_WEIGHT", &kernel.weight.cuda_name());
                define("LAMPORT_TOKENS", &kernel.variant.tokens);
                define("LAMPORT_VECTORS", &kernel.variant.vectors);
            }
            _ => {}
        }
        if let Some(kernel) = self.of_rows() {
            define("LAMPORT_VALUE", &kernel.dtype.cuda_name());
            define("LAMPORT_CAPACITY", &kernel.capacity);
            define("LAMPORT_VECTORS", &kernel.vectors);
        }
        if let Self::AllReduceQuant(kernel) | Self::AllReduceQuantBlocks(kernel) = self {
            definitions.push(("LAMPORT_EXCHANGE", format!("rows_{}", kernel.algorithm.name())));
        }
        if let Some(LaunchBounds { max_threads, min_blocks }) = self.bounds() {
            definitions.push(("LAMPORT_MAX_THREADS", max_threads.to_string()));
            definitions.push(("LAMPORT_MIN_BLOCKS", min_blocks.to_string()));
        }
        definitions
    }

    /// A name that no other module has, for files and for messages.
    pub fn name(self) -> String {
        let function = self.function().to_str().expect("the names above are ASCII");
        match self {
            Self::AllReduce(AllReduceKernel { dtype, capacity, .. }) => {
                format!("{function}.{}.n{capacity}", dtype.name())
            }
            Self::AllReduceQuant(AllReduceRmsNormKernel { algorithm, dtype, capacity, vectors })
            | Self::AllReduceQuantBlocks(AllReduceRmsNormKernel { algorithm, dtype, capacity, vectors }) => {
                format!("{function}.{}.{}.n{capacity}.v{vectors}", algorithm.name(), dtype.name())
            }
            Self::MinimaxRms(kernel) | Self::MinimaxRmsQk(kernel) => {
                let MinimaxKernel { dtype, weight, variant } = kernel;
                let (tokens, vectors) = (variant.tokens, variant.vectors);
                format!("{function}.{}.{}.t{tokens}.v{vectors}", dtype.name(), weight.name())
            }
            _ => self.of_rows().map_or_else(
                || function.to_owned(),
                |AllReduceRmsNormKernel { dtype, capacity, vectors, .. }| {
                    format!("{function}.{}.n{capacity}.v{vectors}", dtype.name())
                },
            ),
        }
    }
}
