//! `abort` from a signal's handler in C's sense: it interrupts whatever its thread does, and may neither allocate nor wait.

mod sums;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lamport_rs_core::error::{Cause, Error};
use lamport_rs_core::lifecycle::Lifecycle;
use lamport_rs_core::workspace::host::HostWorkspace;

use sums::sum_of_ones;

const SIGUSR1: i32 = 10;
const LONG: Duration = Duration::from_secs(60);
/// By when a wait has ended, on a machine that does much else.
const SOON: Duration = Duration::from_secs(5);

unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
    fn pthread_self() -> usize;
    fn pthread_kill(thread: usize, number: i32) -> i32;
}

thread_local!(static IN_HANDLER: Cell<bool> = const { Cell::new(false) });
static ALLOCATIONS_IN_HANDLERS: AtomicU32 = AtomicU32::new(0);

/// The system's allocator, which counts what handlers ask of it.
struct Counting;

impl Counting {
    fn count(&self) {
        if IN_HANDLER.get() {
            ALLOCATIONS_IN_HANDLERS.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// SAFETY: all is the system's doing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.count();
        // SAFETY: the caller's promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.count();
        // SAFETY: the caller's promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The workspace that the handler aborts.
static ABORTED: AtomicPtr<Lifecycle> = AtomicPtr::new(std::ptr::null_mut());
static HANDLED: AtomicU32 = AtomicU32::new(0);

extern "C" fn abort(_number: i32) {
    IN_HANDLER.set(true);
    // SAFETY: the test keeps the workspace until its threads have ended.
    let lifecycle = unsafe { &*ABORTED.load(Ordering::Acquire) };
    let done = lifecycle.abort("the scheduler takes the machine back");
    let succeeded = done.is_ok();
    std::mem::forget(done);
    IN_HANDLER.set(false);
    HANDLED.fetch_add(u32::from(succeeded), Ordering::Relaxed);
}

/// The handler interrupts the very thread that waits; another rank waits too, and the third never comes.
#[test]
fn a_handler_may_abort_the_operation_that_it_interrupts() {
    let workspaces = HostWorkspace::in_process(3, 4096, Some(LONG)).unwrap();
    ABORTED.store(std::ptr::from_ref::<Lifecycle>(workspaces[0].lifecycle()).cast_mut(), Ordering::Release);
    // SAFETY: the handler is this file's, and does what a handler may.
    unsafe { signal(SIGUSR1, abort) };
    let waiting = AtomicUsize::new(0);
    let wait = |rank: usize| {
        if rank == 0 {
            // SAFETY: no arguments.
            waiting.store(unsafe { pthread_self() }, Ordering::Release);
        }
        let (outcome, memory) = sum_of_ones(&workspaces[rank]);
        assert!(memory.iter().all(|value| value.is_nan()), "{memory:?}");
        (outcome.unwrap_err(), Instant::now())
    };
    let wait = &wait;
    std::thread::scope(|scope| {
        let threads = [0, 1].map(|rank| scope.spawn(move || wait(rank)));
        std::thread::sleep(Duration::from_millis(50));
        let began = Instant::now();
        // SAFETY: the thread waits, and is joined below.
        assert_eq!(unsafe { pthread_kill(waiting.load(Ordering::Acquire), SIGUSR1) }, 0);
        for thread in threads {
            let (error, when) = thread.join().unwrap();
            let Error::Aborted { rank: 0, cause: Cause::Aborted, reason } = error else { panic!("{error:?}") };
            assert_eq!(reason, "the scheduler takes the machine back");
            assert!(when - began < SOON);
        }
    });
    assert_eq!(HANDLED.load(Ordering::Relaxed), 1);
    assert_eq!(ALLOCATIONS_IN_HANDLERS.load(Ordering::Relaxed), 0);
}
