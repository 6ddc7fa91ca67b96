//! The collectives: what each takes, checks and computes.
//!
//! | module | concept |
//! | --- | --- |
//! | [`kind`] | the list of the collectives |
//! | [`all_reduce`], [`rms_norm`], [`rms_norm_quant`], [`minimax`] | one each: operands, and `host` and `cuda` |
//! | [`operands`] | what all of them do: be checked, and run, on each backend |
//! | [`question`] | calls that are asked about before there are tensors |
//! | [`description`] | what an operation is, as ranks tell each other and as errors say it |
//! | [`skipped`] | calls that send nothing |
//! | `operand_checks` | the checks of one operand |
//! | `choice` | one-shot or two-shot |
//! | `chunk` | tensors that are longer than the slots, on a device |
//! | [`host`] | what the operations over shared memory are built of |
//! | `launch` | likewise over device memory |
//!
//! A collective is a folder here, and a line in [`kind`].

pub mod all_reduce;
mod choice;
#[cfg(feature = "cuda")]
mod chunk;
pub mod description;
pub mod host;
pub mod kind;
#[cfg(feature = "cuda")]
pub mod launch;
pub mod minimax;
mod operand_checks;
pub mod operands;
pub mod question;
pub mod rms_norm;
pub mod rms_norm_quant;
pub mod skipped;
