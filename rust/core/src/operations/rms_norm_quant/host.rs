//! The operation over shared memory: the norm's, with a quantiser behind it.

use super::AllReduceRmsNormQuant;
use crate::error::{Error, Result};
use crate::interrupts::Interrupted;
use crate::operations::host::with_nan_on_failure;
use crate::operations::operands::{OnHost, Operands};
use crate::operations::quantised::rows::RowQuantiser;
use crate::operations::rms_norm::host::{Normalisation, check_host, run_norm};
use crate::tensor::Device;
use crate::workspace::host::HostWorkspace;
use lamport_rs_protocol::algorithm::Algorithm;

impl OnHost for AllReduceRmsNormQuant {
    fn check_on_host(&self, workspace: &HostWorkspace) -> Result<()> {
        check(workspace, self)
    }

    unsafe fn run_on_host(&self, workspace: &HostWorkspace, interrupted: Interrupted<'_>) -> Result<()> {
        // SAFETY: the caller's promise.
        let outcome = unsafe { with_nan_on_failure(run(workspace, self, interrupted), self.rows()) };
        if outcome.as_ref().is_err_and(Error::spoils_outputs) {
            let input = &self.norm.input;
            // SAFETY: such errors come after the checks; the caller's promise.
            unsafe { RowQuantiser::new(&self.quantised, input) }.spoil_scales(input.rows(), input.columns());
        }
        outcome
    }
}

unsafe fn run(workspace: &HostWorkspace, operands: &AllReduceRmsNormQuant, interrupted: Interrupted<'_>) -> Result<()> {
    check(workspace, operands)?;
    let description = operands.describe(Algorithm::OneShot);
    // SAFETY: the caller's promise; the operands were checked.
    unsafe {
        let quantiser = RowQuantiser::new(&operands.quantised, &operands.norm.input);
        let normalisation =
            Normalisation { output: operands.output(), quantiser: Some(quantiser), ..Normalisation::default() };
        run_norm(workspace, &operands.norm, None, normalisation, &description, interrupted)
    }
}

/// Checks the operands.
fn check(workspace: &HostWorkspace, operands: &AllReduceRmsNormQuant) -> Result<()> {
    operands.check(Device::Cpu)?;
    check_host(workspace, operands.kind(), operands.norm.algorithm)
}
