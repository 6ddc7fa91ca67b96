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
use rustix::fs::{MemfdFlags, Mode, OFlags, fcntl_add_seals, ftruncate, memfd_create, mkfifoat};

use crate::case::{COMM_SIZE, Case};
use crate::devices::Devices;
use crate::lies::{Change, DeviceMemory, File, HandleLie, HandleNumber, Lie, Number, Place};
use crate::pages::{PAGE_BYTES, Pages};

const HEADER_BYTES: usize = 32;
/// Bytes of a block's handle, and of a page's, at most.
const HANDLE_BYTES: [usize; 2] = [80, 32];
/// The peers' random vector.
pub const NONCE: [u32; 4] = [1, 2, 3, 4];
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
    case: &'a Case,
    strangers: &'a Strangers,
    devices: &'a Devices,
    /// What must live as long as the exchange.
    blocks: Vec<Block>,
    own_pages: Vec<OwnPage>,
    files: Vec<OwnedFd>,
    /// All ranks' pages.
    pub pages: Pages,
    /// How many files or blocks are as a block must be.
    tags: u32,
    step: usize,
}

impl<'a> Peers<'a> {
    pub fn new(case: &'a Case, strangers: &'a Strangers, devices: &'a Devices) -> Self {
        let mut tags = 0;
        if case.kind.is_on_device() {
            devices.mark(case.bytes(), TAG);
            tags = devices.marks();
        }
        let (blocks, own_pages, files, pages) = (vec![], vec![], vec![], Pages::default());
        Self { case, strangers, devices, blocks, own_pages, files, pages, tags, step: 0 }
    }

    /// Whether `word` fills one of the peers' blocks.
    pub fn is_tag(&self, word: u32) -> bool {
        (TAG..TAG + self.tags).contains(&word)
    }

    fn next_tag(&mut self) -> u32 {
        self.tags += 1;
        TAG + self.tags - 1
    }

    /// The ranks but the honest one.
    pub fn ranks(&self) -> impl Iterator<Item = usize> + use<> {
        let rank = self.case.rank;
        (0..self.case.ranks).filter(move |peer| *peer != rank)
    }

    /// They have nothing mapped any more.
    pub fn leave(&self) {
        self.ranks().for_each(|peer| self.pages.notices(peer, self.case.ranks).unmap());
    }

    /// What honest peers would send.
    fn honest(&mut self, message: &[u8]) -> Vec<Vec<u8>> {
        let content = content_of(message);
        let hello = (self.step == 0).then(|| Hello::decode(content)).flatten();
        if let Some(hello) = &hello {
            self.pages.add(self.case.rank, &hello.page, hello.nonce);
        }
        (0..self.case.ranks)
            .map(|peer| {
                if peer == self.case.rank {
                    return message.to_vec();
                }
                let Some(hello) = &hello else { return message_of(self.step, peer, 0, content) };
                let handle = self.honest_handle(peer);
                let mut own_page = OwnPage::allocate().unwrap();
                let page = own_page.export(NONCE).encode();
                self.own_pages.push(own_page);
                self.pages.add(peer, &page, NONCE);
                message_of(0, peer, 0, &Hello { nonce: NONCE, handle, page, ..hello.clone() }.encode())
            })
            .collect()
    }

    fn honest_handle(&mut self, peer: usize) -> Vec<u8> {
        if self.case.kind.is_on_device() {
            return self.devices.handle(DeviceMemory::Block(peer, 0), peer);
        }
        let mut block = Block::allocate(self.case.bytes(), self.next_tag()).unwrap();
        let handle = block.export(NONCE).encode();
        self.blocks.push(block);
        handle
    }

    /// What follows once all have heard `messages`: what the peers tell in their pages, and store into this rank's block.
    fn go_on(&self, message: &[u8], messages: &[Vec<u8>]) {
        let mut brought = Transcript::default();
        brought.add(messages);
        for peer in self.ranks() {
            self.pages.tell(peer, self.case.told[peer], brought.digest());
        }
        let Some(hello) = Hello::decode(content_of(message)) else { return };
        if self.case.kind.is_verified() {
            for peer in self.ranks() {
                let (ranks, who) = (self.case.ranks, (self.case.rank, peer));
                self.devices.prove(&hello.handle, who, ranks, COMM_SIZE, NONCE, self.case.proofs[peer]);
            }
        }
    }

