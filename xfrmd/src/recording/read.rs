//! A file back as what happened.
//!
//! It is a section, and another for each daemon that went on where one was killed. Of a section without
//! an end the last things are missing, in no order: it counts up to where it is whole.

use std::borrow::Cow;

use super::Damage;
use super::format::{
    ANSWER, END, HAPPENED, HEAD, Happened, Head, KEPT, KeptReader, OWN, To, What, decode_answer,
};
use super::pcapng::{self, ENHANCED_PACKET, Found, SECTION};

/// What was recorded.
#[derive(Clone, Debug)]
pub struct Recording<'f> {
    /// How.
    pub head: Head,
    /// In the order in which it happened.
    pub happenings: Vec<Happening<'f>>,
    /// Numbers that are missing: packets were lost because they came faster than they were written.
    pub lost: u64,
    /// How often its daemon was killed, and another went on.
    pub kills: usize,
    /// Where it ends before its time, if it does.
    pub cut: Option<Damage>,
}

/// Something that happened, and what came of it.
#[derive(Clone, Debug)]
pub struct Happening<'f> {
    /// Where in the file.
    pub offset: usize,
    /// Nanoseconds since 1970, 0 for what has no time of its own.
    pub nanos: u64,
    /// What.
    pub happened: Happened<'f>,
    /// What came of it, in order.
    pub answers: Vec<Answer<'f>>,
}

/// A datagram or packet that came of something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer<'f> {
    /// Who gets it.
    pub to: To,
    /// It.
    pub bytes: Cow<'f, [u8]>,
}

impl<'f> Recording<'f> {
    /// Reads a file. One that is cut short is read up to there and says so.
    ///
    /// # Errors
    /// What is no recording, or one of a newer format.
    pub fn read(file: &'f [u8]) -> Result<Self, Damage> {
        let mut reader = Reader::default();
        let mut cut = None;
        for block in pcapng::blocks(file) {
            match block.and_then(|block| reader.take(&block)) {
                Ok(()) => {}
                // Without a head it is none of ours.
                Err(damage) if reader.head.is_none() => return Err(damage),
                Err(damage) => {
                    cut = Some(damage);
                    break;
                }
            }
        }
        let head = reader.head.take();
        let head = head.ok_or_else(|| Damage::new(0, "this is no recording of xfrmd"))?;
        if cut.is_none() && reader.section.end.is_none() {
            let what = "the recording has no end: its daemon was killed, or still runs";
            cut = Some(Damage::new(file.len(), what));
        }
        reader.settle()?;
        let Reader {
            mut happenings,
            mut answers,
            lost,
            ..
        } = reader;
        // A stable sort: the answers to one happening are in one thread's order.
        answers.sort_by_key(|&(number, _)| number);
        let mut answers = answers.into_iter().peekable();
        for happening in &mut happenings {
            let number = happening.happened.number;
            while let Some((of, answer)) = answers.next_if(|&(of, _)| of <= number) {
                if of == number {
                    happening.answers.push(answer);
                }
            }
        }
        let recalls = happenings.iter().filter(|it| it.is_recall());
        Ok(Self {
            head,
            kills: recalls.count(),
            happenings,
            lost,
            cut,
        })
    }

    /// Whether packets are in it.
    #[must_use]
    pub fn has_packets(&self) -> bool {
        let mut all = self.happenings.iter();
        all.any(|it| matches!(it.happened.what, What::Passage { .. }))
    }
}

impl Happening<'_> {
    fn is_recall(&self) -> bool {
        matches!(self.happened.what, What::Recall { .. })
    }
}

/// What one daemon has written, in the order of the file.
#[derive(Default)]
struct Section<'f> {
    happenings: Vec<Happening<'f>>,
    kept: KeptReader,
    end: Option<u64>,
}

#[derive(Default)]
struct Reader<'f> {
    head: Option<Head>,
    /// Of sections that are over.
    happenings: Vec<Happening<'f>>,
    answers: Vec<(u64, Answer<'f>)>,
    lost: u64,
    sections: usize,
    section: Section<'f>,
}

impl<'f> Reader<'f> {
    /// The section is over.
    fn settle(&mut self) -> Result<(), Damage> {
        let Section {
            mut happenings,
            end,
            ..
        } = std::mem::take(&mut self.section);
        // Its answers follow it.
        let unsure = happenings.last().map(|it| it.happened.number);
        happenings.sort_by_key(|it| it.happened.number);
        let Some(first) = happenings.first() else {
            return Ok(());
        };
        let before = self.happenings.last().map_or(0, |it| it.happened.number);
        let number = first.happened.number;
        if (self.sections > 1 && !first.is_recall()) || number <= before {
            let what = format!("happening {number} does not go on with what was before");
            return Err(Damage::new(first.offset, what));
        }
        let mut last = if first.is_recall() { number - 1 } else { 0 };
        if end.is_none() {
            // What a thread had not handed over yet is missing, and all behind it is of no use.
            let in_order = happenings.iter().zip(last + 1..);
            let there = in_order.take_while(|(it, expected)| {
                it.happened.number == *expected && Some(*expected) != unsure
            });
            happenings.truncate(there.count());
        }
        for happening in &happenings {
            let number = happening.happened.number;
            if number == last {
                let what = format!("there are two happenings {number}");
                return Err(Damage::new(happening.offset, what));
            }
            self.lost += number - last - 1;
            last = number;
        }
        self.lost += end.unwrap_or(last).saturating_sub(last);
        self.happenings.append(&mut happenings);
        Ok(())
    }

    fn take(&mut self, block: &Found<'f>) -> Result<(), Damage> {
        let nonsense = |what| Damage::new(block.offset, what);
        if block.kind == SECTION {
            self.settle()?;
            self.sections += 1;
            return Ok(());
        }
        let (nanos, payload, options): (_, _, Vec<_>) = match (block.kind, block.packet()) {
            (OWN, _) => (0, &[][..], block.options().collect()),
            (ENHANCED_PACKET, Some(packet)) => {
                (packet.nanos, packet.payload(), packet.options().collect())
            }
            (ENHANCED_PACKET, None) => return Err(nonsense("a packet makes no sense")),
            _ => return Ok(()),
        };
        for (code, value) in options {
            if code == HEAD {
                let head = Head::decode(value).map_err(|what| Damage::new(block.offset, what))?;
                self.head.get_or_insert(head);
                continue;
            }
            if !matches!(code, HAPPENED | ANSWER | END | KEPT) {
                continue;
            }
            if self.head.is_none() {
                return Err(nonsense("this is no recording of xfrmd"));
            }
            match code {
                HAPPENED => {
                    let happened = Happened::decode(value, payload);
                    let mut happened =
                        happened.ok_or_else(|| nonsense("a happening makes no sense"))?;
                    if let What::Recall { kept, .. } = &mut happened.what {
                        *kept = self.section.kept.finish();
                    }
                    self.section.happenings.push(Happening {
                        offset: block.offset,
                        nanos,
                        happened,
                        answers: Vec::new(),
                    });
                }
                KEPT => {
                    let taken = self.section.kept.take(value);
                    taken.ok_or_else(|| nonsense("a record of kept state makes no sense"))?;
                }
                ANSWER => {
                    let (number, to) =
                        decode_answer(value).ok_or_else(|| nonsense("an answer makes no sense"))?;
                    let bytes = payload.into();
                    self.answers.push((number, Answer { to, bytes }));
                }
                _ => {
                    let last = value.first_chunk().copied().map(u64::from_ne_bytes);
                    self.section.end = Some(last.ok_or_else(|| nonsense("an end makes no sense"))?);
                }
            }
        }
        Ok(())
    }
}
