//! The shelf that a restarted daemon takes its state from ([`dataplane::keep`]).
//!
//! `memory`: an anonymous file. It is cut into blocks, each an image or the words of a record,
//! one behind the other:
//!
//! ```text
//! size | born | died | record | what it is, length | checksum | - | - | payload ...
//! ```
//!
//! *born* and *died* are numbers of transactions. A block counts if it was born
//! in a transaction that is complete and has not died in one. The number of the
//! last complete one is a single word of the file's head: writing it makes everything that a
//! request changed count at once. So a process may be killed between any two instructions.
//! What has died is overwritten with zeros right afterwards, keys included, and free again.
//!
//! Nothing is compacted, nothing is scanned but by [`Store::open`]; a change costs
//! the bytes of its image.

mod memory;

use std::hash::BuildHasher;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use dataplane::Profile;
use dataplane::keep::{FORMAT, Kept, Kind, Record, Shelf};
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use memory::{Memory, PIECE_WORDS};

/// `xfrmd`, and what this module's format is.
const MAGIC: u64 = 0x7866_726d_6400_0001;
/// Words of the file's head: magic, format, the last complete transaction, the kernel's name.
const HEAD_WORDS: usize = 8;
const FORMAT_AT: usize = 1;
const COMPLETE_AT: usize = 2;
const KERNEL_AT: usize = 3;

/// Words in front of a block's payload: a cache line.
const BLOCK_HEAD: usize = 8;
const SIZE: usize = 0;
const BORN: usize = 1;
const DIED: usize = 2;
const RECORD: usize = 3;
const WHAT: usize = 4;
const CHECKSUM: usize = 5;

/// Blocks begin at multiples of this many words, a cache line.
const UNIT: usize = 8;

/// Why a store cannot be read.
#[derive(Debug)]
pub enum Refusal {
    /// The host's.
    Io(io::Error),
    /// Another version's, or for another kernel.
    Foreign,
    /// Something in it makes no sense.
    Damaged,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::Foreign => f.write_str("it is of another version of xfrmd or kernel"),
            Self::Damaged => f.write_str("it is damaged"),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Where a block is, in units from the file's beginning; 0 is none.
type At = u32;

/// The blocks of a record.
#[derive(Clone, Copy, Default)]
struct Entry {
    image: At,
    words: At,
}

/// A record that was found.
pub struct Found {
    record: Record,
    image: Vec<u8>,
    words: &'static [AtomicU64],
}

impl Found {
    /// As the engine takes it.
    #[must_use]
    pub fn kept(&self) -> Kept<'_> {
        Kept {
            record: self.record,
            image: &self.image,
            words: self.words,
        }
    }
}

impl Drop for Found {
    fn drop(&mut self) {
        // There may be keys in it.
        self.image.fill(0);
        std::hint::black_box(&self.image);
    }
}

/// The shelf.
pub struct Store {
    memory: Memory,
    head: &'static [AtomicU64],
    complete: u64,
    /// Where the last piece is not cut yet, in words.
    uncut: usize,
    free: Free,
    entries: HashMap<(u32, Kind), Vec<Entry>, FixedState>,
    /// Blocks that die with the transaction under way.
    dying: Vec<At>,
    is_changed: bool,
    has_failed: bool,
}

fn load(words: &[AtomicU64], at: usize) -> u64 {
    words.get(at).map_or(0, |word| word.load(Ordering::Acquire))
}

fn set(words: &[AtomicU64], at: usize, value: u64) {
    if let Some(word) = words.get(at) {
        word.store(value, Ordering::Release);
    }
}

fn checksum(image: &[u8]) -> u64 {
    FixedState::with_seed(MAGIC).hash_one(image)
}

/// Sizes that blocks have, in units: few enough that what is freed is of use again.
fn rounded(units: usize) -> usize {
    let step = (units.next_power_of_two() / 8).max(1);
    units.div_ceil(step) * step
}

/// Free blocks, by [`rounded`] size.
#[derive(Default)]
struct Free {
    by_class: Vec<(usize, Vec<At>)>,
}

