//! The collectives: what each takes, checks and computes.
//!
//! | module | concept |
//! | --- | --- |
//! | [`all_reduce`], [`all_reduce_quant`], [`layer_norm`], [`rms_norm`], [`rms_norm_quant`] | one each: operands, backends |
//! | [`minimax`], [`moe_finalize`] | likewise, two each |
//! | [`kind`] | what there is of each besides |
//! | [`operands`] | what all of them do: be checked, and run, on each backend |
//! | [`question`] | calls that are asked about before there are tensors |
//! | [`quantised`] | what those that quantise rows have in common |
//! | [`description`] | what an operation is, as ranks tell each other and as errors say it |
//! | `skipped` | calls that send nothing |
//! | `operand_checks` | the checks of one operand |
//! | `choice` | one-shot or two-shot |
//! | `chunk` | tensors that are longer than the slots, on a device |
//! | `host` | what the operations over shared memory are built of |
//! | `launch` | likewise over device memory |
//!
//! A collective is a folder here, and a line of the list below.

pub mod all_reduce;
pub mod all_reduce_quant;
mod choice;
#[cfg(feature = "cuda")]
mod chunk;
pub mod description;
pub(crate) mod host;
pub mod kind;
#[cfg(feature = "cuda")]
pub mod launch;
pub mod layer_norm;
pub mod minimax;
pub mod moe_finalize;
mod operand_checks;
pub mod operands;
pub mod quantised;
pub mod question;
pub mod rms_norm;
pub mod rms_norm_quant;
#[cfg(feature = "cuda")]
pub(crate) mod skipped;

use all_reduce::AllReduce;
use all_reduce_quant::AllReduceQuant;
use kind::kinds;
use layer_norm::AllReduceLayerNorm;
use minimax::MinimaxRms;
use moe_finalize::{MoeFinalizeAllReduce, MoeFinalizeAllReduceRmsNorm};
use rms_norm::AllReduceRmsNorm;
use rms_norm_quant::AllReduceRmsNormQuant;

kinds! {
    /// The sum.
    AllReduce(AllReduce) = 1, "all_reduce", Elements;
    /// The sum with a residual and the norm of its rows.
    AllReduceRmsNorm(AllReduceRmsNorm) = 2, "all_reduce_rms_norm", Rows;
    /// The norm of rows that are spread over the ranks.
    MinimaxRms(MinimaxRms) = 3, "minimax_allreduce_rms", SpreadRows;
    /// Likewise, of two matrices.
    MinimaxRmsQk(MinimaxRms) = 4, "minimax_allreduce_rms_qk", SpreadPair;
    /// The sum with a residual, the norm of its rows and a quantiser.
    AllReduceRmsNormQuant(AllReduceRmsNormQuant) = 5, "all_reduce_rms_norm_quant", QuantisedRows;
    /// The sum of rows and a quantiser.
    AllReduceQuant(AllReduceQuant) = 6, "all_reduce_quant", QuantisedRows;
    /// The sum of rows that experts made with a residual and the norm of its rows.
    MoeFinalizeAllReduceRmsNorm(MoeFinalizeAllReduceRmsNorm) = 7, "moe_finalize_all_reduce_rms_norm", Rows;
    /// The sum of such rows alone.
    MoeFinalizeAllReduce(MoeFinalizeAllReduce) = 8, "moe_finalize_all_reduce", Rows;
    /// The sum with a residual and the layer norm of its rows.
    AllReduceLayerNorm(AllReduceLayerNorm) = 9, "all_reduce_layer_norm", Rows;
}
