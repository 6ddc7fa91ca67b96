//! Compiles every module of the catalogue: to PTX with NVRTC, and that to machine code with ptxas. Packs both for the
//! library to embed.
//!
//! No GPU and no CUDA toolkit are needed: NVRTC is one library and ptxas one program, from the package registry.

mod archive;
mod cache;
mod constants;
mod nvrtc;
mod ptx;
mod ptxas;
mod python;
mod sources;

#[path = "../src/catalogue.rs"]
#[allow(dead_code)]
mod catalogue;
#[path = "../src/dtype.rs"]
#[allow(dead_code)]
mod dtype;
#[path = "../src/image.rs"]
#[allow(dead_code)]
mod image;
#[path = "../src/layout.rs"]
mod layout;
#[path = "../src/parameters.rs"]
#[allow(dead_code)]
mod parameters;
#[path = "../src/report.rs"]
#[allow(dead_code)]
mod report;
#[path = "../src/scale_places.rs"]
#[allow(dead_code)]
mod scale_places;
#[path = "../src/sink.rs"]
#[allow(dead_code)]
mod sink;
#[path = "../src/variants.rs"]
#[allow(dead_code)]
mod variants;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

use archive::Archives;
use cache::Cache;
use catalogue::ModuleKey;
use image::Image;
use nvrtc::Nvrtc;
use ptxas::Assembler;

/// Set for the processes that share the work, because NVRTC compiles one program at a time: `<part>/<parts>`.
const PART_VARIABLE: &str = "LAMPORT_RS_COMPILE_PART";
/// Set where documentation is built, by docs.rs, which has no NVRTC: all modules are empty there.
const DOCUMENTATION_VARIABLE: &str = "DOCS_RS";
/// Of `src`: what is compiled into this, too.
const SHARED: [&str; 9] = [
    "catalogue.rs",
    "dtype.rs",
    "image.rs",
    "layout.rs",
    "parameters.rs",
    "report.rs",
    "scale_places.rs",
    "sink.rs",
    "variants.rs",
];

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
    println!("cargo::rerun-if-changed={}", sources::folder().display());
    for file in SHARED {
        println!("cargo::rerun-if-changed=src/{file}");
    }
    for variable in nvrtc::VARIABLES.into_iter().chain([ptxas::PROGRAM_VARIABLE, DOCUMENTATION_VARIABLE]) {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if env::var_os(DOCUMENTATION_VARIABLE).is_some() {
        return Archives::pack(|_, _| Ok(vec![]))?.write(&out_folder()?).map(drop);
    }
    // Once here, so that what is missing is said once.
    let (nvrtc, assembler, out) = (Nvrtc::find()?, Assembler::find()?, out_folder()?);
    let cache = Cache::of(inputs(&nvrtc, &assembler)?);
    if cache.as_ref().is_some_and(|cache| cache.restore(&out)) {
        return Ok(());
    }
    let parts = processors();
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
    assemble(&assembler, &out)?;
    let take = |key, image| {
        let file = out.join(file_name(key, image));
        let content = fs::read(&file).and_then(|content| fs::remove_file(&file).map(|()| content));
        content.map_err(|error| format!("{}: {error}", file.display()))
    };
    let files = Archives::pack(take)?.write(&out)?;
    if let Some(Err(error)) = cache.map(|cache| cache.store(&out, &files)) {
        println!("cargo::warning=the compiled kernels cannot be left for other builds: {error}");
    }
    Ok(())
}

/// All that decides what the archives are: the compilers, this program, and what it compiles.
fn inputs(nvrtc: &Nvrtc, assembler: &Assembler) -> Result<String, String> {
    let mut text =
        [nvrtc.identity()?, assembler.identity().to_owned(), env!("CARGO_PKG_VERSION").to_owned()].join("\n");
    let own = [include_str!("main.rs"), include_str!("archive.rs"), include_str!("nvrtc.rs"), include_str!("ptx.rs")];
    text.extend(own.into_iter().chain([include_str!("ptxas.rs")]));
    let named = |source: nvrtc::Source| format!("{}\n{}", source.name, source.text);
    let mut headers: Vec<_> = sources::headers()?.into_iter().map(named).collect();
    headers.sort();
    text.extend(headers);
    for key in ModuleKey::all() {
        text += &format!("{} {:?}\n{}", key.name(), key.definitions(), sources::of(key)?.text);
    }
    text.extend(Image::GROUPS.iter().map(|group| format!("{group:?}\n")));
    text.extend(Image::all().map(|image| image.architecture()));
    Ok(text)
}

/// Makes machine code of the PTX.
fn assemble(assembler: &Assembler, out: &Path) -> Result<(), String> {
    let made = Image::all().filter_map(|image| image.source().map(|source| (image, source)));
    let jobs: Vec<_> = made.flat_map(|images| ModuleKey::all().map(move |key| (key, images))).collect();
    in_parallel(jobs.len(), |job| {
        let (key, (image, source)) = jobs[job];
        let [ptx, machine_code] = [source, image].map(|image| out.join(file_name(key, image)));
        assembler.assemble(&ptx, &machine_code, &image.architecture()).map(drop)
    })
}

/// Does jobs `0..count` on as many threads as there are processors.
fn in_parallel(count: usize, work: impl Fn(usize) -> Result<(), String> + Sync) -> Result<(), String> {
    let next = AtomicUsize::new(0);
    let jobs = || std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed)).take_while(|&job| job < count);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..processors()).map(|_| scope.spawn(|| jobs().try_for_each(&work))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("what fails returns an error"))
    })
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Compiles every `parts`-th module.
fn compile(part: &str) -> Result<(), String> {
    let (part, parts) = part.split_once('/').ok_or("the part is not a fraction")?;
    let (part, parts): (usize, usize) = (number(part)?, number(parts)?);
    let (headers, out) = (sources::headers()?, out_folder()?);
    let nvrtc = Nvrtc::find()?;
    let virtual_architectures = Image::all().filter_map(|image| match image {
        Image::Ptx(architecture) => Some((image, architecture)),
        Image::MachineCode(_) => None,
    });
    let jobs = ModuleKey::all().flat_map(|key| virtual_architectures.clone().map(move |target| (key, target)));
    for (key, (image, architecture)) in jobs.skip(part).step_by(parts) {
        let ptx = nvrtc.compile(&sources::of(key)?, &headers, &key.definitions(), architecture)?;
        nvrtc.check_version(&ptx)?;
        let ptx = ptx::without_unused(&ptx);
        let file = out.join(file_name(key, image));
        fs::write(&file, ptx).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(())
}

fn file_name(key: ModuleKey, image: Image) -> String {
    format!("{}.{}", key.name(), image.architecture())
}

fn out_folder() -> Result<PathBuf, String> {
    Ok(PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: this is a build script")?))
}

fn number(text: &str) -> Result<usize, String> {
    text.parse().map_err(|error| format!("{text}: {error}"))
}
