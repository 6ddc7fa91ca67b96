//! The embedded PTX.

use std::ffi::CString;

use crate::catalogue::{ARCHITECTURES, ModuleKey};

/// A row per module and a column per architecture, in the catalogue's order; each entry a zlib stream.
static COMPRESSED: &[[&[u8]; ARCHITECTURES.len()]] = &include!(concat!(env!("OUT_DIR"), "/modules.rs"));

/// The PTX of a module for a device of compute capability `(major, minor)`.
///
/// `None` if the device is too old (before 8.0), or if the catalogue has no such module: not every weight dtype goes
/// with every dtype.
pub fn module(key: ModuleKey, compute_capability: (u32, u32)) -> Option<CString> {
    let (major, minor) = compute_capability;
    let architecture = ARCHITECTURES.iter().rposition(|&architecture| architecture <= 10 * major + minor)?;
    let row = ModuleKey::all().position(|other| other == key)?;
    let ptx = miniz_oxide::inflate::decompress_to_vec_zlib(COMPRESSED[row][architecture])
        .expect("the build script compressed it");
    Some(CString::new(ptx).expect("PTX is text"))
}
