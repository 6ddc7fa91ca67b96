//! Every call of the driver that a construction makes, failed in turn: all ranks return the same error, soon, and
//! nothing is left behind.

use std::any::Any;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lamport_rs_core::cuda::device::Device;
use lamport_rs_core::deferred::{drop_all_deferred, drop_deferred};
use lamport_rs_core::error::{Error, Result};
use lamport_rs_core::memory::cuda::CudaMemory;
use lamport_rs_core::memory::cuda::{HANDLE_BYTES, PeerMemory};
use lamport_rs_core::memory::handle::Handle;
use lamport_rs_core::memory::pool;
use lamport_rs_core::rendezvous::hello::Hello;
use lamport_rs_core::rendezvous::{AllGather, Payload};
use lamport_rs_core::workspace::buffer::Buffer;
use lamport_rs_core::workspace::cuda::CudaWorkspace;

use crate::standin::group::{Rank, on_ranks};
use crate::standin::threads::{Meeting, Visitor};
use crate::standin::{Kind, OUT_OF_MEMORY, RESTORING, Standin, child};

/// How long a construction takes at most, with a call that fails: less than a kernel waits for a peer's.
const SOON: Duration = Duration::from_secs(8);

/// Carries a rank's messages. Once one says that the rank has failed, kernels that wait for its stores wait in vain:
/// for seconds, were it not for the faster clock.
struct Transport<'a> {
    rank: &'a mut Rank,
    standin: &'a Standin,
}

impl AllGather for Transport<'_> {
    fn all_gather(&mut self, message: &[u8]) -> std::result::Result<Vec<Vec<u8>>, String> {
        if String::from_utf8_lossy(message).contains("CUDA_ERROR") {
            self.standin.speed_up_clock(1000);
        }
        self.rank.all_gather(message)
    }
}

/// Constructs something on a device, as a rank of a group.
type Create = fn(&mut Transport, Result<Arc<Device>>) -> Result<Box<dyn Any>>;

fn workspace(transport: &mut Transport, device: Result<Arc<Device>>) -> Result<Box<dyn Any>> {
    Ok(Box::new(CudaWorkspace::create(&transport.rank.settings(), device, transport)?))
}

fn buffer(transport: &mut Transport, device: Result<Arc<Device>>) -> Result<Box<dyn Any>> {
    let (rank, world_size) = (transport.rank.rank as i64, transport.rank.world_size as i64);
    Ok(Box::new(Buffer::create(&CudaMemory::new(device?), rank, world_size, 5000, 0.0, transport)?))
}

/// Constructs in a group, and gives up what each rank got.
fn construct(standin: &Standin, world_size: usize, create: Create) {
    on_ranks(world_size, |rank| {
        let device = Device::get(rank.rank);
        create(&mut Transport { rank, standin }, device).map(drop)
    })
    .into_iter()
    .for_each(|result| result.unwrap());
}

