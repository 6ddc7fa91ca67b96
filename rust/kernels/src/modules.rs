//! The embedded modules.

use std::ffi::CString;
use std::io::{self, Read};

use ruzstd::decoding::StreamingDecoder;

use crate::catalogue::ModuleKey;
use crate::image::Image;

/// Where an image is.
struct Place {
    /// Index into `ARCHIVES`.
    archive: usize,
    /// Where it begins, once that is decompressed.
    start: usize,
    /// Its length in bytes.
    bytes: usize,
}

// `ARCHIVES`: Zstandard frames, each of several images. `PLACES`: a row per module in the catalogue's order, with a
// column per image in the order of `Image::all`.
include!(concat!(env!("OUT_DIR"), "/modules.rs"));

/// The PTX of a module for a device of compute capability `(major, minor)`.
///
/// `None` if the device is too old (before 8.0), or if the catalogue has no such module: not every weight dtype goes
/// with every dtype.
pub fn ptx(key: ModuleKey, compute_capability: (u32, u32)) -> Option<CString> {
    let is_it = |image: &Image| matches!(image, Image::Ptx(_)) && image.runs_on(compute_capability);
    Some(CString::new(read(key, is_it)?).expect("PTX is text"))
}

/// The machine code of a module for such a device: an ELF file.
///
/// `None` if there is none for the device, which then compiles the PTX; or if the catalogue has no such module.
pub fn machine_code(key: ModuleKey, compute_capability: (u32, u32)) -> Option<Vec<u8>> {
    read(key, |image| matches!(image, Image::MachineCode(_)) && image.runs_on(compute_capability))
}

/// The last image of a module that `is_it`.
fn read(key: ModuleKey, is_it: impl Fn(&Image) -> bool) -> Option<Vec<u8>> {
    let row = ModuleKey::all().position(|other| other == key)?;
    let (column, _) = Image::all().enumerate().filter(|(_, image)| is_it(image)).last()?;
    let Place { archive, start, bytes } = PLACES[row][column];
    Some(extract(ARCHIVES[archive], start, bytes).expect("the build script compressed it"))
}

/// Decompresses what comes before, too, but keeps only what is asked for.
fn extract(archive: &[u8], start: usize, bytes: usize) -> io::Result<Vec<u8>> {
    let mut decoder = StreamingDecoder::new(archive).map_err(io::Error::other)?;
    io::copy(&mut decoder.by_ref().take(start as u64), &mut io::sink())?;
    let mut image = vec![0; bytes];
    decoder.read_exact(&mut image)?;
    Ok(image)
}
