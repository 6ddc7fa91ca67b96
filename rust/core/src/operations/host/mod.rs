//! The operations over shared memory.
//!
//! | module | concept |
//! | --- | --- |
//! | [`processor`] | instruction sets, chosen when an operation runs |
//! | [`element`] | dtypes as lanes of float32 |
//! | [`segments`] | long messages as several operations of the protocol |
//! | [`operand`] | reading and writing operands vector by vector |
//! | [`all_reduce`] | the sum |
//! | [`rms_norm`] | the sum, a residual and the norm of whole rows |
//! | [`minimax`] | the norm of rows that are spread over the ranks |

pub mod all_reduce;
pub mod element;
pub mod minimax;
pub mod operand;
pub mod processor;
pub mod rms_norm;
pub mod segments;

pub use all_reduce::all_reduce;
pub use minimax::minimax_rms;
pub use rms_norm::all_reduce_rms_norm;

/// Vectors that are pushed, and later polled, together: 16 KiB, so that the own contribution is still in the first-level
/// cache when it is added.
const CHUNK_VECTORS: usize = 1024;
