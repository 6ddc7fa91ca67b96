//! Waits in vain, and turns at a workspace, with ranks as threads. Each thread is joined by hand: the race detector
//! misreads how the standard library lets go of those that are not.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use lamport_rs_core::error::{Error, Result};
use lamport_rs_core::operations::arguments::{AllReduce, MinimaxRms};
use lamport_rs_core::operations::host::{all_reduce, minimax_rms};
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
    unsafe { all_reduce(workspace, &AllReduce { input, output: input, algorithm }, interrupted) }
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
        // One vector, one chunk, more chunks than are pushed ahead, and more pieces than one.
        for elements in [4, 1000, 40_000, 150_000] {
            let workspaces = HostWorkspace::in_process(3, 4 << 20, Some(Duration::from_millis(100))).unwrap();
            let outcomes = run(&workspaces[..2], |workspace| {
                (sum(workspace, elements, Some(algorithm), &mut never), sum(workspace, 4, None, &mut never))
            });
            for (first, second) in outcomes {
                let named = matches!(first, Err(Error::Timeout { missing, .. }) if missing.iter().eq([2]));
                assert!(named, "{first:?}, {elements} elements, {algorithm:?}");
                assert!(matches!(second, Err(Error::Failed(_))), "{second:?}");
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

#[test]
fn a_wait_of_q_and_k_is_named_like_the_operation() {
    let workspaces = HostWorkspace::in_process(2, 4096, Some(Duration::from_millis(1))).unwrap();
    let mut memory = [[0; 32]; 5];
    let [qkv, q, k, q_weight, k_weight] = &mut memory;
    let weights = [tensor(q_weight, &[8]), tensor(k_weight, &[8])];
    let outputs = [tensor(q, &[2, 8]), tensor(k, &[2, 8])];
    let operands = MinimaxRms::packed(tensor(qkv, &[2, 16]), [8, 8], weights, outputs, 1e-6).unwrap();
    // SAFETY: the memory outlives the call and is this thread's own.
    let error = unsafe { minimax_rms(&workspaces[0], &operands, &mut never) }.unwrap_err();
    assert!(error.to_string().starts_with("minimax_allreduce_rms_qk: waited"), "{error}");
}

/// What a signal's handler does, the operation asks for it from within its wait.
#[test]
fn an_operation_ends_when_its_workspace_is_cleaned_up_from_within_its_wait() {
    let workspaces = HostWorkspace::in_process(2, 4096, None).unwrap();
    let outcome = sum(&workspaces[0], 8, None, &mut || {
        workspaces[0].check_usable().unwrap();
        workspaces[0].clean_up();
        assert!(matches!(workspaces[0].check_usable(), Err(Error::CleanedUp)));
        false
    });
    assert!(matches!(outcome, Err(Error::CleanedUpMeanwhile { operation: "all_reduce" })), "{outcome:?}");
    assert!(matches!(sum(&workspaces[0], 8, None, &mut never), Err(Error::CleanedUp)));
}

#[test]
fn an_operation_from_within_another_is_refused_at_once_and_the_other_goes_on() {
    let workspaces = HostWorkspace::in_process(2, 4096, Some(LONG)).unwrap();
    let refused = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let peer = scope.spawn(|| {
            while !refused.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            sum(&workspaces[1], 8, None, &mut never).unwrap();
        });
        let outcome = sum(&workspaces[0], 8, None, &mut || {
            let inner = sum(&workspaces[0], 8, None, &mut never);
            assert!(matches!(inner, Err(Error::WithinOperation { operation: "all_reduce" })), "{inner:?}");
            refused.store(true, Ordering::Relaxed);
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
        workspaces[0].clean_up();
        assert!(workspaces[0].check_usable().is_err());
        let took = started.elapsed();
        std::thread::sleep(Duration::from_millis(100));
        took
    });
    assert!(matches!(waited, Err(Error::CleanedUpMeanwhile { .. })), "{waited:?}");
    assert!(took < Duration::from_millis(100), "{took:?}");
}

#[test]
fn waiting_for_a_turn_is_interrupted_without_harm() {
    let workspaces = HostWorkspace::in_process(2, 4096, None).unwrap();
    let (_, outcome) = while_waiting(&workspaces, || {
        let outcome = sum(&workspaces[0], 8, None, &mut || true);
        workspaces[0].check_usable().unwrap();
        outcome
    });
    assert!(matches!(outcome, Err(Error::TurnInterrupted { operation: "all_reduce" })), "{outcome:?}");
}

/// An operation that does not come back: a handler that does not return.
#[test]
fn waiting_for_a_turn_is_bounded_by_the_timeout() {
    let timeout = Duration::from_millis(100);
    let workspaces = HostWorkspace::in_process(2, 4096, Some(timeout)).unwrap();
    let (held, hold) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let workspace = &workspaces[0];
        let holder = scope.spawn(move || {
            let mut first = true;
            sum(workspace, 8, None, &mut || {
                if std::mem::take(&mut first) {
                    held.send(()).unwrap();
                    released.recv_timeout(LONG).unwrap();
                }
                false
            })
        });
        hold.recv_timeout(LONG).unwrap();
        let outcome = sum(workspace, 8, None, &mut never);
        let in_time = |waited| waited >= 2 * timeout && waited < LONG / 2;
        assert!(matches!(outcome, Err(Error::NoTurn { waited, .. }) if in_time(waited)), "{outcome:?}");
        workspace.check_usable().unwrap();
        release.send(()).unwrap();
        assert!(holder.join().unwrap().is_err());
    });
}

/// Peers that are slow, each within the timeout, and so all of them are longer than two.
#[test]
fn waiting_for_a_turn_goes_on_while_peers_come_one_by_one() {
    let timeout = Duration::from_secs(2);
    let workspaces = HostWorkspace::in_process(5, 4096, Some(timeout)).unwrap();
    std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| sum(&workspaces[0], 8, None, &mut never)));
        let peers: Vec<_> = (1..5)
            .map(|rank| {
                let workspace = &workspaces[rank];
                scope.spawn(move || {
                    std::thread::sleep(timeout * 6 / 10 * rank as u32);
                    [(); 2].map(|()| sum(workspace, 8, None, &mut never))
                })
            })
            .collect();
        for outcome in peers.into_iter().flat_map(|peer| peer.join().unwrap()) {
            outcome.unwrap();
        }
        for thread in both {
            thread.join().unwrap().unwrap();
        }
    });
}

#[test]
fn whoever_waits_for_a_turn_in_vain_hears_of_the_rank_that_is_missing() {
    let workspaces = HostWorkspace::in_process(2, 4096, Some(Duration::from_millis(200))).unwrap();
    std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| sum(&workspaces[0], 8, None, &mut never)));
        let outcomes = both.map(|thread| thread.join().unwrap().unwrap_err());
        assert!(outcomes.iter().any(|error| matches!(error, Error::Timeout { .. })), "{outcomes:?}");
        assert!(outcomes.iter().all(|error| error.to_string().contains("waited")), "{outcomes:?}");
        assert!(outcomes.iter().all(|error| error.to_string().contains("for rank 1")), "{outcomes:?}");
    });
}

#[test]
fn operations_of_several_threads_take_turns() {
    const ROUNDS: usize = 50;
    let workspaces = HostWorkspace::in_process(2, 1 << 16, Some(LONG)).unwrap();
    let completed = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let threads: Vec<_> = workspaces
            .iter()
            .flat_map(|workspace| [workspace; 3])
            .map(|workspace| {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        sum(workspace, 5000, None, &mut never).unwrap();
                        completed.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    assert_eq!(completed.into_inner(), 6 * ROUNDS);
}
