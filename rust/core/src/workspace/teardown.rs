//! Freeing a block that peers have mapped: not before they have unmapped it. The driver does not say what becomes of
//! their stores otherwise.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::cuda::memory::DeviceMemory;
use crate::deferred::drop_after;
use crate::lifecycle::Lifecycle;

/// How long whoever drops a workspace waits for peers that drop theirs at the same time.
const PEERS_APART: Duration = Duration::from_millis(10);
/// Between two looks meanwhile, and after.
const SOON: Duration = Duration::from_micros(50);
const LATER: Duration = Duration::from_millis(5);

/// Frees `block`, which this rank's peers have mapped, once none has. If one takes its time, a thread waits for it.
pub fn free_when_unmapped(block: DeviceMemory, lifecycle: Arc<Lifecycle>) {
    let began = Instant::now();
    while !lifecycle.is_unmapped() {
        if began.elapsed() > PEERS_APART {
            drop_after(block, move || {
                while !lifecycle.is_unmapped() {
                    thread::sleep(LATER);
                }
            });
            return;
        }
        thread::sleep(SOON);
    }
}
