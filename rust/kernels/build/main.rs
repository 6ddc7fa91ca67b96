//! Compiles every module of the catalogue to PTX with NVRTC, and writes the index that the library embeds.
//!
//! No GPU and no CUDA toolkit are needed: NVRTC is one library, from the package registry.

mod constants;
mod nvrtc;
mod python;

#[path = "../src/catalogue.rs"]
#[allow(dead_code, missing_docs)]
mod catalogue;
#[path = "../src/dtype.rs"]
#[allow(dead_code, missing_docs)]
mod dtype;
#[path = "../src/parameters.rs"]
#[allow(dead_code, missing_docs)]
mod parameters;
#[path = "../src/variants.rs"]
#[allow(dead_code, missing_docs)]
mod variants;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

use catalogue::{ARCHITECTURES, ModuleKey};
use nvrtc::{Nvrtc, Source};

/// Compilations at the same time.
const THREADS: usize = 2;
/// PTX is long-winded: what would be 5 MB comes to a tenth.
const COMPRESSION_LEVEL: u8 = 9;

fn main() {
    if let Err(message) = build() {
        // One message, without the backtrace of a panic.
        for line in message.lines() {
            println!("cargo::error={line}");
        }
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
    println!("cargo::rerun-if-changed={}", kernels.display());
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=src");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: this is a build script")?);

    let mut headers = read_headers(&kernels)?;
    headers.push(Source { name: "constants.cuh".to_owned(), text: constants::header() });
    fs::write(out.join("constants.cuh"), &headers.last().expect("just pushed").text).map_err(|e| e.to_string())?;
    let nvrtc = Nvrtc::find()?;
    let jobs: Vec<_> = ModuleKey::all().flat_map(|key| ARCHITECTURES.map(|architecture| (key, architecture))).collect();
    let next = AtomicUsize::new(0);
    let compile_all = || -> Result<(), String> {
        while let Some(&(key, architecture)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let name = format!("{}.cu", key.function().to_string_lossy());
            let source = Source { text: read(&kernels.join(&name))?, name };
            let ptx = nvrtc.compile(&source, &headers, &key.definitions(), architecture)?;
            let compressed = miniz_oxide::deflate::compress_to_vec_zlib(ptx.as_bytes(), COMPRESSION_LEVEL);
            let file = out.join(file_name(key, architecture));
            fs::write(&file, compressed).map_err(|error| format!("{}: {error}", file.display()))?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(compile_all)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a compiling thread panicked")?)
    })?;
    write_index(&out)
}

/// Writes an array with a row per module and a column per architecture, in the catalogue's order.
fn write_index(out: &Path) -> Result<(), String> {
    let mut index = String::from("[\n");
    for key in ModuleKey::all() {
        let columns = ARCHITECTURES.map(|architecture| {
            format!("include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{}\")).as_slice()", file_name(key, architecture))
        });
        writeln!(index, "    [{}],", columns.join(", ")).expect("a String can be written to");
    }
    index.push_str("]\n");
    fs::write(out.join("modules.rs"), index).map_err(|error| format!("{}: {error}", out.display()))
}

fn file_name(key: ModuleKey, architecture: u32) -> String {
    format!("{}.compute_{architecture}.ptx.zlib", key.name())
}

fn read_headers(kernels: &Path) -> Result<Vec<Source>, String> {
    let mut headers = Vec::new();
    for entry in fs::read_dir(kernels).map_err(|error| format!("{}: {error}", kernels.display()))? {
        let path = entry.map_err(|error| format!("{}: {error}", kernels.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "cuh") {
            let name = path.file_name().expect("a file of a folder has a name").to_string_lossy().into_owned();
            headers.push(Source { name, text: read(&path)? });
        }
    }
    Ok(headers)
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}
