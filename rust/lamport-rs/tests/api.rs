//! What the crate exports, as `api.txt` records it: a change of the API is a change of that file.
//!
//! `LAMPORT_RS_WRITE_API=1 cargo test -p lamport-rs --test api` writes it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The sources below a folder, sorted.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect();
    found.sort();
    found
}

/// The declarations of a file that others can see: what is `pub` without a limit, with the bodies of enums and traits, and
/// which traits are implemented.
fn declarations(text: &str) -> Vec<String> {
    let text = text.split("#[cfg(test)]").next().unwrap();
    let mut lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut found = vec![];
    while let Some(line) = lines.next() {
        let begin = line.trim_start();
        let is_implementation = begin.starts_with("impl") && line.contains(" for ");
        if begin == "#[non_exhaustive]" || begin.starts_with("#[derive(") {
            found.push(begin.to_owned());
            continue;
        }
        if !begin.starts_with("pub ") && !is_implementation {
            continue;
        }
        let indent = &line[..line.len() - begin.len()];
        let has_body = ["pub enum ", "pub trait "].iter().any(|word| begin.starts_with(word));
        let end = format!("{indent}}}");
        let is_last = |line: &str| match has_body {
            true => line == end || line.ends_with("{}"),
            false => line.ends_with(['{', ';', ',', '}', ']']) && !line.ends_with("(,"),
        };
        let mut declaration = begin.to_owned();
        let mut last = line;
        // A signature of several lines ends with what opens its body; its own lines end with commas.
        while !is_last(last)
            || (last.ends_with(',') && declaration.matches('(').count() > declaration.matches(')').count())
        {
            last = lines.next().expect("a declaration has an end");
            write!(declaration, " {}", last.trim()).unwrap();
        }
        found.push(declaration.trim_end_matches(['{', ' ', ',']).to_owned());
    }
    found
}

#[test]
fn what_is_exported_is_what_is_recorded() {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut api = String::new();
    for path in sources(&crate_folder.join("src")) {
        let name = path.strip_prefix(crate_folder).unwrap().display().to_string();
        for declaration in declarations(&std::fs::read_to_string(&path).unwrap()) {
            writeln!(api, "{name}: {declaration}").unwrap();
        }
    }
    let recorded = crate_folder.join("tests/api.txt");
    if std::env::var("LAMPORT_RS_WRITE_API").is_ok_and(|value| value == "1") {
        std::fs::write(&recorded, &api).unwrap();
    }
    let recorded = std::fs::read_to_string(recorded).unwrap();
    let lacks = |one: &str, other: &str| -> Vec<String> {
        one.lines().filter(|line| other.lines().all(|other| other != *line)).map(str::to_owned).collect()
    };
    let (added, removed) = (lacks(&api, &recorded), lacks(&recorded, &api));
    assert!(added.is_empty() && removed.is_empty(), "the API has changed: added {added:#?}, removed {removed:#?}");
}

#[test]
fn signatures_of_several_lines_and_bodies_are_recorded() {
    let text = "pub fn f(\n    a: u8,\n    b: u8,\n) -> u8 {\n    1\n}\npub(crate) fn g() {}\npub enum E {\n    A,\n}\nimpl Drop for E {\n";
    assert_eq!(declarations(text), ["pub fn f( a: u8, b: u8, ) -> u8", "pub enum E { A, }", "impl Drop for E"]);
}
