//! Rules that the CUDA sources keep.

use std::fs;
use std::path::Path;

fn sources() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
    let files = fs::read_dir(folder).expect("the kernels have a folder").map(|entry| entry.expect("it can be read"));
    files
        .map(|file| {
            let name = file.file_name().to_string_lossy().into_owned();
            (name, fs::read_to_string(file.path()).expect("sources are text"))
        })
        .collect()
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
fn assembly_is_in_one_header() {
    for (file, text) in sources() {
        if file != "ptx.cuh" {
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
