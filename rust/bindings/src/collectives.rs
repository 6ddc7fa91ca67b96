//! The collectives as Python calls them: one description each.
//!
//! A description is the signature of a function of `_core`: an operator's arguments, in its order, and then its outputs.
//! So it is also the operator's schema, and `scripts/core_stub.py` makes the function's types of it.

use lamport_rs_core::operations::all_reduce::AllReduce;
use lamport_rs_core::operations::all_reduce_quant::AllReduceQuant;
use lamport_rs_core::operations::layer_norm::AllReduceLayerNorm;
use lamport_rs_core::operations::minimax::{MinimaxRms, Norm};
use lamport_rs_core::operations::moe_finalize::{Experts, MoeFinalizeAllReduce, MoeFinalizeAllReduceRmsNorm};
use lamport_rs_core::operations::quantised::Quantised;
use lamport_rs_core::operations::rms_norm::AllReduceRmsNorm;
use lamport_rs_core::operations::rms_norm_quant::{AllReduceRmsNormQuant, Sink};
use lamport_rs_core::tensor::Tensor;
use lamport_rs_protocol::algorithm::Algorithm;
use pyo3::prelude::*;

use crate::argument::Argument;
use crate::backend::AnyWorkspace;
use crate::errors::{LamportError, to_python};
use crate::running::run;

/// A collective's name; its arguments: types in an operator's schema, names, and defaults, if there are any; and the names
/// of its outputs.
type Described = (&'static str, Vec<(&'static str, &'static str, Option<&'static str>)>, Vec<&'static str>);

