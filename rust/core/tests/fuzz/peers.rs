//! Peers that lie, as the transport of one honest rank: they see what that rank sent, answer as honest peers would, and
//! then the lies are told.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use lamport_rs_core::lifecycle::pages::OwnPage;
use lamport_rs_core::memory::handle::{Handle, NAME, SEALS};
use lamport_rs_core::memory::host::Block;
use lamport_rs_core::rendezvous::hello::Hello;
use lamport_rs_core::rendezvous::{AllGather, FORMAT, MESSAGE_BYTES, Payload, Transcript};
use lamport_rs_core::wire::Writer;
use lamport_rs_protocol::notices::{Built, PAGE_WORDS};
use rustix::fs::{MemfdFlags, Mode, OFlags, fcntl_add_seals, ftruncate, memfd_create, mkfifoat};

use crate::lies::{Change, File, HandleNumber, Lie, Number, Told};

const HEADER_BYTES: usize = 32;
const NONCE: [u32; 4] = [1, 2, 3, 4];
/// What fills the first file that is a block; the next is filled with the next word. By it a mapping is known.
const TAG: u32 = 0x7a60_0000;

/// Files that are there all the time, for handles to name.
pub struct Strangers {
    folder: PathBuf,
    regular: fs::File,
    fifo: OwnedFd,
    directory: fs::File,
    device: fs::File,
    socket: std::os::unix::net::UnixStream,
}

impl Strangers {
    pub fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("lamport-rs-fuzz-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = |name: &str| folder.join(name);
        mkfifoat(rustix::fs::CWD, path("fifo"), Mode::RWXU).unwrap();
        let read_write =
            |path: PathBuf| fs::File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
        Self {
            regular: read_write(path("regular")),
            fifo: rustix::fs::open(path("fifo"), OFlags::RDWR | OFlags::NONBLOCK, Mode::empty()).unwrap(),
            directory: fs::File::open(&folder).unwrap(),
            device: read_write("/dev/null".into()),
            socket: std::os::unix::net::UnixStream::pair().unwrap().0,
            folder,
        }
    }

    /// Makes the regular file as long as a block, with a block's mark, and nothing else in it.
    fn prepare_regular(&self, bytes: u64) {
        self.regular.set_len(0).unwrap();
        self.regular.set_len(bytes).unwrap();
        self.regular.write_all_at(&mark(), bytes - 16).unwrap();
    }

    /// Whether nobody has written into the regular file.
    pub fn is_untouched(&self) -> bool {
        let content = fs::read(self.folder.join("regular")).unwrap();
        content.split_last_chunk::<16>().is_none_or(|(before, _)| before.iter().all(|byte| *byte == 0))
    }
}

impl Drop for Strangers {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The transport.
pub struct Peers<'a> {
    pub rank: usize,
    pub ranks: usize,
    /// Step, peer and lie.
    pub lies: &'a [(usize, usize, Lie)],
    pub told: Told,
    pub strangers: &'a Strangers,
    /// Bytes of a block, without the mark.
    pub bytes: usize,
    /// What must live as long as the exchange.
    blocks: Vec<Block>,
    pages: Vec<OwnPage>,
    files: Vec<OwnedFd>,
    /// How many files are as a block must be.
    tags: u32,
    step: usize,
}

