//! The word by which peers hear that this process ends, and the thread that holds it:
//! [`lamport_rs_protocol::life`] says what it means.

use std::ffi::{c_int, c_long};
use std::ptr::null;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use lamport_rs_protocol::life;
use lamport_rs_protocol::notices::LIFE_WORDS;
use lamport_rs_protocol::sentinel::Vector;

use super::pages::PAGE_BYTES;
use super::process::at_exit;
use super::words::Words;
use crate::error::{Error, Result};
use crate::memory::handle::Handle;
use crate::memory::host::{self, Block, Mapping};

/// At the end of a page. Its file's identity tells which page it is.
const MARK: Vector = [0; 4];

/// This process's page.
struct Own {
    process: u32,
    block: Block,
    handle: Handle,
}

static OWN: Mutex<Option<Own>> = Mutex::new(None);
/// The process that has the page.
static PROCESS: AtomicU32 = AtomicU32::new(0);
/// The interpreter takes itself apart.
static IS_FINISHING: AtomicBool = AtomicBool::new(false);

fn own() -> MutexGuard<'static, Option<Own>> {
    OWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where peers find the word. The first call makes it. Zeros where it cannot be had: peers hear of this process's end
/// later then, from the system.
pub fn own_words() -> [u32; LIFE_WORDS] {
    let mut own = own();
    // A forked process has none yet.
    if own.as_ref().is_none_or(|own| own.process != std::process::id()) {
        *own = begin().ok();
    }
    own.as_ref().map_or([0; LIFE_WORDS], |own| words_of(&own.handle))
}

fn begin() -> Result<Own> {
    let mut block = Block::allocate(PAGE_BYTES, 0)?;
    let (mapping, handle, process) = (block.mapping().clone(), block.export(MARK), std::process::id());
    let thread = std::thread::Builder::new().name("lamport-rs-life".into());
    thread.spawn(|| hold_for_ever(mapping)).map_err(|error| Error::system("starting a thread", error))?;
    PROCESS.store(process, Ordering::Relaxed);
    IS_FINISHING.store(false, Ordering::Relaxed);
    end_at_exit();
    Ok(Own { process, block, handle })
}

fn words_of(handle: &Handle) -> [u32; LIFE_WORDS] {
    let [device, inode] = [handle.device, handle.inode].map(|number| [number as u32, (number >> 32) as u32]);
    [handle.descriptor as u32, device[0], device[1], inode[0], inode[1]]
}

/// The handle of the page of `process`, which has said that it is there.
pub fn handle_of(process: u32, words: [u32; LIFE_WORDS]) -> Handle {
    let number = |at: usize| u64::from(words[at]) | u64::from(words[at + 1]) << 32;
    let bytes = host::file_bytes(PAGE_BYTES) as u64;
    Handle { process, descriptor: words[0] as i32, device: number(1), inode: number(3), bytes }
}

/// A peer's word. What it names is opened as the handle of a block is, and read only.
#[derive(Debug)]
pub struct Life {
    words: Words,
    _mapping: Mapping,
}

impl Life {
    /// Maps it.
    pub fn open(handle: &Handle) -> Result<Self> {
        let mapping = host::open_to_read(handle, MARK, PAGE_BYTES)?;
        Ok(Self { words: Words::of_one(mapping.pointer()), _mapping: mapping })
    }

    /// Whether its process has ended, or is about to.
    pub fn ends(&self) -> bool {
        life::ends(&self.words)
    }
}

/// The interpreter begins to take itself apart, and with it what still refers to workspaces. Peers hear of that at once, or,
/// if kernels may still send something, when these have ended.
pub fn finish(may_still_send: bool) {
    if std::process::id() == PROCESS.load(Ordering::Relaxed) {
        IS_FINISHING.store(true, Ordering::Relaxed);
        if !may_still_send {
            end();
        }
    }
}

/// This rank's kernels have ended, in the process that has their workspace.
pub fn kernels_have_ended() {
    if IS_FINISHING.load(Ordering::Relaxed) {
        end();
    }
}

/// This process ends.
fn end() {
    if let Some(own) = &*own() {
        life::end(&Words::of_one(own.block.pointer()));
    }
}

fn end_at_exit() {
    extern "C" fn end_this_one() {
        // A forked process has the function, but no such page, and another thread may have had the lock.
        if std::process::id() == PROCESS.load(Ordering::Relaxed) {
            end();
        }
    }
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| at_exit(end_this_one));
}

/// An entry of a list of words that a thread holds, as the kernel reads it. The word is so many bytes behind the entry as
/// the list's head says.
#[repr(C)]
struct Entry {
    next: *const Entry,
}

/// A `struct robust_list_head`.
#[repr(C)]
struct Head {
    list: Entry,
    offset: c_long,
    pending: *const Entry,
}

/// The kernel's number of `set_robust_list`, which no C library wraps; none where it is not known here.
const SET_ROBUST_LIST: Option<c_long> = if cfg!(target_arch = "x86_64") {
    Some(273)
} else if cfg!(target_arch = "aarch64") {
    Some(99)
} else {
    None
};

