//! `/proc/net/xfrm_stat` and `/proc/sys/net/core/xfrm_*`.
//!
//! A file opened for writing is one end of a socket pair; what arrives at the
//! other is read before anything else of any client is handled, so that a
//! write takes effect before whatever its writer does next.
//!
//! Source: `net/xfrm/xfrm_proc.c`, `net/xfrm/xfrm_sysctl.c`, `kernel/sysctl.c
//! proc_dointvec, proc_douintvec`.

use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use dataplane::Netns;
use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, recv, send, shutdown, socketpair,
};
use xfrm_proto::control::File;
use xfrmd::emulator::NetnsId;

use super::{Daemon, Source};

/// A file that a client has open for writing.
pub(super) struct Writer {
    fd: OwnedFd,
    netns: NetnsId,
    file: File,
}

/// Why a write fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteError {
    /// It is not a number, or too large.
    Invalid,
    /// The file has no writer.
    ReadOnly,
}

impl Daemon {
    pub(super) fn read_file(&mut self, id: NetnsId, file: File) -> Vec<u8> {
        self.read_writers();
        if file == File::Stat {
            self.count_dropped(id);
        }
        self.emulator
            .netns(id)
            .map(|netns| content(&netns, file).into_bytes())
            .unwrap_or_default()
    }

    pub(super) fn write_file(
        &mut self,
        id: NetnsId,
        file: File,
        bytes: &[u8],
    ) -> Result<(), WriteError> {
        let stored = self.emulator.change(id, |netns| store(netns, file, bytes));
        stored.unwrap_or(Err(WriteError::ReadOnly))
    }

    /// A descriptor to write to; reading from it gives the content as of now.
    pub(super) fn open_writer(&mut self, id: NetnsId, file: File) -> io::Result<OwnedFd> {
        if file == File::Stat {
            return Err(io::Error::from_raw_os_error(libc::EACCES));
        }
        let text = self.read_file(id, file);
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        send(ours.as_raw_fd(), &text, MsgFlags::MSG_DONTWAIT)?;
        shutdown(ours.as_raw_fd(), Shutdown::Write)?;
        let free = self.writers.iter().position(Option::is_none);
        let index = free.unwrap_or(self.writers.len());
        let event = EpollEvent::new(EpollFlags::EPOLLIN, Source::Writer.data(index));
        self.epoll.add(&ours, event)?;
        let writer = Writer {
            fd: ours,
            netns: id,
            file,
        };
        if let Some(slot) = self.writers.get_mut(index) {
            *slot = Some(writer);
        } else {
            self.writers.push(Some(writer));
        }
        Ok(theirs)
    }

    /// Takes what was written to every open file.
    pub(super) fn read_writers(&mut self) {
        if self.writers.is_empty() {
            return;
        }
        for index in 0..self.writers.len() {
            self.read_writer(index);
        }
        while self.writers.pop_if(|writer| writer.is_none()).is_some() {}
    }

    pub(super) fn read_writer(&mut self, index: usize) {
        let mut buffer = [0_u8; 4096];
        while let Some(Some(writer)) = self.writers.get(index) {
            let received = recv(
                writer.fd.as_fd().as_raw_fd(),
                &mut buffer,
                MsgFlags::MSG_DONTWAIT,
            );
            match received {
                Ok(len @ 1..) => {
                    let (netns, file) = (writer.netns, writer.file);
                    let bytes = buffer.get(..len).unwrap_or_default();
                    // Whoever wrote past the shim cannot be told.
                    if self.write_file(netns, file, bytes).is_err() {
                        tracing::warn!(?file, "not a number");
                    }
                }
                Err(Errno::EAGAIN) => return,
                // It was closed without reading what we had queued; what it wrote is still there.
                Err(Errno::ECONNRESET) => {}
                Ok(_) | Err(_) => {
                    if let Some(slot) = self.writers.get_mut(index) {
                        *slot = None;
                    }
                }
            }
        }
    }
}

fn content(netns: &Netns, file: File) -> String {
    let sysctls = &netns.sysctls;
    match file {
        File::Stat => {
            let mut text = String::new();
            for (name, value) in netns.mib.rows(netns.profile) {
                // Writing to a String does not fail.
                let _ = writeln!(text, "{name:<24}\t{value}");
            }
            text
        }
        File::AeventEtime => format!("{}\n", sysctls.aevent_etime),
        File::AeventRseqth => format!("{}\n", sysctls.aevent_rseqth),
        File::LarvalDrop => format!("{}\n", sysctls.larval_drop),
        // Linux keeps it unsigned and shows it signed.
        File::AcqExpires => format!("{}\n", sysctls.acq_expires.cast_signed()),
    }
}