/// Constructs with call `skipped` of `rank`'s failing. Returns the function, or none if there are fewer calls.
fn construct_with_fault(
    standin: &Standin,
    world_size: usize,
    create: Create,
    rank: usize,
    skipped: usize,
) -> Option<String> {
    // SAFETY: all that tests before this one have constructed is gone. What it left would be waited for.
    unsafe { drop_all_deferred() };
    standin.fail(rank, None, skipped, OUT_OF_MEMORY);
    let began = Instant::now();
    let results = on_ranks(world_size, |this| {
        // First of all, so that it is the one to initialise the driver.
        if this.rank != rank {
            this.meet();
        }
        let device = Device::get(this.rank);
        if this.rank == rank {
            this.meet();
        }
        let result = create(&mut Transport { rank: this, standin }, device);
        // The teardown is not meant.
        let hit = if this.rank == rank { standin.disarm() } else { None };
        (hit, result.map(drop))
    });
    let took = began.elapsed();
    standin.speed_up_clock(1);
    let (mut hits, results): (Vec<_>, Vec<_>) = results.into_iter().unzip();
    let hit = hits.swap_remove(rank);
    let which = format!("call {skipped} of rank {rank}, {}", hit.as_deref().unwrap_or("none"));
    // SAFETY: all ranks have returned, so none has anything mapped; the check below would tell.
    unsafe { drop_all_deferred() };
    assert!(took < SOON, "{which}: {took:?}");
    standin.check_all_is_given_back();
    let texts: BTreeSet<_> = results.iter().map(|result| result.as_ref().err().map(ToString::to_string)).collect();
    assert_eq!(texts.len(), 1, "{which}: {texts:#?}");
    match (&hit, texts.first().unwrap()) {
        (None, None) => {}
        (Some(function), None) => assert!(RESTORING.contains(&function.as_str()), "{which}: no error"),
        (None, Some(text)) => panic!("{which}: {text}"),
        (Some(function), Some(text)) => {
            assert!(text.contains("CUDA_ERROR_OUT_OF_MEMORY") && text.contains(function.as_str()), "{which}: {text}");
        }
    }
    hit
}

#[test]
fn constructions_give_everything_back_and_load_kernels_once() {
    let standin = Standin::take();
    let modules = [(); 3].map(|()| {
        construct(&standin, 4, workspace);
        standin.check_all_is_given_back();
        standin.live(Kind::Module)
    });
    assert_eq!(modules, [modules[0]; 3]);
}

/// Allocations that the pools keep.
fn pooled() -> [usize; 2] {
    [pool::Kind::Device, pool::Kind::Pinned].map(pool::allocations)
}

#[test]
fn workspaces_take_turns_with_small_memory() {
    const AT_A_TIME: usize = 10;
    let standin = Standin::take();
    let construct_several = || {
        on_ranks(2, |rank| {
            let workspaces: Vec<_> = (0..AT_A_TIME).map(|_| rank.create().unwrap()).collect();
            let tables: BTreeSet<_> = workspaces.iter().map(|workspace| workspace.table().0).collect();
            assert_eq!(tables.len(), AT_A_TIME);
            rank.meet();
        });
    };
    construct_several();
    let kept = pooled();
    let allocated = || ["cuMemAlloc", "cuMemHostAlloc"].map(|function| standin.calls(function));
    let before = allocated();
    (0..3).for_each(|_| construct_several());
    assert_eq!(pooled(), kept);
    let workspaces = 2 * 3 * AT_A_TIME as u64;
    // For each the block, and what is freed to wait for the kernels.
    assert_eq!(allocated(), [before[0] + 2 * workspaces, before[1]]);
}

#[test]
fn small_memory_that_kernels_may_still_use_serves_nobody_else() {
    let standin = Standin::take();
    on_ranks(2, |rank| {
        let workspace = rank.create().unwrap();
        let table = workspace.table().0;
        rank.meet();
        if rank.rank == 0 {
            standin.fail(0, Some("cuMemAlloc,cuCtxSynchronize"), 0, OUT_OF_MEMORY);
            drop(workspace);
            assert_eq!(standin.disarm().as_deref(), Some("cuCtxSynchronize"));
        } else {
            drop(workspace);
        }
        rank.meet();
        let next = rank.create().unwrap();
        assert_eq!(next.table().0 == table, rank.rank != 0, "rank {}", rank.rank);
        rank.meet();
    });
    // What kernels may still use, and the block that this rank may still store into.
    assert_eq!(standin.write_off(), [Kind::Memory, Kind::Memory, Kind::Mapping]);
}

