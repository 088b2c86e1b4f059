//! What a packet thread waits for. The host keeps the list: a thread wakes for each packet where
//! packets are few, and poll(2) would take the list to the host and back each time.

use std::io;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Descriptors that are told at once; others wait for the next look.
const MOST_EVENTS: usize = 16;

/// Descriptors, known by their place.
pub(super) struct Watch {
    epoll: Epoll,
    count: usize,
}

impl Watch {
    /// Of descriptors that are closed after this value, or with it. One that comes again is told
    /// in its first place.
    pub(super) fn of<'a>(fds: impl Iterator<Item = BorrowedFd<'a>>) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut count = 0;
        for (at, fd) in fds.enumerate() {
            let at = u64::try_from(at).unwrap_or(u64::MAX);
            match epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, at)) {
                Ok(()) | Err(Errno::EEXIST) => count += 1,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self { epoll, count })
    }

    /// Waits until one is readable; which are, in their order.
    pub(super) fn wait(&self, timeout: Option<EpollTimeout>, ready: &mut Vec<bool>) {
        ready.clear();
        ready.resize(self.count, false);
        let mut events = [EpollEvent::empty(); MOST_EVENTS];
        let timeout = timeout.unwrap_or(EpollTimeout::NONE);
        // An error, such as one that a router sent, is read like a packet.
        let count = self.epoll.wait(&mut events, timeout).unwrap_or(0);
        for event in events.iter().take(count) {
            let place = usize::try_from(event.data()).ok();
            if let Some(ready) = place.and_then(|place| ready.get_mut(place)) {
                *ready = true;
            }
        }
    }
}
