//! Quantised outputs, layer norms and experts' rows: the bits of the host's communicator.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, CudaView, CudaViewMut};
use half::{bf16, f16};
use lamport_rs::{Element, ErrorKind, HalfElement, LayerNorm, QuantFormat, RmsNorm, WeightFor, cuda, host};

use crate::standin::Standin;
use crate::threads::on_ranks;
use crate::{Rank, communicate, options};

const ROWS: usize = 3;
const COLUMNS: usize = 256;
const LENGTH: usize = ROWS * COLUMNS;
const INDEX: [i32; 2 * ROWS] = [0, 2, -1, 1, 2, 2];
const EXPERT_WEIGHTS: [f32; 2 * ROWS] = [1.0, 0.5, 3.0, 2.0, 0.25, 0.75];
const GIVEN: f32 = 0.75;

/// What operations read, of one rank.
struct Problem<T> {
    input: Vec<T>,
    residual: Vec<T>,
    weight: Vec<T>,
    bias: Vec<T>,
}

impl<T: HalfElement> Problem<T> {
    fn new(rank: usize, of: impl Fn(f32) -> T) -> Self {
        let value = |rank: usize, at: usize| ((at * 7 + rank * 3) % 11) as f32 / 4.0 - 1.0;
        Self {
            input: (0..LENGTH).map(|at| of(value(rank, at))).collect(),
            residual: (0..LENGTH).map(|at| of(value(7, at))).collect(),
            weight: (0..COLUMNS).map(|at| of(at as f32 / 64.0)).collect(),
            bias: (0..COLUMNS).map(|at| of(1.0 - at as f32 / 64.0)).collect(),
        }
    }
}

/// All that is written, as bytes: rows of elements, and codes and scales.
type Results = Vec<Vec<u8>>;

fn bytes_of<T: Element>(values: &[T]) -> Vec<u8> {
    // SAFETY: the elements are plain data of any bits.
    unsafe { values.align_to::<u8>() }.1.to_vec()
}

fn on_host<T: HalfElement>(world_size: usize, problem: impl Fn(usize) -> Problem<T> + Sync) -> Vec<Results>
where
    f32: WeightFor<T>,
{
    on_ranks(world_size, |rank, rendezvous| {
        let mut communicator = host::Communicator::new(rank, world_size, rendezvous, options()).unwrap();
        let Problem { input, residual, weight, bias } = problem(rank);
        let mut results = vec![];
        let [mut output, mut sum] = [(); 2].map(|()| input.clone());
        for &format in QuantFormat::ALL {
            for is_asked in [false, true] {
                let mut codes = vec![0; format.code_bytes(ROWS, COLUMNS)];
                let mut scales = vec![0; format.scale_bytes(ROWS, COLUMNS)];
                fn rows<'a>(format: QuantFormat, codes: &'a mut [u8], scales: &'a mut [u8]) -> host::Quantised<'a> {
                    let rows = host::Quantised::new(format, codes).with_scales(scales);
                    if format.takes_scale() { rows.with_scale(GIVEN) } else { rows }
                }
                let asked = is_asked.then_some(&mut sum[..]);
                communicator.all_reduce_quant(&input, COLUMNS, rows(format, &mut codes, &mut scales), asked).unwrap();
                results.extend([codes.clone(), scales.clone(), bytes_of(&sum)]);
                let added = is_asked.then_some(&residual[..]);
                let outputs = (is_asked.then_some(&mut output[..]), &mut sum[..]);
                let rows = rows(format, &mut codes, &mut scales);
                let norm = RmsNorm::new(1e-5);
                communicator.all_reduce_rms_norm_quant(&input, added, &weight, rows, outputs, norm).unwrap();
                results.extend([codes, scales, bytes_of(&output), bytes_of(&sum)]);
            }
        }
        for (residual, bias) in [(Some(&residual[..]), Some(&bias[..])), (None, None)] {
            let (parameters, outputs) = ((&weight[..], bias), (&mut output[..], &mut sum[..]));
            communicator
                .all_reduce_layer_norm_into(&input, residual, parameters, outputs, LayerNorm::new(1e-5))
                .unwrap();
            results.extend([bytes_of(&output), bytes_of(&sum)]);
        }
        for shared in [None, Some(&residual[..])] {
            let mut experts = host::Experts::new(&input, COLUMNS, (&INDEX, &EXPERT_WEIGHTS), 2);
            if let Some(shared) = shared {
                experts = experts.with_shared(shared);
            }
            communicator.moe_finalize_all_reduce(&experts, &mut output).unwrap();
            results.push(bytes_of(&output));
            let (outputs, norm) = ((&mut output[..], &mut sum[..]), RmsNorm::new(1e-5));
            communicator.moe_finalize_all_reduce_rms_norm(&experts, shared, &weight, outputs, norm).unwrap();
            results.extend([bytes_of(&output), bytes_of(&sum)]);
        }
        results
    })
}

