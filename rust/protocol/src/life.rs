//! The word of a process by which its peers hear that it ends, long before its end.
//!
//! An operating system takes a process apart in steps. That it has ended is told last, when a device's driver has given up
//! what the process had there, which may take seconds. But first of all it looks, for each thread, which words that
//! thread holds, and writes into them that their owner is dead (`set_robust_list(2)` on Linux). So one thread, which does
//! nothing else and ends with its process only, holds a word in a page that peers have mapped. A process has one such word
//! for all its workspaces, for as long as it lives: it is never taken back.
//!
//! # Who writes
//!
//! 1. The thread [holds](hold) it, once.
//! 2. The system, when that thread ends, if it still holds the word: as the process ends, in whatever way, or becomes another
//!    program's.
//! 3. The process, when it ends in order and sends nothing more: it says so [itself](end), as to take an interpreter apart
//!    takes its time, too.
//!
//! The second says what the third does, and does nothing after it. A thread that comes late does not hold a word that the
//! process has ended.
//!
//! # What it means
//!
//! Who finds the word ended by the process itself finds all that it sent before: it is stored with release, and loaded with
//! acquire. That is not so of the system: another thread of a process that is killed may go on for microseconds. So whoever
//! waits looks for data once more, after a while, and if that does not come, the wait ends with an error: a rank
//! that is dead is missed a little early. But memory that the process writes to may only go when it has ended.
//!
//! Peers map the page to read it. A process that lies about its own end ends what it takes part in, as it can in any case.

use crate::notices::StatusWords;

/// What says that the process ends: Linux's `FUTEX_OWNER_DIED`.
const ENDS: u32 = 1 << 30;
/// Where the word is, in a page of its own: that of rank 0 of a group of one.
const PLACE: (usize, usize) = (0, 0);

/// The thread of that number, as the system knows it, holds the word.
pub fn hold<W: StatusWords>(words: &W, thread: u32) {
    words.replace(PLACE.0, PLACE.1, 0, thread);
}

/// The process ends, and sends nothing more.
pub fn end<W: StatusWords>(words: &W) {
    words.store(PLACE.0, PLACE.1, ENDS);
}

/// Whether the process has ended, or is about to.
pub fn ends<W: StatusWords>(words: &W) -> bool {
    words.load(PLACE.0, PLACE.1) & ENDS != 0
}
