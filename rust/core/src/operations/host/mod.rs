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
use crate::error::Result;
use crate::interrupts::Interrupted;
use crate::operations::operation::Description;
use crate::tensor::Tensor;
use crate::workspace::host::{HostWorkspace, Running};

/// Vectors that are pushed, and later polled, together: 16 KiB, so that the own contribution is still in the first-level
/// cache when it is added.
const CHUNK_VECTORS: usize = 1024;

/// Begins an operation. If it cannot run because the group has failed, its outputs are NaN, as if it had begun.
///
/// # Safety
/// As for [`all_reduce()`].
unsafe fn begin<'a, 't>(
    workspace: &'a HostWorkspace,
    description: &Description,
    interrupted: Interrupted<'a>,
    outputs: impl IntoIterator<Item = &'t Tensor>,
) -> Result<Running<'a>> {
    workspace.begin(description, interrupted).inspect_err(|error| {
        if error.is_a_failure() {
            // SAFETY: the caller's promise.
            unsafe { poison(outputs) };
        }
    })
}

/// Writes NaN over the outputs of an operation that did not complete: what it leaves must not be taken for a result.
///
/// # Safety
/// As for [`all_reduce()`].
unsafe fn poison<'t>(outputs: impl IntoIterator<Item = &'t Tensor>) {
    for output in outputs {
        // SAFETY: the caller's promise.
        unsafe { Operand::rows(output) }.for_each(|row| row.fill(output.dtype.nan()));
    }
}
