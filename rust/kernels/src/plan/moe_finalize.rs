//! Plans for the all-reduces of rows that experts made.

use lamport_rs_protocol::algorithm::Algorithm;
use lamport_rs_protocol::geometry::{Geometry, GeometryError};

use crate::catalogue::ModuleKey;
use crate::parameters::{Experts, Group, MoeFinalizeParameters};
use crate::plan::rms_norm::{AllReduceRmsNormPlan, AllReduceRmsNormShape, AllReduceRmsNormTensors};
use crate::plan::{Device, LaunchPlan, PlanError};

/// An all-reduce of rows that experts made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MoeFinalizeShape {
    /// The finalised rows: of 16 bits, to be summed in one shot.
    pub norm: AllReduceRmsNormShape,
    /// Whether a residual and RMSNorm follow. If not, the weights' dtype is the rows'.
    pub is_normalised: bool,
}

/// Its launch, and how the rows are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoeFinalizePlan {
    /// The launch.
    pub launch: LaunchPlan,
    norm: AllReduceRmsNormPlan,
}

impl MoeFinalizeShape {
    /// Whether there is a plan.
    pub fn check(&self) -> Result<(), PlanError> {
        let AllReduceRmsNormShape { dtype, algorithm, .. } = self.norm;
        if dtype.size() != 2 || algorithm != Algorithm::OneShot {
            return Err(PlanError::Finalised { dtype: dtype.name(), algorithm: algorithm.name() });
        }
        self.norm.check()
    }

    /// Plans the launch.
    pub fn plan(&self, device: Device) -> Result<MoeFinalizePlan, PlanError> {
        self.check()?;
        let module =
            if self.is_normalised { ModuleKey::MoeFinalizeAllReduceRmsNorm } else { ModuleKey::MoeFinalizeAllReduce };
        let norm = self.norm.plan_of(module, device)?;
        Ok(MoeFinalizePlan { launch: norm.launch, norm })
    }
}

impl MoeFinalizePlan {
    /// The kernel's parameters. The rows are those of `experts`, and not of an input; where no norm follows, there is an
    /// output and nothing else. An error if the group's slots are too small.
    pub fn parameters(
        &self,
        geometry: &Geometry,
        group: Group,
        tensors: AllReduceRmsNormTensors,
        experts: Experts,
        epsilon: f32,
        weight_bias: f32,
    ) -> Result<MoeFinalizeParameters, GeometryError> {
        let tensors = AllReduceRmsNormTensors { input: 0, ..tensors };
        Ok(MoeFinalizeParameters {
            base: self.norm.parameters(geometry, group, tensors, epsilon, weight_bias)?,
            experts,
        })
    }
}
