//! The collectives over shared memory, through the crate's API, with ranks as threads.

#[allow(dead_code, reason = "other tests' too")]
mod threads;

use std::sync::Barrier;
use std::time::{Duration, Instant};

use half::{bf16, f16};
use lamport_rs::host::Communicator;
use lamport_rs::{Element, ErrorKind, Options, RmsNorm};

use self::threads::{LONGEST_WAIT, on_ranks};

/// A communicator for each rank, and what each returns.
fn communicate<R: Send>(world_size: usize, options: Options, run: impl Fn(Communicator) -> R + Sync) -> Vec<R> {
    on_ranks(world_size, |rank, rendezvous| {
        run(Communicator::new(rank, world_size, rendezvous, options).expect("all ranks meet"))
    })
}

fn options() -> Options {
    Options::default().comm_size(16 << 10).timeout(LONGEST_WAIT)
}

/// Sums of small integers, which are exact, of every length up to several slots; from places that are not aligned, too.
fn sums<T: Element>(of: impl Fn(f32) -> T + Sync, back: impl Fn(T) -> f32 + Sync) {
    for world_size in [1, 2, 3, 4] {
        communicate(world_size, options(), |mut communicator| {
            let rank = communicator.rank();
            assert_eq!(communicator.world_size(), world_size);
            for (length, skipped) in [(0, 0), (1, 0), (7, 1), (1000, 3), (20_000, 0), (20_001, 1)] {
                let value = |rank: usize, at: usize| ((at * 7 + rank * 3) % 11) as f32 - 5.0;
                let mut values: Vec<T> = (0..length + skipped).map(|at| of(value(rank, at))).collect();
                communicator.all_reduce(&mut values[skipped..]).unwrap();
                for (at, found) in values.iter().enumerate() {
                    let expected = match at < skipped {
                        true => value(rank, at),
                        false => (0..world_size).map(|rank| value(rank, at)).sum(),
                    };
                    assert_eq!(back(*found), expected, "element {at} of {length}, from {skipped} on");
                }
            }
        });
    }
}

#[test]
fn sums_are_right_for_every_element_and_at_every_place() {
    sums(|value| value, |value| value);
    sums(f16::from_f32, f16::to_f32);
    sums(bf16::from_f32, bf16::to_f32);
}

#[test]
fn the_residual_gets_the_sum_and_the_rows_are_normalised() {
    let (rows, columns) = (3, 16);
    communicate(3, options(), |mut communicator| {
        for skipped in [0, 1] {
            let rank = communicator.rank();
            let value = |rank: usize, at: usize| ((at * 5 + rank) % 7) as f32 - 3.0;
            let mut hidden: Vec<f32> = (0..skipped + rows * columns).map(|at| value(rank, at)).collect();
            let mut residual: Vec<f32> = (0..rows * columns).map(|at| at as f32 / 8.0).collect();
            let weight: Vec<f32> = (0..columns).map(|at| at as f32 / 4.0).collect();
            let sums: Vec<f32> = (0..rows * columns)
                .map(|at| (0..3).map(|rank| value(rank, skipped + at)).sum::<f32>() + residual[at])
                .collect();
            let norm = RmsNorm::new(1e-5).with_weight_bias(1.0);
            communicator.all_reduce_rms_norm(&mut hidden[skipped..], &mut residual, &weight, norm).unwrap();
            assert_eq!(residual, sums);
            for (row, found) in hidden[skipped..].chunks(columns).enumerate() {
                let sums = &sums[row * columns..][..columns];
                let mean = sums.iter().map(|sum| sum * sum).sum::<f32>() / columns as f32;
                for (at, found) in found.iter().enumerate() {
                    let expected = sums[at] / (mean + 1e-5).sqrt() * (weight[at] + 1.0);
                    assert!((found - expected).abs() <= 1e-5 * expected.abs(), "row {row}: {found} {expected}");
                }
            }
        }
    });
}

