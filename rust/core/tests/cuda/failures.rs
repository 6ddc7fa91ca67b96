//! What goes wrong in operations: late ranks, absent ones, ranks that differ, a driver that refuses.

use std::sync::Mutex;
use std::time::Duration;

use lamport_rs_core::error::{Cause, Error, Result};
use lamport_rs_core::workspace::Settings;
use lamport_rs_core::workspace::cuda::CudaWorkspace;
use lamport_rs_protocol::table::SLOT_INDEX;

use crate::standin::group::{Rank, on_ranks};
use crate::standin::streams::TestStream;
use crate::standin::sum::{DEFAULT_STREAM, Sum, sum};
use crate::standin::{OUT_OF_MEMORY, RESTORING, Standin};

/// Launches a sum, and lets another rank know that it waits. The result is that of waiting for it.
fn sum_in_vain(rank: &mut Rank, workspace: &CudaWorkspace) -> Result<()> {
    let mut sum = Sum::of_ones(workspace, 100);
    // The other may have failed, and told so, before.
    let launched = sum.launch(workspace, DEFAULT_STREAM);
    rank.meet();
    launched.and(workspace.synchronise())
}

/// Called by a rank that the others wait for in vain, which takes less than a second then.
fn let_time_pass(rank: &mut Rank, standin: &Standin) {
    rank.meet();
    standin.speed_up_clock(100);
}

fn assert_missing(result: Result<()>, rank: usize) {
    match result.as_ref().map_err(Error::itself) {
        Err(Error::Timeout { missing, .. }) => assert_eq!(missing.iter().collect::<Vec<_>>(), [rank]),
        other => panic!("{other:?}"),
    }
}

/// The rank has told why it failed, or is missed.
fn assert_failed(result: Result<()>, rank: usize) {
    match result.as_ref().map_err(Error::itself) {
        Err(Error::Aborted { rank: failed, cause: Cause::Failed, reason }) => {
            assert_eq!(*failed, rank);
            assert!(reason.contains("CUDA_ERROR_OUT_OF_MEMORY"), "{reason}");
        }
        _ => assert_missing(result, rank),
    }
}

#[test]
fn the_others_wait_for_a_late_rank() {
    let _standin = Standin::take();
    on_ranks(3, |rank| {
        let workspace = rank.create().unwrap();
        if rank.rank == 1 {
            std::thread::sleep(Duration::from_millis(300));
        }
        assert_eq!(sum(&workspace, 100).unwrap(), [3.0; 100]);
    });
}

#[test]
fn an_absent_rank_is_named_and_the_workspace_fails() {
    let standin = Standin::take();
    on_ranks(4, |rank| {
        let workspace = rank.create().unwrap();
        if rank.rank == 2 {
            let_time_pass(rank, &standin);
        } else {
            assert_missing(sum_in_vain(rank, &workspace), 2);
            assert!(matches!(sum(&workspace, 100), Err(Error::Failed { .. })));
        }
        rank.meet();
    });
}

#[test]
fn ranks_that_differ_hear_of_it() {
    let _standin = Standin::take();
    on_ranks(2, |rank| {
        let workspace = rank.create().unwrap();
        // Its advice depends on whether the other rank has left by then.
        match sum(&workspace, 100 + rank.rank).unwrap_err().itself() {
            Error::Mismatch { rank: own, peer, .. } => assert_eq!((*own, *peer), (rank.rank, 1 - rank.rank)),
            other => panic!("{other:?}"),
        }
    });
}

/// Three foreign operations leave the slot, and may leave the extent, as the own one before them had.
#[test]
fn foreign_operations_that_leave_slot_and_extent_are_noticed() {
    let _standin = Standin::take();
    let noticed = on_ranks(2, |rank| {
        let workspace = rank.create().unwrap();
        assert_eq!(sum(&workspace, 100).unwrap(), [2.0; 100]);
        let (table, entries) = workspace.table();
        // SAFETY: the stand-in's device memory is this process's: the table, and then the three counters that it names.
        let slot_index = unsafe {
            let counters = *(table as *const u64).add(entries - 2);
            (counters as *mut u32).add(SLOT_INDEX)
        };
        // SAFETY: as above; no kernel runs.
        unsafe {
            assert_eq!(*slot_index, 3 + 1);
            *slot_index = 1;
        }
        rank.meet();
        let error = sum(&workspace, 100).unwrap_err();
        assert!(sum(&workspace, 50).is_err());
        rank.meet();
        // A rank that comes late hears of it from the other.
        assert!(error.to_string().contains("a foreign kernel has used the table"), "{error}");
        matches!(error, Error::ForeignKernel)
    });
    assert!(noticed.contains(&true));
}

