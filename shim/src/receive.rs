//! Receiving: natively, but for where a datagram seems to come from, and for
//! the chunks of a dump, which each receive pulls.
//!
//! Only the daemon's ports count: the first speaks as the kernel does, the
//! second brings events of groups whose membership the host refused. Datagrams
//! of anybody else in the namespace are dropped, as NETLINK_XFRM has no other
//! senders.
//!
//! Source: `net/netlink/af_netlink.c netlink_recvmsg`.

use core::ffi::c_int;
use core::mem::size_of;
use core::sync::atomic::Ordering;

use libc::{msghdr, sockaddr_nl, ssize_t};
use xfrm_proto::control::{DUMP_LOST, Request};

use crate::control::Cargo;
use crate::netlink;
use crate::options;
use crate::real;
use crate::sys;
use crate::table::{self, Entry};
use crate::tails;

const SO_MEMINFO: c_int = 55;

/// What a receive gave.
pub(crate) enum Received {
    /// A datagram of that length, from there, and whether it is known to be whole: then a tail made the
    /// host say that it had been cut.
    Datagram(ssize_t, sockaddr_nl, bool),
    /// Nothing; `errno` says why.
    Failed,
    /// The descriptor is no socket of ours any more: the host must have the call.
    Foreign,
}

/// Where a datagram came from.
enum Source {
    /// The kernel that we stand for, with the groups to show.
    Kernel(u32),
    /// The daemon, but the event is meant for other sockets.
    ForOthers,
    /// Nobody that NETLINK_XFRM has.
    Stranger,
    /// The errno that a datagram stands for.
    Errno(c_int),
}

/// Receives from a socket of ours.
///
/// `native` makes the host's call with the flags that it is given, perhaps more than once, and gives the name
/// that it fills in; `room` is how many bytes the caller has offered.
pub(crate) fn receive(
    entry: &Entry,
    fd: c_int,
    flags: c_int,
    room: usize,
    mut native: impl FnMut(c_int, &mut sockaddr_nl) -> ssize_t,
) -> Received {
    loop {
        if entry.pending.load(Ordering::Relaxed) != 0 {
            let pending = entry.pending.swap(0, Ordering::Relaxed);
            sys::set_errno(pending);
            return Received::Failed;
        }
        let may_follow = tails::may_follow(entry);
        // Another socket might understand by that flag that its data can be thrown away.
        if may_follow && !table::is_still(fd, entry) {
            table::forget(fd);
            return Received::Foreign;
        }
        let native_flags = if may_follow {
            flags | libc::MSG_TRUNC
        } else {
            flags
        };
        let mut from = sys::netlink_address(0, 0);
        from.nl_family = 0;
        let len = native(native_flags, &mut from);
        if len < 0 {
            if sys::errno() == libc::ENOTSOCK {
                table::forget(fd);
                return Received::Foreign;
            }
            return Received::Failed;
        }
        if c_int::from(from.nl_family) != libc::AF_NETLINK {
            // Some other socket has the descriptor now, and its datagram is in the caller's hands.
            table::forget(fd);
            return Received::Datagram(len, from, false);
        }
        match source(entry, fd, &from) {
            Source::Kernel(groups) => {
                from.nl_pid = 0;
                from.nl_groups = groups;
                note_room(entry, room);
                entry.seen.store(true, Ordering::Relaxed);
                if entry.dumping.load(Ordering::Relaxed) {
                    pull(entry, fd);
                }
                if !may_follow {
                    return Received::Datagram(len, from, false);
                }
                let wants_all = flags & libc::MSG_TRUNC != 0;
                let all = usize::try_from(len).unwrap_or(0);
                let (shown, is_cut) = tails::without(all, room, wants_all, groups != 0);
                return Received::Datagram(shown as ssize_t, from, !is_cut);
            }
            Source::ForOthers | Source::Stranger => drop_peeked(fd, flags),
            Source::Errno(libc::ENOBUFS) if options::ignores_overruns(fd) => {
                drop_peeked(fd, flags);
            }
            Source::Errno(errno) => {
                drop_peeked(fd, flags);
                sys::set_errno(errno);
                return Received::Failed;
            }
        }
    }
}

/// `recvmsg` on a socket of ours; `None` if it is none any more.
///
/// # Safety
/// `message` is as `recvmsg` demands it.
pub(crate) unsafe fn receive_message(
    entry: &Entry,
    fd: c_int,
    message: *mut msghdr,
    flags: c_int,
) -> Option<ssize_t> {
    // SAFETY: the caller's message; the host has not changed it yet.
    let given = unsafe { message.read() };
    let mut room = 0_usize;
    for index in 0..given.msg_iovlen.min(libc::UIO_MAXIOV as usize) {
        // SAFETY: the caller's vector, which the host will read too.
        room = room.saturating_add(unsafe { (*given.msg_iov.add(index)).iov_len });
    }
    let received = receive(entry, fd, flags, room, |flags, from| {
        // SAFETY: the caller's message with a name of our own, which outlives the call.
        unsafe {
            message.write(given);
            (*message).msg_name = core::ptr::from_mut(from).cast();
            (*message).msg_namelen = size_of::<sockaddr_nl>() as u32;
            let len = real::recvmsg(fd, message, flags);
            (*message).msg_name = given.msg_name;
            (*message).msg_namelen = given.msg_namelen;
            len
        }
    });
    match received {
        Received::Datagram(len, from, is_whole) => {
            if is_whole {
                // SAFETY: the caller's message.
                unsafe { (*message).msg_flags &= !libc::MSG_TRUNC };
            }
            if !given.msg_name.is_null() {
                // SAFETY: the caller's name has that much room.
                unsafe {
                    (*message).msg_namelen =
                        show_name(given.msg_name.cast(), given.msg_namelen as usize, &from);
                }
            }
            Some(len)
        }
        Received::Failed => Some(-1),
        Received::Foreign => None,
    }
}

