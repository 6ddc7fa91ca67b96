//! Operations on several streams, in graphs, and after failures.

use std::sync::Barrier;
use std::time::Duration;

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use lamport_rs::{ErrorKind, RmsNorm};

use crate::standin::{Kind, Standin, act_as};
use crate::{communicate, options};

/// The communicator waits for the stream of the last operation, whose owner has let go of it.
#[test]
fn streams_may_go_as_soon_as_a_call_returns() {
    let standin = Standin::take();
    communicate(2, options(), |mut rank| {
        let mut values = rank.upload(100, |_| 1.0);
        for _ in 0..10 {
            let stream = rank.context().new_stream().unwrap();
            rank.communicator.all_reduce(&mut values, &stream).unwrap();
        }
        assert_eq!(rank.download(&values), [1024.0; 100]);
        // Two ranks' own, and those of the last operation; another one while a rank lets go of it.
        assert!(standin.lent(Kind::Stream) <= 6, "{}", standin.lent(Kind::Stream));
    });
    assert_eq!(standin.lent(Kind::Stream), 0);
}

#[test]
fn operations_wait_for_what_other_streams_do_with_a_buffer() {
    let standin = Standin::take();
    let waits = standin.calls("cuStreamWaitEvent");
    communicate(2, options(), |mut rank| {
        let streams = [rank.context().new_stream().unwrap(), rank.context().new_stream().unwrap()];
        let mut values = rank.upload(5003, |_| 1.0);
        for round in 0..6 {
            rank.communicator.all_reduce(&mut values, &streams[round % 2]).unwrap();
        }
        assert_eq!(rank.download(&values), [64.0; 5003]);
    });
    // For what reads the buffer, what writes it, and the operation before, if there is one.
    let waits = standin.calls("cuStreamWaitEvent") - waits;
    assert!(waits >= 2 * (6 * 2 + 5), "{waits}");
}

#[test]
fn a_stream_that_cannot_wait_for_a_buffers_other_uses_does_not_use_it() {
    const UNKNOWN: i32 = 999;
    let standin = Standin::take();
    let refused = Barrier::new(2);
    communicate(2, options(), |mut rank| {
        let streams = [rank.context().new_stream().unwrap(), rank.context().new_stream().unwrap()];
        let mut values = rank.upload(100, |_| 1.0);
        rank.communicator.all_reduce(&mut values, &streams[0]).unwrap();
        rank.communicator.synchronize().unwrap();
        if rank.number() == 0 {
            act_as(0);
            standin.fail(0, Some("cuStreamWaitEvent"), 0, UNKNOWN);
            let outcome = rank.communicator.all_reduce(&mut values, &streams[1]);
            let failed = standin.disarm();
            refused.wait();
            let error = outcome.unwrap_err().to_string();
            assert!(error.contains("ordering the stream behind a buffer's other uses"), "{error}");
            assert_eq!(failed.as_deref(), Some("cuStreamWaitEvent"));
            assert_eq!(rank.download(&values), [2.0; 100]);
        } else {
            refused.wait();
        }
    });
}

#[test]
fn norms_with_separate_outputs_wait_for_what_other_streams_do_with_each_buffer() {
    let standin = Standin::take();
    let waits = standin.calls("cuStreamWaitEvent");
    communicate(2, options(), |mut rank| {
        let streams = [rank.context().new_stream().unwrap(), rank.context().new_stream().unwrap()];
        let mut rows = [rank.upload(5 * 64, |_| 1.0), rank.upload(5 * 64, |_| f32::NAN)];
        let mut sums = [rank.upload(5 * 64, |_| 0.0), rank.upload(5 * 64, |_| f32::NAN)];
        let weight = rank.upload(64, |_| 1.0);
        for round in 0..6 {
            // Each reads what the round before has written, and writes what that has read.
            let ([one, other], [added, sum]) = (&mut rows, &mut sums);
            let (norm, residual) = (RmsNorm::new(0.0), Some(added.as_view()));
            rank.communicator
                .all_reduce_rms_norm_into(one, residual, &weight, (other, sum), norm, &streams[round % 2])
                .unwrap();
            rows.swap(0, 1);
            sums.swap(0, 1);
        }
        assert_eq!(rank.download(&sums[0]), [12.0; 5 * 64]);
        let [packed, q] = &mut rows;
        let (weights, mut k) = ((&weight.slice(..32), &weight.slice(..32)), rank.upload(5 * 32, |_| f32::NAN));
        let outputs = (&mut q.slice_mut(..5 * 32), &mut k);
        rank.communicator.minimax_rms_qk(packed, 64, weights, outputs, 0.0, &streams[1]).unwrap();
        assert_eq!(rank.download(&k), [1.0; 5 * 32]);
    });
    // For what writes each of three buffers that are read, what reads and what writes two others, and the operation before.
    let waits = standin.calls("cuStreamWaitEvent") - waits;
    assert!(waits >= 2 * (7 * 7 + 6), "{waits}");
}

