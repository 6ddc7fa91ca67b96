//! Waits in vain, operations that differ, and operations at the same time, with ranks as threads. Each thread is joined by hand: the race detector
//! misreads how the standard library lets go of those that are not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use lamport_rs_core::error::{Cause, Error, Result};
use lamport_rs_core::operations::all_reduce::AllReduce;
use lamport_rs_core::operations::minimax::MinimaxRms;
use lamport_rs_core::operations::operands::OnHost;
use lamport_rs_core::tensor::{Device, Dimensions, Dtype, Tensor};
use lamport_rs_core::workspace::host::HostWorkspace;
use lamport_rs_protocol::algorithm::Algorithm;

/// More than any test here waits for, where it waits for what comes.
const LONG: Duration = Duration::from_secs(60);

fn tensor(memory: &mut [u128], shape: &[usize]) -> Tensor {
    assert!(shape.iter().product::<usize>() <= 4 * memory.len());
    let strides = (0..shape.len()).map(|dimension| shape[dimension + 1..].iter().product());
    Tensor {
        pointer: memory.as_mut_ptr().cast(),
        dtype: Dtype::Float32,
        device: Device::Cpu,
        shape: Dimensions::new(shape.iter().copied()).unwrap(),
        strides: Dimensions::new(strides).unwrap(),
        is_negated: false,
    }
}

/// Sums zeros.
fn sum(
    workspace: &HostWorkspace,
    elements: usize,
    algorithm: Option<Algorithm>,
    interrupted: &mut dyn FnMut() -> bool,
) -> Result<()> {
    let mut memory = vec![0; elements.div_ceil(4)];
    let input = tensor(&mut memory, &[elements]);
    // SAFETY: the memory outlives the call and is this thread's own.
    unsafe { AllReduce { input, output: input, algorithm }.run_on_host(workspace, interrupted) }
}

fn never() -> bool {
    false
}

/// Runs the first ranks of a group, and returns their results.
fn run<R: Send>(workspaces: &[HostWorkspace], run: impl Fn(&HostWorkspace) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = workspaces.iter().map(|workspace| scope.spawn(move || run(workspace))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn only_a_rank_that_never_comes_is_named_however_long_the_message_and_the_workspace_refuses_further_work() {
    for algorithm in Algorithm::ALL {
        // One vector, one chunk, more chunks than are pushed ahead, and more segments than one.
        for elements in [4, 1000, 40_000, 150_000] {
            let workspaces = HostWorkspace::in_process(3, 4 << 20, Some(Duration::from_millis(100))).unwrap();
            let outcomes = run(&workspaces[..2], |workspace| {
                (sum(workspace, elements, Some(algorithm), &mut never), sum(workspace, 4, None, &mut never))
            });
            for (first, second) in outcomes {
                let named = matches!(first, Err(Error::Timeout { missing, .. }) if missing.iter().eq([2]));
                assert!(named, "{first:?}, {elements} elements, {algorithm:?}");
                assert!(matches!(second, Err(Error::Failed { .. })), "{second:?}");
            }
        }
    }
}

#[test]
fn an_interrupted_wait_ends_before_its_timeout() {
    let workspaces = HostWorkspace::in_process(2, 4096, None).unwrap();
    let outcome = sum(&workspaces[0], 8, None, &mut || true);
    assert!(matches!(outcome, Err(Error::Interrupted { .. })), "{outcome:?}");
}

/// Between two segments, as no wait in it need last until one may ask.
#[test]
fn a_long_message_is_interrupted_though_no_wait_in_it_is_long() {
    let workspaces = HostWorkspace::in_process(2, 4 << 20, Some(LONG)).unwrap();
    let started = Instant::now();
    let outcomes = std::thread::scope(|scope| {
        let peer = scope.spawn(|| sum(&workspaces[1], 256 << 20, None, &mut never));
        let own = sum(&workspaces[0], 256 << 20, None, &mut || started.elapsed() > Duration::from_millis(100));
        [own, peer.join().unwrap()]
    });
    assert!(matches!(outcomes[0], Err(Error::Interrupted { .. })), "{outcomes:?}");
    // The peer hears of it, and does not wait for its timeout.
    assert!(matches!(outcomes[1], Err(Error::Aborted { rank: 0, cause: Cause::Failed, .. })), "{outcomes:?}");
}

#[test]
fn a_wait_of_q_and_k_is_named_like_the_operation() {
    let workspaces = HostWorkspace::in_process(2, 4096, Some(Duration::from_millis(1))).unwrap();
    let mut memory = [[0; 32]; 5];
    let [qkv, q, k, q_weight, k_weight] = &mut memory;
    let weights = [tensor(q_weight, &[8]), tensor(k_weight, &[8])];
    let outputs = [tensor(q, &[2, 8]), tensor(k, &[2, 8])];
    let operands = MinimaxRms::packed(tensor(qkv, &[2, 16]), [8, 8], weights, outputs, 1e-6).unwrap();
    // SAFETY: the memory outlives the call and is this thread's own.
    let error = unsafe { operands.run_on_host(&workspaces[0], &mut never) }.unwrap_err();
    let expected = "operation 1, minimax_allreduce_rms_qk of [2, 8 + 8] float32 (digest ";
    assert!(error.to_string().starts_with(expected), "{error}");
}

/// What a signal's handler does, the operation asks for it from within its wait.
#[test]
fn an_operation_ends_when_its_workspace_is_cleaned_up_from_within_its_wait() {
    let workspaces = HostWorkspace::in_process(2, 4096, None).unwrap();
    let outcome = sum(&workspaces[0], 8, None, &mut || {
        workspaces[0].lifecycle().check_usable().unwrap();
        workspaces[0].lifecycle().clean_up();
        assert!(matches!(workspaces[0].lifecycle().check_usable(), Err(Error::CleanedUp)));
        false
    });
    assert!(matches!(outcome, Err(Error::CleanedUpMeanwhile { .. })), "{outcome:?}");
    assert!(matches!(sum(&workspaces[0], 8, None, &mut never), Err(Error::CleanedUp)));
}

#[test]
fn an_operation_from_within_another_is_refused_at_once_and_the_other_goes_on() {
    // Of several segments: the peer waits for more of it after the refusal.
    const ELEMENTS: usize = 600_000;
    let workspaces = HostWorkspace::in_process(2, 4 << 20, Some(LONG)).unwrap();
    let refused = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let peer = scope.spawn(|| {
            while !refused.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            sum(&workspaces[1], ELEMENTS, None, &mut never).unwrap();
        });
        let outcome = sum(&workspaces[0], ELEMENTS, None, &mut || {
            let inner = sum(&workspaces[0], 8, None, &mut never);
            assert!(matches!(inner, Err(Error::WithinOperation { operation: "all_reduce" })), "{inner:?}");
            workspaces[0].note_refusal();
            refused.store(true, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(100));
            false
        });
        outcome.unwrap();
        peer.join().unwrap();
    });
}

