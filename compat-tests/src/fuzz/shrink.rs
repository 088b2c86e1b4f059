//! Makes a sequence that shows a difference as small as it gets while it shows
//! the same difference: fewer steps, fewer messages, fewer attributes, more zeroes.

use xfrm_proto::align4;
use xfrm_proto::consts::{NLA_HDRLEN, NLMSG_HDRLEN};
use xfrm_proto::reply::messages;
use xfrm_proto::uapi::{NlAttr, Pod};

use super::sequence::{Sequence, Step};
use xfrm_proto::decode::fixed_bytes;

/// Most runs spent on one difference.
const MOST_RUNS: u32 = 600;

/// Shrinks `sequence`; `signature_of` runs a candidate.
///
/// # Errors
/// What `signature_of` fails with.
pub(super) fn shrink(
    sequence: &Sequence,
    signature: &str,
    signature_of: impl FnMut(&Sequence) -> anyhow::Result<Option<String>>,
) -> anyhow::Result<Sequence> {
    let mut shrinker = Shrinker {
        signature,
        signature_of,
        runs: 0,
        best: sequence.clone(),
    };
    shrinker.split_datagrams()?;
    shrinker.drop_steps()?;
    shrinker.drop_attributes()?;
    shrinker.drop_steps()?;
    shrinker.clear_words()?;
    Ok(shrinker.best)
}

struct Shrinker<'a, F> {
    signature: &'a str,
    signature_of: F,
    runs: u32,
    best: Sequence,
}

impl<F: FnMut(&Sequence) -> anyhow::Result<Option<String>>> Shrinker<'_, F> {
    /// Takes `candidate` if it still shows the difference.
    fn try_steps(&mut self, steps: Vec<Step>) -> anyhow::Result<bool> {
        if self.runs >= MOST_RUNS {
            return Ok(false);
        }
        self.runs += 1;
        let candidate = Sequence { steps };
        let same = (self.signature_of)(&candidate)?.is_some_and(|found| found == self.signature);
        if same {
            self.best = candidate;
        }
        Ok(same)
    }

    fn split_datagrams(&mut self) -> anyhow::Result<()> {
        let steps = self.best.steps.iter().flat_map(|step| {
            let parts: Vec<Vec<u8>> = messages(&step.datagram)
                .map(|(_, message)| message.to_vec())
                .collect();
            let parts = if parts.is_empty() {
                vec![step.datagram.clone()]
            } else {
                parts
            };
            parts.into_iter().map(|datagram| Step {
                datagram,
                recv_bytes: 65536,
                ..step.clone()
            })
        });
        self.try_steps(steps.collect())?;
        Ok(())
    }

    fn drop_steps(&mut self) -> anyhow::Result<()> {
        let mut chunk = self.best.steps.len().div_ceil(2).max(1);
        loop {
            let mut at = 0;
            while at < self.best.steps.len() {
                let mut steps = self.best.steps.clone();
                steps.drain(at..(at + chunk).min(steps.len()));
                if !self.try_steps(steps)? {
                    at += chunk;
                }
            }
            if chunk == 1 {
                return Ok(());
            }
            chunk = chunk.div_ceil(2);
        }
    }

    fn drop_attributes(&mut self) -> anyhow::Result<()> {
        for index in 0..self.best.steps.len() {
            let mut number = 0;
            while let Some(datagram) = without_attribute(&self.best.steps[index].datagram, number) {
                let mut steps = self.best.steps.clone();
                steps[index].datagram = datagram;
                if !self.try_steps(steps)? {
                    number += 1;
                }
            }
        }
        Ok(())
    }

    fn clear_words(&mut self) -> anyhow::Result<()> {
        for index in 0..self.best.steps.len() {
            let len = self.best.steps[index].datagram.len();
            for at in (NLMSG_HDRLEN..len.saturating_sub(3)).step_by(4) {
                let mut steps = self.best.steps.clone();
                let word = &mut steps[index].datagram[at..at + 4];
                if word == [0; 4] {
                    continue;
                }
                word.fill(0);
                self.try_steps(steps)?;
            }
        }
        Ok(())
    }
}

/// The datagram, a single message, without its attribute of that number.
fn without_attribute(datagram: &[u8], number: usize) -> Option<Vec<u8>> {
    let (header, message) = messages(datagram).next()?;
    if message.len() != datagram.len() {
        return None;
    }
    let mut at = NLMSG_HDRLEN + align4(fixed_bytes(header.kind));
    for n in 0.. {
        let attr = NlAttr::read(message.get(at..)?)?;
        if usize::from(attr.len) < NLA_HDRLEN {
            return None;
        }
        let end = at + align4(attr.len.into());
        if n == number {
            let mut out = message.to_vec();
            out.drain(at..end.min(message.len()));
            let len = (out.len() as u32).to_ne_bytes();
            out[..4].copy_from_slice(&len);
            return Some(out);
        }
        at = end;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Message;

    #[test]
    fn finds_the_culprit() {
        let step = |datagram: Vec<u8>| Step {
            socket: 0,
            recv_bytes: 1,
            datagram,
        };
        let noise = |n: u8| step(Message::new(0x12).put(&[n; 24]).bytes());
        let culprit = Message::new(0x12)
            .put(&[7; 24])
            .attr(21, [1; 8])
            .attr(31, [9; 4])
            .bytes();
        let mut steps: Vec<_> = (10..40).map(noise).collect();
        steps.insert(13, step(culprit));
        let shows = |sequence: &Sequence| {
            let hit = sequence.steps.iter().any(|step| {
                step.datagram.windows(4).any(|w| w == [9; 4]) && step.datagram[16] == 7
            });
            Ok(hit.then(|| "x".to_owned()))
        };
        let small = shrink(&Sequence { steps }, "x", shows).unwrap();
        assert_eq!(small.steps.len(), 1);
        assert!(small.steps[0].datagram.len() < 16 + 24 + 12);
    }
}
