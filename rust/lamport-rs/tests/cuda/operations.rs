//! Results: the bits of the host's communicator.

use cudarc::driver::CudaSlice;
use half::{bf16, f16};
use lamport_rs::{Element, RmsNorm, WeightFor, host};

use crate::standin::Standin;
use crate::threads::on_ranks;
use crate::{Rank, communicate, options};

fn value(rank: usize, at: usize) -> f32 {
    ((at * 7 + rank * 3) % 11) as f32 - 5.0
}

#[test]
fn sums_are_right_on_any_stream_and_in_views() {
    let _standin = Standin::take();
    for world_size in [1, 2, 3, 4] {
        communicate(world_size, options(), |mut rank| {
            let number = rank.number();
            assert_eq!(rank.communicator.world_size(), world_size);
            let sum = |at: usize| (0..world_size).map(|rank| value(rank, at)).sum::<f32>();
            for length in [0, 1, 1000, 5003] {
                for stream in [rank.stream.clone(), rank.context().default_stream()] {
                    let mut values = rank.stream.clone_htod(&vec![0.0_f32; length + 8]).unwrap();
                    let begin: Vec<f32> = (0..length).map(|at| value(number, at)).collect();
                    rank.stream.memcpy_htod(&begin, &mut values.slice_mut(4..length + 4)).unwrap();
                    // One more than the sum: there is no memory of no bytes.
                    let mut output = rank.upload(length + 1, |_| -0.5);
                    let input = values.slice(4..length + 4);
                    rank.communicator.all_reduce_into(&input, &mut output.slice_mut(..length), &stream).unwrap();
                    rank.communicator.all_reduce(&mut values.slice_mut(4..length + 4), &stream).unwrap();
                    let expected: Vec<f32> = (0..length).map(sum).collect();
                    assert_eq!(rank.download(&output), [expected.as_slice(), &[-0.5]].concat());
                    let found = rank.download(&values);
                    assert_eq!(found[4..length + 4], expected);
                    assert!(found[..4].iter().chain(&found[length + 4..]).all(|outside| *outside == 0.0));
                }
            }
            rank.communicator.synchronize().unwrap();
        });
    }
}

/// Elements of 16 bits, of whom cudarc knows nothing without its feature "f16", and their weights.
struct Problem<T, W> {
    hidden: Vec<T>,
    residual: Vec<T>,
    weight: Vec<W>,
}

impl<T: Element, W: WeightFor<T>> Problem<T, W> {
    fn new(rank: usize, of: impl Fn(f32) -> T, of_weight: impl Fn(f32) -> W) -> Self {
        Self {
            hidden: (0..5 * 64).map(|at| of(value(rank, at))).collect(),
            residual: (0..5 * 64).map(|at| of(value(7, at))).collect(),
            weight: (0..64).map(|at| of_weight(at as f32 / 8.0)).collect(),
        }
    }
}

const NORM: f32 = 1e-5;
/// Elements of K in a row of Q, K and something else, and of such a row. Q has 64.
const K: usize = 16;
const COLUMNS: usize = 96;

/// Rows of 96 elements: 64 of `values`, the first 16 of these once more, and what is not read.
fn packed<T: Element>(values: &[T]) -> Vec<T> {
    values.chunks(64).flat_map(|row| [row, &row[..K], &row[..K]].concat()).collect()
}

fn on_host<T: Element, W: WeightFor<T>>(
    world_size: usize,
    problem: impl Fn(usize) -> Problem<T, W> + Sync,
) -> Vec<Vec<Vec<T>>> {
    on_ranks(world_size, |rank, rendezvous| {
        let mut communicator = host::Communicator::new(rank, world_size, rendezvous, options()).unwrap();
        let Problem { mut hidden, mut residual, weight } = problem(rank);
        let (mut sum, mut rows) = (hidden.clone(), residual.clone());
        let [mut normed, mut added, mut plain, mut q] = [(); 4].map(|()| hidden.clone());
        let mut k = hidden[..5 * K].to_vec();
        communicator.all_reduce(&mut sum).unwrap();
        communicator.minimax_rms(&hidden, &weight, &mut rows, NORM).unwrap();
        let (norm, outputs) = (RmsNorm::new(NORM), (&mut normed[..], &mut added[..]));
        communicator.all_reduce_rms_norm_into(&hidden, Some(&residual), &weight, outputs, norm).unwrap();
        let outputs = (&mut plain[..], &mut sum[..]);
        communicator.all_reduce_rms_norm_into(&hidden, None, &weight, outputs, norm).unwrap();
        communicator
            .minimax_rms_qk(&packed(&hidden), COLUMNS, (&weight, &weight[..K]), (&mut q, &mut k), NORM)
            .unwrap();
        communicator.all_reduce_rms_norm(&mut hidden, &mut residual, &weight, norm).unwrap();
        vec![sum, rows, hidden, residual, normed, added, plain, q, k]
    })
}

