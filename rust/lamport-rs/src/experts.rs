//! What experts made, in front of a sum.

use crate::element::{check_length, elements, rows_in};
use crate::error::{Error, Result};

/// The rows that this rank's experts made, and which of them become each token's: [`host::Experts`](crate::host::Experts)
/// is of slices, and `cuda::Experts` of device memory.
///
/// A token's row is the sum of `top_k` rows, each times its weight, and of a shared row, if there is one. It is computed in
/// float32 and rounded once. Ranks agree on the tokens and the columns only: how many rows a rank has, how many a token
/// takes of them, and whether there are shared ones, is each rank's own affair.
#[derive(Debug)]
pub struct Experts<Rows, Index, Weights> {
    pub(crate) rows: Rows,
    pub(crate) columns: usize,
    pub(crate) index: Index,
    pub(crate) weights: Weights,
    pub(crate) top_k: usize,
    pub(crate) shared: Option<Rows>,
}

impl<Rows, Index, Weights> Experts<Rows, Index, Weights> {
    /// `rows` has rows of `columns` elements, a multiple of 8. `index` has `top_k` numbers of these for each token, and
    /// `weights` as many. A number of -1 stands for no row. Any other number that is not a row's makes the
    /// token's row NaN, on every rank.
    pub fn new(rows: Rows, columns: usize, (index, weights): (Index, Weights), top_k: usize) -> Self {
        Self { rows, columns, index, weights, top_k, shared: None }
    }

    /// With a row for each token, such as that of a shared expert, on the ranks that have it.
    pub fn with_shared(self, shared: Rows) -> Self {
        Self { shared: Some(shared), ..self }
    }

    /// The shapes of `rows`, of `index` and of the tokens' rows, from lengths.
    pub(crate) fn shapes(
        &self,
        rows: impl Fn(&Rows) -> usize,
        index: usize,
        weights: usize,
    ) -> Result<([usize; 2], [usize; 2], [usize; 2])> {
        let of_rows = rows_in("the buffer of experts' rows", rows(&self.rows), self.columns)?;
        if self.top_k == 0 || !index.is_multiple_of(self.top_k) {
            let top_k = self.top_k;
            return Err(Error::argument(format!(
                "the index has {index} numbers and top_k is {top_k}, but there must be `top_k` numbers, 1 or more, for each \
                 token"
            )));
        }
        check_length("the buffer of experts' weights", weights, index)?;
        let tokens = [index / self.top_k, self.columns];
        if let Some(shared) = &self.shared {
            check_length("the buffer of shared rows", rows(shared), elements(tokens))?;
        }
        Ok((of_rows, [tokens[0], self.top_k], tokens))
    }
}