/// On each rank in turn. Returns the functions.
fn fail_every_call(standin: &Standin, world_size: usize, create: Create) -> BTreeSet<String> {
    construct(standin, world_size, create);
    let (modules, kept) = (standin.live(Kind::Module), pooled());
    let mut functions = BTreeSet::new();
    for rank in 0..world_size {
        functions.extend((0..).map_while(|skipped| construct_with_fault(standin, world_size, create, rank, skipped)));
        construct(standin, world_size, create);
    }
    assert_eq!(standin.live(Kind::Module), modules);
    // More calls fail than there is memory for in the pools, were it lost each time.
    assert_eq!(pooled(), kept);
    functions
}

fn assert_contains(functions: &BTreeSet<String>, expected: &[&str]) {
    for function in expected {
        assert!(functions.contains(*function), "no call of {function} failed: {functions:?}");
    }
}

#[test]
fn any_call_may_fail_once_devices_are_open() {
    let standin = Standin::take();
    for world_size in [2, 3] {
        let functions = fail_every_call(&standin, world_size, workspace);
        let expected = ["cuMemAlloc", "cuIpcOpenMemHandle", "cuLaunchKernelEx", "cuStreamSynchronize", "cuMemcpyHtoD"];
        assert_contains(&functions, &expected);
    }
}

#[test]
fn any_call_for_a_plain_buffer_may_fail() {
    let standin = Standin::take();
    assert_contains(&fail_every_call(&standin, 2, buffer), &["cuMemAlloc", "cuMemsetD32", "cuMemGetAddressRange"]);
}

#[test]
fn a_call_of_the_teardown_may_fail_and_loses_no_more_than_it_was_to_give_back() {
    let standin = Standin::take();
    for skipped in 0.. {
        let mut hits = on_ranks(2, |rank| {
            let workspace = rank.create().unwrap();
            rank.meet();
            if rank.rank == 0 {
                standin.fail(0, None, skipped, OUT_OF_MEMORY);
            }
            drop(workspace);
            if rank.rank == 0 { standin.disarm() } else { None }
        });
        let missing = standin.write_off();
        assert!(missing.len() <= 1, "{:?} failed: not given back: {missing:?}", hits[0]);
        assert_eq!(standin.violations(), "");
        if hits.swap_remove(0).is_none() {
            assert!(skipped > 10 && missing.is_empty(), "after {skipped} calls: {missing:?}");
            break;
        }
    }
}

/// Environment variables of the process in which a call fails: the rank, and how many calls come before it.
const FAULT: [&str; 2] = ["STANDIN_FAULT_RANK", "STANDIN_FAULT_SKIPPED"];
/// What it prints ahead of the function's name.
const HIT: &str = "failed call: ";

#[test]
#[ignore = "a part of any_call_of_a_process_s_first_construction_may_fail"]
fn first_construction_with_a_fault() {
    let [rank, skipped] = FAULT.map(|name| child::variable(name).parse().unwrap());
    let standin = Standin::take();
    let hit = construct_with_fault(&standin, 2, workspace, rank, skipped);
    let loaded = standin.live(Kind::Module);
    construct(&standin, 2, workspace);
    // Three kernels on two devices: fill, verify, skip.
    assert_eq!(standin.live(Kind::Module), 6, "{loaded} after the fault");
    println!("{HIT}{}", hit.unwrap_or_default());
}

#[test]
fn any_call_of_a_process_s_first_construction_may_fail() {
    for rank in 0..2 {
        let mut hits = vec![];
        let start = |skipped: usize| {
            let values = [rank, skipped].map(|value: usize| value.to_string());
            let variables: Vec<_> = FAULT.into_iter().zip(values).collect();
            child::start("construction::first_construction_with_a_fault", &variables)
        };
        let mut running = start(0);
        loop {
            // Two at a time.
            let next = start(hits.len() + 1);
            let text = child::finish(std::mem::replace(&mut running, next));
            let line = text.lines().find_map(|line| line.strip_prefix(HIT));
            match line.expect("the test says which call failed") {
                "" => break,
                function => hits.push(function.to_owned()),
            }
        }
        child::finish(running);
        let expected = ["cuInit", "cuDeviceGetUuid", "cuModuleLoadData", "cuModuleGetFunction", "cuMemHostAlloc"];
        assert_contains(&hits.into_iter().collect(), &expected);
    }
}

