//! Memory of one host's GPUs, as memory that crosses processes.
//!
//! Blocks come from the synchronous allocator: the driver refuses to export memory of the stream-ordered one.

use std::sync::Arc;

use cudarc::driver::sys;
use lamport_rs_kernels::ModuleKey;
use lamport_rs_kernels::parameters::FillParameters;
use lamport_rs_kernels::plan;
use lamport_rs_protocol::sentinel::{SENTINEL, Vector};

use crate::cuda::device::Device;
use crate::cuda::driver::check;
use crate::cuda::launch::RelaxedCapture;
use crate::deferred::drop_deferred;
use crate::error::{Error, Result};
use crate::memory::Memory;

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
#[derive(Debug)]
pub struct CudaMemory {
    device: Arc<Device>,
}

impl CudaMemory {
    /// Memory of `device`.
    pub fn new(device: Arc<Device>) -> Self {
        Self { device }
    }
}

impl Memory for CudaMemory {
    const NAME: &'static str = "cuda";
    const NEEDS_PAGES: bool = false;
    const OUTLIVES_ITS_BLOCK: bool = false;
    type Block = DeviceMemory;
    type Mapping = PeerMemory;

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
        // What is free can serve this.
        drop_deferred();
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

    fn await_fill(&self, block: &DeviceMemory) -> Result<()> {
        // SAFETY: the default stream, which the fill is on.
        unsafe { block.device.synchronise(std::ptr::null_mut()) }
    }

    fn refill(&self, block: &DeviceMemory, bytes: usize) -> Result<()> {
        assert!(bytes <= block.bytes, "{bytes} bytes are more than the block has");
        let _entered = block.device.enter()?;
        // SAFETY: the words are the allocation's own, and the stream is the default one.
        unsafe { fill(&block.device, block.address(), bytes as u64, std::ptr::null_mut())? };
        self.await_fill(block)
    }

    fn export(&self, block: &mut DeviceMemory, _nonce: Vector) -> Result<Vec<u8>> {
        Ok([self.device.uuid.as_slice(), &block.export()?].concat())
    }

    fn identity(handle: &[u8]) -> &[u8] {
        // Without the device, which a handle of the driver's implies.
        handle.get(UUID_BYTES..).unwrap_or(handle)
    }

    fn map(&self, handle: &[u8], _nonce: Vector, bytes: usize) -> Result<PeerMemory> {
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

    fn await_kernels(block: &DeviceMemory) -> Result<()> {
        block.device.wait_for_kernels()
    }

    fn address(block: &DeviceMemory) -> u64 {
        block.address()
    }

    fn mapped_address(mapping: &PeerMemory) -> u64 {
        mapping.address()
    }
}

/// Bytes of an IPC handle.
pub const HANDLE_BYTES: usize = 64;

/// Device memory of this process.
#[derive(Debug)]
pub struct DeviceMemory {
    device: Arc<Device>,
    address: u64,
    bytes: usize,
}

impl DeviceMemory {
    /// Allocates `bytes` bytes.
    pub fn allocate(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        Ok(Self { device: device.clone(), address: device.allocate(bytes)?, bytes })
    }

    /// Where it is.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// What another process needs to map it.
    pub fn export(&self) -> Result<[u8; HANDLE_BYTES]> {
        let _entered = self.device.enter()?;
        let mut handle = sys::CUipcMemHandle { reserved: [0; HANDLE_BYTES] };
        // SAFETY: the address is that of a whole allocation of the synchronous allocator.
        check("cuIpcGetMemHandle", unsafe { sys::cuIpcGetMemHandle(&mut handle, self.address) })?;
        Ok(handle.reserved.map(|byte| byte as u8))
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: allocated by `allocate`.
        let _ = unsafe { self.device.free(self.address) };
    }
}

/// A peer's memory.
#[derive(Debug)]
pub struct PeerMemory {
    device: Arc<Device>,
    address: u64,
}

impl PeerMemory {
    /// Maps what a peer exported, for kernels of `device`, if it is an allocation of `bytes` bytes.
    pub fn open(device: &Arc<Device>, handle: [u8; HANDLE_BYTES], bytes: usize) -> Result<Self> {
        let _entered = device.enter()?;
        // A `char` of C has a sign on x86-64 and none on aarch64.
        let handle = sys::CUipcMemHandle { reserved: handle.map(|byte| byte as std::ffi::c_char) };
        let flags = sys::CUipcMem_flags::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
        let mut address = 0;
        // SAFETY: the context is current; the driver refuses bytes that are no handle.
        check("cuIpcOpenMemHandle", unsafe { sys::cuIpcOpenMemHandle_v2(&mut address, handle, flags) })?;
        let memory = Self { device: device.clone(), address };
        memory.check_range(bytes)?;
        Ok(memory)
    }

    /// Checks that the mapping begins where kernels are told, and is as long: they store into all of it.
    fn check_range(&self, bytes: usize) -> Result<()> {
        let (mut base, mut size) = (0, 0);
        // SAFETY: the context is current, as in `open`.
        check("cuMemGetAddressRange", unsafe { sys::cuMemGetAddressRange_v2(&mut base, &mut size, self.address) })?;
        if (base, size) == (self.address, bytes) {
            return Ok(());
        }
        let offset = self.address.wrapping_sub(base);
        Err(Error::Argument(format!(
            "it is {size} bytes of device memory, mapped from byte {offset} on, but {bytes} bytes from the first were \
             agreed on"
        )))
    }

    /// Where it is in this process.
    pub fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for PeerMemory {
    fn drop(&mut self) {
        let (Ok(_entered), Ok(_relaxed)) = (self.device.enter(), RelaxedCapture::begin()) else { return };
        // SAFETY: mapped by `open`.
        let _ = unsafe { sys::cuIpcCloseMemHandle(self.address) };
    }
}

/// Fills `bytes` bytes (a multiple of 4) of device memory with the sentinel, in `stream`'s order.
///
/// # Safety
/// The memory is the device's and aligned to 4, `stream` is one of its streams, and the device's context is current.
unsafe fn fill(device: &Device, address: u64, bytes: u64, stream: sys::CUstream) -> Result<()> {
    let parameters = FillParameters { begin: address, words: bytes / 4 };
    let plan = plan::fill(parameters.words, device.plan);
    let function = device.modules.function(ModuleKey::Fill, device)?;
    // SAFETY: the caller's promises; these are the parameters of `fill`.
    unsafe { function.launch(&plan, stream, &parameters) }
}

/// Fills memory likewise, and waits for that.
///
/// # Safety
/// The memory is the device's and aligned to 4, and `stream` is one of the device's streams, or null for the default one of
/// the thread's context.
pub unsafe fn fill_and_wait(device: &Device, address: u64, bytes: u64, stream: sys::CUstream) -> Result<()> {
    if bytes > 0 {
        let _entered = device.enter_for(stream)?;
        // SAFETY: the caller's promises; the device's context is current.
        unsafe { fill(device, address, bytes, stream) }?;
    }
    // SAFETY: the caller's promise.
    unsafe { device.synchronise(stream) }
}
