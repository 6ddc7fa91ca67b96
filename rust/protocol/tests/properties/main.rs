//! The protocol's arithmetic, and what one operation does when nothing is concurrent. What concurrency can do to it is
//! the subject of the `model` and `loom` tests.
//!
//! | module | concept |
//! | --- | --- |
//! | `geometry` | slots and regions neither overlap nor leave the block; messages that fit and that do not |
//! | `sizing` | how large a slot must be for a job |
//! | `sentinel` | scrubbing and arrival, on every word there is |
//! | `table` | the table and the control words |
//! | `rank_set` | how errors name ranks |
//! | `operation` | one operation: what it stores where, what it delivers, and what it says when it waits in vain |
//! | `two_shot` | likewise of an operation in two shots |
//! | `header` | what ranks tell each other ahead of the data, and what they do when it differs |
//! | `changing` | words that change between two looks at them: what was looked at is what is taken |

mod changing;
mod geometry;
mod header;
mod operation;
mod rank_set;
mod sentinel;
mod sizing;
mod table;
mod two_shot;