impl<'a> Peers<'a> {
    pub fn new(
        rank: usize,
        ranks: usize,
        bytes: usize,
        (lies, told): (&'a [(usize, usize, Lie)], Told),
        strangers: &'a Strangers,
    ) -> Self {
        let (blocks, pages, files) = (vec![], vec![], vec![]);
        Self { rank, ranks, lies, told, strangers, bytes, blocks, pages, files, tags: 0, step: 0 }
    }

    /// Whether `word` fills one of the peers' blocks.
    pub fn is_tag(&self, word: u32) -> bool {
        (TAG..TAG + self.tags).contains(&word)
    }

    fn next_tag(&mut self) -> u32 {
        self.tags += 1;
        TAG + self.tags - 1
    }

    /// What honest peers would send.
    fn honest(&mut self, message: &[u8]) -> Vec<Vec<u8>> {
        let content = content_of(message);
        let hello = (self.step == 0).then(|| Hello::decode(content)).flatten();
        (0..self.ranks)
            .map(|peer| {
                if peer == self.rank {
                    return message.to_vec();
                }
                let Some(hello) = &hello else { return message_of(self.step, peer, 0, content) };
                let mut block = Block::allocate(self.bytes, self.next_tag()).unwrap();
                let handle = block.export(NONCE).encode();
                self.blocks.push(block);
                let mut own_page = OwnPage::allocate().unwrap();
                let page = own_page.export(NONCE).encode();
                self.pages.push(own_page);
                message_of(0, peer, 0, &Hello { nonce: NONCE, handle, page, ..hello.clone() }.encode())
            })
            .collect()
    }

    /// Tells in all pages what the peers have made of `messages`.
    fn tell_in_pages(&self, messages: &[Vec<u8>]) {
        let built = match self.told {
            Told::Whole => {
                let mut brought = Transcript::default();
                brought.add(messages);
                Built::Whole(brought.digest())
            }
            Told::Doubtful => Built::Doubtful,
            Told::Other(digest) => Built::Whole(digest),
        };
        self.pages.iter().for_each(|page| page.tell(built));
    }

    fn tell(&mut self, peer: usize, lie: &Lie, messages: &mut [Vec<u8>]) {
        let sent = messages.to_vec();
        let message = &mut messages[peer];
        match lie {
            Lie::Header(Number(at, bytes), value) => set(message, *at, &value.to_le_bytes()[..*bytes]),
            Lie::Hello(number, value) => change_hello(message, |hello| number.set(hello, *value)),
            Lie::Text(which, text, more) => change_text(message, *which, text, *more),
            Lie::HandleLength(length) => change_handle_length(message, *length),
            Lie::HandleBytes(bytes) => {
                change_hello(message, |hello| hello.handle = bytes[..bytes.len().min(80)].to_vec())
            }
            Lie::Handle(number, change) => change_handle(message, |handle| change_number(handle, *number, *change)),
            Lie::File(file, as_a_block) => {
                let named = self.name(*file);
                let size = if *as_a_block { self.blocks_bytes() } else { named.bytes };
                change_handle(message, |handle| *handle = Handle { bytes: size, ..named });
            }
            Lie::Stolen(of) => {
                let Some(stolen) = Hello::decode(content_of(&sent[of % self.ranks])) else { return };
                change_hello(message, |hello| (hello.handle, hello.nonce) = (stolen.handle, stolen.nonce));
            }
            Lie::OfPage(lie) => {
                let fits =
                    |message: &Vec<u8>| Hello::decode(content_of(message)).is_none_or(|hello| hello.handle.len() <= 32);
                if !messages.iter().all(fits) {
                    return;
                }
                let swap = |hello: &mut Hello| std::mem::swap(&mut hello.handle, &mut hello.page);
                messages.iter_mut().for_each(|message| change_hello(message, swap));
                let bytes = std::mem::replace(&mut self.bytes, PAGE_WORDS * size_of::<u32>());
                self.tell(peer, lie, messages);
                self.bytes = bytes;
                messages.iter_mut().for_each(|message| {
                    change_hello(message, |hello| {
                        hello.handle.truncate(32);
                        swap(hello);
                    });
                });
            }
            Lie::Payload(bytes) => *message = message_of(self.step, peer, 0, bytes),
            Lie::Failure(reason) => *message = message_of(self.step, peer, 1, reason),
            Lie::Byte(at, value) => set(message, *at, &[*value]),
            Lie::Cut(length) => message.truncate(*length),
            Lie::Extended(by) => message.resize(message.len() + by, 0x55),
            Lie::Copy(of) => message.clone_from(&sent[of % self.ranks]),
            Lie::Count(_) | Lie::Failed => {}
        }
    }

    /// Bytes of a block's file.
    fn blocks_bytes(&self) -> u64 {
        (self.bytes as u64 + 16).next_multiple_of(rustix::param::page_size() as u64)
    }

    /// The honest handle of a file that is no peer's block.
    fn name(&mut self, file: File) -> Handle {
        let strangers = self.strangers;
        let of = |file: &dyn AsRawFd, status: rustix::fs::Stat| Handle {
            process: std::process::id(),
            descriptor: file.as_raw_fd(),
            device: status.st_dev,
            inode: status.st_ino,
            bytes: status.st_size as u64,
        };
        match file {
            File::Regular => {
                strangers.prepare_regular(self.blocks_bytes());
                of(&strangers.regular, rustix::fs::fstat(&strangers.regular).unwrap())
            }
            File::Fifo => of(&strangers.fifo, rustix::fs::fstat(&strangers.fifo).unwrap()),
            File::Directory => of(&strangers.directory, rustix::fs::fstat(&strangers.directory).unwrap()),
            File::Device => of(&strangers.device, rustix::fs::fstat(&strangers.device).unwrap()),
            File::Socket => of(&strangers.socket, rustix::fs::fstat(&strangers.socket).unwrap()),
            File::Memory { more, sealed, named } => {
                let name = if named { NAME } else { "stranger" };
                let file = memfd_create(name, MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
                let bytes = self.blocks_bytes().saturating_add_signed(more).max(16);
                ftruncate(&file, bytes).unwrap();
                // With nothing wrong it is a block as good as any.
                if (more, sealed, named) == (0, true, true) {
                    rustix::io::pwrite(&file, &self.next_tag().to_le_bytes().repeat(self.bytes / 4), 0).unwrap();
                }
                rustix::io::pwrite(&file, &mark(), bytes - 16).unwrap();
                if sealed {
                    fcntl_add_seals(&file, SEALS).unwrap();
                }
                let handle = Handle::of(&file).unwrap();
                self.files.push(file);
                handle
            }
        }
    }
}

impl AllGather for Peers<'_> {
    fn all_gather(&mut self, message: &[u8]) -> Result<Vec<Vec<u8>>, String> {
        let mut messages = self.honest(message);
        let (step, told) = (self.step, self.lies);
        for (_, peer, lie) in told.iter().filter(|(at, ..)| *at == step) {
            self.tell(peer % self.ranks, lie, &mut messages);
        }
        for (_, _, lie) in told.iter().filter(|(at, ..)| *at == step) {
            match lie {
                Lie::Count(count) => messages.resize(*count, vec![0; MESSAGE_BYTES]),
                Lie::Failed => return Err("the wire is cut".to_owned()),
                _ => {}
            }
        }
        for message in &messages {
            decode_alone(message);
        }
        if step == 0 {
            self.tell_in_pages(&messages);
        }
        self.step += 1;
        Ok(messages)
    }
}

/// The decoders by themselves: what they take, they must give back.
fn decode_alone(message: &[u8]) {
    let content = content_of(message);
    if let Some(hello) = Hello::decode(content) {
        assert_eq!(Hello::decode(&hello.encode()), Some(hello));
    }
    if let Some(handle) = Handle::decode(content) {
        assert_eq!(handle.encode(), content);
    }
    if let Some(transcript) = Transcript::decode(content) {
        assert_eq!(transcript.encode(), content);
    }
}

fn mark() -> Vec<u8> {
    NONCE.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn set(message: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = message.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// A message, whatever its content's length.
fn message_of(step: usize, rank: usize, kind: u32, content: &[u8]) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.bytes(b"LAMPORT\0").u32(FORMAT).u32(step as u32).u64(rank as u64).u32(kind).u32(content.len() as u32);
    let mut bytes = writer.bytes(content).finish();
    bytes.resize(MESSAGE_BYTES, 0);
    bytes
}

/// As much of a message's content as there is.
fn content_of(message: &[u8]) -> &[u8] {
    let Some((length, content)) = message.get(28..).and_then(|rest| rest.split_first_chunk::<4>()) else { return &[] };
    &content[..content.len().min(u32::from_le_bytes(*length) as usize)]
}

/// Puts another content into a message whose header stays as it is.
fn replace_content(message: &mut Vec<u8>, content: &[u8]) {
    message.resize(HEADER_BYTES, 0);
    set(message, 28, &(content.len() as u32).to_le_bytes());
    message.extend_from_slice(content);
    message.resize(MESSAGE_BYTES, 0);
}

fn change_hello(message: &mut Vec<u8>, change: impl FnOnce(&mut Hello)) {
    if let Some(mut hello) = Hello::decode(content_of(message)) {
        change(&mut hello);
        replace_content(message, &hello.encode());
    }
}

fn change_handle(message: &mut Vec<u8>, change: impl FnOnce(&mut Handle)) {
    change_hello(message, |hello| {
        if let Some(mut handle) = Handle::decode(&hello.handle) {
            change(&mut handle);
            hello.handle = handle.encode();
        }
    });
}

fn change_number(handle: &mut Handle, number: HandleNumber, change: Change) {
    match number {
        HandleNumber::Process => handle.process = change.of(handle.process.into()) as u32,
        HandleNumber::Descriptor => handle.descriptor = change.of(handle.descriptor as u64) as i32,
        HandleNumber::Device => handle.device = change.of(handle.device),
        HandleNumber::Inode => handle.inode = change.of(handle.inode),
        HandleNumber::Bytes => handle.bytes = change.of(handle.bytes),
    }
}

/// Puts `text` in the place of one of the introduction's texts, as it is: it need not be a text, nor as long as it says.
fn change_text(message: &mut Vec<u8>, which: usize, text: &[u8], more: u8) {
    let mut content = content_of(message).to_vec();
    let mut at = 0;
    for before in 0..which {
        // The numbers are between the third text and the fourth.
        at += 1 + usize::from(content.get(at).copied().unwrap_or(0)) + if before == 2 { 24 } else { 0 };
    }
    let Some(length) = content.get(at).copied() else { return };
    let end = (at + 1 + usize::from(length)).min(content.len());
    let text = &text[..text.len().min(255)];
    content.splice(at..end, [&[(text.len() as u8).saturating_add(more)], text].concat());
    replace_content(message, &content);
}

fn change_handle_length(message: &mut Vec<u8>, length: u32) {
    let mut content = content_of(message).to_vec();
    let Some(at) = Hello::decode(&content).map(|hello| content.len() - 4 - hello.handle.len() - 4) else { return };
    set(&mut content, at, &length.to_le_bytes());
    replace_content(message, &content);
}