#[test]
fn rows_that_are_spread_over_the_ranks_are_normalised_as_wholes() {
    communicate(2, options(), |mut communicator| {
        let rank = communicator.rank();
        let value = |rank: usize, at: usize| bf16::from_f32((at % 3 + rank) as f32);
        let input: Vec<bf16> = (0..2 * 8).map(|at| value(rank, at)).collect();
        let mut output = vec![bf16::NAN; 2 * 8];
        communicator.minimax_rms(&input, &[2.0_f32; 8], &mut output, 0.0).unwrap();
        for (at, found) in output.iter().enumerate() {
            let row = at / 8 * 8;
            let squares = (0..2).flat_map(|rank| (row..row + 8).map(move |at| value(rank, at).to_f32().powi(2)));
            let expected = value(rank, at).to_f32() / (squares.sum::<f32>() / 16.0).sqrt() * 2.0;
            assert!((found.to_f32() - expected).abs() <= expected.abs() / 128.0, "{found} {expected}");
        }
    });
}

/// `values`, from a place on that is not aligned if so asked.
fn shifted<T: Element>(values: &[T], skipped: usize) -> Vec<T> {
    [&values[..skipped], values].concat()
}

#[test]
fn results_go_to_other_places_with_the_bits_that_they_have_in_place() {
    let (rows, columns) = (3, 16);
    communicate(3, options(), |mut communicator| {
        let rank = communicator.rank();
        let input: Vec<bf16> = (0..rows * columns).map(|at| bf16::from_f32(((at * 5 + rank) % 7) as f32)).collect();
        let residual: Vec<bf16> = (0..rows * columns).map(|at| bf16::from_f32(at as f32 / 8.0)).collect();
        let weight: Vec<f32> = (0..columns).map(|at| at as f32 / 4.0).collect();
        let norm = RmsNorm::new(1e-5).with_weight_bias(1.0);
        for skipped in [0, 1] {
            let (input, residual) = (shifted(&input, skipped), shifted(&residual, skipped));
            let weight = shifted(&weight, skipped);
            let (input, residual, weight) = (&input[skipped..], &residual[skipped..], &weight[skipped..]);
            let empty = shifted(&vec![bf16::NAN; rows * columns], skipped);
            let (mut output, mut sum) = (empty.clone(), empty);
            let (output, sum) = (&mut output[skipped..], &mut sum[skipped..]);

            communicator.all_reduce_into(input, sum).unwrap();
            let mut in_place = input.to_vec();
            communicator.all_reduce(&mut in_place).unwrap();
            assert_eq!(sum, in_place);

            for residual in [None, Some(residual)] {
                communicator.all_reduce_rms_norm_into(input, residual, weight, (output, sum), norm).unwrap();
                let zeros = vec![bf16::ZERO; rows * columns];
                let (mut hidden, mut added) = (input.to_vec(), residual.unwrap_or(&zeros).to_vec());
                communicator.all_reduce_rms_norm(&mut hidden, &mut added, weight, norm).unwrap();
                assert_eq!((&*output, &*sum), (&hidden[..], &added[..]), "{residual:?}");
            }
        }
    });
}

/// The columns behind Q and K are NaN, which any result that they touch would be.
#[test]
fn q_and_k_out_of_packed_rows_have_the_bits_that_each_has_alone() {
    let (rows, sizes, columns) = (5, [16, 8], 40);
    communicate(2, options(), |mut communicator| {
        let rank = communicator.rank();
        let part = |size: usize| (0..rows * size).map(|at| f16::from_f32((at % 13 + rank) as f32)).collect::<Vec<_>>();
        let [q, k] = sizes.map(part);
        let behind = vec![f16::NAN; columns - 24];
        let qkv: Vec<f16> =
            (0..rows).flat_map(|row| [&q[row * 16..][..16], &k[row * 8..][..8], &behind].concat()).collect();
        let weights = sizes.map(|size| (0..size).map(|at| f16::from_f32(at as f32 / 4.0)).collect::<Vec<_>>());
        let alone = [(&q, &weights[0]), (&k, &weights[1])].map(|(input, weight)| {
            let mut output = vec![f16::NAN; input.len()];
            communicator.minimax_rms(input, weight, &mut output, 1e-5).unwrap();
            output
        });
        for skipped in [0, 1] {
            let qkv = shifted(&qkv, skipped);
            let [weight_q, weight_k] = weights.each_ref().map(|weight| shifted(weight, skipped));
            let [mut q, mut k] = alone.each_ref().map(|alone| shifted(&vec![f16::NAN; alone.len()], skipped));
            let weights = (&weight_q[skipped..], &weight_k[skipped..]);
            let outputs = (&mut q[skipped..], &mut k[skipped..]);
            communicator.minimax_rms_qk(&qkv[skipped..], columns, weights, outputs, 1e-5).unwrap();
            assert_eq!([&q[skipped..], &k[skipped..]], [&alone[0][..], &alone[1][..]]);
        }
        communicator
            .minimax_rms_qk(&[], columns, (&weights[0], &weights[1]), (&mut [], &mut []), 1e-5)
            .expect("there may be no rows");
    });
}

