//! A sum over processes that are started by hand, each of which is a rank.

use std::error::Error;
use std::time::Duration;

use lamport_rs::host::Communicator;
use lamport_rs::{Options, TcpRendezvous};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [rank, ranks, address] = &words[..] else {
        return Err("usage: RANK RANKS ADDRESS, where rank 0 listens at the address".into());
    };
    let (rank, ranks) = (rank.parse()?, ranks.parse()?);

    let mut rendezvous = TcpRendezvous::meet(address, "first", rank, ranks, Duration::from_secs(30))?;
    let mut communicator = Communicator::new(rank, ranks, &mut rendezvous, Options::default())?;

    let mut values = vec![rank as f32 + 1.0; 1000];
    communicator.all_reduce(&mut values[..])?;
    println!("rank {rank} of {ranks}: {}", values[0]);
    Ok(())
}
