//! Plain memory that crosses processes, without the protocol: what `IpcBuffer` shows.

use lamport_rs_protocol::geometry::{Geometry, check_world_size};

use crate::error::{Error, Result};
use crate::exchange::{AllGather, Exchange};
use crate::memory::host::Mapping;
use crate::workspace::construct::{Request, construct};
use crate::workspace::host::HostBackend;

/// One zero-filled buffer per rank, mapped by all.
#[derive(Debug)]
pub struct HostBuffer {
    mappings: Vec<Mapping>,
    rank: usize,
}

impl HostBuffer {
    /// Allocates `size` bytes on this rank and maps the peers' buffers. Collective.
    pub fn create(rank: i64, world_size: i64, size: i64, transport: &mut dyn AllGather) -> Result<Self> {
        let backend = HostBackend;
        let mut exchange = Exchange::new(transport, rank, world_size);
        let request = check(rank, world_size, size);
        let group = construct(&backend, &mut exchange, request)?;
        let mut own = Some(group.own.into_mapping());
        let mappings = group.peers.into_iter().filter_map(|peer| peer.or_else(|| own.take())).collect();
        Ok(Self { mappings, rank: rank as usize })
    }

    /// Where each rank's buffer is in this process.
    pub fn pointers(&self) -> Vec<u64> {
        self.mappings.iter().map(|mapping| mapping.pointer().as_ptr() as u64).collect()
    }

    /// Where the own buffer is.
    pub fn local_pointer(&self) -> u64 {
        self.pointers()[self.rank]
    }
}

fn check(rank: i64, world_size: i64, size: i64) -> Result<Request> {
    // Any comm_size serves to check the rank.
    let rank = Geometry::new(world_size, 16)?.check_rank(rank)?;
    if size <= 0 {
        return Err(Error::Argument(format!("size is {size} bytes, but must be positive")));
    }
    let (world_size, bytes) = (check_world_size(world_size)?, size as usize);
    Ok(Request { rank, world_size, bytes, word: 0, comm_size: bytes })
}
