//! The all-reduce with a quantiser.

use std::rc::Rc;

use lamport_rs_kernels::plan::rms_norm::{
    AllReduceRmsNormQuantPlan, AllReduceRmsNormQuantShape, AllReduceRmsNormShape, AllReduceRmsNormTensors,
    QuantisedTensors,
};
use lamport_rs_kernels::sink::ScalePlaces;
use lamport_rs_kernels::{Dtype, ModuleKey, Sink};
use lamport_rs_protocol::algorithm::Algorithm;

use super::rms_norm_quant::{SCALE, check_group, check_quantised_spoilt};
use crate::machine::{Kernels, Kind, Machine};
use crate::memory::Memory;
use crate::operations::{Inputs, Operation, Prepared, Setting, declare};
use crate::values::{Random, Values, check_bits, check_nan, decode, elements, sum, tensor};
use crate::workspace::Member;

/// The sum of `tokens` rows of `hidden` elements, quantised.
#[derive(Clone, Copy, Debug)]
pub struct AllReduceQuant {
    pub algorithm: Algorithm,
    pub dtype: Dtype,
    pub tokens: usize,
    pub hidden: usize,
    pub sink: Sink,
    /// Whether the sum is asked for too.
    pub has_sum: bool,
    /// Whether it replaces the input.
    pub in_place: bool,
}

struct Tensors {
    operation: AllReduceQuant,
    setting: Setting,
    plan: AllReduceRmsNormQuantPlan,
    inputs: Inputs,
    sums: Vec<Rc<Memory>>,
    quantised: Vec<Memory>,
    scales: Vec<Memory>,
    /// The scale that is given.
    given: Vec<Memory>,
}

impl AllReduceQuant {
    fn plan(&self, setting: &Setting) -> AllReduceRmsNormQuantPlan {
        let Self { algorithm, dtype, tokens, hidden, sink, .. } = *self;
        let world_size = setting.geometry.world_size();
        let norm = AllReduceRmsNormShape { tokens, hidden, dtype, weight: dtype, world_size, algorithm };
        let shape = AllReduceRmsNormQuantShape { norm, sink, is_normalised: false };
        shape.plan(setting.device).expect("the case has a plan")
    }

    fn places(&self) -> ScalePlaces {
        self.sink.scale_places(self.tokens, self.hidden)
    }

    /// All of the scales, float32: up to the last one of the last row.
    fn scale_bytes(&self) -> usize {
        let count = self.sink.scales_of_row(self.hidden);
        if count == 0 { 0 } else { self.places().of(self.tokens - 1, count - 1) + size_of::<f32>() }
    }

    /// Scale `index` of a row.
    fn scale(&self, found: &[u8], row: usize, index: usize) -> f32 {
        if self.sink.format().is_given {
            return SCALE;
        }
        let place = self.places().of(row, index);
        f32::from_ne_bytes(found[place..place + 4].try_into().expect("four bytes"))
    }
}

impl Operation for AllReduceQuant {
    fn module(&self, setting: &Setting) -> ModuleKey {
        self.plan(setting).launch.module
    }

    fn prepare(&self, setting: &Setting, random: &mut Random, _: Option<&dyn Prepared>) -> Box<dyn Prepared> {
        let Self { dtype, tokens, hidden, .. } = *self;
        let values = tokens * hidden;
        let make = || tensor(random, dtype, hidden, values, Values::Any);
        let inputs = Inputs::new(setting, values * dtype.size(), None, make);
        let sums = match self.in_place {
            true => inputs.memory.clone(),
            false => setting.ranks().map(|_| Rc::new(Memory::filled(values * dtype.size(), 0xa5))).collect(),
        };
        let of_ranks = |bytes: usize| setting.ranks().map(|_| Memory::filled(bytes, 0xa5)).collect();
        let (quantised, scales) = (of_ranks(values), of_ranks(self.scale_bytes()));
        let given = setting.ranks().map(|_| Memory::of_bytes(&SCALE.to_ne_bytes())).collect();
        let (operation, setting) = (*self, *setting);
        Box::new(Tensors { operation, setting, plan: self.plan(&setting), inputs, sums, quantised, scales, given })
    }

