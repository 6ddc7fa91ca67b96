//! Device memory of the peers, on the stand-in for the driver: rank r is on device r.

use std::sync::Arc;

use lamport_rs_core::cuda::device::Device;
use lamport_rs_core::memory::cuda::{DeviceMemory, HANDLE_BYTES, PeerMemory};
use lamport_rs_protocol::geometry::{ALLOCATION_GRANULARITY, Geometry};
use lamport_rs_protocol::sentinel::Vector;

use crate::calls;
use crate::lies::{self, Proof};
use crate::standin::Standin;
use crate::standin::either::Either;
use crate::standin::group::on_ranks;

/// What a rank pushes that has found all well.
const ACCEPTED: u32 = 1;
const UUID_BYTES: usize = 16;

/// The devices, and on each what peers may name.
pub struct Devices {
    pub standin: Standin,
    pub devices: Vec<Arc<Device>>,
    /// Of each device: two of a block's size, and one that is larger.
    memory: Vec<[DeviceMemory; 3]>,
    freed: Vec<[u8; HANDLE_BYTES]>,
}

impl Devices {
    pub fn new() -> Self {
        let standin = Standin::take();
        // Kernels are compiled and loaded, which is no case's work. Those of three ranks are those of four.
        for ranks in [2, 4] {
            on_ranks(ranks, |rank| {
                let workspace = rank.create().unwrap();
                calls::every().for_each(|call| call.load(Either::Cuda(&workspace)));
                rank.meet();
            });
        }
        // Waits of ten seconds take as many milliseconds.
        standin.speed_up_clock(1000);
        let devices: Vec<_> = (0..4).map(|index| Device::get(index).unwrap()).collect();
        let allocate = |device, blocks| DeviceMemory::allocate(device, blocks * ALLOCATION_GRANULARITY).unwrap();
        let memory = devices.iter().map(|device| [1, 1, 2].map(|blocks| allocate(device, blocks))).collect();
        let freed = devices.iter().map(|device| allocate(device, 1).export().unwrap()).collect();
        // Kept to the end.
        standin.write_off();
        Self { standin, devices, memory, freed }
    }

    /// Marks all memory of a block's size, of which ranks use so much, with a word of its own from `tag` on.
    pub fn mark(&self, bytes: usize, tag: u32) {
        let blocks = self.memory.iter().flat_map(|memory| &memory[..2]);
        for (block, word) in blocks.zip(tag..) {
            for at in [0, bytes - size_of::<u32>()] {
                // SAFETY: within the allocation, which is this process's memory, and which no kernel uses now.
                unsafe { (block.address() as *mut u8).add(at).cast::<u32>().write_volatile(word) };
            }
        }
    }

    /// How many words `mark` takes.
    pub fn marks(&self) -> u32 {
        2 * self.memory.len() as u32
    }

    /// The handle of this memory, told as that of device `told`.
    pub fn handle(&self, memory: lies::DeviceMemory, told: usize) -> Vec<u8> {
        let handle = match memory {
            lies::DeviceMemory::Block(device, which) => self.memory[device][which].export().unwrap(),
            lies::DeviceMemory::Larger(device) => self.memory[device][2].export().unwrap(),
            lies::DeviceMemory::Freed(device) => self.freed[device],
        };
        [self.devices[told].uuid.as_slice(), &handle].concat()
    }

    /// Stores into the block of a handle, of `rank`'s, what `peer` has to say for the mappings to be found right.
    pub fn prove(
        &self,
        handle: &[u8],
        (rank, peer): (usize, usize),
        ranks: usize,
        comm_size: usize,
        nonce: Vector,
        proof: Proof,
    ) {
        let (vector, verdict) = match proof {
            Proof::Good => (nonce, ACCEPTED),
            Proof::Vector(vector) => (vector, ACCEPTED),
            Proof::Verdict(word) => (nonce, word),
            Proof::Nothing => return,
        };
        assert_ne!(rank, peer);
        let handle = handle[UUID_BYTES..].try_into().unwrap();
        let block = PeerMemory::open(&self.devices[peer], handle, ALLOCATION_GRANULARITY).unwrap();
        let geometry = Geometry::new(ranks as i64, comm_size as i64).unwrap();
        for (slot, vector) in [vector, [verdict; 4]].into_iter().enumerate() {
            let cell = block.address() + geometry.header_offset(slot, peer) as u64;
            // SAFETY: within the block; this rank has filled it before it told anybody, and its kernel comes later.
            unsafe { (cell as *mut Vector).write_volatile(vector) };
        }
    }
}

/// Whether a proof is that of an honest rank.
pub fn is_good(proof: Proof, nonce: Vector) -> bool {
    match proof {
        Proof::Good => true,
        Proof::Vector(vector) => vector == nonce,
        Proof::Verdict(word) => word == ACCEPTED,
        Proof::Nothing => false,
    }
}