/// Runs `others` while an operation on the first workspace waits for its peer, for as long as they last.
fn while_waiting<R>(workspaces: &[HostWorkspace], others: impl FnOnce() -> R) -> (Result<()>, R) {
    let (waits, is_waiting) = mpsc::channel();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let over = &over;
        let waiting = scope.spawn(move || {
            sum(&workspaces[0], 8, None, &mut || {
                waits.send(()).unwrap();
                over.load(Ordering::Relaxed)
            })
        });
        is_waiting.recv_timeout(LONG).unwrap();
        let result = others();
        over.store(true, Ordering::Relaxed);
        (waiting.join().unwrap(), result)
    })
}

#[test]
fn cleaning_up_does_not_wait_for_an_operation_and_ends_its_wait() {
    let workspaces = HostWorkspace::in_process(2, 4096, None).unwrap();
    let (waited, took) = while_waiting(&workspaces, || {
        let started = Instant::now();
        workspaces[0].lifecycle().clean_up();
        assert!(workspaces[0].lifecycle().check_usable().is_err());
        let took = started.elapsed();
        std::thread::sleep(Duration::from_millis(100));
        took
    });
    assert!(matches!(waited, Err(Error::CleanedUpMeanwhile { .. })), "{waited:?}");
    assert!(took < Duration::from_millis(100), "{took:?}");
}

/// The first goes on; the second counts as a call, so that what comes next differs from the peers'.
#[test]
fn a_second_operation_at_the_same_time_is_refused_and_counts() {
    let workspaces = HostWorkspace::in_process(2, 4096, Some(LONG)).unwrap();
    let (asked, was_asked) = mpsc::channel();
    std::thread::scope(|scope| {
        let workspace = &workspaces[0];
        let first = scope.spawn(move || {
            sum(workspace, 8, None, &mut || {
                let _ = asked.send(());
                false
            })
        });
        was_asked.recv_timeout(LONG).unwrap();
        let second = sum(workspace, 8, None, &mut never);
        assert!(matches!(second, Err(Error::InUse { operation: "all_reduce" })), "{second:?}");
        workspace.note_refusal();
        sum(&workspaces[1], 8, None, &mut never).unwrap();
        first.join().unwrap().unwrap();
    });
    let outcomes = run(&workspaces, |workspace| sum(workspace, 8, None, &mut never));
    for (rank, outcome) in outcomes.into_iter().enumerate() {
        match outcome {
            Err(Error::Mismatch { own, theirs, .. }) => {
                assert_eq!((own.number(), theirs.number()), if rank == 0 { (3, 2) } else { (2, 3) });
            }
            // Rank 1 may look before rank 0 has sent anything.
            Err(Error::PeerRefused { operation, peer, .. }) if rank == 1 => {
                assert_eq!((operation.number(), peer), (2, 0));
            }
            other => panic!("rank {rank}: {other:?}"),
        }
    }
}

#[test]
fn operations_that_differ_are_an_error_on_every_rank_and_leave_nan() {
    for (first, second) in [(4, 8), (8, 4), (40_000, 4), (150_000, 149_000)] {
        let workspaces = HostWorkspace::in_process(3, 4 << 20, Some(LONG)).unwrap();
        let outcomes = std::thread::scope(|scope| {
            let threads: Vec<_> = workspaces
                .iter()
                .enumerate()
                .map(|(rank, workspace)| {
                    scope.spawn(move || {
                        let elements: usize = if rank == 1 { second } else { first };
                        let mut memory = [vec![0_u128; elements.div_ceil(4)], vec![u128::MAX; elements.div_ceil(4)]];
                        let [input, output] = &mut memory;
                        let operands = AllReduce {
                            input: tensor(input, &[elements]),
                            output: tensor(output, &[elements]),
                            algorithm: None,
                        };
                        // SAFETY: the memory outlives the call and is this thread's own.
                        let outcome = unsafe { operands.run_on_host(workspace, &mut never) };
                        let words = output.iter().flat_map(|vector| vector.to_ne_bytes());
                        let nan = Dtype::Float32.nan().iter().copied().cycle().take(4 * elements);
                        (outcome, words.take(4 * elements).eq(nan))
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        for (rank, (outcome, is_nan)) in outcomes.into_iter().enumerate() {
            let named = matches!(outcome, Err(Error::Mismatch { peer, .. }) if (peer == 1) != (rank == 1));
            assert!(named && is_nan, "rank {rank}: {outcome:?}");
        }
    }
}