impl Free {
    /// Those of so many units.
    fn of(&mut self, units: usize) -> &mut Vec<At> {
        let power = units.next_power_of_two();
        let below = (power - units) / (power / 8).max(1);
        let class = power.trailing_zeros() as usize * 8 + below;
        if self.by_class.len() <= class {
            self.by_class.resize_with(class + 1, Default::default);
        }
        match self.by_class.get_mut(class) {
            Some((size, blocks)) => {
                *size = units;
                blocks
            }
            None => unreachable!("a list shorter than its size"),
        }
    }

    /// Units of all of them.
    fn units(&self) -> usize {
        let each = self.by_class.iter();
        each.map(|(units, blocks)| units * blocks.len()).sum()
    }
}

const IMAGE: u64 = 1;
const WORDS: u64 = 2;

fn what(kind: Kind, part: u64, len: usize) -> u64 {
    let kind = Kind::ALL.iter().position(|&it| it == kind).unwrap_or(0) as u64;
    (len as u64) << 16 | kind << 8 | part
}

fn of_what(what: u64) -> Option<(Kind, u64, usize)> {
    let kind = *Kind::ALL.get(usize::try_from(what >> 8 & 0xff).ok()?)?;
    Some((kind, what & 0xff, usize::try_from(what >> 16).ok()?))
}

fn kernel_words(profile: &Profile) -> [u64; 2] {
    let mut name = [0; 16];
    for (to, from) in name.iter_mut().zip(profile.name.bytes()) {
        *to = from;
    }
    let (words, _) = name.as_chunks();
    match *words {
        [a, b] => [u64::from_le_bytes(a), u64::from_le_bytes(b)],
        _ => [0; 2],
    }
}

impl Store {
    /// A file for [`Store::open`].
    ///
    /// # Errors
    /// The host's.
    pub fn file() -> io::Result<OwnedFd> {
        Memory::file()
    }

