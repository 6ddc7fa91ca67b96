//! Teardown of the memory of a workspace or a buffer, whatever its kind: mappings of the peers' go, the peers are told,
//! and the own is freed once they have told the same.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::deferred::{Teardown, defer_drop};
use crate::lifecycle::Lifecycle;
use crate::memory::fork::Home;
use crate::memory::{GroupMemory, Memory};

/// How long whoever drops a workspace waits for peers that drop theirs at the same time.
const PEERS_APART: Duration = Duration::from_millis(10);
/// How long peers may take to give up what this rank has given up, if they cannot tell.
pub const PEERS_UNHEARD: Duration = Duration::from_secs(1);
/// Between two looks meanwhile.
const BETWEEN_LOOKS: Duration = Duration::from_micros(50);

/// The memory of a group as one rank's workspace or buffer has it. To drop it is its teardown: nothing of this rank uses it
/// any more.
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

    /// The blocks of all ranks.
    pub fn blocks(&self) -> &GroupMemory<M> {
        self.memory.as_ref().expect("it is there until the teardown")
    }

    /// This rank's block.
    pub fn own(&self) -> &M::Block {
        &self.blocks().own
    }

    /// Waits until no kernel of this process uses it any more. False if some may, or if it is another process's.
    pub fn await_unused(&self) -> bool {
        M::OUTLIVES_ITS_BLOCK || (!self.lifecycle.is_elsewhere() && M::await_kernels(self.own()).is_ok())
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
        } else if self.lifecycle.hears_of_unmapping() {
            free_when_unmapped::<M>(own, self.lifecycle.clone());
        } else {
            free_later::<M>(own);
        }
    }
}

/// Frees `block`, which this rank's peers have mapped, once none has. If one takes its time, a later call frees it.
fn free_when_unmapped<M: Memory>(block: M::Block, lifecycle: Arc<Lifecycle>) {
    let began = Instant::now();
    while !lifecycle.is_unmapped() {
        if began.elapsed() > PEERS_APART {
            let ready = move || !lifecycle.is_elsewhere() && lifecycle.is_unmapped();
            defer_drop(Freed::<M>(block), ready);
            return;
        }
        thread::sleep(BETWEEN_LOOKS);
    }
}

/// Frees `block`, which peers may have mapped that cannot tell when they have not any more: a later call does, when they have
/// had the time.
pub fn free_later<M: Memory>(block: M::Block) {
    if M::OUTLIVES_ITS_BLOCK {
        return;
    }
    let (began, home) = (Instant::now(), Home::here());
    defer_drop(Freed::<M>(block), move || began.elapsed() > PEERS_UNHEARD && !home.is_elsewhere());
}

/// A block that is freed behind the kernels that run then: whoever does it waits for them, but not within the driver, where
/// no other thread could launch anything meanwhile.
struct Freed<M: Memory>(M::Block);

impl<M: Memory> Teardown for Freed<M> {
    fn give_up(&self) {
        // If they cannot be waited for, the driver frees nothing.
        let _ = M::await_kernels(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use lamport_rs_protocol::sentinel::Vector;

    use super::*;
    use crate::deferred::drop_deferred;
    use crate::error::Result;

    type Events = Arc<Mutex<Vec<&'static str>>>;

    /// Says when it is unmapped, or freed.
    #[derive(Debug)]
    struct Noted(&'static str, Events);

    impl Drop for Noted {
        fn drop(&mut self) {
            self.1.lock().unwrap_or_else(PoisonError::into_inner).push(self.0);
        }
    }

    /// Memory of which nobody asks more than when it goes.
    #[derive(Debug)]
    struct Fleeting<const OUTLIVES: bool>;

    impl<const OUTLIVES: bool> Memory for Fleeting<OUTLIVES> {
        const NAME: &'static str = "fleeting";
        const OUTLIVES_ITS_BLOCK: bool = OUTLIVES;
        type Block = Noted;
        type Mapping = Noted;

        fn device(&self) -> String {
            unreachable!()
        }
        fn allocate(&self, _bytes: usize, _word: u32) -> Result<Noted> {
            unreachable!()
        }
        fn refill(&self, _block: &Noted, _bytes: usize) -> Result<()> {
            unreachable!()
        }
        fn export(&self, _block: &mut Noted, _nonce: Vector) -> Result<Vec<u8>> {
            unreachable!()
        }
        fn map(&self, _handle: &[u8], _nonce: Vector, _bytes: usize) -> Result<Noted> {
            unreachable!()
        }
        fn address(_block: &Noted) -> u64 {
            unreachable!()
        }
        fn mapped_address(_mapping: &Noted) -> u64 {
            unreachable!()
        }
    }

    /// What two ranks have of each other's memory.
    fn two_ranks<M: Memory<Block = Noted, Mapping = Noted>>() -> ([WorkspaceMemory<M>; 2], Events) {
        let events = Events::default();
        let noted = |name| Noted(name, events.clone());
        let [first, second] = Lifecycle::pair();
        let of_first = GroupMemory { peers: vec![None, Some(noted("0 unmaps"))], own: noted("0 frees") };
        let of_second = GroupMemory { peers: vec![Some(noted("1 unmaps")), None], own: noted("1 frees") };
        ([WorkspaceMemory::new(of_first, first), WorkspaceMemory::new(of_second, second)], events)
    }

    fn events_of(events: &Events) -> Vec<&'static str> {
        events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    #[test]
    fn memory_that_peers_have_mapped_is_freed_by_a_call_after_they_have_unmapped_it() {
        let ([first, second], events) = two_ranks::<Fleeting<false>>();
        drop(first);
        drop_deferred();
        assert_eq!(events_of(&events), ["0 unmaps"]);
        drop(second);
        // Nothing else frees it.
        thread::sleep(5 * PEERS_APART);
        assert_eq!(events_of(&events), ["0 unmaps", "1 unmaps", "1 frees"]);
        while events_of(&events).len() < 4 {
            drop_deferred();
        }
        assert_eq!(events_of(&events), ["0 unmaps", "1 unmaps", "1 frees", "0 frees"]);
    }

    #[test]
    fn memory_that_outlives_its_block_is_freed_at_once() {
        let ([first, _second], events) = two_ranks::<Fleeting<true>>();
        drop(first);
        assert_eq!(events_of(&events), ["0 unmaps", "0 frees"]);
    }

    #[test]
    fn memory_that_is_abandoned_stays() {
        let ([mut first, _second], events) = two_ranks::<Fleeting<false>>();
        first.abandon();
        drop(first);
        assert!(events_of(&events).is_empty());
    }
}
