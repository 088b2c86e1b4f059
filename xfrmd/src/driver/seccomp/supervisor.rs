//! The thread that answers the calls of programs without the shim.
//!
//! For each of their sockets it has a descriptor of its own for the same open file, found through
//! the program's (`pidfd_getfd(2)`) and known by the shim's mark, so that it does not matter how the
//! program came by it: by `socket`, fork, exec or `dup`. On that descriptor it makes the program's call
//! through the shim's own code ([`super::library`]), and carries arguments and results over
//! ([`super::target`]). A receive that has to wait is put aside until there is something.
//!
//! Only programs of the user whose instance it is are served: our own rights are theirs.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use dataplane::BootNanos;
use libc::{c_int, c_long};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::unistd::geteuid;
use xfrm_proto::control::Address;

use super::calls::receive_limit;
use super::filter::NUMBERS;
use super::library::Shim;
use super::target::{Process, Thread, in_namespace, inode_of, is_marked};
use super::time::Time;
use crate::driver::clock;

const NETLINK_XFRM: c_int = 6;
/// Of a socket's type, without its flags.
const TYPE_MASK: u64 = 0xf;
const RAW: u64 = libc::SOCK_RAW as u64;
const DATAGRAM: u64 = libc::SOCK_DGRAM as u64;
/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`.
const CONTINUE: u32 = 1;
/// `SECCOMP_ADDFD_FLAG_SETFD` and `_SEND`: that number, and the call is answered with it.
const SET_AND_SEND: u32 = 1 | 2;

nix::ioctl_readwrite!(receive_notification, b'!', 0, libc::seccomp_notif);
nix::ioctl_readwrite!(answer_notification, b'!', 1, libc::seccomp_notif_resp);
nix::ioctl_write_ptr!(check_notification, b'!', 2, u64);
nix::ioctl_write_ptr!(add_descriptor, b'!', 3, libc::seccomp_notif_addfd);
nix::ioctl_write_int!(set_flags, b'!', 4);
/// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP`: caller and answerer take turns on one CPU.
const WAKE_HERE: u64 = 1;

/// A system call that waits for its answer.
#[derive(Clone, Copy)]
pub(super) struct Call {
    id: u64,
    /// Whose.
    pub(super) thread: Thread,
    /// Which.
    pub(super) number: c_long,
    /// Its arguments.
    pub(super) args: [u64; 6],
}

impl Call {
    /// An argument that is an `int`.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "what the host does with it"
    )]
    pub(super) fn int(&self, index: usize) -> c_int {
        self.args.get(index).map_or(0, |&value| value as c_int)
    }

    /// An argument that is an address or a length.
    pub(super) fn long(&self, index: usize) -> u64 {
        self.args.get(index).copied().unwrap_or(0)
    }
}

/// What becomes of a call.
pub(super) enum Outcome {
    /// It returns that.
    Value(i64),
    /// It fails.
    Errno(c_int),
    /// The host makes it.
    Pass,
    /// It waits until the socket has something.
    Wait,
    /// It has its answer.
    Answered,
}

impl From<Result<i64, c_int>> for Outcome {
    fn from(result: Result<i64, c_int>) -> Self {
        result.map_or_else(Self::Errno, Self::Value)
    }
}

/// A receive that waits.
struct Waiting {
    call: Call,
    fd: RawFd,
    until: Option<BootNanos>,
}

/// What an epoll event is about.
#[derive(Clone, Copy)]
enum Source {
    Listener,
    Process(u32),
    Socket(RawFd),
    Time,
}

impl Source {
    /// The kind above, the number below.
    fn data(self) -> u64 {
        let (kind, number) = match self {
            Self::Listener => (0, 0),
            Self::Process(process) => (1, process),
            Self::Socket(fd) => (2, fd.unsigned_abs()),
            Self::Time => (3, 0),
        };
        kind << 32 | u64::from(number)
    }

