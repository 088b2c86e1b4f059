//! The threads that answer the calls of programs without the shim.
//!
//! One waits for calls, and for nothing else: the host then wakes it where the caller is, and it takes one call to
//! get a call. The other one waits for what else there is: sockets that receives wait for, ends of processes, time.
//! For each of their sockets it has a descriptor of its own for the same open file, found through
//! the program's (`pidfd_getfd(2)`) and known by the shim's mark, so that it does not matter how the
//! program came by it: by `socket`, fork, exec or `dup`. On that descriptor it makes the program's call
//! through the shim's own code ([`super::library`]), and carries arguments and results over
//! ([`super::target`]). A receive that has to wait is put aside until there is something. Of other sockets we
//! have a descriptor only while they have policies, and look now and then whether the program has closed them.
//!
//! Only programs of the user whose instance it is are served: our own rights are theirs.

mod waiting;

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libc::{c_int, c_long};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::geteuid;
use xfrm_proto::control::Address;

use super::filter::NUMBERS;
use super::library::Shim;
use super::target::{Process, Thread, in_namespace, inode_of, is_marked};
use super::time::Time;
use waiting::{Source, Waiting, watch};

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

/// The threads' state.
pub(crate) struct Supervisor {
    listener: Arc<OwnedFd>,
    /// Ends of processes, sockets that receives wait for, `poke`.
    epoll: Arc<Epoll>,
    poke: EventFd,
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
        let poke = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, Source::Poke.data());
        epoll.add(&poke, event)?;
        if let Some(time) = &time {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, Source::Time.data());
            epoll.add(&time.epoll().0, event)?;
        }
        Ok(Self {
            listener: Arc::new(listener),
            epoll: Arc::new(epoll),
            poke,
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

    /// Answers calls from threads of its own until the process ends.
    pub(crate) fn start(self) -> io::Result<()> {
        let listener = Arc::clone(&self.listener);
        let epoll = Arc::clone(&self.epoll);
        let all = Arc::new(Mutex::new(self));
        let calls = Arc::clone(&all);
        let thread = std::thread::Builder::new().name("supervisor".into());
        thread.spawn(move || answer_calls(&listener, &calls))?;
        let thread = std::thread::Builder::new().name("supervisor-wait".into());
        thread.spawn(move || watch(&epoll, &all)).map(drop)
    }

    fn serve(&mut self, notification: &libc::seccomp_notif) {
        let call = Call {
            id: notification.id,
            thread: Thread(notification.pid),
            number: c_long::from(notification.data.nr),
            args: notification.data.args,
        };
        let timed = self.time.as_mut().and_then(|time| time.call(&call));
        let number = call.int(0);
        let outcome = if let Some(outcome) = timed {
            outcome
        } else if call.number == libc::SYS_socket {
            self.open(&call)
        } else if !NUMBERS.contains(&number) {
            self.set_elsewhere(&call, number)
        } else {
            match self.hold(call.thread, number, is_marked) {
                Some(fd) => self.begin(&call, fd),
                None => Outcome::Pass,
            }
        };
        self.answer(&call, &outcome);
    }

    /// An option of another socket that the host must not hear of. We hold such a socket only if it has policies
    /// now: they are taken away when the program closes it.
    fn set_elsewhere(&mut self, call: &Call, number: c_int) -> Outcome {
        let before: BTreeSet<(u32, c_int)> = self.held.keys().copied().collect();
        let Some(fd) = self.hold(call.thread, number, |_| true) else {
            return Outcome::Pass;
        };
        let outcome = self.handle(call, fd);
        let gives_policies = call.int(1) != libc::SOL_UDP && matches!(outcome, Outcome::Value(0));
        if let Some(process) = self.process(call.thread)
            && !before.contains(&(process, number))
        {
            if gives_policies {
                self.wake_watch();
            } else {
                self.release(process, number);
            }
        }
        outcome
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
        if self.shim.is_none() {
            self.tell(call.thread, "the shim is not in it, because it is static or setuid, or was started without LD_PRELOAD");
            return refused;
        }
        let status = call.thread.status();
        let Some(status) = status.filter(|status| status.euid == geteuid().as_raw()) else {
            self.tell(
                call.thread,
                "the shim is not in it, and it runs as another user than xfrmd",
            );
            return refused;
        };
        self.let_go(|process, _| process == status.process);
        let Some(shim) = &self.shim else {
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
                self.give(call, status.process, (fd, *NUMBERS.start()), closes_on_exec)
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

    /// Gives the caller a descriptor for the file that is `fd`, which is ours from now on: the lowest of our
    /// numbers that is free and no less than `first`.
    pub(super) fn give(
        &mut self,
        call: &Call,
        process: u32,
        (fd, first): (RawFd, c_int),
        closes_on_exec: bool,
    ) -> Outcome {
        let number = NUMBERS
            .into_iter()
            .find(|&number| number >= first && call.thread.is_free(number));
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

    /// Closes what processes have closed behind our back: with `close_range`, by exec, or because it is a number
    /// whose calls we do not see.
    fn let_go(&mut self, of: impl Fn(u32, c_int) -> bool) {
        let closed: Vec<(u32, c_int)> = self
            .held
            .iter()
            .filter(|((process, number), _)| of(*process, *number))
            .filter(|((process, number), fd)| !self.has(*process, *number, **fd))
            .map(|(held, _)| *held)
            .collect();
        for (process, number) in closed {
            self.release(process, number);
        }
    }

    /// Whether a process's descriptor is the file that ours is, as any thread of it has them.
    fn has(&self, process: u32, number: c_int, fd: RawFd) -> bool {
        let threads = self.process_of.iter().filter(|(_, of)| **of == process);
        threads
            .map(|(thread, _)| *thread)
            .chain([Thread(process)])
            .any(|thread| thread.has_same_file(number, fd))
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
        let what = format!(
            "gets no NETLINK_XFRM socket: {why}, and it would have silently reached the host's kernel"
        );
        self.say(thread, &what);
    }

    /// Says once for each process what it cannot have.
    pub(super) fn say(&mut self, thread: Thread, what: &str) {
        if self.told.insert(thread.0) {
            eprintln!("xfrmd: {} (process {}) {what}", thread.name(), thread.0);
        }
    }
}

/// Waits for calls, and answers them, until nobody is left whose calls could come.
fn answer_calls(listener: &OwnedFd, all: &Mutex<Supervisor>) {
    loop {
        // SAFETY: all-zero bytes are valid, and what the kernel asks for.
        let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the structure is valid for writing.
        match unsafe { receive_notification(listener.as_raw_fd(), &raw mut call) } {
            Ok(_) => locked(all).serve(&call),
            Err(Errno::EINTR) => {}
            // The caller has been killed; or there are no callers any more, which is said in the same way.
            Err(Errno::ENOENT) if !is_alone(listener) => {}
            Err(Errno::ENOENT) => return,
            Err(error) => return tracing::error!(%error, "the supervisor cannot wait"),
        }
    }
}

/// Whether no process has the filter any more.
fn is_alone(listener: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(listener.as_fd(), PollFlags::empty())];
    let _ = poll(&mut fds, PollTimeout::ZERO);
    let [fd] = fds;
    fd.revents()
        .is_some_and(|seen| seen.contains(PollFlags::POLLHUP))
}

/// A thread that panicked has left a call without an answer, and nothing else.
fn locked(all: &Mutex<Supervisor>) -> MutexGuard<'_, Supervisor> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}
