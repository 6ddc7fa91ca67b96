//! Faults that are told to the peers' hosts, and resets, on devices.

use std::time::{Duration, Instant};

use cudarc::driver::sys;
use lamport_rs_core::error::{Cause, Error, Result};
use lamport_rs_core::operations::all_reduce::AllReduce;
use lamport_rs_core::operations::launch::Purpose;
use lamport_rs_core::operations::operands::OnDevice;
use lamport_rs_core::tensor::Dtype;
use lamport_rs_core::workspace::cuda::CudaWorkspace;

use crate::standin::either::{Either, TestTensor};
use crate::standin::group::{LONGEST_WAIT, Rank, on_ranks};
use crate::standin::streams::TestStream;
use crate::standin::{Kind, OUT_OF_MEMORY, Standin};

const ELEMENTS: usize = 100;

/// Input and output of a sum of ones.
struct Operands {
    input: TestTensor,
    output: TestTensor,
}

impl Operands {
    fn new(workspace: &CudaWorkspace) -> Self {
        let filled = |value| Either::Cuda(workspace).tensor(Dtype::Float32, &[ELEMENTS], move |_| value);
        Self { input: filled(1.0), output: filled(-1.0) }
    }

    fn launch(&mut self, workspace: &CudaWorkspace, stream: sys::CUstream) -> Result<()> {
        let operands = AllReduce { input: self.input.tensor(), output: self.output.tensor(), algorithm: None };
        // SAFETY: the tests wait for the stream before the tensors go.
        unsafe { operands.run_on_device(workspace, Purpose::Run(stream)) }
    }

    fn output(&self) -> Vec<f32> {
        let bytes = self.output.bytes();
        bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
    }
}

fn reset(workspace: &CudaWorkspace) {
    workspace.reset(Some(LONGEST_WAIT), &mut || false).unwrap();
    workspace.check().unwrap();
}

/// What parts the ranks: called by the last one, while the others wait in a kernel.
type Fault = fn(&mut Rank, &Standin, &CudaWorkspace);

fn let_the_others_miss_it(_rank: &mut Rank, _standin: &Standin, _workspace: &CudaWorkspace) {}

fn be_refused_a_launch(rank: &mut Rank, standin: &Standin, workspace: &CudaWorkspace) {
    standin.fail(rank.rank, Some("cuLaunchKernelEx"), 0, OUT_OF_MEMORY);
    let launched = Operands::new(workspace).launch(workspace, std::ptr::null_mut());
    assert!(matches!(launched, Err(Error::Driver { .. })), "{launched:?}");
    standin.disarm();
}

fn abort(_rank: &mut Rank, _standin: &Standin, workspace: &CudaWorkspace) {
    workspace.lifecycle().abort("enough").unwrap();
}

/// A graph that was captured before is right again after each reset, whatever had happened.
#[test]
fn a_reset_makes_graphs_right_again_that_were_captured_before() {
    let standin = Standin::take();
    let faults: [Fault; 3] = [let_the_others_miss_it, be_refused_a_launch, abort];
    on_ranks(3, |rank| {
        // Not with a faster clock: the kernels wait by the clock until nobody stores any more, before they write NaN.
        let workspace = rank.create_with_timeout(0.5).unwrap();
        let stream = TestStream::new(&workspace.device);
        let mut operands = Operands::new(&workspace);
        operands.launch(&workspace, stream.handle).unwrap();
        workspace.synchronise().unwrap();
        rank.meet();
        stream.begin_capture();
        operands.launch(&workspace, stream.handle).unwrap();
        let graph = stream.end_capture();
        for fault in faults {
            (0..4).for_each(|_| stream.launch(&graph));
            workspace.synchronise().unwrap();
            assert_eq!(operands.output(), [3.0; ELEMENTS]);
            rank.meet();
            if rank.rank == 2 {
                rank.meet();
                fault(rank, &standin, &workspace);
            } else {
                // Two: the second follows one that has failed.
                (0..2).for_each(|_| stream.launch(&graph));
                rank.meet();
                assert!(workspace.synchronise().is_err());
                assert!(operands.output().iter().all(|value| value.is_nan()));
            }
            rank.meet();
            reset(&workspace);
        }
        stream.launch(&graph);
        workspace.synchronise().unwrap();
        assert_eq!(operands.output(), [3.0; ELEMENTS]);
        rank.meet();
    });
    standin.check_all_is_given_back();
}

fn clean_up(_rank: &mut Rank, _standin: &Standin, workspace: &CudaWorkspace) {
    workspace.clean_up();
}