#[test]
fn an_abort_of_another_thread_ends_the_operation_that_waits_on_all_ranks() {
    let errors = communicate(3, options().timeout(None), |mut communicator| {
        if communicator.rank() == 1 {
            let handle = communicator.handle();
            let aborting = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(100));
                handle.abort("enough").unwrap();
            });
            aborting.join().unwrap();
            return communicator.check().unwrap_err();
        }
        communicator.all_reduce(&mut [1.0_f32]).unwrap_err()
    });
    for error in errors {
        assert_eq!((error.kind(), error.ranks()), (ErrorKind::Aborted, [1].as_slice()), "{error}");
        assert!(error.to_string().contains("enough"), "{error}");
    }
}

#[test]
fn a_rank_that_does_not_come_is_named_and_a_reset_lets_all_go_on() {
    let missed = Barrier::new(2);
    communicate(2, options().timeout(Duration::from_millis(200)), |mut communicator| {
        if communicator.rank() == 0 {
            let began = Instant::now();
            let error = communicator.all_reduce(&mut [1.0_f32]).unwrap_err();
            assert_eq!((error.kind(), error.ranks()), (ErrorKind::Timeout, [1].as_slice()), "{error}");
            assert!(began.elapsed() < LONGEST_WAIT);
            assert!(communicator.status().failure.is_some());
            assert_eq!(communicator.all_reduce(&mut [1.0_f32]).unwrap_err().kind(), ErrorKind::Unusable);
        }
        missed.wait();
        communicator.reset(LONGEST_WAIT).unwrap();
        let mut values = [1.0_f32; 5];
        communicator.all_reduce(&mut values).unwrap();
        assert_eq!(values, [2.0; 5]);
        let status = communicator.status();
        assert_eq!((status.failure, status.resets), (None, 1));
        assert!(status.work.iter().any(|work| work.operation == "all_reduce" && work.calls > 0 && work.bytes > 0));
    });
}

/// Otherwise all later sums would be of values that do not belong together.
#[test]
fn a_call_that_is_refused_on_one_rank_is_a_mismatch_on_the_others() {
    let noticed = Barrier::new(2);
    communicate(2, options(), |mut communicator| {
        let mut values = [1.0_f32; 16];
        if communicator.rank() == 0 {
            // Three weights are no row of 16.
            let error = communicator
                .all_reduce_rms_norm(&mut values, &mut [0.0; 16], &[1.0_f32; 3], RmsNorm::new(1e-6))
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Argument, "{error}");
        } else {
            let error = communicator
                .all_reduce_rms_norm(&mut values, &mut [0.0; 16], &[1.0_f32; 8], RmsNorm::new(1e-6))
                .unwrap_err();
            assert_eq!((error.kind(), error.ranks()), (ErrorKind::Mismatch, [0].as_slice()), "{error}");
        }
        noticed.wait();
    });
}

#[test]
fn what_cannot_be_an_operand_is_refused_and_changes_nothing() {
    communicate(1, options(), |mut communicator| {
        let mut refuse = |hidden: usize, residual: usize, weight: usize, norm: RmsNorm, expected: &str| {
            let (mut hidden, mut residual) = (vec![1.0_f32; hidden], vec![2.0_f32; residual]);
            let error =
                communicator.all_reduce_rms_norm(&mut hidden, &mut residual, &vec![1.0_f32; weight], norm).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Argument, "{error}");
            assert!(error.to_string().contains(expected), "{error}");
            assert!(hidden.iter().all(|value| *value == 1.0) && residual.iter().all(|value| *value == 2.0));
        };
        let norm = RmsNorm::new(1e-6);
        refuse(16, 16, 0, norm, "whole rows of 0");
        refuse(17, 17, 8, norm, "whole rows of 8");
        refuse(16, 8, 8, norm, "residual has 8 elements, but must have 16");
        refuse(12, 12, 4, norm, "multiple of 8");
        refuse(16, 16, 8, RmsNorm::new(f32::NAN), "eps is NaN");
        let error = communicator.minimax_rms(&[1.0_f32; 16], &[1.0_f32; 8], &mut [0.0; 8], 0.0).unwrap_err();
        assert!(error.to_string().contains("output has 8 elements, but must have 16"), "{error}");
    });
}

