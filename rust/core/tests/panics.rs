//! A panic on one rank, at each step of a construction: all ranks return the same error, promptly.

use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use lamport_rs_core::Result;
use lamport_rs_core::interrupts::Interrupted;
use lamport_rs_core::memory::Memory;
use lamport_rs_core::memory::host::{Block, HostMemory, Mapping};
use lamport_rs_core::rendezvous::construct::{Request, construct};
use lamport_rs_core::rendezvous::phases::Phases;
use lamport_rs_core::rendezvous::{AllGather, Rendezvous};
use lamport_rs_protocol::sentinel::Vector;

const RANKS: usize = 3;
const PROMPTLY: Duration = Duration::from_secs(10);

/// The host's memory, with a method that panics, or one whose handle is longer than a message takes.
#[derive(Debug)]
struct Panicking(&'static str);

const STEPS: [&str; 8] = ["name", "device", "allocate", "await_fill", "export", "fill", "map", "handle of 81 bytes"];

impl Panicking {
    fn step(&self, name: &str) {
        assert!(self.0 != name, "the driver lacks {name}");
    }
}

impl Memory for Panicking {
    const NAME: &'static str = "host";
    type Block = Block;
    const OUTLIVES_ITS_BLOCK: bool = HostMemory::OUTLIVES_ITS_BLOCK;
    type Mapping = Arc<Mapping>;

    fn name(&self) -> String {
        self.step("name");
        HostMemory.name()
    }
    fn device(&self) -> String {
        self.step("device");
        HostMemory.device()
    }
    fn allocate(&self, bytes: usize, word: u32) -> Result<Block> {
        self.step("allocate");
        HostMemory.allocate(bytes, word)
    }
    fn await_fill(&self, block: &Block) -> Result<()> {
        self.step("await_fill");
        HostMemory.await_fill(block)
    }
    fn fill(&self, block: &Block, word: u32, interrupted: Interrupted<'_>) -> Result<()> {
        self.step("fill");
        HostMemory.fill(block, word, interrupted)
    }
    fn refill(&self, block: &Block, bytes: usize) -> Result<()> {
        HostMemory.refill(block, bytes)
    }
    fn export(&self, block: &mut Block, nonce: Vector) -> Result<Vec<u8>> {
        self.step("export");
        let handle = HostMemory.export(block, nonce)?;
        Ok(if self.0.starts_with("handle") { vec![0; 81] } else { handle })
    }
    fn identity(handle: &[u8]) -> &[u8] {
        HostMemory::identity(handle)
    }
    fn map(&self, handle: &[u8], nonce: Vector, bytes: usize) -> Result<Arc<Mapping>> {
        self.step("map");
        HostMemory.map(handle, nonce, bytes)
    }
    fn address(block: &Block) -> u64 {
        HostMemory::address(block)
    }
    fn mapped_address(mapping: &Arc<Mapping>) -> u64 {
        HostMemory::mapped_address(mapping)
    }
}

/// The ranks' messages.
struct Meeting {
    messages: Mutex<Vec<Vec<u8>>>,
    barrier: Barrier,
}

struct Visitor<'a> {
    rank: usize,
    meeting: &'a Meeting,
}

impl AllGather for Visitor<'_> {
    fn all_gather(&mut self, message: &[u8]) -> std::result::Result<Vec<Vec<u8>>, String> {
        self.meeting.messages.lock().unwrap()[self.rank] = message.to_vec();
        self.meeting.barrier.wait();
        let gathered = self.meeting.messages.lock().unwrap().clone();
        self.meeting.barrier.wait();
        Ok(gathered)
    }
}

/// What each rank gets, if `step` panics on rank 1.
fn construct_with_panic(step: &'static str) -> Vec<std::result::Result<(), String>> {
    let meeting = Meeting { messages: Mutex::new(vec![vec![]; RANKS]), barrier: Barrier::new(RANKS) };
    std::thread::scope(|scope| {
        let meeting = &meeting;
        let run = |rank: usize| {
            let mut visitor = Visitor { rank, meeting };
            let mut exchange = Rendezvous::new(&mut visitor, rank as i64, RANKS as i64);
            let request = Request {
                rank,
                world_size: RANKS,
                bytes: 5000,
                word: 7,
                comm_size: 5000,
                size_name: "size",
                two_shot_from: None,
                has_operations: true,
                timeout: None,
            };
            let backend = Panicking(if rank == 1 { step } else { "" });
            let constructed = construct(&backend, &mut exchange, Ok(request), &mut Phases::begin());
            constructed.map(drop).map_err(|error| error.to_string())
        };
        let threads: Vec<_> = (0..RANKS).map(|rank| scope.spawn(move || run(rank))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic comes out")).collect()
    })
}

#[test]
fn a_panic_at_any_step_is_the_same_error_on_all_ranks() {
    assert_eq!(construct_with_panic("none"), vec![Ok(()); RANKS]);
    for step in STEPS {
        let began = Instant::now();
        // In a thread of its own: without what is tested here, the others would wait for ever.
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(construct_with_panic(step)));
        let results = receiver.recv_timeout(PROMPTLY).unwrap_or_else(|_| panic!("{step}: the others wait"));
        let text = results[0].clone().unwrap_err();
        assert_eq!(results, vec![Err(text.clone()); RANKS], "{step}");
        assert!(text.starts_with("rank 1: a panic: "), "{text}");
        assert!(text.contains(&format!("the driver lacks {step}")) || text.contains("does not fit"), "{text}");
        assert!(began.elapsed() < PROMPTLY);
    }
}
