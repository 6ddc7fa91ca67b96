//! NVRTC: CUDA C++ to PTX, in memory.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::{env, ptr};

use libloading::{Library, Symbol};

use crate::python;

/// Names the library, if it is not to be looked for.
const LIBRARY_VARIABLE: &str = "LAMPORT_RS_NVRTC";
/// What decides which library is found.
pub const VARIABLES: [&str; 3] = [LIBRARY_VARIABLE, python::INTERPRETER_VARIABLE, python::ENVIRONMENT_VARIABLE];
/// The release, its package, and the newest PTX that it may write. A driver of the 535 series, the oldest one supported,
/// can load 8.2.
const RELEASE: (&str, &str, (u32, u32)) = if cfg!(target_arch = "aarch64") {
    // The first that there is for such a processor. A wheel that is published is built on another one, by the release below.
    ("12.9", "nvidia-cuda-nvrtc-cu12==12.9.86", (8, 8))
} else {
    ("12.2", "nvidia-cuda-nvrtc-cu12==12.2.140", (8, 2))
};

/// A file, in memory.
pub struct Source {
    /// As `#include` names it.
    pub name: String,
    /// Its content.
    pub text: String,
}

/// The loaded library.
pub struct Nvrtc {
    library: Library,
    path: PathBuf,
}

type Program = *mut c_void;
type Code = c_int;

impl Nvrtc {
    /// Loads the library that `LAMPORT_RS_NVRTC` names, or else the one installed beside the Python that the package
    /// is built for.
    pub fn find() -> Result<Self, String> {
        let path = match env::var_os(LIBRARY_VARIABLE).filter(|value| !value.is_empty()) {
            Some(path) => PathBuf::from(path),
            None => python::package_folder("nvidia.cuda_nvrtc").map_err(missing)?.join("lib/libnvrtc.so.12"),
        };
        Self::open(path)
    }

    /// Loads a library.
    pub fn open(path: PathBuf) -> Result<Self, String> {
        // SAFETY: loading runs the library's initialisers, those of NVRTC, which have no requirements. The symbols
        // taken from it below are NVRTC's, with the types of its manual.
        let library = unsafe { Library::new(&path) }.map_err(|error| missing(error.to_string()))?;
        Ok(Self { library, path })
    }

    /// Compiles `source` to PTX for virtual architecture `architecture`.
    pub fn compile(
        &self,
        source: &Source,
        headers: &[Source],
        definitions: &[(&str, String)],
        architecture: u32,
    ) -> Result<String, String> {
        let mut options = vec![format!("--gpu-architecture=compute_{architecture}"), "-std=c++17".to_owned()];
        options.extend(definitions.iter().map(|(name, value)| format!("-D{name}={value}")));
        let program = self.create(source, headers)?;
        let result = self
            .compile_program(program, &options)
            .map_err(|log| format!("{} does not compile with {}:\n{log}", source.name, options.join(" ")));
        let ptx = result.and_then(|()| self.output(c"nvrtcGetPTXSize", c"nvrtcGetPTX", program));
        self.destroy(program)?;
        ptx
    }

    /// What tells this library from others.
    pub fn identity(&self) -> Result<String, String> {
        let file = std::fs::metadata(&self.path).map_err(|error| format!("{}: {error}", self.path.display()))?;
        Ok(format!("NVRTC of {} bytes", file.len()))
    }

    /// Newer compilers write PTX that older drivers refuse, and they would only do so on a user's machine.
    pub fn check_version(&self, ptx: &str) -> Result<(), String> {
        let version = ptx.lines().find_map(|line| line.strip_prefix(".version ")).unwrap_or_default().trim();
        let parsed =
            version.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let (release, package, newest) = RELEASE;
        if parsed.is_some_and(|version: (u32, u32)| version <= newest) {
            return Ok(());
        }
        let (major, minor) = newest;
        Err(format!(
            "{} writes PTX version {version:?}, but the kernels must be {major}.{minor} or older to load on supported \
             drivers. Use NVRTC {release}: `pip install {package}`",
            self.path.display()
        ))
    }

