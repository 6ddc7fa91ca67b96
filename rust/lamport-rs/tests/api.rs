//! What the crate exports, as `api.txt` records it: a change of the API is a change of that file.
//!
//! `LAMPORT_RS_WRITE_API=1 cargo test -p lamport-rs --test api` writes it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use lamport_rs::{Error, FileRendezvous, Handle, TcpRendezvous, host};

/// The sources below a folder, sorted.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect();
    found.sort();
    found
}

/// The lines of a source that are not comments, tests, or in modules for sealed traits.
fn lines_of(text: &str) -> impl Iterator<Item = &str> {
    let text = text.split("#[cfg(test)]").next().unwrap();
    let mut is_sealed = false;
    text.lines().filter(move |line| {
        let was_sealed = is_sealed;
        is_sealed = (was_sealed && *line != "}") || *line == "mod sealed {";
        !was_sealed && !line.trim_start().starts_with("//")
    })
}

/// The types and traits that others cannot name.
fn private_names(text: &str) -> Vec<String> {
    let kinds = ["struct ", "enum ", "trait "];
    let name = |line: &str| {
        let (before, after) = kinds.iter().find_map(|kind| line.split_once(kind))?;
        let is_declaration = before.is_empty() || before.starts_with("pub(");
        let end = after.find(|c: char| !c.is_alphanumeric())?;
        is_declaration.then(|| after[..end].to_owned())
    };
    lines_of(text).filter_map(name).chain(["Sealed".to_owned()]).collect()
}

/// The declarations of a file that others can see: what is `pub` without a limit, with the bodies of enums and traits, and
/// which traits are implemented, but for what is private.
fn declarations(text: &str, private: &[String]) -> Vec<String> {
    let mut lines = lines_of(text);
    let (mut found, mut attributes) = (vec![], vec![]);
    while let Some(line) = lines.next() {
        let begin = line.trim_start();
        let is_implementation = begin.starts_with("impl")
            && line.contains(" for ")
            && !begin.split(|c: char| !c.is_alphanumeric()).any(|word| private.iter().any(|name| name == word));
        if begin == "#[non_exhaustive]" || begin.starts_with("#[derive(") {
            attributes.push(begin.to_owned());
            continue;
        }
        if !begin.starts_with("pub ") && !is_implementation {
            if !begin.starts_with("#[") {
                attributes.clear();
            }
            continue;
        }
        found.append(&mut attributes);
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
    let files: Vec<_> = sources(&crate_folder.join("src"))
        .into_iter()
        .map(|path| {
            (path.strip_prefix(crate_folder).unwrap().display().to_string(), std::fs::read_to_string(&path).unwrap())
        })
        .collect();
    let private: Vec<_> = files.iter().flat_map(|(_, text)| private_names(text)).collect();
    let mut api = String::new();
    for (name, text) in &files {
        for declaration in declarations(text, &private) {
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
    assert_eq!(declarations(text, &[]), ["pub fn f( a: u8, b: u8, ) -> u8", "pub enum E { A, }", "impl Drop for E"]);
}

#[test]
fn what_others_cannot_name_is_not_recorded() {
    let text = "mod sealed {\n    pub trait Sealed {}\n}\n#[derive(Debug)]\nstruct S {\n}\n#[derive(Clone)]\npub struct P;\n\
        pub(crate) enum T<'a> {\n}\nimpl Drop for S {\nimpl Copy for T<'_> {\nimpl Sealed for P {\nimpl Copy for P {\n";
    let private = private_names(text);
    assert_eq!(private, ["S", "T", "Sealed"]);
    assert_eq!(declarations(text, &private), ["#[derive(Clone)]", "pub struct P;", "impl Copy for P"]);
}

/// What moves between threads, or is shared by them, today.
const _: () = {
    const fn is_send<T: Send>() {}
    const fn is_send_and_sync<T: Send + Sync>() {}
    is_send_and_sync::<host::Communicator>();
    #[cfg(feature = "cuda")]
    is_send_and_sync::<lamport_rs::cuda::Communicator>();
    is_send_and_sync::<Handle>();
    is_send_and_sync::<Error>();
    is_send::<TcpRendezvous>();
    is_send::<FileRendezvous>();
};
