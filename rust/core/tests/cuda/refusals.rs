//! Calls of which a rank sends nothing, because they were refused there or have nothing to do.

use lamport_rs_core::cuda::Stream;
use lamport_rs_core::error::Error;
use lamport_rs_core::workspace::cuda::CudaWorkspace;

use crate::standin::Standin;
use crate::standin::group::{LONGEST_WAIT, on_ranks};
use crate::standin::streams::TestStream;
use crate::standin::sum::{DEFAULT_STREAM, Sum, sum};

const ELEMENTS: usize = 100;

fn assert_names_rank_2(error: &Error) {
    let text = error.to_string();
    assert!(text.contains("rank 2 has refused its call"), "{text}");
}

/// Counts a refused call.
fn refuse(workspace: &CudaWorkspace, stream: Stream) {
    // SAFETY: it is the default stream, or one that the test keeps until its last operation.
    unsafe { workspace.note_refusal(stream) };
}

/// Nobody waits for a timeout, of which there is none here. The refusing rank calls nothing more.
#[test]
fn kernels_that_wait_for_a_refused_call_hear_of_it() {
    let _standin = Standin::take();
    on_ranks(3, |rank| {
        let workspace = rank.create_with_timeout(0.0).unwrap();
        assert_eq!(sum(&workspace, ELEMENTS).unwrap(), [3.0; ELEMENTS]);
        rank.meet();
        if rank.rank == 2 {
            // Of several the first counts.
            (0..3).for_each(|_| refuse(&workspace, DEFAULT_STREAM));
            workspace.synchronise().ok();
        } else {
            assert_names_rank_2(&sum(&workspace, ELEMENTS).unwrap_err());
        }
        rank.meet();
        assert_names_rank_2(&workspace.check().unwrap_err());
        rank.meet();
        workspace.reset(Some(LONGEST_WAIT), &mut || false).unwrap();
        assert_eq!(sum(&workspace, ELEMENTS).unwrap(), [3.0; ELEMENTS], "a reset counts anew");
        rank.meet();
    });
}

/// It may be the first call at all, and the refusal may come before or after the others wait.
#[test]
fn a_refusal_is_heard_whenever_it_comes() {
    let _standin = Standin::take();
    for refuses_first in [true, false] {
        on_ranks(3, |rank| {
            let workspace = rank.create_with_timeout(0.0).unwrap();
            if rank.rank == 2 {
                if !refuses_first {
                    std::thread::sleep(std::time::Duration::from_millis(100));
                }
                refuse(&workspace, DEFAULT_STREAM);
            } else {
                if refuses_first {
                    std::thread::sleep(std::time::Duration::from_millis(100));
                }
                assert_names_rank_2(&sum(&workspace, ELEMENTS).unwrap_err());
            }
            rank.meet();
        });
    }
}

#[test]
fn a_refusal_is_named_though_a_reset_follows_at_once() {
    let _standin = Standin::take();
    on_ranks(3, |rank| {
        let workspace = rank.create_with_timeout(0.0).unwrap();
        for _ in 0..5 {
            if rank.rank == 2 {
                // SAFETY: the default stream is always there.
                unsafe { workspace.note_refusal(DEFAULT_STREAM) };
            } else {
                assert_names_rank_2(&sum(&workspace, ELEMENTS).unwrap_err());
            }
            workspace.reset(Some(LONGEST_WAIT), &mut || false).unwrap();
            assert_eq!(sum(&workspace, ELEMENTS).unwrap(), [3.0; ELEMENTS]);
        }
        rank.meet();
    });
}

/// What all ranks refuse is no difference between them, on whatever stream.
#[test]
fn ranks_that_all_refuse_a_call_go_on() {
    let standin = Standin::take();
    on_ranks(3, |rank| {
        let workspace = rank.create().unwrap();
        let streams = [TestStream::new(&workspace.device), TestStream::new(&workspace.device)];
        for round in 0..6 {
            let calls = round % 3;
            (0..calls).for_each(|call| refuse(&workspace, streams[call % 2].handle));
            let mut ones = Sum::of_ones(&workspace, ELEMENTS);
            ones.launch(&workspace, streams[round % 2].handle).unwrap();
            workspace.synchronise().unwrap();
            assert_eq!(ones.values(), [3.0; ELEMENTS]);
            workspace.check().unwrap();
        }
        rank.meet();
    });
    standin.check_all_is_given_back();
}

/// A graph's operations are numbered when they run: one rank's replay is not taken for what the others did before.
#[test]
fn replays_after_a_refused_call_are_not_paired_with_it() {
    let _standin = Standin::take();
    on_ranks(3, |rank| {
        let workspace = rank.create_with_timeout(0.0).unwrap();
        let stream = TestStream::new(&workspace.device);
        let mut captured = Sum::of_ones(&workspace, ELEMENTS);
        captured.launch(&workspace, stream.handle).unwrap();
        workspace.synchronise().unwrap();
        rank.meet();
        stream.begin_capture();
        captured.launch(&workspace, stream.handle).unwrap();
        let graph = stream.end_capture();
        rank.meet();
        let mut eager = Sum::of_ones(&workspace, ELEMENTS);
        if rank.rank == 2 {
            refuse(&workspace, stream.handle);
        } else {
            eager.launch(&workspace, stream.handle).unwrap();
        }
        stream.launch(&graph);
        assert!(workspace.synchronise().is_err());
        let is_nan = |sum: &Sum| sum.values().iter().all(|value| value.is_nan());
        assert!(is_nan(&captured), "{:?}", captured.values());
        assert!(rank.rank == 2 || is_nan(&eager), "{:?}", eager.values());
        rank.meet();
    });
}

/// In a capture nothing runs: the next operation that is captured tells of it.
#[test]
fn a_call_that_is_refused_in_a_capture_is_counted_by_the_next_operation_of_the_graph() {
    let _standin = Standin::take();
    on_ranks(2, |rank| {
        let workspace = rank.create().unwrap();
        let stream = TestStream::new(&workspace.device);
        let mut captured = Sum::of_ones(&workspace, ELEMENTS);
        // All ranks are of one process here, in which a capture forbids the others to allocate.
        rank.meet();
        let capture = |workspace: &CudaWorkspace, captured: &mut Sum, refuses: bool| {
            stream.begin_capture();
            if refuses {
                refuse(workspace, stream.handle);
            }
            captured.launch(workspace, stream.handle).unwrap();
            stream.end_capture()
        };
        let [alike, different] = [true, rank.rank == 0].map(|refuses| capture(&workspace, &mut captured, refuses));
        stream.launch(&alike);
        workspace.synchronise().unwrap();
        assert_eq!(captured.values(), [2.0; ELEMENTS]);
        rank.meet();
        stream.launch(&different);
        let error = workspace.synchronise().unwrap_err();
        assert!(matches!(error, Error::Mismatch { .. } | Error::Aborted { .. }), "{error:?}");
        rank.meet();
    });
}