    /// Takes the state in a file, none from an empty one.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn open(file: OwnedFd, profile: &Profile) -> Result<(Self, Vec<Found>), Refusal> {
        let mut memory = Memory::open(file)?;
        let is_new = memory.pieces().is_empty();
        if is_new {
            memory.grow()?;
        }
        let head = *memory.pieces().first().ok_or(Refusal::Damaged)?;
        let kernel = kernel_words(profile);
        let wanted = [MAGIC, u64::from(FORMAT)];
        if load(head, 0) == 0 && is_new {
            set(head, FORMAT_AT, u64::from(FORMAT));
            for (at, word) in (KERNEL_AT..).zip(kernel) {
                set(head, at, word);
            }
            set(head, COMPLETE_AT, 1);
            set(head, 0, MAGIC);
        }
        let found = [load(head, 0), load(head, FORMAT_AT)];
        let of = [load(head, KERNEL_AT), load(head, KERNEL_AT + 1)];
        if found != wanted || of != kernel {
            return Err(Refusal::Foreign);
        }
        let mut store = Self {
            complete: load(head, COMPLETE_AT),
            memory,
            head,
            uncut: HEAD_WORDS,
            free: Free::default(),
            entries: HashMap::with_hasher(FixedState::with_seed(0)),
            dying: Vec::new(),
            is_changed: false,
            has_failed: false,
        };
        let found = store.scan()?;
        Ok((store, found))
    }

    /// The file.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.memory.fd()
    }

    /// Bytes in use for records, free blocks excepted.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let free = self.free.units();
        let cut = self.memory.pieces().len().saturating_sub(1) * PIECE_WORDS + self.uncut;
        cut * 8 - free * UNIT * 8
    }

    /// Finds every block, undoes the transaction that is not complete, and reads what counts.
    fn scan(&mut self) -> Result<Vec<Found>, Refusal> {
        let pieces = self.memory.pieces().to_vec();
        let mut images = Vec::new();
        let last = pieces.len().saturating_sub(1);
        for (number, piece) in pieces.into_iter().enumerate() {
            let mut start = if number == 0 { HEAD_WORDS } else { 0 };
            while let Some(block) = piece.get(start..).filter(|rest| load(rest, SIZE) != 0) {
                let units = usize::try_from(load(block, SIZE)).unwrap_or(usize::MAX);
                let size = units.checked_mul(UNIT).filter(|size| *size >= BLOCK_HEAD);
                let block = size.and_then(|size| block.get(..size));
                let block = block.ok_or(Refusal::Damaged)?;
                let at = self.at(number, start);
                let (born, died) = (load(block, BORN), load(block, DIED));
                if born == 0 || born > self.complete || (died != 0 && died <= self.complete) {
                    self.release(at);
                } else {
                    set(block, DIED, 0);
                    images.extend(self.admit(at, block)?);
                }
                start += units * UNIT;
            }
            if number == last {
                self.uncut = start;
            }
        }
        // Words are found where an image says so.
        let mut found = Vec::new();
        for (record, image) in images {
            let words = self.entry(record).words;
            let words = self.block(words).map_or(&[][..], |block| {
                let len = of_what(load(block, WHAT)).map_or(0, |(_, _, len)| len);
                block.get(BLOCK_HEAD..BLOCK_HEAD + len).unwrap_or_default()
            });
            found.push(Found {
                record,
                image,
                words,
            });
        }
        found.sort_by_key(|found| found.record);
        Ok(found)
    }

    /// A block that counts: its record and image, if it is one.
    fn admit(
        &mut self,
        at: At,
        block: &'static [AtomicU64],
    ) -> Result<Option<(Record, Vec<u8>)>, Refusal> {
        let payload = block.get(BLOCK_HEAD..).unwrap_or_default();
        let (kind, part, len) = of_what(load(block, WHAT)).ok_or(Refusal::Damaged)?;
        let [n0, n1, n2, n3, p0, p1, p2, p3] = load(block, RECORD).to_be_bytes();
        let record = Record {
            netns: u32::from_be_bytes([n0, n1, n2, n3]),
            kind,
            place: u32::from_be_bytes([p0, p1, p2, p3]),
        };
        // As many places as blocks there could be.
        if record.place as usize > self.memory.pieces().len() * PIECE_WORDS {
            return Err(Refusal::Damaged);
        }
        let entry = self.entry_mut(record);
        let place = match part {
            IMAGE => &mut entry.image,
            WORDS => &mut entry.words,
            _ => return Err(Refusal::Damaged),
        };
        if std::mem::replace(place, at) != 0 {
            return Err(Refusal::Damaged);
        }
        if part == WORDS {
            return match len <= payload.len() {
                true => Ok(None),
                false => Err(Refusal::Damaged),
            };
        }
        let mut image: Vec<u8> = Vec::with_capacity(len.next_multiple_of(8).min(payload.len() * 8));
        let words = payload.get(..len.div_ceil(8)).ok_or(Refusal::Damaged)?;
        for word in words {
            image.extend_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        image.truncate(len);
        if checksum(&image) != load(block, CHECKSUM) {
            return Err(Refusal::Damaged);
        }
        Ok(Some((record, image)))
    }

    fn at(&self, piece: usize, start: usize) -> At {
        u32::try_from((piece * PIECE_WORDS + start) / UNIT).unwrap_or(0)
    }

    /// The block at a place.
    fn block(&self, at: At) -> Option<&'static [AtomicU64]> {
        if at == 0 {
            return None;
        }
        let start = at as usize * UNIT;
        let piece = *self.memory.pieces().get(start / PIECE_WORDS)?;
        let rest = piece.get(start % PIECE_WORDS..)?;
        let units = usize::try_from(load(rest, SIZE)).ok()?;
        rest.get(..units.checked_mul(UNIT)?)
    }

    fn entry(&self, record: Record) -> Entry {
        self.entries
            .get(&(record.netns, record.kind))
            .and_then(|all| all.get(record.place as usize))
            .copied()
            .unwrap_or_default()
    }

    fn entry_mut(&mut self, record: Record) -> &mut Entry {
        let all = self.entries.entry((record.netns, record.kind)).or_default();
        let place = record.place as usize;
        if all.len() <= place {
            all.resize(place + 1, Entry::default());
        }
        // It is there.
        match all.get_mut(place) {
            Some(entry) => entry,
            None => unreachable!("a table shorter than its size"),
        }
    }

    /// A block of zeros that is born with the transaction under way.
    fn allocate(
        &mut self,
        record: Record,
        part: u64,
        len: usize,
        payload_words: usize,
    ) -> io::Result<(At, &'static [AtomicU64])> {
        let units = rounded((BLOCK_HEAD + payload_words).div_ceil(UNIT));
        if units * UNIT > PIECE_WORDS - HEAD_WORDS {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let at = match self.free.of(units).pop() {
            Some(at) => at,
            None => self.cut(units)?,
        };
        let block = self.block(at).ok_or(io::ErrorKind::OutOfMemory)?;
        let number = u64::from(record.netns) << 32 | u64::from(record.place);
        set(block, RECORD, number);
        set(block, WHAT, what(record.kind, part, len));
        set(block, BORN, self.complete + 1);
        self.is_changed = true;
        Ok((at, block))
    }

    /// Cuts a block off what is not cut yet.
    fn cut(&mut self, units: usize) -> io::Result<At> {
        if self.uncut + units * UNIT > PIECE_WORDS {
            self.memory.grow()?;
            self.uncut = 0;
        }
        let number = self.memory.pieces().len() - 1;
        let at = self.at(number, self.uncut);
        if let Some(block) = self
            .memory
            .pieces()
            .last()
            .and_then(|it| it.get(self.uncut..))
        {
            set(block, SIZE, units as u64);
        }
        self.uncut += units * UNIT;
        Ok(at)
    }

    /// Has a block die with the transaction under way.
    fn kill(&mut self, at: At) {
        if let Some(block) = self.block(at) {
            set(block, DIED, self.complete + 1);
            self.dying.push(at);
            self.is_changed = true;
        }
    }

    /// Wipes a block and makes it free.
    fn release(&mut self, at: At) {
        let Some(block) = self.block(at) else { return };
        set(block, BORN, 0);
        for word in block.iter().skip(DIED) {
            word.store(0, Ordering::Relaxed);
        }
        self.free.of(block.len() / UNIT).push(at);
    }

    fn fail(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.has_failed, true) {
            tracing::error!(%error, "no memory for state: some of it would not survive a crash");
        }
    }
}

