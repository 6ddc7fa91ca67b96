//! Sums over processes, each of which is a rank, and how long they take.
//!
//! ```sh
//! cargo run --release -p lamport-rs --example all_reduce -- --ranks 2
//! cargo run --release -p lamport-rs --features cuda --example all_reduce -- --ranks 2 --cuda
//! ```
//!
//! The program is rank 0, and starts itself as the others. They meet over TCP. With `--cuda`, rank r has device r.

use std::error::Error;
use std::net::TcpListener;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use lamport_rs::{Options, RmsNorm, TcpRendezvous, host};

/// Whatever goes wrong.
type Outcome<T> = Result<T, Box<dyn Error>>;

const TIMEOUT: Duration = Duration::from_secs(30);
/// Elements of the tensors that are summed: 1 KiB to 1 MiB.
const SIZES: [usize; 4] = [256, 2048, 16 << 10, 256 << 10];
/// Elements that are summed in all to measure one size, and the fewest and the most sums.
const MEASURED: usize = 4 << 20;
const ROUNDS: [usize; 2] = [50, 1000];
/// Of the rows that are normalised.
const HIDDEN: usize = 1024;

/// What the command line says.
struct Arguments {
    ranks: usize,
    is_cuda: bool,
    /// Of a rank that another has started: its number, where rank 0 listens, and the run's id.
    started: Option<(usize, String, String)>,
}

fn arguments() -> Outcome<Arguments> {
    let (mut ranks, mut is_cuda, mut rank, mut address, mut run_id) = (2, false, None, None, None);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} takes a value"));
        match word.as_str() {
            "--ranks" => ranks = value()?.parse()?,
            "--cuda" => is_cuda = true,
            "--rank" => rank = Some(value()?.parse()?),
            "--address" => address = Some(value()?),
            "--run" => run_id = Some(value()?),
            _ => return Err(format!("{word} is not known; use --ranks N and --cuda").into()),
        }
    }
    let started = rank.zip(address).zip(run_id).map(|((rank, address), run_id)| (rank, address, run_id));
    Ok(Arguments { ranks, is_cuda, started })
}

fn main() -> Outcome<()> {
    let arguments = arguments()?;
    if let Some((rank, address, run_id)) = &arguments.started {
        let mut rendezvous = TcpRendezvous::meet(address, run_id, *rank, arguments.ranks, TIMEOUT)?;
        return run(*rank, &arguments, &mut rendezvous);
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let run_id = format!("example-{}", std::process::id());
    let mut others =
        (1..arguments.ranks).map(|rank| start(rank, &arguments, &address, &run_id)).collect::<Outcome<Vec<_>>>()?;
    let mut rendezvous = TcpRendezvous::listen(listener, &run_id, arguments.ranks, TIMEOUT)?;
    let outcome = run(0, &arguments, &mut rendezvous);
    for (other, rank) in others.iter_mut().zip(1..) {
        let status = other.wait()?;
        if !status.success() {
            eprintln!("rank {rank} ended with {status}");
        }
    }
    outcome
}

fn start(rank: usize, arguments: &Arguments, address: &str, run_id: &str) -> Outcome<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--ranks", &arguments.ranks.to_string(), "--rank", &rank.to_string()]);
    command.args(["--address", address, "--run", run_id]);
    if arguments.is_cuda {
        command.arg("--cuda");
    }
    Ok(command.spawn()?)
}

fn run(rank: usize, arguments: &Arguments, rendezvous: &mut TcpRendezvous) -> Outcome<()> {
    let ranks = arguments.ranks;
    if arguments.is_cuda {
        return on_device(rank, ranks, rendezvous);
    }
    let mut communicator = host::Communicator::new(rank, ranks, rendezvous, Options::default())?;
    for elements in SIZES {
        let mut values = vec![1.0_f32 + rank as f32; elements];
        communicator.all_reduce(&mut values)?;
        check("sum", &values, expected_sum(ranks))?;
        let taken = latency(elements, || Ok(communicator.all_reduce(&mut values)?), || Ok(()))?;
        report(rank, "host memory", ranks, elements, taken);
    }
    let (mut hidden, mut residual) = (vec![1.0_f32 + rank as f32; 4 * HIDDEN], vec![1.0_f32; 4 * HIDDEN]);
    let weight = vec![2.0_f32; HIDDEN];
    communicator.all_reduce_rms_norm(&mut hidden, &mut residual, &weight, RmsNorm::new(0.0))?;
    check("residual", &residual, expected_sum(ranks) + 1.0)?;
    check("norm", &hidden, 2.0)
}

