//! Teardown of a workspace's memory, whatever its kind: mappings of the peers' go, the peers are told, and the own is freed
//! once they have told the same.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::deferred::drop_after;
use crate::lifecycle::Lifecycle;
use crate::memory::{GroupMemory, Memory};

/// How long whoever drops a workspace waits for peers that drop theirs at the same time.
const PEERS_APART: Duration = Duration::from_millis(10);
/// Between two looks meanwhile, and after.
const SOON: Duration = Duration::from_micros(50);
const LATER: Duration = Duration::from_millis(5);

/// The memory of a group as one rank's workspace has it. To drop it is its teardown: nothing of this rank uses it any more.
#[derive(Debug)]
pub struct WorkspaceMemory<M: Memory> {
    /// There until the teardown.
    memory: Option<GroupMemory<M>>,
    lifecycle: Arc<Lifecycle>,
}

impl<M: Memory> WorkspaceMemory<M> {
    /// Of the workspace with this lifecycle.
    pub fn new(memory: GroupMemory<M>, lifecycle: Arc<Lifecycle>) -> Self {
        Self { memory: Some(memory), lifecycle }
    }

    /// This rank's block.
    pub fn own(&self) -> &M::Block {
        &self.memory.as_ref().expect("it is there until the teardown").own
    }

    /// Leaves all of it as it is, for ever: kernels may still use it, or it is another process's.
    pub fn abandon(&mut self) {
        std::mem::forget(self.memory.take());
    }
}

impl<M: Memory> Drop for WorkspaceMemory<M> {
    fn drop(&mut self) {
        let Some(GroupMemory { peers, own }) = self.memory.take() else { return };
        self.lifecycle.clean_up();
        drop(peers);
        self.lifecycle.unmap();
        if M::OUTLIVES_ITS_BLOCK {
            drop(own);
        } else {
            free_when_unmapped(own, self.lifecycle.clone());
        }
    }
}

/// Frees `block`, which this rank's peers have mapped, once none has. If one takes its time, a thread waits for it.
fn free_when_unmapped<B: Send + 'static>(block: B, lifecycle: Arc<Lifecycle>) {
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
