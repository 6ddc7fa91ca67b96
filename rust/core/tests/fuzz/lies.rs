//! What may be wrong with a peer's messages: the structure of each, and strategies that choose among them.

use lamport_rs_core::rendezvous::hello::Hello;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// One peer's lies at one step, or the transport's.
#[derive(Clone, Debug)]
pub enum Lie {
    /// A number of the message's header: by its place, and its value.
    Header(Number, u64),
    /// A number of the introduction.
    Hello(HelloNumber, u64),
    /// A text of the introduction: which of the four, its bytes, and what its length says beyond that.
    Text(usize, Vec<u8>, u8),
    /// The handle's length, as the introduction tells it.
    HandleLength(u32),
    /// Another handle altogether.
    HandleBytes(Vec<u8>),
    /// A number of the handle: by its place, and how it changes.
    Handle(HandleNumber, Change),
    /// The handle of another file, told as it is or with a block's size.
    File(File, bool),
    /// The handle and the random vector of another rank, or of the one that is being lied to.
    Stolen(usize),
    /// A lie of the handle, told of that of the page of notices.
    OfPage(Box<Lie>),
    /// Any payload.
    Payload(Vec<u8>),
    /// A failure, for any reason.
    Failure(Vec<u8>),
    /// A byte of the message.
    Byte(usize, u8),
    /// The message up to here.
    Cut(usize),
    /// The message, and more.
    Extended(usize),
    /// The message of this rank instead.
    Copy(usize),
    /// The transport brings so many messages.
    Count(usize),
    /// The transport fails.
    Failed,
}

/// What the peers tell in their pages of notices, once they have heard the first messages. Were it nothing, a case would
/// take a second.
#[derive(Clone, Copy, Debug)]
pub enum Told {
    /// That they have all, by the messages that this rank was brought.
    Whole,
    /// That another round is needed.
    Doubtful,
    /// That they have all, by other messages.
    Other(u64),
}

pub fn told() -> impl Strategy<Value = Told> {
    prop_oneof![
        2 => Just(Told::Whole),
        2 => Just(Told::Doubtful),
        1 => any::<u64>().prop_map(Told::Other),
    ]
}

/// Places of numbers in the header: offset and bytes.
#[derive(Clone, Copy, Debug)]
pub struct Number(pub usize, pub usize);

#[derive(Clone, Copy, Debug)]
pub enum HelloNumber {
    WorldSize,
    CommSize,
    TwoShotFrom,
    Nonce,
    Layout,
}

#[derive(Clone, Copy, Debug)]
pub enum HandleNumber {
    Process,
    Descriptor,
    Device,
    Inode,
    Bytes,
}

#[derive(Clone, Copy, Debug)]
pub enum Change {
    To(u64),
    By(i64),
}

/// Files that a handle may name.
#[derive(Clone, Copy, Debug)]
pub enum File {
    /// On a disk, of a block's size, with the right mark.
    Regular,
    Fifo,
    Directory,
    Device,
    Socket,
    /// In memory: bytes more or less than a block's, whether sealed, and whether by our name.
    Memory {
        more: i64,
        sealed: bool,
        named: bool,
    },
}

impl Change {
    pub fn of(self, value: u64) -> u64 {
        match self {
            Self::To(value) => value,
            Self::By(difference) => value.wrapping_add_signed(difference),
        }
    }
}

impl HelloNumber {
    pub fn set(self, hello: &mut Hello, value: u64) {
        match self {
            Self::WorldSize => hello.world_size = value,
            Self::CommSize => hello.comm_size = value,
            Self::TwoShotFrom => hello.two_shot_from = value,
            Self::Nonce => hello.nonce[value as usize % 4] = value as u32,
            Self::Layout => hello.layout = value as u32,
        }
    }
}

/// Numbers near which programs go wrong, and any.
fn number() -> impl Strategy<Value = u64> {
    let edges = vec![0, 1, 2, 3, 16, 480, 512, 4096, 1 << 31, 1 << 32, 1 << 62, 1 << 63];
    let near = (select(edges), -2_i64..=2).prop_map(|(edge, by): (u64, i64)| edge.wrapping_add_signed(by));
    prop_oneof![3 => near, 1 => any::<u64>()]
}

/// Bytes of a text: what people write, what terminals obey, what is none.
fn text() -> impl Strategy<Value = Vec<u8>> {
    let escapes = vec(select(vec!["\u{1b}[2J", "\n", "\0", "\u{202e}", "é", "x", "\"", "\\"]), 0..60);
    prop_oneof![
        ".{0,80}".prop_map(String::into_bytes),
        escapes.prop_map(|parts| parts.concat().into_bytes()),
        vec(any::<u8>(), 0..256),
    ]
}

fn file() -> impl Strategy<Value = File> {
    let more = select(vec![-12288, -4096, -1, 0, 1, 4096]);
    prop_oneof![
        3 => select(vec![File::Regular, File::Fifo, File::Directory, File::Device, File::Socket]),
        2 => (more, any::<bool>(), any::<bool>()).prop_map(|(more, sealed, named)| File::Memory { more, sealed, named }),
    ]
}

/// Of handles.
fn of_a_handle() -> impl Strategy<Value = Lie> {
    use HandleNumber::{Bytes, Descriptor, Device, Inode, Process};
    let handle = select(vec![Process, Descriptor, Device, Inode, Bytes]);
    let change = prop_oneof![number().prop_map(Change::To), (-4097_i64..=4097).prop_map(Change::By)];
    prop_oneof![
        1 => vec(any::<u8>(), 0..140).prop_map(Lie::HandleBytes),
        5 => (handle, change).prop_map(|(place, change)| Lie::Handle(place, change)),
        6 => (file(), any::<bool>()).prop_map(|(file, as_a_block)| Lie::File(file, as_a_block)),
        2 => (0..4_usize).prop_map(Lie::Stolen),
    ]
}

pub fn lie() -> impl Strategy<Value = Lie> {
    use HelloNumber::{CommSize, Layout, Nonce, TwoShotFrom, WorldSize};
    let header = select(vec![Number(8, 4), Number(12, 4), Number(16, 8), Number(24, 4), Number(28, 4)]);
    let hello = select(vec![WorldSize, CommSize, TwoShotFrom, Nonce, Layout]);
    prop_oneof![
        3 => (header, number()).prop_map(|(place, value)| Lie::Header(place, value)),
        3 => (hello, number()).prop_map(|(place, value)| Lie::Hello(place, value)),
        2 => (0..4_usize, text(), any::<u8>()).prop_map(|(which, text, more)| Lie::Text(which, text, more % 3)),
        1 => number().prop_map(|length| Lie::HandleLength(length as u32)),
        14 => of_a_handle(),
        7 => of_a_handle().prop_map(|lie| Lie::OfPage(Box::new(lie))),
        1 => vec(any::<u8>(), 0..480).prop_map(Lie::Payload),
        2 => text().prop_map(Lie::Failure),
        4 => (0..512_usize, any::<u8>()).prop_map(|(at, value)| Lie::Byte(at, value)),
        1 => (0..512_usize).prop_map(Lie::Cut),
        1 => (0..2048_usize).prop_map(Lie::Extended),
        1 => (0..4_usize).prop_map(Lie::Copy),
        1 => select(vec![0, 1, 2, 3, 5, 17, 300]).prop_map(Lie::Count),
        1 => Just(Lie::Failed),
    ]
}
