//! What there is of each collective besides its operands: a number, a name, and what a header shows.

use super::Kind;

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

/// Makes [`Kind`] of the list of the collectives.
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

            pub(in $crate::operations) const fn shown(self) -> $crate::operations::kind::Shown {
                match self { $(Self::$kind => $crate::operations::kind::Shown::$shown),+ }
            }
        }

        /// Operands such as the question is about. An error if no workspace would serve them.
        pub(in $crate::operations) fn boxed_operands(
            question: &$crate::operations::question::Question,
        ) -> $crate::error::Result<Box<dyn $crate::operations::operands::OnEveryBackend>> {
            use $crate::operations::operands::Operands;
            let places = &mut $crate::operations::question::Places::new(question.device);
            Ok(match question.kind { $(Kind::$kind => Box::new(<$operands>::from_question(question, places)?)),+ })
        }
    };
}

pub(super) use kinds;

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
    fn kinds_are_in_order_of_their_numbers_and_four_bits_hold_them() {
        assert!(Kind::ALL.iter().enumerate().all(|(index, kind)| kind.index() == index));
        assert!(Kind::ALL.len() < 1 << 4);
        assert!(Kind::ALL.iter().all(|kind| Kind::named(kind.name()) == Some(*kind)));
    }
}
