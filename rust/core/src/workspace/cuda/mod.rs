//! The workspace over device memory.
//!
//! | module | concept |
//! | --- | --- |
//! | `control`, `launching` | control words and table; one operation at a time |
//! | `teardown`, `verification` | giving it up, once its kernels have ended; the proof that peers' stores arrive |
//! | `faults`, `waits` | what kernels and the host tell each other; how long kernels wait |

mod control;
mod faults;
mod launching;
mod teardown;
mod verification;
mod waits;

use std::sync::{Arc, Weak};
use std::time::Duration;

use cudarc::driver::sys;
use lamport_rs_kernels::ModuleKey;
use lamport_rs_kernels::parameters::Group as KernelGroup;
use lamport_rs_protocol::construction::Outcome;
use lamport_rs_protocol::exchange::Member;
use lamport_rs_protocol::table;

use self::control::ControlMemory;
use self::faults::Faults;
pub(crate) use self::launching::Launching;
use self::launching::State;
use crate::cuda::device::Device;
use crate::cuda::order::StreamOrder;
use crate::cuda::plans::Plans;
use crate::error::{Error, Result};
use crate::interrupts::Interrupted;
use crate::lifecycle::Lifecycle;
use crate::lifecycle::memory::WorkspaceMemory;
use crate::lifecycle::watcher::{Watching, watch};
use crate::memory::Memory;
use crate::memory::cuda::CudaMemory;
use crate::memory::pinned::PinnedWords;
use crate::operations::skipped::Skipped;
use crate::panics::caught;
use crate::rendezvous::construct::{Constructed, construct};
use crate::rendezvous::phases::Phases;
use crate::rendezvous::{AllGather, Rendezvous};
use crate::workspace::Settings;
use crate::workspace::exclusive::{Exclusive, ThreadGate};

/// One rank's workspace. Its memory lives until the last reference to it is gone, the table's included.
#[derive(Debug)]
pub struct CudaWorkspace {
    this: Weak<Self>,
    watching: Option<Watching>,
    /// The device it is on.
    pub device: Arc<Device>,
    member: Member,
    /// How long its operations wait; `None` for ever.
    pub timeout: Option<Duration>,
    /// Bytes from which tensors are summed in two shots, if the caller said so.
    pub two_shot_from: Option<usize>,
    /// Where the time went when it was made.
    pub phases: Phases,
    group: KernelGroup,
    /// Where each rank's block is.
    slots: Vec<u64>,
    state: Exclusive<State>,
    /// Calls that sent nothing.
    skipped: Skipped,
    /// For callers whose calls last longer than the launch in them.
    pub calls: ThreadGate,
    memory: WorkspaceMemory<CudaMemory>,
    /// Control words and table.
    control: ControlMemory,
    faults: Arc<Faults>,
}

/// Why a rank gives up, told to its peers.
const INTERRUPTED: &str = "interrupted by a signal while it created the workspace";

/// What this rank has beside the blocks.
#[derive(Debug)]
struct Private {
    control: ControlMemory,
    pinned: PinnedWords,
}

impl Private {
    /// Takes it, and loads the kernel of the verification.
    fn take(device: &Arc<Device>) -> Result<Self> {
        let (control, pinned) = (ControlMemory::take(device)?, PinnedWords::take(device)?);
        let _entered = device.enter()?;
        device.modules.function(ModuleKey::Verify, device)?;
        // A call may be refused while a kernel waits, and loading then would wait for it.
        device.modules.function(ModuleKey::Skip, device)?;
        Ok(Self { control, pinned })
    }
}

impl CudaWorkspace {
    /// Creates this rank's part on `device`. Collective: all ranks call it, and all return or raise together. Once
    /// a CUDA graph has captured its operations it is kept, until `deferred::let_captured_go`.
    pub fn create(
        settings: &Settings,
        device: Result<Arc<Device>>,
        transport: &mut dyn AllGather,
    ) -> Result<Arc<Self>> {
        let mut workspace = Self::create_unshared(settings, device, transport)?;
        Ok(Arc::new_cyclic(|this| {
            workspace.this = this.clone();
            workspace
        }))
    }

    fn create_unshared(
        settings: &Settings,
        device: Result<Arc<Device>>,
        transport: &mut dyn AllGather,
    ) -> Result<Self> {
        let mut rendezvous = Rendezvous::new(transport, settings.rank, settings.world_size);
        let mut phases = Phases::begin();
        // All that can fail on this rank alone comes before the handles: once peers have them, they store here.
        let checked = caught(|| {
            let (member, timeout) = settings.check()?;
            let device = device?;
            let private = Private::take(&device)?;
            Ok((member, timeout, device, private))
        });
        // Where there is no device, there is no backend to construct with, but the peers must hear of it.
        let (member, timeout, device, private) = checked.map_err(|error| rendezvous.refuse(error))?;
        let request = settings.request(member, timeout, member.geometry.block_bytes());
        phases.end("take private memory");
        let made = construct(&CudaMemory::new(device.clone()), &mut rendezvous, Ok(request), &mut phases)?;
        let nonces = made.nonces.clone();
        let mut workspace = Self::over(member, timeout, device, private, made);
        workspace.two_shot_from = settings.two_shot_from();
        let rank = workspace.member.rank;
        let mut is_interrupted = false;
        let verified = caught(|| {
            workspace.control.write(&workspace.member.geometry, &workspace.slots)?;
            // It is written in the null stream's order, and operations come on any stream.
            // SAFETY: the default stream.
            unsafe { workspace.device.synchronise(std::ptr::null_mut()) }?;
            workspace.be_watched()?;
            let interrupted = &mut || {
                if !is_interrupted && rendezvous.is_interrupted() {
                    is_interrupted = true;
                    // Ranks that cannot tell each other go by what all kernels find: this one has to end by itself.
                    let outcome = workspace.lifecycle().decide(Outcome::Abandoned(rank));
                    if outcome.is_some_and(|outcome| outcome != Outcome::Accepted) {
                        let _ = workspace.lifecycle().abort(INTERRUPTED);
                    }
                }
                is_interrupted
            };
            // SAFETY: the workspace has the memory.
            unsafe {
                verification::verify(&workspace.device, workspace.group, &workspace.faults.words, &nonces, interrupted)
            }
        });
        let interrupted = is_interrupted.then(|| Error::Agreement(INTERRUPTED.to_owned()));
        verification::settle(
            &mut rendezvous,
            workspace.lifecycle(),
            || workspace.device.describe(),
            verified,
            interrupted,
        )?;
        phases.end("verify");
        workspace.phases = phases;
        Ok(workspace)
    }