/// Environment variable of a process in which one device is smaller, which the stand-in reads.
const SMALLER: &str = "STANDIN_SMALLER_DEVICE";

#[test]
#[ignore = "a part of ranks_whose_devices_would_launch_other_grids_are_refused"]
fn construction_on_devices_that_differ() {
    let smaller: usize = child::variable(SMALLER).parse().unwrap();
    let standin = Standin::take();
    let numbers: Vec<u32> = (0..3).map(|rank| Device::get(rank).unwrap().plan.multiprocessors).collect();
    let most = *numbers.iter().max().unwrap();
    let expected: Vec<_> = (0..3).map(|rank| if rank == smaller { most - 1 } else { most }).collect();
    assert_eq!(numbers, expected);
    let texts = on_ranks(3, |rank| rank.create().map(drop).unwrap_err().to_string());
    assert_eq!(texts, vec![texts[0].clone(); 3]);
    for (rank, number) in numbers.iter().enumerate() {
        let device = format!("rank {rank} has cuda:{rank} of process {}", std::process::id());
        let found = texts[0].split_once(&device).unwrap_or_else(|| panic!("{device} is not in {}", texts[0])).1;
        assert!(found.split(", rank").next().unwrap().contains(&format!(": {number} multiprocessors")), "{found}");
    }
    // Nothing of this package is launched on a buffer.
    construct(&standin, 3, buffer);
}

#[test]
fn ranks_whose_devices_would_launch_other_grids_are_refused() {
    for smaller in 0..3 {
        let variables = [(SMALLER, smaller.to_string())];
        child::finish(child::start("construction::construction_on_devices_that_differ", &variables));
    }
}

#[test]
fn stores_that_do_not_arrive_are_noticed() {
    let standin = Standin::take();
    standin.lose_stores(true);
    // A second, instead of ten.
    standin.speed_up_clock(10);
    let errors = on_ranks(3, |rank| rank.create().unwrap_err().to_string());
    for (rank, error) in errors.iter().enumerate() {
        assert_eq!(*error, errors[0]);
        let others = ["ranks 1, 2", "ranks 0, 2", "ranks 0, 1"][rank];
        assert!(error.contains(&format!("rank {rank}: stores of {others} do not arrive at cuda:{rank}")), "{error}");
    }
}

/// Keeps the peers from mapping the status page of the rank that introduces itself so: the ranks need a second round.
fn hide_page(message: &[u8]) {
    let length = u32::from_le_bytes(message[28..32].try_into().unwrap()) as usize;
    let hello = Hello::decode(&message[32..32 + length]).unwrap();
    let descriptor = Handle::decode(&hello.page).unwrap().descriptor;
    // SAFETY: the core does nothing more with it than to close it, whatever it stands for.
    let mut page = unsafe { OwnedFd::from_raw_fd(descriptor) };
    rustix::io::dup2(File::open("/dev/null").unwrap(), &mut page).unwrap();
    let _ = page.into_raw_fd();
}

/// Carries a rank's messages, and does what a test asks for besides.
struct Staged<'a> {
    rank: &'a mut Rank,
    /// Rounds so far, and at most.
    rounds: usize,
    most: usize,
    /// Whether its peers cannot map its page.
    hides_page: bool,
    /// Called before and after a round, of that number.
    before: &'a dyn Fn(usize),
    after: &'a dyn Fn(usize),
    /// Whether a signal has come.
    signal: &'a dyn Fn() -> bool,
}

impl<'a> Staged<'a> {
    fn new(rank: &'a mut Rank) -> Self {
        Self {
            rank,
            rounds: 0,
            most: usize::MAX,
            hides_page: false,
            before: &|_| {},
            after: &|_| {},
            signal: &|| false,
        }
    }

