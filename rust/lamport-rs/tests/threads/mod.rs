//! Ranks as threads, which meet over TCP or through files.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use lamport_rs::{FileRendezvous, Rendezvous, TcpRendezvous};

/// More than any rank of a test is behind another.
pub const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A name that no other test has.
pub fn unique(name: &str) -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!("{name}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// An empty folder.
pub fn folder() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(unique("meeting"));
    std::fs::create_dir(&folder).unwrap();
    folder
}

/// Runs `run` as every rank of a group, each on a thread of its own, and returns their results in rank order. Half the
/// groups meet over TCP.
pub fn on_ranks<R: Send>(world_size: usize, run: impl Fn(usize, &mut dyn Rendezvous) -> R + Sync) -> Vec<R> {
    static GROUPS: AtomicUsize = AtomicUsize::new(0);
    if GROUPS.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
        on_tcp(world_size, run)
    } else {
        on_files(world_size, run)
    }
}

/// Likewise, over TCP.
pub fn on_tcp<R: Send>(world_size: usize, run: impl Fn(usize, &mut dyn Rendezvous) -> R + Sync) -> Vec<R> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, id) = (listener.local_addr().unwrap(), unique("tcp"));
    on_threads(world_size, |rank| {
        let mut rendezvous = match rank {
            0 => TcpRendezvous::listen(listener.try_clone().unwrap(), &id, world_size, LONGEST_WAIT),
            _ => TcpRendezvous::meet(address, &id, rank, world_size, LONGEST_WAIT),
        };
        run(rank, rendezvous.as_mut().unwrap())
    })
}

/// Likewise, through files.
pub fn on_files<R: Send>(world_size: usize, run: impl Fn(usize, &mut dyn Rendezvous) -> R + Sync) -> Vec<R> {
    let (folder, id) = (folder(), unique("files"));
    let results = on_threads(world_size, |rank| {
        run(rank, &mut FileRendezvous::new(&folder, &id, rank, world_size, LONGEST_WAIT).unwrap())
    });
    std::fs::remove_dir_all(folder).unwrap();
    results
}

/// Runs `run` for each rank on a thread of its own.
pub fn on_threads<R: Send>(world_size: usize, run: impl Fn(usize) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..world_size).map(|rank| scope.spawn(move || run(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
