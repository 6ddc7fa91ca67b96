//! The proof that peers' stores arrive in device memory: a kernel, and what the ranks make of its results.

use std::time::{Duration, Instant};

use lamport_rs_kernels::ModuleKey;
use lamport_rs_kernels::parameters::{Group, VerifyParameters};
use lamport_rs_kernels::plan;
use lamport_rs_protocol::geometry::MAX_WORLD_SIZE;
use lamport_rs_protocol::notices::Outcome;
use lamport_rs_protocol::rank_set::RankSet;
use lamport_rs_protocol::sentinel::Vector;

use crate::cuda::device::Device;
use crate::cuda::own_stream::OwnStream;
use crate::error::{Error, Result};
use crate::interrupts::{INTERRUPT_INTERVAL, Interrupted};
use crate::lifecycle::Lifecycle;
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

/// All ranks return, or all raise: `verified` is what [`verify`] returned here. In its kernel the ranks have told each other
/// whether all is well, so they need the rendezvous only where it is not. And not where one of them gives up, as this rank
/// does if it was `interrupted` or a peer has died: whoever comes here first decides.
///
/// Ranks that cannot read each other's pages go by what their kernels found, which is the same on all.
pub fn settle(
    rendezvous: &mut Rendezvous<'_>,
    lifecycle: &Lifecycle,
    verified: Result<RankSet>,
    interrupted: Option<Error>,
) -> Result<()> {
    let found = match &verified {
        Ok(refusing) if refusing.is_empty() => Outcome::Accepted,
        _ => Outcome::Refused,
    };
    let dead = if found == Outcome::Accepted { RankSet::default() } else { lifecycle.dead() };
    let death = || Error::Agreement(format!("the process of {dead} ended before all ranks had verified the memory"));
    let obstacle = interrupted.or_else(|| (!dead.is_empty()).then(death));
    let (own, verified) = match obstacle {
        Some(error) => (Outcome::Abandoned(lifecycle.rank()), Err(error)),
        None => (found, verified),
    };
    let outcome = lifecycle.decide(own).unwrap_or(found);
    // The others need not wait until their kernels give up. Should they have a workspace, they hear of it there.
    let verified = verified.inspect_err(|error| lifecycle.fail(error));
    let settled = match (outcome, verified) {
        (Outcome::Accepted, Ok(late)) if late.is_empty() => return Ok(()),
        (Outcome::Accepted, Ok(late)) => {
            Err(Error::Agreement(format!("{late} did not verify the memory in time; the others have accepted it")))
        }
        (Outcome::Refused, verified) => {
            let refusing = verified.as_ref().copied().unwrap_or_default();
            rendezvous.conclude(verified.map(drop)).map_err(Error::from).and_then(|_| {
                Err(Error::Agreement(format!("the verification failed on {refusing}, which did not say why")))
            })
        }
        (Outcome::Accepted, Err(error)) => Err(error),
        (Outcome::Abandoned(rank), Err(error)) if rank == lifecycle.rank() => Err(error),
        // What this rank found may follow from what that one did.
        (Outcome::Abandoned(rank), _) => Err(lifecycle.reason_of(rank)),
    };
    settled.inspect_err(|error| lifecycle.fail(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::pages::Pages;
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

    /// What rank 0 of two comes to, and how many rounds that takes.
    fn settle_with(
        decided: Option<Outcome>,
        verified: Result<RankSet>,
        interrupted: Option<Error>,
    ) -> (std::result::Result<(), String>, usize) {
        let [lifecycle, peer] = Lifecycle::pair();
        if let Some(outcome) = decided {
            assert_eq!(peer.decide(outcome), Some(outcome));
            peer.fail(&Error::Argument("enough".into()));
        }
        let mut transport = Echo::default();
        let mut rendezvous = Rendezvous::new(&mut transport, 0, 2);
        let settled = settle(&mut rendezvous, &lifecycle, verified, interrupted).map_err(|error| error.to_string());
        assert_eq!(lifecycle.has_failed(), settled.is_err());
        (settled, transport.0)
    }

    fn interruption() -> Option<Error> {
        Some(Error::Agreement("interrupted".into()))
    }

    #[test]
    fn ranks_that_all_accept_need_no_round() {
        for decided in [None, Some(Outcome::Accepted)] {
            assert_eq!(settle_with(decided, Ok(RankSet::default()), None), (Ok(()), 0));
        }
    }

    #[test]
    fn a_rank_that_failed_and_one_that_heard_of_it_go_to_the_rendezvous_for_the_reason() {
        for decided in [None, Some(Outcome::Refused)] {
            let (settled, rounds) = settle_with(decided, Err(Error::Argument("stores do not arrive".into())), None);
            assert_eq!((settled, rounds), (Err("stores do not arrive".to_owned()), 1));
            let (settled, rounds) = settle_with(decided, Ok(RankSet(1 << 1)), None);
            let text = "the verification failed on rank 1, which did not say why";
            assert_eq!(
                (settled, rounds),
                (Err(text.to_owned()), 1),
                "nobody gave a reason, and nobody has a workspace"
            );
        }
    }

    #[test]
    fn a_rank_that_is_interrupted_comes_to_the_round_only_if_another_counts_on_it() {
        for verified in [RankSet::default(), RankSet(1 << 1)] {
            for (decided, rounds) in [(None, 0), (Some(Outcome::Accepted), 0), (Some(Outcome::Refused), 1)] {
                let found = settle_with(decided, Ok(verified), interruption());
                assert_eq!(found, (Err("interrupted".to_owned()), rounds), "{decided:?}");
            }
        }
    }

    #[test]
    fn nobody_comes_to_a_round_once_a_rank_has_given_up_or_all_have_accepted() {
        let abandoned = Some(Outcome::Abandoned(1));
        for verified in [RankSet::default(), RankSet(1 << 1)] {
            assert_eq!(settle_with(abandoned, Ok(verified), None), (Err("rank 1: enough".to_owned()), 0));
        }
        let text = "rank 1 did not verify the memory in time; the others have accepted it";
        assert_eq!(settle_with(Some(Outcome::Accepted), Ok(RankSet(1 << 1)), None), (Err(text.to_owned()), 0));
        let own = Err(Error::Argument("stores do not arrive".into()));
        assert_eq!(settle_with(abandoned, own, None), (Err("rank 1: enough".to_owned()), 0));
    }

    #[test]
    fn nobody_waits_in_a_round_for_a_peer_whose_process_has_ended() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let lifecycle = Lifecycle::new(0, Pages::beside(child.id()));
        child.wait().unwrap();
        let mut transport = Echo::default();
        let mut rendezvous = Rendezvous::new(&mut transport, 0, 2);
        let error = settle(&mut rendezvous, &lifecycle, Ok(RankSet(1 << 1)), None).unwrap_err().to_string();
        assert_eq!(error, "the process of rank 1 ended before all ranks had verified the memory");
        assert_eq!(transport.0, 0);
        // It had accepted, and may have ended since.
        let lifecycle = Lifecycle::new(0, Pages::beside(child.id()));
        settle(&mut Rendezvous::new(&mut transport, 0, 2), &lifecycle, Ok(RankSet::default()), None).unwrap();
    }

    /// Whatever a hostile peer has stored.
    #[test]
    fn if_a_rank_has_given_up_that_is_not_there_any_reason_counts() {
        let settled = settle_with(Some(Outcome::Abandoned(16)), Ok(RankSet::default()), None);
        assert_eq!(settled, (Err("rank 1: enough".to_owned()), 0));
    }
}
