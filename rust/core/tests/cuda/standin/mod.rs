//! The stand-in for the CUDA driver, as tests see it. A test begins with [`Standin::take`], and then lets ranks work:
//!
//! ```
//! let standin = Standin::take();
//! on_ranks(3, |rank| {
//!     let workspace = rank.create().unwrap();
//!     assert_eq!(sum(&workspace, 100).unwrap(), [3.0; 100]);
//! });
//! ```
//!
//! When the test ends, the driver must have got everything back but what the core keeps: modules, and what is in its
//! pools.
//!
//! | module | concept |
//! | --- | --- |
//! | `child` | tests in processes of their own |
//! | `group` | ranks, each with a device and an all-gather |
//! | `threads`, `processes` | what they may be, and what their all-gather is then |
//! | `streams` | streams, and graphs |
//! | `sum` | an operation for tests to which it does not matter which |
//! | `kernels` | the object file for PTX or machine code |
//! | `either` | one program for this backend and for the host's, so that results can be compared |

pub mod child;
pub mod either;
pub mod group;
mod kernels;
pub mod processes;
pub mod streams;
pub mod sum;
pub mod threads;

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_uint, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use lamport_rs_core::cuda::own_stream;
use lamport_rs_core::deferred::{drop_deferred, let_captured_go};
use lamport_rs_core::memory::pool;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::compile::{Sources, emulator, repository};

/// The core asks the dynamic linker for this library first. It is told that it has that already.
const LINKED_NAME: &str = "-Wl,-soname,libcuda.so";

/// The functions of `driver/control.cpp` and `driver/memory.cpp`.
struct Interface {
    resolve_with: unsafe extern "C" fn(unsafe extern "C" fn(*const u8, usize) -> *const c_char),
    act_as: unsafe extern "C" fn(c_int),
    fail: unsafe extern "C" fn(c_int, *const c_char, u64, c_int),
    disarm: unsafe extern "C" fn() -> *const c_char,
    live: unsafe extern "C" fn(c_uint) -> c_long,
    calls: unsafe extern "C" fn(*const c_char) -> u64,
    violations: unsafe extern "C" fn() -> *const c_char,
    frees_while_mapped: unsafe extern "C" fn() -> u64,
    lose_stores: unsafe extern "C" fn(bool),
    speed_up_clock: unsafe extern "C" fn(u64),
    other_context: unsafe extern "C" fn(c_int) -> *mut c_void,
    _library: Library,
}

fn interface() -> &'static Interface {
    static INTERFACE: OnceLock<Interface> = OnceLock::new();
    INTERFACE.get_or_init(|| {
        let driver = repository().join("rust/core/tests/cuda/driver");
        let sources = Sources::of_folders(&[driver, emulator("cuda"), emulator("fibers")]);
        let path = sources.compile_library("driver", &["-fvisibility=hidden", "-pthread", LINKED_NAME]);
        // SAFETY: the library has no initialisers but those of C++. It is global, since the kernels call it.
        let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) }.expect("it was just compiled");
        // SAFETY: these are the library's functions, with its types.
        let interface = unsafe {
            Interface {
                resolve_with: *library.get(b"standin_resolve_with\0").expect("the driver has it"),
                act_as: *library.get(b"standin_act_as\0").expect("the driver has it"),
                fail: *library.get(b"standin_fail\0").expect("the driver has it"),
                disarm: *library.get(b"standin_disarm\0").expect("the driver has it"),
                live: *library.get(b"standin_live\0").expect("the driver has it"),
                calls: *library.get(b"standin_calls\0").expect("the driver has it"),
                violations: *library.get(b"standin_violations\0").expect("the driver has it"),
                frees_while_mapped: *library.get(b"standin_frees_while_mapped\0").expect("the driver has it"),
                lose_stores: *library.get(b"standin_lose_stores\0").expect("the driver has it"),
                speed_up_clock: *library.get(b"standin_speed_up_clock\0").expect("the driver has it"),
                other_context: *library.get(b"standin_other_context\0").expect("the driver has it"),
                _library: library,
            }
        };
        // SAFETY: the function is there as long as the process.
        unsafe { (interface.resolve_with)(kernels::resolve) };
        interface
    })
}

/// What the driver hands out, and gets back. As in `driver/driver.hpp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Device memory.
    Memory,
    /// Peers' memory.
    Mapping,
    /// Pinned memory.
    Pinned,
    /// Modules, which a device keeps.
    Module,
    /// Events.
    Event,
    /// Streams.
    Stream,
    /// Modules that were loaded as machine code.
    MachineCode,
    /// Loads of kernels, which the stand-in keeps, each with an open file.
    #[allow(dead_code, reason = "the fuzzer's")]
    Kernel,
}

impl Kind {
    const TEMPORARY: [Self; 5] = [Self::Memory, Self::Mapping, Self::Pinned, Self::Event, Self::Stream];
}

/// What the core calls to put something back as it was before. Nobody can do anything about it if that fails, so it is
/// no error.
pub const RESTORING: [&str; 2] = ["cuCtxSetCurrent", "cuThreadExchangeStreamCaptureMode"];

/// Whether nobody can do anything about it if a call of `function` fails.
pub fn restores(function: &str) -> bool {
    RESTORING.contains(&function)
}

/// CUDA_ERROR_OUT_OF_MEMORY.
pub const OUT_OF_MEMORY: i32 = 2;

