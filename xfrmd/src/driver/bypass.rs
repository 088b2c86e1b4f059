//! Catches programs of a private instance that the shim is not in.
//!
//! A static program, a setuid one, or one that was started without `LD_PRELOAD` makes its system
//! calls itself and would configure the host's kernel. A seccomp filter, inherited by all that the
//! command starts, brings each `socket(AF_NETLINK, ..., NETLINK_XFRM)` here; the shim never makes
//! that call. The answer is EPROTONOSUPPORT, as from a kernel without XFRM, and a line on standard
//! error says why. All other calls pass; that they do, the host's kernel knows without the filter.
//!
//! When we are gone the call fails with ENOSYS. Calls of programs for another architecture (32-bit
//! ones) are not looked at. Where filters are forbidden, or where an instance
//! around ours catches such calls already, the command runs without a filter of ours.

use std::collections::BTreeSet;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_uint, seccomp_data, sock_filter, sock_fprog};
use nix::sys::prctl;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::host;

const NETLINK_XFRM: u32 = 6;
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
/// Of a socket's type, without its flags.
const TYPE_MASK: u64 = 0xf;
const RAW: u64 = libc::SOCK_RAW as u64;
const DATAGRAM: u64 = libc::SOCK_DGRAM as u64;

nix::ioctl_readwrite!(receive_notification, b'!', 0, libc::seccomp_notif);
nix::ioctl_readwrite!(answer_notification, b'!', 1, libc::seccomp_notif_resp);

/// A way for the filter's listener from the command to us.
pub(crate) struct Handover {
    ours: OwnedFd,
    theirs: OwnedFd,
}

impl Handover {
    /// To be made before the command is started.
    pub(crate) fn new() -> io::Result<Self> {
        let kind = SockType::SeqPacket;
        let (ours, theirs) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC)?;
        Ok(Self { ours, theirs })
    }

    /// Puts the filter around the calling process, for good.
    ///
    /// To be called between fork and exec: nothing allocates or locks.
    pub(crate) fn set_up(&self) -> io::Result<()> {
        let program = program();
        let mut listener = install(&program);
        if matches!(&listener, Err(error) if error.raw_os_error() == Some(libc::EACCES)) {
            prctl::set_no_new_privs()?;
            listener = install(&program);
        }
        host::send_frame(self.theirs.as_fd(), &[0], &[], Some(listener?.as_fd()))
    }

    /// The listener, once the command has been started; none if there is no filter.
    pub(crate) fn take(&self) -> Option<Listener> {
        let (_, [fd, _]) = host::receive_frame(self.ours.as_fd(), &mut [0]).ok()?;
        Some(Listener {
            fd: fd?,
            told: BTreeSet::new(),
        })
    }
}

fn install(program: &[sock_filter]) -> io::Result<OwnedFd> {
    let program = sock_fprog {
        len: u16::try_from(program.len()).unwrap_or(0),
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the program is valid for its length and only read during the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    match RawFd::try_from(fd) {
        // SAFETY: the descriptor is new and nobody else's.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What the kernel asks at each system call: the words are those of `seccomp_data`.
fn program() -> [sock_filter; 10] {
    /// Of a 64-bit argument.
    const LOW_HALF: usize = if cfg!(target_endian = "little") { 0 } else { 4 };
    let statement = |code: c_uint, k: u32| sock_filter {
        code: u16::try_from(code).unwrap_or(0),
        jt: 0,
        jf: 0,
        k,
    };
    let load = |at: usize| {
        let code = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
        statement(code, u32::try_from(at).unwrap_or(u32::MAX))
    };
    let argument = |index: usize| load(offset_of!(seccomp_data, args) + 8 * index + LOW_HALF);
    let unless = |value: u32, skip: u8| sock_filter {
        jf: skip,
        ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value)
    };
    let socket = u32::try_from(libc::SYS_socket).unwrap_or(u32::MAX);
    let netlink = libc::AF_NETLINK.unsigned_abs();
    let ret = libc::BPF_RET | libc::BPF_K;
    [
        load(offset_of!(seccomp_data, arch)),
        unless(ARCHITECTURE, 7),
        load(offset_of!(seccomp_data, nr)),
        unless(socket, 5),
        argument(0),
        unless(netlink, 3),
        argument(2),
        unless(NETLINK_XFRM, 1),
        statement(ret, libc::SECCOMP_RET_USER_NOTIF),
        statement(ret, libc::SECCOMP_RET_ALLOW),
    ]
}

/// Where the calls arrive.
pub(crate) struct Listener {
    fd: OwnedFd,
    told: BTreeSet<u32>,
}

impl Listener {
    /// Becomes readable when a program makes the call.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Answers the calls that wait.
    pub(crate) fn answer_all(&mut self) {
        while self.is_asked() {
            self.answer();
        }
    }

    /// Whether a call waits: to receive where there is none would wait for one.
    fn is_asked(&self) -> bool {
        let mut poll = libc::pollfd {
            fd: self.fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one structure, valid for writing.
        let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
        ready == 1 && poll.revents & libc::POLLIN != 0
    }

    fn answer(&mut self) {
        // SAFETY: all-zero bytes are valid, and what the kernel asks for.
        let (mut call, mut answer): (libc::seccomp_notif, libc::seccomp_notif_resp) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        // SAFETY: the structure is valid for writing.
        if unsafe { receive_notification(self.fd.as_raw_fd(), &raw mut call) }.is_err() {
            return;
        }
        answer.id = call.id;
        let [_, kind, ..] = call.data.args;
        // The shim leaves types that netlink does not have to the host.
        if kind & TYPE_MASK != RAW && kind & TYPE_MASK != DATAGRAM {
            answer.error = -libc::ESOCKTNOSUPPORT;
        } else {
            answer.error = -libc::EPROTONOSUPPORT;
            if self.told.insert(call.pid) {
                tell(call.pid);
            }
        }
        // SAFETY: the structure is valid. A process that has been killed meanwhile is an error
        // that does not matter.
        let _ = unsafe { answer_notification(self.fd.as_raw_fd(), &raw mut answer) };
    }
}

fn tell(pid: u32) {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    let name = name.as_deref().unwrap_or("?").trim_end();
    eprintln!(
        "xfrmd: {name} (process {pid}) gets no NETLINK_XFRM socket: the shim is not in it, because \
         it is static or setuid, or was started without LD_PRELOAD, and it would have silently \
         reached the host's kernel"
    );
}