#[test]
fn lengths_of_separate_outputs_are_checked_and_nothing_is_changed() {
    communicate(1, options(), |mut communicator| {
        let refused = |outcome: lamport_rs::Result<()>, expected: &str| {
            let error = outcome.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Argument, "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        };
        let (input, weight, norm) = ([1.0_f32; 16], [1.0_f32; 8], RmsNorm::new(1e-6));
        let (mut output, mut long, mut short) = ([7.0; 16], [7.0; 24], [7.0; 8]);
        refused(communicator.all_reduce_into(&input, &mut short), "output has 8 elements, but must have 16");
        let mut norm_into = |residual: Option<&[f32]>, output: &mut [f32], sum: &mut [f32], expected: &str| {
            let outcome = communicator.all_reduce_rms_norm_into(&input, residual, &weight, (output, sum), norm);
            refused(outcome, expected);
        };
        norm_into(None, &mut long, &mut output, "output has 24 elements, but must have 16");
        norm_into(None, &mut output, &mut short, "the output of the sum has 8 elements, but must have 16");
        norm_into(Some(&weight), &mut output, &mut long, "residual has 8 elements, but must have 16");

        let mut qk = |columns: usize, weights: [usize; 2], q: &mut [f32], k: &mut [f32], expected: &str| {
            let [weight_q, weight_k] = weights.map(|weights| vec![1.0_f32; weights]);
            let weights = (&weight_q[..], &weight_k[..]);
            refused(communicator.minimax_rms_qk(&[1.0; 48], columns, weights, (q, k), 0.0), expected);
        };
        qk(0, [8, 8], &mut output, &mut long, "qkv has 48 elements, but must have whole rows of 0, which is `columns`");
        qk(20, [8, 8], &mut output, &mut long, "whole rows of 20");
        qk(6, [8, 8], &mut output, &mut long, "columns is 6, but must be a multiple of 4");
        qk(24, [8, 8], &mut short, &mut long, "the output of Q has 8 elements, but must have 16");
        qk(24, [8, 8], &mut output, &mut long, "the output of K has 24 elements, but must have 16");
        qk(24, [8, 12], &mut output, &mut long, "kv_size is 12 elements, but must be a positive multiple of 8");
        qk(12, [4, 8], &mut output, &mut [7.0; 32], "q_size is 4 elements, but must be a positive multiple of 8");
        qk(24, [0, 8], &mut [], &mut output, "q_size is 0");
        // More columns than a row has.
        qk(8, [8, 8], &mut [7.0; 48], &mut [7.0; 48], "must hold q_size + kv_size = 8 + 8");
        assert!(output.iter().chain(&long).chain(&short).all(|value| *value == 7.0));
    });
}

#[test]
fn wrong_arguments_of_one_rank_are_an_error_on_all() {
    let errors = on_ranks(2, |rank, rendezvous| {
        let options = options().comm_size(if rank == 0 { 16 << 10 } else { 17 });
        Communicator::new(rank, 2, rendezvous, options).unwrap_err()
    });
    assert_eq!(errors[0].to_string(), errors[1].to_string());
    assert!(errors.iter().all(|error| error.kind() == ErrorKind::Rendezvous), "{errors:?}");
    for (rank, world_size) in [(2, 2), (0, 17), (usize::MAX, usize::MAX)] {
        let error =
            on_ranks(1, |_, rendezvous| Communicator::new(rank, world_size, rendezvous, options()).unwrap_err());
        assert_eq!(error[0].kind(), ErrorKind::Rendezvous, "{error:?}");
    }
}

#[test]
fn a_handle_outlives_its_communicator_and_says_that_it_has_ended() {
    let handles = communicate(2, options(), |mut communicator| {
        communicator.all_reduce(&mut [1.0_f32]).unwrap();
        communicator.handle()
    });
    for handle in handles {
        assert_eq!(handle.check().unwrap_err().kind(), ErrorKind::Unusable);
        assert_eq!(handle.status().work[0].calls, 1);
    }
}
