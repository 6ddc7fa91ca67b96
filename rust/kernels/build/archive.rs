//! Archives: images of one function are nearly the same, so they are compressed together.

use std::ffi::CStr;
use std::fmt::Write as _;
use std::path::Path;
use std::{fs, io};

use crate::catalogue::ModuleKey;
use crate::dtype::Dtype;
use crate::image::Image;
use crate::in_parallel;

/// Of an archive, before it is compressed: to get an image, all that is before it is decompressed, too. That may take some
/// 2 ms for machine code, and 12 for PTX, which the driver compiles for several times as long.
const fn most_bytes(image: Image) -> usize {
    match image {
        Image::Ptx(_) => 1 << 22,
        Image::MachineCode(_) => 3 << 18,
    }
}
/// Level 17 leaves 3 % more and takes a quarter of the time.
#[cfg(feature = "embed")]
const COMPRESSION_LEVEL: i32 = 19;

/// As the library includes it.
const INDEX: &str = "modules.rs";

/// Files packed one after the other.
#[derive(Default)]
pub struct Archives {
    contents: Vec<Vec<u8>>,
    last_function: Option<&'static CStr>,
    /// A row per module, a column per image: archive, start and length.
    places: Vec<Vec<[usize; 3]>>,
}

impl Archives {
    /// Packs what `read` returns for each module and image.
    pub fn pack(read: impl Fn(ModuleKey, Image) -> Result<Vec<u8>, String>) -> Result<Self, String> {
        let mut modules: Vec<_> = ModuleKey::all().enumerate().collect();
        let mut archives = Self { places: vec![vec![]; modules.len()], ..Self::default() };
        modules.sort_by_key(|(_, key)| name_but_dtypes(*key));
        for group in Image::GROUPS {
            archives.last_function = None;
            for (row, key) in &modules {
                for &image in group {
                    let place = archives.add(*key, &read(*key, image)?, most_bytes(image));
                    archives.places[*row].push(place);
                }
            }
        }
        Ok(archives)
    }

    fn add(&mut self, key: ModuleKey, image: &[u8], most_bytes: usize) -> [usize; 3] {
        let has_room = self.contents.last().is_some_and(|archive| archive.len() + image.len() <= most_bytes);
        if self.last_function != Some(key.function()) || !has_room {
            self.contents.push(vec![]);
            self.last_function = Some(key.function());
        }
        let number = self.contents.len() - 1;
        let place = [number, self.contents[number].len(), image.len()];
        self.contents[number].extend(image);
        place
    }

    /// Compresses them, and writes them and the index into `out`, where the library includes it. Returns the files' names.
    pub fn write(&self, out: &Path) -> Result<Vec<String>, String> {
        in_parallel(self.contents.len(), |number| self.write_one(out, number))?;
        write(&out.join(INDEX), self.index().as_bytes())?;
        Ok((0..self.contents.len()).map(file_name).chain([INDEX.to_owned()]).collect())
    }

    fn write_one(&self, out: &Path, number: usize) -> Result<(), String> {
        let compressed = compress(&self.contents[number]);
        let compressed = compressed.map_err(|error| format!("archive {number} cannot be compressed: {error}"))?;
        write(&out.join(file_name(number)), &compressed)
    }

    fn index(&self) -> String {
        let mut index = format!("static ARCHIVES: [&[u8]; {}] = [\n", self.contents.len());
        for number in 0..self.contents.len() {
            let name = file_name(number);
            writeln!(index, "    include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}\")),")
                .expect("a String can be written to");
        }
        let columns = Image::all().count();
        write!(index, "];\nstatic PLACES: [[Place; {columns}]; {}] = [\n", self.places.len())
            .expect("a String can be written to");
        for row in &self.places {
            let place = |[archive, start, bytes]: &[usize; 3]| {
                format!("Place {{ archive: {archive}, start: {start}, bytes: {bytes} }}")
            };
            let row: Vec<_> = row.iter().map(place).collect();
            writeln!(index, "    [{}],", row.join(", ")).expect("a String can be written to");
        }
        index + "];\n"
    }
}

/// What a module has in common with those that are the most like it: they differ in dtypes alone.
fn name_but_dtypes(key: ModuleKey) -> String {
    let name = key.name();
    let parts = name.split('.').filter(|part| Dtype::ALL.iter().all(|dtype| dtype.name() != *part));
    parts.collect::<Vec<_>>().join(".")
}

#[cfg(feature = "embed")]
fn compress(content: &[u8]) -> io::Result<Vec<u8>> {
    zstd::bulk::compress(content, COMPRESSION_LEVEL)
}

/// Nothing is embedded then, and the encoder, which is C, is not built.
#[cfg(not(feature = "embed"))]
fn compress(_: &[u8]) -> io::Result<Vec<u8>> {
    unreachable!("this comes after the feature was asked for")
}

fn file_name(number: usize) -> String {
    format!("{number}.zst")
}

fn write(path: &Path, content: &[u8]) -> Result<(), String> {
    fs::write(path, content).map_err(|error| format!("{}: {error}", path.display()))
}
