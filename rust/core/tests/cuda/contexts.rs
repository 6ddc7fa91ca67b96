//! Threads whose current context is not the device's primary one.

use std::time::Duration;

use cudarc::driver::sys;
use lamport_rs_core::memory::cuda::fill_and_wait;
use lamport_rs_protocol::sentinel::SENTINEL;

use crate::standin::group::on_ranks;
use crate::standin::streams::TestStream;
use crate::standin::sum::{DEFAULT_STREAM, Sum};
use crate::standin::{Standin, other_context};

const ELEMENTS: usize = 100;

/// Copies a tensor over another, on the null stream of the current context.
fn copy(from: &mut Sum, to: &mut Sum) {
    let ((from, bytes), (to, _)) = (from.place(), to.place());
    // SAFETY: both are alive until the end of the test, and as long.
    unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, DEFAULT_STREAM) }.result().unwrap();
}

/// Makes the null stream of the current context wait for what is enqueued on `stream`.
fn wait_for(stream: &TestStream, context: sys::CUcontext) {
    let mut event = std::ptr::null_mut();
    let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
    // SAFETY: the event is of the primary context, which is current, and so is the stream.
    unsafe {
        sys::cuEventCreate(&mut event, flags).result().unwrap();
        sys::cuEventRecord(event, stream.handle).result().unwrap();
        sys::cuCtxSetCurrent(context).result().unwrap();
        sys::cuStreamWaitEvent(DEFAULT_STREAM, event, 0).result().unwrap();
        sys::cuEventDestroy_v2(event).result().unwrap();
    }
}

/// What is before an operation on the null stream of another context is read by it, and what is after reads its result.
#[test]
fn an_operation_on_the_null_stream_of_another_context_comes_in_its_order() {
    let standin = Standin::take();
    on_ranks(2, |rank| {
        let workspaces = [(); 2].map(|()| rank.create().unwrap());
        let device = workspaces[0].device.clone();
        let stream = TestStream::new(&device);
        let [mut first, mut second, mut result] = [(); 3].map(|()| Sum::of_ones(&workspaces[0], ELEMENTS));
        if rank.rank == 1 {
            // The other rank's first operation waits, and all that follows it.
            std::thread::sleep(Duration::from_millis(200));
        }
        first.launch(&workspaces[0], stream.handle).unwrap();
        let entered = device.enter().unwrap();
        let context = other_context(rank.rank);
        wait_for(&stream, context);
        copy(&mut first, &mut second);
        second.launch(&workspaces[1], DEFAULT_STREAM).unwrap();
        copy(&mut second, &mut result);
        let mut current = std::ptr::null_mut();
        // SAFETY: the context is the current one still.
        unsafe {
            sys::cuCtxGetCurrent(&mut current).result().unwrap();
            assert_eq!(current, context);
            sys::cuStreamSynchronize(DEFAULT_STREAM).result().unwrap();
        }
        assert_eq!(result.values(), [4.0; ELEMENTS]);
        drop(entered);
        rank.meet();
    });
    standin.check_all_is_given_back();
}

/// Another device's context is none of the operation's business.
#[test]
fn the_null_stream_of_another_device_waits_for_nothing() {
    let standin = Standin::take();
    on_ranks(2, |rank| {
        let workspace = rank.create().unwrap();
        rank.meet();
        let before = standin.calls("cuStreamWaitEvent");
        // SAFETY: a context.
        unsafe { sys::cuCtxSetCurrent(other_context(1 - rank.rank)) }.result().unwrap();
        let mut sum = Sum::of_ones(&workspace, ELEMENTS);
        sum.launch(&workspace, DEFAULT_STREAM).unwrap();
        workspace.synchronise().unwrap();
        assert_eq!(sum.values(), [2.0; ELEMENTS]);
        assert_eq!(standin.calls("cuStreamWaitEvent"), before);
        rank.meet();
    });
}

/// Memory is filled after what the null stream of another context still writes there.
#[test]
fn a_fill_on_the_null_stream_of_another_context_comes_in_its_order() {
    let standin = Standin::take();
    on_ranks(2, |rank| {
        let workspace = rank.create().unwrap();
        let device = workspace.device.clone();
        let stream = TestStream::new(&device);
        let [mut first, mut second] = [(); 2].map(|()| Sum::of_ones(&workspace, ELEMENTS));
        if rank.rank == 1 {
            // The other rank's operation waits, and all that follows it.
            std::thread::sleep(Duration::from_millis(200));
        }
        first.launch(&workspace, stream.handle).unwrap();
        let entered = device.enter().unwrap();
        wait_for(&stream, other_context(rank.rank));
        copy(&mut first, &mut second);
        let (place, bytes) = second.place();
        // SAFETY: the memory is there until the end of the test.
        unsafe { fill_and_wait(&device, place, bytes as u64, DEFAULT_STREAM) }.unwrap();
        assert!(second.values().iter().all(|value| value.to_bits() == SENTINEL), "{:?}", second.values());
        drop(entered);
        rank.meet();
    });
    standin.check_all_is_given_back();
}
