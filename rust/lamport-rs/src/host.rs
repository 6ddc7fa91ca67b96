//! Collectives over shared memory: slices in, slices out. Needs no GPU.
//!
//! An operation returns when its result is there. Results are the same bits on every rank.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use lamport_rs_core::operations::all_reduce::AllReduce;
use lamport_rs_core::operations::minimax::{MinimaxRms, Norm};
use lamport_rs_core::operations::operands::OnHost;
use lamport_rs_core::operations::rms_norm::AllReduceRmsNorm;
use lamport_rs_core::tensor::{ALIGNMENT, Device};
use lamport_rs_core::workspace::host::HostWorkspace;

use crate::element::{Element, RmsNorm, WeightFor, check_length, rows_of, tensor};
use crate::error::Result;
use crate::handle::{Handle, Status};
use crate::options::Options;
use crate::rendezvous::{Rendezvous, Transport};

/// One rank of a group whose ranks are processes, or threads, of one machine.
///
/// All ranks call the same operations in the same order. To drop it is to leave the group.
#[derive(Debug)]
pub struct Communicator {
    workspace: Arc<HostWorkspace>,
    handle: Handle,
}

impl Communicator {
    /// Joins the group as `rank` of `world_size`, with up to 16 ranks. Collective: all ranks get a communicator, or all
    /// get an error.
    pub fn new(rank: usize, world_size: usize, rendezvous: &mut dyn Rendezvous, options: Options) -> Result<Self> {
        let settings = options.settings(rank, world_size);
        let workspace = Arc::new(HostWorkspace::create(&settings, &mut Transport(rendezvous))?);
        Ok(Self { handle: Handle::of_host(&workspace), workspace })
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.workspace.member().rank
    }

    /// Ranks in the group.
    pub fn world_size(&self) -> usize {
        self.workspace.member().geometry.world_size()
    }

    /// `buffer = sum over ranks of buffer`, of as many elements on each rank.
    pub fn all_reduce<T: Element>(&mut self, buffer: &mut [T]) -> Result<()> {
        let mut place = Place::of_mut(buffer);
        let operand = tensor(place.pointer(), Device::Cpu, [place.length]);
        let operands = AllReduce { input: operand, output: operand, algorithm: None };
        // SAFETY: the operand is `buffer`, or a copy in its place, which nobody else accesses during the call.
        let outcome = unsafe { operands.run_on_host(&self.workspace, &mut never) };
        place.give_back();
        self.counted(outcome.map_err(Into::into))
    }

    /// `residual += sum over ranks of hidden; hidden = rms_norm(residual) × weight`, row by row.
    ///
    /// A row has as many elements as `weight`, a multiple of 8. The residual is the same on every rank.
    pub fn all_reduce_rms_norm<T: Element, W: WeightFor<T>>(
        &mut self,
        hidden: &mut [T],
        residual: &mut [T],
        weight: &[W],
        norm: RmsNorm,
    ) -> Result<()> {
        let outcome = self.rms_norm(hidden, residual, weight, norm);
        self.counted(outcome)
    }

    fn rms_norm<T: Element, W: WeightFor<T>>(
        &self,
        hidden: &mut [T],
        residual: &mut [T],
        weight: &[W],
        norm: RmsNorm,
    ) -> Result<()> {
        let rows = rows_of("hidden", hidden.len(), weight.len())?;
        check_length("residual", residual.len(), hidden.len())?;
        let shape = [rows, weight.len()];
        let (mut hidden_place, mut residual_place) = (Place::of_mut(hidden), Place::of_mut(residual));
        let mut weight_place = Place::of(weight);
        let input = tensor(hidden_place.pointer(), Device::Cpu, shape);
        let added = tensor(residual_place.pointer(), Device::Cpu, shape);
        let operands = AllReduceRmsNorm {
            input,
            residual: Some(added),
            weight: tensor(weight_place.pointer(), Device::Cpu, [weight.len()]),
            epsilon: norm.epsilon(),
            weight_bias: norm.weight_bias(),
            algorithm: None,
            output: input,
            residual_output: added,
        };
        // SAFETY: the operands are the slices, or copies in their place. The outputs are borrowed by this call alone, and
        // the weights, which are only read, are not written meanwhile.
        let outcome = unsafe { operands.run_on_host(&self.workspace, &mut never) };
        hidden_place.give_back();
        residual_place.give_back();
        Ok(outcome?)
    }