fn on_device<T: Element, W: WeightFor<T>>(mut rank: Rank, problem: Problem<T, W>) -> Vec<Vec<T>> {
    let stream = rank.stream.clone();
    // SAFETY: the elements are plain data of any bits.
    let upload = |values: &[T]| stream.clone_htod(unsafe { values.align_to::<u8>() }.1).unwrap();
    let Problem { hidden, residual, weight } = &problem;
    let (length, packed) = (hidden.len(), packed(hidden));
    // In the order of the results, and what is only read.
    let begin: [&[T]; 10] =
        [hidden, residual, hidden, residual, hidden, hidden, hidden, hidden, &hidden[..5 * K], &packed];
    let mut buffers = begin.map(upload);
    // SAFETY: as above.
    let weights = stream.clone_htod(unsafe { weight.align_to::<u8>() }.1).unwrap();
    {
        // SAFETY: the buffers hold so many elements.
        let weight = unsafe { weights.transmute::<W>(weight.len()) }.unwrap();
        let mut lengths = begin.iter().map(|values| values.len());
        // SAFETY: as above.
        let views = buffers.each_mut().map(|buffer| unsafe { buffer.transmute_mut::<T>(lengths.next().unwrap()) });
        let [mut sum, mut rows, mut hidden, mut residual, mut normed, mut added, mut plain, mut q, mut k, packed] =
            views.map(Option::unwrap);
        assert_eq!(hidden.len(), length);
        let (communicator, norm) = (&mut rank.communicator, RmsNorm::new(NORM));
        communicator.minimax_rms(&hidden.as_view(), &weight, &mut rows, NORM, &stream).unwrap();
        let (added_to, outputs) = (Some(residual.as_view()), (&mut normed, &mut added));
        communicator.all_reduce_rms_norm_into(&hidden, added_to, &weight, outputs, norm, &stream).unwrap();
        let outputs = (&mut plain, &mut sum);
        communicator.all_reduce_rms_norm_into(&hidden, None, &weight, outputs, norm, &stream).unwrap();
        let (weights, outputs) = ((&weight, &weight.slice(..K)), (&mut q, &mut k));
        communicator.minimax_rms_qk(&packed, COLUMNS, weights, outputs, NORM, &stream).unwrap();
        communicator.all_reduce_rms_norm(&mut hidden, &mut residual, &weight, norm, &stream).unwrap();
        communicator.synchronize().unwrap();
    }
    let [results @ .., _packed] = buffers;
    let download = |buffer: CudaSlice<u8>| {
        let bytes = stream.clone_dtoh(&buffer).unwrap();
        // SAFETY: elements that were written there.
        bytes.chunks_exact(size_of::<T>()).map(|bytes| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }).collect()
    };
    results.map(download).into()
}

fn compare<T: Element + PartialEq + std::fmt::Debug, W: WeightFor<T>>(problem: impl Fn(usize) -> Problem<T, W> + Sync) {
    let _standin = Standin::take();
    for world_size in [2, 4] {
        let found = communicate(world_size, options(), |rank| {
            let problem = problem(rank.number());
            on_device(rank, problem)
        });
        assert_eq!(found, on_host(world_size, &problem));
    }
}

#[test]
fn every_operation_has_the_results_of_the_host() {
    compare(|rank| Problem::new(rank, |value| value, |weight| weight));
    compare(|rank| Problem::new(rank, f16::from_f32, f16::from_f32));
    compare(|rank| Problem::new(rank, bf16::from_f32, |weight| weight));
}

#[test]
fn addresses_of_others_serve_too() {
    let _standin = Standin::take();
    communicate(2, options(), |mut rank| {
        use cudarc::driver::DevicePtrMut as _;
        let stream = rank.stream.clone();
        let mut values = rank.upload(100, |_| 1.0);
        {
            let (address, _used) = values.device_ptr_mut(&stream);
            // SAFETY: the address of 100 elements that are borrowed.
            unsafe { rank.communicator.all_reduce_at::<f32>(address, address, 100, &stream) }.unwrap();
        }
        assert_eq!(rank.download(&values), [2.0; 100]);
    });
}
