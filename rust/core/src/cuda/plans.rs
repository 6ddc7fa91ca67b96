//! The launch plans of operations, made once per shape.

use std::collections::HashMap;
use std::hash::Hash;

use lamport_rs_kernels::plan::all_reduce::{AllReducePlan, AllReduceShape};
use lamport_rs_kernels::plan::minimax::{MinimaxPlan, MinimaxShape};
use lamport_rs_kernels::plan::rms_norm::{
    AllReduceRmsNormPlan, AllReduceRmsNormQuantPlan, AllReduceRmsNormQuantShape, AllReduceRmsNormShape,
};
use lamport_rs_kernels::plan::{LaunchPlan, PlanError};

use super::device::Device;
use super::launch::Function;
use crate::error::Result;

/// Plans of one kind of operation, and their kernels.
#[derive(Debug)]
pub struct PlansOf<Shape: Planned>(HashMap<Shape, (Shape::Plan, Function)>);

/// The plans of all operations.
#[derive(Debug, Default)]
pub struct Plans {
    /// All-reduce.
    pub all_reduce: PlansOf<AllReduceShape>,
    /// All-reduce with a residual and RMSNorm.
    pub all_reduce_rms_norm: PlansOf<AllReduceRmsNormShape>,
    /// The same, and a quantiser.
    pub all_reduce_rms_norm_quant: PlansOf<AllReduceRmsNormQuantShape>,
    /// MiniMax normalisation of one matrix.
    pub minimax_rms: PlansOf<MinimaxShape<1>>,
    /// MiniMax normalisation of two.
    pub minimax_rms_qk: PlansOf<MinimaxShape<2>>,
}

/// A shape that a launch is planned for.
pub trait Planned: Copy + Eq + Hash {
    /// Its plan.
    type Plan: Copy;

    /// Whether there is a plan.
    fn check(&self) -> std::result::Result<(), PlanError>;
    /// Plans the launch.
    fn plan(&self, device: &Device) -> std::result::Result<Self::Plan, PlanError>;
    /// The plan's launch.
    fn launch(plan: &Self::Plan) -> LaunchPlan;
}

impl<Shape: Planned> Default for PlansOf<Shape> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<Shape: Planned> PlansOf<Shape> {
    /// The plan for `shape`, whose kernel is loaded.
    pub fn get(&mut self, shape: Shape, device: &Device) -> Result<(Shape::Plan, Function)> {
        if let Some(planned) = self.0.get(&shape) {
            return Ok(*planned);
        }
        let plan = shape.plan(device)?;
        let planned = (plan, device.modules.function(Shape::launch(&plan).module, device)?);
        self.0.insert(shape, planned);
        Ok(planned)
    }
}

macro_rules! planned {
    ($shape:ty, $plan:ty $(, $argument:expr)?) => {
        impl Planned for $shape {
            type Plan = $plan;

            fn check(&self) -> std::result::Result<(), PlanError> {
                self.check()
            }

            fn plan(&self, device: &Device) -> std::result::Result<$plan, PlanError> {
                self.plan(device.plan $(, $argument)?)
            }

            fn launch(plan: &$plan) -> LaunchPlan {
                plan.launch
            }
        }
    };
}

planned!(AllReduceShape, AllReducePlan);
planned!(AllReduceRmsNormShape, AllReduceRmsNormPlan);
planned!(AllReduceRmsNormQuantShape, AllReduceRmsNormQuantPlan);
planned!(MinimaxShape<1>, MinimaxPlan<1>, None);
planned!(MinimaxShape<2>, MinimaxPlan<2>, None);
