//! Operations on several streams, and in graphs.

use std::sync::Arc;
use std::time::Duration;

use lamport_rs_core::cuda::device::Device;
use lamport_rs_core::deferred::{drop_deferred, let_captured_go};
use lamport_rs_core::error::Error;
use lamport_rs_core::workspace::cuda::CudaWorkspace;

use crate::standin::group::on_ranks;
use crate::standin::streams::TestStream;
use crate::standin::sum::Sum;
use crate::standin::{Kind, Standin};

const ELEMENTS: usize = 100;

#[test]
fn operations_on_other_streams_wait_for_those_before() {
    let standin = Standin::take();
    let before = standin.calls("cuStreamWaitEvent");
    on_ranks(2, |rank| {
        let workspace = rank.create().unwrap();
        let streams = [(); 3].map(|()| TestStream::new(&workspace.device));
        let mut sum = Sum::of_ones(&workspace, ELEMENTS);
        if rank.rank == 1 {
            // The first kernels are waiting when the next are launched.
            std::thread::sleep(Duration::from_millis(100));
        }
        for round in 0..12 {
            sum.launch(&workspace, streams[round % 3].handle).unwrap();
        }
        workspace.synchronise().unwrap();
        assert_eq!(sum.values(), [4096.0; ELEMENTS]);
    });
    assert_eq!(standin.calls("cuStreamWaitEvent") - before, 2 * 11);
}

#[test]
fn what_cannot_follow_a_captured_stream_fails_the_workspace() {
    let _standin = Standin::take();
    on_ranks(2, |rank| {
        let workspace = rank.create().unwrap();
        let [captured, other] = [(); 2].map(|()| TestStream::new(&workspace.device));
        let mut sum = Sum::of_ones(&workspace, ELEMENTS);
        sum.launch(&workspace, captured.handle).unwrap();
        // A capture forbids other threads to allocate.
        rank.meet();
        captured.begin_capture();
        // Of two ranks, one may hear of the other's.
        let refused = sum.launch(&workspace, other.handle);
        assert!(matches!(refused, Err(Error::StreamIsCaptured | Error::Aborted { .. })), "{refused:?}");
        captured.end_capture();
        assert!(matches!(sum.launch(&workspace, captured.handle), Err(Error::Failed { .. })));
        workspace.device.synchronise_all().unwrap();
    });
}

#[test]
fn graphs_run_operations_as_often_as_they_are_launched() {
    let _standin = Standin::take();
    on_ranks(2, |rank| {
        let workspace = rank.create().unwrap();
        let stream = TestStream::new(&workspace.device);
        let mut sum = Sum::of_ones(&workspace, ELEMENTS);
        rank.meet();
        // The kernel has not been loaded yet.
        stream.begin_capture();
        (0..2).for_each(|_| sum.launch(&workspace, stream.handle).unwrap());
        let graph = stream.end_capture();
        assert_eq!(sum.values(), [1.0; ELEMENTS]);
        sum.launch(&workspace, stream.handle).unwrap();
        (0..3).for_each(|_| stream.launch(&graph));
        sum.launch(&workspace, stream.handle).unwrap();
        workspace.synchronise().unwrap();
        assert_eq!(sum.values(), [256.0; ELEMENTS]);
    });
}

#[test]
fn a_workspace_may_go_while_a_stream_captures() {
    let standin = Standin::take();
    on_ranks(2, |rank| {
        let stream = TestStream::new(&Device::get(rank.rank).unwrap());
        for way in [CudaWorkspace::clean_up, |_: &CudaWorkspace| ()] {
            let workspace = rank.create().unwrap();
            Sum::of_ones(&workspace, ELEMENTS).launch(&workspace, std::ptr::null_mut()).unwrap();
            rank.meet();
            stream.begin_capture();
            way(&workspace);
            drop(workspace);
            stream.end_capture();
            // All ranks are of one process here, in which a capture forbids the others to allocate.
            rank.meet();
        }
    });
    standin.check_all_is_given_back();
}

/// Whoever has only the graph can run it. The workspace goes when somebody says that nobody will.
#[test]
fn a_graph_keeps_the_workspace_whose_operations_it_has_captured() {
    let standin = Standin::take();
    on_ranks(2, |rank| {
        let workspace = rank.create().unwrap();
        let device = workspace.device.clone();
        let stream = TestStream::new(&device);
        let mut sum = Sum::of_ones(&workspace, ELEMENTS);
        rank.meet();
        stream.begin_capture();
        (0..2).for_each(|_| sum.launch(&workspace, stream.handle).unwrap());
        let graph = stream.end_capture();
        let weak = Arc::downgrade(&workspace);
        drop(workspace);
        rank.meet();
        (0..3).for_each(|_| stream.launch(&graph));
        device.synchronise_all().unwrap();
        assert_eq!(sum.values(), [64.0; ELEMENTS]);
        assert!(weak.strong_count() > 0);
        rank.meet();
        drop(graph);
        drop_deferred();
        assert!(weak.strong_count() > 0);
        rank.meet();
        // SAFETY: the graphs are gone, of all ranks.
        unsafe { let_captured_go() };
        drop_deferred();
        rank.meet();
        assert_eq!(weak.strong_count(), 0);
        // No thread of the library's own frees device memory.
        let before = standin.live(Kind::Memory);
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(standin.live(Kind::Memory), before);
        rank.meet();
    });
    standin.check_all_is_given_back();
}