/// Shows the caller where a datagram came from, cut to the room it gave; the length that it gets to
/// know.
///
/// # Safety
/// `name` has `room` bytes.
pub(crate) unsafe fn show_name(name: *mut u8, room: usize, from: &sockaddr_nl) -> u32 {
    let len = size_of::<sockaddr_nl>();
    // SAFETY: the caller's contract.
    unsafe {
        core::ptr::copy_nonoverlapping(core::ptr::from_ref(from).cast::<u8>(), name, room.min(len));
    }
    len as u32
}

/// A datagram that was only peeked at is still there.
fn drop_peeked(fd: c_int, flags: c_int) {
    if flags & libc::MSG_PEEK != 0 {
        let _ = sys::recv(fd, &mut [], libc::MSG_DONTWAIT);
    }
}

fn source(entry: &Entry, fd: c_int, from: &sockaddr_nl) -> Source {
    let known = judge(entry, from);
    if !matches!(known, Source::Stranger) {
        return known;
    }
    // A daemon that came back speaks from other ports.
    let netns = entry.netns.load(Ordering::Relaxed);
    if netlink::introduce(netns, fd).is_ok()
        && let known = judge(entry, from)
        && !matches!(known, Source::Stranger)
    {
        return known;
    }
    // In another namespace it has another port too.
    if entry.all_nsid.load(Ordering::Relaxed) && from.nl_groups != 0 {
        let request = Request::Speaker { port: from.nl_pid };
        let answer = netlink::ask(entry, fd, &request, Cargo::default());
        if answer.is_ok_and(|answer| answer.errno == 0) {
            return Source::Kernel(from.nl_groups);
        }
    }
    known
}

fn judge(entry: &Entry, from: &sockaddr_nl) -> Source {
    let port = from.nl_pid;
    if port == entry.reply_port.load(Ordering::Relaxed) && port != 0 {
        return Source::Kernel(from.nl_groups);
    }
    if port == entry.event_port.load(Ordering::Relaxed) && port != 0 {
        if from.nl_groups == 0 {
            return Source::Errno(libc::ENOBUFS);
        }
        if from.nl_groups & entry.kept.load(Ordering::Relaxed) != 0 {
            return Source::Kernel(from.nl_groups);
        }
        return Source::ForOthers;
    }
    if port == entry.port.load(Ordering::Relaxed) && port != 0 {
        entry.dumping.store(false, Ordering::Relaxed);
        return Source::Errno(libc::ECONNREFUSED);
    }
    Source::Stranger
}

/// Remembers the largest buffer that the socket has offered: dumps are cut to it.
fn note_room(entry: &Entry, room: usize) {
    let room = u32::try_from(room).unwrap_or(u32::MAX);
    if room > entry.recv_bytes.load(Ordering::Relaxed) {
        entry.recv_bytes.store(room, Ordering::Relaxed);
    }
}

/// The next chunk of a dump, if there is room for it.
///
/// Linux makes it here too, after a receive that only peeks as well, unless more than half of the
/// buffer is in use.
fn pull(entry: &Entry, fd: c_int) {
    let memory = sys::option::<[u32; 9]>(fd, libc::SOL_SOCKET, SO_MEMINFO);
    if let Some([used, room, ..]) = memory
        && used > room / 2
    {
        return;
    }
    let request = Request::Pull {
        socket: entry.socket(),
    };
    let before = entry.reply_port.load(Ordering::Relaxed);
    let answer = netlink::ask(entry, fd, &request, Cargo::default());
    match answer {
        Ok(answer) => {
            entry.dumping.store(answer.dumping, Ordering::Relaxed);
            if answer.errno == 0 {
                return;
            }
            // Either another process has read the end, or we guessed after exec, or the daemon came
            // back and knows nothing of what its predecessor began: then it has other ports.
            let netns = entry.netns.load(Ordering::Relaxed);
            let asked = netlink::introduce(netns, fd);
            if asked.is_err() || entry.reply_port.load(Ordering::Relaxed) != before {
                lose_dump(entry, fd);
            }
        }
        Err(_) => lose_dump(entry, fd),
    }
}

/// The rest of a dump will never come: whoever waits for it, in poll or in a receive, must learn it.
fn lose_dump(entry: &Entry, fd: c_int) {
    entry.dumping.store(false, Ordering::Relaxed);
    let port = entry.port.load(Ordering::Relaxed);
    if sys::send_to_port(fd, &DUMP_LOST, port).is_err() {
        entry.pending.store(libc::ECONNREFUSED, Ordering::Relaxed);
    }
}
