//! What a rank sends of its block, and how that becomes an open file on another rank.
//!
//! A handle is a claim: a peer may send any numbers, and they may name any file of any process of this user, a block that
//! is shorter than it says, a device, a pipe. So the file is looked at first, without opening it, and is opened only where
//! it is a file in memory by this package's name. Its size must be the one that this rank's own block has, and sealed.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, SealFlags, fcntl_get_seals, fstat, fstatfs, open, readlink};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::limits::Reason;
use crate::memory::access::why_denied;
use crate::text::legible;
use crate::wire::{Reader, Writer};

/// What the files of blocks are called.
pub const NAME: &str = "lamport-rs";
/// The seals of a block: its size stays what it is, and so do these.
pub const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);
/// The least descriptor of a block. Those below are a process's standard streams, closed or not: a block there would have
/// written into it what others print.
pub const LEAST_DESCRIPTOR: i32 = 3;

/// `f_type` of file systems in memory (statfs(2)); files of `memfd_create` are on one that is not mounted anywhere.
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// Bytes of another file's name that an error tells, at most.
const NAME_BYTES: usize = 80;
const ONE_NAMESPACE: &str = "the ranks must see the same processes (one PID namespace)";

/// What a peer needs to map a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle {
    /// The owner.
    pub process: u32,
    /// The owner's descriptor of the block.
    pub descriptor: i32,
    /// The file's identity, so that a recycled process or descriptor number is noticed.
    pub device: u64,
    /// Likewise.
    pub inode: u64,
    /// The file's size in bytes.
    pub bytes: u64,
}

impl Handle {
    /// The handle of this process's `file`.
    pub fn of(file: &OwnedFd) -> Result<Self> {
        let status = fstat(file).map_err(|error| Error::system("fstat", error))?;
        Ok(Self {
            process: std::process::id(),
            descriptor: file.as_raw_fd(),
            device: status.st_dev,
            inode: status.st_ino,
            bytes: status.st_size as u64,
        })
    }

    /// As it travels.
    pub fn encode(&self) -> Vec<u8> {
        let Self { process, descriptor, device, inode, bytes } = *self;
        Writer::default().u32(process).u32(descriptor as u32).u64(device).u64(inode).u64(bytes).finish()
    }

    /// The inverse; `None` if the bytes are no handle.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let handle = Self {
            process: reader.u32()?,
            descriptor: reader.u32()? as i32,
            device: reader.u64()?,
            inode: reader.u64()?,
            bytes: reader.u64()?,
        };
        reader.end().map(|()| handle)
    }

    /// The bytes of an encoded handle that say which file it is.
    pub fn file(encoded: &[u8]) -> &[u8] {
        encoded.get(8..24).unwrap_or(encoded)
    }

    /// Opens the block, if it is one and of `bytes` bytes.
    pub fn open(&self, bytes: u64) -> Result<OwnedFd> {
        if !i32::try_from(self.process).is_ok_and(|process| process > 0) || self.descriptor < LEAST_DESCRIPTOR {
            return Err(self.refused("no rank has a block under such numbers"));
        }
        if self.bytes != bytes {
            return Err(self.refused(format!("the peer gives it {} bytes, but {bytes} were agreed on", self.bytes)));
        }
        let file = self.find()?;
        // Sealed before it is measured: what is measured then stays.
        let seals = fcntl_get_seals(&file).unwrap_or(SealFlags::empty());
        if !seals.contains(SEALS) {
            return Err(self.refused(format!("its size can change in use (it has seals {:#x})", seals.bits())));
        }
        let size = fstat(&file).map_err(|error| self.failed(error))?.st_size;
        if size as u64 != bytes {
            return Err(self.refused(format!("it has {size} bytes, but {bytes} were agreed on")));
        }
        Ok(file)
    }

    /// Opens the file, if it is a file in memory, by our name, and the one that the handle says. No other is opened:
    /// that alone would set a device going, or wait for a pipe's other end or a server that is down.
    fn find(&self) -> Result<OwnedFd> {
        // The kernel's own words for what the descriptor is; to read them does not ask the file's file system.
        let link = readlink(self.path(), vec![]).map_err(|error| self.failed(error))?;
        let name = link.to_string_lossy();
        let in_memory = name.strip_prefix("/memfd:").map(|name| name.strip_suffix(" (deleted)").unwrap_or(name));
        if in_memory != Some(NAME) {
            let name = legible(&name, NAME_BYTES);
            return Err(self.refused(format!("it is {name}, no block of lamport-rs; {ONE_NAMESPACE}")));
        }
        // The owner may have put another file there meanwhile. This holds whatever is there, and opens nothing.
        let held =
            open(self.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(|error| self.failed(error))?;
        let status = fstat(&held).map_err(|error| self.failed(error))?;
        let file_system = fstatfs(&held).map_err(|error| self.failed(error))?.f_type as u64;
        if file_system != TMPFS_MAGIC || FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return Err(self.refused("it is no file in memory"));
        }
        if (status.st_dev, status.st_ino) != (self.device, self.inode) {
            return Err(self.refused(format!("it is another file than the peer exported; {ONE_NAMESPACE}")));
        }
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        open(format!("/proc/self/fd/{}", held.as_raw_fd()), flags, Mode::empty()).map_err(|error| self.failed(error))
    }

    fn refused(&self, reason: impl Into<Reason>) -> Error {
        Error::system(format!("opening a peer's shared memory ({})", self.path()), reason)
    }

    /// The error for a system call's, and what to do where it says that the ranks do not see each other.
    fn failed(&self, error: Errno) -> Error {
        match error {
            Errno::NOENT if Path::new(&format!("/proc/{}", self.process)).exists() => self.refused(format!(
                "{error}: the process has nothing there: its rank gave up, or is another process; {ONE_NAMESPACE}"
            )),
            Errno::NOENT | Errno::ACCESS | Errno::PERM => {
                self.refused(format!("{error}: {}", why_denied(self.process)))
            }
            error => self.refused(error),
        }
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", self.process, self.descriptor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_survives_its_encoding_and_has_one_length() {
        let handle = Handle { process: 7, descriptor: -1, device: 1 << 40, inode: 3, bytes: 4096 };
        let bytes = handle.encode();
        assert_eq!(Handle::decode(&bytes), Some(handle));
        assert!((0..bytes.len()).all(|length| Handle::decode(&bytes[..length]).is_none()));
        assert_eq!(Handle::decode(&[bytes.as_slice(), &[0]].concat()), None);
    }

    #[test]
    fn a_file_is_the_same_whatever_else_a_handle_says() {
        let handle = Handle { process: 7, descriptor: 5, device: 1, inode: 3, bytes: 4096 };
        let file = |handle: Handle| Handle::file(&handle.encode()).to_vec();
        assert_eq!(file(handle), file(Handle { process: 8, descriptor: 6, bytes: 8192, ..handle }));
        assert_ne!(file(handle), file(Handle { device: 2, ..handle }));
        assert_ne!(file(handle), file(Handle { inode: 2, ..handle }));
        assert_eq!(Handle::file(&[1, 2]), &[1, 2], "whatever has another length is refused when it is decoded");
    }
}
