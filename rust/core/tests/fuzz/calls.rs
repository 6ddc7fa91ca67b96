//! Operations of a rank, whose peers send what they like.

use lamport_rs_core::error::Result;
use lamport_rs_core::operations::all_reduce::AllReduce;
use lamport_rs_core::operations::all_reduce_quant::AllReduceQuant;
use lamport_rs_core::operations::layer_norm::AllReduceLayerNorm;
use lamport_rs_core::operations::minimax::{MinimaxRms, Norm};
use lamport_rs_core::operations::operands::OnDevice;
use lamport_rs_core::operations::quantised::Quantised;
use lamport_rs_core::operations::rms_norm::AllReduceRmsNorm;
use lamport_rs_core::operations::rms_norm_quant::{AllReduceRmsNormQuant, Sink};
use lamport_rs_core::tensor::{Dimensions, Dtype, Tensor};
use lamport_rs_protocol::algorithm::Algorithm;
use lamport_rs_protocol::header::Header;
use proptest::prelude::*;
use proptest::sample::select;

use crate::standin::either::{Either, TestTensor};

/// Rows and columns: of one scale and of several, of one part of a message and of several.
const SHAPES: [[usize; 2]; 3] = [[2, 128], [1, 384], [3, 640]];
/// Elements behind a result, which nobody may write.
const GUARDED: usize = 64;

/// Which operation.
#[derive(Clone, Copy, Debug)]
pub enum Which {
    Sum,
    Norm,
    Minimax,
    MinimaxOfTwo,
    Quant(Sink),
    NormQuant(Sink),
    LayerNorm,
}

/// An operation of one size. Where the host has one algorithm, that is taken.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub which: Which,
    pub algorithm: Algorithm,
    pub shape: [usize; 2],
}

/// What came of a call.
pub struct Called {
    header: Header,
    pub outcome: Result<()>,
    /// Of a sum: what was put into it, and what came out.
    pub sum: Option<[Vec<u8>; 2]>,
}

/// All operations.
fn all() -> Vec<Which> {
    [Which::Sum, Which::Norm, Which::LayerNorm, Which::Minimax, Which::MinimaxOfTwo]
        .into_iter()
        .chain(Sink::ALL.map(Which::Quant))
        .chain(Sink::ALL.map(Which::NormQuant))
        .collect()
}

/// Every call.
pub fn every() -> impl Iterator<Item = Call> {
    let of_which = |which| SHAPES.into_iter().map(move |shape| (which, shape));
    let of_size = |(which, shape)| Algorithm::ALL.into_iter().map(move |algorithm| Call { which, algorithm, shape });
    all().into_iter().flat_map(of_which).flat_map(of_size)
}

pub fn calls() -> impl Strategy<Value = Call> {
    let which = prop_oneof![1 => Just(Which::Sum), 1 => select(all())];
    (which, select(Algorithm::ALL.to_vec()), select(SHAPES.to_vec())).prop_map(|(which, algorithm, shape)| Call {
        which,
        algorithm,
        shape,
    })
}

/// A result in a tensor that is longer.
struct Guarded {
    tensor: TestTensor,
    shape: [usize; 2],
    strides: [usize; 2],
    /// What lies behind it.
    behind: Vec<u8>,
    bytes: usize,
}

impl Guarded {
    fn new(either: Option<Either<'_>>, dtype: Dtype, shape: [usize; 2], strides: [usize; 2]) -> Self {
        let is_empty = shape.contains(&0);
        let elements = if is_empty { 0 } else { (shape[0] - 1) * strides[0] + (shape[1] - 1) * strides[1] + 1 };
        let bytes = elements * dtype.size();
        let tensor = tensor_of(either, dtype, &[elements + GUARDED]);
        let behind = tensor.bytes()[bytes..].to_vec();
        Self { tensor, shape, strides, behind, bytes }
    }

    /// The scales of `sink`, where they lie.
    fn scales(either: Option<Either<'_>>, sink: Sink, [rows, columns]: [usize; 2]) -> Self {
        let elements = sink.scale_elements(columns);
        let strides = sink.element_strides(rows, elements);
        Self::new(either, sink.format().scale, [sink.scale_rows(rows), elements], strides)
    }

    fn tensor(&mut self) -> Tensor {
        let of = |numbers| Dimensions::new(numbers).unwrap();
        Tensor { shape: of(self.shape), strides: of(self.strides), ..self.tensor.tensor() }
    }

    fn check(&self) {
        assert_eq!(self.tensor.bytes()[self.bytes..], self.behind, "something was written behind the result");
    }
}