/// The driver, for one test at a time.
pub struct Standin {
    /// What was not given back before, by a test that let a call fail which would have done it.
    lost: Mutex<[i64; Kind::TEMPORARY.len()]>,
    /// Frees of memory that a peer had mapped, before this test.
    frees_before: AtomicU64,
    _taken: MutexGuard<'static, ()>,
}

impl Standin {
    /// Waits until no other test of this process uses it.
    pub fn take() -> Self {
        static TAKEN: Mutex<()> = Mutex::new(());
        let _taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let standin = Self { _taken, lost: Mutex::default(), frees_before: AtomicU64::default() };
        interface();
        standin.disarm();
        standin.speed_up_clock(1);
        standin.lose_stores(false);
        standin.violations();
        standin.write_off();
        standin
    }

    /// Lets a call of `rank`'s to `function`, or to any, return `code`, after `skipped` such calls.
    pub fn fail(&self, rank: usize, function: Option<&str>, skipped: usize, code: i32) {
        let function = function.map(|name| CString::new(name).expect("a name has no NUL"));
        let pointer = function.as_ref().map_or(std::ptr::null(), |name| name.as_ptr());
        // SAFETY: the name is copied.
        unsafe { (interface().fail)(rank as c_int, pointer, skipped as u64, code) }
    }

    /// Ends that, and says which function's call failed, if any.
    pub fn disarm(&self) -> Option<String> {
        // SAFETY: the text is valid until the next call, which needs this lock.
        let hit = unsafe { CStr::from_ptr((interface().disarm)()) };
        Some(hit.to_string_lossy().into_owned()).filter(|hit| !hit.is_empty())
    }

    /// How many of a kind the driver has handed out and not got back, beside what the core says it keeps.
    pub fn lent(&self, kind: Kind) -> i64 {
        let pooled = match kind {
            Kind::Memory => pool::allocations(pool::Kind::Device),
            Kind::Pinned => pool::allocations(pool::Kind::Pinned),
            Kind::Stream => own_stream::created(),
            _ => 0,
        };
        self.live(kind) - pooled as i64
    }

    /// How many of a kind the driver has handed out and not got back.
    pub fn live(&self, kind: Kind) -> i64 {
        // SAFETY: a plain value.
        unsafe { (interface().live)(kind as c_uint) }
    }

    /// How often a function of the driver was called in this process.
    pub fn calls(&self, function: &str) -> u64 {
        let function = CString::new(function).expect("a name has no NUL");
        // SAFETY: the name is NUL-terminated.
        unsafe { (interface().calls)(function.as_ptr()) }
    }

    /// What was done since the last such call that no program may do, a line each.
    pub fn violations(&self) -> String {
        // SAFETY: as in `disarm`.
        unsafe { CStr::from_ptr((interface().violations)()) }.to_string_lossy().into_owned()
    }

    /// How often memory was freed in this process that another device had mapped.
    pub fn frees_while_mapped(&self) -> u64 {
        // SAFETY: no arguments.
        unsafe { (interface().frees_while_mapped)() }
    }

    /// Lets stores into memory that is mapped from now on be lost, or not.
    pub fn lose_stores(&self, loses: bool) {
        // SAFETY: a plain value.
        unsafe { (interface().lose_stores)(loses) }
    }

    /// Lets the devices' clock go on `factor` times as fast as real time, and so all timeouts of kernels. The next test
    /// begins with 1.
    pub fn speed_up_clock(&self, factor: u64) {
        // SAFETY: a plain value.
        unsafe { (interface().speed_up_clock)(factor) }
    }

    /// Fails unless the driver has got everything back but what the core keeps, and was not misused.
    pub fn check_all_is_given_back(&self) {
        let began = Instant::now();
        while !self.is_all_given_back() && began.elapsed() < Duration::from_secs(5) {
            // SAFETY: no test launches a graph after this.
            unsafe { let_captured_go() };
            drop_deferred();
            std::thread::sleep(Duration::from_millis(1));
        }
        let frees = self.frees_while_mapped() - self.frees_before.load(Ordering::Relaxed);
        assert_eq!(frees, 0, "memory was freed that a peer had mapped");
        let missing = self.write_off();
        assert!(missing.is_empty(), "not given back: {missing:?}");
        assert_eq!(self.violations(), "");
    }

    fn is_all_given_back(&self) -> bool {
        let lost = *self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        Kind::TEMPORARY.map(|kind| self.lent(kind)) == lost
    }

    /// Takes for lost what was not given back since the last time, and says what that is. What was freed although a peer had
    /// it mapped is forgiven.
    pub fn write_off(&self) -> Vec<Kind> {
        self.frees_before.store(self.frees_while_mapped(), Ordering::Relaxed);
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let mut missing = vec![];
        for (kind, lost) in Kind::TEMPORARY.into_iter().zip(lost.iter_mut()) {
            let lent = self.lent(kind);
            missing.extend((*lost..lent).map(|_| kind));
            *lost = lent;
        }
        missing
    }
}

impl Drop for Standin {
    fn drop(&mut self) {
        self.disarm();
        if !std::thread::panicking() {
            self.check_all_is_given_back();
        }
    }
}

/// The calling thread works for this rank, whose calls [`Standin::fail`] tells from others'.
pub fn act_as(rank: usize) {
    // SAFETY: a plain value.
    unsafe { (interface().act_as)(rank as c_int) }
}

/// A context of the device beside its primary one, as a green context is.
pub fn other_context(device: usize) -> cudarc::driver::sys::CUcontext {
    // SAFETY: a plain value.
    unsafe { (interface().other_context)(device as c_int) }.cast()
}