/// Defines functions of `_core`, and `collectives`, which describes them. A body makes a workspace and operands of the
/// arguments.
macro_rules! collectives {
    ($(
        $(#[doc = $doc:literal])+
        fn $name:ident($($argument:ident: $type:ty $(= $default:literal)?),+) -> ($($output:ident),+) $body:block
    )+) => {
        $(
            $(#[doc = $doc])+
            #[pyfunction]
            #[allow(clippy::too_many_arguments, reason = "the operator's signature")]
            pub fn $name<'a, 'py: 'a>(
                py: Python<'py>,
                $($argument: <$type as Argument>::Given<'a, 'py>,)+
                $($output: <Tensor as Argument>::Given<'a, 'py>,)+
            ) -> PyResult<()> {
                $(let $argument = <$type as Argument>::take($argument, stringify!($argument))?;)+
                $(let $output = <Tensor as Argument>::take($output, stringify!($output))?;)+
                let (workspace, operands) = $body;
                // SAFETY: the arguments hold references to the tensors until this function returns, and torch frees
                // tensors in the order of the stream they are used on.
                unsafe { run(py, &workspace, &operands) }
            }
        )+

        /// Adds the functions to `_core`.
        pub fn add_to(module: &Bound<'_, PyModule>) -> PyResult<()> {
            $(module.add_function(wrap_pyfunction!($name, module)?)?;)+
            Ok(())
        }

        /// Every collective: its name, its arguments, and the names of its outputs.
        #[pyfunction]
        pub fn collectives() -> Vec<Described> {
            vec![$((
                stringify!($name),
                vec![$((<$type>::SCHEMA, stringify!($argument), None$(.or(Some($default)))?)),+],
                vec![$(stringify!($output)),+],
            )),+]
        }
    };
}

collectives! {
    /// `out = sum over ranks of input`.
    fn all_reduce(
        input: Tensor,
        workspace: AnyWorkspace,
        algorithm: Option<Algorithm> = "\"auto\""
    ) -> (out) {
        (workspace, AllReduce { input, output: out, algorithm })
    }

    /// `residual_out = sum over ranks of input + residual`, `out = rms_norm(residual_out) * (weight + weight_bias)`.
    fn all_reduce_rms_norm(
        input: Tensor,
        residual: Option<Tensor>,
        weight: Tensor,
        workspace: AnyWorkspace,
        eps: f32 = "1e-06",
        weight_bias: f32 = "0.0",
        algorithm: Option<Algorithm> = "\"auto\""
    ) -> (out, residual_out) {
        let (output, residual_output) = (out, residual_out);
        let norm =
            AllReduceRmsNorm { input, residual, weight, epsilon: eps, weight_bias, algorithm, output, residual_output };
        (workspace, norm)
    }

    /// Likewise, and `out` is the normalised rows as `quant_format` has them, with their scales in `scale_out`, if any
    /// are computed; `norm_out` these rows as they are, if they are asked for.
    fn all_reduce_rms_norm_quant(
        input: Tensor,
        residual: Option<Tensor>,
        weight: Tensor,
        workspace: AnyWorkspace,
        quant_format: Sink,
        scale: Option<Tensor> = "None",
        eps: f32 = "1e-06",
        weight_bias: f32 = "0.0",
        with_norm: bool = "False",
        algorithm: Option<Algorithm> = "\"auto\""
    ) -> (out, scale_out, residual_out, norm_out) {
        let (output, residual_output) = (norm_out, residual_out);
        let norm =
            AllReduceRmsNorm { input, residual, weight, epsilon: eps, weight_bias, algorithm, output, residual_output };
        let quantised = Quantised { sink: quant_format, rows: out, scale, scales: scale_out };
        (workspace, AllReduceRmsNormQuant { norm, has_output: with_norm, quantised })
    }

    /// `residual_out = sum over ranks of input + residual`, `out = layer_norm(residual_out) * weight + bias`.
    fn all_reduce_layer_norm(
        input: Tensor,
        residual: Option<Tensor>,
        weight: Tensor,
        workspace: AnyWorkspace,
        bias: Option<Tensor> = "None",
        eps: f32 = "1e-05",
        algorithm: Option<Algorithm> = "\"auto\""
    ) -> (out, residual_out) {
        let (weight_bias, output, residual_output) = (0.0, out, residual_out);
        let norm =
            AllReduceRmsNorm { input, residual, weight, epsilon: eps, weight_bias, algorithm, output, residual_output };
        (workspace, AllReduceLayerNorm { norm, bias })
    }

    /// `sum_out = sum over ranks of input`, if it is asked for, and `out` is this sum as `quant_format` has it, with its
    /// scales in `scale_out`, if any are computed.
    fn all_reduce_quant(
        input: Tensor,
        workspace: AnyWorkspace,
        quant_format: Sink,
        scale: Option<Tensor> = "None",
        with_sum: bool = "False",
        algorithm: Option<Algorithm> = "\"auto\""
    ) -> (out, scale_out, sum_out) {
        let quantised = Quantised { sink: quant_format, rows: out, scale, scales: scale_out };
        (workspace, AllReduceQuant { input, quantised, sum: sum_out, has_sum: with_sum, algorithm })
    }

    /// `out = sum over ranks of rows`, each of which is the sum of `expert_rows` at `row_index`, times `expert_weights`, and
    /// of `shared_rows`.
    fn moe_finalize_all_reduce(
        expert_rows: Tensor,
        row_index: Tensor,
        expert_weights: Tensor,
        workspace: AnyWorkspace,
        shared_rows: Option<Tensor> = "None"
    ) -> (out) {
        let experts = Experts { rows: expert_rows, index: row_index, weights: expert_weights, shared: shared_rows };
        (workspace, MoeFinalizeAllReduce::new(experts, out))
    }

    /// Likewise, `residual_out = that sum + residual`, and `out = rms_norm(residual_out) * (weight + weight_bias)`.
    fn moe_finalize_all_reduce_rms_norm(
        expert_rows: Tensor,
        row_index: Tensor,
        expert_weights: Tensor,
        residual: Option<Tensor>,
        weight: Tensor,
        workspace: AnyWorkspace,
        shared_rows: Option<Tensor> = "None",
        eps: f32 = "1e-06",
        weight_bias: f32 = "0.0"
    ) -> (out, residual_out) {
        let experts = Experts { rows: expert_rows, index: row_index, weights: expert_weights, shared: shared_rows };
        let (input, output, residual_output, algorithm) = (out, out, residual_out, None);
        let norm =
            AllReduceRmsNorm { input, residual, weight, epsilon: eps, weight_bias, algorithm, output, residual_output };
        (workspace, MoeFinalizeAllReduceRmsNorm::new(experts, norm))
    }

    /// The norm of rows that are spread over the ranks. `rank` and `nranks` are checked against the workspace.
    fn minimax_allreduce_rms(
        input: Tensor,
        norm_weight: Tensor,
        workspace: AnyWorkspace,
        rank: i64,
        nranks: i64,
        eps: f32
    ) -> (out) {
        check_member(&workspace, rank, nranks)?;
        (workspace, MinimaxRms::one(Norm { input, weight: norm_weight, output: out }, eps))
    }

    /// Likewise for Q and K out of a packed qkv.
    fn minimax_allreduce_rms_qk(
        qkv: Tensor,
        norm_weight_q: Tensor,
        norm_weight_k: Tensor,
        workspace: AnyWorkspace,
        q_size: i64,
        kv_size: i64,
        rank: i64,
        nranks: i64,
        eps: f32
    ) -> (q_out, k_out) {
        check_member(&workspace, rank, nranks)?;
        let (weights, outputs) = ([norm_weight_q, norm_weight_k], [q_out, k_out]);
        let operands = MinimaxRms::packed(qkv, [q_size, kv_size], weights, outputs, eps);
        (workspace, operands.map_err(|error| Python::attach(|py| to_python(py, error)))?)
    }
}

fn check_member(workspace: &AnyWorkspace, rank: i64, world_size: i64) -> PyResult<()> {
    let member = workspace.member();
    let expected = (member.rank as i64, member.geometry.world_size() as i64);
    if (rank, world_size) == expected {
        return Ok(());
    }
    let (own_rank, own_size) = expected;
    Err(LamportError::new_err(format!(
        "rank {rank} of {world_size} was asked for, but the workspace is that of rank {own_rank} of {own_size}"
    )))
}
