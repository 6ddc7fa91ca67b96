//! The all-reduces of rows that experts made.

use std::rc::Rc;

use lamport_rs_kernels::parameters::{Experts, MoeFinalizeParameters};
use lamport_rs_kernels::plan::one_shot_rows::{OneShotRows, OneShotRowsShape};
use lamport_rs_kernels::plan::rms_norm::{AllReduceRmsNormPlan, AllReduceRmsNormTensors};
use lamport_rs_kernels::{Dtype, ModuleKey};
use lamport_rs_protocol::algorithm::Algorithm;

use super::rms_norm::{self, AllReduceRmsNorm, EPSILON, WEIGHT_BIAS};
use crate::machine::{Kernels, Kind, Machine};
use crate::memory::Memory;
use crate::operations::{Inputs, Operation, Prepared, Setting, declare};
use crate::values::{Random, Values, decode, elements, encode, tensor, to_bytes};
use crate::workspace::Member;

/// `norm.tokens` rows that are made of experts' rows.
#[derive(Clone, Copy, Debug)]
pub struct MoeFinalize {
    /// What follows, not in place; where it is only the sum, without a residual.
    pub norm: AllReduceRmsNorm,
    /// Whether that is more than the sum.
    pub is_normalised: bool,
    /// Experts of a token.
    pub per_token: usize,
    /// Of the experts' weights.
    pub expert_weight: Dtype,
    pub has_shared: bool,
}

/// What a rank's experts made. Ranks differ in how much that is.
struct RankExperts {
    rows: Memory,
    row_count: usize,
    index: Memory,
    weights: Memory,
    shared: Memory,
}

struct Tensors {
    operation: MoeFinalize,
    plan: AllReduceRmsNormPlan,
    experts: Vec<RankExperts>,
    /// The inputs are what finalisation must make of the experts' rows: no kernel is told of them.
    norm: rms_norm::Tensors,
}

impl MoeFinalize {
    /// Of bfloat16, with two experts for each token.
    pub fn of(is_normalised: bool, tokens: usize, hidden: usize) -> Self {
        let algorithm = Algorithm::OneShot;
        let (dtype, weight, has_residual, in_place) = (Dtype::BFloat16, Dtype::BFloat16, is_normalised, false);
        let norm = AllReduceRmsNorm { algorithm, dtype, weight, tokens, hidden, has_residual, in_place };
        Self { norm, is_normalised, per_token: 2, expert_weight: Dtype::Float32, has_shared: true }
    }

    fn plan(&self, setting: &Setting) -> AllReduceRmsNormPlan {
        let operation = if self.is_normalised { OneShotRows::MoeFinalizeRmsNorm } else { OneShotRows::MoeFinalize };
        OneShotRowsShape { norm: self.norm.shape(setting), operation }
            .plan(setting.device)
            .expect("the case has a plan")
    }

    fn experts(&self, random: &mut Random, rank: usize) -> RankExperts {
        let AllReduceRmsNorm { dtype, tokens, hidden, .. } = self.norm;
        // None at all on the last of three ranks.
        let row_count = if rank == 2 { 0 } else { tokens + rank };
        let entries = tokens * self.per_token;
        let mut weights =
            elements(self.expert_weight, &tensor(random, self.expert_weight, self.per_token, entries, Values::Finite));
        let index: Vec<i32> = (0..entries)
            .map(|entry| {
                if row_count == 0 || random.below(4) == 0 {
                    // What nobody looks at.
                    weights[entry] = encode(self.expert_weight, f32::NAN);
                    return -1;
                }
                random.below(row_count) as i32
            })
            .collect();
        let mut index = index;
        // One row of many has a number that is none, and so no result.
        if rank == 0 && tokens > 8 {
            index[7 * self.per_token] = [row_count as i32, -2, i32::MAX, i32::MIN][random.below(4)];
        }
        RankExperts {
            rows: Memory::of_bytes(&tensor(random, dtype, hidden, row_count * hidden, Values::Finite)),
            row_count,
            index: Memory::of_words(index.into_iter().map(|index| index as u32)),
            weights: Memory::of_bytes(&to_bytes(self.expert_weight, &weights)),
            shared: Memory::of_bytes(&tensor(random, dtype, hidden, tokens * hidden, Values::Finite)),
        }
    }

    /// A shared expert, on some ranks.
    fn has_shared(&self, rank: usize) -> bool {
        self.has_shared && rank != 1
    }

