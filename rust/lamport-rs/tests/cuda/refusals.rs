//! What cannot be an operand, a stream or a context.

use std::sync::Barrier;

use cudarc::driver::{CudaContext, CudaSlice, DriverError, sys};
use lamport_rs::cuda::{Communicator, device_count};
use lamport_rs::{Error, ErrorKind, Result, RmsNorm};

use crate::standin::{self, Standin};
use crate::threads::on_ranks;
use crate::{communicate, options};

fn refused(outcome: Result<()>, expected: &str) {
    let error: Error = outcome.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Argument, "{error}");
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn what_is_of_another_device_is_refused() {
    let _standin = Standin::take();
    let other = CudaContext::new(3).unwrap();
    communicate(1, options(), |mut rank| {
        let (stream, theirs) = (rank.stream.clone(), other.default_stream());
        let mut values = rank.upload(16, |_| 1.0);
        let mut foreign: CudaSlice<f32> = theirs.clone_htod(&vec![1.0; 16]).unwrap();
        let communicator = &mut rank.communicator;
        refused(communicator.all_reduce(&mut foreign, &stream), "buffer is of a context of cuda:3");
        refused(communicator.all_reduce(&mut values, &theirs), "the stream is of a context of cuda:3");
        refused(communicator.all_reduce_into(&foreign, &mut values, &stream), "input is of a context of cuda:3");
        refused(communicator.all_reduce_into(&values, &mut foreign, &stream), "output is of a context of cuda:3");
        let norm = RmsNorm::new(1e-6);
        let mut more = communicator.context().default_stream().clone_htod(&vec![1.0_f32; 16]).unwrap();
        refused(
            communicator.all_reduce_rms_norm(&mut values, &mut more, &foreign, norm, &stream),
            "weight is of a context of cuda:3",
        );
        refused(
            communicator.all_reduce_rms_norm(&mut values, &mut foreign, &more, norm, &stream),
            "residual is of a context of cuda:3",
        );
        let (mut output, mut sum) = (more.try_clone().unwrap(), more.try_clone().unwrap());
        let added = Some(foreign.as_view());
        refused(
            communicator.all_reduce_rms_norm_into(&values, added, &more, (&mut output, &mut sum), norm, &stream),
            "residual is of a context of cuda:3",
        );
        refused(
            communicator.all_reduce_rms_norm_into(&foreign, None, &more, (&mut output, &mut sum), norm, &stream),
            "input is of a context of cuda:3",
        );
        refused(
            communicator.all_reduce_rms_norm_into(&values, None, &foreign, (&mut output, &mut sum), norm, &stream),
            "weight is of a context of cuda:3",
        );
        let mut theirs_too = foreign.try_clone().unwrap();
        for (at, name) in ["output is of", "the output of the sum is of"].into_iter().enumerate() {
            let outputs = if at == 0 { (&mut foreign, &mut sum) } else { (&mut output, &mut foreign) };
            refused(communicator.all_reduce_rms_norm_into(&values, None, &more, outputs, norm, &stream), name);
        }
        let names = ["qkv", "the weight of Q", "the weight of K", "the output of Q", "the output of K"];
        for (at, name) in names.into_iter().enumerate() {
            let own = &more;
            let [packed, q, k] = [0, 1, 2].map(|place| if place == at { &foreign } else { own });
            let outputs = match at {
                3 => (&mut theirs_too, &mut sum),
                4 => (&mut output, &mut theirs_too),
                _ => (&mut output, &mut sum),
            };
            let outcome = communicator.minimax_rms_qk(packed, 16, (q, k), outputs, 0.0, &stream);
            refused(outcome, &format!("{name} is of a context of cuda:3"));
        }
        let per_thread = communicator.context().per_thread_stream();
        refused(communicator.all_reduce(&mut values, &per_thread), "the thread's own default one");
    });
    drop(other);
}

/// Its streams and events are not the communicator's: what is released through it waits for no operation.
#[test]
fn what_is_of_another_object_for_the_same_context_is_refused() {
    let _standin = Standin::take();
    communicate(2, options(), |mut rank| {
        let own = rank.stream.clone();
        let other = CudaContext::new(rank.number()).unwrap();
        assert_eq!(other, *rank.context(), "cudarc takes them for the same");
        let (theirs, text) = (other.new_stream().unwrap(), "that the communicator was made with; use that one");
        let mut values = rank.upload(16, |_| 1.0);
        let mut foreign: CudaSlice<f32> = other.default_stream().clone_htod(&vec![1.0; 16]).unwrap();
        refused(rank.communicator.all_reduce(&mut foreign, &own), text);
        refused(rank.communicator.all_reduce(&mut values, &theirs), text);
        refused(rank.communicator.all_reduce_into(&foreign, &mut values, &own), text);
        assert_eq!((rank.download(&values), own.clone_dtoh(&foreign).unwrap()), (vec![1.0; 16], vec![1.0; 16]));
    });
}

#[test]
fn an_error_that_was_there_before_is_told_apart_and_taken() {
    const EARLIER: DriverError = DriverError(sys::CUresult::CUDA_ERROR_UNKNOWN);
    let _standin = Standin::take();
    communicate(1, options(), |mut rank| {
        let stream = rank.stream.clone();
        let mut values = rank.upload(16, |_| 1.0);
        rank.context().record_err::<()>(Err(EARLIER));
        let error = rank.communicator.all_reduce(&mut values, &stream).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cuda);
        assert!(error.to_string().contains("before this call"), "{error}");
        rank.communicator.all_reduce(&mut values, &stream).unwrap();
        rank.communicator.synchronize().unwrap();
    });
}

