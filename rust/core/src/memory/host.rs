//! Blocks of shared memory that ranks of one host map.
//!
//! A block is an anonymous file in memory (`memfd_create`): it never has a name, so nothing can be left behind in
//! `/dev/shm`, whenever and however its ranks die, and nobody can guess it. A peer opens it through the owner's
//! `/proc/<pid>/fd/<fd>`, which the kernel allows to processes of the same user only. Its size is sealed, so that no
//! peer can shrink it under another's feet.

use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, Mode, fchmod, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use lamport_rs_protocol::memory::{LINE_BYTES, LINE_VECTORS};
use lamport_rs_protocol::sentinel::{EMPTY, VECTOR_BYTES, Vector};

use crate::error::{Error, Result};
use crate::interrupts::Interrupted;
use crate::memory::Memory;
use crate::memory::handle::{Handle, LEAST_DESCRIPTOR, NAME, SEALS};
use crate::memory::vector_access::{Portable, VectorAccess};

/// Bytes at a block's end for what its owner lets peers find there.
const MARK_BYTES: usize = size_of::<Vector>();
/// Bytes written at once when a block is filled: small enough for the second-level cache.
const FILL_BYTES: usize = 64 << 10;
/// Bytes written between two questions whether to give up: some milliseconds.
const ASK_BYTES: usize = 16 << 20;

