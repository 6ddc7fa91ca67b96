//! Launches that cost the host little.
//!
//! Launching a graph of one kernel takes the driver half as long as launching the kernel: it has checked everything
//! when it made the graph, and only the parameters are new. What is lost is the overlap with the kernel before
//! (programmatic dependent launch), some tenths of a microsecond on the device: less than what the host gains, which is
//! what calls outside of graphs wait for.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys;
use lamport_rs_kernels::plan::LaunchPlan;

use super::device::Device;
use super::driver::check;
use super::launch::{Function, RelaxedCapture};
use crate::error::Result;

/// Launches kernels, one at a time: through a graph of one node, or as what they are into a capture.
#[derive(Debug)]
pub struct EagerLauncher {
    device: Arc<Device>,
    graph: Option<OneNode>,
}

// SAFETY: graph handles may be used from any thread, by one at a time.
unsafe impl Send for EagerLauncher {}

#[derive(Debug)]
struct OneNode {
    graph: sys::CUgraph,
    node: sys::CUgraphNode,
    executable: sys::CUgraphExec,
}

impl EagerLauncher {
    /// For kernels of `device`.
    pub fn new(device: &Arc<Device>) -> Self {
        Self { device: device.clone(), graph: None }
    }

    /// Launches `function` with its one parameter struct.
    ///
    /// # Safety
    /// As for [`Function::launch`].
    #[inline]
    pub unsafe fn launch<P>(
        &mut self,
        function: Function,
        plan: &LaunchPlan,
        stream: sys::CUstream,
        parameters: &P,
    ) -> Result<()> {
        if is_capturing(stream)? {
            // SAFETY: the caller's promises.
            return unsafe { function.launch(plan, stream, parameters) };
        }
        let mut pointers = [std::ptr::from_ref(parameters).cast_mut().cast::<c_void>()];
        let node = node_parameters(function, plan, &mut pointers);
        let graph = match &self.graph {
            Some(graph) => {
                // SAFETY: the node is the graph's; the driver copies the parameters. Launches made before keep theirs.
                check("cuGraphExecKernelNodeSetParams", unsafe {
                    sys::cuGraphExecKernelNodeSetParams_v2(graph.executable, graph.node, &node)
                })?;
                graph
            }
            None => self.graph.insert(OneNode::new(&node)?),
        };
        // SAFETY: the caller's promises.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(graph.executable, stream) })
    }
}

impl Drop for EagerLauncher {
    fn drop(&mut self) {
        let Some(OneNode { graph, executable, .. }) = self.graph.take() else { return };
        let (Ok(_entered), Ok(_relaxed)) = (self.device.enter(), RelaxedCapture::begin()) else { return };
        // SAFETY: both are ours. The driver keeps what running launches need.
        unsafe {
            let _ = sys::cuGraphExecDestroy(executable);
            let _ = sys::cuGraphDestroy(graph);
        }
    }
}

impl OneNode {
    /// The device's context is current.
    #[cold]
    fn new(parameters: &sys::CUDA_KERNEL_NODE_PARAMS_v2) -> Result<Self> {
        let _relaxed = RelaxedCapture::begin()?;
        let mut graph = std::ptr::null_mut();
        // SAFETY: the handle is written.
        check("cuGraphCreate", unsafe { sys::cuGraphCreate(&mut graph, 0) })?;
        let mut this = Self { graph, node: std::ptr::null_mut(), executable: std::ptr::null_mut() };
        let made = this.instantiate(parameters);
        made.map(|()| this).inspect_err(|_| {
            // SAFETY: the graph is ours, and nothing was made of it.
            let _ = unsafe { sys::cuGraphDestroy(graph) };
        })
    }

    fn instantiate(&mut self, parameters: &sys::CUDA_KERNEL_NODE_PARAMS_v2) -> Result<()> {
        // SAFETY: the graph is ours, and the parameters are a kernel's.
        check("cuGraphAddKernelNode", unsafe {
            sys::cuGraphAddKernelNode_v2(&mut self.node, self.graph, std::ptr::null(), 0, parameters)
        })?;
        // SAFETY: the graph is ours, and whole.
        check("cuGraphInstantiate", unsafe { sys::cuGraphInstantiateWithFlags(&mut self.executable, self.graph, 0) })
    }
}

fn node_parameters(
    function: Function,
    plan: &LaunchPlan,
    pointers: &mut [*mut c_void; 1],
) -> sys::CUDA_KERNEL_NODE_PARAMS_v2 {
    sys::CUDA_KERNEL_NODE_PARAMS_v2 {
        func: function.handle(),
        gridDimX: plan.grid,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: plan.block,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 0,
        kernelParams: pointers.as_mut_ptr(),
        extra: std::ptr::null_mut(),
        kern: std::ptr::null_mut(),
        ctx: std::ptr::null_mut(),
    }
}

fn is_capturing(stream: sys::CUstream) -> Result<bool> {
    let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: the caller's stream; the status is written.
    let asked = unsafe { sys::cuStreamIsCapturing(stream, &mut status) };
    // The answer for the legacy stream while another stream captures.
    if asked == sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT {
        return Ok(false);
    }
    check("cuStreamIsCapturing", asked)?;
    Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}