    /// `output = rms_norm(row) × weight` of rows that are spread over the ranks, as in MiniMax's attention: each rank has
    /// its part of every row, as many elements as its `weight`, a multiple of 8.
    pub fn minimax_rms<T: Element, W: WeightFor<T>>(
        &mut self,
        input: &[T],
        weight: &[W],
        output: &mut [T],
        epsilon: f32,
    ) -> Result<()> {
        let outcome = self.minimax(input, weight, output, epsilon);
        self.counted(outcome)
    }

    fn minimax<T: Element, W: WeightFor<T>>(
        &self,
        input: &[T],
        weight: &[W],
        output: &mut [T],
        epsilon: f32,
    ) -> Result<()> {
        let rows = rows_of("input", input.len(), weight.len())?;
        check_length("output", output.len(), input.len())?;
        let shape = [rows, weight.len()];
        let (mut input_place, mut weight_place) = (Place::of(input), Place::of(weight));
        let mut output_place = Place::of_mut(output);
        let norm = Norm {
            input: tensor(input_place.pointer(), Device::Cpu, shape),
            weight: tensor(weight_place.pointer(), Device::Cpu, [weight.len()]),
            output: tensor(output_place.pointer(), Device::Cpu, shape),
        };
        // SAFETY: as in `rms_norm`: only the output is written.
        let outcome = unsafe { MinimaxRms::one(norm, epsilon).run_on_host(&self.workspace, &mut never) };
        output_place.give_back();
        Ok(outcome?)
    }

    /// Passes an operation's outcome on. A call that was refused here counts, so that the peers notice.
    fn counted(&self, outcome: Result<()>) -> Result<()> {
        outcome.inspect_err(|_| self.workspace.note_refusal())
    }

    /// Begins anew after a failure. Collective: all ranks call it, for which this waits up to `timeout`; `None` for ever.
    pub fn reset(&mut self, timeout: impl Into<Option<Duration>>) -> Result<()> {
        Ok(self.workspace.reset(timeout.into(), &mut never)?)
    }

    /// See [`Handle::abort`].
    pub fn abort(&self, reason: &str) -> Result<()> {
        self.handle.abort(reason)
    }

    /// See [`Handle::check`].
    pub fn check(&self) -> Result<()> {
        self.handle.check()
    }

    /// See [`Handle::status`].
    pub fn status(&self) -> Status {
        self.handle.status()
    }

    /// What other threads may have, to look after this one while it waits.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // A handle may outlive it, and the memory with that.
        self.workspace.lifecycle().clean_up();
    }
}

fn never() -> bool {
    false
}

/// Where the operation finds a slice: where it is, or at an aligned place if it is not.
struct Place<'a, T> {
    original: *mut T,
    length: usize,
    copy: Option<Vec<u128>>,
    borrowed: PhantomData<&'a mut [T]>,
}

impl<'a, T: Element> Place<'a, T> {
    /// To be read only.
    fn of(slice: &'a [T]) -> Self {
        Self::at(slice.as_ptr().cast_mut(), slice.len())
    }

    /// To be read and written.
    fn of_mut(slice: &'a mut [T]) -> Self {
        Self::at(slice.as_mut_ptr(), slice.len())
    }

    fn at(original: *mut T, length: usize) -> Self {
        let is_aligned = length == 0 || original.addr().is_multiple_of(ALIGNMENT);
        let copy = (!is_aligned).then(|| {
            let mut copy = vec![0_u128; (length * size_of::<T>()).div_ceil(size_of::<u128>())];
            // SAFETY: the slice has as many elements, and the copy room for them.
            unsafe { copy.as_mut_ptr().cast::<T>().copy_from_nonoverlapping(original, length) };
            copy
        });
        Self { original, length, copy, borrowed: PhantomData }
    }

    fn pointer(&mut self) -> *mut T {
        self.copy.as_mut().map_or(self.original, |copy| copy.as_mut_ptr().cast())
    }

    /// Copies the result into the slice, if it is not there. The slice was borrowed to be written.
    fn give_back(self) {
        if let Some(copy) = self.copy {
            // SAFETY: both have as many elements; `of_mut` borrowed the slice alone.
            unsafe { self.original.copy_from_nonoverlapping(copy.as_ptr().cast(), self.length) };
        }
    }
}