    fn create(&self, source: &Source, headers: &[Source]) -> Result<Program, String> {
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> Code;
        let text = c_string(&source.text)?;
        let name = c_string(&source.name)?;
        let texts = headers.iter().map(|header| c_string(&header.text)).collect::<Result<Vec<_>, _>>()?;
        let names = headers.iter().map(|header| c_string(&header.name)).collect::<Result<Vec<_>, _>>()?;
        let text_pointers: Vec<_> = texts.iter().map(|text| text.as_ptr()).collect();
        let name_pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
        let create: Symbol<Create> = self.symbol(c"nvrtcCreateProgram")?;
        let mut program = ptr::null_mut();
        // SAFETY: all strings end in NUL and outlive the call, which copies them; both arrays have `headers.len()`
        // entries.
        let code = unsafe {
            create(
                &mut program,
                text.as_ptr(),
                name.as_ptr(),
                headers.len() as c_int,
                text_pointers.as_ptr(),
                name_pointers.as_ptr(),
            )
        };
        self.check("nvrtcCreateProgram", code)?;
        Ok(program)
    }

    /// The error is the compiler's log.
    fn compile_program(&self, program: Program, options: &[String]) -> Result<(), String> {
        type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Code;
        let options = options.iter().map(|option| c_string(option)).collect::<Result<Vec<_>, _>>()?;
        let pointers: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
        let compile: Symbol<Compile> = self.symbol(c"nvrtcCompileProgram")?;
        // SAFETY: `program` is alive, used by this thread only; `pointers` has as many strings as said.
        let code = unsafe { compile(program, pointers.len() as c_int, pointers.as_ptr()) };
        self.check("nvrtcCompileProgram", code).map_err(|error| {
            let log = self.output(c"nvrtcGetProgramLogSize", c"nvrtcGetProgramLog", program);
            format!("{error}\n{}", log.unwrap_or_else(|error| error))
        })
    }

    /// What a pair of functions, one for the size and one for the text, has to say about a program.
    fn output(&self, size_name: &CStr, bytes_name: &CStr, program: Program) -> Result<String, String> {
        type Size = unsafe extern "C" fn(Program, *mut usize) -> Code;
        type Bytes = unsafe extern "C" fn(Program, *mut c_char) -> Code;
        let (get_size, get_bytes): (Symbol<Size>, Symbol<Bytes>) = (self.symbol(size_name)?, self.symbol(bytes_name)?);
        let mut size = 0;
        // SAFETY: `program` is alive and `size` is writable.
        let code = unsafe { get_size(program, &mut size) };
        self.check(&size_name.to_string_lossy(), code)?;
        let mut bytes = vec![0_u8; size];
        // SAFETY: `bytes` has the size just asked for.
        let code = unsafe { get_bytes(program, bytes.as_mut_ptr().cast()) };
        self.check(&bytes_name.to_string_lossy(), code)?;
        // A NUL ends the text.
        Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned())
    }

    fn destroy(&self, mut program: Program) -> Result<(), String> {
        let destroy: Symbol<unsafe extern "C" fn(*mut Program) -> Code> = self.symbol(c"nvrtcDestroyProgram")?;
        // SAFETY: `program` is alive, and no one uses it after this.
        let code = unsafe { destroy(&mut program) };
        self.check("nvrtcDestroyProgram", code)
    }

    fn check(&self, call: &str, code: Code) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        let text: Symbol<unsafe extern "C" fn(Code) -> *const c_char> = self.symbol(c"nvrtcGetErrorString")?;
        // SAFETY: the function takes any code and returns a string that lives as long as the library.
        let text = unsafe { CStr::from_ptr(text(code)) };
        Err(format!("{call}: {} ({})", text.to_string_lossy(), self.path.display()))
    }

    fn symbol<T>(&self, name: &CStr) -> Result<Symbol<'_, T>, String> {
        // SAFETY: each caller gives the type that NVRTC's manual gives for the name.
        unsafe { self.library.get(name.to_bytes_with_nul()) }
            .map_err(|error| format!("{} is not NVRTC: {error}", self.path.display()))
    }
}

fn c_string(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|error| format!("a source contains a NUL: {error}"))
}

fn missing(why: String) -> String {
    format!(
        "NVRTC, which compiles the CUDA kernels, was not found: {why}. \
         Install it with `pip install {}`, or set {LIBRARY_VARIABLE} to the path of libnvrtc.so.12",
        RELEASE.1
    )
}