/// Bytes on the device, and the elements that they are.
struct Uploaded(CudaSlice<u8>);

impl Uploaded {
    fn new<T: Element>(stream: &Arc<CudaStream>, values: &[T]) -> Self {
        Self(stream.clone_htod(&bytes_of(values)).unwrap())
    }

    fn view<T: Element>(&self) -> CudaView<'_, T> {
        // SAFETY: the buffer holds so many elements, of any bits.
        unsafe { self.0.transmute(self.0.len() / size_of::<T>()) }.unwrap()
    }

    fn view_mut<T: Element>(&mut self) -> CudaViewMut<'_, T> {
        let length = self.0.len() / size_of::<T>();
        // SAFETY: as above.
        unsafe { self.0.transmute_mut(length) }.unwrap()
    }
}

fn on_device<T: HalfElement>(mut rank: Rank, problem: Problem<T>) -> Results
where
    f32: WeightFor<T>,
{
    let stream = rank.stream.clone();
    let download = |bytes: &CudaSlice<u8>| stream.clone_dtoh(bytes).unwrap();
    let Problem { input, residual, weight, bias } = &problem;
    let [input, residual, weight, bias, mut output, mut sum] =
        [input, residual, weight, bias, input, input].map(|values| Uploaded::new(&stream, values));
    let (given, index) = (stream.clone_htod(&[GIVEN]).unwrap(), stream.clone_htod(&INDEX).unwrap());
    let expert_weights = stream.clone_htod(&EXPERT_WEIGHTS).unwrap();
    let communicator = &mut rank.communicator;
    let norm = RmsNorm::new(1e-5);
    let mut results = vec![];
    for &format in QuantFormat::ALL {
        for is_asked in [false, true] {
            let mut codes = stream.alloc_zeros::<u8>(format.code_bytes(ROWS, COLUMNS)).unwrap();
            // There is no memory of no bytes.
            let length = format.scale_bytes(ROWS, COLUMNS);
            let mut scales = stream.alloc_zeros::<u8>(length.max(1)).unwrap();
            fn rows<'a>(
                format: QuantFormat,
                codes: &'a mut CudaSlice<u8>,
                scales: CudaViewMut<'a, u8>,
                given: &'a CudaSlice<f32>,
            ) -> cuda::Quantised<'a> {
                let mut rows = cuda::Quantised::new(format, codes.as_view_mut());
                if format != QuantFormat::Fp8Static {
                    rows = rows.with_scales(scales);
                }
                if format.takes_scale() { rows.with_scale(given.as_view()) } else { rows }
            }
            let asked = is_asked.then(|| sum.view_mut::<T>());
            let of_sum = rows(format, &mut codes, scales.slice_mut(..length), &given);
            communicator.all_reduce_quant(&input.view::<T>(), COLUMNS, of_sum, asked, &stream).unwrap();
            results.extend([download(&codes), download(&scales)[..length].to_vec(), download(&sum.0)]);
            let added = is_asked.then(|| residual.view::<T>());
            let asked = is_asked.then(|| output.view_mut::<T>());
            let of_rows = rows(format, &mut codes, scales.slice_mut(..length), &given);
            let (input, weight, mut sum_view) = (input.view::<T>(), weight.view::<T>(), sum.view_mut::<T>());
            communicator
                .all_reduce_rms_norm_quant(&input, added, &weight, of_rows, (asked, &mut sum_view), norm, &stream)
                .unwrap();
            results.extend([download(&codes), download(&scales)[..length].to_vec()]);
            results.extend([download(&output.0), download(&sum.0)]);
        }
    }
    for is_asked in [true, false] {
        let parameters = (&weight.view::<T>(), is_asked.then(|| bias.view::<T>()));
        let added = is_asked.then(|| residual.view::<T>());
        let outputs = (&mut output.view_mut::<T>(), &mut sum.view_mut::<T>());
        let norm = LayerNorm::new(1e-5);
        communicator.all_reduce_layer_norm_into(&input.view::<T>(), added, parameters, outputs, norm, &stream).unwrap();
        results.extend([download(&output.0), download(&sum.0)]);
    }
    for is_asked in [false, true] {
        let chosen = (index.as_view(), expert_weights.as_view());
        let mut experts = cuda::Experts::new(input.view::<T>(), COLUMNS, chosen, 2);
        if is_asked {
            experts = experts.with_shared(residual.view::<T>());
        }
        communicator.moe_finalize_all_reduce(&experts, &mut output.view_mut::<T>(), &stream).unwrap();
        results.push(download(&output.0));
        let added = is_asked.then(|| residual.view::<T>());
        let (outputs, weight) = ((&mut output.view_mut::<T>(), &mut sum.view_mut::<T>()), weight.view::<T>());
        communicator.moe_finalize_all_reduce_rms_norm(&experts, added, &weight, outputs, norm, &stream).unwrap();
        results.extend([download(&output.0), download(&sum.0)]);
    }
    communicator.synchronize().unwrap();
    results
}

