//! Archives of the same sources that another build has made: of another profile, another target, another checkout.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{env, fs, io, process};

/// Names the folder where builds leave them. Without it each compiles all kernels, for minutes.
const FOLDER_VARIABLE: &str = "LAMPORT_RS_KERNEL_CACHE";
/// Beside the archives: all that they were made of. A hash alone could be that of others.
const INPUTS: &str = "inputs";

/// The place of the archives that are made of some inputs.
pub struct Cache {
    folder: PathBuf,
    inputs: String,
}

impl Cache {
    /// `inputs` is the text of all that decides what the archives are. `None` if builds are to leave nothing.
    pub fn of(inputs: String) -> Option<Self> {
        let folder = env::var_os(FOLDER_VARIABLE).filter(|value| !value.is_empty())?;
        let mut hasher = DefaultHasher::new();
        inputs.hash(&mut hasher);
        Some(Self { folder: Path::new(&folder).join(format!("{:016x}", hasher.finish())), inputs })
    }

    /// Copies them to `out`. False if there are none, or not all: somebody may delete them meanwhile.
    pub fn restore(&self, out: &Path) -> bool {
        fs::read_to_string(self.folder.join(INPUTS)).is_ok_and(|inputs| inputs == self.inputs)
            && self.copy_to(out).is_ok()
    }

    fn copy_to(&self, out: &Path) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            fs::copy(&path, out.join(path.file_name().expect("a file of a folder has a name")))?;
        }
        Ok(())
    }

    /// Leaves these `files` of `out` for later builds, all or none.
    pub fn store(&self, out: &Path, files: &[String]) -> io::Result<()> {
        // Processes of two machines, or of two containers, may have the same number.
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let unfinished = self.folder.with_extension(format!("{}.{now}", process::id()));
        fs::create_dir_all(&unfinished)?;
        let stored = self.fill(&unfinished, out, files);
        // Another build may have been faster.
        if stored.is_err() || fs::rename(&unfinished, &self.folder).is_err() {
            fs::remove_dir_all(&unfinished)?;
        }
        stored
    }

    fn fill(&self, folder: &Path, out: &Path, files: &[String]) -> io::Result<()> {
        for file in files {
            fs::copy(out.join(file), folder.join(file))?;
        }
        fs::write(folder.join(INPUTS), &self.inputs)
    }
}