/// Holds the word of a page until the process ends. It runs nothing else, so nobody else needs the thread's list, and no
/// signal's handler runs on it.
fn hold_for_ever(page: Arc<Mapping>) {
    unsafe extern "C" {
        fn syscall(number: c_long, ...) -> c_long;
    }
    block_signals();
    let words = Words::of_one(page.pointer());
    // Both are private: peers cannot change what the kernel reads.
    let entry: &mut Entry = Box::leak(Box::new(Entry { next: null() }));
    let offset = page.pointer().as_ptr().addr().wrapping_sub((&raw const *entry).addr());
    let head = Box::leak(Box::new(Head { list: Entry { next: entry }, offset: offset as c_long, pending: null() }));
    // The list ends where it begins.
    entry.next = &raw const head.list;
    if let Some(number) = SET_ROBUST_LIST {
        // SAFETY: the list stays, and nobody changes it. The C library's own list of this thread is empty.
        let is_set = unsafe { syscall(number, &raw const *head, size_of::<Head>()) } == 0;
        if is_set {
            // After that: the kernel looks whether the word has this thread's number.
            let thread = rustix::thread::gettid().as_raw_nonzero().get();
            life::hold(&words, thread as u32);
        }
    }
    loop {
        std::thread::park();
    }
}

fn block_signals() {
    /// As large as a `sigset_t` of any C library for Linux.
    type Signals = [u64; 16];
    const SIG_BLOCK: c_int = 0;
    unsafe extern "C" {
        fn sigfillset(signals: *mut Signals) -> c_int;
        fn pthread_sigmask(how: c_int, signals: *const Signals, before: *mut Signals) -> c_int;
    }
    let mut all = Signals::default();
    // SAFETY: both may be called at any time, and the set is large enough.
    unsafe {
        sigfillset(&mut all);
        pthread_sigmask(SIG_BLOCK, &all, std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::lifecycle::process::{Process, ended};

    const SOON: Duration = Duration::from_secs(10);
    /// What a process has that takes the system a while to take apart.
    const BYTES: usize = 256 << 20;

    #[test]
    #[ignore = "the process that the others end"]
    fn process_that_ends() {
        let much = vec![1_u8; BYTES];
        println!("\nlife {:?}", own_words());
        std::io::stdout().flush().unwrap();
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).unwrap();
        assert!(std::hint::black_box(much)[BYTES - 1] == 1);
        match line.trim() {
            "end" => std::process::exit(0),
            "finish" => finish(false),
            "finish later" => finish(true),
            "finish later, and kernels have ended" => {
                finish(true);
                kernels_have_ended();
            }
            other => unreachable!("{other}"),
        }
        std::thread::sleep(SOON);
    }

    /// A process, and what tells of its end.
    fn start() -> (Child, Arc<Process>) {
        let test = [module_path!().split_once("::").unwrap().1, "process_that_ends"].join("::");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([&test, "--exact", "--ignored", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines().map_while(|line| line.ok());
        let words = lines.filter_map(|line| Some(line.strip_prefix("life [")?.strip_suffix(']')?.to_owned())).next();
        let words: Vec<u32> = words.unwrap().split(", ").map(|word| word.parse().unwrap()).collect();
        let process = Process::of(child.id(), &handle_of(child.id(), words.try_into().unwrap()));
        (child, process)
    }

    fn hears(process: &Process) -> bool {
        let began = Instant::now();
        while !process.ends() && began.elapsed() < SOON / 10 {}
        process.ends()
    }

    #[test]
    fn a_process_that_is_killed_is_heard_before_the_system_has_taken_it_apart() {
        let is_earlier = || {
            let (mut child, process) = start();
            std::thread::sleep(Duration::from_millis(20));
            assert!(!process.ends());
            child.kill().unwrap();
            assert!(hears(&process));
            let is_there = ended(&[&process]).is_empty();
            child.wait().unwrap();
            assert_eq!(ended(&[&process]), [0]);
            is_there
        };
        // On a machine that is busy this process may be late itself.
        assert!((0..10).any(|_| is_earlier()));
    }

    #[test]
    fn a_process_that_ends_in_order_is_heard_when_it_sends_nothing_more() {
        for (what, is_heard) in
            [("end", true), ("finish", true), ("finish later", false), ("finish later, and kernels have ended", true)]
        {
            let (mut child, process) = start();
            writeln!(child.stdin.as_mut().unwrap(), "{what}").unwrap();
            assert_eq!(hears(&process), is_heard, "{what}");
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn what_is_no_page_of_a_process_is_not_opened() {
        let words = own_words();
        let own = std::process::id();
        assert!(Life::open(&handle_of(own, words)).is_ok_and(|life| !life.ends()));
        for at in 0..LIFE_WORDS {
            let mut others = words;
            others[at] ^= 1 << 20;
            assert!(Life::open(&handle_of(own, others)).is_err(), "{at}");
        }
        assert!(Life::open(&handle_of(own, [0; LIFE_WORDS])).is_err());
    }
}