    fn of(data: u64) -> Self {
        let number = u32::try_from(data & u64::from(u32::MAX)).unwrap_or(0);
        match data >> 32 {
            0 => Self::Listener,
            1 => Self::Process(number),
            3 => Self::Time,
            _ => Self::Socket(RawFd::try_from(number).unwrap_or(-1)),
        }
    }
}

/// The thread's state.
pub(crate) struct Supervisor {
    listener: OwnedFd,
    /// The listener, ends of processes, sockets that receives wait for.
    epoll: Epoll,
    /// None: every program is refused.
    shim: Option<Shim>,
    /// None: the clock is the host's.
    time: Option<Time>,
    /// Our own network namespace.
    home: File,
    /// By process and its descriptor, ours for the same file.
    held: HashMap<(u32, c_int), RawFd>,
    processes: HashMap<u32, Process>,
    /// The process of a thread, as it was when last looked up.
    process_of: HashMap<Thread, u32>,
    waiting: Vec<Waiting>,
    told: BTreeSet<u32>,
}

impl Supervisor {
    /// Of the filter whose listener that is; with a shim it serves, without it refuses.
    pub(crate) fn new(
        listener: OwnedFd,
        shim: Option<(&Path, &Address<'_>)>,
        time: Option<Time>,
    ) -> io::Result<Self> {
        // SAFETY: plain numbers. Hosts before Linux 6.6 cannot do it, and do without.
        let _ = unsafe { set_flags(listener.as_raw_fd(), WAKE_HERE) };
        let shim = shim
            .map(|(path, address)| Shim::load(path, address))
            .transpose()?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, Source::Listener.data());
        epoll.add(&listener, event)?;
        if let Some(time) = &time {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, Source::Time.data());
            epoll.add(&time.epoll().0, event)?;
        }
        Ok(Self {
            listener,
            epoll,
            shim,
            time,
            home: File::open("/proc/thread-self/ns/net")?,
            held: HashMap::new(),
            processes: HashMap::new(),
            process_of: HashMap::new(),
            waiting: Vec::new(),
            told: BTreeSet::new(),
        })
    }

    /// Answers calls from a thread of its own until the process ends.
    pub(crate) fn start(self) -> io::Result<()> {
        let thread = std::thread::Builder::new().name("supervisor".into());
        thread.spawn(move || self.run()).map(drop)
    }

    fn run(mut self) {
        let mut events = [EpollEvent::empty(); 16];
        loop {
            let ready = match self.epoll.wait(&mut events, self.patience()) {
                Err(Errno::EINTR) => continue,
                Err(error) => return tracing::error!(%error, "the supervisor cannot wait"),
                Ok(ready) => ready,
            };
            let mut asked = false;
            for event in events.iter().take(ready) {
                match Source::of(event.data()) {
                    // Nobody is left whose calls could come.
                    Source::Listener if !event.events().contains(EpollFlags::EPOLLIN) => return,
                    Source::Listener => asked = true,
                    Source::Process(process) => self.forget(process),
                    Source::Socket(fd) => self.resume(Some(fd)),
                    Source::Time => self.go_on(),
                }
            }
            if self.waiting.iter().any(|waiting| waiting.until.is_some()) {
                self.resume(None);
            }
            if asked {
                self.serve();
            }
        }
    }

    /// Until a receive has waited long enough.
    fn patience(&self) -> EpollTimeout {
        let limits = self.waiting.iter().filter_map(|waiting| waiting.until);
        limits.min().map_or(EpollTimeout::NONE, |next| {
            let left = next.0.saturating_sub(clock::uptime().0);
            let left = Duration::from_nanos(left) + Duration::from_millis(1);
            EpollTimeout::try_from(left).unwrap_or(EpollTimeout::MAX)
        })
    }

    fn serve(&mut self) {
        // SAFETY: all-zero bytes are valid, and what the kernel asks for.
        let mut notification: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the structure is valid for writing.
        let received =
            unsafe { receive_notification(self.listener.as_raw_fd(), &raw mut notification) };
        if received.is_err() {
            return;
        }
        let call = Call {
            id: notification.id,
            thread: Thread(notification.pid),
            number: c_long::from(notification.data.nr),
            args: notification.data.args,
        };
        let timed = self.time.as_mut().and_then(|time| time.call(&call));
        let outcome = if let Some(outcome) = timed {
            outcome
        } else if call.number == libc::SYS_socket {
            self.open(&call)
        } else {
            let number = call.int(0);
            let accepts = if NUMBERS.contains(&number) {
                is_marked
            } else {
                |_: &OwnedFd| true
            };
            match self.hold(call.thread, number, accepts) {
                Some(fd) => self.begin(&call, fd),
                None => Outcome::Pass,
            }
        };
        self.answer(&call, &outcome);
    }

    /// Answers calls whose time has come.
    fn go_on(&mut self) {
        let Some(mut time) = self.time.take() else {
            return;
        };
        for (call, outcome) in time.answers(|call| self.still_waits(call)) {
            self.answer(&call, &outcome);
        }
        self.time = Some(time);
    }

    /// Makes a call, or puts it aside: a receive that finds nothing.
    fn begin(&mut self, call: &Call, fd: RawFd) -> Outcome {
        let outcome = self.handle(call, fd);
        if matches!(outcome, Outcome::Wait) {
            self.set_aside(call, fd);
        }
        outcome
    }

    /// Puts a receive aside until its socket has something.
    fn set_aside(&mut self, call: &Call, fd: RawFd) {
        if !self.is_awaited(fd) {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, Source::Socket(fd).data());
            // SAFETY: ours, and not closed before it is taken out again.
            let socket = unsafe { BorrowedFd::borrow_raw(fd) };
            if let Err(error) = self.epoll.add(socket, event) {
                tracing::error!(%error, "a receive cannot wait");
            }
        }
        let limit = receive_limit(fd);
        self.waiting.push(Waiting {
            call: *call,
            fd,
            until: limit.map(|limit| clock::uptime().plus_nanos(nanos(limit))),
        });
    }

    fn is_awaited(&self, fd: RawFd) -> bool {
        self.waiting.iter().any(|waiting| waiting.fd == fd)
    }

    /// Nobody waits for the socket any more.
    fn let_be(&self, fd: RawFd) {
        // SAFETY: ours, and open.
        let _ = self.epoll.delete(unsafe { BorrowedFd::borrow_raw(fd) });
    }

    /// Tries the receives that wait for a socket which has something, or that have waited long enough.
    fn resume(&mut self, ready: Option<RawFd>) {
        let now = clock::uptime();
        let mut resumed = Vec::new();
        for waiting in std::mem::take(&mut self.waiting) {
            let late = waiting.until.is_some_and(|until| until <= now);
            let has_something = ready == Some(waiting.fd);
            if !late && !has_something {
                self.waiting.push(waiting);
                continue;
            }
            if !self.still_waits(&waiting.call) {
                resumed.push(waiting.fd);
                continue;
            }
            let outcome = if has_something {
                self.handle(&waiting.call, waiting.fd)
            } else {
                Outcome::Wait
            };
            match outcome {
                Outcome::Wait if !late => self.waiting.push(waiting),
                outcome => {
                    resumed.push(waiting.fd);
                    let outcome = match outcome {
                        Outcome::Wait => Outcome::Errno(libc::EAGAIN),
                        other => other,
                    };
                    self.answer(&waiting.call, &outcome);
                }
            }
        }
        for fd in resumed {
            if !self.is_awaited(fd) {
                self.let_be(fd);
            }
        }
    }

    /// Whether the caller still waits, and so still is who it was.
    fn still_waits(&self, call: &Call) -> bool {
        // SAFETY: the number is valid for reading.
        unsafe { check_notification(self.listener.as_raw_fd(), &raw const call.id) }.is_ok()
    }

    fn answer(&self, call: &Call, outcome: &Outcome) {
        // SAFETY: all-zero bytes are valid.
        let mut response: libc::seccomp_notif_resp = unsafe { std::mem::zeroed() };
        response.id = call.id;
        match *outcome {
            Outcome::Value(value) => response.val = value,
            Outcome::Errno(errno) => response.error = -errno,
            Outcome::Pass => response.flags = CONTINUE,
            Outcome::Wait | Outcome::Answered => return,
        }
        // SAFETY: the structure is valid. A process that has been killed meanwhile is an error that
        // does not matter.
        let _ = unsafe { answer_notification(self.listener.as_raw_fd(), &raw mut response) };
    }

    pub(super) fn shim(&self) -> Option<&Shim> {
        self.shim.as_ref()
    }

    /// `socket(AF_NETLINK, kind, NETLINK_XFRM)`.
    fn open(&mut self, call: &Call) -> Outcome {
        let kind = call.long(1);
        // The shim leaves types that netlink does not have to the host.
        if kind & TYPE_MASK != RAW && kind & TYPE_MASK != DATAGRAM {
            return Outcome::Errno(libc::ESOCKTNOSUPPORT);
        }
        let refused = Outcome::Errno(libc::EPROTONOSUPPORT);
        let Some(shim) = &self.shim else {
            self.tell(call.thread, "the shim is not in it, because it is static or setuid, or was started without LD_PRELOAD");
            return refused;
        };
        let status = call.thread.status();
        let Some(status) = status.filter(|status| status.euid == geteuid().as_raw()) else {
            self.tell(
                call.thread,
                "the shim is not in it, and it runs as another user than xfrmd",
            );
            return refused;
        };
        let made = in_namespace(&self.home, call.thread, || {
            let kind = c_int::try_from(kind).unwrap_or(0) | libc::SOCK_CLOEXEC;
            // SAFETY: plain numbers.
            match unsafe { shim.socket(libc::AF_NETLINK, kind, NETLINK_XFRM) } {
                fd if fd >= 0 => Ok(fd),
                _ => Err(io::Error::last_os_error()),
            }
        });
        match made {
            Ok(fd) => {
                let closes_on_exec = kind & libc::SOCK_CLOEXEC as u64 != 0;
                self.give(call, status.process, fd, closes_on_exec)
            }
            Err(error) => {
                self.tell(
                    call.thread,
                    &format!("its namespace cannot be entered: {error}"),
                );
                refused
            }
        }
    }

    /// Gives the caller a descriptor for the file that is `fd`, which is ours from now on.
    pub(super) fn give(
        &mut self,
        call: &Call,
        process: u32,
        fd: RawFd,
        closes_on_exec: bool,
    ) -> Outcome {
        let number = NUMBERS
            .into_iter()
            .find(|&number| call.thread.is_free(number));
        let Some(number) = number else {
            self.close(fd);
            return Outcome::Errno(libc::EMFILE);
        };
        // SAFETY: all-zero bytes are valid.
        let mut added: libc::seccomp_notif_addfd = unsafe { std::mem::zeroed() };
        added.id = call.id;
        added.flags = SET_AND_SEND;
        added.srcfd = fd.unsigned_abs();
        added.newfd = number.unsigned_abs();
        added.newfd_flags = if closes_on_exec {
            libc::O_CLOEXEC.unsigned_abs()
        } else {
            0
        };
        // SAFETY: the structure is valid for reading.
        if unsafe { add_descriptor(self.listener.as_raw_fd(), &raw const added) }.is_err() {
            self.close(fd);
            // Its limit on descriptors is lower, or it is gone.
            return Outcome::Errno(libc::EMFILE);
        }
        if let Some(old) = self.held.insert((process, number), fd) {
            self.close(old);
        }
        self.watch(process);
        Outcome::Answered
    }

    /// Our descriptor for the file that is the caller's `number`, if that is acceptable.
    fn hold(
        &mut self,
        thread: Thread,
        number: c_int,
        accepts: fn(&OwnedFd) -> bool,
    ) -> Option<RawFd> {
        if let Some(process) = self.process_of.get(&thread)
            && let Some(&fd) = self.held.get(&(*process, number))
            && thread.has_same_file(number, fd)
        {
            return Some(fd);
        }
        let status = thread.status()?;
        self.process_of.insert(thread, status.process);
        if let Some(&fd) = self.held.get(&(status.process, number)) {
            if thread.has_same_file(number, fd) {
                return Some(fd);
            }
            self.release(status.process, number);
        }
        if status.euid != geteuid().as_raw() {
            return None;
        }
        self.watch(status.process);
        let process = self.processes.get(&status.process)?;
        let fd = match process.descriptor(number) {
            // A container's own filter may forbid to ask for it. Then we know it if we gave it.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                self.same_socket(thread, number)
            }
            other => other.ok(),
        };
        let fd = fd.filter(accepts)?.into_raw_fd();
        self.held.insert((status.process, number), fd);
        Some(fd)
    }

    /// A descriptor of ours for a socket that we hold already, for another process.
    fn same_socket(&self, thread: Thread, number: c_int) -> Option<OwnedFd> {
        let inode = thread.socket_inode(number)?;
        // SAFETY: ours, and open while it is held.
        let mut all = self
            .held
            .values()
            .map(|&fd| unsafe { BorrowedFd::borrow_raw(fd) });
        let same = all.find(|&held| inode_of(held.as_raw_fd()) == Some(inode))?;
        same.try_clone_to_owned().ok()
    }

    /// Who calls, as it was when its socket was found.
    pub(super) fn process(&self, thread: Thread) -> Option<u32> {
        self.process_of.get(&thread).copied()
    }

    fn watch(&mut self, process: u32) {
        if let std::collections::hash_map::Entry::Vacant(vacant) = self.processes.entry(process)
            && let Ok(opened) = Process::open(process)
        {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, Source::Process(process).data());
            if let Err(error) = self.epoll.add(opened.fd(), event) {
                tracing::error!(%error, process, "its end will go unnoticed");
            }
            vacant.insert(opened);
        }
    }

    /// The caller closes `number`, or it is something else now.
    pub(super) fn release(&mut self, process: u32, number: c_int) {
        if let Some(fd) = self.held.remove(&(process, number)) {
            self.close(fd);
        }
    }

    fn forget(&mut self, process: u32) {
        self.processes.remove(&process);
        self.process_of.retain(|_, of| *of != process);
        let numbers: Vec<c_int> = self
            .held
            .keys()
            .filter(|key| key.0 == process)
            .map(|key| key.1)
            .collect();
        for number in numbers {
            self.release(process, number);
        }
    }

    /// Closes a descriptor of ours; who waits for it waits in vain.
    fn close(&mut self, fd: RawFd) {
        let (lost, kept) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting: &Waiting| waiting.fd == fd);
        self.waiting = kept;
        let lost: Vec<Waiting> = lost;
        if !lost.is_empty() {
            self.let_be(fd);
        }
        for waiting in lost {
            self.answer(&waiting.call, &Outcome::Errno(libc::EBADF));
        }
        match &self.shim {
            // SAFETY: ours, and nobody uses it any more.
            Some(shim) => drop(unsafe { shim.close(fd) }),
            // SAFETY: the same.
            None => drop(unsafe { OwnedFd::from_raw_fd(fd) }),
        }
    }

    /// Says once for each process why it gets no socket.
    fn tell(&mut self, thread: Thread, why: &str) {
        if self.told.insert(thread.0) {
            eprintln!(
                "xfrmd: {} (process {}) gets no NETLINK_XFRM socket: {why}, and it would have \
                 silently reached the host's kernel",
                thread.name(),
                thread.0
            );
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
