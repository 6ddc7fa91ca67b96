//! What travels over a TCP connection. Numbers are little-endian.
//!
//! | what | bytes |
//! | --- | --- |
//! | hello | [`MAGIC`], rank, world size, length of the run's id (4 each), the id in 64 |
//! | frame | length (4), and so many bytes |
//! | failure | [`FAILURE`] in place of the length; then a frame, a text |

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use lamport_rs_core::text::legible;

use super::{Deadline, INTERVAL, MAX_MESSAGE, MAX_RUN_ID, Member};

/// Begins a hello, and is rank 0's answer.
pub(super) const MAGIC: &[u8; 8] = b"LAMPRDV1";
/// Of a hello.
pub(super) const HELLO_BYTES: usize = MAGIC.len() + 3 * 4 + MAX_RUN_ID;
/// What stands for no length.
const FAILURE: u32 = u32::MAX;
/// Most bytes of a failure's text.
const MAX_TEXT: usize = 512;

/// What a rank that connects says.
pub(super) fn encode_hello(member: &Member) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    for number in [member.rank, member.world_size, member.run_id.len()] {
        bytes.extend_from_slice(&(number as u32).to_le_bytes());
    }
    bytes.extend_from_slice(member.run_id.as_bytes());
    bytes.resize(HELLO_BYTES, 0);
    bytes
}

/// Who says so, if it is a rank.
pub(super) fn decode_hello(bytes: &[u8]) -> Option<Member> {
    let (numbers, id) = bytes.strip_prefix(MAGIC)?.split_at_checked(12)?;
    let mut numbers = numbers.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    let (rank, world_size, length) = (numbers.next()?, numbers.next()?, numbers.next()?);
    let run_id = std::str::from_utf8(id.get(..length as usize)?).ok()?;
    Member::new(run_id, rank as usize, world_size as usize).ok()
}

/// Sends a frame.
pub(super) fn send(link: &mut TcpStream, message: &[u8], deadline: Deadline) -> io::Result<()> {
    let mut frame = (message.len() as u32).to_le_bytes().to_vec();
    frame.extend_from_slice(message);
    write_all(link, &frame, deadline)
}

/// Says why there is nothing to come, if the other end can hear it.
pub(super) fn refuse(link: &mut TcpStream, reason: &str) {
    let text = &reason.as_bytes()[..reason.floor_char_boundary(MAX_TEXT)];
    let mut bytes = FAILURE.to_le_bytes().to_vec();
    bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
    bytes.extend_from_slice(text);
    let _ = write_all(link, &bytes, Deadline::after(100 * INTERVAL));
}

/// Receives a frame, or the text of a failure as an error.
pub(super) fn receive(link: &mut TcpStream, deadline: Deadline) -> io::Result<Vec<u8>> {
    match receive_length(link, deadline)? {
        FAILURE => {
            let length = receive_length(link, deadline)?;
            let text = receive_bytes(link, length, MAX_TEXT, deadline)?;
            Err(io::Error::other(legible(&String::from_utf8_lossy(&text), MAX_TEXT)))
        }
        length => receive_bytes(link, length, MAX_MESSAGE, deadline),
    }
}

fn receive_length(link: &mut TcpStream, deadline: Deadline) -> io::Result<u32> {
    let mut length = [0; 4];
    read_exact(link, &mut length, deadline)?;
    Ok(u32::from_le_bytes(length))
}

fn receive_bytes(link: &mut TcpStream, length: u32, most: usize, deadline: Deadline) -> io::Result<Vec<u8>> {
    if length as usize > most {
        let text = format!("it announces {length} bytes, but may send {most}: it is no rank of lamport-rs");
        return Err(io::Error::new(ErrorKind::InvalidData, text));
    }
    let mut bytes = vec![0; length as usize];
    read_exact(link, &mut bytes, deadline)?;
    Ok(bytes)
}

fn read_exact(link: &mut TcpStream, mut bytes: &mut [u8], deadline: Deadline) -> io::Result<()> {
    while !bytes.is_empty() {
        link.set_read_timeout(Some(left(deadline)?))?;
        match link.read(bytes) {
            Ok(0) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "it has closed the connection")),
            Ok(count) => bytes = &mut bytes[count..],
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sends all of the bytes.
pub(super) fn write_all(link: &mut TcpStream, mut bytes: &[u8], deadline: Deadline) -> io::Result<()> {
    while !bytes.is_empty() {
        link.set_write_timeout(Some(left(deadline)?))?;
        match link.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn left(deadline: Deadline) -> io::Result<Duration> {
    let waited = || io::Error::new(ErrorKind::TimedOut, format!("nothing came for {:?}", deadline.timeout));
    deadline.left().ok_or_else(waited)
}

/// Whether it is to be tried again.
pub(super) fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}
