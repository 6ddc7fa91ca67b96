//! The operation over shared memory: that with RMSNorm, whose rows are centred first.

use super::AllReduceLayerNorm;
use crate::error::Result;
use crate::interrupts::Interrupted;
use crate::operations::host::with_nan_on_failure;
use crate::operations::operands::{OnHost, Operands};
use crate::operations::rms_norm::host::{Normalisation, check_host, run_norm};
use crate::tensor::Device;
use crate::workspace::host::HostWorkspace;

impl OnHost for AllReduceLayerNorm {
    fn check_on_host(&self, workspace: &HostWorkspace) -> Result<()> {
        self.check(Device::Cpu)?;
        check_host(workspace, self.kind(), self.norm.algorithm)
    }

    unsafe fn run_on_host(&self, workspace: &HostWorkspace, interrupted: Interrupted<'_>) -> Result<()> {
        let outputs = [&self.norm.output, &self.norm.residual_output];
        // SAFETY: the caller's promise.
        unsafe { with_nan_on_failure(run(workspace, self, interrupted), outputs) }
    }
}

unsafe fn run(workspace: &HostWorkspace, operands: &AllReduceLayerNorm, interrupted: Interrupted<'_>) -> Result<()> {
    operands.check_on_host(workspace)?;
    let norm = &operands.norm;
    let normalisation = Normalisation {
        output: Some(&norm.output),
        is_centred: true,
        bias: operands.bias.as_ref(),
        ..Normalisation::default()
    };
    // SAFETY: the caller's promise; the operands were checked.
    unsafe { run_norm(workspace, norm, None, normalisation, &operands.describe(), interrupted) }
}