    fn create(&mut self) -> Result<Arc<CudaWorkspace>> {
        CudaWorkspace::create(&self.rank.settings(), Device::get(self.rank.rank), self)
    }
}

impl AllGather for Staged<'_> {
    fn all_gather(&mut self, message: &[u8]) -> std::result::Result<Vec<Vec<u8>>, String> {
        self.rounds += 1;
        if self.rounds > self.most {
            return Err("there is no such round".to_owned());
        }
        if self.hides_page && self.rounds == 1 {
            hide_page(message);
        }
        (self.before)(self.rounds);
        let gathered = self.rank.all_gather(message);
        (self.after)(self.rounds);
        gathered
    }

    fn is_interrupted(&mut self) -> bool {
        (self.signal)()
    }
}

const HELD_UP: Duration = Duration::from_secs(2);

#[test]
fn a_signal_ends_the_wait_for_a_peer_that_maps() {
    let standin = Standin::take();
    let mut errors = on_ranks(2, |rank| {
        let number = rank.rank;
        let after = |_| {
            if number == 1 {
                std::thread::sleep(HELD_UP)
            }
        };
        let began = Instant::now();
        let error = Staged { after: &after, signal: &|| number == 0, ..Staged::new(rank) }.create().unwrap_err();
        assert!(number == 1 || began.elapsed() < HELD_UP / 2, "{:?}: {error}", began.elapsed());
        error.to_string()
    });
    standin.check_all_is_given_back();
    assert!(errors[0].contains("interrupted"), "{}", errors[0]);
    assert_eq!(errors.remove(1), "rank 0: its notice cannot be read", "its page had gone");
}

/// Ranks that do not all read each other's pages cannot know what others make of an interruption: so the kernels decide.
#[test]
fn a_rank_whose_page_cannot_be_read_is_interrupted_when_its_peers_have_verified() {
    let standin = Standin::take();
    on_ranks(2, |rank| {
        let number = rank.rank;
        let after = |rounds| {
            if number == 1 && rounds == 2 {
                std::thread::sleep(HELD_UP / 2)
            }
        };
        let mut transport =
            Staged { most: 2, hides_page: number == 0, after: &after, signal: &|| number == 0, ..Staged::new(rank) };
        let made = transport.create();
        // Rank 0 has raised.
        transport.rank.meet();
        let heard = match made {
            Err(error) => error,
            Ok(workspace) => workspace.check().unwrap_err(),
        };
        let begins = ["interrupted ", "rank 0 has failed: its notice cannot be read"][number];
        assert!(heard.to_string().starts_with(begins), "rank {number}: {heard}");
    });
    standin.check_all_is_given_back();
}

/// Rank 0 is interrupted when rank 1, whose kernel has given up, is in the round for the reason. Rank 1 was held up before.
fn interrupt_when_a_peer_is_in_the_round(held_up: Duration) {
    let standin = Standin::take();
    standin.lose_stores(true);
    standin.speed_up_clock(10);
    let is_in_round = AtomicBool::new(false);
    let errors = on_ranks(2, |rank| {
        let number = rank.rank;
        // Its kernel has ended by then, but it does not know yet.
        let signal = || {
            while number == 0 && !is_in_round.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            number == 0
        };
        let after = |rounds| {
            if number == 1 && rounds == 1 {
                std::thread::sleep(held_up)
            }
        };
        let before = |round| {
            if number == 1 && round == 2 {
                is_in_round.store(true, Ordering::Relaxed);
            }
        };
        let mut transport = Staged { before: &before, after: &after, signal: &signal, ..Staged::new(rank) };
        transport.create().unwrap_err().to_string()
    });
    assert_eq!(errors[0], errors[1]);
    for part in ["rank 0: interrupted ", "rank 1: stores of rank 0 do not arrive"] {
        assert!(errors[0].contains(part), "{}", errors[0]);
    }
    standin.lose_stores(false);
    standin.check_all_is_given_back();
}

