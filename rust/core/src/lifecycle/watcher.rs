//! A thread that looks from time to time on behalf of operations that run on a device: nobody on the host waits for
//! them, and a program that only replays graphs calls nothing.
//!
//! It touches host memory only, and calls no driver: another thread may be in a driver's call that holds its locks until
//! the very kernel ends that is to be told something.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use super::process::at_exit;
use crate::error::{Error, Result};
use crate::memory::fork::Home;

/// Between two looks. With the looks of kernels that wait, it bounds how soon they hear.
const INTERVAL: Duration = Duration::from_millis(5);

/// What it looks after.
pub trait Watched: Send + Sync {
    /// One look. Waits for nothing that takes long: others are looked after by the same thread.
    fn look(&self);
}

#[derive(Default)]
struct Registry {
    watched: Vec<Arc<dyn Watched>>,
    is_running: bool,
    /// The process ends.
    is_over: bool,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry { watched: Vec::new(), is_running: false, is_over: false });

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Being looked after: until it is dropped.
pub struct Watching {
    watched: Arc<dyn Watched>,
    home: Home,
}

/// Looks after `watched` from now on. There is one thread for all, as long as there is something to look after.
pub fn watch(watched: Arc<dyn Watched>) -> Result<Watching> {
    end_with_the_process();
    let mut registry = registry();
    if !registry.is_running && !registry.is_over {
        let thread = std::thread::Builder::new().name("lamport-rs-watch".into());
        thread.spawn(run).map_err(|error| Error::system("starting a thread", error))?;
        registry.is_running = true;
    }
    registry.watched.push(watched.clone());
    Ok(Watching { watched, home: Home::here() })
}

/// Whether anything is.
pub fn is_watching() -> bool {
    !registry().watched.is_empty()
}

fn run() {
    loop {
        let mut registry = registry();
        if registry.watched.is_empty() || registry.is_over {
            registry.is_running = false;
            return;
        }
        for watched in &registry.watched {
            // One that panics must not leave the others without looks.
            let _ = catch_unwind(AssertUnwindSafe(|| watched.look()));
        }
        drop(registry);
        std::thread::sleep(INTERVAL);
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        // In a forked process there is no thread, and it may have had the lock.
        if !self.home.is_elsewhere() {
            registry().watched.retain(|watched| !Arc::ptr_eq(watched, &self.watched));
        }
    }
}

impl std::fmt::Debug for Watching {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watching")
    }
}

/// A driver takes its memory back when the process ends, whoever still uses it. Functions that are registered later run
/// earlier, and the driver was there before whatever is watched.
fn end_with_the_process() {
    extern "C" fn end() {
        // A forked process has the function, but no such thread, which may have had the lock.
        if std::process::id() == PROCESS.load(Ordering::Relaxed) {
            registry().is_over = true;
        }
    }
    static PROCESS: AtomicU32 = AtomicU32::new(0);
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        PROCESS.store(std::process::id(), Ordering::Relaxed);
        at_exit(end);
    });
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Instant;

    use super::*;

    struct Counter(AtomicUsize);

    impl Watched for Counter {
        fn look(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn wait_for_looks(counter: &Counter) {
        let (before, began) = (counter.0.load(Ordering::Relaxed), Instant::now());
        while counter.0.load(Ordering::Relaxed) < before + 2 {
            assert!(began.elapsed() < Duration::from_secs(20), "nobody looks");
            std::thread::sleep(INTERVAL);
        }
    }

    #[test]
    fn what_is_watched_is_looked_at_until_it_is_not_watched_any_more() {
        let counters = [(); 2].map(|()| Arc::new(Counter(AtomicUsize::new(0))));
        let [first, second] = counters.clone().map(|counter| watch(counter).unwrap());
        counters.iter().for_each(|counter| wait_for_looks(counter));
        drop(first);
        let looks = counters[0].0.load(Ordering::Relaxed);
        wait_for_looks(&counters[1]);
        assert_eq!(counters[0].0.load(Ordering::Relaxed), looks);
        assert_eq!(Arc::strong_count(&counters[0]), 1);
        drop(second);
        // The thread has ended, or will: another takes its place.
        let _again = watch(counters[0].clone()).unwrap();
        wait_for_looks(&counters[0]);
    }
}