    /// The definition.
    fn finalised(&self, experts: &RankExperts, rank: usize) -> Vec<u8> {
        let AllReduceRmsNorm { dtype, tokens, hidden, .. } = self.norm;
        let numbers = |dtype, memory: &Memory| -> Vec<f32> {
            elements(dtype, &memory.bytes()).into_iter().map(|bits| decode(dtype, bits)).collect()
        };
        let (rows, shared) = (numbers(dtype, &experts.rows), numbers(dtype, &experts.shared));
        let weights = numbers(self.expert_weight, &experts.weights);
        let index = experts.index.words();
        let mut finalised = Vec::new();
        for token in 0..tokens {
            for column in 0..hidden {
                let mut sum = 0.0_f32;
                for entry in token * self.per_token..(token + 1) * self.per_token {
                    let number = index[entry] as i32;
                    let is_row = number >= 0 && (number as usize) < experts.row_count;
                    if is_row {
                        let product = weights[entry] * rows[number as usize * hidden + column];
                        sum += product;
                    } else if number != -1 {
                        sum = f32::NAN;
                    }
                }
                if self.has_shared(rank) {
                    sum += shared[token * hidden + column];
                }
                finalised.push(encode(dtype, sum));
            }
        }
        to_bytes(dtype, &finalised)
    }
}

impl Operation for MoeFinalize {
    fn module(&self, setting: &Setting) -> ModuleKey {
        self.plan(setting).launch.module
    }

    fn prepare(&self, setting: &Setting, random: &mut Random, _: Option<&dyn Prepared>) -> Box<dyn Prepared> {
        let experts: Vec<_> = setting.ranks().map(|rank| self.experts(random, rank)).collect();
        let mut norm = self.norm.tensors(setting, random, None);
        let finalised: Vec<_> = setting.ranks().map(|rank| self.finalised(&experts[rank], rank)).collect();
        norm.inputs = Inputs { originals: Some(finalised), ..norm.inputs };
        Box::new(Tensors { operation: *self, plan: self.plan(setting), experts, norm })
    }

    fn region_bytes(&self, setting: &Setting) -> Option<usize> {
        self.norm.region_bytes(setting)
    }
}

impl Prepared for Tensors {
    fn launch(&self, machine: &mut Machine, kernels: &Kernels, rank: usize, member: &Member) {
        let tensors = self.norm.declare(machine, rank);
        let RankExperts { rows, row_count, index, weights, shared } = &self.experts[rank];
        declare(
            machine,
            rank,
            &[
                ("expert rows", rows, Kind::Input),
                ("index", index, Kind::Input),
                ("expert weights", weights, Kind::Input),
                ("shared rows", shared, Kind::Input),
            ],
        );
        let MoeFinalize { norm, is_normalised, per_token, expert_weight, .. } = self.operation;
        let experts = Experts {
            rows: rows.address(),
            index: index.address(),
            weights: weights.address(),
            shared_rows: if self.operation.has_shared(rank) { shared.address() } else { 0 },
            row_count: *row_count as u32,
            per_token: per_token as u32,
            has_float32_weights: u32::from(expert_weight != norm.dtype),
            reserved: 0,
        };
        let (tensors, epsilon, weight_bias) = if is_normalised {
            (AllReduceRmsNormTensors { input: 0, ..tensors }, EPSILON, WEIGHT_BIAS)
        } else {
            let output = tensors.residual_output;
            let none = AllReduceRmsNormTensors { input: 0, residual: None, weight: 0, output, residual_output: 0 };
            (none, 0.0, 0.0)
        };
        let geometry = &self.norm.setting.geometry;
        let base = self.plan.parameters(geometry, member.group, tensors, epsilon, weight_bias);
        let base = base.expect("the case fits into its slots");
        machine.launch(kernels, rank, &self.plan.launch, &MoeFinalizeParameters { base, experts });
    }

    fn check(&self, rank: usize) -> Result<(), String> {
        self.norm.check_sum(rank)?;
        if self.operation.is_normalised { self.norm.check_norm(rank) } else { Ok(()) }
    }

    fn check_spoilt(&self, rank: usize) -> Result<(), String> {
        self.norm.check_sum_spoilt(rank)?;
        if self.operation.is_normalised { self.norm.check_norm_spoilt(rank) } else { Ok(()) }
    }

    fn results(&self, rank: usize) -> Vec<u8> {
        self.norm.results(rank)
    }

    fn is_alike_on_all_ranks(&self) -> bool {
        true
    }

    fn outputs(&self) -> Option<&[Rc<Memory>]> {
        if self.operation.is_normalised { self.norm.outputs() } else { None }
    }
}
