//! A rendezvous over TCP: rank 0 listens, and the others connect.
//!
//! A rank that connects says which one it is, and is answered once all have come. Then each round is a frame of every
//! rank's to rank 0, and all frames from there to every rank: `frames` has their bytes.

use std::io::{self, ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::Duration;

use super::frames::{HELLO_BYTES, MAGIC, decode_hello, encode_hello, is_passing, receive, refuse, send, write_all};
use super::{Deadline, INTERVAL, Member, Rendezvous, TransportError, name_ranks};
use crate::error::{Error, Result};

/// Most connections that have not said yet who they are.
const MAX_STRANGERS: usize = 64;

/// A rendezvous over TCP: rank 0 listens at an address, and the others connect to it.
///
/// It is not encrypted, and whoever can connect can take part: on one machine, use an address of `127.0.0.1`.
#[derive(Debug)]
pub struct TcpRendezvous {
    member: Member,
    timeout: Duration,
    /// Rank 0's to the others, in rank order; the others' to rank 0.
    links: Vec<TcpStream>,
    /// Why there is no more to come.
    failure: Option<Error>,
}

impl TcpRendezvous {
    /// Meets at `address` as `rank` of `world_size`, for which this waits up to `timeout`, and so does each round.
    ///
    /// All ranks of a run pass the same `run_id`; a rank of another run is refused. The others may come before rank 0.
    pub fn meet(
        address: impl ToSocketAddrs,
        run_id: &str,
        rank: usize,
        world_size: usize,
        timeout: Duration,
    ) -> Result<Self> {
        let member = Member::new(run_id, rank, world_size)?;
        let addresses = address.to_socket_addrs().map_err(|error| failed("the address does not resolve", &error))?;
        let addresses: Vec<_> = addresses.collect();
        if rank > 0 {
            let link = connect(&member, &addresses, Deadline::after(timeout))?;
            return Ok(Self { member, timeout, links: vec![link], failure: None });
        }
        let listener = TcpListener::bind(addresses.as_slice())
            .map_err(|error| failed(&format!("rank 0 cannot listen at {addresses:?}"), &error))?;
        Self::listen(listener, run_id, world_size, timeout)
    }

    /// Likewise as rank 0, which listens already: at a port that the system chose, say.
    pub fn listen(listener: TcpListener, run_id: &str, world_size: usize, timeout: Duration) -> Result<Self> {
        let member = Member::new(run_id, 0, world_size)?;
        let links = accept(&member, &listener, Deadline::after(timeout))?;
        Ok(Self { member, timeout, links, failure: None })
    }

    fn round(&mut self, message: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.member.check_message(message)?;
        let deadline = Deadline::after(self.timeout);
        let world_size = self.member.world_size;
        if self.member.rank > 0 {
            let link = &mut self.links[0];
            send(link, message, deadline).map_err(|error| failed("sending to rank 0", &error))?;
            let receive = |_| receive(link, deadline).map_err(|error| failed("receiving from rank 0", &error));
            return (0..world_size).map(receive).collect();
        }
        let mut gathered = vec![message.to_vec()];
        for (link, rank) in self.links.iter_mut().zip(1..) {
            let received = receive(link, deadline);
            gathered.push(received.map_err(|error| failed(&format!("receiving from rank {rank}"), &error))?);
        }
        for (link, rank) in self.links.iter_mut().zip(1..) {
            let sent = gathered.iter().try_for_each(|message| send(link, message, deadline));
            sent.map_err(|error| failed(&format!("sending to rank {rank}"), &error))?;
        }
        Ok(gathered)
    }

    /// Nobody is to wait for this rank in vain.
    fn end(&mut self, error: &Error) {
        if self.member.rank == 0 {
            self.links.iter_mut().for_each(|link| refuse(link, &error.to_string()));
        }
        self.links.clear();
        self.failure = Some(error.clone());
    }
}

impl Rendezvous for TcpRendezvous {
    fn all_gather(&mut self, message: &[u8]) -> std::result::Result<Vec<Vec<u8>>, TransportError> {
        if let Some(error) = &self.failure {
            return Err(error.clone().into());
        }
        Ok(self.round(message).inspect_err(|error| self.end(error))?)
    }
}

fn failed(what: &str, error: &io::Error) -> Error {
    Error::rendezvous(format!("the rendezvous over TCP: {what}: {error}"))
}

/// Rank 0's links to all others, once they have come.
fn accept(member: &Member, listener: &TcpListener, deadline: Deadline) -> Result<Vec<TcpStream>> {
    listener.set_nonblocking(true).map_err(|error| failed("rank 0 cannot listen", &error))?;
    let mut links: Vec<Option<TcpStream>> = (1..member.world_size).map(|_| None).collect();
    let mut strangers: Vec<Stranger> = vec![];
    // The last rank that was sent away, which may be the one that is missing.
    let mut refused = String::new();
    while links.iter().any(Option::is_none) {
        let came = listener.accept().ok();
        let is_quiet = came.is_none();
        strangers.extend(came.and_then(|(link, _)| Stranger::new(link)));
        if strangers.len() > MAX_STRANGERS {
            strangers.remove(0);
        }
        for stranger in std::mem::take(&mut strangers) {
            match stranger.listen() {
                Heard::Nothing(stranger) => strangers.push(stranger),
                Heard::Nonsense => {}
                Heard::Hello(mut link, hello) => match place_of(member, &hello, &links) {
                    Ok(place) => links[place] = Some(link),
                    Err(reason) => {
                        refuse(&mut link, &reason);
                        refused = format!("; refused one because {reason}");
                    }
                },
            }
        }
        if deadline.left().is_none() {
            let missing: Vec<_> = (1..member.world_size).filter(|rank| links[rank - 1].is_none()).collect();
            let (waited, missing) = (deadline.timeout, name_ranks(&missing));
            let error = Error::rendezvous(format!("rank 0 waited {waited:?} for {missing} to connect{refused}"));
            links.iter_mut().flatten().for_each(|link| refuse(link, &error.to_string()));
            return Err(error);
        }
        if is_quiet {
            std::thread::sleep(INTERVAL);
        }
    }
    let mut links: Vec<_> = links.into_iter().flatten().collect();
    for (link, rank) in links.iter_mut().zip(1..) {
        let welcomed = link.set_nodelay(true).and_then(|()| send(link, MAGIC, deadline));
        welcomed.map_err(|error| failed(&format!("answering rank {rank}"), &error))?;
    }
    Ok(links)
}

/// A connection that has not said yet who it is.
struct Stranger {
    link: TcpStream,
    heard: Vec<u8>,
}

enum Heard {
    /// Not enough.
    Nothing(Stranger),
    /// Somebody else, or nobody any more.
    Nonsense,
    Hello(TcpStream, Member),
}

impl Stranger {
    fn new(link: TcpStream) -> Option<Self> {
        link.set_nonblocking(true).ok().map(|()| Self { link, heard: vec![] })
    }

    /// Hears what is there, and waits for nothing.
    fn listen(mut self) -> Heard {
        let mut bytes = [0; HELLO_BYTES];
        match self.link.read(&mut bytes[self.heard.len()..]) {
            Ok(0) => return Heard::Nonsense,
            Ok(count) => {
                let from = self.heard.len();
                self.heard.extend_from_slice(&bytes[from..from + count]);
            }
            Err(error) if is_passing(&error) => {}
            Err(_) => return Heard::Nonsense,
        }
        let known = self.heard.len().min(MAGIC.len());
        if self.heard[..known] != MAGIC[..known] {
            return Heard::Nonsense;
        }
        if self.heard.len() < HELLO_BYTES {
            return Heard::Nothing(self);
        }
        match (decode_hello(&self.heard), self.link.set_nonblocking(false)) {
            (Some(hello), Ok(())) => Heard::Hello(self.link, hello),
            _ => Heard::Nonsense,
        }
    }
}

/// Which link a rank's is to be, or why none.
fn place_of(own: &Member, hello: &Member, links: &[Option<TcpStream>]) -> std::result::Result<usize, String> {
    let Member { run_id, rank, world_size } = hello;
    if *run_id != own.run_id {
        return Err(format!("rank {rank} is of run {run_id:?}, not {:?}", own.run_id));
    }
    if *world_size != own.world_size {
        return Err(format!("rank {rank} has world_size {world_size}, but rank 0 has {}", own.world_size));
    }
    let place = rank.checked_sub(1).filter(|place| *place < links.len());
    let place = place.ok_or_else(|| format!("it is rank {rank} of {world_size}, which does not connect"))?;
    if links[place].is_some() {
        return Err(format!("there is a rank {rank} already"));
    }
    Ok(place)
}

/// Another rank's link to rank 0, once that has answered.
fn connect(member: &Member, addresses: &[SocketAddr], deadline: Deadline) -> Result<TcpStream> {
    let rank = member.rank;
    let mut last = io::Error::new(ErrorKind::NotFound, "there is no address");
    let mut link = loop {
        let Some(left) = deadline.left() else {
            let waited = deadline.timeout;
            return Err(failed(&format!("rank {rank} tried {waited:?} to connect to rank 0 at {addresses:?}"), &last));
        };
        let connect = |address: &SocketAddr| TcpStream::connect_timeout(address, left);
        match addresses.iter().map(connect).find_map(|link| link.map_err(|error| last = error).ok()) {
            // A port that nobody listens at may be this end's own.
            Some(link) if link.local_addr().ok() != link.peer_addr().ok() => break link,
            _ => std::thread::sleep(10 * INTERVAL),
        }
    };
    let answer = link.set_nodelay(true).and_then(|()| {
        write_all(&mut link, &encode_hello(member), deadline)?;
        receive(&mut link, deadline)
    });
    match answer {
        Ok(answer) if answer == MAGIC => Ok(link),
        Ok(_) => Err(Error::rendezvous(format!("at {addresses:?} is somebody else than rank 0 of lamport-rs"))),
        Err(error) => Err(failed(&format!("rank {rank} waited for rank 0's answer"), &error)),
    }
}
