//! Memory that crosses processes.
//!
//! | module | concept |
//! | --- | --- |
//! | [`access`] | why this process may not open what a peer has |
//! | [`allowance`] | how much there is for all ranks, of the machine's and within limits of containers |
//! | [`control_groups`] | what containers allow |
//! | [`fork`] | noticing that a process was forked from the one that mapped it |
//! | [`handle`] | what a rank sends of its block, and how a peer's becomes an open file |
//! | [`host`] | blocks of shared memory: allocation, mappings |
//! | [`host_slots`] | those blocks as the protocol sees them |
//! | [`vector_access`] | the 16-byte accesses, the only place where slots are touched |

pub mod access;
pub mod allowance;
pub mod control_groups;
pub mod fork;
pub mod handle;
pub mod host;
pub mod host_slots;
pub mod vector_access;
