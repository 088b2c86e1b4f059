//! The seccomp filter around the command, and the way of its listener to us.
//!
//! Source: seccomp(2), seccomp_unotify(2).

use std::io;
use std::mem::offset_of;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, c_uint, c_ulong, seccomp_data, sock_filter, sock_fprog};
use nix::sys::prctl;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::Front;
use super::time::{self, When};
use crate::driver::host;

const NETLINK_XFRM: u32 = 6;
/// What the sockets of programs without the shim are called: out of the way of close loops, below
/// what select can tell, and apart from the shim's own connections.
pub(super) const NUMBERS: RangeInclusive<c_int> = 800..=899;

/// `AUDIT_ARCH_*` of this program: numbers of system calls mean something else elsewhere.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
#[cfg(target_arch = "riscv64")]
const ARCHITECTURE: u32 = 0xc000_00f3;
/// None: the filter lets everything pass.
#[cfg(not(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "riscv64"
)))]
const ARCHITECTURE: u32 = 0;

/// Calls whose first argument is a descriptor, and which mean something else on a socket of ours.
const ON_SOCKETS: &[libc::c_long] = &[
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_close,
    libc::SYS_dup,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    libc::SYS_dup3,
];

/// Options of other sockets that the host must not hear of: level and name.
const OPTIONS: [(c_int, c_int); 3] = [
    (libc::SOL_UDP, UDP_ENCAP),
    (libc::SOL_IP, IP_XFRM_POLICY),
    (libc::SOL_IPV6, IPV6_XFRM_POLICY),
];
/// `CLOCK_TAI`.
const LAST_CLOCK: u32 = 11;
const UDP_ENCAP: c_int = 100;
const IP_XFRM_POLICY: c_int = 17;
const IPV6_XFRM_POLICY: c_int = 35;

/// A filter, and a way for its listener from the command to us.
pub(crate) struct Handover {
    program: Vec<sock_filter>,
    is_timed: bool,
    ours: OwnedFd,
    theirs: OwnedFd,
}

impl Handover {
    /// To be made before the command is started. Timed: under a virtual clock.
    pub(crate) fn new(front: Front, is_timed: bool) -> io::Result<Self> {
        let kind = SockType::SeqPacket;
        let (ours, theirs) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC)?;
        let program = program(front, is_timed);
        Ok(Self {
            program,
            is_timed,
            ours,
            theirs,
        })
    }

    /// Puts the filter around the calling process, for good.
    ///
    /// To be called between fork and exec: nothing allocates or locks.
    pub(crate) fn set_up(&self) -> io::Result<()> {
        let mut listener = self.install();
        if matches!(&listener, Err(error) if error.raw_os_error() == Some(libc::EACCES)) {
            prctl::set_no_new_privs()?;
            listener = self.install();
        }
        host::send_frame(self.theirs.as_fd(), &[0], &[], Some(listener?.as_fd()))
    }

    /// The listener, once the command has been started; none if there is no filter.
    pub(crate) fn take(&self) -> Option<OwnedFd> {
        let (_, [fd, _]) = host::receive_frame(self.ours.as_fd(), &mut [0]).ok()?;
        fd
    }

    /// With a caller that only a fatal signal wakes once we have its call, where the host can do that
    /// (Linux 5.19): a signal handler could otherwise lose it a datagram. Not under a virtual clock: signals
    /// end sleeps, and who waits so does not look asleep.
    fn install(&self) -> io::Result<OwnedFd> {
        let patient = match self.is_timed {
            true => 0,
            false => libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
        };
        match load(&self.program, patient) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => load(&self.program, 0),
            other => other,
        }
    }
}

fn load(program: &[sock_filter], flags: c_ulong) -> io::Result<OwnedFd> {
    let program = sock_fprog {
        len: u16::try_from(program.len()).unwrap_or(0),
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the program is valid for its length and only read during the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | flags,
            &raw const program,
        )
    };
    match RawFd::try_from(fd) {
        // SAFETY: the descriptor is new and nobody else's.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn statement(code: c_uint, k: u32) -> sock_filter {
    sock_filter {
        code: u16::try_from(code).unwrap_or(0),
        jt: 0,
        jf: 0,
        k,
    }
}

fn load_word(at: usize) -> sock_filter {
    let code = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    statement(code, u32::try_from(at).unwrap_or(u32::MAX))
}

const LOW_HALF: usize = if cfg!(target_endian = "little") { 0 } else { 4 };

/// The lower half of a 64-bit argument: all that an `int` has.
fn load_argument(index: usize) -> sock_filter {
    load_word(offset_of!(seccomp_data, args) + 8 * index + LOW_HALF)
}