/// One mapping of one block.
#[derive(Debug)]
pub struct Mapping {
    pointer: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a mapping is an address range that stays valid until it is dropped, whichever thread holds it. What is read
// and written through the pointer is the business of those who do so.
unsafe impl Send for Mapping {}
// SAFETY: as above; no method changes the mapping itself.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: &impl std::os::fd::AsFd, bytes: usize, protection: ProtFlags) -> Result<Self> {
        // SAFETY: a fresh mapping at an address of the kernel's choosing aliases nothing of this process.
        let pointer = unsafe { mmap(std::ptr::null_mut(), bytes, protection, MapFlags::SHARED, file, 0) }
            .map_err(|error| Error::system(format!("mapping {bytes} bytes of shared memory"), error))?;
        let pointer = NonNull::new(pointer.cast()).expect("mmap does not return the null page");
        Ok(Self { pointer, bytes })
    }

    /// Where the mark is.
    fn mark(&self) -> *mut u8 {
        // SAFETY: a mapping of a block is whole pages, at least one.
        unsafe { self.pointer.add(self.bytes - MARK_BYTES) }.as_ptr()
    }

    /// Where the block is in this process.
    pub fn pointer(&self) -> NonNull<u8> {
        self.pointer
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping's own, and whoever used the pointer had to keep the mapping.
        let unmapped = unsafe { munmap(self.pointer.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

/// A block that this process owns. Behind what was asked for lies the mark, by which peers prove their mappings.
#[derive(Debug)]
pub struct Block {
    /// Open until all peers have mapped the block.
    file: Option<OwnedFd>,
    mapping: Arc<Mapping>,
    handle: Handle,
}

impl Block {
    /// Allocates `bytes` bytes and writes `word` over all of them.
    pub fn allocate(bytes: usize, word: u32) -> Result<Self> {
        let block = Self::reserve(bytes)?;
        block.fill(word, &mut || false)?;
        Ok(block)
    }

    /// Allocates `bytes` bytes, all zero: the kernel takes memory only for what is written.
    pub fn reserve(bytes: usize) -> Result<Self> {
        let bytes = file_bytes(bytes);
        let file = create_file().map_err(|error| Error::system("memfd_create", error))?;
        fchmod(&file, Mode::RUSR | Mode::WUSR).map_err(|error| Error::system("fchmod", error))?;
        ftruncate(&file, bytes as u64)
            .map_err(|error| Error::system(format!("allocating {bytes} bytes of shared memory"), error))?;
        fcntl_add_seals(&file, SEALS).map_err(|error| Error::system("sealing shared memory", error))?;
        let mapping = Arc::new(Mapping::new(&file, bytes, ProtFlags::READ | ProtFlags::WRITE)?);
        let handle = Handle::of(&file)?;
        Ok(Self { file: Some(file), mapping, handle })
    }

    /// Writes `word` over all but the mark. To be called before all peers have mapped the block.
    pub fn fill(&self, word: u32, interrupted: Interrupted<'_>) -> Result<()> {
        let file = self.file.as_ref().expect("a block is filled before its descriptor is closed");
        fill(file, self.mapping.bytes - MARK_BYTES, word, interrupted)
    }

    /// What peers need to map this block. They will find `mark` in it.
    pub fn export(&mut self, mark: Vector) -> Handle {
        // SAFETY: the mark is aligned, as the block's end is; peers that have an earlier handle read it, and whatever
        // they find is for them to compare.
        unsafe { Portable::store(self.mapping.mark(), mark) };
        self.handle
    }

    /// Gives up the descriptor: no further peer can map the block.
    pub fn close_descriptor(&mut self) {
        self.file = None;
    }

    /// Where the block is in this process.
    pub fn pointer(&self) -> NonNull<u8> {
        self.mapping.pointer()
    }

    /// Its mapping in this process.
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// The mapping alone.
    pub fn into_mapping(self) -> Arc<Mapping> {
        self.mapping
    }
}

/// Bytes of the file of a block of `bytes` bytes.
pub fn file_bytes(bytes: usize) -> usize {
    (bytes + MARK_BYTES).next_multiple_of(rustix::param::page_size())
}

/// An empty file in memory, which nobody can make executable where the kernel knows to prevent it (from Linux 6.3).
fn create_file() -> rustix::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create(NAME, flags | MemfdFlags::NOEXEC_SEAL).or_else(|error| match error {
        // A flag that it does not know.
        rustix::io::Errno::INVAL => memfd_create(NAME, flags),
        error => Err(error),
    })?;
    if file.as_raw_fd() >= LEAST_DESCRIPTOR {
        return Ok(file);
    }
    rustix::io::fcntl_dupfd_cloexec(&file, LEAST_DESCRIPTOR)
}

/// Writes `word` over the first `bytes` bytes of `file`. A write that covers whole pages spares the kernel clearing them
/// first, which takes as long again as the filling.
fn fill(file: &OwnedFd, bytes: usize, word: u32, interrupted: Interrupted<'_>) -> Result<()> {
    let pattern = word.to_ne_bytes().repeat(FILL_BYTES.min(bytes) / size_of::<u32>());
    let (mut done, mut ask_at) = (0, ASK_BYTES);
    while done < bytes {
        let part = &pattern[..FILL_BYTES.min(bytes - done)];
        done += rustix::io::pwrite(file, part, done as u64)
            .map_err(|error| Error::system(format!("filling {bytes} bytes of shared memory"), error))?;
        if done >= ask_at && done < bytes {
            ask_at = done + ASK_BYTES;
            if interrupted() {
                return Err(Error::Agreement(format!("interrupted while filling {bytes} bytes of shared memory")));
            }
        }
    }
    Ok(())
}

/// Maps a peer's block of `bytes` bytes, and looks for the peer's mark in it: what the one wrote must be what the other
/// reads.
pub fn open(handle: &Handle, mark: Vector, bytes: usize) -> Result<Mapping> {
    open_for(ProtFlags::READ | ProtFlags::WRITE, handle, mark, bytes)
}

/// Likewise, but nothing is stored there through the mapping.
pub fn open_to_read(handle: &Handle, mark: Vector, bytes: usize) -> Result<Mapping> {
    open_for(ProtFlags::READ, handle, mark, bytes)
}

fn open_for(protection: ProtFlags, handle: &Handle, mark: Vector, bytes: usize) -> Result<Mapping> {
    let bytes = file_bytes(bytes);
    let file = handle.open(bytes as u64)?;
    let mapping = Mapping::new(&file, bytes, protection)?;
    // SAFETY: the mark is aligned, and its owner wrote it before it exported the block.
    if unsafe { Portable::load(mapping.mark()) } != mark {
        return Err(Error::system(
            format!("verifying the shared memory of process {}", handle.process),
            "what the peer wrote there is not what is read here",
        ));
    }
    Ok(mapping)
}

/// Shared memory of one host.
#[derive(Clone, Copy, Debug)]
pub struct HostMemory;

impl Memory for HostMemory {
    const NAME: &'static str = "host";
    /// The kernel keeps it as long as it is mapped anywhere.
    const OUTLIVES_ITS_BLOCK: bool = true;
    type Block = Block;
    type Mapping = Arc<Mapping>;

    fn device(&self) -> String {
        format!("cpu, process {}", std::process::id())
    }

    fn host_bytes(bytes: usize) -> usize {
        file_bytes(bytes)
    }

    fn allocate(&self, bytes: usize, _word: u32) -> Result<Block> {
        Block::reserve(bytes)
    }

    fn fill(&self, block: &Block, word: u32, interrupted: Interrupted<'_>) -> Result<()> {
        block.fill(word, interrupted)
    }

    fn refill(&self, block: &Block, bytes: usize) -> Result<()> {
        assert!(bytes <= block.mapping.bytes - MARK_BYTES && bytes.is_multiple_of(VECTOR_BYTES));
        let start = block.pointer().as_ptr();
        let lines_end = bytes / LINE_BYTES * LINE_BYTES;
        for offset in (0..lines_end).step_by(LINE_BYTES) {
            // SAFETY: within the mapping, whose start is that of a page; slots are accessed through `VectorAccess` only.
            unsafe { Portable::store_line(start.add(offset), [EMPTY; LINE_VECTORS]) };
        }
        for offset in (lines_end..bytes).step_by(VECTOR_BYTES) {
            // SAFETY: as above.
            unsafe { Portable::store(start.add(offset), EMPTY) };
        }
        Ok(())
    }

    fn export(&self, block: &mut Block, nonce: Vector) -> Result<Vec<u8>> {
        Ok(block.export(nonce).encode())
    }

    fn identity(handle: &[u8]) -> &[u8] {
        Handle::file(handle)
    }

    fn map(&self, handle: &[u8], nonce: Vector, bytes: usize) -> Result<Arc<Mapping>> {
        let handle = Handle::decode(handle).ok_or_else(|| Error::Argument("its handle cannot be read".into()))?;
        open(&handle, nonce, bytes).map(Arc::new)
    }

    fn all_have_mapped(&self, block: &mut Block) {
        block.close_descriptor();
    }

    fn address(block: &Block) -> u64 {
        block.pointer().as_ptr() as u64
    }

    fn mapped_address(mapping: &Arc<Mapping>) -> u64 {
        mapping.pointer().as_ptr() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_shows_what_its_owner_wrote() {
        let mut block = Block::allocate(4096, 7).unwrap();
        let mapping = open(&block.export([1, 2, 3, 4]), [1, 2, 3, 4], 4096).unwrap();
        // SAFETY: both mappings are as long, and nobody else has them.
        unsafe {
            block.pointer().cast::<u32>().write_volatile(8);
            assert_eq!(mapping.pointer().cast::<u32>().read_volatile(), 8);
            assert_eq!(mapping.pointer().cast::<u32>().add(1023).read_volatile(), 7, "the mark is behind the block");
        }
    }

    #[test]
    fn a_block_with_another_mark_is_an_error() {
        let mut block = Block::allocate(4096, 0).unwrap();
        let error = open(&block.export([1, 2, 3, 4]), [1, 2, 3, 5], 4096).unwrap_err().to_string();
        assert!(error.contains("verifying the shared memory"), "{error}");
    }

    #[test]
    fn a_block_cannot_be_made_executable_where_the_kernel_can_prevent_it() {
        let kernel_can = memfd_create("probe", MemfdFlags::NOEXEC_SEAL).is_ok();
        let block = Block::allocate(4096, 0).unwrap();
        let file = block.file.as_ref().unwrap();
        assert_eq!(rustix::fs::fstat(file).unwrap().st_mode & 0o777, 0o600);
        assert_eq!(fchmod(file, Mode::RWXU).is_err(), kernel_can);
    }
}