    fn tell(&mut self, peer: usize, lie: &Lie, messages: &mut [Vec<u8>]) {
        let sent = messages.to_vec();
        let message = &mut messages[peer];
        match lie {
            Lie::Header(Number(at, bytes), value) => set(message, *at, &value.to_le_bytes()[..*bytes]),
            Lie::Hello(number, value) => change_hello(message, |hello| number.set(hello, *value)),
            Lie::Text(which, text, more) => change_text(message, *which, text, *more),
            Lie::HandleLength(place, length) => change_handle_length(message, *place, *length),
            Lie::Plan(plan) => change_end(message, Some(plan), None),
            Lie::Limits(count, limits) => change_end(message, None, Some((*count, limits))),
            Lie::Handle(place, lie) => self.tell_of_a_handle(peer, *place, lie, messages),
            Lie::Payload(bytes) => *message = message_of(self.step, peer, 0, bytes),
            Lie::Failure(reason) => *message = message_of(self.step, peer, 1, reason),
            Lie::Byte(at, value) => set(message, *at, &[*value]),
            Lie::Cut(length) => message.truncate(*length),
            Lie::Extended(by) => message.resize(message.len() + by, 0x55),
            Lie::Copy(of) => message.clone_from(&sent[of % self.case.ranks]),
            Lie::Count(_) | Lie::Failed => {}
        }
    }

    fn tell_of_a_handle(&mut self, peer: usize, place: Place, lie: &HandleLie, messages: &mut [Vec<u8>]) {
        let stolen = |of: usize| Hello::decode(content_of(&messages[of % messages.len()]));
        let handle = match lie {
            HandleLie::Bytes(bytes) => bytes[..bytes.len().min(HANDLE_BYTES[place as usize])].to_vec(),
            HandleLie::Byte(at, value) => {
                let change = |hello: &mut Hello| {
                    let handle = of(place, hello);
                    if let Some(length) = std::num::NonZero::new(handle.len()) {
                        handle[*at % length] = *value;
                    }
                };
                return change_hello(&mut messages[peer], change);
            }
            HandleLie::Cut(length) => {
                return change_hello(&mut messages[peer], |hello| of(place, hello).truncate(*length));
            }
            HandleLie::Number(number, change) => {
                let change = |hello: &mut Hello| {
                    if let Some(mut handle) = Handle::decode(of(place, hello)) {
                        change_number(&mut handle, *number, *change);
                        *of(place, hello) = handle.encode();
                    }
                };
                return change_hello(&mut messages[peer], change);
            }
            HandleLie::File(file, as_a_block) => {
                let named = self.name(*file, peer, place);
                let size = if *as_a_block { self.file_bytes(place) } else { named.bytes };
                Handle { bytes: size, ..named }.encode()
            }
            HandleLie::Stolen(from) => {
                let Some(mut stolen) = stolen(*from) else { return };
                let handle = of(place, &mut stolen).clone();
                return change_hello(&mut messages[peer], |hello| {
                    (*of(place, hello), hello.nonce) = (handle, stolen.nonce);
                });
            }
            HandleLie::DeviceMemory(memory, told) if place == Place::Block && self.case.kind.is_on_device() => {
                self.devices.handle(*memory, *told)
            }
            HandleLie::DeviceMemory(..) => return,
        };
        change_hello(&mut messages[peer], |hello| *of(place, hello) = handle);
    }

    /// Bytes of a block's, or a page's, file.
    fn file_bytes(&self, place: Place) -> u64 {
        let bytes = if place == Place::Block { self.case.bytes() } else { PAGE_BYTES };
        (bytes as u64 + 16).next_multiple_of(rustix::param::page_size() as u64)
    }

