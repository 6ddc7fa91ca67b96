//! An all-reduce of two processes, without Python: `cargo run -p lamport-rs-core --example all_reduce`.
//!
//! Rank 0 starts rank 1, and the pipes between them carry the exchange of handles. After that they speak through shared
//! memory alone.

use std::env;
use std::error::Error;
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};

use lamport_rs_core::operations::arguments::AllReduce;
use lamport_rs_core::operations::host::all_reduce;
use lamport_rs_core::rendezvous::AllGather;
use lamport_rs_core::tensor::{Device, Dimensions, Dtype, Tensor};
use lamport_rs_core::workspace::Settings;
use lamport_rs_core::workspace::host::HostWorkspace;

const WORLD_SIZE: i64 = 2;
const ELEMENTS: usize = 1000;

/// Operands are aligned to 16 bytes.
#[repr(align(16))]
struct Aligned([f32; ELEMENTS]);

/// A rank's ends of the pipes to the other.
struct Pipes<R, W> {
    rank: usize,
    from_peer: R,
    to_peer: W,
}

impl<R: Read, W: Write> AllGather for Pipes<R, W> {
    fn all_gather(&mut self, message: &[u8]) -> Result<Vec<Vec<u8>>, String> {
        let mut exchange = || {
            self.to_peer.write_all(message)?;
            self.to_peer.flush()?;
            let mut received = vec![0; message.len()];
            self.from_peer.read_exact(&mut received)?;
            Ok(received)
        };
        let received = exchange().map_err(|error: io::Error| error.to_string())?;
        let mut messages = vec![message.to_vec(), received];
        messages.rotate_right(self.rank);
        Ok(messages)
    }
}

/// What each rank does.
fn run(rank: i64, pipes: &mut dyn AllGather) -> Result<(), Box<dyn Error>> {
    let settings = Settings { rank, world_size: WORLD_SIZE, comm_size: 1 << 20, timeout: 30.0, two_shot_from: None };
    let workspace = HostWorkspace::create(&settings, pipes)?;
    for round in 1..=3 {
        let mut values = Aligned([round as f32 * (rank + 1) as f32; ELEMENTS]);
        let tensor = Tensor {
            pointer: values.0.as_mut_ptr().cast(),
            dtype: Dtype::Float32,
            device: Device::Cpu,
            shape: Dimensions::new([ELEMENTS]).expect("one dimension"),
            strides: Dimensions::new([1]).expect("one dimension"),
            is_negated: false,
        };
        let operands = AllReduce { input: tensor, output: tensor, algorithm: None };
        // SAFETY: `values` has the shape's elements, outlives the call, and nothing else accesses it meanwhile.
        unsafe { all_reduce(&workspace, &operands, &mut || false) }?;
        // To stderr, as rank 1's standard output is the pipe; and in one write, as the other rank writes there too.
        let line = format!("rank {rank}: {round} + {} = {}\n", 2 * round, values.0[ELEMENTS - 1]);
        io::stderr().write_all(line.as_bytes())?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    if env::args().nth(1).as_deref() == Some("rank 1") {
        return run(1, &mut Pipes { rank: 1, from_peer: io::stdin(), to_peer: io::stdout() });
    }
    let mut peer =
        Command::new(env::current_exe()?).arg("rank 1").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (to_peer, from_peer) = (peer.stdin.take().expect("piped"), peer.stdout.take().expect("piped"));
    run(0, &mut Pipes { rank: 0, from_peer, to_peer })?;
    if !peer.wait()?.success() {
        return Err("rank 1 failed".into());
    }
    Ok(())
}