impl Shelf for Store {
    fn lend(&mut self, record: Record, words: usize) -> Option<&'static [AtomicU64]> {
        self.kill(self.entry(record).words);
        match self.allocate(record, WORDS, words, words) {
            Ok((at, block)) => {
                self.entry_mut(record).words = at;
                block.get(BLOCK_HEAD..BLOCK_HEAD + words)
            }
            Err(error) => {
                self.entry_mut(record).words = 0;
                self.fail(&error);
                None
            }
        }
    }

    fn put(&mut self, record: Record, image: &[u8]) {
        self.kill(self.entry(record).image);
        let place = match self.allocate(record, IMAGE, image.len(), image.len().div_ceil(8)) {
            Ok((at, block)) => {
                let payload = block.get(BLOCK_HEAD..).unwrap_or_default();
                let (whole, rest) = image.as_chunks();
                let last = rest.iter().rev();
                let last = last.fold(0, |value, byte| value << 8 | u64::from(*byte));
                let values = whole.iter().map(|bytes| u64::from_le_bytes(*bytes));
                for (word, value) in payload.iter().zip(values.chain([last])) {
                    word.store(value, Ordering::Relaxed);
                }
                set(block, CHECKSUM, checksum(image));
                at
            }
            Err(error) => {
                self.fail(&error);
                0
            }
        };
        self.entry_mut(record).image = place;
    }

    fn remove(&mut self, record: Record) {
        let Entry { image, words } = self.entry(record);
        if image | words != 0 {
            self.kill(image);
            self.kill(words);
            *self.entry_mut(record) = Entry::default();
        }
    }

    fn commit(&mut self) {
        if !std::mem::take(&mut self.is_changed) {
            return;
        }
        self.complete += 1;
        set(self.head, COMPLETE_AT, self.complete);
        for at in std::mem::take(&mut self.dying) {
            self.release(at);
        }
    }
}

#[cfg(test)]
mod tests;
