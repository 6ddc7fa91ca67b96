//! Words in pinned host memory, by which kernels and the host tell each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use lamport_rs_kernels::parameters::{Report, SKIPPED_IS_THERE};
use lamport_rs_protocol::geometry::MAX_WORLD_SIZE;
use lamport_rs_protocol::rank_set::RankSet;
use lamport_rs_protocol::sentinel::Vector;

use crate::cuda::device::Device;
use crate::error::Result;
use crate::memory::pool::{Kind, PooledBuffer};

/// Words that kernels and the host tell each other, as atomics only: reports of faults, and the result of the
/// verification.
#[derive(Debug)]
pub struct PinnedWords(PooledBuffer);

/// Bytes for them, in lines of their own.
pub const PINNED_BYTES: usize = size_of::<Report>().next_multiple_of(128);

/// How long the host waits for the rest of a report, of which the first word is there.
const REST_OF_REPORT: Duration = Duration::from_millis(100);

/// What the verification's result is before the kernel has written it: no set of ranks.
const NO_RESULT: u32 = u32::MAX;

impl PinnedWords {
    /// Takes them, and makes them what they are before any operation.
    pub fn take(device: &Arc<Device>) -> Result<Self> {
        let words = Self(PooledBuffer::take(device, Kind::Pinned)?);
        // SAFETY: the buffer is that large and as aligned as lines are, and nobody else has it.
        unsafe { words.pointer().write(Report { verification: NO_RESULT, ..Report::default() }) };
        Ok(words)
    }

    fn pointer(&self) -> *mut Report {
        self.0.pointer().cast()
    }

    /// Forgets what was reported. No kernel of the workspace runs.
    pub fn clear(&self) {
        let report = self.pointer();
        // SAFETY: valid until dropped, and written by nobody else meanwhile.
        unsafe {
            (&raw mut (*report).operation).write_volatile(Vector::default());
            (&raw mut (*report).waiting).write_volatile(Vector::default());
            AtomicU32::from_ptr(&raw mut (*report).skipped).store(0, Ordering::Relaxed);
            AtomicU32::from_ptr(&raw mut (*report).ranks).store(0, Ordering::Release);
        }
    }

    /// The report's address for kernels.
    pub fn report_address(&self) -> u64 {
        self.0.address()
    }

    /// The result's address for the verification.
    pub fn result_address(&self) -> u64 {
        self.0.address() + std::mem::offset_of!(Report, verification) as u64
    }

    /// The first word of the [`Report`]: 0 as long as there is no fault.
    #[inline]
    pub fn faults(&self) -> u32 {
        // SAFETY: valid until dropped; kernels write it with system-scope atomics.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.pointer()).ranks) }.load(Ordering::Acquire)
    }

    /// Tells the kernels that wait, or will, that these ranks send nothing more, and that what they have sent is there.
    pub fn tell_ended(&self, ranks: RankSet) {
        // SAFETY: valid until dropped; kernels read it only.
        let word = unsafe { AtomicU32::from_ptr(&raw mut (*self.pointer()).ended) };
        if word.load(Ordering::Relaxed) != ranks.0.into() {
            word.store(ranks.0.into(), Ordering::Release);
        }
    }

    /// What the operation was in which the fault was noticed, once that is there; `None` if it does not come.
    pub fn operation(&self) -> Option<Vector> {
        let began = Instant::now();
        while began.elapsed() < REST_OF_REPORT {
            // SAFETY: valid until dropped; the kernel writes it once, a vector at a time.
            let header = unsafe { (&raw const (*self.pointer()).operation).read_volatile() };
            if header != Vector::default() {
                return Some(header);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        None
    }

    /// What rank `rank` did, if it is among those that differ: stored before the report's first word.
    pub fn peer_operation(&self, rank: usize) -> Vector {
        // SAFETY: as in `operation`.
        unsafe { (&raw const (*self.pointer()).peers[rank]).read_volatile() }
    }

    /// The number of the first call in a row that sent nothing, if kernels have told it since the last time.
    pub fn take_skipped(&self) -> Option<u32> {
        // SAFETY: valid until dropped; kernels write it with one store.
        let word = unsafe { AtomicU32::from_ptr(&raw mut (*self.pointer()).skipped) };
        match word.load(Ordering::Relaxed) {
            0 => None,
            _ => Some(word.swap(0, Ordering::Acquire) & !SKIPPED_IS_THERE),
        }
    }

    /// Header of the operation whose kernel has waited for long since the last time, for a header. It says so again as long
    /// as it waits.
    pub fn take_waiting(&self) -> Option<Vector> {
        // SAFETY: valid until dropped; kernels write it a vector at a time.
        let waiting = unsafe { &raw mut (*self.pointer()).waiting };
        // SAFETY: as above.
        let header = unsafe { waiting.read_volatile() };
        // No operation's second word is 0.
        if header[1] == 0 {
            return None;
        }
        // SAFETY: as above.
        unsafe { waiting.write_volatile(Vector::default()) };
        Some(header)
    }

    /// The verification's result, once its kernel has stored it: the ranks whose stores did not arrive, and those that
    /// say so of others.
    pub fn result(&self) -> Option<(RankSet, RankSet)> {
        // SAFETY: as in `faults`.
        let result = unsafe { AtomicU32::from_ptr(&raw mut (*self.pointer()).verification) }.load(Ordering::Acquire);
        (result != NO_RESULT).then_some((RankSet(result as u16), RankSet((result >> MAX_WORLD_SIZE) as u16)))
    }

    /// Nobody is to get the memory after this: kernels may still use it.
    pub fn abandon(&mut self) {
        self.0.abandon();
    }
}
