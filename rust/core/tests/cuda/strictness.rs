//! The stand-in refuses what the driver refuses, and tells of what no program may do: tests that rely on it could not
//! fail otherwise.

use cudarc::driver::sys::{self, CUresult};
use lamport_rs_core::cuda::device::Device;

use crate::standin::{Kind, Standin};

const BYTES: usize = 1 << 16;
const LAZY: u32 = 1;

fn allocate() -> u64 {
    let mut address = 0;
    // SAFETY: the address is written.
    assert_eq!(unsafe { sys::cuMemAlloc_v2(&mut address, BYTES) }, CUresult::CUDA_SUCCESS);
    address
}

fn free(address: u64) -> CUresult {
    // SAFETY: the stand-in checks what it is given.
    unsafe { sys::cuMemFree_v2(address) }
}

fn export(address: u64) -> sys::CUipcMemHandle {
    let mut handle = sys::CUipcMemHandle { reserved: [0; 64] };
    // SAFETY: the handle is written.
    assert_eq!(unsafe { sys::cuIpcGetMemHandle(&mut handle, address) }, CUresult::CUDA_SUCCESS);
    handle
}

fn open(handle: sys::CUipcMemHandle) -> Result<u64, CUresult> {
    let mut address = 0;
    // SAFETY: the address is written.
    match unsafe { sys::cuIpcOpenMemHandle_v2(&mut address, handle, LAZY) } {
        CUresult::CUDA_SUCCESS => Ok(address),
        error => Err(error),
    }
}

fn close(address: u64) -> CUresult {
    // SAFETY: the stand-in checks what it is given.
    unsafe { sys::cuIpcCloseMemHandle(address) }
}

#[test]
fn memory_is_freed_once_and_by_its_device() {
    let standin = Standin::take();
    let [first, second] = [0, 1].map(|index| Device::get(index).unwrap());
    let entered = first.enter().unwrap();
    let address = allocate();
    {
        let _entered = second.enter().unwrap();
        assert_eq!(free(address), CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    assert_eq!(standin.violations().lines().count(), 1);
    assert_eq!(standin.write_off(), [Kind::Memory]);
    assert_eq!(free(address), CUresult::CUDA_SUCCESS);
    assert_eq!(free(address), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert!(standin.violations().contains("cuMemFree"));
    drop(entered);
    assert_eq!(free(address), CUresult::CUDA_ERROR_INVALID_CONTEXT);
    standin.write_off();
}

#[test]
fn a_mapping_has_one_address_per_device_and_shows_the_owner_s_memory() {
    let standin = Standin::take();
    let [owner, peer] = [0, 1].map(|index| Device::get(index).unwrap());
    let entered = owner.enter().unwrap();
    let address = allocate();
    let handle = export(address);
    assert_eq!(open(handle), Err(CUresult::CUDA_ERROR_INVALID_CONTEXT));
    {
        let _entered = peer.enter().unwrap();
        let mapped = open(handle).unwrap();
        assert_ne!(mapped, address);
        assert_eq!(open(handle), Ok(mapped));
        // SAFETY: both are memory of this process, of which nothing else is made.
        unsafe {
            (address as *mut u32).write_volatile(7);
            assert_eq!((mapped as *const u32).read_volatile(), 7);
        }
        assert_eq!([close(mapped), close(mapped)], [CUresult::CUDA_SUCCESS; 2]);
        assert_eq!(close(mapped), CUresult::CUDA_ERROR_INVALID_VALUE);
        assert!(standin.violations().contains("cuIpcCloseMemHandle"));
        open(handle).unwrap();
    }
    let before = standin.frees_while_mapped();
    assert_eq!(free(address), CUresult::CUDA_SUCCESS);
    assert_eq!(standin.frees_while_mapped() - before, 1);
    assert_eq!(standin.write_off(), [Kind::Mapping]);
    assert_eq!(open(handle), Err(CUresult::CUDA_ERROR_INVALID_VALUE), "the memory is gone");
    drop(entered);
}

#[test]
fn what_is_no_kernel_of_this_crate_is_not_loaded() {
    let _standin = Standin::take();
    let device = Device::get(0).unwrap();
    let _entered = device.enter().unwrap();
    let mut module = std::ptr::null_mut();
    let ptx = c".visible .entry fill(\n)\n{ ret; }";
    // SAFETY: the module is written, and the text NUL-terminated.
    let loaded = unsafe { sys::cuModuleLoadData(&mut module, ptx.as_ptr().cast()) };
    assert_eq!(loaded, CUresult::CUDA_ERROR_INVALID_PTX);
}
