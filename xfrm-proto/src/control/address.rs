//! How a private instance is found, and how both sides know each other.

use super::{EVENT_MARK, EVENT_TAIL_BYTES, SECRET_BYTES, SYSTEM_ABSTRACT, SYSTEM_PATH};

/// How a private instance is found: the text of [`ENV_CONTROL`](super::ENV_CONTROL).
///
/// `PATH|ABSTRACT|PID|TOKEN|PROOF`. The client shows the token, the daemon answers with the
/// proof; a program that squats the address knows neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address<'a> {
    /// A pathname.
    pub path: &'a [u8],
    /// An abstract name, without its leading NUL.
    pub abstract_name: &'a [u8],
    /// The daemon's process id, for `/proc/PID/root`, when the path is not visible.
    pub pid: u32,
    /// What the client shows and the daemon answers; none for the system's daemon.
    pub secret: Option<Secret>,
}

/// The two halves of a private instance's secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret {
    /// What the client shows.
    pub token: [u8; SECRET_BYTES],
    /// What the daemon answers.
    pub proof: [u8; SECRET_BYTES],
}

impl Secret {
    /// What is behind every event of the instance. It tells 32 bits of the token's 128.
    #[must_use]
    pub fn event_tail(&self) -> [u8; EVENT_TAIL_BYTES] {
        let mut tail = [0; EVENT_TAIL_BYTES];
        let (mark, number) = tail.split_at_mut(EVENT_MARK.len());
        mark.copy_from_slice(&EVENT_MARK);
        for bytes in self.token.chunks(number.len()) {
            number
                .iter_mut()
                .zip(bytes)
                .for_each(|(to, from)| *to ^= from);
        }
        tail
    }
}

impl core::fmt::Debug for Secret {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Secret")
    }
}

impl<'a> Address<'a> {
    /// The system's daemon.
    pub const SYSTEM: Address<'static> = Address {
        path: SYSTEM_PATH.as_bytes(),
        abstract_name: SYSTEM_ABSTRACT.as_bytes(),
        pid: 0,
        secret: None,
    };

    /// Reads the variable; `None` for what is not an address. A bare path is a daemon without a
    /// secret.
    #[must_use]
    pub fn parse(text: &'a [u8]) -> Option<Self> {
        let mut parts = text.split(|&byte| byte == b'|');
        let path = parts.next().filter(|path| path.first() == Some(&b'/'))?;
        let Some(abstract_name) = parts.next() else {
            return Some(Self {
                path,
                abstract_name: &[],
                pid: 0,
                secret: None,
            });
        };
        let pid = core::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
        let secret = Secret {
            token: unhex(parts.next()?)?,
            proof: unhex(parts.next()?)?,
        };
        parts.next().is_none().then_some(Self {
            path,
            abstract_name,
            pid,
            secret: Some(secret),
        })
    }
}

impl core::fmt::Display for Address<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let path = core::str::from_utf8(self.path).map_err(|_| core::fmt::Error)?;
        f.write_str(path)?;
        let Some(secret) = &self.secret else {
            return Ok(());
        };
        let name = core::str::from_utf8(self.abstract_name).map_err(|_| core::fmt::Error)?;
        write!(f, "|{name}|{}|", self.pid)?;
        for byte in secret.token {
            write!(f, "{byte:02x}")?;
        }
        f.write_str("|")?;
        for byte in secret.proof {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

fn unhex(text: &[u8]) -> Option<[u8; SECRET_BYTES]> {
    let mut out = [0; SECRET_BYTES];
    if text.len() != 2 * SECRET_BYTES {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        *byte = u8::from_str_radix(core::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}
