//! Compiles the CUDA sources, and what runs them, with the host's C++ compiler. The core's tests have it too.

use std::collections::BTreeMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, id};
use std::sync::OnceLock;
use std::{env, fs};

use lamport_rs_kernels::ModuleKey;

use crate::constants;

/// What every kernel is compiled with. `-nostartfiles`: a kernel's shared variables are then all that can be written.
/// Products and sums are contracted where the source says so, and nowhere else.
const KERNEL_FLAGS: [&str; 10] = [
    "-I.",
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-shared",
    "-nostartfiles",
    "-fno-gnu-unique",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-Wno-unknown-pragmas",
];
const LIBRARY_FLAGS: [&str; 7] = ["-std=c++20", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror"];

/// A wait looks at the clock so many times as often as on a device: this power of two.
pub const FEWER_POLLS_BITS: u32 = 6;

/// The header in whose place is the emulator's.
const PTX: &str = "device/ptx.cuh";

/// Files that are compiled together, by name.
#[derive(Clone, Debug)]
pub struct Sources(BTreeMap<String, String>);

impl Sources {
    /// The kernels, unchanged but for `device/ptx.cuh`, in whose place is the emulator's, and for how often a thread
    /// polls before it looks at the clock: here a poll costs more than on a device, and a wait in vain has thousands.
    pub fn of_kernels() -> Self {
        let mut sources = Self::of_folders(&[repository().join("kernels"), emulator("cuda"), emulator("litmus")]);
        sources.0.insert("constants.cuh".to_owned(), constants::header());
        let ptx = sources.0.remove("ptx.cuh").expect("the emulator has it");
        sources.0.insert(PTX.to_owned(), ptx);
        for (most, bits) in [("FIRST_POLLS", 10), ("MAX_POLLS", 14)] {
            let polls = |bits| format!("{most} = 1 << {bits};");
            sources.replace("protocol/wait.cuh", &polls(bits), &polls(bits - FEWER_POLLS_BITS));
        }
        sources
    }

    /// All files of these folders, named by their path in them. Of two with one name, that of the later folder.
    pub fn of_folders(folders: &[PathBuf]) -> Self {
        Self(folders.iter().flat_map(|folder| read_folder(folder, "")).collect())
    }

    /// Replaces `old`, which must be there once, in a file.
    pub fn replace(&mut self, file: &str, old: &str, new: &str) {
        let text = self.0.get_mut(file).unwrap_or_else(|| panic!("there is no {file}"));
        let found = text.matches(old).count();
        assert_eq!(
            found, 1,
            "{file} has this {found} times, but must have it once, so bring the defect up to date:\n{old}"
        );
        *text = text.replace(old, new);
    }

    /// Compiles the module of `key`, or finds it compiled.
    pub fn compile(&self, key: ModuleKey) -> PathBuf {
        let function = key.function().to_str().expect("kernels have ASCII names");
        self.compile_function(function, &key.name(), &key.definitions())
    }

    /// Compiles `<function>.cu` with macros. The result is named `name`, among other things.
    pub fn compile_function(&self, function: &str, name: &str, definitions: &[(&str, String)]) -> PathBuf {
        let entry = format!("#include \"cuda.h\"\n#include \"{function}.cu\"\n\nEMULATOR_EXPORT({function})\n");
        let mut sources = self.clone();
        sources.0.insert("entry.cpp".to_owned(), entry);
        let mut flags: Vec<String> = KERNEL_FLAGS.map(str::to_owned).into();
        flags.extend(definitions.iter().map(|(name, value)| format!("-D{name}={value}")));
        sources.build(name, &flags, &["entry.cpp".to_owned()])
    }

    /// Compiles what runs kernels, all `.cpp` files together, or finds it compiled.
    pub fn compile_library(&self, name: &str, more_flags: &[&str]) -> PathBuf {
        let units: Vec<_> = self.0.keys().filter(|name| name.ends_with(".cpp")).cloned().collect();
        let flags: Vec<_> = LIBRARY_FLAGS.iter().chain(more_flags).map(|&flag| flag.to_owned()).collect();
        self.build(name, &flags, &units)
    }

    /// The shared object is named after all that it is made of, so one that is there is the right one.
    fn build(&self, name: &str, flags: &[String], units: &[String]) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        (&self.0, flags, compiler_version()).hash(&mut hasher);
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulator");
        let object = out.join(format!("{name}.{:016x}.so", hasher.finish()));
        if object.exists() {
            return object;
        }
        // Tests are processes, of which several need the same.
        fs::create_dir_all(&out).expect("the target folder can be written to");
        let lock = File::create(object.with_extension("lock")).expect("the target folder can be written to");
        lock.lock().expect("a file of the target folder can be locked");
        if object.exists() {
            return object;
        }
        let stage = out.join(unique(name));
        fs::create_dir_all(&stage).expect("the target folder can be written to");
        for (file, text) in &self.0 {
            let path = stage.join(file);
            fs::create_dir_all(path.parent().expect("it is in the stage"))
                .expect("the target folder can be written to");
            fs::write(path, text).expect("the target folder can be written to");
        }
        let made = stage.join("object.so");
        let mut command = Command::new(compiler());
        command.current_dir(&stage).args(flags).args(units).arg("-o").arg(&made);
        let output = command.output().unwrap_or_else(|error| panic!("{error}: {command:?}"));
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name} does not compile for the emulator: {command:?}\n{log}");
        fs::rename(&made, &object).expect("the target folder can be written to");
        fs::remove_dir_all(&stage).expect("the target folder can be written to");
        object
    }
}

/// A name that nobody else uses, in this process or another.
pub fn unique(name: &str) -> String {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!("{name}.{}.{}", id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn compiler() -> String {
    env::var("CXX").unwrap_or_else(|_| "c++".to_owned())
}

fn compiler_version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| {
        let output = Command::new(compiler()).arg("--version").output().unwrap_or_else(|error| {
            panic!("{}: {error}; the emulator needs a C++ compiler: install g++ or name one in CXX", compiler())
        });
        String::from_utf8_lossy(&output.stdout).into_owned()
    })
}

/// The manifest is that of the crate which is tested.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A folder of the emulator's.
pub fn emulator(folder: &str) -> PathBuf {
    repository().join("rust/kernels/tests/emulator").join(folder)
}

fn read_folder(folder: &Path, prefix: &str) -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let read = |path: PathBuf| {
        let name = path.file_name().expect("a file of a folder has a name").to_string_lossy();
        if path.is_dir() {
            return read_folder(&path, &format!("{prefix}{name}/"));
        }
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        BTreeMap::from([(format!("{prefix}{name}"), text)])
    };
    entries.flat_map(|entry| read(entry.expect("the folder can be read").path())).collect()
}
