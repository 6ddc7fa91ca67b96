//! The launch plans of MiniMax operations, made once per shape.

use std::collections::HashMap;

use lamport_rs_kernels::plan::minimax::{MinimaxPlan, MinimaxShape};

use super::device::Device;
use super::launch::Function;
use crate::error::{Error, Result};

/// A plan and its kernel.
pub type Planned<const MATRICES: usize> = (MinimaxPlan<MATRICES>, Function);

type Shape<const MATRICES: usize> = (u32, [u32; MATRICES], lamport_rs_kernels::Dtype, lamport_rs_kernels::Dtype);

/// Plans by shape: for one matrix, and for two.
#[derive(Debug, Default)]
pub struct MinimaxPlans {
    one: HashMap<Shape<1>, Planned<1>>,
    two: HashMap<Shape<2>, Planned<2>>,
}

/// Plans for as many matrices.
pub trait PlansFor<const MATRICES: usize> {
    /// The plan for `shape`, whose kernel is loaded.
    fn get(&mut self, shape: &MinimaxShape<MATRICES>, device: &Device) -> Result<Planned<MATRICES>>;
}

macro_rules! plans_for {
    ($matrices:literal, $field:ident) => {
        impl PlansFor<$matrices> for MinimaxPlans {
            fn get(&mut self, shape: &MinimaxShape<$matrices>, device: &Device) -> Result<Planned<$matrices>> {
                let key = (shape.tokens, shape.widths, shape.dtype, shape.weight);
                if let Some(planned) = self.$field.get(&key) {
                    return Ok(*planned);
                }
                let planned = plan(shape, device)?;
                self.$field.insert(key, planned);
                Ok(planned)
            }
        }
    };
}

plans_for!(1, one);
plans_for!(2, two);

fn plan<const MATRICES: usize>(shape: &MinimaxShape<MATRICES>, device: &Device) -> Result<Planned<MATRICES>> {
    let plan = shape.plan(device.plan, None).map_err(|error| Error::Argument(error.to_string()))?;
    Ok((plan, device.modules.function(plan.launch.module, device)?))
}