#[test]
fn a_refused_launch_fails_the_workspace_and_its_peers_miss_the_rank() {
    let standin = Standin::take();
    on_ranks(2, |rank| {
        let workspace = rank.create().unwrap();
        // The kernel is loaded.
        sum(&workspace, 100).unwrap();
        rank.meet();
        if rank.rank == 1 {
            standin.fail(1, Some("cuLaunchKernelEx"), 0, OUT_OF_MEMORY);
            match sum(&workspace, 100) {
                Err(Error::Driver { call, name, .. }) => {
                    assert_eq!((call.as_str(), name.as_str()), ("cuLaunchKernelEx", "CUDA_ERROR_OUT_OF_MEMORY"));
                }
                other => panic!("{other:?}"),
            }
            assert!(matches!(sum(&workspace, 100), Err(Error::Failed { .. })));
            let_time_pass(rank, &standin);
        } else {
            assert_failed(sum_in_vain(rank, &workspace), 1);
        }
        rank.meet();
    });
}

/// Whatever the fault was: what the refused operation leaves is NaN, and it sends nothing.
#[test]
fn operations_that_are_refused_after_a_fault_leave_nan_and_after_a_reset_the_sum() {
    let standin = Standin::take();
    type Fault = fn(&mut Rank, &CudaWorkspace, &Standin);
    let abort: Fault = |rank, workspace, _| {
        if rank.rank == 1 {
            workspace.lifecycle().abort("test").unwrap();
        }
    };
    let mismatch: Fault = |rank, workspace, _| drop(sum(workspace, 100 + rank.rank).unwrap_err());
    let refused_launch: Fault = |rank, workspace, standin| {
        if rank.rank == 1 {
            standin.fail(1, Some("cuLaunchKernelEx"), 0, OUT_OF_MEMORY);
            let mut refused = Sum::of_ones(workspace, 100);
            assert!(refused.launch(workspace, DEFAULT_STREAM).is_err());
            workspace.device.synchronise_all().unwrap();
            assert!(refused.values().iter().all(|value| value.is_nan()), "{:?}", refused.values());
        }
    };
    for fault in [abort, mismatch, refused_launch] {
        on_ranks(2, |rank| {
            let workspace = rank.create().unwrap();
            assert_eq!(sum(&workspace, 100).unwrap(), [2.0; 100]);
            rank.meet();
            fault(rank, &workspace, &standin);
            rank.meet();
            for elements in [100, 5000] {
                let mut refused = Sum::of_ones(&workspace, elements);
                assert!(refused.launch(&workspace, DEFAULT_STREAM).is_err());
                workspace.device.synchronise_all().unwrap();
                assert!(refused.values().iter().all(|value| value.is_nan()), "{:?}", refused.values());
            }
            workspace.reset(None, &mut || false).unwrap();
            assert_eq!(sum(&workspace, 100).unwrap(), [2.0; 100]);
            rank.meet();
        });
    }
}

/// Ends with a reset and a sum that is right.
fn with_failed_workspaces(run: impl Fn(&CudaWorkspace, &[TestStream; 2]) + Sync) {
    let _standin = Standin::take();
    on_ranks(2, |rank| {
        let workspace = rank.create().unwrap();
        let streams = [(); 2].map(|()| TestStream::new(&workspace.device));
        sum_on_two_streams(&workspace, &mut Sum::of_ones(&workspace, LONG), &streams).unwrap();
        rank.meet();
        if rank.rank == 1 {
            workspace.lifecycle().abort("test").unwrap();
        }
        rank.meet();
        run(&workspace, &streams);
        rank.meet();
        workspace.reset(None, &mut || false).unwrap();
        assert_eq!(sum(&workspace, LONG).unwrap(), [2.0; LONG]);
        rank.meet();
    });
}

/// Elements of a sum in three chunks.
const LONG: usize = 5000;

#[test]
fn an_operation_that_is_refused_after_a_fault_leaves_nan_on_whatever_stream() {
    with_failed_workspaces(|workspace, streams| {
        for stream in streams.iter().chain(streams) {
            let mut refused = Sum::of_ones(workspace, LONG);
            assert!(refused.launch(workspace, stream.handle).is_err());
            workspace.device.synchronise_all().unwrap();
            assert!(refused.values().iter().all(|value| value.is_nan()), "{:?}", refused.values());
        }
    });
}