/// The other half.
fn load_upper(index: usize) -> sock_filter {
    load_word(offset_of!(seccomp_data, args) + 8 * index + 4 - LOW_HALF)
}

/// Goes on if the loaded word and `value` compare so, and skips `skipped` statements otherwise.
fn only_if(comparison: c_uint, value: u32, skipped: usize) -> sock_filter {
    sock_filter {
        jf: u8::try_from(skipped).unwrap_or(u8::MAX),
        ..statement(libc::BPF_JMP | comparison | libc::BPF_K, value)
    }
}

fn answer(action: u32) -> sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, action)
}

/// What the kernel asks at each system call: the words are those of `seccomp_data`.
fn program(front: Front, is_timed: bool) -> Vec<sock_filter> {
    let number = |call: libc::c_long| u32::try_from(call).unwrap_or(u32::MAX);
    let equals = libc::BPF_JEQ;
    let mut program = vec![
        load_word(offset_of!(seccomp_data, arch)),
        only_if(equals, ARCHITECTURE, 7),
        load_word(offset_of!(seccomp_data, nr)),
        only_if(equals, number(libc::SYS_socket), 6),
        load_argument(0),
        only_if(equals, libc::AF_NETLINK.unsigned_abs(), 3),
        load_argument(2),
        only_if(equals, NETLINK_XFRM, 1),
        answer(libc::SECCOMP_RET_USER_NOTIF),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    if !front.supervises() {
        program.push(answer(libc::SECCOMP_RET_ALLOW));
        return program;
    }
    if is_timed {
        for (call, when) in time::calls() {
            let rest = only(when);
            program.push(only_if(equals, number(call), rest.len()));
            program.extend(rest);
        }
    }
    // A ring would carry sends and receives past everybody.
    let refused = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    program.extend([
        only_if(equals, number(libc::SYS_io_uring_setup), 1),
        answer(refused),
    ]);
    // To the look at the descriptor, over the calls that follow and the looks at options; for the
    // one that sets options, to those.
    let calls = ON_SOCKETS.len() + 1;
    let mut options = Vec::new();
    for (level, name) in OPTIONS {
        options.extend([
            load_argument(1),
            only_if(equals, level.unsigned_abs(), 3),
            load_argument(2),
            only_if(equals, name.unsigned_abs(), 1),
            answer(libc::SECCOMP_RET_USER_NOTIF),
        ]);
    }
    for (index, call) in ON_SOCKETS
        .iter()
        .copied()
        .chain([libc::SYS_fcntl])
        .enumerate()
    {
        let mut jump = only_if(equals, number(call), 0);
        let over = if call == libc::SYS_setsockopt {
            0
        } else {
            options.len()
        };
        jump.jt = u8::try_from(calls - index + over).unwrap_or(u8::MAX);
        program.push(jump);
    }
    program.push(answer(libc::SECCOMP_RET_ALLOW));
    program.extend(options);
    let (first, last) = (NUMBERS.start().unsigned_abs(), NUMBERS.end().unsigned_abs());
    program.extend([
        load_argument(0),
        only_if(libc::BPF_JGE, first, 1),
        only_if(libc::BPF_JGT, last, 1),
        answer(libc::SECCOMP_RET_ALLOW),
        answer(libc::SECCOMP_RET_USER_NOTIF),
    ]);
    program
}

/// Brings a call, or lets it pass.
fn only(when: When) -> Vec<sock_filter> {
    let (passes, comes) = (
        answer(libc::SECCOMP_RET_ALLOW),
        answer(libc::SECCOMP_RET_USER_NOTIF),
    );
    let equals = libc::BPF_JEQ;
    match when {
        When::Always => vec![comes],
        // Those of processors, and of devices.
        When::VirtualClock => vec![
            load_argument(0),
            only_if(libc::BPF_JGT, LAST_CLOCK, 1),
            passes,
            only_if(equals, libc::CLOCK_PROCESS_CPUTIME_ID.unsigned_abs(), 1),
            passes,
            only_if(equals, libc::CLOCK_THREAD_CPUTIME_ID.unsigned_abs(), 1),
            passes,
            comes,
        ],
        When::Positive(index) => vec![
            load_argument(index),
            only_if(libc::BPF_JSET, 1 << 31, 1),
            passes,
            only_if(equals, 0, 1),
            passes,
            comes,
        ],
        When::Given(index) => vec![
            load_argument(index),
            only_if(equals, 0, 3),
            load_upper(index),
            only_if(equals, 0, 1),
            passes,
            comes,
        ],
    }
}
