//! Both kinds of rendezvous, with ranks that are missing, strangers, and leftovers.

#[allow(dead_code, reason = "other tests' too")]
mod threads;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use lamport_rs::host::Communicator;
use lamport_rs::{ErrorKind, FileRendezvous, Options, Rendezvous, Result, TcpRendezvous};

use self::threads::{LONGEST_WAIT, folder, on_files, on_tcp, on_threads};

/// What a test waits for a rank that does not come.
const SHORT: Duration = Duration::from_millis(300);

fn gathers(rank: usize, rendezvous: &mut dyn Rendezvous) {
    for (round, length) in [(0, 0), (1, 512), (2, 64 << 10), (3, 1)] {
        let message = |rank: usize| vec![(10 * round + rank) as u8; length];
        let gathered = rendezvous.all_gather(&message(rank)).unwrap();
        assert_eq!(gathered, (0..4).map(message).collect::<Vec<_>>());
    }
}

#[test]
fn every_rank_is_brought_the_messages_of_all_in_rank_order() {
    on_tcp(4, gathers);
    on_files(4, gathers);
}

#[test]
fn a_message_that_is_too_long_is_an_error() {
    let refused = |_: usize, rendezvous: &mut dyn Rendezvous| {
        let error = rendezvous.all_gather(&vec![0; (64 << 10) + 1]).unwrap_err().to_string();
        assert!(error.contains("65537 bytes, but may have 65536"), "{error}");
    };
    on_tcp(1, refused);
    on_files(1, refused);
}

#[test]
fn what_is_no_rank_or_no_id_is_refused() {
    for (id, rank, world_size) in
        [("a", 2, 2), ("a", 0, 0), ("a", 0, 17), ("", 0, 2), ("../a", 0, 2), (&"a".repeat(65), 0, 2)]
    {
        let tcp = TcpRendezvous::meet("127.0.0.1:1", id, rank, world_size, SHORT).map(drop);
        let files = FileRendezvous::new("/nowhere", id, rank, world_size, SHORT).map(drop);
        for refused in [tcp, files] {
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::Argument, "{id} {rank} {world_size}");
        }
    }
}

/// Rank 0 of two at a port of its own, and where that is.
fn listen(timeout: Duration) -> (impl FnOnce() -> Result<TcpRendezvous> + Send, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (move || TcpRendezvous::listen(listener, "run", 2, timeout), address)
}

fn meet(address: SocketAddr, id: &str, rank: usize, world_size: usize) -> Result<TcpRendezvous> {
    TcpRendezvous::meet(address, id, rank, world_size, LONGEST_WAIT)
}

#[test]
fn ranks_that_do_not_come_are_named() {
    let (rank_0, address) = listen(SHORT);
    let error = rank_0().unwrap_err().to_string();
    assert!(error.contains("rank 0 waited 300ms for rank 1 to connect"), "{error}");
    // Nobody listens there any more.
    let error = TcpRendezvous::meet(address, "run", 1, 2, SHORT).unwrap_err().to_string();
    assert!(error.contains("rank 1 tried 300ms to connect to rank 0"), "{error}");
    let mut rendezvous = FileRendezvous::new(folder(), "run", 1, 3, SHORT).unwrap();
    let error = rendezvous.all_gather(b"1").unwrap_err().to_string();
    assert!(error.contains("rank 1 waited 300ms for ranks 0, 2"), "{error}");
}

#[test]
fn ranks_may_come_before_rank_0() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    on_threads(2, |rank| {
        if rank == 0 {
            std::thread::sleep(SHORT);
        }
        let mut rendezvous = meet(address, "run", rank, 2).unwrap();
        assert_eq!(rendezvous.all_gather(&[rank as u8]).unwrap(), [[0], [1]]);
    });
}

/// Runs rank 0 and rank 1 with what strangers do before rank 1 comes; both must meet nevertheless.
fn meet_beside(strangers: impl FnOnce(SocketAddr) -> Vec<TcpStream>) {
    let (rank_0, address) = listen(LONGEST_WAIT);
    std::thread::scope(|scope| {
        let rank_0 = scope.spawn(|| rank_0().unwrap().all_gather(b"0").unwrap());
        let _open = strangers(address);
        let gathered = meet(address, "run", 1, 2).unwrap().all_gather(b"1").unwrap();
        assert_eq!(gathered, [b"0", b"1"]);
        assert_eq!(rank_0.join().unwrap(), gathered);
    });
}

