//! Compiles every module of the catalogue to PTX with NVRTC, and packs what the library embeds.
//!
//! No GPU and no CUDA toolkit are needed: NVRTC is one library, from the package registry.

mod archive;
mod constants;
mod nvrtc;
mod python;

#[path = "../src/catalogue.rs"]
#[allow(dead_code)]
mod catalogue;
#[path = "../src/dtype.rs"]
#[allow(dead_code)]
mod dtype;
#[path = "../src/image.rs"]
#[allow(dead_code)]
mod image;
#[path = "../src/parameters.rs"]
#[allow(dead_code)]
mod parameters;
#[path = "../src/sink.rs"]
#[allow(dead_code)]
mod sink;
#[path = "../src/variants.rs"]
#[allow(dead_code)]
mod variants;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, thread};

use archive::Archives;
use catalogue::ModuleKey;
use image::Image;
use nvrtc::{Nvrtc, Source};

/// Set for the processes that share the work, because NVRTC compiles one program at a time: `<part>/<parts>`.
const PART_VARIABLE: &str = "LAMPORT_RS_COMPILE_PART";
/// Set where documentation is built, by docs.rs, which has no NVRTC: all modules are empty there.
const DOCUMENTATION_VARIABLE: &str = "DOCS_RS";
/// Of `kernels`: where the headers are.
const FOLDERS: [&str; 5] = ["device", "protocol", "source", "exchange", "sink"];
/// Of `src`: what is compiled into this, too.
const SHARED: [&str; 6] = ["catalogue.rs", "dtype.rs", "image.rs", "parameters.rs", "sink.rs", "variants.rs"];

fn main() {
    let done = match env::var(PART_VARIABLE) {
        Ok(part) => compile(&part),
        Err(_) => build(),
    };
    if let Err(message) = done {
        // One message, without the backtrace of a panic.
        for line in message.lines() {
            println!("cargo::error={line}");
        }
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    println!("cargo::rerun-if-changed=build");
    if env::var_os("CARGO_FEATURE_EMBED").is_none() {
        return Ok(());
    }
    println!("cargo::rerun-if-changed={}", kernels().display());
    for file in SHARED {
        println!("cargo::rerun-if-changed=src/{file}");
    }
    for variable in nvrtc::VARIABLES.into_iter().chain([DOCUMENTATION_VARIABLE]) {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if env::var_os(DOCUMENTATION_VARIABLE).is_some() {
        return Archives::pack(|_, _| Ok(vec![]))?.write(&out_folder()?);
    }
    // Once here, so that what is missing is said once.
    Nvrtc::find()?;
    let parts = thread::available_parallelism().map_or(1, usize::from);
    let this = env::current_exe().map_err(|error| format!("the build script cannot find itself: {error}"))?;
    let spawn = |part| Command::new(&this).env(PART_VARIABLE, format!("{part}/{parts}")).spawn();
    let children = (0..parts).map(spawn).collect::<Result<Vec<_>, _>>();
    let children = children.map_err(|error| format!("running {} failed: {error}", this.display()))?;
    let mut failed = false;
    for mut child in children {
        failed |= !child.wait().is_ok_and(|status| status.success());
    }
    if failed {
        return Err("the CUDA kernels do not compile".to_owned());
    }
    let out = out_folder()?;
    let take = |key, image| {
        let file = out.join(file_name(key, image));
        let content = fs::read(&file).and_then(|content| fs::remove_file(&file).map(|()| content));
        content.map_err(|error| format!("{}: {error}", file.display()))
    };
    Archives::pack(take)?.write(&out)
}

/// Compiles every `parts`-th module.
fn compile(part: &str) -> Result<(), String> {
    let (part, parts) = part.split_once('/').ok_or("the part is not a fraction")?;
    let (part, parts): (usize, usize) = (number(part)?, number(parts)?);
    let (kernels, out) = (kernels(), out_folder()?);
    let mut headers = read_headers(&kernels)?;
    headers.push(Source { name: "constants.cuh".to_owned(), text: constants::header() });
    let nvrtc = Nvrtc::find()?;
    let jobs = ModuleKey::all().flat_map(|key| Image::all().map(move |image| (key, image)));
    for (key, image) in jobs.skip(part).step_by(parts) {
        let name = format!("{}.cu", key.function().to_string_lossy());
        let source = Source { text: read(&kernels.join(&name))?, name };
        let Image::Ptx(architecture) = image;
        let ptx = nvrtc.compile(&source, &headers, &key.definitions(), architecture)?;
        let file = out.join(file_name(key, image));
        fs::write(&file, ptx).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(())
}

fn file_name(key: ModuleKey, image: Image) -> String {
    format!("{}.{}", key.name(), image.suffix())
}

/// A link to the repository's folder, and in the published package a copy of it.
fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda")
}

fn out_folder() -> Result<PathBuf, String> {
    Ok(PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: this is a build script")?))
}

/// The headers, named as they are included: with their folder.
fn read_headers(kernels: &Path) -> Result<Vec<Source>, String> {
    let mut headers = Vec::new();
    for folder in FOLDERS {
        let folder_path = kernels.join(folder);
        for entry in fs::read_dir(&folder_path).map_err(|error| format!("{}: {error}", folder_path.display()))? {
            let path = entry.map_err(|error| format!("{}: {error}", folder_path.display()))?.path();
            let name = path.file_name().expect("a file of a folder has a name").to_string_lossy();
            headers.push(Source { name: format!("{folder}/{name}"), text: read(&path)? });
        }
    }
    Ok(headers)
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn number(text: &str) -> Result<usize, String> {
    text.parse().map_err(|error| format!("{text}: {error}"))
}
