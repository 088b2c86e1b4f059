//! A sequence of datagrams, and its form as a text file that can be replayed.
//!
//! A line is a step: the socket's letter, the size of the buffer that answers
//! are received into (0: they are left in the queues), and the datagram in
//! hex. Lines that begin with `#` are remarks.

use std::fmt::Write as _;

use xfrm_proto::reply::messages;

use crate::message::Message;
use crate::session::{LARGE_BUFFER, Open, Session};
use crate::subject::Subject;
use xfrm_proto::decode::kind_name;

/// A datagram to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which of the four sockets sends it.
    pub socket: usize,
    /// The buffer to receive answers into afterwards, 0 to leave them.
    pub recv_bytes: usize,
    /// The datagram.
    pub datagram: Vec<u8>,
}

/// Steps in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    /// The steps.
    pub steps: Vec<Step>,
}

impl Sequence {
    /// How many messages are sent.
    #[must_use]
    pub fn messages(&self) -> usize {
        let counts = self
            .steps
            .iter()
            .map(|step| messages(&step.datagram).count().max(1));
        counts.sum()
    }

    /// The file's text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        for step in &self.steps {
            let kinds: Vec<_> = messages(&step.datagram)
                .map(|(h, _)| kind_name(h.kind))
                .collect();
            let _ = write!(
                out,
                "# {}\n{} {} ",
                kinds.join(" "),
                step.socket,
                step.recv_bytes
            );
            for byte in &step.datagram {
                let _ = write!(out, "{byte:02x}");
            }
            out.push('\n');
        }
        out
    }

    /// Reads a file's text; `None` when it is none.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let lines = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.trim().is_empty());
        let steps = lines.map(|line| {
            let mut words = line.split_whitespace();
            let socket = words.next()?.parse().ok()?;
            let recv_bytes = words.next()?.parse().ok()?;
            let hex = words.next().unwrap_or_default();
            let bytes = (0..hex.len() / 2)
                .map(|at| u8::from_str_radix(hex.get(at * 2..at * 2 + 2)?, 16).ok());
            Some(Step {
                socket,
                recv_bytes,
                datagram: bytes.collect::<Option<_>>()?,
            })
        });
        Some(Self {
            steps: steps.collect::<Option<_>>()?,
        })
    }

    /// Runs it in an empty namespace.
    #[must_use]
    pub fn transcript(&self, subject: &mut dyn Subject) -> String {
        let mut session = Session::new(subject, false);
        self.replay(&mut session);
        session.finish()
    }

    /// Runs it as a scenario.
    pub fn replay(&self, s: &mut Session<'_>) {
        s.ignore_hash_sizes();
        let sockets = [
            s.open("a", Open::new()),
            s.open("b", Open::new().all_groups()),
            s.open("plain", Open::new().plain().groups(0x4)),
            s.open("nobody", Open::new().unprivileged()),
        ];
        for step in &self.steps {
            let socket = sockets[step.socket % sockets.len()];
            s.send_bytes(socket, "", &step.datagram);
            if step.recv_bytes > 0 {
                s.drain_with(step.recv_bytes);
            }
        }
        s.drain(sockets[0]);
        for kind in [0x12, 0x15] {
            s.request(sockets[0], "at the end", Message::dump(kind));
        }
        for kind in [0x23, 0x25] {
            s.request(sockets[0], "at the end", Message::new(kind).put(&[0; 4]));
        }
        s.drain_with(LARGE_BUFFER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let step = |socket, datagram: &[u8]| Step {
            socket,
            recv_bytes: 4096,
            datagram: datagram.into(),
        };
        let sequence = Sequence {
            steps: vec![step(0, &[1, 2, 255]), step(3, &[])],
        };
        assert_eq!(Sequence::from_text(&sequence.to_text()), Some(sequence));
        assert_eq!(Sequence::from_text("0 x 00"), None);
    }
}
