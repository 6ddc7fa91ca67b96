//! The collectives: what each takes, checks and computes.
//!
//! | module | concept |
//! | --- | --- |
//! | [`arguments`] | each operation's operands and their checks, the same for every backend |
//! | [`operation`] | what an operation is, as ranks tell each other and as errors say it |
//! | `named` | the checks of one operand |
//! | `choice` | one-shot or two-shot |
//! | `chunk` | tensors that are longer than the slots, on a device |
//! | [`rms_norm_quant`] | the norm with a quantiser behind it: operands, host and device |
//! | [`support`] | whether a workspace would serve a call |
//! | [`host`] | the operations over shared memory |
//! | `cuda` | the operations over device memory |

pub mod arguments;
mod choice;
#[cfg(feature = "cuda")]
mod chunk;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod host;
mod named;
pub mod operation;
pub mod rms_norm_quant;
pub mod support;
