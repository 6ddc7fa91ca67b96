//! The list of the collectives.

use super::all_reduce::AllReduce;
use super::minimax::MinimaxRms;
use super::operands::{Collective, Operands};
use super::question::{Places, Question};
use super::rms_norm::AllReduceRmsNorm;
use super::rms_norm_quant::AllReduceRmsNormQuant;
use crate::error::Result;

/// What a header says of an operation's tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// How many elements.
    Elements,
    /// Rows and columns.
    Rows,
    /// Likewise, and how they are quantised.
    QuantisedRows,
    /// Rows and columns of a matrix that is spread over the ranks, for which there is one algorithm.
    SpreadRows,
    /// Likewise of two: Q and K.
    SpreadPair,
}

impl Shown {
    /// Whether there are several algorithms.
    pub(super) fn has_algorithm(self) -> bool {
        !matches!(self, Self::SpreadRows | Self::SpreadPair)
    }
}

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $kind:ident($operands:ty) = $code:literal, $name:literal, $shown:ident;)+) => {
        /// Which collective. Headers have its number.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind { $($(#[doc = $doc])+ $kind = $code),+ }

        impl Kind {
            /// All of them.
            pub const ALL: [Self; [$($code),+].len()] = [$(Self::$kind),+];

            /// Its name in the API.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => $name),+ }
            }

            pub(super) const fn shown(self) -> Shown {
                match self { $(Self::$kind => Shown::$shown),+ }
            }
        }

        /// Operands such as the question is about. An error if no workspace would serve them.
        pub(super) fn operands(question: &Question) -> Result<Box<dyn Collective>> {
            let places = &mut Places::new(question.device);
            Ok(match question.kind { $(Kind::$kind => Box::new(<$operands>::asked(question, places)?)),+ })
        }
    };
}

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
}

impl Kind {
    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Its place among all.
    pub const fn index(self) -> usize {
        self as usize - 1
    }
}

#[cfg(test)]
mod tests {
    use super::Kind;

    #[test]
    fn kinds_are_in_order_of_their_numbers_and_three_bits_hold_them() {
        assert!(Kind::ALL.iter().enumerate().all(|(index, kind)| kind.index() == index));
        assert!(Kind::ALL.len() < 1 << 3);
        assert!(Kind::ALL.iter().all(|kind| Kind::named(kind.name()) == Some(*kind)));
    }
}