    fn over(
        member: Member,
        timeout: Option<Duration>,
        device: Arc<Device>,
        private: Private,
        made: Constructed<CudaMemory>,
    ) -> Self {
        let Constructed { memory, lifecycle, .. } = made;
        let slots = memory.blocks().addresses();
        let Member { rank, geometry } = member;
        let Private { control, pinned } = private;
        let addresses = control.addresses(pinned.report_address());
        let kernel_group =
            KernelGroup::new(&geometry, rank, &slots, addresses, timeout).with_checks(device.checks_operations);
        let faults = Arc::new(Faults::new(pinned, lifecycle.clone(), timeout, device.checks_operations));
        Self {
            this: Weak::new(),
            watching: None,
            member,
            timeout,
            two_shot_from: None,
            phases: Phases::begin(),
            group: kernel_group,
            slots,
            state: Exclusive::new(
                State { order: StreamOrder::new(&device), plans: Plans::default(), is_captured: false },
                lifecycle,
            ),
            skipped: Skipped::default(),
            calls: ThreadGate::new(),
            faults,
            control,
            memory,
            device,
        }
    }

    /// From now on the kernels are told what this rank's host and the peers tell.
    fn be_watched(&mut self) -> Result<()> {
        self.watching = Some(watch(self.faults.clone())?);
        Ok(())
    }

    /// Rank and geometry.
    pub fn member(&self) -> Member {
        self.member
    }

    /// Bytes of device memory that this rank takes.
    pub fn memory_bytes(&self) -> usize {
        let geometry = self.member.geometry;
        geometry.block_bytes() + ControlMemory::bytes(geometry.world_size())
    }

    /// Address and length of the pointer table, in device memory.
    pub fn table(&self) -> (u64, usize) {
        (self.control.table(), table::table_len(self.member.geometry.world_size()))
    }

    /// Whether it may be used, and what peers are told. The memory goes when the last reference does.
    pub fn lifecycle(&self) -> &Arc<Lifecycle> {
        &self.state.lifecycle
    }

    /// Begins anew, with all ranks, on the same memory: see `Lifecycle::reset`. Graphs that were captured before are
    /// right again.
    pub fn reset(&self, timeout: Option<Duration>, interrupted: Interrupted<'_>) -> Result<()> {
        let _state = self.state.access_failed("reset")?;
        let stop = |interrupted: Interrupted<'_>| {
            self.device.synchronise_all_until(interrupted)?;
            // Peers that wait are to hear of that rather than of a reset.
            self.faults.hear_of_skipped();
            Ok(())
        };
        self.lifecycle().reset(timeout, interrupted, stop, || self.refill())?;
        self.faults.begin_epoch();
        Ok(())
    }

    /// Slots, control words and reports as they were at first.
    fn refill(&self) -> Result<()> {
        // In this order: the wait is for both.
        self.control.write(&self.member.geometry, &self.slots)?;
        CudaMemory::new(self.device.clone()).refill(self.memory.own(), self.member.geometry.block_bytes())?;
        self.faults.clear();
        self.skipped.take();
        Ok(())
    }

    /// Whether an operation may run.
    #[inline]
    pub fn check_open(&self) -> Result<()> {
        self.faults.check()?;
        self.lifecycle().check_usable()
    }

    /// What went wrong, as it was first said. Does not wait for the device.
    pub fn check(&self) -> Result<()> {
        self.faults.check()?;
        self.lifecycle().check()
    }

    /// Copies a tensor on `stream`: the sum of a single rank.
    ///
    /// # Safety
    /// Both are device addresses, valid for `bytes` bytes until the stream has passed the copy. `stream` is one of the
    /// device's streams, or null for the default one.
    pub unsafe fn copy(&self, from: u64, to: u64, bytes: usize, stream: sys::CUstream) -> Result<()> {
        self.check_open()?;
        if bytes == 0 || from == to {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { self.device.copy(from, to, bytes, stream) }
    }

    /// Waits for all work on the device, replayed graphs included, and raises what went wrong in it.
    pub fn synchronise(&self) -> Result<()> {
        self.device.synchronise_all()?;
        self.check()
    }

    /// Likewise, until `interrupted` says so.
    pub fn synchronise_until(&self, interrupted: Interrupted<'_>) -> Result<()> {
        self.device.synchronise_all_until(interrupted)?;
        self.check()
    }
}
