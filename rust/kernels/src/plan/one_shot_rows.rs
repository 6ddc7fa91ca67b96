//! Plans for all-reduces of 16-bit rows that have kernels of one shot only. They are launched as with RMSNorm, and have
//! parameters of their own behind its parameters.

use lamport_rs_protocol::algorithm::Algorithm;

use crate::catalogue::{AllReduceRmsNormKernel, ModuleKey};
use crate::plan::rms_norm::{AllReduceRmsNormPlan, AllReduceRmsNormShape};
use crate::plan::{Device, PlanError};

/// What is done with the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OneShotRows {
    /// They are summed with a residual, and normalised by their mean and variance.
    LayerNorm,
    /// Experts' rows are finalised and summed. The weights' dtype is the rows'.
    MoeFinalize,
    /// Likewise, with a residual and RMSNorm.
    MoeFinalizeRmsNorm,
}

/// An all-reduce of such rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OneShotRowsShape {
    /// As with RMSNorm.
    pub norm: AllReduceRmsNormShape,
    /// What is done with the rows.
    pub operation: OneShotRows,
}

impl OneShotRows {
    /// As callers know it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LayerNorm => "all_reduce_layer_norm",
            Self::MoeFinalize => "moe_finalize_all_reduce",
            Self::MoeFinalizeRmsNorm => "moe_finalize_all_reduce_rms_norm",
        }
    }

    fn module(self) -> fn(AllReduceRmsNormKernel) -> ModuleKey {
        match self {
            Self::LayerNorm => ModuleKey::AllReduceLayerNorm,
            Self::MoeFinalize => ModuleKey::MoeFinalizeAllReduce,
            Self::MoeFinalizeRmsNorm => ModuleKey::MoeFinalizeAllReduceRmsNorm,
        }
    }
}

impl OneShotRowsShape {
    /// Whether there is a plan.
    pub fn check(&self) -> Result<(), PlanError> {
        let AllReduceRmsNormShape { dtype, algorithm, .. } = self.norm;
        if dtype.size() != 2 || algorithm != Algorithm::OneShot {
            let operation = self.operation.name();
            return Err(PlanError::OneShotRows { operation, dtype: dtype.name(), algorithm: algorithm.name() });
        }
        self.norm.check()
    }

    /// Plans the launch.
    pub fn plan(&self, device: Device) -> Result<AllReduceRmsNormPlan, PlanError> {
        self.check()?;
        self.norm.plan_of(self.operation.module(), device)
    }
}
