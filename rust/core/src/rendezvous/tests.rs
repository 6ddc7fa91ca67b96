use super::*;

/// Ranks as threads: everybody's message, once all have come.
struct Threads {
    rank: usize,
    messages: std::sync::Arc<(std::sync::Barrier, std::sync::Mutex<Vec<Vec<u8>>>)>,
}

impl AllGather for Threads {
    fn all_gather(&mut self, message: &[u8]) -> std::result::Result<Vec<Vec<u8>>, String> {
        let (barrier, messages) = &*self.messages;
        messages.lock().unwrap()[self.rank] = message.to_vec();
        barrier.wait();
        let all = messages.lock().unwrap().clone();
        barrier.wait();
        Ok(all)
    }
}

fn agree(ranks: usize, run: impl Fn(usize, &mut dyn AllGather) -> Result<Vec<()>> + Sync) -> Vec<String> {
    let shared = std::sync::Arc::new((std::sync::Barrier::new(ranks), std::sync::Mutex::new(vec![vec![]; ranks])));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..ranks)
            .map(|rank| {
                let (run, messages) = (&run, shared.clone());
                scope.spawn(move || run(rank, &mut Threads { rank, messages }))
            })
            .collect();
        threads.into_iter().map(|thread| format!("{:?}", thread.join().unwrap().map_err(|e| e.to_string()))).collect()
    })
}