#[cfg(not(feature = "cuda"))]
fn on_device(_rank: usize, _ranks: usize, _rendezvous: &mut TcpRendezvous) -> Outcome<()> {
    Err("this program was built without the feature \"cuda\"".into())
}

#[cfg(feature = "cuda")]
fn on_device(rank: usize, ranks: usize, rendezvous: &mut TcpRendezvous) -> Outcome<()> {
    use cudarc::driver::CudaContext;
    use lamport_rs::cuda;

    if cuda::device_count()? < ranks {
        return Err(format!("{ranks} ranks need as many devices").into());
    }
    let context = CudaContext::new(rank)?;
    let stream = context.new_stream()?;
    let mut communicator = cuda::Communicator::new(rank, ranks, &context, rendezvous, Options::default())?;
    let name = context.name()?;
    for elements in SIZES {
        let mut values = stream.clone_htod(&vec![1.0_f32 + rank as f32; elements])?;
        communicator.all_reduce(&mut values, &stream)?;
        check("sum", &stream.clone_dtoh(&values)?, expected_sum(ranks))?;
        let mut sum = || Ok(communicator.all_reduce(&mut values, &stream)?);
        let taken = latency(elements, &mut sum, || Ok(stream.synchronize()?))?;
        communicator.check()?;
        report(rank, &name, ranks, elements, taken);
    }
    let mut hidden = stream.clone_htod(&vec![1.0_f32 + rank as f32; 4 * HIDDEN])?;
    let mut residual = stream.clone_htod(&vec![1.0_f32; 4 * HIDDEN])?;
    let weight = stream.clone_htod(&vec![2.0_f32; HIDDEN])?;
    communicator.all_reduce_rms_norm(&mut hidden, &mut residual, &weight, RmsNorm::new(0.0), &stream)?;
    check("residual", &stream.clone_dtoh(&residual)?, expected_sum(ranks) + 1.0)?;
    check("norm", &stream.clone_dtoh(&hidden)?, 2.0)?;
    Ok(communicator.synchronize()?)
}

/// 1 + 2 + … + ranks.
fn expected_sum(ranks: usize) -> f32 {
    (ranks * (ranks + 1) / 2) as f32
}

fn check(what: &str, values: &[f32], expected: f32) -> Outcome<()> {
    match values.iter().position(|value| (value - expected).abs() > 1e-4 * expected) {
        None => Ok(()),
        Some(at) => Err(format!("{what}: element {at} is {}, but {expected} was expected", values[at]).into()),
    }
}

/// How long one operation takes, back to back with others.
fn latency(
    elements: usize,
    mut operation: impl FnMut() -> Outcome<()>,
    mut wait: impl FnMut() -> Outcome<()>,
) -> Outcome<Duration> {
    let rounds = (MEASURED / elements).clamp(ROUNDS[0], ROUNDS[1]);
    (0..rounds / 10).try_for_each(|_| operation())?;
    wait()?;
    let began = Instant::now();
    (0..rounds).try_for_each(|_| operation())?;
    wait()?;
    Ok(began.elapsed() / rounds as u32)
}

fn report(rank: usize, place: &str, ranks: usize, elements: usize, taken: Duration) {
    if rank == 0 {
        let (bytes, microseconds) = (elements * size_of::<f32>(), taken.as_secs_f64() * 1e6);
        println!("{place}, {ranks} ranks, {bytes} bytes: the sum is right, {microseconds:.1} us");
    }
}
