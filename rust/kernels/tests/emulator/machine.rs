//! The machine, from the outside: memory, launches, and what became of them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::OnceLock;

use lamport_rs_kernels::plan::LaunchPlan;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOW};

use crate::compile::{Sources, emulator, unique};

/// What memory is for: which accesses to it are right. As in `memory.hpp`.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum Kind {
    /// Relaxed, system scope.
    System,
    /// Relaxed, of one device.
    Device,
    /// Weak loads, after the grid-dependency wait.
    Input,
    /// Weak loads and stores.
    Output,
    /// Weak loads, also before the grid-dependency wait.
    Weight,
}

/// Why a run did not end well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No thread can go on.
    Hang(String),
    /// An access or a barrier that is not right.
    Misuse(String),
}

/// What a machine can do at once, per rank.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Blocks.
    pub resident_blocks: u32,
    /// Threads.
    pub resident_threads: u32,
    /// Nanoseconds that pass each time that all threads wait; 0: the clock stands still.
    pub tick: u64,
}

/// As in `interface.cpp`.
#[repr(C)]
struct Launch {
    name: *const c_char,
    enter: unsafe extern "C" fn(*const c_void),
    shared_begin: *mut c_char,
    shared_end: *mut c_char,
    parameters: *const c_void,
    parameter_bytes: u64,
    rank: u32,
    blocks: u32,
    block_threads: u32,
    is_dependent: u32,
}

/// The functions of `interface.cpp`.
struct Interface {
    create: unsafe extern "C" fn(u32, u64, u32, u32, u64) -> *mut c_void,
    destroy: unsafe extern "C" fn(*mut c_void),
    add_memory: unsafe extern "C" fn(*mut c_void, u64, u64, u32, u32, *const c_char),
    launch: unsafe extern "C" fn(*mut c_void, *const Launch),
    run: unsafe extern "C" fn(*mut c_void) -> u32,
    message: unsafe extern "C" fn(*const c_void) -> *const c_char,
    turns: unsafe extern "C" fn(*const c_void) -> u64,
    _library: Library,
}

fn interface() -> &'static Interface {
    static INTERFACE: OnceLock<Interface> = OnceLock::new();
    INTERFACE.get_or_init(|| {
        let folders = ["cuda", "fibers", "machine"].map(emulator);
        let path = Sources::of_folders(&folders).compile_library("machine", &[]);
        // SAFETY: the library has no initialisers but those of C++. It is global, since the kernels call it.
        let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) }.expect("it was just compiled");
        // SAFETY: these are the functions of `interface.cpp`, with its types.
        unsafe {
            Interface {
                create: *library.get(b"emulator_create\0").expect("the machine has it"),
                destroy: *library.get(b"emulator_destroy\0").expect("the machine has it"),
                add_memory: *library.get(b"emulator_add_memory\0").expect("the machine has it"),
                launch: *library.get(b"emulator_launch\0").expect("the machine has it"),
                run: *library.get(b"emulator_run\0").expect("the machine has it"),
                turns: *library.get(b"emulator_turns\0").expect("the machine has it"),
                message: *library.get(b"emulator_message\0").expect("the machine has it"),
                _library: library,
            }
        }
    })
}

/// Kernels, by name, compiled and loaded when they are first asked for. For one thread: a loaded kernel has shared
/// variables.
pub struct Kernels {
    sources: Sources,
    loaded: RefCell<HashMap<String, Rc<Kernel>>>,
}

struct Kernel {
    enter: unsafe extern "C" fn(*const c_void),
    parameter_bytes: u64,
    shared: (*mut c_char, *mut c_char),
    _library: Library,
}

impl Kernels {
    pub fn new(sources: Sources) -> Self {
        Self { sources, loaded: RefCell::default() }
    }

    fn get(&self, name: &str, compile: impl FnOnce(&Sources) -> PathBuf) -> Rc<Kernel> {
        let mut loaded = self.loaded.borrow_mut();
        let load = || Rc::new(Kernel::load(&compile(&self.sources)));
        loaded.entry(name.to_owned()).or_insert_with(load).clone()
    }
}

