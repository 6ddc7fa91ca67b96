//! Every call of the driver that a construction makes, failed in turn: all ranks return the same error, soon, and
//! nothing is left behind.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use lamport_rs_core::cuda::device::Device;
use lamport_rs_core::cuda::memory::{HANDLE_BYTES, PeerMemory};
use lamport_rs_core::error::Result;

use crate::standin::group::on_ranks;
use crate::standin::{Kind, OUT_OF_MEMORY, Standin, child};

/// How much longer than without a fault a construction may take, in time of the devices' clock.
const SOON: Duration = Duration::from_secs(30);
/// The devices' clock, while calls fail: a rank whose peer's kernel is not launched waits for it.
const CLOCK_FACTOR: u64 = 100;
/// What a rank calls to put something back as it was before. Nobody can do anything about it if that fails.
const RESTORING: [&str; 2] = ["cuCtxSetCurrent", "cuThreadExchangeStreamCaptureMode"];

/// Constructs a group once, and says what each rank returned.
fn construct(world_size: usize) -> Vec<Result<()>> {
    on_ranks(world_size, |rank| rank.create().map(drop))
}

/// Constructs with call `skipped` of `rank`'s failing. Returns the function, or none if there are fewer calls.
fn construct_with_fault(standin: &Standin, world_size: usize, rank: usize, skipped: usize) -> Option<String> {
    standin.speed_up_clock(CLOCK_FACTOR);
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
        let result = this.create_on(device, &this.settings());
        // The teardown is not meant.
        let hit = if this.rank == rank { standin.disarm() } else { None };
        (hit, result.map(drop))
    });
    let took = began.elapsed();
    standin.speed_up_clock(1);
    let (mut hits, results): (Vec<_>, Vec<_>) = results.into_iter().unzip();
    let hit = hits.swap_remove(rank);
    let which = format!("call {skipped} of rank {rank}, {}", hit.as_deref().unwrap_or("none"));
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
        construct(4).into_iter().for_each(|result| result.unwrap());
        standin.check_all_is_given_back();
        standin.live(Kind::Module)
    });
    assert_eq!(modules, [modules[0]; 3]);
}

#[test]
fn any_call_may_fail_once_devices_are_open() {
    let standin = Standin::take();
    for world_size in [2, 3] {
        construct(world_size).into_iter().for_each(|result| result.unwrap());
        let modules = standin.live(Kind::Module);
        for rank in 0..world_size {
            let hits: Vec<_> =
                (0..).map_while(|skipped| construct_with_fault(&standin, world_size, rank, skipped)).collect();
            for function in ["cuMemAlloc", "cuIpcOpenMemHandle", "cuLaunchKernelEx", "cuStreamSynchronize"] {
                assert!(hits.iter().any(|hit| hit == function), "no call of {function} failed: {hits:?}");
            }
            construct(world_size).into_iter().for_each(|result| result.unwrap());
        }
        assert_eq!(standin.live(Kind::Module), modules);
    }
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
    let hit = construct_with_fault(&standin, 2, rank, skipped);
    let loaded = standin.live(Kind::Module);
    construct(2).into_iter().for_each(|result| result.unwrap());
    // Two kernels on two devices.
    assert_eq!(standin.live(Kind::Module), 4, "{loaded} after the fault");
    println!("{HIT}{}", hit.unwrap_or_default());
}

#[test]
fn any_call_of_a_process_s_first_construction_may_fail() {
    for rank in 0..2 {
        let mut hits: Vec<String> = vec![];
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
        for function in ["cuInit", "cuDeviceGetUuid", "cuModuleLoadData", "cuModuleGetFunction", "cuMemHostAlloc"] {
            assert!(hits.iter().any(|hit| hit.starts_with(function)), "no call of {function} failed: {hits:?}");
        }
    }
}

#[test]
fn handles_that_the_driver_did_not_make_are_refused() {
    let standin = Standin::take();
    let device = Device::get(0).unwrap();
    for byte in [0, 0x5a, 0xff] {
        let error = PeerMemory::open(&device, [byte; HANDLE_BYTES], 4096).unwrap_err().to_string();
        assert!(error.contains("cuIpcOpenMemHandle failed: CUDA_ERROR_INVALID_VALUE"), "{error}");
    }
    assert_eq!(standin.live(Kind::Mapping), 0);
}
