//! What a search finds, in words.

use std::fmt;

use lamport_rs_protocol::sentinel::{SENTINEL, Vector};

use crate::job::describe_vector;

/// A vector that is not what its source sent in this operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    pub source: usize,
    /// Its number; `None` for a header.
    pub at: Option<usize>,
    pub expected: Vector,
    pub found: Vector,
    /// Whether some of its words had not arrived.
    pub torn: bool,
}

impl Wrong {
    pub fn header(source: usize, expected: Vector, found: Vector) -> Self {
        Self { source, at: None, expected, found, torn: found.contains(&SENTINEL) }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, at, expected, found, .. } = self;
        let (expected, found) = (describe_vector(*expected), describe_vector(*found));
        let what = at.map_or("header".to_owned(), |at| format!("vector {at}"));
        write!(f, "took {found} for rank {source}'s {what}, which is {expected}")
    }
}

/// How a protocol fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A vector was received of which words had not arrived.
    Torn,
    /// A vector was received with words of another operation.
    Stale,
    /// Some rank will never complete another operation, and a push became visible ahead of a store that its receiver had
    /// still pending, and which overwrites it.
    Lost,
    /// Some rank will never complete another operation for another reason.
    Stuck,
}

/// The shortest execution found that fails.
#[derive(Debug)]
pub struct Counterexample {
    pub kind: Kind,
    pub trace: Vec<String>,
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}, after {} transitions:", self.kind, self.trace.len())?;
        self.trace.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

/// A search that found no failure.
#[derive(Clone, Copy, Debug)]
pub struct Proof {
    pub states: usize,
    pub transitions: usize,
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} states, {} transitions", self.states, self.transitions)
    }
}