fn compare<T: HalfElement>(of: impl Fn(f32) -> T + Sync)
where
    f32: WeightFor<T>,
{
    let _standin = Standin::take();
    let found = communicate(2, options(), |rank| {
        let problem = Problem::new(rank.number(), &of);
        on_device(rank, problem)
    });
    let expected = on_host(2, |rank| Problem::new(rank, &of));
    let (found, expected): (Vec<_>, Vec<_>) =
        (found.into_iter().flatten().collect(), expected.into_iter().flatten().collect());
    assert_eq!(found.len(), expected.len());
    for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(found, expected, "result {at}");
    }
}

#[test]
fn fused_operations_have_the_results_of_the_host() {
    compare(f16::from_f32);
    compare(bf16::from_f32);
}

#[test]
fn buffers_of_fused_operations_are_of_the_communicators_context() {
    let _standin = Standin::take();
    communicate(2, options(), |mut rank| {
        let stream = rank.stream.clone();
        let other = CudaContext::new(rank.number()).unwrap().new_stream().unwrap();
        let (input, elsewhere) = (Uploaded::new(&stream, &[bf16::ONE; 128]), Uploaded::new(&other, &[bf16::ONE; 128]));
        let mut output = Uploaded::new(&stream, &[bf16::ONE; 128]);
        let given = [stream.clone_htod(&[1.0_f32]).unwrap(), other.clone_htod(&[1.0_f32]).unwrap()];
        let mut codes = [stream.alloc_zeros::<u8>(128).unwrap(), other.alloc_zeros::<u8>(128).unwrap()];
        let mut scales = other.alloc_zeros::<u8>(4).unwrap();
        let index = [stream.clone_htod(&[0_i32]).unwrap(), other.clone_htod(&[0_i32]).unwrap()];
        let communicator = &mut rank.communicator;
        let refuse = |name: &str, outcome: lamport_rs::Result<()>| {
            let error = outcome.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Argument, "{error}");
            assert!(error.to_string().starts_with(&format!("{name} is of a context of cuda:")), "{error}");
        };
        for (at, name) in [(0, "the scale"), (1, "the buffer of codes")] {
            let rows = cuda::Quantised::new(QuantFormat::Fp8Static, codes[at].as_view_mut());
            let rows = rows.with_scale(given[1].as_view());
            refuse(name, communicator.all_reduce_quant(&input.view::<bf16>(), 128, rows, None, &stream));
        }
        let rows = cuda::Quantised::new(QuantFormat::Fp8Token, codes[0].as_view_mut());
        let rows = rows.with_scales(scales.as_view_mut());
        refuse("the buffer of scales", communicator.all_reduce_quant(&input.view::<bf16>(), 128, rows, None, &stream));
        for (rows, at, name) in [(&elsewhere, 0, "the buffer of experts' rows"), (&input, 1, "the index")] {
            let chosen = (index[at].as_view(), given[at].as_view());
            let experts = cuda::Experts::new(rows.view::<bf16>(), 128, chosen, 1);
            refuse(name, communicator.moe_finalize_all_reduce(&experts, &mut output.view_mut(), &stream));
        }
        let chosen = (index[0].as_view(), given[0].as_view());
        let experts = cuda::Experts::new(input.view::<bf16>(), 128, chosen, 1).with_shared(elsewhere.view());
        let outcome = communicator.moe_finalize_all_reduce(&experts, &mut output.view_mut(), &stream);
        refuse("the buffer of shared rows", outcome);
    });
}