fn call_reset(_rank: &mut Rank, _standin: &Standin, workspace: &CudaWorkspace) {
    let alone = workspace.reset(Some(Duration::from_secs(2)), &mut || false);
    assert!(matches!(alone, Err(Error::ResetTimeout { .. })), "{alone:?}");
}

/// Nobody waits for a timeout, of which there is none here.
#[test]
fn kernels_that_wait_hear_what_ends_them() {
    let standin = Standin::take();
    let faults: [(Fault, Cause); 4] = [
        (be_refused_a_launch, Cause::Failed),
        (abort, Cause::Aborted),
        (clean_up, Cause::CleanedUp),
        (call_reset, Cause::Aborted),
    ];
    for (fault, expected) in faults {
        on_ranks(3, |rank| {
            let workspace = rank.create_with_timeout(0.0).unwrap();
            let mut operands = Operands::new(&workspace);
            operands.launch(&workspace, std::ptr::null_mut()).unwrap();
            workspace.synchronise().unwrap();
            assert_eq!(operands.output(), [3.0; ELEMENTS]);
            rank.meet();
            if rank.rank == 2 {
                rank.meet();
                fault(rank, &standin, &workspace);
            } else {
                operands.launch(&workspace, std::ptr::null_mut()).unwrap();
                rank.meet();
                let error = workspace.synchronise().unwrap_err();
                assert!(
                    matches!(error, Error::Aborted { rank: 2, cause, .. } if cause == expected),
                    "{error:?}, {expected:?}"
                );
                assert!(operands.output().iter().all(|value| value.is_nan()));
            }
            rank.meet();
        });
    }
}

/// The host finds out by itself what its kernels report, and tells the others, though nobody calls anything. The first
/// call hears the error itself.
#[test]
fn a_timeout_in_a_kernel_is_told_though_nobody_calls() {
    let _standin = Standin::take();
    on_ranks(3, |rank| {
        let timeout = if rank.rank == 0 { 0.2 } else { 0.0 };
        let workspace = rank.create_with_timeout(timeout).unwrap();
        let mut operands = Operands::new(&workspace);
        if rank.rank < 2 {
            operands.launch(&workspace, std::ptr::null_mut()).unwrap();
        } else {
            let began = Instant::now();
            while workspace.lifecycle().fault().is_none() {
                assert!(began.elapsed() < LONGEST_WAIT);
            }
        }
        rank.meet();
        let names_the_missing = |error: &Error| matches!(error, Error::Timeout { missing, .. } if missing.0 == 0b100);
        let error = operands.launch(&workspace, std::ptr::null_mut()).unwrap_err();
        assert!(names_the_missing(&error), "{error:?}");
        let error = operands.launch(&workspace, std::ptr::null_mut()).unwrap_err();
        assert!(matches!(error, Error::Failed { .. }), "{error:?}");
        assert!(workspace.synchronise().is_err_and(|error| names_the_missing(&error)));
        rank.meet();
    });
}

#[test]
fn kernels_that_wait_when_their_workspace_is_cleaned_up_give_up_in_the_end() {
    let _standin = Standin::take();
    on_ranks(2, |rank| {
        let workspace = rank.create_with_timeout(0.0).unwrap();
        if rank.rank == 0 {
            let mut operands = Operands::new(&workspace);
            operands.launch(&workspace, std::ptr::null_mut()).unwrap();
            workspace.clean_up();
            assert!(operands.output().iter().all(|value| value.is_nan()));
        }
        rank.meet();
    });
}

/// Another workspace's kernel waits on the device for as long as it takes.
#[test]
fn a_clean_up_that_is_interrupted_tells_the_peers_and_leaves_the_memory_until_the_kernels_have_ended() {
    let standin = Standin::take();
    on_ranks(2, |rank| {
        let (workspace, other) = (rank.create_with_timeout(0.0).unwrap(), rank.create_with_timeout(0.0).unwrap());
        let (mut operands, mut others) = (Operands::new(&workspace), Operands::new(&other));
        operands.launch(&workspace, std::ptr::null_mut()).unwrap();
        workspace.synchronise().unwrap();
        rank.meet();
        let lent = || [Kind::Memory, Kind::Mapping].map(|kind| standin.live(kind));
        let before = lent();
        if rank.rank == 0 {
            others.launch(&other, std::ptr::null_mut()).unwrap();
            let began = Instant::now();
            let interrupted = workspace.clean_up_until(&mut || began.elapsed() > Duration::from_millis(50));
            assert!(interrupted.is_err());
            workspace.clean_up();
            workspace.clean_up_until(&mut || false).unwrap();
            assert!(matches!(workspace.check(), Err(Error::CleanedUp)));
            drop(workspace);
            assert!(began.elapsed() < LONGEST_WAIT / 10, "{:?}", began.elapsed());
        } else {
            operands.launch(&workspace, std::ptr::null_mut()).unwrap();
            let error = workspace.synchronise().unwrap_err();
            assert!(matches!(error, Error::Aborted { rank: 0, cause: Cause::CleanedUp, .. }), "{error:?}");
        }
        rank.meet();
        assert!(lent().iter().zip(before).all(|(now, before)| *now >= before), "{before:?}, then {:?}", lent());
        rank.meet();
        if rank.rank == 1 {
            others.launch(&other, std::ptr::null_mut()).unwrap();
        }
        other.synchronise().unwrap();
        assert_eq!(others.output(), [2.0; ELEMENTS]);
        rank.meet();
    });
    standin.check_all_is_given_back();
}

