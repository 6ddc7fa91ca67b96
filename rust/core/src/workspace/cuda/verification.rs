//! The proof that peers' stores arrive in device memory: a kernel, and what the ranks make of its results.

use std::time::{Duration, Instant};

use lamport_rs_kernels::ModuleKey;
use lamport_rs_kernels::parameters::{Group, VerifyParameters};
use lamport_rs_kernels::plan;
use lamport_rs_protocol::construction::Outcome;
use lamport_rs_protocol::geometry::MAX_WORLD_SIZE;
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

/// What a rank's kernel found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found {
    /// The ranks whose stores, or whose verdict, did not arrive.
    pub wrong: RankSet,
    /// The ranks that say that of a rank.
    pub refusing: RankSet,
}

impl Found {
    fn doubtful(self) -> RankSet {
        RankSet(self.wrong.0 | self.refusing.0)
    }
}

/// Proves that every peer's stores arrive, with the instructions of the operations. If no rank is doubtful, none is on any
/// rank, unless a rank's kernel was told to end, or is stopped for as long as the others wait. `interrupted` is asked
/// from time to time; if a signal has come, it tells the kernel to end.
///
/// # Safety
/// `group`'s memory is the device's, and valid until this returns.
pub(super) unsafe fn verify(
    device: &Device,
    group: Group,
    pinned: &PinnedWords,
    nonces: &[Vector],
    interrupted: Interrupted<'_>,
) -> Result<Found> {
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
    Ok(Found { wrong, refusing })
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

/// All ranks return, or all raise: `verified` is what [`verify`] returned here, on the `device` described. In its kernel the ranks have
/// told each other whether all is well, so they need the rendezvous only where it is not. And not where one of them gives
/// up, as this rank does if it was `interrupted` or a peer has died: whoever comes here first decides ([`Outcome`]). A rank
/// that is interrupted, or late, when another has accepted raises alone; the others hear of it in their workspaces.
///
/// Ranks that cannot read each other's pages go by what their kernels found.
pub fn settle(
    rendezvous: &mut Rendezvous<'_>,
    lifecycle: &Lifecycle,
    device: impl FnOnce() -> String,
    verified: Result<Found>,
    interrupted: Option<Error>,
) -> Result<()> {
    let is_accepted = matches!(&verified, Ok(found) if found.doubtful().is_empty());
    let found = if is_accepted { Outcome::Accepted } else { Outcome::Refused };
    let dead = if is_accepted { RankSet::default() } else { lifecycle.dead() };
    let death = || Error::Agreement(format!("the process of {dead} ended before all ranks had verified the memory"));
    let obstacle = interrupted.or_else(|| (!dead.is_empty()).then(death));
    let own = if obstacle.is_some() { Outcome::Abandoned(lifecycle.rank()) } else { found };
    let outcome = lifecycle.decide(own);
    if outcome.is_none()
        && !is_accepted
        && let Some(error) = lifecycle.construction_given_up()
    {
        // For those who cannot read that rank's page.
        lifecycle.give_up_construction();
        lifecycle.fail(&error);
        return Err(error);
    }
    let outcome = outcome.unwrap_or(found);
    let local = match (obstacle, &verified) {
        (Some(error), _) => Err(error),
        (None, Err(error)) => Err(error.clone()),
        (None, Ok(found)) if outcome == Outcome::Accepted && !is_accepted => Err(Error::Agreement(format!(
            "{} did not verify the memory in time; the others have accepted it",
            found.doubtful()
        ))),
        (None, Ok(found)) if !found.wrong.is_empty() => Err(Error::Argument(format!(
            "stores of {} do not arrive at {}, although the driver mapped the memory; use NVLink or a PCIe topology with \
             working peer access, or fall back to the framework's own all-reduce",
            found.wrong,
            device()
        ))),
        (None, Ok(_)) => Ok(()),
    };
    // The others need not wait until their kernels give up. Should they have a workspace, they hear of it there.
    let local = local.inspect_err(|error| lifecycle.fail(error));
    let settled = match outcome {
        Outcome::Accepted => return local,
        // Also if a rank is dead that may have sent what the others are brought: they wait for this one then.
        Outcome::Refused => match rendezvous.conclude(local) {
            Err(verdict) => Err(verdict.into()),
            Ok(_) => {
                let refusing = verified.map(|found| found.refusing).unwrap_or_default();
                Err(Error::Agreement(format!("the verification failed on {refusing}, which did not say why")))
            }
        },
        Outcome::Abandoned(rank) if rank == lifecycle.rank() && local.is_err() => local,
        // What this rank found may follow from what that one did.
        Outcome::Abandoned(rank) => Err(lifecycle.reason_of(rank)),
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

    const ACCEPTED: Found = Found { wrong: RankSet(0), refusing: RankSet(0) };
    /// Rank 1 refuses.
    const REFUSED: Found = Found { wrong: RankSet(0), refusing: RankSet(1 << 1) };
    /// Its stores do not arrive, or its verdict does not.
    const LOST: Found = Found { wrong: RankSet(1 << 1), refusing: RankSet(0) };

    /// What rank 0 of two comes to, and how many rounds that takes.
    fn settle_with(
        decided: Option<Outcome>,
        verified: Result<Found>,
        interrupted: Option<Error>,
    ) -> (std::result::Result<(), String>, usize) {
        let [lifecycle, peer] = Lifecycle::pair();
        if let Some(outcome) = decided {
            assert_eq!(peer.decide(outcome), Some(outcome));
            peer.fail(&Error::Argument("enough".into()));
        }
        let mut transport = Echo::default();
        let mut rendezvous = Rendezvous::new(&mut transport, 0, 2);
        let settled =
            settle(&mut rendezvous, &lifecycle, cuda_0, verified, interrupted).map_err(|error| error.to_string());
        assert_eq!(lifecycle.has_failed(), settled.is_err());
        (settled, transport.0)
    }

    fn cuda_0() -> String {
        "cuda:0".to_owned()
    }

    fn interruption() -> Option<Error> {
        Some(Error::Agreement("interrupted".into()))
    }

    #[test]
    fn ranks_that_all_accept_need_no_round() {
        for decided in [None, Some(Outcome::Accepted)] {
            assert_eq!(settle_with(decided, Ok(ACCEPTED), None), (Ok(()), 0));
        }
    }

    #[test]
    fn a_rank_that_failed_and_one_that_heard_of_it_go_to_the_rendezvous_for_the_reason() {
        for decided in [None, Some(Outcome::Refused)] {
            let (settled, rounds) = settle_with(decided, Ok(LOST), None);
            let text = settled.unwrap_err();
            assert!(text.starts_with("stores of rank 1 do not arrive at cuda:0, although"), "{text}");
            assert_eq!(rounds, 1);
            let (settled, rounds) = settle_with(decided, Err(Error::Argument("no kernel".into())), None);
            assert_eq!((settled, rounds), (Err("no kernel".to_owned()), 1));
            let (settled, rounds) = settle_with(decided, Ok(REFUSED), None);
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
        for verified in [ACCEPTED, REFUSED] {
            for (decided, rounds) in [(None, 0), (Some(Outcome::Accepted), 0), (Some(Outcome::Refused), 1)] {
                let found = settle_with(decided, Ok(verified), interruption());
                assert_eq!(found, (Err("interrupted".to_owned()), rounds), "{decided:?}");
            }
        }
    }

    #[test]
    fn nobody_comes_to_a_round_once_a_rank_has_given_up_or_all_have_accepted() {
        let abandoned = Some(Outcome::Abandoned(1));
        for verified in [ACCEPTED, REFUSED] {
            assert_eq!(settle_with(abandoned, Ok(verified), None), (Err("rank 1: enough".to_owned()), 0));
        }
        let text = "rank 1 did not verify the memory in time; the others have accepted it";
        assert_eq!(settle_with(Some(Outcome::Accepted), Ok(REFUSED), None), (Err(text.to_owned()), 0));
        assert_eq!(settle_with(abandoned, Ok(LOST), None), (Err("rank 1: enough".to_owned()), 0));
        assert_eq!(settle_with(Some(Outcome::Accepted), Ok(LOST), None), (Err(text.to_owned()), 0));
    }

    #[test]
    fn nobody_waits_in_a_round_for_a_peer_whose_process_has_ended() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let lifecycle = Lifecycle::new(0, Pages::beside(child.id()));
        child.wait().unwrap();
        let mut transport = Echo::default();
        let mut rendezvous = Rendezvous::new(&mut transport, 0, 2);
        let error = settle(&mut rendezvous, &lifecycle, cuda_0, Ok(REFUSED), None).unwrap_err().to_string();
        assert_eq!(error, "the process of rank 1 ended before all ranks had verified the memory");
        assert_eq!(transport.0, 0);
        // It had accepted, and may have ended since.
        let lifecycle = Lifecycle::new(0, Pages::beside(child.id()));
        settle(&mut Rendezvous::new(&mut transport, 0, 2), &lifecycle, cuda_0, Ok(ACCEPTED), None).unwrap();
    }

    /// Whatever a hostile peer has stored.
    #[test]
    fn if_a_rank_has_given_up_that_is_not_there_any_reason_counts() {
        let settled = settle_with(Some(Outcome::Abandoned(16)), Ok(ACCEPTED), None);
        assert_eq!(settled, (Err("rank 1: enough".to_owned()), 0));
    }
}
