//! The kernels compile with the newest compiler, too, and for the architectures that only it knows.

#[path = "../build/constants.rs"]
mod constants;
#[path = "../build/nvrtc.rs"]
#[allow(dead_code, reason = "the build's")]
mod nvrtc;
#[path = "../build/python.rs"]
mod python;
#[path = "../build/sources.rs"]
mod sources;

use std::fs;
use std::path::PathBuf;

use lamport_rs_kernels::{ModuleKey, catalogue, parameters, sink, variants};
use libloading::Library;
use nvrtc::Nvrtc;

/// NVRTC 13, which torch brings.
fn newest() -> Nvrtc {
    let folder = python::package_folder("nvidia.cu13").expect("torch for CUDA 13 is installed, as `make build` does");
    let library = folder.join("lib/libnvrtc.so.13");
    // It opens that by its name, which is found only if it is loaded already.
    let is_builtins = |path: &PathBuf| path.to_string_lossy().contains("libnvrtc-builtins.so.13");
    let files = fs::read_dir(folder.join("lib")).unwrap().map(|entry| entry.unwrap().path());
    let builtins = files.into_iter().find(is_builtins).expect("it is beside the library");
    // SAFETY: loading runs the library's initialisers, which have no requirements. It stays loaded.
    std::mem::forget(unsafe { Library::new(builtins) }.unwrap());
    Nvrtc::open(library).expect("it is NVRTC")
}

#[test]
fn the_newest_compiler_takes_every_kernel_for_blackwell() {
    let (nvrtc, headers) = (newest(), sources::headers().unwrap());
    let mut functions = vec![];
    for key in ModuleKey::all() {
        if functions.contains(&key.function()) {
            continue;
        }
        functions.push(key.function());
        let ptx = nvrtc.compile(&sources::of(key).unwrap(), &headers, &key.definitions(), 100).unwrap();
        assert!(ptx.contains(".target sm_100\n"), "{}", key.name());
        assert!(nvrtc.check_version(&ptx).is_err(), "the oldest drivers do not load what it makes");
    }
    assert!(functions.len() > 10, "{functions:?}");
}
