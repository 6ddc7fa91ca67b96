//! The launch plans of operations, made once per shape.

use std::any::Any;
use std::collections::HashMap;
use std::hash::Hash;

use lamport_rs_kernels::plan::{LaunchPlan, PlanError};

use super::device::Device;
use super::launch::Function;
use crate::error::Result;

/// The plans of one kind of shape, and their kernels.
type PlansOf<Shape> = HashMap<Shape, (<Shape as Planned>::Plan, Function)>;

/// The plans of all operations: a table for each kind of shape that there was. They are few.
#[derive(Debug, Default)]
pub struct Plans(Vec<Box<dyn Any + Send>>);

/// A shape that a launch is planned for.
pub trait Planned: Copy + Eq + Hash + Send + 'static {
    /// Its plan.
    type Plan: Copy + Send;

    /// Whether there is a plan.
    fn check(&self) -> std::result::Result<(), PlanError>;
    /// Plans the launch.
    fn plan(&self, device: &Device) -> std::result::Result<Self::Plan, PlanError>;
    /// The plan's launch.
    fn launch(plan: &Self::Plan) -> LaunchPlan;
}

impl Plans {
    /// The plan for `shape`, whose kernel is loaded.
    pub fn get<Shape: Planned>(&mut self, shape: Shape, device: &Device) -> Result<(Shape::Plan, Function)> {
        let plans = self.of::<Shape>();
        if let Some(planned) = plans.get(&shape) {
            return Ok(*planned);
        }
        let plan = shape.plan(device)?;
        let planned = (plan, device.modules.function(Shape::launch(&plan).module, device)?);
        plans.insert(shape, planned);
        Ok(planned)
    }

    /// The plan for `shape`, if its kernel is loaded.
    pub fn get_loaded<Shape: Planned>(&mut self, shape: Shape, device: &Device) -> Option<(Shape::Plan, Function)> {
        if let Some(planned) = self.of::<Shape>().get(&shape) {
            return Some(*planned);
        }
        let plan = shape.plan(device).ok()?;
        Some((plan, device.modules.loaded(Shape::launch(&plan).module)?))
    }

    fn of<Shape: Planned>(&mut self) -> &mut PlansOf<Shape> {
        let found = self.0.iter().position(|plans| plans.is::<PlansOf<Shape>>());
        let at = found.unwrap_or_else(|| {
            self.0.push(Box::new(PlansOf::<Shape>::new()));
            self.0.len() - 1
        });
        self.0[at].downcast_mut().expect("the type was asked for")
    }
}

/// Has a shape planned by its functions `check` and `plan`, which takes the device and what else is given.
macro_rules! planned {
    ($shape:ty, $plan:ty $(, $argument:expr)?) => {
        impl $crate::cuda::plans::Planned for $shape {
            type Plan = $plan;

            fn check(&self) -> std::result::Result<(), lamport_rs_kernels::plan::PlanError> {
                self.check()
            }

            fn plan(
                &self,
                device: &$crate::cuda::device::Device,
            ) -> std::result::Result<$plan, lamport_rs_kernels::plan::PlanError> {
                self.plan(device.plan $(, $argument)?)
            }

            fn launch(plan: &$plan) -> lamport_rs_kernels::plan::LaunchPlan {
                plan.launch
            }
        }
    };
}

pub(crate) use planned;
