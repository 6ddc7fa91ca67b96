//! Operations of a rank on the host, whose peers send what they like.

use lamport_rs_core::error::Result;
use lamport_rs_core::operations::all_reduce::AllReduce;
use lamport_rs_core::operations::all_reduce_quant::AllReduceQuant;
use lamport_rs_core::operations::minimax::{MinimaxRms, Norm};
use lamport_rs_core::operations::quantised::Quantised;
use lamport_rs_core::operations::rms_norm::AllReduceRmsNorm;
use lamport_rs_core::operations::rms_norm_quant::{AllReduceRmsNormQuant, Sink};
use lamport_rs_core::tensor::Dtype;
use lamport_rs_core::workspace::host::HostWorkspace;
use lamport_rs_protocol::algorithm::Algorithm;
use lamport_rs_protocol::header::Header;
use proptest::prelude::*;
use proptest::sample::select;

use crate::standin::either::{Either, TestTensor};

const ROWS: usize = 2;
const COLUMNS: usize = 128;

/// Which operation.
#[derive(Clone, Copy, Debug)]
pub enum Call {
    Sum(Algorithm),
    Norm,
    Minimax,
    Quant(Sink),
    NormQuant(Sink),
}

pub fn calls() -> impl Strategy<Value = Call> {
    let sinks = vec![Sink::Fp8Static, Sink::Fp8Token, Sink::Fp8Group, Sink::Mxfp8, Sink::Nvfp4];
    prop_oneof![
        2 => select(Algorithm::ALL.to_vec()).prop_map(Call::Sum),
        1 => Just(Call::Norm),
        1 => Just(Call::Minimax),
        1 => select(sinks[..3].to_vec()).prop_map(Call::Quant),
        2 => select(sinks).prop_map(Call::NormQuant),
    ]
}

impl Call {
    /// Runs it. If there is no workspace, only says how ranks tell each other of the first such call.
    pub fn run(self, workspace: Option<&HostWorkspace>) -> (Header, Result<()>) {
        let tensor = |dtype, shape: &[usize]| TestTensor::on_host(dtype, shape, |at| at as f32 - 9.0);
        let mut rows = [(); 5].map(|()| tensor(Dtype::BFloat16, &[ROWS, COLUMNS]));
        let [input, residual, output, residual_output, unused] = rows.each_mut().map(TestTensor::tensor);
        let mut weight = tensor(Dtype::BFloat16, &[COLUMNS]);
        let algorithm = if let Self::Sum(algorithm) = self { algorithm } else { Algorithm::OneShot };
        let norm = AllReduceRmsNorm {
            input,
            residual: Some(residual),
            weight: weight.tensor(),
            epsilon: 1e-6,
            weight_bias: 0.0,
            algorithm: None,
            output,
            residual_output,
        };
        let format = |sink: Sink| sink.format();
        let sink = if let Self::Quant(sink) | Self::NormQuant(sink) = self { sink } else { Sink::Fp8Static };
        let mut codes = tensor(format(sink).code, &[ROWS, COLUMNS / format(sink).columns_per_code]);
        let mut scales = tensor(format(sink).scale, &[ROWS, sink.scales_of_row(COLUMNS)]);
        let mut given = tensor(Dtype::Float32, &[1]);
        let scale = format(sink).is_given.then(|| given.tensor());
        let quantised = Quantised { sink, rows: codes.tensor(), scale, scales: scales.tensor() };
        macro_rules! run {
            ($operands:expr, $description:expr) => {{
                let operands = $operands;
                let outcome = workspace.map_or(Ok(()), |workspace| Either::Host(workspace).run(&operands));
                ($description(&operands).header(1), outcome)
            }};
        }
        match self {
            Self::Sum(_) => {
                run!(AllReduce { input, output, algorithm: Some(algorithm) }, |all: &AllReduce| all.describe(algorithm))
            }
            Self::Norm => run!(norm, |norm: &AllReduceRmsNorm| norm.describe(algorithm)),
            Self::Minimax => {
                let norm = Norm { input, weight: weight.tensor(), output };
                run!(MinimaxRms::one(norm, 1e-6), MinimaxRms::describe)
            }
            Self::Quant(_) => run!(
                AllReduceQuant { input, quantised, sum: unused, has_sum: true, algorithm: None },
                |quant: &AllReduceQuant| quant.describe(algorithm)
            ),
            Self::NormQuant(_) => {
                run!(AllReduceRmsNormQuant { norm, has_output: true, quantised }, |quant: &AllReduceRmsNormQuant| quant
                    .describe(algorithm))
            }
        }
    }
}
