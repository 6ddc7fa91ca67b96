//! Plans for the all-reduce with a residual and RMSNorm.

use lamport_rs_protocol::algorithm::Algorithm;
use lamport_rs_protocol::geometry::{Geometry, GeometryError};
use lamport_rs_protocol::sentinel::VECTOR_BYTES;

use crate::catalogue::{AllReduceRmsNormKernel, ModuleKey};
use crate::dtype::Dtype;
use crate::parameters::{
    AllReduceRmsNormParameters, AllReduceRmsNormQuantBlocksParameters, AllReduceRmsNormQuantParameters, Group, RmsNorm,
};
use crate::plan::{Device, LaunchPlan, PlanError, all_reduce, check_bytes, check_weight, reduction_grid, row_vectors};
use crate::sink::{Family, ScalePlaces, Sink};
use crate::variants::{WARP_THREADS, capacity};

/// Bytes of rows of `row_bytes` bytes from which two-shot is faster than one-shot: as measured for groups of up to four
/// ranks with rows of 4, 8 and 16 KiB, and as for the all-reduce for larger ones. Never with two ranks, which would wait
/// for each other row by row and gain nothing.
pub fn two_shot_from(world_size: usize, row_bytes: usize) -> usize {
    const SHORT: usize = 6 << 10;
    const MIDDLE: usize = 12 << 10;
    match (world_size, row_bytes) {
        (..=2, _) => usize::MAX,
        (3, ..SHORT) => 84 * (4 << 10),
        (3, SHORT..MIDDLE) => 42 * (8 << 10),
        (3, _) => 21 * (16 << 10),
        (4, ..SHORT) => 44 * (4 << 10),
        (4, SHORT..MIDDLE) => 24 * (8 << 10),
        (4, _) => 13 * (16 << 10),
        _ => all_reduce::two_shot_from(world_size),
    }
}

/// Whether `tokens` rows can be reduced in two shots: only if every rank owns one. Otherwise two ranks without a row would
/// hear of each other through an owner only, which the protocol's proof does not cover.
pub fn has_two_shot(tokens: usize, world_size: usize) -> bool {
    tokens >= world_size
}

/// An all-reduce of rows with a residual and RMSNorm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AllReduceRmsNormShape {
    /// Rows.
    pub tokens: usize,
    /// Columns.
    pub hidden: usize,
    /// Of inputs and outputs.
    pub dtype: Dtype,
    /// Of the weights.
    pub weight: Dtype,
    /// The group's size.
    pub world_size: usize,
    /// How to reduce.
    pub algorithm: Algorithm,
}

/// An all-reduce of rows with a quantiser, behind a residual and RMSNorm or without these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AllReduceRmsNormQuantShape {
    /// The rows.
    pub norm: AllReduceRmsNormShape,
    /// The quantiser.
    pub sink: Sink,
    /// Whether there are a residual and a norm. If not, the weights' dtype is the rows'.
    pub is_normalised: bool,
}

/// Its launch, and how the rows are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllReduceRmsNormQuantPlan {
    /// The launch.
    pub launch: LaunchPlan,
    norm: AllReduceRmsNormPlan,
    sink: Sink,
}

impl AllReduceRmsNormQuantShape {
    /// Whether there is a plan.
    pub fn check(&self) -> Result<(), PlanError> {
        let AllReduceRmsNormShape { hidden, dtype, .. } = self.norm;
        if dtype.size() != 2 || !hidden.is_multiple_of(self.sink.column_multiple()) {
            return Err(PlanError::Quantised {
                width: hidden,
                dtype: dtype.name(),
                format: self.sink.name(),
                multiple: self.sink.column_multiple(),
            });
        }
        self.norm.check()
    }

    /// Plans the launch.
    pub fn plan(&self, device: Device) -> Result<AllReduceRmsNormQuantPlan, PlanError> {
        self.check()?;
        let module = match (self.is_normalised, self.sink.format().family) {
            (true, Family::Float32Scales) => ModuleKey::AllReduceRmsNormQuant,
            (true, Family::ByteScales) => ModuleKey::AllReduceRmsNormQuantBlocks,
            (false, Family::Float32Scales) => ModuleKey::AllReduceQuant,
            (false, Family::ByteScales) => ModuleKey::AllReduceQuantBlocks,
        };
        let norm = self.norm.plan_of(module, device)?;
        Ok(AllReduceRmsNormQuantPlan { launch: norm.launch, norm, sink: self.sink })
    }
}

