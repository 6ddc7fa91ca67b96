//! What the operations over shared memory are built of.
//!
//! | module | concept |
//! | --- | --- |
//! | [`processor`] | instruction sets, chosen when an operation runs |
//! | [`element`] | dtypes as lanes of float32 |
//! | [`segments`] | long messages as several operations of the protocol |
//! | [`operand`] | reading and writing operands vector by vector |

pub mod element;
pub mod operand;
pub mod processor;
pub mod segments;

use self::operand::Operand;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Vectors that are pushed, and later polled, together: 16 KiB, so that the own contribution is still in the first-level
/// cache when it is added.
pub(super) const CHUNK_VECTORS: usize = 1024;

/// Returns an operation's outcome. If the operation did not complete, or could not begin because the group has failed, its
/// outputs are NaN then: what it leaves must not be taken for a result.
///
/// # Safety
/// As for [`super::operands::OnHost::run_on_host`].
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