#[test]
fn one_ranks_failure_is_the_same_error_on_every_rank() {
    let verdicts = agree(3, |rank, transport| {
        let local = if rank == 1 { Err(Error::system("cuMemAlloc", "out of memory")) } else { Ok(()) };
        Rendezvous::new(transport, rank as i64, 3).agree(local)
    });
    assert_eq!(verdicts, vec![r#"Err("rank 1: cuMemAlloc failed: out of memory")"#; 3]);
}

#[test]
fn the_same_failure_on_every_rank_is_said_once() {
    let verdicts = agree(2, |rank, transport| {
        Rendezvous::new(transport, rank as i64, 2).agree::<()>(Err(Error::Argument("bad".into())))
    });
    assert_eq!(verdicts, vec![r#"Err("bad")"#; 2]);
}

#[test]
fn a_rank_that_was_told_another_rank_is_named() {
    let verdicts = agree(2, |_, transport| Rendezvous::new(transport, 0, 2).agree(Ok(())));
    assert_eq!(verdicts[0], verdicts[1]);
    assert!(verdicts[0].contains("rank 1: it is rank 1 of the group, but was told rank=0"), "{}", verdicts[0]);
}

#[test]
fn a_group_of_another_size_is_an_error() {
    let verdicts = agree(2, |rank, transport| {
        let mut rendezvous = Rendezvous::new(transport, rank as i64, 4);
        let all = rendezvous.agree(Ok(()))?;
        rendezvous.check_size(all.len()).map(|()| all)
    });
    assert!(verdicts.iter().all(|verdict| verdict.contains("world_size is 4, but the group has 2 ranks")));
}

#[test]
fn a_foreign_message_is_an_error_that_names_its_sender() {
    struct Foreign;
    impl AllGather for Foreign {
        fn all_gather(&mut self, message: &[u8]) -> std::result::Result<Vec<Vec<u8>>, String> {
            Ok(vec![message.to_vec(), vec![7; MESSAGE_BYTES]])
        }
    }
    let error = Rendezvous::new(&mut Foreign, 0, 2).agree(Ok(())).unwrap_err().to_string();
    assert!(error.contains("; rank 1: its message is not one of lamport-rs"), "{error}");
}

type Change = fn(&mut Vec<Vec<u8>>);

/// Brings rank 1 other messages than the others, at one step.
struct Garbled<'a> {
    transport: &'a mut dyn AllGather,
    is_meant: bool,
    at: usize,
    change: Change,
    rounds: usize,
}

impl AllGather for Garbled<'_> {
    fn all_gather(&mut self, message: &[u8]) -> std::result::Result<Vec<Vec<u8>>, String> {
        let mut gathered = self.transport.all_gather(message)?;
        if self.is_meant && self.rounds == self.at {
            (self.change)(&mut gathered);
        }
        self.rounds += 1;
        Ok(gathered)
    }
}

const CHANGES: [(Change, &str); 6] = [
    (|messages| messages[2].truncate(100), "rank 2: its message has 100 bytes instead of 512"),
    (|messages| messages[2][3] ^= 1, "rank 2: its message is not one of lamport-rs"),
    (|messages| messages[2][12] ^= 8, "rank 2: it is at step "),
    (|messages| messages[2][24] = 9, "rank 2: its message is not one of lamport-rs"),
    (|messages| messages[2][28] = 7, "rank 2 sent a payload that cannot be read"),
    (|messages| messages.reverse(), "rank 0: it is rank 0 of the group, but was told rank=2"),
];

#[test]
fn what_one_rank_alone_cannot_read_is_told_to_the_others_in_the_next_round() {
    for (change, text) in CHANGES {
        for at in [0, 1] {
            let verdicts = agree(3, |rank, transport| {
                let mut transport = Garbled { transport, is_meant: rank == 1, at, change, rounds: 0 };
                let mut rendezvous = Rendezvous::new(&mut transport, rank as i64, 3);
                let outcome = (0..=at + 1).try_fold(vec![], |_, _| rendezvous.agree(Ok(())));
                assert_eq!(transport.rounds, at + 2);
                outcome
            });
            assert!(verdicts[1].contains(&format!("rank 1: {text}")), "{verdicts:?}");
            assert_eq!(verdicts, vec![verdicts[1].clone(); 3]);
        }
    }
}

#[test]
fn what_all_ranks_know_takes_no_other_round() {
    let failures: [Change; 2] = [
        // Another version, in which the rounds may be others.
        |messages| messages[2][8] += 1,
        |messages| messages[2] = Message { rank: 2, step: 0, body: Body::Failure("bad".into()) }.encode(),
    ];
    for change in failures {
        agree(3, |rank, transport| {
            let mut transport = Garbled { transport, is_meant: true, at: 0, change, rounds: 0 };
            let outcome = Rendezvous::new(&mut transport, rank as i64, 3).agree(Ok(()));
            assert!(outcome.is_err());
            assert_eq!(transport.rounds, 1);
            outcome
        });
    }
}

/// Brings so many copies of this rank's message, step by step.
struct Copies(Vec<usize>);

impl AllGather for Copies {
    fn all_gather(&mut self, message: &[u8]) -> std::result::Result<Vec<Vec<u8>>, String> {
        Ok(vec![message.to_vec(); self.0.remove(0)])
    }
}

#[test]
fn a_failure_whose_message_is_lost_is_a_failure_still() {
    let error =
        Rendezvous::new(&mut Copies(vec![0]), 0, 2).agree::<()>(Err(Error::Argument("bad".into()))).unwrap_err();
    assert_eq!(error.to_string(), "bad");
}

#[test]
fn every_step_must_bring_as_many_messages_as_the_first() {
    let mut transport = Copies(vec![1, 0]);
    let mut rendezvous = Rendezvous::new(&mut transport, 0, 1);
    rendezvous.agree(Ok(())).unwrap();
    let error = rendezvous.agree(Ok(())).unwrap_err().to_string();
    assert!(error.contains("brought 0 messages, after 1 the first time"), "{error}");
}

#[test]
fn a_long_failure_is_cut_at_a_character() {
    let message = Message { rank: 3, step: 1, body: Body::Failure("é".repeat(1000)) };
    let decoded = Message::decode(&message.encode()).unwrap();
    let Body::Failure(reason) = decoded.body else { panic!("not a failure") };
    assert_eq!(reason, "é".repeat(240));
}

#[test]
fn no_message_makes_the_decoder_panic() {
    let good = Message { rank: 0, step: 0, body: Body::Payload(vec![1, 2, 3]) }.encode();
    for at in 0..MESSAGE_BYTES {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut bytes = good.clone();
            bytes[at] = value;
            let _ = Message::decode(&bytes);
            let _ = Message::decode(&bytes[..at]);
        }
    }
}
