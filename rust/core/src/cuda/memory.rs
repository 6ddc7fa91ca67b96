//! Device memory, memory that crosses processes, and words in pinned host memory.
//!
//! Blocks come from the synchronous allocator: the driver refuses to export memory of the stream-ordered one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cudarc::driver::sys;
use lamport_rs_kernels::parameters::Report;
use lamport_rs_protocol::geometry::MAX_WORLD_SIZE;
use lamport_rs_protocol::rank_set::RankSet;
use lamport_rs_protocol::sentinel::Vector;

use super::device::Device;
use super::driver::check;
use super::launch::RelaxedCapture;
use super::pool::{Kind, PooledBuffer};
use crate::error::{Error, Result};

/// Bytes of an IPC handle.
pub const HANDLE_BYTES: usize = 64;

/// Device memory of this process.
#[derive(Debug)]
pub struct DeviceMemory {
    device: Arc<Device>,
    address: u64,
}

impl DeviceMemory {
    /// Allocates `bytes` bytes.
    pub fn allocate(device: &Arc<Device>, bytes: usize) -> Result<Self> {
        let _entered = device.enter()?;
        let mut address = 0;
        // SAFETY: the context is current.
        check(&format!("cuMemAlloc of {bytes} bytes on cuda:{}", device.index), unsafe {
            sys::cuMemAlloc_v2(&mut address, bytes)
        })?;
        Ok(Self { device: device.clone(), address })
    }

    /// Where it is.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The memory, which this is no longer.
    pub fn take(&mut self) -> Self {
        Self { device: self.device.clone(), address: std::mem::take(&mut self.address) }
    }

    /// Frees it, once no kernel uses it any more. After an error it is lost, and kernels may still run.
    pub fn free(&mut self) -> Result<()> {
        let address = std::mem::take(&mut self.address);
        if address == 0 {
            return Ok(());
        }
        let (_entered, _relaxed) = (self.device.enter()?, RelaxedCapture::begin()?);
        // SAFETY: allocated by `allocate`, and not freed before. The call waits for work that uses the memory.
        check("cuMemFree", unsafe { sys::cuMemFree_v2(address) })
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
        let _ = self.free();
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

/// Words that kernels and the host tell each other, as atomics only: reports of faults, and the result of the
/// verification.
#[derive(Debug)]
pub struct PinnedWords(PooledBuffer);

/// Bytes for them, in lines of their own.
pub const PINNED_BYTES: usize = size_of::<Report>().next_multiple_of(128);

/// How long the host waits for the rest of a report, of which the first word is there.
const REST_OF_REPORT: Duration = Duration::from_millis(100);

/// What the verification's result is before the kernel has written it: no set of ranks.
const NO_RESULT: u32 = u32::MAX;

impl PinnedWords {
    /// Takes them, and makes them what they are before any operation.
    pub fn take(device: &Arc<Device>) -> Result<Self> {
        let words = Self(PooledBuffer::take(device, Kind::Pinned)?);
        // SAFETY: the buffer is that large and as aligned as lines are, and nobody else has it.
        unsafe { words.pointer().write(Report { verification: NO_RESULT, ..Report::default() }) };
        Ok(words)
    }

    fn pointer(&self) -> *mut Report {
        self.0.pointer().cast()
    }

    /// Forgets what was reported. No kernel of the workspace runs.
    pub fn clear(&self) {
        let report = self.pointer();
        // SAFETY: valid until dropped, and written by nobody else meanwhile.
        unsafe {
            (&raw mut (*report).operation).write_volatile(Vector::default());
            AtomicU32::from_ptr(&raw mut (*report).ranks).store(0, Ordering::Release);
        }
    }

    /// The report's address for kernels.
    pub fn report_address(&self) -> u64 {
        self.0.address()
    }

    /// The result's address for the verification.
    pub fn result_address(&self) -> u64 {
        self.0.address() + std::mem::offset_of!(Report, verification) as u64
    }

    /// The first word of the [`Report`]: 0 as long as there is no fault.
    #[inline]
    pub fn faults(&self) -> u32 {
        // SAFETY: valid until dropped; kernels write it with system-scope atomics.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.pointer()).ranks) }.load(Ordering::Acquire)
    }

    /// Tells the kernels that wait, or will, that these ranks send nothing more, and that what they have sent is there.
    pub fn tell_ended(&self, ranks: RankSet) {
        // SAFETY: valid until dropped; kernels read it only.
        let word = unsafe { AtomicU32::from_ptr(&raw mut (*self.pointer()).ended) };
        if word.load(Ordering::Relaxed) != ranks.0.into() {
            word.store(ranks.0.into(), Ordering::Release);
        }
    }

    /// What the operation was in which the fault was noticed, once that is there; `None` if it does not come.
    pub fn operation(&self) -> Option<Vector> {
        let began = Instant::now();
        while began.elapsed() < REST_OF_REPORT {
            // SAFETY: valid until dropped; the kernel writes it once, a vector at a time.
            let header = unsafe { (&raw const (*self.pointer()).operation).read_volatile() };
            if header != Vector::default() {
                return Some(header);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        None
    }

    /// What rank `rank` did, if it is among those that differ: stored before the report's first word.
    pub fn peer_operation(&self, rank: usize) -> Vector {
        // SAFETY: as in `operation`.
        unsafe { (&raw const (*self.pointer()).peers[rank]).read_volatile() }
    }

    /// The verification's result, once its kernel has stored it: the ranks whose stores did not arrive, and those that
    /// say so of others.
    pub fn result(&self) -> Option<(RankSet, RankSet)> {
        // SAFETY: as in `faults`.
        let result = unsafe { AtomicU32::from_ptr(&raw mut (*self.pointer()).verification) }.load(Ordering::Acquire);
        (result != NO_RESULT).then_some((RankSet(result as u16), RankSet((result >> MAX_WORLD_SIZE) as u16)))
    }

    /// Nobody is to get the memory after this: kernels may still use it.
    pub fn abandon(&mut self) {
        self.0.abandon();
    }
}