#[test]
fn a_graph_keeps_what_its_operations_need() {
    let _standin = Standin::take();
    let done = Barrier::new(2);
    communicate(2, options(), |mut rank| {
        // SAFETY: this test has one stream, and lets the graph go before the buffer.
        unsafe { rank.context().disable_event_tracking() };
        let stream = rank.stream.clone();
        let mut values = rank.upload(100, |_| 1.0);
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
        rank.communicator.all_reduce(&mut values, &stream).unwrap();
        rank.communicator.all_reduce(&mut values, &stream).unwrap();
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
        (0..3).for_each(|_| graph.launch().unwrap());
        assert_eq!(rank.download(&values), [64.0; 100]);
        rank.communicator.synchronize().unwrap();
        done.wait();
        let handle = rank.communicator.handle();
        drop(rank.communicator);
        assert_eq!(handle.check().unwrap_err().kind(), ErrorKind::Unusable);
        done.wait();
        graph.launch().unwrap();
        let after = stream.clone_dtoh(&values).unwrap();
        assert_eq!(after, [256.0; 100]);
        done.wait();
        drop(graph);
    });
}

#[test]
fn a_rank_that_does_not_come_is_named_and_a_reset_lets_all_go_on() {
    let _standin = Standin::take();
    let missed = Barrier::new(2);
    communicate(2, options().timeout(Duration::from_millis(200)), |mut rank| {
        let stream = rank.stream.clone();
        if rank.number() == 0 {
            let mut values = rank.upload(100, |_| 1.0);
            rank.communicator.all_reduce(&mut values, &stream).unwrap();
            let error = rank.communicator.synchronize().unwrap_err();
            assert_eq!((error.kind(), error.ranks()), (ErrorKind::Timeout, [1].as_slice()), "{error}");
            assert!(rank.download(&values).iter().all(|value| value.is_nan()));
            let error = rank.communicator.all_reduce(&mut values, &stream).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unusable, "{error}");
        }
        missed.wait();
        rank.communicator.reset(Duration::from_secs(60)).unwrap();
        let mut values = rank.upload(100, |_| 1.0);
        rank.communicator.all_reduce(&mut values, &stream).unwrap();
        assert_eq!(rank.download(&values), [2.0; 100]);
        rank.communicator.synchronize().unwrap();
        assert_eq!(rank.communicator.status().resets, 1);
        missed.wait();
    });
}

#[test]
fn an_abort_of_another_thread_ends_kernels_that_wait() {
    let _standin = Standin::take();
    let aborted = Barrier::new(2);
    communicate(2, options().timeout(None), |mut rank| {
        let stream = rank.stream.clone();
        if rank.number() == 0 {
            let mut values = rank.upload(100, |_| 1.0);
            // The launch hears of it if the abort comes first.
            let launched = rank.communicator.all_reduce(&mut values, &stream);
            let error = launched.and_then(|()| rank.communicator.synchronize()).unwrap_err();
            assert_eq!((error.kind(), error.ranks()), (ErrorKind::Aborted, [1].as_slice()), "{error}");
        } else {
            let handle = rank.communicator.handle();
            // For the other rank's kernel to wait, most of the time.
            std::thread::sleep(Duration::from_millis(50));
            std::thread::spawn(move || handle.abort("enough")).join().unwrap().unwrap();
        }
        aborted.wait();
    });
}