#[test]
fn strangers_do_not_keep_the_ranks_from_meeting() {
    meet_beside(|address| {
        let say = |bytes: &[u8]| {
            let mut link = TcpStream::connect(address).unwrap();
            link.write_all(bytes).unwrap();
            link
        };
        let mut strangers: Vec<_> = (0..100).map(|_| say(b"")).collect();
        strangers.extend([say(b"GET / HTTP/1.1\r\n\r\n"), say(b"LAMPRDV1"), say(&[0xff; 4096])]);
        // As a rank that is not of this world, and with an id that is longer than its place.
        strangers.push(say(&[b"LAMPRDV1".as_slice(), &[0xff; 76]].concat()));
        let closed = say(b"LAMP");
        closed.shutdown(Shutdown::Both).unwrap();
        strangers.push(closed);
        strangers
    });
}

#[test]
fn ranks_of_other_groups_are_told_why_they_are_refused() {
    meet_beside(|address| {
        for (id, world_size, reason) in [
            ("other", 2, "rank 1 is of run \"other\", not \"run\""),
            ("run", 3, "rank 1 has world_size 3, but rank 0 has 2"),
        ] {
            let error = meet(address, id, 1, world_size).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Rendezvous);
            assert!(error.to_string().contains(reason), "{error}");
        }
        vec![]
    });
}

#[test]
fn a_second_rank_of_one_number_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        let rank_0 = scope.spawn(move || TcpRendezvous::listen(listener, "run", 3, LONGEST_WAIT));
        let twins = [0, 1].map(|_| scope.spawn(move || meet(address, "run", 1, 3).map(drop)));
        // One of them is refused while the other waits for rank 2.
        while twins.iter().all(|twin| !twin.is_finished()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        meet(address, "run", 2, 3).unwrap();
        rank_0.join().unwrap().unwrap();
        let errors: Vec<_> = twins.into_iter().filter_map(|twin| twin.join().unwrap().err()).collect();
        assert!(
            matches!(errors.as_slice(), [error] if error.to_string().contains("there is a rank 1 already")),
            "{errors:?}"
        );
    });
}

/// A hello of rank 1 of two, byte by byte.
fn hello() -> Vec<u8> {
    let mut bytes = b"LAMPRDV1".to_vec();
    [1_u32, 2, 3].iter().for_each(|number| bytes.extend(number.to_le_bytes()));
    bytes.extend(b"run");
    bytes.resize(84, 0);
    bytes
}

/// What rank 0's exchange says if rank 1 behaves so after it was welcomed.
fn error_of_rank_0(rank_1: impl FnOnce(TcpStream) + Send) -> String {
    let (rank_0, address) = listen(SHORT);
    std::thread::scope(|scope| {
        let rank_0 = scope.spawn(|| rank_0().unwrap().all_gather(b"0").unwrap_err().to_string());
        let mut link = TcpStream::connect(address).unwrap();
        link.write_all(&hello()).unwrap();
        let mut welcome = [0; 12];
        link.read_exact(&mut welcome).unwrap();
        rank_1(link);
        rank_0.join().unwrap()
    })
}

