//! Ranks as processes.

use std::process;

use lamport_rs_core::cuda::device::Device;
use lamport_rs_core::error::{Cause, Error};
use lamport_rs_core::rendezvous::AllGather;
use lamport_rs_core::tensor::Dtype;
use lamport_rs_core::workspace::Settings;
use lamport_rs_core::workspace::cuda::CudaWorkspace;

use crate::operations::sums;
use crate::standin::Standin;
use crate::standin::either::{Either, on_host};
use crate::standin::group::Rank;
use crate::standin::processes::ProcessGroup;
use crate::standin::sum::sum;

const COMM_SIZE: usize = 4096;

#[test]
#[ignore = "a rank of ranks_may_be_processes"]
fn rank_that_sums() {
    let _standin = Standin::take();
    let mut rank = ProcessGroup::this_rank();
    let workspace = rank.create_with(&Settings { comm_size: COMM_SIZE as i64, ..rank.settings() }).unwrap();
    let found = sums(Dtype::Float32)(rank.rank, Either::Cuda(&workspace));
    let expected = on_host(rank.world_size, COMM_SIZE, sums(Dtype::Float32));
    assert!(found == expected[rank.rank]);
    // Nobody's memory goes while another rank's kernel runs.
    rank.meet();
}

#[test]
fn ranks_may_be_processes() {
    for world_size in [2, 4] {
        ProcessGroup::start("processes::rank_that_sums", world_size).finish();
    }
}

const KILLED: usize = 1;

#[test]
#[ignore = "a rank of the_others_miss_a_rank_that_is_killed"]
fn rank_that_is_killed_or_misses_it() {
    let _standin = Standin::take();
    let mut rank = ProcessGroup::this_rank();
    // Without a timeout: a kernel that waits hears of it.
    let workspace = rank.create_with_timeout(0.0).unwrap();
    assert_eq!(sum(&workspace, 100).unwrap(), [3.0; 100]);
    rank.meet();
    if rank.rank == KILLED {
        process::abort();
    }
    match sum(&workspace, 100) {
        Err(Error::Aborted { rank: KILLED, cause: Cause::Ended, .. }) => {}
        other => panic!("{other:?}"),
    }
}

/// Runs the ignored test as every rank of three, of which one is killed.
fn kill_one(test: &str) {
    let mut group = ProcessGroup::start(test, 3);
    let mut killed = group.children.remove(KILLED);
    assert!(!killed.wait().unwrap().success());
    group.finish();
}

#[test]
fn the_others_miss_a_rank_that_is_killed() {
    kill_one("processes::rank_that_is_killed_or_misses_it");
}

/// Carries a rank's messages in the one round that there is, and kills a rank while it waits after that.
struct KillingTransport<'a>(&'a mut Rank, usize);

impl AllGather for KillingTransport<'_> {
    fn all_gather(&mut self, message: &[u8]) -> Result<Vec<Vec<u8>>, String> {
        self.1 += 1;
        assert_eq!(self.1, 1, "it is in a round that not all come to");
        self.0.all_gather(message)
    }

    fn is_interrupted(&mut self) -> bool {
        if self.0.rank == KILLED {
            process::abort();
        }
        false
    }
}

#[test]
#[ignore = "a rank of the_others_miss_a_rank_that_is_killed_while_stores_are_verified"]
fn rank_that_is_killed_while_stores_are_verified() {
    let standin = Standin::take();
    // The one that is killed waits for them, and the others do for its own.
    standin.lose_stores(true);
    let mut rank = ProcessGroup::this_rank();
    let (settings, device) = (rank.settings(), Device::get(rank.rank));
    let error = CudaWorkspace::create(&settings, device, &mut KillingTransport(&mut rank, 0)).unwrap_err().to_string();
    // Before they had mapped all memory, if it had to wait for them.
    assert!(error.contains("process of rank 1 ended before "), "{error}");
}

#[test]
fn the_others_miss_a_rank_that_is_killed_while_stores_are_verified() {
    kill_one("processes::rank_that_is_killed_while_stores_are_verified");
}