impl AllReduceRmsNormQuantPlan {
    /// Whether the kernel holds rows in registers. If not, it needs a place for the sum.
    pub fn is_held(&self) -> bool {
        matches!(
            self.launch.module,
            ModuleKey::AllReduceRmsNormQuant(kernel)
                | ModuleKey::AllReduceRmsNormQuantBlocks(kernel)
                | ModuleKey::AllReduceQuant(kernel)
                | ModuleKey::AllReduceQuantBlocks(kernel) if kernel.vectors > 0
        )
    }

    /// The parameters of a kernel whose scales are float32; `tensors.output` is 0 if the normalised rows are not asked
    /// for. Where there is no norm, there are an input and a place for the sum, or 0, and nothing else. An error if the
    /// group's slots are too small.
    pub fn parameters(
        &self,
        geometry: &Geometry,
        group: Group,
        tensors: AllReduceRmsNormTensors,
        quantised: QuantisedTensors,
        epsilon: f32,
        weight_bias: f32,
    ) -> Result<AllReduceRmsNormQuantParameters, GeometryError> {
        let QuantisedTensors { quantised, scales, given_scale, places, first_row, .. } = quantised;
        Ok(AllReduceRmsNormQuantParameters {
            base: self.norm.parameters(geometry, group, tensors, epsilon, weight_bias)?,
            quantised,
            scales: given_scale.unwrap_or(scales + places.of(first_row, 0) as u64),
            format: self.sink.format().in_kernel as u32,
            row_scales: self.sink.padded_scales_of_row(self.norm.shape.hidden) as u32,
            scale_row_stride: (places.row / size_of::<f32>()) as u32,
            scale_stride: (places.scale / size_of::<f32>()) as u32,
        })
    }

    /// Likewise of a kernel whose scales are bytes.
    pub fn block_parameters(
        &self,
        geometry: &Geometry,
        group: Group,
        tensors: AllReduceRmsNormTensors,
        quantised: QuantisedTensors,
        epsilon: f32,
        weight_bias: f32,
    ) -> Result<AllReduceRmsNormQuantBlocksParameters, GeometryError> {
        let QuantisedTensors { scales, given_scale, places, first_row, padding_rows, .. } = quantised;
        let base = self.parameters(geometry, group, tensors, quantised, epsilon, weight_bias)?;
        let (scale_row_stride, scale_stride) = (places.row as u32, places.scales_4 as u32);
        Ok(AllReduceRmsNormQuantBlocksParameters {
            base: AllReduceRmsNormQuantParameters { scales, scale_row_stride, scale_stride, ..base },
            given_scale: given_scale.unwrap_or(0),
            first_row: first_row as u32,
            scale_rows_32_stride: places.rows_32 as u32,
            scale_rows_128_stride: places.rows_128 as u32,
            padding_rows: padding_rows as u32,
        })
    }
}

/// Where the results of a quantiser go on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuantisedTensors {
    /// The quantised rows, contiguous, at a multiple of 16 bytes.
    pub quantised: u64,
    /// The scales of the whole tensor, of which these may be some rows.
    pub scales: u64,
    /// The tensor's scale, if one is given.
    pub given_scale: Option<u64>,
    /// Where each scale is: [`Sink::scale_places`] of the whole tensor.
    pub places: ScalePlaces,
    /// In the whole tensor: the number of the first of these rows.
    pub first_row: usize,
    /// Behind these rows: rows that only the tensor of scales has.
    pub padding_rows: usize,
}

/// Where the tensors are on the device. All are contiguous and begin at multiples of 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllReduceRmsNormTensors {
    /// The rows to sum.
    pub input: u64,
    /// Added to the sum, if there is one.
    pub residual: Option<u64>,
    /// One weight per column.
    pub weight: u64,
    /// Where the normalised rows go. May be the input.
    pub output: u64,
    /// Where the sum goes. May be the residual.
    pub residual_output: u64,
}