#[test]
fn wrong_bytes_of_a_rank_are_an_error_and_so_is_silence() {
    let error = error_of_rank_0(drop);
    assert!(error.contains("receiving from rank 1: "), "{error}");
    let mut kept = None;
    let error = error_of_rank_0(|link| kept = Some(link));
    assert!(error.contains("receiving from rank 1: nothing came for 300ms"), "{error}");
    let error = error_of_rank_0(|mut link| link.write_all(&(u32::MAX - 1).to_le_bytes()).unwrap());
    assert!(error.contains("it announces 4294967294 bytes, but may send 65536"), "{error}");
    let error = error_of_rank_0(|mut link| {
        // A byte now and then, of many.
        link.write_all(&1000_u32.to_le_bytes()).unwrap();
        while link.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    assert!(error.contains("nothing came for 300ms"), "{error}");
    let error = error_of_rank_0(|mut link| {
        link.write_all(&[[0xff; 4], 5_u32.to_le_bytes()].concat()).unwrap();
        link.write_all("\x07\u{202e}!".as_bytes()).unwrap();
    });
    assert!(error.ends_with(r"receiving from rank 1: \u{7}\u{202e}!"), "{error}");
}

#[test]
fn a_failure_of_rank_0_is_told_to_the_others_and_stays() {
    let (rank_0, address) = listen(LONGEST_WAIT);
    std::thread::scope(|scope| {
        let rank_1 = scope.spawn(move || {
            let mut rendezvous = meet(address, "run", 1, 2).unwrap();
            rendezvous.all_gather(b"1").unwrap_err().to_string()
        });
        let mut rendezvous = rank_0().unwrap();
        let error = rendezvous.all_gather(&vec![0; 1 << 20]).unwrap_err().to_string();
        assert!(rank_1.join().unwrap().contains(&error), "{error}");
        assert_eq!(rendezvous.all_gather(b"0").unwrap_err().to_string(), error);
    });
}

#[test]
fn somebody_else_than_rank_0_is_noticed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    for (answer, expected) in [
        (b"HTTP/1.1 400 Bad Request".as_slice(), "it announces 1347703880 bytes, but may send 65536"),
        (b"\x02\0\0\0OK", "is somebody else than rank 0 of lamport-rs"),
        (b"", "it has closed the connection"),
    ] {
        std::thread::scope(|scope| {
            let listener = &listener;
            scope.spawn(move || {
                let (mut link, _) = listener.accept().unwrap();
                link.read_exact(&mut [0; 84]).unwrap();
                link.write_all(answer).unwrap();
            });
            let error = meet(address, "run", 1, 2).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        });
    }
}

fn files(folder: &Path, id: &str, rank: usize) -> FileRendezvous {
    FileRendezvous::new(folder, id, rank, 2, SHORT).unwrap()
}

#[test]
fn what_an_earlier_run_left_is_not_read() {
    let folder = folder();
    for id in ["first", "second"] {
        on_threads(2, |rank| {
            let mut rendezvous = FileRendezvous::new(&folder, id, rank, 2, LONGEST_WAIT).unwrap();
            for round in 0..3 {
                let message = |rank: usize| format!("{id} {round} {rank}").into_bytes();
                assert_eq!(rendezvous.all_gather(&message(rank)).unwrap(), [0, 1].map(message));
            }
        });
    }
    // Two ranks' last messages of two runs.
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 4);
    // One that comes again with an id that was used.
    let error = {
        std::fs::write(folder.join("third.0.1"), "old").unwrap();
        files(&folder, "third", 1).all_gather(b"new").unwrap_err().to_string()
    };
    assert!(
        error.contains("is there already: another process is rank 1, or an earlier run had this run_id"),
        "{error}"
    );
    assert_eq!(std::fs::read(folder.join("third.0.1")).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 5);
}

#[test]
fn what_no_rank_has_written_is_an_error_and_nobody_waits_for_it() {
    let folder = folder();
    let error_beside = |id: &str, make: &dyn Fn(&Path)| {
        make(&folder.join(format!("{id}.0.1")));
        let began = Instant::now();
        let error = files(&folder, id, 0).all_gather(b"0").unwrap_err().to_string();
        assert!(began.elapsed() < LONGEST_WAIT);
        error
    };
    let error = error_beside("large", &|path| std::fs::write(path, vec![0; (64 << 10) + 1]).unwrap());
    assert!(error.contains("more than 65536 bytes"), "{error}");
    let error = error_beside("folder", &|path| std::fs::create_dir(path).unwrap());
    assert!(error.contains("it is no file"), "{error}");
    let error = error_beside("pipe", &|path| {
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    });
    assert!(error.contains("it is no file"), "{error}");
    let error = error_beside("link", &|path| std::os::unix::fs::symlink("/etc/hostname", path).unwrap());
    assert!(error.contains("link.0.1"), "{error}");
    let error = files(Path::new("/no/such/folder"), "none", 0).all_gather(b"0").unwrap_err().to_string();
    assert!(error.contains("writing /no/such/folder/none.0.0 failed"), "{error}");
}

/// Whatever carries them: bytes that no rank of this crate sent make no communicator.
#[test]
fn foreign_messages_are_an_error_of_the_construction() {
    let errors = on_files(2, |rank, rendezvous| {
        if rank == 1 {
            // As many as the other rank asks for.
            while rendezvous.all_gather(&[7; 512]).is_ok_and(|gathered| gathered[0].len() == 512 && gathered[0][0] != 0)
            {
            }
            return String::new();
        }
        let error = Communicator::new(0, 2, rendezvous, Options::default().comm_size(4096)).unwrap_err();
        // For the other.
        rendezvous.all_gather(b"").unwrap();
        error.to_string()
    });
    assert!(errors[0].contains("its message is not one of lamport-rs"), "{errors:?}");
}