#[test]
fn an_operation_that_is_refused_after_a_fault_is_not_captured() {
    // All ranks are of one process here, in which a capture forbids the others to allocate.
    let capturing = Mutex::new(());
    with_failed_workspaces(|workspace, [stream, other]| {
        let _capturing = capturing.lock().unwrap();
        let mut refused = Sum::of_ones(workspace, LONG);
        stream.begin_capture();
        assert!(refused.launch(workspace, stream.handle).is_err());
        let graph = stream.end_capture();
        for replayed in [stream, other] {
            replayed.launch(&graph);
        }
        workspace.device.synchronise_all().unwrap();
        assert_eq!(refused.values(), [1.0; LONG], "nothing of it is in the graph");
    });
}

#[test]
fn a_long_operation_that_is_refused_within_leaves_no_number_that_is_not_the_sum() {
    let standin = Standin::take();
    on_ranks(2, |rank| {
        let workspace = rank.create().unwrap();
        let launches = || standin.calls("cuLaunchKernelEx");
        rank.meet();
        let before = launches();
        rank.meet();
        sum(&workspace, LONG).unwrap();
        rank.meet();
        assert_eq!(launches() - before, 2 * 3, "three chunks on each rank");
        let mut long = Sum::of_ones(&workspace, LONG);
        rank.meet();
        if rank.rank == 1 {
            standin.fail(1, Some("cuLaunchKernelEx"), 1, OUT_OF_MEMORY);
            assert!(matches!(long.launch(&workspace, DEFAULT_STREAM), Err(Error::Driver { .. })));
        } else {
            // Rank 1 may have failed, and told so, before.
            let launched = long.launch(&workspace, DEFAULT_STREAM);
            assert_failed(launched.and(workspace.synchronise()), 1);
        }
        workspace.device.synchronise_all().unwrap();
        let values = long.values();
        if rank.rank == 1 {
            assert!(values.iter().all(|value| value.is_nan()), "the call was refused: {values:?}");
        } else {
            assert!(values.iter().all(|value| value.is_nan() || *value == 2.0), "{values:?}");
            assert!(values[LONG / 2..].iter().all(|value| value.is_nan()), "rank 1 has sent one chunk: {values:?}");
        }
        rank.meet();
        workspace.reset(None, &mut || false).unwrap();
        assert_eq!(sum(&workspace, LONG).unwrap(), [2.0; LONG]);
        rank.meet();
    });
}

/// Two operations on streams of their own. Returns the first error.
fn sum_on_two_streams(workspace: &CudaWorkspace, sum: &mut Sum, streams: &[TestStream; 2]) -> Result<()> {
    streams.iter().try_for_each(|stream| sum.launch(workspace, stream.handle))?;
    workspace.synchronise()
}

/// Fails call `skipped` of rank 1's, and returns the function, or none if there are fewer calls.
fn sum_with_fault(standin: &Standin, skipped: usize) -> Option<String> {
    let mut hits = on_ranks(2, |rank| {
        let settings = Settings { timeout: 20.0, ..rank.settings() };
        let workspace = rank.create_with(&settings).unwrap();
        let streams = [(); 2].map(|()| TestStream::new(&workspace.device));
        let mut sum = Sum::of_ones(&workspace, 100);
        rank.meet();
        let hit = if rank.rank == 1 {
            standin.fail(1, None, skipped, OUT_OF_MEMORY);
            let result = sum_on_two_streams(&workspace, &mut sum, &streams);
            let hit = standin.disarm();
            match (&hit, result) {
                (None, Ok(())) => {}
                (Some(function), Ok(())) => assert!(RESTORING.contains(&function.as_str()), "{function}: no error"),
                (Some(function), Err(Error::Driver { call, .. })) => assert!(call.starts_with(function), "{call}"),
                (hit, result) => panic!("{hit:?} failed, but the result is {result:?}"),
            }
            let_time_pass(rank, standin);
            hit
        } else {
            let launched = streams.iter().try_for_each(|stream| sum.launch(&workspace, stream.handle));
            rank.meet();
            // Rank 1 has come to both operations, to one, or to none.
            match launched.and(workspace.synchronise()) {
                Ok(()) => {}
                result => assert_failed(result, 1),
            }
            None
        };
        workspace.device.synchronise_all().unwrap();
        rank.meet();
        standin.speed_up_clock(1);
        hit
    });
    standin.check_all_is_given_back();
    hits.swap_remove(1)
}

#[test]
fn any_call_of_an_operation_may_fail() {
    let standin = Standin::take();
    let hits: Vec<_> = (0..).map_while(|skipped| sum_with_fault(&standin, skipped)).collect();
    for function in
        ["cuStreamGetCaptureInfo", "cuEventCreate", "cuEventRecord", "cuStreamWaitEvent", "cuCtxSynchronize"]
    {
        assert!(hits.iter().any(|hit| hit == function), "no call of {function} failed: {hits:?}");
    }
}