impl Kernel {
    fn load(path: &Path) -> Self {
        interface();
        // A copy, since two loads of one file would be one object with one set of shared variables.
        let copy = path.with_file_name(unique("loaded"));
        fs::copy(path, &copy).expect("the target folder can be written to");
        // SAFETY: a kernel has no initialisers, and the machine that it calls is loaded.
        let library = unsafe { Library::open(Some(&copy), RTLD_NOW | RTLD_LOCAL) };
        fs::remove_file(&copy).expect("the target folder can be written to");
        let library = library.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        type Size = unsafe extern "C" fn() -> u64;
        type Place = unsafe extern "C" fn() -> *mut c_char;
        // SAFETY: these are what EMULATOR_EXPORT defines, with its types.
        unsafe {
            let size: Size = *library.get(b"emulator_parameter_bytes\0").expect("a kernel has it");
            let begin: Place = *library.get(b"emulator_shared_begin\0").expect("a kernel has it");
            let end: Place = *library.get(b"emulator_shared_end\0").expect("a kernel has it");
            Self {
                enter: *library.get(b"emulator_enter\0").expect("a kernel has it"),
                parameter_bytes: size(),
                shared: (begin(), end()),
                _library: library,
            }
        }
    }
}

/// A group of devices.
pub struct Machine {
    pointer: *mut c_void,
    // Not unloaded while a grid may refer to them.
    kernels: Vec<Rc<Kernel>>,
}

impl Machine {
    pub fn new(ranks: usize, seed: u64, limits: Limits) -> Self {
        let Limits { resident_blocks, resident_threads, tick } = limits;
        // SAFETY: plain values.
        let pointer = unsafe { (interface().create)(ranks as u32, seed, resident_blocks, resident_threads, tick) };
        Self { pointer, kernels: Vec::new() }
    }

    /// Declares memory of a rank. It must outlive the machine's last run.
    pub fn add_memory(&mut self, begin: u64, bytes: usize, kind: Kind, rank: usize, name: &str) {
        let name = CString::new(name).expect("names are plain");
        // SAFETY: the machine is alive; it copies the name.
        unsafe {
            (interface().add_memory)(self.pointer, begin, bytes as u64, kind as u32, rank as u32, name.as_ptr());
        }
    }

    /// Puts a launch at the end of the rank's stream.
    pub fn launch<P>(&mut self, kernels: &Kernels, rank: usize, plan: &LaunchPlan, parameters: &P) {
        let name = plan.module.name();
        let kernel = kernels.get(&name, |sources| sources.compile(plan.module));
        if let Some(bounds) = plan.module.bounds() {
            assert!(plan.block <= bounds.max_threads, "{plan:?}");
        }
        self.launch_kernel(kernel, &name, rank, (plan.grid, plan.block, plan.dependent_launch), parameters);
    }

    /// Likewise one block of a kernel that is not in the catalogue.
    pub fn launch_function<P>(&mut self, kernels: &Kernels, rank: usize, function: &str, threads: u32, parameters: &P) {
        let kernel = kernels.get(function, |sources| sources.compile_function(function, function, &[]));
        self.launch_kernel(kernel, function, rank, (1, threads, true), parameters);
    }

    fn launch_kernel<P>(
        &mut self,
        kernel: Rc<Kernel>,
        name: &str,
        rank: usize,
        (blocks, block_threads, is_dependent): (u32, u32, bool),
        parameters: &P,
    ) {
        assert_eq!(kernel.parameter_bytes, size_of::<P>() as u64, "{name} takes another struct");
        let name = CString::new(name).expect("names are plain");
        let launch = Launch {
            name: name.as_ptr(),
            enter: kernel.enter,
            shared_begin: kernel.shared.0,
            shared_end: kernel.shared.1,
            parameters: std::ptr::from_ref(parameters).cast(),
            parameter_bytes: kernel.parameter_bytes,
            rank: rank as u32,
            blocks,
            block_threads,
            is_dependent: u32::from(is_dependent),
        };
        // SAFETY: the machine is alive; it copies name and parameters, and the kernel is kept below.
        unsafe { (interface().launch)(self.pointer, &launch) };
        self.kernels.push(kernel);
    }

    /// Runs until all that was launched has ended, or cannot.
    pub fn run(&mut self) -> Result<(), Fault> {
        // SAFETY: the machine is alive, and so is all memory that was declared; kernels access nothing else, since the
        // machine checks every address.
        let outcome = unsafe { (interface().run)(self.pointer) };
        // SAFETY: the machine is alive, and its message ends in NUL.
        let message = unsafe { CStr::from_ptr((interface().message)(self.pointer)) }.to_string_lossy().into_owned();
        match outcome {
            0 => Ok(()),
            1 => Err(Fault::Hang(message)),
            _ => Err(Fault::Misuse(message)),
        }
    }
}

impl Machine {
    /// How often a thread was chosen to run so far.
    pub fn turns(&self) -> u64 {
        // SAFETY: the machine is alive.
        unsafe { (interface().turns)(self.pointer) }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: nobody uses it any more.
        unsafe { (interface().destroy)(self.pointer) };
    }
}
