//! The page that a virtual clock shares with programs, as its owner has it.
//!
//! It is made before the keeper is, so that it outlives daemons that are killed: each finds the time
//! that there was.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::Ordering;

use dataplane::{BootNanos, Now, WallSecs};
use nix::time::{ClockId, clock_gettime};
use xfrm_proto::clock::{LAYOUT, Page};

use super::uptime;

const SECOND: u64 = 1_000_000_000;
/// Not in the libc crate for every target.
const F_SEAL_FUTURE_WRITE: i32 = 16;

/// The page, and the file that it is.
#[derive(Debug)]
pub(crate) struct OwnPage {
    file: OwnedFd,
    page: &'static Page,
}

fn nanos(clock: ClockId) -> u64 {
    let now = clock_gettime(clock).map_or((0, 0), |now| (now.tv_sec(), now.tv_nsec()));
    let secs = u64::try_from(now.0).unwrap_or(0);
    secs.saturating_mul(SECOND) + u64::try_from(now.1).unwrap_or(0)
}

impl OwnPage {
    /// One that stands at the host's time, without fractions of a second: so that runs are alike.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        let len = size_of::<Page>();
        // SAFETY: the name ends in NUL; the descriptor is new and ours; the mapping is new, as long as the
        // file, shared, and stays for good; all-zero bytes are valid atomics.
        let own = unsafe {
            let fd = libc::memfd_create(c"xfrmd-clock".as_ptr(), flags);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            let file = OwnedFd::from_raw_fd(fd);
            let bytes = i64::try_from(len).unwrap_or(0);
            if libc::ftruncate(fd, bytes) < 0 {
                return Err(io::Error::last_os_error());
            }
            let address = libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd,
                0,
            );
            if address == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            Self {
                file,
                page: &*address.cast::<Page>(),
            }
        };
        // Programs can read it only, from now on.
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | F_SEAL_FUTURE_WRITE;
        // SAFETY: plain integers.
        if unsafe { libc::fcntl(own.file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let whole = |nanos: u64| nanos - nanos % SECOND;
        let boot = whole(uptime().0);
        let more = |clock| whole(nanos(clock)).cast_signed() - boot.cast_signed();
        let page = own.page;
        page.boot_nanos.store(boot, Ordering::Relaxed);
        let monotonic = more(ClockId::CLOCK_MONOTONIC);
        page.monotonic.store(monotonic, Ordering::Relaxed);
        let real = more(ClockId::CLOCK_REALTIME);
        page.real.store(real, Ordering::Relaxed);
        page.layout.store(LAYOUT, Ordering::Release);
        Ok(own)
    }

    /// For programs.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// As programs see it.
    pub(crate) fn shared(&self) -> &'static Page {
        self.page
    }

    pub(crate) fn now(&self) -> Now {
        let boot = self.page.boot();
        let real = boot.cast_signed() + self.page.real.load(Ordering::Relaxed);
        Now {
            boot: BootNanos(boot),
            real: WallSecs(real.cast_unsigned() / SECOND),
        }
    }

    /// Moves time on; never back.
    pub(crate) fn advance_to(&self, boot: BootNanos) {
        self.page.boot_nanos.fetch_max(boot.0, Ordering::AcqRel);
    }

    /// Whether time moves by itself, which outlives a daemon too.
    pub(crate) fn moves_by_itself(&self) -> bool {
        self.page.moves.load(Ordering::Relaxed) != 0
    }

    pub(crate) fn set_moves_by_itself(&self, moves: bool) {
        self.page.moves.store(moves.into(), Ordering::Relaxed);
    }

    /// Ends a connection's wait for a futex.
    pub(crate) fn wake(&self, index: usize) {
        if let Some(word) = self.page.words.get(index) {
            word.fetch_add(1, Ordering::AcqRel);
            // SAFETY: the word is part of the mapping.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    word.as_ptr(),
                    libc::FUTEX_WAKE,
                    i32::MAX,
                    0,
                    0,
                    0,
                );
            }
        }
    }

    /// Ends all of them: what a daemon that is no more knew of them is lost.
    pub(crate) fn wake_all(&self) {
        for index in 0..self.page.words.len() {
            self.wake(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_stands_until_it_is_moved_and_never_goes_back() {
        let page = OwnPage::new().unwrap();
        let start = page.now();
        assert_eq!(start.boot.0 % SECOND, 0);
        assert_eq!(page.now(), start);
        page.advance_to(start.boot.plus_secs(3600));
        assert_eq!(page.now().real.0, start.real.0 + 3600);
        page.advance_to(start.boot);
        assert_eq!(page.now().boot, start.boot.plus_secs(3600));
    }

    #[test]
    fn programs_cannot_write_to_it() {
        let page = OwnPage::new().unwrap();
        let map = |protection| {
            // SAFETY: a new mapping that nobody uses.
            unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    size_of::<Page>(),
                    protection,
                    libc::MAP_SHARED,
                    page.file().as_raw_fd(),
                    0,
                )
            }
        };
        assert_ne!(map(libc::PROT_READ), libc::MAP_FAILED);
        assert_eq!(map(libc::PROT_READ | libc::PROT_WRITE), libc::MAP_FAILED);
    }
}
