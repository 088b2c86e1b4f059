//! Events of several instances in one network namespace.
//!
//! All of them speak to the same groups of NETLINK_USERSOCK. A private instance puts a tail behind each of
//! its events ([`EVENT_MARK`]). A filter on every socket drops events with another tail before they take
//! room or wake anybody; what gets through is cut off here, by what the caller is told of a datagram's length: of its
//! buffer, the tail may have taken 12 bytes behind. A filter could cut too, but the host would show members that
//! follow a full one the event without its tail.

use core::ffi::c_int;
use core::sync::atomic::Ordering;

use libc::{sock_filter, sock_fprog};
use xfrm_proto::control::{EVENT_MARK, EVENT_TAIL_BYTES};

use crate::connection;
use crate::sys;
use crate::table::Entry;

/// No event is shorter than its header.
const SHORTEST: u32 = 16 + TAIL;
const TAIL: u32 = EVENT_TAIL_BYTES as u32;

const fn statement(code: u32, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

const fn jump(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    let code = code as u16;
    sock_filter { code, jt, jf, k }
}

/// Has the host drop other instances' events, unless the program has a filter of its own. Where that cannot be,
/// they are dropped when they are received.
///
/// To be called before the socket joins its first group: others need no filter.
pub(crate) fn attach_filter(fd: c_int) {
    if has_filter(fd) {
        return;
    }
    use libc::{BPF_ALU, BPF_IND, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_LEN};
    use libc::{BPF_MISC, BPF_RET, BPF_SUB, BPF_TAX, BPF_W};
    let [a, b, c, d, e, f, g, h] = EVENT_MARK;
    let (high, low) = (
        u32::from_be_bytes([a, b, c, d]),
        u32::from_be_bytes([e, f, g, h]),
    );
    let own = connection::event_tail().map(|tail| {
        let [.., a, b, c, d] = tail;
        u32::from_be_bytes([a, b, c, d])
    });
    // Without a tail of our own none is.
    let is_own = match own {
        Some(own) => jump(BPF_JMP | BPF_JEQ | BPF_K, own, 1, 0),
        None => jump(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 0),
    };
    let program = [
        statement(BPF_LD | BPF_W | BPF_LEN, 0),
        jump(BPF_JMP | BPF_JGE | BPF_K, SHORTEST, 0, 9),
        statement(BPF_ALU | BPF_SUB | BPF_K, TAIL),
        statement(BPF_MISC | BPF_TAX, 0),
        statement(BPF_LD | BPF_W | BPF_IND, 0),
        jump(BPF_JMP | BPF_JEQ | BPF_K, high, 0, 5),
        statement(BPF_LD | BPF_W | BPF_IND, 4),
        jump(BPF_JMP | BPF_JEQ | BPF_K, low, 0, 3),
        statement(BPF_LD | BPF_W | BPF_IND, 8),
        is_own,
        statement(BPF_RET | BPF_K, 0),
        statement(BPF_RET | BPF_K, u32::MAX),
    ];
    let program = sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    let _ = sys::set_option(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program);
}

fn has_filter(fd: c_int) -> bool {
    let mut statements = 0 as libc::socklen_t;
    let name = libc::SO_GET_FILTER;
    let none = core::ptr::null_mut::<sock_filter>();
    // Without room the host says how many there are.
    let said = sys::call!(
        libc::SYS_getsockopt,
        fd,
        libc::SOL_SOCKET,
        name,
        none,
        &raw mut statements
    );
    said.is_ok() && statements != 0
}

/// Whether what the socket receives may have a tail: it is a member of groups, of a private instance.
pub(crate) fn may_follow(entry: &Entry) -> bool {
    is_member(entry) && connection::is_private()
}

/// Whether a socket is a member of groups.
pub(crate) fn is_member(entry: &Entry) -> bool {
    (entry.native.load(Ordering::Relaxed) | entry.kept.load(Ordering::Relaxed)) != 0
}

/// What a receive is to say that took a datagram of `all` bytes into room for `room`: its result, and whether
/// the datagram was cut. `wants_all` is `MSG_TRUNC` of the call.
pub(crate) fn without(all: usize, room: usize, wants_all: bool, has_tail: bool) -> (usize, bool) {
    let own = all.saturating_sub(if has_tail { EVENT_TAIL_BYTES } else { 0 });
    let shown = if wants_all { own } else { own.min(room) };
    (shown, own > room)
}
