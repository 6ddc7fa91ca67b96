//! Parts of errors' texts.

use lamport_rs_protocol::rank_set::RankSet;

use crate::operations::description::Operation;

/// What to do about a workspace whose operation did not complete.
pub(super) const NO_LONGER: &str =
    "This workspace can no longer be used: call reset() on every rank, or clean it up and create a new one";

/// What to do about a workspace with a rank that is gone.
pub(super) const GONE: &str = "This workspace can no longer be used: create a new one on every rank";

/// What to do about a workspace that failed earlier.
pub(super) fn failed_advice(can_reset: bool) -> &'static str {
    if can_reset { "call reset() on every rank, or create a new one" } else { "create a new one on every rank" }
}

/// A reason, if there is one.
pub(super) fn after_colon(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

/// For whom an operation waited, if it did.
pub(super) fn while_waiting(missing: &RankSet) -> String {
    if missing.is_empty() { String::new() } else { format!(" while waiting for {missing}") }
}

/// What may have made operations differ.
pub(super) fn explain_mismatch(own: &Operation, theirs: &Operation) -> &'static str {
    if own.is_shown_as(theirs) {
        "They differ in what is not shown: a scalar (epsilon, the weights' bias), whether there is a residual, or a number \
         that is too large for it. All ranks must call the same operations with the same arguments."
    } else if own.number() == theirs.number() {
        "All ranks must call the same operations in the same order, with the same shapes, dtypes, algorithm and \
         scalars."
    } else {
        "The numbers count the calls on each rank, those that were refused or had nothing to do among them: a rank \
         went on after a call that raised an error there, and its peers' call was served."
    }
}
