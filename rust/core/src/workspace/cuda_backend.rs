//! Device memory as memory that crosses processes.

use std::sync::Arc;

use cudarc::driver::sys;
use lamport_rs_kernels::ModuleKey;
use lamport_rs_kernels::parameters::FillParameters;
use lamport_rs_kernels::plan;
use lamport_rs_protocol::sentinel::{SENTINEL, Vector};

use crate::cuda::device::Device;
use crate::cuda::driver::check;
use crate::cuda::memory::{DeviceMemory, HANDLE_BYTES, PeerMemory};
use crate::error::{Error, Result};
use crate::rendezvous::construct::Backend;

/// Bytes of a device's UUID, in front of a handle of the driver's.
const UUID_BYTES: usize = 16;
/// Environment variable that lets several ranks be on one GPU.
const SHARE_GPU: &str = "LAMPORT_RS_SHARE_GPU";

/// The driver gives each process a slice of time, in which its kernels wait in vain for the others'. So it is right, but
/// so slow that it is an error by default.
fn ranks_may_share_a_gpu() -> bool {
    std::env::var_os(SHARE_GPU).is_some_and(|value| value == "1")
}

/// Bytes to allocate for a block of `bytes`. Smaller allocations share a block with strangers, and exporting one exports
/// the block.
fn allocated_bytes(bytes: usize) -> usize {
    bytes.next_multiple_of(lamport_rs_protocol::geometry::ALLOCATION_GRANULARITY)
}

/// Device memory of one host's GPUs.
pub struct CudaBackend {
    device: Arc<Device>,
}

impl CudaBackend {
    /// Memory of `device`.
    pub fn new(device: Arc<Device>) -> Self {
        Self { device }
    }
}

impl Backend for CudaBackend {
    const NAME: &'static str = "cuda";
    const NEEDS_PAGES: bool = false;
    type Block = DeviceMemory;
    type Peer = PeerMemory;

    fn name(&self) -> String {
        let checked = if self.device.checks_operations { ", operations checked" } else { "" };
        format!("{}{checked}", Self::NAME)
    }

    fn device(&self) -> String {
        self.device.describe()
    }

    fn plan(&self) -> Option<plan::Device> {
        Some(self.device.plan)
    }

    fn allocate(&self, bytes: usize, word: u32) -> Result<DeviceMemory> {
        let bytes = allocated_bytes(bytes);
        let memory = DeviceMemory::allocate(&self.device, bytes)?;
        let _entered = self.device.enter()?;
        if word == SENTINEL {
            // SAFETY: the words are the allocation's own, and the stream is the default one.
            unsafe { fill(&self.device, memory.address(), bytes as u64, std::ptr::null_mut()) }?;
        } else {
            // SAFETY: the words are the allocation's own.
            check("cuMemsetD32", unsafe { sys::cuMemsetD32_v2(memory.address(), word, bytes / 4) })?;
        }
        Ok(memory)
    }

    fn await_fill(&self, _block: &DeviceMemory) -> Result<()> {
        // SAFETY: the default stream, which the fill is on.
        unsafe { self.device.synchronise(std::ptr::null_mut()) }
    }

    fn export(&self, block: &mut DeviceMemory, _nonce: Vector) -> Result<Vec<u8>> {
        Ok([self.device.uuid.as_slice(), &block.export()?].concat())
    }

    fn identity(handle: &[u8]) -> &[u8] {
        // Without the device, which a handle of the driver's implies.
        handle.get(UUID_BYTES..).unwrap_or(handle)
    }

    fn open(&self, handle: &[u8], _nonce: Vector, bytes: usize) -> Result<PeerMemory> {
        let (uuid, handle) = handle.split_at_checked(UUID_BYTES).unwrap_or_default();
        let handle: [u8; HANDLE_BYTES] =
            handle.try_into().map_err(|_| Error::Argument("its handle cannot be read".to_owned()))?;
        if uuid == self.device.uuid && !ranks_may_share_a_gpu() {
            return Err(Error::Argument(format!(
                "it is on the same GPU as this rank ({}); give every rank a GPU of its own, or set {SHARE_GPU}=1 to \
                 try things out: the ranks then take turns, milliseconds each",
                self.device.describe()
            )));
        }
        PeerMemory::open(&self.device, handle, allocated_bytes(bytes))
    }

    fn own_address(block: &DeviceMemory) -> u64 {
        block.address()
    }

    fn peer_address(peer: &PeerMemory) -> u64 {
        peer.address()
    }
}

/// Fills the first `bytes` bytes of an allocation with the sentinel, and waits for that.
pub fn fill_and_wait(device: &Device, memory: &DeviceMemory, bytes: usize) -> Result<()> {
    let _entered = device.enter()?;
    // SAFETY: the words are the allocation's own, and the stream is the default one.
    unsafe {
        fill(device, memory.address(), bytes as u64, std::ptr::null_mut())?;
        device.synchronise(std::ptr::null_mut())
    }
}

/// Fills `bytes` bytes (a multiple of 4) of device memory with the sentinel, in `stream`'s order.
///
/// # Safety
/// The memory is the device's and aligned to 4, `stream` is one of its streams, and the device's context is current.
pub unsafe fn fill(device: &Device, address: u64, bytes: u64, stream: sys::CUstream) -> Result<()> {
    let parameters = FillParameters { begin: address, words: bytes / 4 };
    let plan = plan::fill(parameters.words, device.plan);
    let function = device.modules.function(ModuleKey::Fill, device)?;
    // SAFETY: the caller's promises; these are the parameters of `fill`.
    unsafe { function.launch(&plan, stream, &parameters) }
}