#[test]
fn the_host_sees_how_long_a_kernel_has_waited_and_for_whom() {
    const LATE: Duration = Duration::from_millis(300);
    let _standin = Standin::take();
    on_ranks(3, |rank| {
        let workspace = rank.create_with_timeout(0.0).unwrap();
        let mut operands = Operands::new(&workspace);
        rank.meet();
        if rank.rank == 2 {
            std::thread::sleep(LATE);
        }
        operands.launch(&workspace, std::ptr::null_mut()).unwrap();
        workspace.synchronise().unwrap();
        let began = Instant::now();
        while rank.rank != 2 && workspace.lifecycle().tally.longest_wait().0 < LATE / 3 {
            assert!(began.elapsed() < LONGEST_WAIT, "{:?}", workspace.lifecycle().tally.longest_wait());
        }
        let (waited, missing) = workspace.lifecycle().tally.longest_wait();
        assert!(rank.rank == 2 || missing.0 == 0b100, "{missing:?} for {waited:?}");
        rank.meet();
    });
}

#[test]
fn what_a_peer_tells_is_known_without_synchronising() {
    let _standin = Standin::take();
    on_ranks(3, |rank| {
        let workspace = rank.create().unwrap();
        workspace.check().unwrap();
        rank.meet();
        if rank.rank == 1 {
            workspace.lifecycle().abort("no power").unwrap();
        }
        let began = Instant::now();
        let error = loop {
            match workspace.check() {
                Ok(()) => assert!(began.elapsed() < Duration::from_secs(20)),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::Aborted { rank: 1, cause: Cause::Aborted, .. }), "{error:?}");
        let launched = Operands::new(&workspace).launch(&workspace, std::ptr::null_mut());
        assert!(matches!(launched, Err(Error::Failed { .. })), "{launched:?}");
        rank.meet();
    });
}

#[test]
fn a_reset_is_bounded_and_names_who_is_missing() {
    let _standin = Standin::take();
    on_ranks(2, |rank| {
        let workspace = rank.create().unwrap();
        if rank.rank == 0 {
            let short = workspace.reset(Some(Duration::from_millis(50)), &mut || false);
            assert!(matches!(short, Err(Error::ResetTimeout { missing, .. }) if missing.iter().eq([1])), "{short:?}");
        }
        rank.meet();
        reset(&workspace);
        let mut operands = Operands::new(&workspace);
        operands.launch(&workspace, std::ptr::null_mut()).unwrap();
        workspace.synchronise().unwrap();
        assert_eq!(operands.output(), [2.0; ELEMENTS]);
        rank.meet();
    });
}

/// Any call of the driver that a reset makes may fail: it is an error of that rank, and the others do not wait for ever.
#[test]
fn a_reset_that_the_driver_refuses_is_an_error_and_is_not_repeated_by_half() {
    let standin = Standin::take();
    for skipped in 0.. {
        let hits = on_ranks(2, |rank| {
            let workspace = rank.create().unwrap();
            rank.meet();
            let hit = if rank.rank == 1 {
                standin.fail(1, None, skipped, OUT_OF_MEMORY);
                let outcome = workspace.reset(Some(Duration::from_secs(2)), &mut || false);
                let hit = standin.disarm();
                assert!(outcome.is_err() || hit.is_none() || hit.as_deref().is_some_and(crate::standin::restores));
                hit.is_some()
            } else {
                let _ = workspace.reset(Some(Duration::from_millis(200)), &mut || false);
                false
            };
            rank.meet();
            hit
        });
        if !hits[1] {
            break;
        }
    }
}
