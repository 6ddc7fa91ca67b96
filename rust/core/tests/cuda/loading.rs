//! Machine code or PTX: what is loaded.

use lamport_rs_core::error::Error;

use crate::standin::group::on_ranks;
use crate::standin::sum::sum;
use crate::standin::{Kind, OUT_OF_MEMORY, Standin, child};

/// CUDA_ERROR_INVALID_IMAGE.
const INVALID_IMAGE: i32 = 200;
/// CUDA_ERROR_NO_BINARY_FOR_GPU.
const NO_BINARY_FOR_GPU: i32 = 209;

/// Names the test's case for the process that runs it.
const CASE: &str = "STANDIN_CASE";

/// What a process loaded: modules, how many of them as machine code, and the calls that took.
fn loads(standin: &Standin) -> [i64; 3] {
    [standin.live(Kind::Module), standin.live(Kind::MachineCode), standin.calls("cuModuleLoadData") as i64]
}

fn in_a_process(case: &str, variables: &[(&str, &str)]) {
    let mut variables: Vec<_> = variables.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    variables.push((CASE, case.to_owned()));
    child::finish(child::start("loading::a_process_that_loads", &variables));
}

/// A process opens its devices, and loads modules, once.
#[test]
#[ignore = "other tests start it"]
fn a_process_that_loads() {
    let standin = Standin::take();
    match child::variable(CASE).as_str() {
        "machine code" => {
            assert_sums(&standin);
            let [modules, machine_code, calls] = loads(&standin);
            assert!(modules > 0 && machine_code == modules && calls == modules, "{:?}", loads(&standin));
        }
        "PTX" => {
            assert_sums(&standin);
            let [modules, machine_code, calls] = loads(&standin);
            assert!(modules > 0 && machine_code == 0 && calls == modules, "{:?}", loads(&standin));
        }
        "refused" => {
            for (rank, code) in [INVALID_IMAGE, NO_BINARY_FOR_GPU].into_iter().enumerate() {
                let before = loads(&standin);
                on_ranks(2, |this| {
                    let workspace = this.create().unwrap();
                    if this.rank == rank {
                        standin.fail(rank, Some("cuModuleLoadData"), 0, code);
                    }
                    this.meet();
                    // Of a size that has a kernel of its own.
                    let elements = if rank == 0 { 100 } else { 1 << 20 };
                    assert_eq!(sum(&workspace, elements).unwrap(), vec![2.0; elements]);
                    this.meet();
                });
                assert_eq!(standin.disarm().as_deref(), Some("cuModuleLoadData"));
                let [modules, machine_code, calls] = loads(&standin);
                assert_eq!(calls - before[2], modules - before[0] + 1, "one more for the refusal");
                assert_eq!(machine_code - before[1], modules - before[0] - 1, "and one as PTX");
            }
        }
        "no memory" => {
            on_ranks(2, |this| {
                let workspace = this.create().unwrap();
                if this.rank == 1 {
                    standin.fail(1, Some("cuModuleLoadData"), 0, OUT_OF_MEMORY);
                    match sum(&workspace, 100) {
                        Err(Error::Driver { call, .. }) => assert_eq!(call, "cuModuleLoadData"),
                        other => panic!("{other:?}"),
                    }
                }
                this.meet();
            });
        }
        other => panic!("{other:?} is no case"),
    }
}

fn assert_sums(standin: &Standin) {
    on_ranks(2, |rank| {
        let workspace = rank.create().unwrap();
        assert_eq!(sum(&workspace, 100).unwrap(), [2.0; 100]);
        rank.meet();
    });
    standin.check_all_is_given_back();
}

#[test]
fn devices_that_there_is_machine_code_for_load_it() {
    in_a_process("machine code", &[]);
}

#[test]
fn a_variable_has_ptx_loaded() {
    in_a_process("PTX", &[("LAMPORT_RS_PTX", "1")]);
}

#[test]
fn refused_machine_code_is_replaced_by_ptx() {
    in_a_process("refused", &[]);
}

#[test]
fn memory_that_is_short_is_an_error() {
    in_a_process("no memory", &[]);
}
