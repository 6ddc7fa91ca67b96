//! Rules that the sources keep.

use std::fs;
use std::path::{Path, PathBuf};

/// The layers, lowest first: a header includes those of its own folder and of lower ones.
const LAYERS: [&str; 5] = ["device", "protocol", "source", "exchange", "sink"];

/// All files, by their path in `kernels`, and their text.
fn sources() -> Vec<(String, String)> {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
    let mut sources = Vec::new();
    for folder in std::iter::once("").chain(LAYERS) {
        for entry in fs::read_dir(kernels.join(folder)).expect("the kernels have a folder") {
            let path = entry.expect("it can be read").path();
            if path.extension().is_some_and(|extension| extension == "cu" || extension == "cuh") {
                let name = path.strip_prefix(&kernels).expect("it is in the folder").to_string_lossy().into_owned();
                sources.push((name, fs::read_to_string(&path).expect("sources are text")));
            }
        }
    }
    sources
}

/// The place of a file's folder among the layers; what is in none is above all.
fn layer(file: &str) -> usize {
    LAYERS.iter().position(|layer| file.starts_with(&format!("{layer}/"))).unwrap_or(LAYERS.len())
}

#[test]
fn headers_include_no_higher_layer() {
    for (file, text) in sources() {
        for line in text.lines().filter(|line| line.starts_with("#include \"")) {
            let included = line.split('"').nth(1).expect("it is in quotes");
            assert!(included == "constants.cuh" || layer(included) <= layer(&file), "{file}: {line}");
        }
    }
}

#[test]
fn headers_are_in_layers_and_kernels_are_not() {
    for (file, _) in sources() {
        assert_eq!(file.ends_with(".cuh"), layer(&file) < LAYERS.len(), "{file}");
    }
}

#[test]
fn only_own_headers_are_included() {
    let sources = sources();
    let own = |name: &str| name == "constants.cuh" || sources.iter().any(|(other, _)| other == name);
    for (file, text) in &sources {
        for line in text.lines().filter(|line| line.starts_with("#include")) {
            let name = line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"'));
            assert!(name.is_some_and(own), "{file}: {line}");
        }
    }
}

#[test]
fn assembly_is_in_two_headers() {
    for (file, text) in sources() {
        if !["device/ptx.cuh", "device/ptx_values.cuh"].contains(&&*file) {
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            assert!(code.clone().all(|line| !line.contains("asm(") && !line.contains("asm volatile")), "{file}");
        }
    }
}

#[test]
fn files_are_short() {
    for (file, text) in sources() {
        assert!(text.lines().count() <= 300, "{file}");
        assert!(text.lines().all(|line| line.chars().count() <= 120), "{file}");
    }
}

/// All files in Rust and Python below a folder.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("it is a folder").map(|entry| entry.expect("it can be read").path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let is_source = |path: &PathBuf| path.extension().is_some_and(|end| end == "rs" || end == "py" || end == "pyi");
    let below = folders.iter().filter(|path| !path.ends_with("__pycache__")).flat_map(|path| files_below(path));
    files.into_iter().filter(is_source).chain(below).collect()
}

#[test]
fn sources_in_rust_and_python_are_short() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let crates = ["bindings/src", "core/src", "kernels/build", "kernels/src", "lamport-rs/src", "protocol/src"];
    let folders = crates.iter().map(|name| root.join("rust").join(name)).chain([root.join("python")]);
    let files: Vec<_> = folders.flat_map(|folder| files_below(&folder)).collect();
    assert!(files.len() > 200, "only {} files were found", files.len());
    for path in files {
        let name = path.strip_prefix(&root).expect("it is below").to_string_lossy();
        let lines = fs::read_to_string(&path).expect("sources are text").lines().count();
        assert!(lines <= 300, "{name} has {lines} lines");
    }
}
