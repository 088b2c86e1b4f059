//! What happened, as text: one block per thing done, one per datagram received.

use std::fmt::Write as _;

use xfrm_proto::decode;
use xfrm_proto::reply::messages;

/// A transcript in the making.
#[derive(Clone, Debug, Default)]
pub struct Transcript(String);

impl Transcript {
    /// A remark: what follows is about `text`.
    pub fn note(&mut self, text: &str) {
        let _ = writeln!(self.0, "# {text}");
    }

    /// Something seen, as it is.
    pub fn line(&mut self, text: &str) {
        let _ = writeln!(self.0, "{text}");
    }

    /// Something done at socket `name`, and how it ended if not well.
    pub fn act(&mut self, name: &str, text: &str, result: Result<(), i32>) {
        let _ = match result {
            Ok(()) => writeln!(self.0, "> {name} {text}"),
            Err(errno) => writeln!(self.0, "> {name} {text} -> errno {errno}"),
        };
    }

    /// A datagram received at socket `name`, renamed already.
    pub fn datagram(&mut self, name: &str, groups: u32, sender: u32, bytes: &[u8]) {
        let mut head = format!("< {name}");
        if groups != 0 {
            let _ = write!(head, " groups {groups:#x}");
        }
        if sender != 0 {
            let _ = write!(head, " sender {sender}");
        }
        let mut seen = 0;
        let mut first = true;
        let mut count = 0;
        for (_, message) in messages(bytes) {
            let lines = decode::message(message);
            let mark = if first { head.as_str() } else { "<  and" };
            let _ = writeln!(self.0, "{mark} {}", lines[0]);
            for line in &lines[1..] {
                let _ = writeln!(self.0, "    {line}");
            }
            first = false;
            seen += xfrm_proto::align4(message.len());
            count += 1;
        }
        if count > 1 {
            let _ = writeln!(self.0, "<  datagram {} messages {count}", bytes.len());
        }
        if seen < bytes.len() {
            let _ = writeln!(self.0, "{head} rest {}", decode::hex(&bytes[seen..]));
        }
    }

    /// An error of a receive call.
    pub fn recv_error(&mut self, name: &str, errno: i32) {
        let _ = writeln!(self.0, "< {name} errno {errno}");
    }

    /// The text.
    #[must_use]
    pub fn into_text(self) -> String {
        self.0
    }
}
