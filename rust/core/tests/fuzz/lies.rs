//! What may be wrong with a peer's messages: the structure of each, and strategies that choose among them.

use lamport_rs_core::rendezvous::hello::Hello;
use lamport_rs_protocol::notices::PAGE_WORDS;
use lamport_rs_protocol::sentinel::SENTINEL;
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
    /// A handle's length, as the introduction tells it.
    HandleLength(Place, u32),
    /// What launches depend on, as the introduction tells it.
    Plan([u8; 10]),
    /// Limits of control groups: how many there are, and their numbers.
    Limits(u8, Vec<u8>),
    /// What is wrong with a handle.
    Handle(Place, HandleLie),
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

/// Which handle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Place {
    Block,
    Page,
}

#[derive(Clone, Debug)]
pub enum HandleLie {
    /// Another handle altogether.
    Bytes(Vec<u8>),
    /// A byte of it.
    Byte(usize, u8),
    /// As much of it.
    Cut(usize),
    /// A number of a handle on the host: by its place, and how it changes.
    Number(HandleNumber, Change),
    /// The handle of another file, told as it is or with a block's size.
    File(File, bool),
    /// The handle and the random vector of another rank, or of the one that is being lied to.
    Stolen(usize),
    /// Other device memory, told as that of the device of this number. Nothing on the host.
    DeviceMemory(DeviceMemory, usize),
}

/// Device memory that a handle may name: of the device of this number.
#[derive(Clone, Copy, Debug)]
pub enum DeviceMemory {
    /// Of a block's size; the first is what an honest rank has.
    Block(usize, usize),
    /// Of another size.
    Larger(usize),
    /// Which is not there any more.
    Freed(usize),
}

/// What a peer tells in its status page, once it has heard the first messages. Were it nothing, a case would take a
/// second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Told {
    /// That it has all, by the messages that this rank was brought.
    Whole,
    /// That another round is needed.
    Doubtful,
    /// That it has given up.
    Gone,
    /// That it has all, by other messages.
    Other(u64),
    /// That it has all, and in this word how all ranks end the construction.
    Decided(u32),
    /// A word that is none of these.
    Word(u32),
}

/// Of all peers alike, or of each.
pub fn told() -> impl Strategy<Value = [Told; 4]> {
    let one = || {
        prop_oneof![
            2 => Just(Told::Whole),
            2 => Just(Told::Doubtful),
            1 => Just(Told::Gone),
            1 => any::<u64>().prop_map(Told::Other),
            1 => number().prop_map(|number| Told::Decided(number as u32)),
            1 => number().prop_map(|number| Told::Word((number as u32).max(4))),
        ]
    };
    prop_oneof![
        2 => Just([Told::Whole; 4]),
        2 => one().prop_map(|told| [told; 4]),
        1 => [one(), one(), one(), one()],
    ]
}

/// What a peer stores into this rank's block on a device, to prove that its stores arrive, and what it says of others'.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Proof {
    Good,
    /// Another vector than it has announced.
    Vector([u32; 4]),
    /// Another verdict than that all is well.
    Verdict(u32),
    Nothing,
}

pub fn proofs() -> impl Strategy<Value = [Proof; 4]> {
    let word = || number().prop_map(|number| number as u32);
    let one = move || {
        prop_oneof![
            1 => Just(Proof::Good),
            1 => [word(), word(), word(), word()].prop_map(Proof::Vector),
            1 => word().prop_map(Proof::Verdict),
            1 => Just(Proof::Nothing),
        ]
    };
    prop_oneof![
        2 => Just([Proof::Good; 4]),
        1 => [one(), one(), one(), one()],
    ]
}

/// What a peer does once all have a workspace, in whatever order.
#[derive(Clone, Debug)]
pub enum Deed {
    /// Tells a notice of these words, from the first on.
    Notice(Vec<u32>),
    /// Stores a word into its own page, or into that of this rank.
    PageWord(bool, usize, u32),
    /// Comes to so much of a reset.
    Stage(u32),
    /// Sends what it runs as its first operation; `None`: the same as this rank.
    Header(Option<[u32; 4]>),
    /// Sends these words, again and again, in the first operation: as the others, too.
    Data([u32; 4]),
    /// Stores a word anywhere into this rank's block.
    BlockWord(usize, u32),
    /// Stores the word by which this rank says that it sleeps.
    Parking(u32),
}

/// What they do, each with whose it is: nothing, anything, or their parts of the first operation and anything.
pub fn deeds() -> impl Strategy<Value = Vec<(usize, Deed)>> {
    let words = || proptest::array::uniform4(prop_oneof![1 => word(), 1 => any::<u32>()]);
    let parts = [words(), words(), words()].prop_map(|of_each| {
        let part = |(words, who)| [(who, Deed::Header(None)), (who, Deed::Data(words))];
        of_each.into_iter().zip(1..).flat_map(part).collect::<Vec<_>>()
    });
    let any = |most| vec((1..4_usize, deed()), 0..most);
    prop_oneof![
        6 => Just(vec![]),
        2 => any(6),
        1 => (parts, any(2)).prop_map(|(parts, others)| [parts, others].concat()),
    ]
}