#[test]
fn a_rank_that_is_interrupted_while_it_verifies_comes_to_the_round_that_a_peer_is_in() {
    interrupt_when_a_peer_is_in_the_round(Duration::ZERO);
}

#[test]
fn a_rank_that_is_interrupted_before_it_verifies_comes_to_the_round_that_a_peer_is_in() {
    interrupt_when_a_peer_is_in_the_round(Duration::from_millis(200));
}

const SIGNAL: Duration = Duration::from_secs(1);

/// Interrupts rank 0 when rank 1, which was held up after the first round, verifies that stores arrive, and so has found all
/// memory mapped. `awaits_signal`: if it is asked before, it answers when the signal has come.
fn interrupt_at_the_end(held_up: Duration, awaits_signal: bool) {
    let standin = Standin::take();
    // Rank 1 waits for stores of rank 0's.
    standin.lose_stores(true);
    let errors = on_ranks(2, |rank| {
        let number = rank.rank;
        let met = Cell::new(Instant::now());
        let after = |_| {
            met.set(Instant::now());
            if number == 1 {
                std::thread::sleep(held_up);
            }
        };
        let signal = || {
            if number == 0 && awaits_signal {
                std::thread::sleep(SIGNAL.saturating_sub(met.get().elapsed()));
            }
            number == 0 && met.get().elapsed() >= SIGNAL
        };
        let mut transport = Staged { most: 1, after: &after, signal: &signal, ..Staged::new(rank) };
        let error = transport.create().unwrap_err().to_string();
        let took = met.get().elapsed();
        assert!(took < SOON / 2, "{took:?}: {error}");
        error
    });
    assert!(errors[0].starts_with("interrupted "), "{}", errors[0]);
    assert_eq!(errors[1], format!("rank 0: {}", errors[0]));
    standin.lose_stores(false);
    standin.check_all_is_given_back();
}

#[test]
fn nobody_comes_to_a_round_for_a_rank_that_was_interrupted_while_stores_are_verified() {
    interrupt_at_the_end(Duration::ZERO, false);
}

#[test]
fn nobody_comes_to_a_round_for_a_rank_that_was_interrupted_when_others_had_found_all_mapped() {
    interrupt_at_the_end(SIGNAL / 4, true);
}

#[test]
fn handles_that_the_driver_did_not_make_are_refused() {
    let _standin = Standin::take();
    let device = Device::get(0).unwrap();
    for byte in [0, 0x5a, 0xff] {
        let error = PeerMemory::open(&device, [byte; HANDLE_BYTES], 4096).unwrap_err().to_string();
        assert!(error.contains("cuIpcOpenMemHandle failed: CUDA_ERROR_INVALID_VALUE"), "{error}");
    }
}

/// Whichever rank is the first to give up what it has, and however long after it the others do.
fn let_go_at_any_time(standin: &Standin, create: Create) {
    for first in 0..3 {
        for pause in [Duration::ZERO, Duration::from_millis(30)] {
            on_ranks(3, |rank| {
                let device = Device::get(rank.rank);
                let made = create(&mut Transport { rank, standin }, device).unwrap();
                rank.meet();
                if rank.rank != first {
                    std::thread::sleep(pause);
                }
                drop(made);
            });
        }
    }
    standin.check_all_is_given_back();
}

#[test]
fn no_memory_is_freed_that_a_peer_has_mapped() {
    let standin = Standin::take();
    for create in [workspace as Create, buffer] {
        let_go_at_any_time(&standin, create);
    }
}

