//! Operations on several streams, and in graphs.

use std::time::Duration;

use cudarc::driver::sys;
use lamport_rs_core::error::{Error, Result};
use lamport_rs_core::operations::arguments::AllReduce;
use lamport_rs_core::operations::cuda::all_reduce;
use lamport_rs_core::tensor::Dtype;
use lamport_rs_core::workspace::cuda::CudaWorkspace;

use crate::standin::Standin;
use crate::standin::either::{Either, TestTensor};
use crate::standin::group::on_ranks;
use crate::standin::streams::TestStream;

const ELEMENTS: usize = 100;

fn ones(workspace: &CudaWorkspace) -> TestTensor {
    Either::Cuda(workspace).tensor(Dtype::Float32, &[ELEMENTS], |_| 1.0)
}

/// Launches a sum in place.
fn launch(workspace: &CudaWorkspace, tensor: &mut TestTensor, stream: sys::CUstream) -> Result<()> {
    let input = tensor.tensor();
    // SAFETY: the tests wait for the stream before their tensors go.
    unsafe { all_reduce(workspace, &AllReduce { input, output: input, algorithm: None }, stream) }
}

fn assert_all(tensor: &TestTensor, value: f32) {
    let values: Vec<_> =
        tensor.bytes().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
    assert_eq!(values, [value; ELEMENTS]);
}

#[test]
fn operations_on_other_streams_wait_for_those_before() {
    let standin = Standin::take();
    let before = standin.calls("cuStreamWaitEvent");
    on_ranks(2, |rank| {
        let workspace = rank.create().unwrap();
        let streams = [(); 3].map(|()| TestStream::new(&workspace.device));
        let mut tensor = ones(&workspace);
        if rank.rank == 1 {
            // The first kernels are waiting when the next are launched.
            std::thread::sleep(Duration::from_millis(100));
        }
        for round in 0..12 {
            launch(&workspace, &mut tensor, streams[round % 3].handle).unwrap();
        }
        workspace.synchronise().unwrap();
        assert_all(&tensor, 4096.0);
    });
    assert_eq!(standin.calls("cuStreamWaitEvent") - before, 2 * 11);
}

#[test]
fn what_cannot_follow_a_captured_stream_fails_the_workspace() {
    let _standin = Standin::take();
    on_ranks(2, |rank| {
        let workspace = rank.create().unwrap();
        let [captured, other] = [(); 2].map(|()| TestStream::new(&workspace.device));
        let mut tensor = ones(&workspace);
        launch(&workspace, &mut tensor, captured.handle).unwrap();
        // A capture forbids other threads to allocate.
        rank.meet();
        captured.begin_capture();
        // Of two ranks, one may hear of the other's.
        let refused = launch(&workspace, &mut tensor, other.handle);
        assert!(matches!(refused, Err(Error::StreamIsCaptured | Error::Aborted { .. })), "{refused:?}");
        captured.end_capture();
        assert!(matches!(launch(&workspace, &mut tensor, captured.handle), Err(Error::Failed(_))));
        workspace.device.synchronise_all().unwrap();
    });
}

#[test]
fn graphs_run_operations_as_often_as_they_are_launched() {
    let _standin = Standin::take();
    on_ranks(2, |rank| {
        let workspace = rank.create().unwrap();
        let stream = TestStream::new(&workspace.device);
        let mut tensor = ones(&workspace);
        rank.meet();
        // The kernel has not been loaded yet.
        stream.begin_capture();
        (0..2).for_each(|_| launch(&workspace, &mut tensor, stream.handle).unwrap());
        let graph = stream.end_capture();
        assert_all(&tensor, 1.0);
        launch(&workspace, &mut tensor, stream.handle).unwrap();
        (0..3).for_each(|_| stream.launch(&graph));
        launch(&workspace, &mut tensor, stream.handle).unwrap();
        workspace.synchronise().unwrap();
        assert_all(&tensor, 256.0);
    });
}

#[test]
fn a_workspace_may_go_while_a_stream_captures() {
    let standin = Standin::take();
    on_ranks(2, |rank| {
        let workspace = rank.create().unwrap();
        let stream = TestStream::new(&workspace.device);
        rank.meet();
        stream.begin_capture();
        drop(workspace);
        stream.end_capture();
    });
    standin.check_all_is_given_back();
}
