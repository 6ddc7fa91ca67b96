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

use self::operand::Operand;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Vectors that are pushed, and later polled, together: 16 KiB, so that the own contribution is still in the first-level
/// cache when it is added.
const CHUNK_VECTORS: usize = 1024;

/// Returns an operation's outcome. If the operation did not complete, or could not begin because the group has failed, its
/// outputs are NaN then: what it leaves must not be taken for a result.
///
/// # Safety
/// As for [`all_reduce()`].
pub(super) unsafe fn with_nan_on_failure<'t>(
    outcome: Result<()>,
    outputs: impl IntoIterator<Item = &'t Tensor>,
) -> Result<()> {
    if outcome.as_ref().is_err_and(Error::spoils_outputs) {
        for output in outputs {
            // SAFETY: the caller's promise.
            unsafe { Operand::rows(output) }.for_each(|row| row.fill(output.dtype.nan()));
        }
    }
    outcome
}
