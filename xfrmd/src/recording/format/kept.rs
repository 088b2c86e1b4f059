//! An engine's state as its daemon's store has it, where a killed daemon's recording goes on.

use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::Ordering;

use dataplane::keep::{self, Kind, Reader, Writer};

use super::KEPT;
use crate::recording::pcapng::Block;

/// Of an image, in one option; an option has two bytes for its length.
const PART_BYTES: usize = 60_000;

/// A record of a store.
#[derive(Clone, PartialEq, Eq)]
pub struct Kept<'a> {
    /// What it is of.
    pub record: keep::Record,
    /// Its image.
    pub image: Cow<'a, [u8]>,
    /// What its words held.
    pub words: Vec<u64>,
}

impl fmt::Debug for Kept<'_> {
    /// There are keys in images and random numbers in words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Kept");
        shown.field("record", &self.record);
        shown.finish_non_exhaustive()
    }
}

impl From<keep::Kept<'_>> for Kept<'static> {
    fn from(kept: keep::Kept<'_>) -> Self {
        let words = kept.words.iter();
        Self {
            record: kept.record,
            image: kept.image.to_vec().into(),
            words: words.map(|word| word.load(Ordering::Relaxed)).collect(),
        }
    }
}

impl Kept<'_> {
    /// Appends it to a block, as options; each but the last says that there is more.
    pub(in super::super) fn put(&self, block: &mut Block<'_>) {
        let mut bytes = Vec::new();
        let mut out = Writer::new(&mut bytes);
        let kind = Kind::ALL.iter().position(|&kind| kind == self.record.kind);
        out.int(self.record.netns.into());
        out.int(kind.and_then(|it| it.try_into().ok()).unwrap_or(u64::MAX));
        out.int(self.record.place.into());
        out.int(self.words.len().try_into().unwrap_or(u64::MAX));
        for &word in &self.words {
            out.int(word);
        }
        out.bytes(&self.image);
        let mut parts = bytes.chunks(PART_BYTES).peekable();
        while let Some(part) = parts.next() {
            let more = [u8::from(parts.peek().is_some())];
            block.option(KEPT, &[&more, part].concat());
        }
    }

    fn decode(bytes: &[u8]) -> Option<Kept<'static>> {
        let mut from = Reader::new(bytes);
        let netns = from.u32()?;
        let kind = *Kind::ALL.get(usize::try_from(from.int()?).ok()?)?;
        let place = from.u32()?;
        let words = from.int()?;
        let words = (0..words).map(|_| from.int()).collect::<Option<Vec<_>>>()?;
        let image = from.bytes()?.to_vec().into();
        from.end()?;
        Some(Kept {
            record: keep::Record { netns, kind, place },
            image,
            words,
        })
    }
}

/// Records that are being read.
#[derive(Default)]
pub(in super::super) struct KeptReader {
    part: Vec<u8>,
    whole: Vec<Kept<'static>>,
}

impl KeptReader {
    /// Takes what an option holds; `None` for what makes no sense.
    pub(in super::super) fn take(&mut self, option: &[u8]) -> Option<()> {
        let (&more, part) = option.split_first()?;
        self.part.extend_from_slice(part);
        if more == 0 {
            self.whole.push(Kept::decode(&self.part)?);
            self.part.clear();
        }
        Some(())
    }

    /// All that was read.
    pub(in super::super) fn finish(&mut self) -> Vec<Kept<'static>> {
        std::mem::take(&mut self.whole)
    }
}