    /// The honest handle of a file that is no peer's block, or page.
    fn name(&mut self, file: File, peer: usize, place: Place) -> Handle {
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
                strangers.prepare_regular(self.file_bytes(place));
                of(&strangers.regular, rustix::fs::fstat(&strangers.regular).unwrap())
            }
            File::Fifo => of(&strangers.fifo, rustix::fs::fstat(&strangers.fifo).unwrap()),
            File::Directory => of(&strangers.directory, rustix::fs::fstat(&strangers.directory).unwrap()),
            File::Device => of(&strangers.device, rustix::fs::fstat(&strangers.device).unwrap()),
            File::Socket => of(&strangers.socket, rustix::fs::fstat(&strangers.socket).unwrap()),
            File::Memory { more, sealed, named } => {
                let name = if named { NAME } else { "stranger" };
                let file = memfd_create(name, MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
                let bytes = self.file_bytes(place).saturating_add_signed(more).max(16);
                ftruncate(&file, bytes).unwrap();
                // With nothing wrong it is as good as any.
                if (more, sealed, named, place) == (0, true, true, Place::Block) {
                    let tag = self.next_tag().to_le_bytes();
                    for at in [0, self.case.bytes() - tag.len()] {
                        rustix::io::pwrite(&file, &tag, at as u64).unwrap();
                    }
                }
                rustix::io::pwrite(&file, &mark(), bytes - 16).unwrap();
                if sealed {
                    fcntl_add_seals(&file, SEALS).unwrap();
                }
                let handle = Handle::of(&file).unwrap();
                if place == Place::Page {
                    self.pages.add(peer, &handle.encode(), NONCE);
                }
                self.files.push(file);
                handle
            }
        }
    }
}

impl AllGather for Peers<'_> {
    fn all_gather(&mut self, message: &[u8]) -> Result<Vec<Vec<u8>>, String> {
        let mut messages = self.honest(message);
        let (step, lies) = (self.step, &self.case.lies);
        for (_, who, lie) in lies.iter().filter(|(at, ..)| *at == step) {
            self.tell(self.case.rank_of(*who), lie, &mut messages);
        }
        for (_, _, lie) in lies.iter().filter(|(at, ..)| *at == step) {
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
            self.go_on(message, &messages);
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

fn of(place: Place, hello: &mut Hello) -> &mut Vec<u8> {
    match place {
        Place::Block => &mut hello.handle,
        Place::Page => &mut hello.page,
    }
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

/// Where the text of this number begins in an introduction; the number 4 is behind the last.
fn place_of_text(content: &[u8], which: usize) -> usize {
    // The numbers are between the third text and the fourth.
    (0..which).fold(0, |at, before| {
        at + 1 + usize::from(content.get(at).copied().unwrap_or(0)) + if before == 2 { 24 } else { 0 }
    })
}

/// Puts `text` in the place of one of the introduction's texts, as it is: it need not be a text, nor as long as it says.
fn change_text(message: &mut Vec<u8>, which: usize, text: &[u8], more: u8) {
    let mut content = content_of(message).to_vec();
    let at = place_of_text(&content, which);
    let Some(length) = content.get(at).copied() else { return };
    let end = (at + 1 + usize::from(length)).min(content.len());
    let text = &text[..text.len().min(255)];
    content.splice(at..end, [&[(text.len() as u8).saturating_add(more)], text].concat());
    replace_content(message, &content);
}

fn change_handle_length(message: &mut Vec<u8>, place: Place, length: u32) {
    let mut content = content_of(message).to_vec();
    let Some(hello) = Hello::decode(&content) else { return };
    // Behind the random vector.
    let at = place_of_text(&content, 4) + 16 + if place == Place::Page { 4 + hello.handle.len() } else { 0 };
    set(&mut content, at, &length.to_le_bytes());
    replace_content(message, &content);
}

/// Puts these bytes in the place of some behind the layout, which has what launches depend on and then limits.
fn change_end(message: &mut Vec<u8>, plan: Option<&[u8; 10]>, limits: Option<(u8, &[u8])>) {
    let mut content = content_of(message).to_vec();
    let Some(hello) = Hello::decode(&content) else { return };
    let count = content.len() - 1 - 24 * hello.limits.len();
    if let Some(plan) = plan {
        set(&mut content, count - plan.len(), plan);
    }
    if let Some((told, limits)) = limits {
        content.truncate(count);
        content.push(told);
        content.extend(limits);
    }
    replace_content(message, &content);
}