/// What they do again and again while this rank's calls run: their parts of an operation, which change.
pub fn parts() -> impl Strategy<Value = Vec<(usize, Deed)>> {
    let vector = |word: BoxedStrategy<u32>| [word.clone(), word.clone(), word.clone(), word];
    let late = prop_oneof![1 => Just(SENTINEL), 1 => word()].boxed();
    let header = prop_oneof![3 => Just(None), 1 => vector(late.clone()).prop_map(Some)].prop_map(Deed::Header);
    let data = [vector(word().boxed()), vector(late)].prop_map(|data| data.map(Deed::Data).to_vec());
    let others = prop_oneof![3 => Just(vec![]), 1 => vec(deed(), 1..3)];
    let part = (vec(header, 1..4), data, others).prop_map(|(headers, data, others)| [headers, data, others].concat());
    vec(part.prop_shuffle(), 3).prop_map(|parts| {
        let of_each = (1..).zip(parts).map(|(who, deeds)| deeds.into_iter().map(move |deed| (who, deed)));
        of_each.flatten().collect()
    })
}

/// Likewise nothing, or anything.
pub fn meddling() -> impl Strategy<Value = Vec<(usize, Deed)>> {
    prop_oneof![
        3 => Just(vec![]),
        1 => vec((1..4_usize, deed()), 1..6),
    ]
}

fn word() -> impl Strategy<Value = u32> {
    prop_oneof![2 => number().prop_map(|number| number as u32), 1 => 0..9_u32]
}

fn deed() -> impl Strategy<Value = Deed> {
    let words = |text: &[u8]| -> Vec<u32> {
        let word = |part: &[u8]| part.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
        text.chunks(4).map(word).collect()
    };
    // As notices are: kind, ranks, time, two operations, a text's length, a text.
    let notice = (0..9_u32, vec(word(), 11), word(), text()).prop_map(move |(kind, numbers, length, text)| {
        let length = if length % 2 == 0 { text.len() as u32 } else { length };
        [vec![kind], numbers, vec![length], words(&text)].concat()
    });
    prop_oneof![
        2 => notice.prop_map(Deed::Notice),
        1 => vec(word(), 0..20).prop_map(Deed::Notice),
        4 => (any::<bool>(), prop_oneof![0..48_usize, 0..PAGE_WORDS], word())
            .prop_map(|(own, at, word)| Deed::PageWord(own, at, word)),
        1 => (0..5_u32).prop_map(Deed::Stage),
        4 => proptest::option::weighted(0.3, [word(), word(), word(), word()]).prop_map(Deed::Header),
        3 => [word(), word(), word(), word()].prop_map(Deed::Data),
        2 => (0..(16 << 10) / 4_usize, word()).prop_map(|(at, word)| Deed::BlockWord(at, word)),
        1 => prop_oneof![1 => 0..16_u32, 1 => word()].prop_map(Deed::Parking),
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
fn handle_lie(on_a_device: bool) -> impl Strategy<Value = HandleLie> {
    use HandleNumber::{Bytes, Descriptor, Device, Inode, Process};
    let handle = select(vec![Process, Descriptor, Device, Inode, Bytes]);
    let change = prop_oneof![number().prop_map(Change::To), (-4097_i64..=4097).prop_map(Change::By)];
    let memory = prop_oneof![
        3 => (0..4_usize, 0..2_usize).prop_map(|(device, which)| DeviceMemory::Block(device, which)),
        1 => (0..4_usize).prop_map(DeviceMemory::Larger),
        1 => (0..4_usize).prop_map(DeviceMemory::Freed),
    ];
    prop_oneof![
        1 => vec(any::<u8>(), 0..140).prop_map(HandleLie::Bytes),
        1 => (0..33_usize).prop_map(HandleLie::Cut),
        1 => (0..80_usize, any::<u8>()).prop_map(|(at, value)| HandleLie::Byte(at, value)),
        5 => (handle, change).prop_map(|(place, change)| HandleLie::Number(place, change)),
        6 => (file(), any::<bool>()).prop_map(|(file, as_a_block)| HandleLie::File(file, as_a_block)),
        2 => (0..4_usize).prop_map(HandleLie::Stolen),
        if on_a_device { 12 } else { 1 }
            => (memory, 0..4_usize).prop_map(|(memory, device)| HandleLie::DeviceMemory(memory, device)),
    ]
}

pub fn lie(on_a_device: bool) -> impl Strategy<Value = Lie> {
    use HelloNumber::{CommSize, Layout, Nonce, TwoShotFrom, WorldSize};
    let header = select(vec![Number(8, 4), Number(12, 4), Number(16, 8), Number(24, 4), Number(28, 4)]);
    let hello = select(vec![WorldSize, CommSize, TwoShotFrom, Nonce, Layout]);
    let place = select(vec![Place::Block, Place::Page]);
    prop_oneof![
        3 => (header, number()).prop_map(|(place, value)| Lie::Header(place, value)),
        3 => (hello, number()).prop_map(|(place, value)| Lie::Hello(place, value)),
        2 => (0..4_usize, text(), any::<u8>()).prop_map(|(which, text, more)| Lie::Text(which, text, more % 3)),
        1 => (place, number()).prop_map(|(place, length)| Lie::HandleLength(place, length as u32)),
        1 => proptest::array::uniform10(any::<u8>()).prop_map(Lie::Plan),
        3 => (0..4_u8, vec(number(), 0..10)).prop_map(|(count, numbers)| {
            let most = if count < 3 { 3 * usize::from(count) } else { numbers.len() };
            let padded = numbers.into_iter().chain(std::iter::repeat(7)).take(most);
            Lie::Limits(count, padded.flat_map(u64::to_le_bytes).collect())
        }),
        14 => handle_lie(on_a_device).prop_map(|lie| Lie::Handle(Place::Block, lie)),
        7 => handle_lie(false).prop_map(|lie| Lie::Handle(Place::Page, lie)),
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