/// A buffer that a peer keeps does not hold up whoever drops its own.
#[test]
fn a_buffer_goes_when_the_last_peer_has_unmapped_it() {
    let standin = Standin::take();
    on_ranks(2, |rank| {
        let device = Device::get(rank.rank);
        let made = buffer(&mut Transport { rank, standin: &standin }, device).unwrap();
        rank.meet();
        let before = standin.live(Kind::Memory);
        rank.meet();
        if rank.rank == 0 {
            let began = Instant::now();
            drop(made);
            assert!(began.elapsed() < SOON / 4, "{:?}", began.elapsed());
            assert_eq!(standin.live(Kind::Memory), before);
            rank.meet();
        } else {
            rank.meet();
            drop(made);
        }
    });
    standin.check_all_is_given_back();
}

/// Brings rank 1 another message of rank 0's than was sent, in one of the rounds.
struct GarblingTransport<'a> {
    rank: &'a mut Rank,
    at: usize,
    steps: usize,
}

impl AllGather for GarblingTransport<'_> {
    fn all_gather(&mut self, message: &[u8]) -> std::result::Result<Vec<Vec<u8>>, String> {
        if self.rank.rank == 1 && self.steps == 0 && self.at == 1 {
            hide_page(message);
        }
        let mut gathered = self.rank.all_gather(message)?;
        if self.rank.rank == 1 && self.steps == self.at {
            gathered[0][0] ^= 1;
        }
        self.steps += 1;
        Ok(gathered)
    }
}

#[test]
fn a_message_that_is_garbled_for_one_rank_is_the_same_error_on_all() {
    let standin = Standin::take();
    for at in [0, 1] {
        let began = Instant::now();
        let errors = on_ranks(3, |rank| {
            let (settings, device) = (rank.settings(), Device::get(rank.rank));
            let mut transport = GarblingTransport { rank, at, steps: 0 };
            CudaWorkspace::create(&settings, device, &mut transport).map(drop).unwrap_err().to_string()
        });
        assert!(began.elapsed() < SOON / 2, "{:?}: {}", began.elapsed(), errors[0]);
        assert_eq!(errors, vec![errors[1].clone(); 3]);
        assert!(errors[0].contains("rank 1: rank 0: its message is not one of lamport-rs"), "{}", errors[0]);
        standin.check_all_is_given_back();
    }
}

/// How long memory stays of which nobody can tell when it is unmapped.
const UNHEARD: Duration = Duration::from_secs(1);

#[test]
fn memory_stays_for_a_second_where_a_peers_page_cannot_be_read() {
    let standin = Standin::take();
    on_ranks(2, |rank| {
        let (number, memory) = (rank.rank, CudaMemory::new(Device::get(rank.rank).unwrap()));
        let mut transport = Staged { hides_page: number == 0, ..Staged::new(rank) };
        let made = Buffer::create(&memory, number as i64, 2, 5000, 0.0, &mut transport).unwrap();
        rank.meet();
        let before = standin.live(Kind::Memory);
        rank.meet();
        // Rank 1 does not have the page of rank 0, which does not unmap rank 1's memory so far.
        if rank.rank == 1 {
            let began = Instant::now();
            drop(made);
            while began.elapsed() < UNHEARD / 3 {
                drop_deferred();
                let live = standin.live(Kind::Memory);
                assert!(live == before || began.elapsed() >= UNHEARD, "freed after {:?}", began.elapsed());
                std::thread::sleep(Duration::from_millis(10));
            }
            rank.meet();
        } else {
            rank.meet();
            drop(made);
        }
    });
    standin.check_all_is_given_back();
}

#[test]
fn no_error_advises_a_reset_where_a_page_cannot_be_read() {
    let _standin = Standin::take();
    on_ranks(2, |rank| {
        let workspace = Staged { hides_page: rank.rank == 0, ..Staged::new(rank) }.create().unwrap();
        rank.meet();
        // Rank 1 does not have the page of rank 0, which has all.
        if rank.rank == 0 {
            workspace.lifecycle().abort("enough").unwrap();
        }
        rank.meet();
        let first = workspace.check().unwrap_err();
        let Error::Aborted { rank: 0, .. } = first.itself() else { panic!("{first:?}") };
        let later = workspace.check_open().unwrap_err();
        assert!(matches!(later, Error::Failed { .. }), "{later:?}");
        assert!(first.spoils_outputs() && later.spoils_outputs());
        for error in [first, later] {
            let text = error.to_string();
            assert!(text.ends_with("create a new one on every rank") && !text.contains("reset"), "{text}");
        }
        let reset = workspace.reset(Some(Duration::ZERO), &mut || false).unwrap_err();
        assert!(matches!(reset, Error::PagesMissing), "{reset:?}");
        rank.meet();
    });
}