/// On the host, if there is no workspace.
fn tensor_of(either: Option<Either<'_>>, dtype: Dtype, shape: &[usize]) -> TestTensor {
    let value = |at| at as f32 - 9.0;
    either.map_or_else(|| TestTensor::on_host(dtype, shape, value), |either| either.tensor(dtype, shape, value))
}

impl Call {
    pub fn run(self, workspace: Either<'_>) -> Called {
        self.run_or_load(Some(workspace), matches!(workspace, Either::Cuda(_)), false)
    }

    /// How ranks tell each other of the first such call.
    pub fn header(self, is_on_device: bool) -> Header {
        self.run_or_load(None, is_on_device, false).header
    }

    /// Loads its kernels, of which the driver has to compile some.
    pub fn load(self, workspace: Either<'_>) {
        // Some sizes have no room in the slots.
        let _ = self.run_or_load(Some(workspace), true, true).outcome;
    }

    fn run_or_load(self, workspace: Option<Either<'_>>, is_on_device: bool, only_loads: bool) -> Called {
        let Self { which, algorithm, shape: [rows, columns] } = self;
        let tensor = |dtype, shape: &[usize]| tensor_of(workspace, dtype, shape);
        let mut tensors = [(); 5].map(|()| tensor(Dtype::BFloat16, &[rows, columns]));
        let [input, residual, output, residual_output, other] = tensors.each_mut().map(TestTensor::tensor);
        let mut weights = [(); 2].map(|()| tensor(Dtype::BFloat16, &[columns]));
        let [weight, other_weight] = weights.each_mut().map(TestTensor::tensor);
        let asked = is_on_device.then_some(algorithm);
        let norm = AllReduceRmsNorm {
            input,
            residual: Some(residual),
            weight,
            epsilon: 1e-6,
            weight_bias: 0.0,
            algorithm: asked,
            output,
            residual_output,
        };
        let sink = if let Which::Quant(sink) | Which::NormQuant(sink) = which { sink } else { Sink::Fp8Static };
        let columns_of_codes = columns / sink.format().columns_per_code;
        let mut codes = Guarded::new(workspace, sink.format().code, [rows, columns_of_codes], [columns_of_codes, 1]);
        let mut scales = Guarded::scales(workspace, sink, self.shape);
        let mut given = tensor(Dtype::Float32, &[1]);
        let scale = sink.format().is_given.then(|| given.tensor());
        let quantised = Quantised { sink, rows: codes.tensor(), scale, scales: scales.tensor() };
        let before = tensors[0].bytes();
        macro_rules! run {
            ($operands:expr, $description:expr) => {{
                let operands = $operands;
                let outcome = match workspace {
                    None => Ok(()),
                    Some(Either::Cuda(workspace)) if only_loads => operands.load(workspace),
                    Some(either) => {
                        let launched = either.run(&operands);
                        launched.and(either.finish())
                    }
                };
                ($description(&operands).header(1), outcome)
            }};
        }
        // Of the host's operations, one has two algorithms.
        let norms_algorithm = asked.unwrap_or(Algorithm::OneShot);
        let (header, outcome) = match which {
            Which::Sum => {
                let sum = AllReduce { input, output, algorithm: Some(algorithm) };
                run!(sum, |sum: &AllReduce| sum.describe(algorithm))
            }
            Which::Norm => run!(norm, |norm: &AllReduceRmsNorm| norm.describe(norms_algorithm)),
            Which::LayerNorm => {
                let norm = AllReduceRmsNorm { algorithm: None, ..norm };
                run!(AllReduceLayerNorm { norm, bias: Some(other_weight) }, AllReduceLayerNorm::describe)
            }
            Which::Minimax => {
                run!(MinimaxRms::one(Norm { input, weight, output }, 1e-6), MinimaxRms::describe)
            }
            Which::MinimaxOfTwo => {
                let second = Norm { input: residual, weight: other_weight, output: other };
                let norms = [Some(Norm { input, weight, output }), Some(second)];
                run!(MinimaxRms { norms, epsilon: 1e-6 }, MinimaxRms::describe)
            }
            Which::Quant(_) => run!(
                AllReduceQuant { input, quantised, sum: other, has_sum: true, algorithm: asked },
                |quant: &AllReduceQuant| quant.describe(norms_algorithm)
            ),
            Which::NormQuant(_) => {
                run!(AllReduceRmsNormQuant { norm, has_output: true, quantised }, |quant: &AllReduceRmsNormQuant| quant
                    .describe(norms_algorithm))
            }
        };
        codes.check();
        scales.check();
        let sum = matches!(which, Which::Sum).then(|| [before, tensors[2].bytes()]);
        Called { header, outcome, sum }
    }
}
