//! Memory that outlives the process: an anonymous file, mapped in pieces.
//!
//! The file has no name, so nobody but who is passed it can open it, and it never
//! touches a disk. It is left out of core dumps. Mappings stay for good: whoever holds
//! a piece of one may count in it as long as the process lives.
//!
//! Everything is words, read and written as atomics: a process that is killed leaves
//! what it had written, in the order in which it had written it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::AtomicU64;

/// Bytes that are mapped at a time.
const PIECE_BYTES: usize = 4 << 20;
/// Words of it.
pub(super) const PIECE_WORDS: usize = PIECE_BYTES / 8;

/// A file and its mappings.
#[derive(Debug)]
pub(super) struct Memory {
    fd: OwnedFd,
    pieces: Vec<&'static [AtomicU64]>,
}

impl Memory {
    /// An empty file.
    pub(super) fn file() -> io::Result<OwnedFd> {
        const MFD_NOEXEC_SEAL: u32 = 8;
        let create = |flags| {
            // SAFETY: the name ends in NUL; the descriptor is new and ours.
            unsafe {
                let fd = libc::memfd_create(c"xfrmd-state".as_ptr(), flags);
                match fd {
                    ..0 => Err(io::Error::last_os_error()),
                    fd => Ok(OwnedFd::from_raw_fd(fd)),
                }
            }
        };
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        // Older kernels do not know what is not to be executed.
        let fd = create(flags | MFD_NOEXEC_SEAL).or_else(|_| create(flags))?;
        // What is mapped must stay there.
        // SAFETY: plain integers.
        if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(fd)
    }

    /// Maps all that there is.
    pub(super) fn open(fd: OwnedFd) -> io::Result<Self> {
        let bytes = std::fs::File::from(fd.try_clone()?).metadata()?.len();
        let mut memory = Self {
            fd,
            pieces: Vec::new(),
        };
        let pieces = bytes / PIECE_BYTES as u64;
        while (memory.pieces.len() as u64) < pieces {
            memory.map()?;
        }
        Ok(memory)
    }

    /// The file.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// What is mapped.
    pub(super) fn pieces(&self) -> &[&'static [AtomicU64]] {
        &self.pieces
    }

    /// Makes the file longer by a piece.
    pub(super) fn grow(&mut self) -> io::Result<()> {
        let bytes = (self.pieces.len() + 1) * PIECE_BYTES;
        let bytes = i64::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        // SAFETY: plain integers.
        if unsafe { libc::ftruncate(self.fd.as_raw_fd(), bytes) } < 0 {
            return Err(io::Error::last_os_error());
        }
        self.map()
    }

    fn map(&mut self) -> io::Result<()> {
        let offset = i64::try_from(self.pieces.len() * PIECE_BYTES)
            .map_err(|_| io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new mapping, where the kernel wants it. It lies within the file, which cannot
        // shrink, and is never unmapped. Any bytes are valid words.
        let piece = unsafe {
            let start = libc::mmap(
                std::ptr::null_mut(),
                PIECE_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                self.fd.as_raw_fd(),
                offset,
            );
            if start == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            libc::madvise(start, PIECE_BYTES, libc::MADV_DONTDUMP);
            std::slice::from_raw_parts(start.cast::<AtomicU64>(), PIECE_WORDS)
        };
        self.pieces.push(piece);
        Ok(())
    }
}
