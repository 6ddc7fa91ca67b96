//! Memory that crosses processes.
//!
//! | module | concept |
//! | --- | --- |
//! | [`fork`] | noticing that a process was forked from the one that mapped it |
//! | [`host`] | blocks of shared memory: allocation, handles, mappings |
//! | [`host_slots`] | those blocks as the protocol sees them |
//! | [`vector_access`] | the 16-byte accesses, the only place where slots are touched |

pub mod fork;
pub mod host;
pub mod host_slots;
pub mod vector_access;
