//! The CUDA sources.

use std::fs;
use std::path::{Path, PathBuf};

use crate::catalogue::ModuleKey;
use crate::constants;
use crate::nvrtc::Source;

/// Where the headers are.
const FOLDERS: [&str; 5] = ["device", "protocol", "source", "exchange", "sink"];

/// A link to the repository's folder, and in the published package a copy of it.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda")
}

/// The source of a module.
pub fn of(key: ModuleKey) -> Result<Source, String> {
    let name = format!("{}.cu", key.function().to_string_lossy());
    Ok(Source { text: read(&folder().join(&name))?, name })
}

/// The headers, named as they are included: with their folder.
pub fn headers() -> Result<Vec<Source>, String> {
    let mut headers = vec![Source { name: "constants.cuh".to_owned(), text: constants::header() }];
    for name in FOLDERS {
        let folder = folder().join(name);
        for entry in fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))? {
            let path = entry.map_err(|error| format!("{}: {error}", folder.display()))?.path();
            let file = path.file_name().expect("a file of a folder has a name").to_string_lossy();
            headers.push(Source { name: format!("{name}/{file}"), text: read(&path)? });
        }
    }
    Ok(headers)
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}