fn store(netns: &mut Netns, file: File, bytes: &[u8]) -> Result<(), WriteError> {
    let sysctls = &mut netns.sysctls;
    let Some(number) = number(bytes)? else {
        return Ok(());
    };
    let signed = || i32::try_from(number).map_err(|_| WriteError::Invalid);
    let unsigned = || u32::try_from(number).map_err(|_| WriteError::Invalid);
    match file {
        File::Stat => return Err(WriteError::ReadOnly),
        File::AeventEtime => sysctls.aevent_etime = unsigned()?,
        File::AeventRseqth => sysctls.aevent_rseqth = unsigned()?,
        File::LarvalDrop => sysctls.larval_drop = signed()?,
        File::AcqExpires => sysctls.acq_expires = signed()?.cast_unsigned(),
    }
    Ok(())
}

/// The first number of a write: decimal, octal (`0`) or hexadecimal (`0x`), one sign, blanks around
/// it; nothing but blanks changes nothing. What follows the number's blank is not looked at.
fn number(bytes: &[u8]) -> Result<Option<i64>, WriteError> {
    let text = bytes.trim_ascii_start();
    let Some(&first) = text.first() else {
        return Ok(None);
    };
    let negative = first == b'-';
    let digits = if negative { text.get(1..) } else { Some(text) }.unwrap_or_default();
    let (radix, digits) = match digits {
        [b'0', b'x' | b'X', rest @ ..] if rest.first().is_some_and(u8::is_ascii_hexdigit) => {
            (16, rest)
        }
        [b'0', rest @ ..] if rest.first().is_some_and(u8::is_ascii_digit) => (8, rest),
        _ => (10, digits),
    };
    let end = digits
        .iter()
        .position(|byte| !char::from(*byte).is_digit(radix))
        .unwrap_or(digits.len());
    let (digits, rest) = digits.split_at_checked(end).ok_or(WriteError::Invalid)?;
    let ends_well = rest
        .first()
        .is_none_or(|byte| byte.is_ascii_whitespace() || *byte == 0);
    if digits.is_empty() || !ends_well {
        return Err(WriteError::Invalid);
    }
    let text = std::str::from_utf8(digits).map_err(|_| WriteError::Invalid)?;
    let value = i64::from_str_radix(text, radix).map_err(|_| WriteError::Invalid)?;
    Ok(Some(if negative { -value } else { value }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataplane::netns::Limits;
    use dataplane::profile::{V6_1, V7_2};

    #[test]
    fn numbers_are_read_as_sysctls_read_them() {
        assert_eq!(number(b"165"), Ok(Some(165)));
        assert_eq!(number(b" 0x10\n"), Ok(Some(16)));
        assert_eq!(number(b"010 9"), Ok(Some(8)));
        assert_eq!(number(b"-1\n"), Ok(Some(-1)));
        assert_eq!(number(b"\n"), Ok(None));
        assert_eq!(number(b"5x"), Err(WriteError::Invalid));
        assert_eq!(number(b"-"), Err(WriteError::Invalid));
        assert_eq!(number(b"99999999999999999999"), Err(WriteError::Invalid));
    }

    #[test]
    fn sysctls_keep_their_signs() {
        let mut netns = Netns::new(&V7_2, Limits::default());
        assert_eq!(content(&netns, File::AcqExpires), "30\n");
        assert_eq!(store(&mut netns, File::AcqExpires, b"165"), Ok(()));
        assert_eq!(netns.sysctls.acq_expires, 165);
        assert_eq!(store(&mut netns, File::LarvalDrop, b"-1"), Ok(()));
        assert_eq!(content(&netns, File::LarvalDrop), "-1\n");
        let refused = store(&mut netns, File::AeventEtime, b"-1");
        assert_eq!(refused, Err(WriteError::Invalid));
        assert_eq!(
            store(&mut netns, File::Stat, b"1"),
            Err(WriteError::ReadOnly)
        );
    }

    #[test]
    fn counters_are_lined_up_as_linux_does() {
        let text = content(&Netns::new(&V6_1, Limits::default()), File::Stat);
        assert!(text.starts_with("XfrmInError             \t0\n"));
        assert_eq!(text.lines().count(), 28);
    }
}