#[test]
fn lengths_and_places_are_checked() {
    let _standin = Standin::take();
    communicate(1, options(), |mut rank| {
        let stream = rank.stream.clone();
        let (mut long, mut short) = (rank.upload(16, |_| 1.0), rank.upload(8, |_| 1.0));
        let communicator = &mut rank.communicator;
        refused(communicator.all_reduce_into(&long, &mut short, &stream), "output has 8 elements, but must have 16");
        refused(communicator.all_reduce(&mut long.slice_mut(1..), &stream), "is not aligned to 16 bytes");
        let norm = RmsNorm::new(1e-6);
        let weight = short.try_clone().unwrap();
        refused(
            communicator.all_reduce_rms_norm(&mut long, &mut short, &weight, norm, &stream),
            "residual has 8 elements, but must have 16",
        );
        refused(
            communicator.minimax_rms(&short, &long, &mut weight.try_clone().unwrap(), 0.0, &stream),
            "whole rows of 16",
        );
        let mut output = long.try_clone().unwrap();
        refused(
            communicator.all_reduce_rms_norm_into(
                &long,
                Some(short.as_view()),
                &weight,
                (&mut output, &mut long.try_clone().unwrap()),
                norm,
                &stream,
            ),
            "residual has 8 elements, but must have 16",
        );
        for (at, name) in ["output", "the output of the sum"].into_iter().enumerate() {
            let outputs = if at == 0 { (&mut short, &mut output) } else { (&mut output, &mut short) };
            let outcome = communicator.all_reduce_rms_norm_into(&long, None, &weight, outputs, norm, &stream);
            refused(outcome, &format!("{name} has 8 elements, but must have 16"));
        }
        let packed = rank.stream.clone_htod(&vec![1.0_f32; 2 * 24]).unwrap();
        for (at, name) in ["the output of Q", "the output of K"].into_iter().enumerate() {
            let outputs = if at == 0 { (&mut short, &mut output) } else { (&mut output, &mut short) };
            let outcome = communicator.minimax_rms_qk(&packed, 24, (&weight, &weight), outputs, 0.0, &stream);
            refused(outcome, &format!("{name} has 8 elements, but must have 16"));
        }
        let mut outputs = [long.try_clone().unwrap(), long.try_clone().unwrap()];
        let [q, k] = &mut outputs;
        refused(
            communicator.minimax_rms_qk(&packed.slice(..47), 24, (&weight, &weight), (q, k), 0.0, &stream),
            "qkv has 47 elements, but must have whole rows of 24",
        );
        refused(
            communicator.minimax_rms_qk(
                &packed.slice(1..25),
                24,
                (&weight, &weight),
                (&mut short, &mut weight.try_clone().unwrap()),
                0.0,
                &stream,
            ),
            "is not aligned to 16 bytes",
        );
        refused(
            communicator.minimax_rms_qk(&packed.slice(..16), 8, (&weight, &weight), (q, k), 0.0, &stream),
            "must hold q_size + kv_size = 8 + 8",
        );
        // There is no kernel without a peer.
        let mut residual = long.try_clone().unwrap();
        let error = communicator.all_reduce_rms_norm(&mut long, &mut residual, &weight, norm, &stream).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    });
}

#[test]
fn a_call_that_is_refused_on_one_rank_is_a_mismatch_on_the_others() {
    let _standin = Standin::take();
    let noticed = Barrier::new(2);
    for with_foreign_stream in [false, true] {
        communicate(2, options().timeout(None), |mut rank| {
            let stream = rank.stream.clone();
            let mut values = rank.upload(16, |_| 1.0);
            if rank.number() == 0 {
                let outcome = if with_foreign_stream {
                    rank.communicator.all_reduce(&mut values, &CudaContext::new(3).unwrap().default_stream())
                } else {
                    rank.communicator.all_reduce(&mut values.slice_mut(1..), &stream)
                };
                assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Argument);
            } else {
                rank.communicator.all_reduce(&mut values, &stream).unwrap();
                let error = rank.communicator.synchronize().unwrap_err();
                assert_eq!((error.kind(), error.ranks()), (ErrorKind::Mismatch, [0].as_slice()), "{error}");
            }
            noticed.wait();
        });
    }
}

#[test]
fn a_context_that_is_not_the_primary_one_is_an_error_on_all_ranks() {
    let _standin = Standin::take();
    let errors = on_ranks(2, |rank, rendezvous| {
        let primary = CudaContext::new(rank).unwrap();
        // SAFETY: the stand-in's second context of the device, which nobody else gives back.
        let other = unsafe { CudaContext::from_raw_context(rank, rank as i32, standin::other_context(rank)) }.unwrap();
        let context = if rank == 1 { &other } else { &primary };
        Communicator::new(rank, 2, context, rendezvous, options()).unwrap_err()
    });
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Rendezvous, "{error}");
        assert!(error.to_string().contains("rank 1: the context is not the device's primary one"), "{error}");
    }
}

#[test]
fn devices_are_counted() {
    let _standin = Standin::take();
    assert_eq!(device_count().unwrap(), 4);
}
