//! Plain memory that crosses processes, without the protocol: what `IpcBuffer` shows.

use std::sync::Arc;

use lamport_rs_protocol::geometry::{Geometry, check_world_size};
use lamport_rs_protocol::sentinel::VECTOR_BYTES;

use crate::deferred::Teardown;
use crate::error::{Error, Result};
use crate::lifecycle::Lifecycle;
use crate::lifecycle::memory::WorkspaceMemory;
use crate::memory::Memory;
use crate::rendezvous::construct::{Request, construct};
use crate::rendezvous::phases::Phases;
use crate::rendezvous::{AllGather, Rendezvous};
use crate::workspace::timeout_of;

/// One zero-filled buffer per rank, mapped by all. Its teardown is that of a workspace: this rank's buffer is freed once no
/// peer has it mapped any more.
#[derive(Debug)]
pub struct Buffer<M: Memory> {
    memory: WorkspaceMemory<M>,
    lifecycle: Arc<Lifecycle>,
    addresses: Vec<u64>,
}

impl<M: Memory> Buffer<M> {
    /// Allocates `size` bytes on this rank and maps the peers' buffers. Collective: the ranks wait for each other's mappings
    /// for `timeout` seconds, 0 or infinite for ever.
    pub fn create(
        memory: &M,
        rank: i64,
        world_size: i64,
        size: i64,
        timeout: f64,
        transport: &mut dyn AllGather,
    ) -> Result<Self> {
        let mut rendezvous = Rendezvous::new(transport, rank, world_size);
        let checked = check(rank, world_size, size, timeout);
        let made = construct(memory, &mut rendezvous, checked, &mut Phases::begin())?;
        Ok(Self { addresses: made.memory.blocks().addresses(), memory: made.memory, lifecycle: made.lifecycle })
    }

    /// Where each rank's buffer is in this process.
    pub fn addresses(&self) -> Vec<u64> {
        self.addresses.clone()
    }

    /// An error if a peer has no buffer: it gave up at the very end of its construction, or its process has ended. That a
    /// peer was cleaned up is no fault. Waits for nothing.
    pub fn check(&self) -> Result<()> {
        // It takes note of a fault, so that the next call raises it, too.
        match self.lifecycle.check().as_ref().map_err(Error::itself) {
            Err(Error::Aborted { rank, cause, reason }) => {
                Err(Error::BufferLost { rank: *rank, cause: *cause, reason: reason.clone() })
            }
            _ => Ok(()),
        }
    }
}

impl<M: Memory> Teardown for Buffer<M> {
    fn give_up(&self) {
        // Whoever drops it asks again.
        let _ = self.memory.await_unused();
    }
}

impl<M: Memory> Drop for Buffer<M> {
    fn drop(&mut self) {
        // Kernels may store into what is unmapped next.
        if !self.memory.await_unused() {
            self.memory.abandon();
        }
    }
}

fn check(rank: i64, world_size: i64, size: i64, timeout: f64) -> Result<Request> {
    // Any comm_size serves to check the rank.
    let rank = Geometry::new(world_size, VECTOR_BYTES as i64)?.check_rank(rank)?;
    if size <= 0 {
        return Err(Error::Argument(format!("size is {size} bytes, but must be positive")));
    }
    let (world_size, bytes) = (check_world_size(world_size)?, size as usize);
    Ok(Request {
        rank,
        world_size,
        bytes,
        word: 0,
        comm_size: bytes,
        size_name: "size",
        two_shot_from: None,
        has_operations: false,
        timeout: timeout_of(timeout)?,
    })
}