/// A launch, and how the rows are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllReduceRmsNormPlan {
    /// The launch.
    pub launch: LaunchPlan,
    shape: AllReduceRmsNormShape,
}

impl AllReduceRmsNormShape {
    /// Whether there is a plan.
    pub fn check(&self) -> Result<(), PlanError> {
        row_vectors(self.hidden, self.dtype)?;
        check_bytes(self.tokens.saturating_mul(self.row_bytes()))?;
        if self.algorithm == Algorithm::TwoShot && !has_two_shot(self.tokens, self.world_size) {
            return Err(PlanError::Rows { tokens: self.tokens, world_size: self.world_size });
        }
        check_weight(self.dtype, self.weight)
    }

    /// Plans the launch.
    pub fn plan(&self, device: Device) -> Result<AllReduceRmsNormPlan, PlanError> {
        self.plan_of(ModuleKey::AllReduceRmsNorm, device)
    }

    pub(super) fn plan_of(
        &self,
        module: impl Fn(AllReduceRmsNormKernel) -> ModuleKey,
        device: Device,
    ) -> Result<AllReduceRmsNormPlan, PlanError> {
        self.check()?;
        let Self { tokens, hidden, dtype, algorithm, .. } = *self;
        let capacity = capacity(self.world_size as u32);
        let row_vectors = row_vectors(hidden, dtype)?;
        let with = |vectors| {
            let module = module(AllReduceRmsNormKernel { algorithm, dtype, capacity, vectors });
            (module, module.bounds().expect("the host chooses the size of these launches"))
        };
        // Threads for a row of which each keeps so many vectors.
        let threads = |vectors| row_vectors.div_ceil(vectors).next_multiple_of(WARP_THREADS);
        let of_any_width = with(0);
        let mut kept = of_any_width.0.kept_vectors().iter().map(|&vectors| (threads(vectors), with(vectors)));
        let fitting = kept.find(|(block, (_, bounds))| *block <= bounds.max_threads);
        let (block, (module, bounds)) = fitting.unwrap_or((of_any_width.1.max_threads, of_any_width));
        // As if the row were not kept: its squares are added in the same order, so that a quantiser, which keeps fewer
        // vectors, has the same rows.
        let is_norm = matches!(module, ModuleKey::AllReduceRmsNorm(kernel) if kernel.vectors > 1);
        let block = if is_norm { bounds.max_threads } else { block };
        let resident = device.resident_blocks(bounds, block);
        let grid = reduction_grid(tokens as u32, resident);
        let launch = LaunchPlan { module, grid, block, dependent_launch: device.has_dependent_launch() };
        Ok(AllReduceRmsNormPlan { launch, shape: *self })
    }

    fn row_bytes(&self) -> usize {
        self.hidden * self.dtype.size()
    }
}

impl AllReduceRmsNormPlan {
    /// The kernel's parameters. An error if the group's slots are too small.
    pub fn parameters(
        &self,
        geometry: &Geometry,
        group: Group,
        tensors: AllReduceRmsNormTensors,
        epsilon: f32,
        weight_bias: f32,
    ) -> Result<AllReduceRmsNormParameters, GeometryError> {
        let AllReduceRmsNormShape { tokens, hidden, dtype, weight, world_size, algorithm } = self.shape;
        let row_bytes = self.shape.row_bytes();
        let region_bytes = geometry.region_bytes(algorithm.message_bytes(tokens, row_bytes, world_size))? as u32;
        let AllReduceRmsNormTensors { input, residual, weight: weight_address, output, residual_output } = tensors;
        let norm = RmsNorm {
            weight: weight_address,
            inverse_count: 1.0 / hidden as f32,
            epsilon,
            weight_bias,
            has_float32_weight: u32::from(weight != dtype),
        };
        Ok(AllReduceRmsNormParameters {
            group,
            input,
            residual: residual.unwrap_or(0),
            output,
            residual_output,
            norm,
            region_bytes,
            tokens: tokens as u32,
            row_vectors: (row_bytes / VECTOR_BYTES) as u32,
            reserved: 0,
        })
    }
}
