//! The proof that peers' stores arrive in device memory: a kernel, and what the ranks make of its results.

use std::time::{Duration, Instant};

use lamport_rs_kernels::ModuleKey;
use lamport_rs_kernels::parameters::{Group, VerifyParameters};
use lamport_rs_kernels::plan;
use lamport_rs_protocol::geometry::MAX_WORLD_SIZE;
use lamport_rs_protocol::rank_set::RankSet;
use lamport_rs_protocol::sentinel::Vector;

use crate::cuda::device::Device;
use crate::cuda::own_stream::OwnStream;
use crate::error::{Error, Result};
use crate::interrupts::{INTERRUPT_INTERVAL, Interrupted};
use crate::memory::pinned::PinnedWords;
use crate::rendezvous::Rendezvous;

/// Longest wait of the kernel for a peer, whose data is on its way when it starts. For its verdict it waits twice that.
const TIMEOUT: Duration = Duration::from_secs(10);
/// When the host no longer polls for the result, which a kernel that has started has left long before.
const LONGEST_POLL: Duration = Duration::from_secs(60);
/// The result takes microseconds: the host spins for so long before it sleeps between two looks.
const SPIN: Duration = Duration::from_micros(500);
const SLEEP: Duration = Duration::from_micros(50);

/// Proves that every peer's stores arrive, with the instructions of the operations. Returns the ranks that could not
/// prove it: if there are none, all ranks return that. `group`'s memory is valid until this returns. `interrupted` is asked
/// from time to time; if a signal has come, it tells the kernel to end.
pub fn verify(
    device: &Device,
    group: Group,
    pinned: &PinnedWords,
    nonces: &[Vector],
    interrupted: Interrupted<'_>,
) -> Result<RankSet> {
    let mut all = [[0; 4]; MAX_WORLD_SIZE];
    all[..nonces.len()].copy_from_slice(nonces);
    let parameters = VerifyParameters {
        group: group.with_timeout(Some(TIMEOUT)),
        nonces: all,
        result: pinned.result_address(),
        reserved: 0,
    };
    let _entered = device.enter()?;
    let function = device.modules.function(ModuleKey::Verify, device)?;
    // Not the null stream: peers' kernels may come in another order there, if threads create several workspaces.
    let own = OwnStream::take(device)?;
    let stream = own.handle();
    // SAFETY: the context is current; these are the parameters of `verify`, and the caller keeps the memory until the
    // kernel has ended.
    unsafe { function.launch(&plan::verify(device.plan), stream, &parameters) }?;
    // A peer that has this rank's consent has a workspace. So no call of the driver that can fail stands between that
    // and this rank's workspace: it polls.
    let (wrong, refusing) = match poll(pinned, LONGEST_POLL, interrupted) {
        Some(result) => result,
        None => {
            // SAFETY: one of the device's streams.
            unsafe { device.synchronise(stream) }?;
            let no_result = || Error::Argument("the verification's kernel left no result".to_owned());
            pinned.result().ok_or_else(no_result)?
        }
    };
    if wrong.is_empty() {
        return Ok(refusing);
    }
    Err(Error::Argument(format!(
        "stores of {wrong} do not arrive at {}, although the driver mapped the memory; use NVLink or a PCIe topology \
         with working peer access, or fall back to the framework's own all-reduce",
        device.describe()
    )))
}

/// Waits for the result, which is the last that the kernel stores, for as long as `longest`.
fn poll(pinned: &PinnedWords, longest: Duration, interrupted: Interrupted<'_>) -> Option<(RankSet, RankSet)> {
    let began = Instant::now();
    let mut asked = began;
    loop {
        let result = pinned.result();
        let waited = began.elapsed();
        if result.is_some() || waited >= longest {
            return result;
        }
        if waited < SPIN {
            std::hint::spin_loop();
            continue;
        }
        std::thread::sleep(SLEEP);
        if asked.elapsed() >= INTERRUPT_INTERVAL {
            // Whatever it says, the kernel has to end first.
            interrupted();
            asked = Instant::now();
        }
    }
}

/// All ranks return, or all raise the same error: `verified` is what [`verify`] returned here. In its kernel the ranks
/// have told each other whether all is well, so they need the rendezvous only where it is not. And not where one has
/// `given_up`, as all are told in their pages: it does not come.
pub fn settle(
    rendezvous: &mut Rendezvous<'_>,
    verified: Result<RankSet>,
    given_up: impl FnOnce() -> Option<Error>,
) -> Result<()> {
    let refusing = match &verified {
        Ok(refusing) if refusing.is_empty() => return Ok(()),
        Ok(refusing) => *refusing,
        Err(_) => RankSet::default(),
    };
    if let Some(error) = given_up() {
        return Err(error);
    }
    rendezvous.conclude(verified.map(drop))?;
    Err(Error::Agreement(format!("the verification failed on {refusing}, which did not say why")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rendezvous::AllGather;

    /// A group of two that brings this rank's message, and the same of another rank; counts how often.
    #[derive(Default)]
    struct Echo(usize);

    impl AllGather for Echo {
        fn all_gather(&mut self, message: &[u8]) -> std::result::Result<Vec<Vec<u8>>, String> {
            self.0 += 1;
            let mut other = message.to_vec();
            other[16] ^= 1;
            Ok(vec![message.to_vec(), other])
        }
    }

    fn settle_with(verified: Result<RankSet>) -> (std::result::Result<(), String>, usize) {
        let mut transport = Echo::default();
        let settled =
            settle(&mut Rendezvous::new(&mut transport, 0, 2), verified, || None).map_err(|error| error.to_string());
        (settled, transport.0)
    }

    #[test]
    fn ranks_that_all_accept_need_no_round() {
        assert_eq!(settle_with(Ok(RankSet::default())), (Ok(()), 0));
    }

    #[test]
    fn a_rank_that_failed_and_one_that_heard_of_it_go_to_the_rendezvous_for_the_reason() {
        let (settled, rounds) = settle_with(Err(Error::Argument("stores do not arrive".into())));
        assert_eq!((settled, rounds), (Err("stores do not arrive".to_owned()), 1));
        let (settled, rounds) = settle_with(Ok(RankSet(1 << 1)));
        let text = "the verification failed on rank 1, which did not say why";
        assert_eq!((settled, rounds), (Err(text.to_owned()), 1), "nobody gave a reason, and nobody has a workspace");
    }
}
