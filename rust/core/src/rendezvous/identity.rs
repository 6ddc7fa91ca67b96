//! What tells a host's boot from all others, and one construction from another.

use lamport_rs_protocol::sentinel::{Vector, scrub};

use crate::error::{Error, Result};

/// Where the kernel tells it.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// The identity of the host's present boot: equal for all processes under one kernel, containers included. The host's
/// name where the kernel does not tell; containers on one host may have names of their own.
pub fn host_identity() -> Result<String> {
    match std::fs::read_to_string(BOOT) {
        Ok(boot) if !boot.trim().is_empty() => Ok(boot.trim().to_owned()),
        // That this process has no descriptor left must not make it one of another host.
        Err(error) if !is_hidden(&error) => Err(Error::system(format!("reading {BOOT}"), error)),
        _ => Ok(rustix::system::uname().nodename().to_string_lossy().into_owned()),
    }
}

/// Whether the kernel or a container does not show the file, to any process.
fn is_hidden(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied)
}

/// Random words, none of them the sentinel's.
pub fn nonce() -> Result<Vector> {
    let mut bytes = [0_u8; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
            .map_err(|error| Error::system("getrandom", error))?;
    }
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    Ok(scrub([word(0), word(4), word(8), word(12)]))
}