    fn region_bytes(&self, setting: &Setting) -> Option<usize> {
        let row_bytes = self.hidden * self.dtype.size();
        let message = self.algorithm.message_bytes(self.tokens, row_bytes, setting.geometry.world_size());
        Some(setting.geometry.region_bytes(message).expect("the case fits into its slots"))
    }
}

impl Tensors {
    /// Whether the kernel has a place for the sum.
    fn stores_sum(&self) -> bool {
        self.operation.has_sum || !self.plan.is_held()
    }
}

impl Prepared for Tensors {
    fn launch(&self, machine: &mut Machine, kernels: &Kernels, rank: usize, member: &Member) {
        let format = self.operation.sink.format();
        let (scales, given) = (&self.scales[rank], &self.given[rank]);
        let (input, sum) = (&self.inputs.memory[rank], &self.sums[rank]);
        let scale = if format.is_given { ("scale", given, Kind::Weight) } else { ("scales", scales, Kind::Output) };
        declare(
            machine,
            rank,
            &[
                ("quantised", &self.quantised[rank], Kind::Output),
                scale,
                ("sum", sum, Kind::Output),
                ("input", input, Kind::Input),
            ],
        );
        let tensors = AllReduceRmsNormTensors {
            input: input.address(),
            residual: None,
            weight: 0,
            output: 0,
            residual_output: if self.stores_sum() { sum.address() } else { 0 },
        };
        let quantised = QuantisedTensors {
            quantised: self.quantised[rank].address(),
            scales: scales.address(),
            given_scale: format.is_given.then(|| given.address()),
            places: self.operation.places(),
            first_row: 0,
            padding_rows: 0,
        };
        let parameters = self.plan.parameters(&self.setting.geometry, member.group, tensors, quantised, 0.0, 0.0);
        machine.launch(kernels, rank, &self.plan.launch, &parameters.expect("the case fits into its slots"));
    }

    fn check(&self, rank: usize) -> Result<(), String> {
        let AllReduceQuant { dtype, hidden, sink, .. } = self.operation;
        let inputs: Vec<_> = self.setting.ranks().map(|rank| self.inputs.bytes(rank)).collect();
        let expected = sum(dtype, &inputs, None);
        if self.stores_sum() {
            check_bits("the sum", dtype, &self.sums[rank].bytes(), &expected)?;
        }
        let values: Vec<f32> = elements(dtype, &expected).into_iter().map(|bits| decode(dtype, bits)).collect();
        let (codes, scales) = (self.quantised[rank].bytes(), self.scales[rank].bytes());
        let group = sink.columns_of_scale(hidden);
        for (index, (codes, values)) in codes.chunks_exact(group).zip(values.chunks_exact(group)).enumerate() {
            let (row, column) = (index / (hidden / group), index % (hidden / group));
            let scale = self.operation.scale(&scales, row, column);
            check_group(sink, scale, codes, values).map_err(|text| format!("group {column} of row {row}: {text}"))?;
        }
        Ok(())
    }

    fn check_spoilt(&self, rank: usize) -> Result<(), String> {
        let AllReduceQuant { dtype, tokens, hidden, sink, .. } = self.operation;
        if self.stores_sum() {
            check_nan("the sum", dtype, &self.sums[rank].bytes())?;
        }
        let found = self.scales[rank].bytes();
        let of_row = hidden / sink.columns_of_scale(hidden);
        let scale = |group| self.operation.scale(&found, group / of_row, group % of_row);
        check_quantised_spoilt(sink, &self.quantised[rank].bytes(), tokens * of_row, scale)
    }

    fn results(&self, rank: usize) -> Vec<u8> {
        [self.quantised[rank].bytes(), self.scales[rank].bytes(), self.sums[rank].bytes()].concat()
    }

    fn is_alike_on_all_ranks(&self) -> bool {
        // Of an input in the sum's place, only if the sum is stored.
        self.stores_sum() || !self.operation.in_place
    }
}
