//! Plans for the all-reduce with a residual and layer norm.

use lamport_rs_protocol::algorithm::Algorithm;
use lamport_rs_protocol::geometry::{Geometry, GeometryError};

use crate::catalogue::ModuleKey;
use crate::parameters::{AllReduceLayerNormParameters, Group};
use crate::plan::rms_norm::{AllReduceRmsNormPlan, AllReduceRmsNormShape, AllReduceRmsNormTensors};
use crate::plan::{Device, LaunchPlan, PlanError};

/// An all-reduce of rows with a residual and layer norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AllReduceLayerNormShape {
    /// As with RMSNorm: of 16 bits, to be summed in one shot.
    pub norm: AllReduceRmsNormShape,
}

/// Its launch, and how the rows are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllReduceLayerNormPlan {
    /// The launch.
    pub launch: LaunchPlan,
    norm: AllReduceRmsNormPlan,
}

impl AllReduceLayerNormShape {
    /// Whether there is a plan.
    pub fn check(&self) -> Result<(), PlanError> {
        let AllReduceRmsNormShape { dtype, algorithm, .. } = self.norm;
        if dtype.size() != 2 || algorithm != Algorithm::OneShot {
            return Err(PlanError::LayerNorm { dtype: dtype.name(), algorithm: algorithm.name() });
        }
        self.norm.check()
    }

    /// Plans the launch.
    pub fn plan(&self, device: Device) -> Result<AllReduceLayerNormPlan, PlanError> {
        self.check()?;
        let norm = self.norm.plan_of(ModuleKey::AllReduceLayerNorm, device)?;
        Ok(AllReduceLayerNormPlan { launch: norm.launch, norm })
    }
}

impl AllReduceLayerNormPlan {
    /// The kernel's parameters; `bias` is where the biases are, of the weights' dtype, if there are any. An error if the
    /// group's slots are too small.
    pub fn parameters(
        &self,
        geometry: &Geometry,
        group: Group,
        tensors: AllReduceRmsNormTensors,
        bias: Option<u64>,
        epsilon: f32,
    ) -> Result<AllReduceLayerNormParameters, GeometryError> {
        Ok(AllReduceLayerNormParameters {
            base: self.norm.parameters(geometry, group, tensors, epsilon, 0.0)?,
            bias: bias.unwrap_or(0),
        })
    }
}