/// Brings rank 0 a message that says that rank 1 has failed, long after it has brought rank 1 the truth.
struct ForgingTransport<'a>(&'a mut Rank);

impl AllGather for ForgingTransport<'_> {
    fn all_gather(&mut self, message: &[u8]) -> std::result::Result<Vec<Vec<u8>>, String> {
        let mut gathered = self.0.all_gather(message)?;
        if self.0.rank == 0 {
            // The kind of a message, and the length of its text.
            gathered[1][24..32].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
            std::thread::sleep(Duration::from_millis(300));
        }
        Ok(gathered)
    }
}

#[test]
fn memory_that_a_peer_has_mapped_is_not_freed_at_once_for_a_forged_failure() {
    let standin = Standin::take();
    let errors = on_ranks(2, |rank| {
        let (number, memory) = (rank.rank as i64, CudaMemory::new(Device::get(rank.rank).unwrap()));
        Buffer::create(&memory, number, 2, 5000, 0.0, &mut ForgingTransport(rank)).unwrap_err().to_string()
    });
    assert!(errors[0].starts_with("rank 1: "), "{}", errors[0]);
    assert!(errors[1].contains("rank 0 gave up"), "{}", errors[1]);
    standin.check_all_is_given_back();
}

#[test]
fn a_construction_waits_for_memory_that_a_failed_one_has_left() {
    let standin = Standin::take();
    // SAFETY: all that tests before this one have constructed is gone.
    unsafe { drop_all_deferred() };
    let before = standin.live(Kind::Memory);
    let create = |rank: &mut Rank, bytes: i64| {
        let (number, memory) = (rank.rank as i64, CudaMemory::new(Device::get(rank.rank).unwrap()));
        Buffer::create(&memory, number, 2, bytes, 0.0, rank)
    };
    on_ranks(2, |rank| {
        let bytes = if rank.rank == 1 { -1 } else { 5000 };
        create(rank, bytes).unwrap_err()
    });
    assert!(standin.live(Kind::Memory) > before, "nothing is left of what rank 0 had offered");
    standin.fail(0, Some("cuMemAlloc"), 0, OUT_OF_MEMORY);
    on_ranks(2, |rank| create(rank, 5000).map(drop)).into_iter().for_each(|made| made.unwrap());
    assert!(standin.disarm().is_some(), "no allocation failed");
    standin.check_all_is_given_back();
}

/// Two threads a rank, each with a group of its own; which comes first is not the same on both ranks.
#[test]
fn threads_that_construct_over_groups_of_their_own_do_not_wait_for_each_other() {
    let standin = Standin::take();
    let second = Arc::new(Meeting::default());
    let began = Instant::now();
    on_ranks(2, |rank| {
        let construct = |rank: &mut Rank, is_late| {
            // Once all have agreed, before it verifies what it has mapped.
            let after = |rounds| {
                if is_late && rounds == 2 {
                    std::thread::sleep(Duration::from_millis(500))
                }
            };
            let workspace = Staged { hides_page: rank.rank == 0, after: &after, ..Staged::new(rank) }.create();
            rank.meet();
            workspace.map(drop).unwrap();
        };
        let (number, second) = (rank.rank, &second);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                construct(&mut Rank::new(number, 2, Visitor::new(number, 2, second)), number == 0);
            });
            construct(rank, number == 1);
        });
    });
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    standin.check_all_is_given_back();
}
