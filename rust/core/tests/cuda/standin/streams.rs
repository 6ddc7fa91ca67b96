//! Streams of a device, and graphs.

use std::sync::Arc;

use cudarc::driver::sys;
use lamport_rs_core::cuda::device::Device;

const NON_BLOCKING: u32 = 1;

/// A stream.
pub struct TestStream {
    device: Arc<Device>,
    /// As operations take it.
    pub handle: sys::CUstream,
}

impl TestStream {
    /// Of this device.
    pub fn new(device: &Arc<Device>) -> Self {
        let _entered = device.enter().unwrap();
        let mut handle = std::ptr::null_mut();
        // SAFETY: the context is current.
        unsafe { sys::cuStreamCreate(&mut handle, NON_BLOCKING) }.result().unwrap();
        Self { device: device.clone(), handle }
    }

    /// Begins a capture, in the mode that forbids most.
    pub fn begin_capture(&self) {
        let _entered = self.device.enter().unwrap();
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
        // SAFETY: the context is current.
        unsafe { sys::cuStreamBeginCapture_v2(self.handle, mode) }.result().unwrap();
    }

    /// Ends it, and returns what was recorded.
    pub fn end_capture(&self) -> Graph {
        let _entered = self.device.enter().unwrap();
        let (mut graph, mut executable) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the context is current, and each graph is used once it was made.
        unsafe {
            sys::cuStreamEndCapture(self.handle, &mut graph).result().unwrap();
            sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0).result().unwrap();
            sys::cuGraphDestroy(graph).result().unwrap();
        }
        Graph { executable }
    }

    /// Runs a graph, in this stream's order.
    pub fn launch(&self, graph: &Graph) {
        let _entered = self.device.enter().unwrap();
        // SAFETY: the context is current, and the graph is alive.
        unsafe { sys::cuGraphLaunch(graph.executable, self.handle) }.result().unwrap();
    }
}

impl Drop for TestStream {
    fn drop(&mut self) {
        let _entered = self.device.enter().unwrap();
        // SAFETY: the context is current, and nobody uses the stream any more.
        unsafe { sys::cuStreamDestroy_v2(self.handle) }.result().unwrap();
    }
}

/// A graph that can be launched.
pub struct Graph {
    executable: sys::CUgraphExec,
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: nobody launches it any more.
        unsafe { sys::cuGraphExecDestroy(self.executable) }.result().unwrap();
    }
}
