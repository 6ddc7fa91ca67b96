//! Memory that crosses processes.
//!
//! A kind of memory is a [`Memory`]: [`host`] has that of one host, `cuda` that of its GPUs. Construction, teardown and
//! reset are written once, for any.
//!
//! | module | concept |
//! | --- | --- |
//! | [`access`] | why this process may not open what a peer has |
//! | [`allowance`] | how much there is for all ranks, of the machine's and within limits of containers |
//! | [`control_groups`] | what containers allow |
//! | `fork` | noticing that a process was forked from the one that mapped it |
//! | [`handle`] | what a rank sends of its block, and how a peer's becomes an open file |
//! | [`host`] | blocks of shared memory: allocation, mappings |
//! | `host_slots` | those blocks as the protocol sees them |
//! | `vector_access` | the 16-byte accesses, the only place where slots are touched |
//! | `cuda` | blocks of device memory: allocation, mappings, fills |
//! | `pool` | small memory that workspaces on a device take turns with |
//! | `pinned` | words that kernels and the host tell each other |

pub mod access;
pub mod allowance;
pub mod control_groups;
#[cfg(feature = "cuda")]
pub mod cuda;
pub(crate) mod fork;
pub mod handle;
pub mod host;
pub(crate) mod host_slots;
#[cfg(feature = "cuda")]
pub(crate) mod pinned;
#[cfg(feature = "cuda")]
pub mod pool;
pub(crate) mod vector_access;

use std::fmt::Debug;

use lamport_rs_kernels::plan;
use lamport_rs_protocol::sentinel::Vector;

use crate::error::Result;
use crate::interrupts::Interrupted;

/// A kind of memory that crosses processes. Its blocks are freed, and its mappings unmapped, when they are dropped.
pub trait Memory: Debug + 'static {
    /// Its name in the API.
    const NAME: &'static str;
    /// Whether ranks must see each other's processes. Otherwise those that do not go without notices.
    const NEEDS_PAGES: bool = true;
    /// Whether a peer's mapping keeps the memory after its owner has freed it. Otherwise the owner must not free it before
    /// all peers have unmapped it: nothing says what becomes of their stores.
    const OUTLIVES_ITS_BLOCK: bool;
    /// A block that this rank owns. Whichever thread frees it.
    type Block: Debug + Send + Sync + 'static;
    /// A mapping of a peer's block.
    type Mapping: Debug + Send + Sync + 'static;

    /// Its name, and what else of it all ranks must have in common.
    fn name(&self) -> String {
        Self::NAME.to_owned()
    }
    /// The device, in words.
    fn device(&self) -> String;
    /// What of the device the plans of launches depend on, where there are any: ranks have to launch equal grids.
    fn plan(&self) -> Option<plan::Device> {
        None
    }
    /// How many bytes of the host's memory a block of `bytes` bytes takes.
    fn host_bytes(_bytes: usize) -> usize {
        0
    }
    /// Allocates `bytes` bytes. Where memory is taken for good by that, it begins to write `word` over all of them.
    fn allocate(&self, bytes: usize, word: u32) -> Result<Self::Block>;
    /// Waits until the block is full of the word.
    fn await_fill(&self, _block: &Self::Block) -> Result<()> {
        Ok(())
    }
    /// Writes the word over a block that `allocate` does not fill. To write memory of the host is to take it: all ranks
    /// know by then that it is there. No peer stores before the agreement that follows. An error if `interrupted` says so.
    fn fill(&self, _block: &Self::Block, _word: u32, _interrupted: Interrupted<'_>) -> Result<()> {
        Ok(())
    }
    /// Writes the sentinel over the first `bytes` bytes of a block, which peers have mapped. None of them stores there, and
    /// all is written when this returns.
    fn refill(&self, block: &Self::Block, bytes: usize) -> Result<()>;
    /// What a peer needs to map `block`. Where a processor can look into a block that it maps, the owner leaves `nonce`
    /// for it to find; elsewhere the workspace proves its mappings by a transfer of its own.
    fn export(&self, block: &mut Self::Block, nonce: Vector) -> Result<Vec<u8>>;
    /// What tells the memory of a handle from another's: no two ranks may send the same. A claim, for `map` to check.
    fn identity(handle: &[u8]) -> &[u8] {
        handle
    }
    /// Maps the block that a peer exported with `nonce`, if it is one of `bytes` bytes, as `allocate` makes them. The
    /// handle is a claim of the peer's: nothing of what it names may be changed before it is known to be such a block.
    fn map(&self, handle: &[u8], nonce: Vector, bytes: usize) -> Result<Self::Mapping>;
    /// Waits until no kernel of this process uses memory on the block's device any more. An error if some may.
    fn await_kernels(_block: &Self::Block) -> Result<()> {
        Ok(())
    }
    /// Called when all peers have mapped `block`.
    fn all_have_mapped(&self, _block: &mut Self::Block) {}
    /// Where `block` is, for this process's processor or device.
    fn address(block: &Self::Block) -> u64;
    /// Where a peer's is, likewise.
    fn mapped_address(mapping: &Self::Mapping) -> u64;
}

/// The blocks of all ranks, as one rank has them.
#[derive(Debug)]
pub struct GroupMemory<M: Memory> {
    /// The peers', in rank order; `None` at this rank's own place. Dropped first: what is mapped goes before what is owned.
    pub peers: Vec<Option<M::Mapping>>,
    /// This rank's own.
    pub own: M::Block,
}

impl<M: Memory> GroupMemory<M> {
    /// Where each rank's block is in this process, in rank order.
    pub fn addresses(&self) -> Vec<u64> {
        self.of_each(M::address, M::mapped_address)
    }

    /// What `of_own` says of this rank's block, and `of_peer` of each peer's, in rank order.
    pub fn of_each<T>(&self, of_own: impl Fn(&M::Block) -> T, of_peer: impl Fn(&M::Mapping) -> T) -> Vec<T> {
        self.peers.iter().map(|peer| peer.as_ref().map_or_else(|| of_own(&self.own), &of_peer)).collect()
    }
}
