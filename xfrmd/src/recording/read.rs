//! A file back as what happened.

use std::borrow::Cow;

use super::Damage;
use super::format::{ANSWER, END, HAPPENED, HEAD, Happened, Head, OWN, To, What, decode_answer};
use super::pcapng::{self, ENHANCED_PACKET, Found};

/// What was recorded.
#[derive(Clone, Debug)]
pub struct Recording<'f> {
    /// How.
    pub head: Head,
    /// In the order in which it happened.
    pub happenings: Vec<Happening<'f>>,
    /// Numbers that are missing: packets were lost because they came faster than they were written.
    pub lost: u64,
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
        let Reader {
            head,
            mut happenings,
            mut answers,
            end,
        } = reader;
        let head = head.ok_or_else(|| Damage::new(0, "this is no recording of xfrmd"))?;
        if cut.is_none() && end.is_none() {
            let what = "the recording has no end: its daemon was killed, or still runs";
            cut = Some(Damage::new(file.len(), what));
        }
        happenings.sort_by_key(|it| it.happened.number);
        // A stable sort: the answers to one happening are in one thread's order.
        answers.sort_by_key(|&(number, _)| number);
        if cut.is_some() {
            // What a packet thread had not handed over yet is missing, and all behind it is of no use.
            let in_order = happenings.iter().zip(1..);
            let there = in_order.take_while(|(it, number)| it.happened.number == *number);
            happenings.truncate(there.count());
        }
        let mut answers = answers.into_iter().peekable();
        let mut lost = 0;
        let mut last = 0;
        for happening in &mut happenings {
            let number = happening.happened.number;
            if number == last {
                let what = format!("there are two happenings {number}");
                return Err(Damage::new(happening.offset, what));
            }
            lost += number - last - 1;
            last = number;
            while let Some((_, answer)) = answers.next_if(|&(of, _)| of <= number) {
                happening.answers.push(answer);
            }
        }
        lost += end.unwrap_or(last).saturating_sub(last);
        Ok(Self {
            head,
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

#[derive(Default)]
struct Reader<'f> {
    head: Option<Head>,
    happenings: Vec<Happening<'f>>,
    answers: Vec<(u64, Answer<'f>)>,
    end: Option<u64>,
}

impl<'f> Reader<'f> {
    fn take(&mut self, block: &Found<'f>) -> Result<(), Damage> {
        let nonsense = |what| Damage::new(block.offset, what);
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
                self.head = Some(head);
                continue;
            }
            if !matches!(code, HAPPENED | ANSWER | END) {
                continue;
            }
            if self.head.is_none() {
                return Err(nonsense("this is no recording of xfrmd"));
            }
            match code {
                HAPPENED => {
                    let happened = Happened::decode(value, payload);
                    self.happenings.push(Happening {
                        offset: block.offset,
                        nanos,
                        happened: happened.ok_or_else(|| nonsense("a happening makes no sense"))?,
                        answers: Vec::new(),
                    });
                }
                ANSWER => {
                    let (number, to) =
                        decode_answer(value).ok_or_else(|| nonsense("an answer makes no sense"))?;
                    let bytes = payload.into();
                    self.answers.push((number, Answer { to, bytes }));
                }
                _ => {
                    let last = value.first_chunk().copied().map(u64::from_ne_bytes);
                    self.end = Some(last.ok_or_else(|| nonsense("an end makes no sense"))?);
                }
            }
        }
        Ok(())
    }
}
