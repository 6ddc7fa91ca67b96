//! What ranks must have in common, and what each must have for itself. All ranks check the same list of introductions, so
//! all come to the same verdict.

use std::collections::HashMap;

use super::hello::{AS_MEASURED, Hello};
use crate::error::{Error, Result};
use crate::memory::handle::Handle;
use crate::text::enumerate;

/// Whether the ranks agree on everything but what is each rank's own. All ranks check the same list, so all raise the same error.
/// `size_name` is what the caller knows [`Hello::comm_size`] by.
pub fn check_agreement(hellos: &[Hello], size_name: &str) -> Result<()> {
    let check = |name: &str, value: &dyn Fn(&Hello) -> String, advice: &str| {
        let values: Vec<String> = hellos.iter().map(value).collect();
        if values.iter().all(|value| *value == values[0]) {
            return Ok(());
        }
        let each = values.iter().enumerate().map(|(rank, value)| format!("rank {rank} has {value}"));
        Err(Error::Agreement(format!("the ranks differ in {name}: {}; {advice}", enumerate(each, ", "))))
    };
    let same_everywhere = "install the same version everywhere";
    check("version of lamport-rs", &|hello| hello.version.clone(), same_everywhere)?;
    check("layout of their memory", &|hello| hello.layout.to_string(), same_everywhere)?;
    check("host", &|hello| hello.host.clone(), "the ranks of a group must run on one host")?;
    check(
        "backend",
        &|hello| hello.backend.clone(),
        "pass the same backend and kind of device on every rank, and set LAMPORT_RS_CHECK alike",
    )?;
    check("world_size", &|hello| hello.world_size.to_string(), "pass the group's size on every rank")?;
    check_plans(hellos)?;
    let advice = format!(
        "pass the same {size_name} on every rank; threads that create over one group must do so in the same order on every \
         rank"
    );
    check(size_name, &|hello| hello.comm_size.to_string(), &advice)?;
    let two_shot_from = |hello: &Hello| match hello.two_shot_from {
        AS_MEASURED => "None".to_owned(),
        bytes => bytes.to_string(),
    };
    check("two_shot_from", &two_shot_from, "pass the same on every rank")
}

/// Whether the ranks' devices are alike in all that launches depend on: of a larger grid than a peer's, blocks would wait
/// for blocks that are not there.
fn check_plans(hellos: &[Hello]) -> Result<()> {
    if hellos.iter().all(|hello| hello.plan == hellos[0].plan) {
        return Ok(());
    }
    let each = hellos.iter().enumerate().map(|(rank, Hello { device, plan, .. })| {
        format!("rank {rank} has {device}: {}", plan.map_or_else(|| "none".to_owned(), |plan| plan.to_string()))
    });
    Err(Error::Agreement(format!(
        "the ranks differ in what their kernels can be launched on, and so cannot launch equal grids: {}; give every rank \
         of a group a GPU, or a partition of one, of the same kind",
        enumerate(each, ", ")
    )))
}

/// Whether every rank sent memory of its own. `identity` is what tells a handle's memory from another's. All ranks check
/// the same list, so all raise the same error.
pub fn check_distinct(hellos: &[Hello], identity: fn(&[u8]) -> &[u8]) -> Result<()> {
    let ranks = || hellos.iter().enumerate();
    check_owners(ranks().map(|(rank, hello)| (rank, identity(&hello.handle))))?;
    let with_pages = ranks().filter(|(_, hello)| !hello.page.is_empty());
    check_owners(with_pages.map(|(rank, hello)| (rank, Handle::file(&hello.page))))
}

fn check_owners<'a>(memories: impl Iterator<Item = (usize, &'a [u8])>) -> Result<()> {
    let mut owners = HashMap::new();
    for (rank, memory) in memories {
        if let Some(owner) = owners.insert(memory, rank) {
            return Err(Error::Agreement(format!(
                "rank {owner} and rank {rank} sent handles of the same memory; each must send the handle of its own"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use lamport_rs_kernels::plan;

    use super::super::hello::Plan;
    use super::super::hello::tests::{device, hello};
    use super::*;

    #[test]
    fn ranks_whose_devices_launch_other_grids_are_refused_by_name() {
        let of = |name: &str, plan| Hello { device: name.into(), plan: Some(Plan::of(plan)), ..hello() };
        let alike = [of("cuda:0", device()), of("cuda:1", device())];
        assert!(check_agreement(&alike, "comm_size").is_ok());
        let others = [
            plan::Device { compute_capability: (9, 1), ..device() },
            plan::Device { compute_capability: (10, 0), ..device() },
            plan::Device { multiprocessors: 114, ..device() },
            plan::Device { threads_per_multiprocessor: 1536, ..device() },
            plan::Device { blocks_per_multiprocessor: 24, ..device() },
        ];
        for other in others {
            let error = check_agreement(&[alike[0].clone(), of("cuda:1", other)], "comm_size").unwrap_err().to_string();
            let first = "rank 0 has cuda:0: 132 multiprocessors of sm_90 for 2048 threads and 32 blocks";
            assert!(error.contains(first), "{error}");
            assert!(error.contains(&format!("rank 1 has cuda:1: {}", Plan::of(other))), "{error}");
        }
    }

    #[test]
    fn ranks_that_send_the_same_memory_are_named() {
        let other = |handle| Hello { handle, page: vec![], ..hello() };
        let ranks = [other(vec![1, 7]), other(vec![2, 8]), other(vec![3, 7])];
        assert!(check_distinct(&ranks, |handle| handle).is_ok());
        let error = check_distinct(&ranks, |handle| &handle[1..]).unwrap_err().to_string();
        assert!(error.starts_with("rank 0 and rank 2 sent handles of the same memory"), "{error}");
        let without_page = Hello { handle: vec![0], page: vec![], ..hello() };
        let other = |handle| Hello { handle, ..hello() };
        let ranks = [without_page, other(vec![1]), other(vec![2])];
        let error = check_distinct(&ranks, |handle| handle).unwrap_err().to_string();
        assert!(error.starts_with("rank 1 and rank 2 sent handles of the same memory"), "{error}");
    }

    #[test]
    fn every_mismatch_names_the_field_and_what_each_rank_has() {
        let changed = [
            ("version of lamport-rs: rank 0 has", Hello { version: "9.9".into(), ..hello() }),
            ("layout of their memory: rank 0 has", Hello { layout: 1, ..hello() }),
            ("host: rank 0 has here, rank 1 has there", Hello { host: "there".into(), ..hello() }),
            ("backend: rank 0 has host, rank 1 has cuda", Hello { backend: "cuda".into(), ..hello() }),
            ("world_size: rank 0 has 2, rank 1 has 4", Hello { world_size: 4, ..hello() }),
            ("comm_size: rank 0 has 4096, rank 1 has 8192", Hello { comm_size: 8192, ..hello() }),
            ("two_shot_from: rank 0 has None, rank 1 has 64", Hello { two_shot_from: 64, ..hello() }),
        ];
        for (text, other) in changed {
            let error = check_agreement(&[hello(), other], "comm_size").unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
        let others = [hello(), Hello { handle: vec![], nonce: [9; 4], ..hello() }];
        assert!(check_agreement(&others, "comm_size").is_ok());
    }

    #[test]
    fn a_mismatch_in_size_is_told_by_the_callers_name_for_it() {
        let ranks = [hello(), Hello { comm_size: 8192, ..hello() }];
        let error = check_agreement(&ranks, "size").unwrap_err().to_string();
        assert!(error.contains("pass the same size on every rank; ") && !error.contains("comm_size"), "{error}");
    }
}
