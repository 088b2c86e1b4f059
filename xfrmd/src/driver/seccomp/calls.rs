//! The calls on sockets, one by one: arguments from the caller's memory, the shim's call on our own
//! descriptor, results into the caller's memory.

use std::io;
use std::mem::{offset_of, zeroed};
use std::ops::Range;
use std::os::fd::RawFd;
use std::time::Duration;

use libc::{c_int, iovec, msghdr, socklen_t};

use super::filter::NUMBERS;
use super::supervisor::{Call, Outcome, Supervisor};
use super::target::{MOST_PARTS, Thread, beginning, bytes_of, part};

/// The largest datagram, option, name and ancillary data that are carried over.
const LARGEST_DATAGRAM: usize = 64 << 20;
const LARGEST_BUFFER: usize = 4 << 20;
const LARGEST_OPTION: usize = 4096;
const LARGEST_NAME: usize = 128;
/// Messages of a `sendmmsg` that are looked at.
const MOST_MESSAGES: u64 = 1024;
const MESSAGE_STEP: u64 = size_of::<libc::mmsghdr>() as u64;
const MESSAGE_LEN: u64 = offset_of!(libc::mmsghdr, msg_len) as u64;

fn result_of(value: isize) -> Result<i64, c_int> {
    if value < 0 {
        Err(io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO))
    } else {
        i64::try_from(value).map_err(|_| libc::EIO)
    }
}

fn result_of_int(value: c_int) -> Result<i64, c_int> {
    result_of(isize::try_from(value).unwrap_or(-1))
}

fn size(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// The size of a C structure or buffer that is surely small enough.
fn length(len: usize) -> socklen_t {
    socklen_t::try_from(len).unwrap_or(socklen_t::MAX)
}

/// Where a receive goes in the caller's memory.
struct Room {
    parts: Vec<iovec>,
    name: u64,
    name_room: usize,
    control_room: usize,
    flags: c_int,
    /// The message that describes it, if one does.
    message: Option<msghdr>,
}

/// What a receive gave.
struct Datagram {
    len: i64,
    bytes: Vec<u8>,
    name: Vec<u8>,
    name_len: socklen_t,
    control: Vec<u8>,
    flags: c_int,
}

impl Supervisor {
    /// Makes a call on the socket that is our `fd`.
    pub(super) fn handle(&mut self, call: &Call, fd: RawFd) -> Outcome {
        match call.number {
            libc::SYS_sendto | libc::SYS_write | libc::SYS_writev => {
                self.send_bytes(call, fd).into()
            }
            libc::SYS_sendmsg => self
                .send_message(call.thread, call.long(1), call.int(2), fd)
                .into(),
            libc::SYS_sendmmsg => self.send_messages(call, fd).into(),
            libc::SYS_recvfrom
            | libc::SYS_read
            | libc::SYS_readv
            | libc::SYS_recvmsg
            | libc::SYS_recvmmsg => self.receive(call, fd),
            libc::SYS_bind | libc::SYS_connect => self.name_socket(call, fd).into(),
            libc::SYS_getsockname => self.socket_name(call, fd).into(),
            libc::SYS_getsockopt => self.option(call, fd).into(),
            libc::SYS_setsockopt => self.set_option(call, fd).into(),
            libc::SYS_close => {
                if let Some(process) = self.process(call.thread) {
                    self.release(process, call.int(0));
                }
                Outcome::Pass
            }
            libc::SYS_dup => self.duplicate(call, (fd, 0), false),
            libc::SYS_fcntl => match call.int(1) {
                libc::F_DUPFD => self.duplicate(call, (fd, call.int(2)), false),
                libc::F_DUPFD_CLOEXEC => self.duplicate(call, (fd, call.int(2)), true),
                _ => Outcome::Pass,
            },
            // `dup2` and `dup3`: the host's work, if the socket is one under the new number too.
            _ => match call.int(1) {
                to if NUMBERS.contains(&to) => Outcome::Pass,
                to => {
                    self.refuse_number(call, to);
                    Outcome::Errno(libc::EBADF)
                }
            },
        }
    }

    fn refuse_number(&mut self, call: &Call, number: c_int) {
        let what = format!(
            "cannot have a NETLINK_XFRM socket as descriptor {number}, only as one from {} to {}, because \
             the shim is not in it",
            NUMBERS.start(),
            NUMBERS.end()
        );
        self.say(call.thread, &what);
    }

    fn duplicate(
        &mut self,
        call: &Call,
        (fd, first): (RawFd, c_int),
        closes_on_exec: bool,
    ) -> Outcome {
        if first > *NUMBERS.end() {
            self.refuse_number(call, first);
            return Outcome::Errno(libc::EMFILE);
        }
        let Some(process) = self.process(call.thread) else {
            return Outcome::Errno(libc::EBADF);
        };
        // SAFETY: plain numbers.
        let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
        if copy < 0 {
            return Outcome::Errno(libc::EMFILE);
        }
        self.give(call, process, (copy, first), closes_on_exec)
    }

    fn send_bytes(&mut self, call: &Call, fd: RawFd) -> Result<i64, c_int> {
        let thread = call.thread;
        let parts = match call.number {
            libc::SYS_writev => thread.vector(call.long(1), call.long(2))?,
            _ => vec![part(call.long(1), size(call.long(2)))?],
        };
        let (flags, name, name_len) = match call.number {
            libc::SYS_sendto => (call.int(3), call.long(4), size(call.long(5))),
            _ => (0, 0, 0),
        };
        self.send(thread, &parts, (name, name_len), flags, fd)
    }

    fn send_message(
        &mut self,
        thread: Thread,
        message: u64,
        flags: c_int,
        fd: RawFd,
    ) -> Result<i64, c_int> {
        let message: msghdr = thread.structure(message)?;
        let parts = thread.vector(message.msg_iov as u64, message.msg_iovlen as u64)?;
        let name_len = usize::try_from(message.msg_namelen).unwrap_or(usize::MAX);
        self.send(
            thread,
            &parts,
            (message.msg_name as u64, name_len),
            flags,
            fd,
        )
    }

    fn send_messages(&mut self, call: &Call, fd: RawFd) -> Result<i64, c_int> {
        let mut sent = 0;
        for index in 0..call.long(2).min(MOST_MESSAGES) {
            let message = call.long(1).wrapping_add(index * MESSAGE_STEP);
            let len = match self.send_message(call.thread, message, call.int(3), fd) {
                Ok(len) => len,
                Err(errno) if sent == 0 => return Err(errno),
                Err(_) => break,
            };
            let len = u32::try_from(len).unwrap_or(u32::MAX);
            call.thread.put(message.wrapping_add(MESSAGE_LEN), &len)?;
            sent += 1;
        }
        Ok(sent)
    }

    fn send(
        &mut self,
        thread: Thread,
        parts: &[iovec],
        (name, name_len): (u64, usize),
        flags: c_int,
        fd: RawFd,
    ) -> Result<i64, c_int> {
        let total = parts
            .iter()
            .map(|part| part.iov_len)
            .fold(0, usize::saturating_add);
        if total > LARGEST_DATAGRAM {
            return Err(libc::EMSGSIZE);
        }
        let name_len = match name {
            0 => 0,
            _ => name_len.min(LARGEST_NAME),
        };
        let mut bytes = vec![0; total + name_len];
        // At once, if the host takes so many parts.
        let (bytes, address) = if parts.len() < MOST_PARTS {
            let both = [parts, &[part(name, name_len)?]].concat();
            thread.gather(&both, &mut bytes)?;
            bytes.split_at_mut(total)
        } else {
            let (bytes, address) = bytes.split_at_mut(total);
            thread.gather(parts, bytes)?;
            thread.read(name, address)?;
            (bytes, address)
        };
        let mut local = iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        // SAFETY: all-zero bytes are a valid msghdr.
        let mut message: msghdr = unsafe { zeroed() };
        message.msg_iov = &raw mut local;
        message.msg_iovlen = 1;
        if !address.is_empty() {
            message.msg_name = address.as_mut_ptr().cast();
            message.msg_namelen = length(address.len());
        }
        let shim = self.shim().ok_or(libc::EBADF)?;
        shim.call_for(self.process(thread));
        // SAFETY: the message's parts are ours and outlive the call.
        result_of(unsafe { shim.sendmsg(fd, &raw const message, flags) })
    }

    fn receive(&mut self, call: &Call, fd: RawFd) -> Outcome {
        let received = match call.number {
            libc::SYS_recvmmsg => self.receive_messages(call, fd),
            _ => self.receive_one(call, call.long(1), fd),
        };
        match received {
            Err(libc::EAGAIN) if waits(call, fd) => Outcome::Wait,
            other => other.into(),
        }
    }

    /// A receive into the call's buffer, or into the message at `place`.
    fn receive_one(&self, call: &Call, place: u64, fd: RawFd) -> Result<i64, c_int> {
        let room = room(call, place)?;
        // `sock_read_iter` does not even look.
        let reads = matches!(call.number, libc::SYS_read | libc::SYS_readv);
        if reads && room.parts.iter().all(|part| part.iov_len == 0) {
            return Ok(0);
        }
        let datagram = self.receive_into(&room, fd)?;
        show(call, place, &room, &datagram)?;
        Ok(datagram.len)
    }

    /// As many as there are: the call never waits for a second one.
    fn receive_messages(&self, call: &Call, fd: RawFd) -> Result<i64, c_int> {
        let mut received = 0;
        for index in 0..call.long(2).min(MOST_MESSAGES) {
            let message = call.long(1).wrapping_add(index * MESSAGE_STEP);
            let len = match self.receive_one(call, message, fd) {
                Ok(len) => u32::try_from(len).unwrap_or(u32::MAX),
                Err(errno) if received == 0 => return Err(errno),
                Err(_) => break,
            };
            call.thread.put(message.wrapping_add(MESSAGE_LEN), &len)?;
            received += 1;
        }
        Ok(received)
    }

    fn receive_into(&self, room: &Room, fd: RawFd) -> Result<Datagram, c_int> {
        let total = room
            .parts
            .iter()
            .map(|part| part.iov_len)
            .fold(0, usize::saturating_add);
        let mut bytes = vec![0; total.min(LARGEST_BUFFER)];
        let mut name = vec![0; LARGEST_NAME];
        let mut control = vec![0_u8; room.control_room.min(LARGEST_OPTION)];
        let mut local = iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        // SAFETY: all-zero bytes are a valid msghdr.
        let mut message: msghdr = unsafe { zeroed() };
        message.msg_iov = &raw mut local;
        message.msg_iovlen = 1;
        message.msg_name = name.as_mut_ptr().cast();
        message.msg_namelen = length(name.len());
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = control.len() as _;
        let shim = self.shim().ok_or(libc::EBADF)?;
        // SAFETY: the message's parts are ours and outlive the call.
        let len = unsafe { shim.recvmsg(fd, &raw mut message, room.flags | libc::MSG_DONTWAIT) };
        let len = result_of(len)?;
        bytes.truncate(usize::try_from(len).unwrap_or(0));
        name.truncate(message.msg_namelen as usize);
        control.truncate(message.msg_controllen as _);
        Ok(Datagram {
            len,
            bytes,
            name,
            name_len: message.msg_namelen,
            control,
            flags: message.msg_flags,
        })
    }

    fn name_socket(&mut self, call: &Call, fd: RawFd) -> Result<i64, c_int> {
        let mut address = vec![0_u8; size(call.long(2)).min(LARGEST_NAME)];
        call.thread.read(call.long(1), &mut address)?;
        let len = length(address.len());
        let shim = self.shim().ok_or(libc::EBADF)?;
        if call.number == libc::SYS_connect {
            shim.call_for(self.process(call.thread));
            // SAFETY: the address is valid for its length.
            return result_of_int(unsafe { shim.connect(fd, address.as_ptr().cast(), len) });
        }
        // SAFETY: the same.
        let bind = |address: &[u8]| unsafe { shim.bind(fd, address.as_ptr().cast(), len) };
        if let Some(process) = self.process(call.thread)
            && is_unbound(fd)
            && address.get(PORT) == Some(&[0; 4])
        {
            let mut own = address.clone();
            own.splice(PORT, process.to_ne_bytes());
            if bind(&own) == 0 {
                return Ok(0);
            }
        }
        result_of_int(bind(&address))
    }

    fn socket_name(&mut self, call: &Call, fd: RawFd) -> Result<i64, c_int> {
        let room: u32 = call.thread.structure(call.long(2))?;
        let mut name = [0_u8; LARGEST_NAME];
        let mut len = length(name.len());
        let shim = self.shim().ok_or(libc::EBADF)?;
        // SAFETY: the name is valid for writing.
        let result = unsafe { shim.getsockname(fd, name.as_mut_ptr().cast(), &raw mut len) };
        let value = result_of_int(result)?;
        let shown = size(u64::from(len.min(room)));
        call.thread
            .write(call.long(1), name.get(..shown).unwrap_or(&name))?;
        call.thread.put(call.long(2), &len)?;
        Ok(value)
    }

    fn option(&mut self, call: &Call, fd: RawFd) -> Result<i64, c_int> {
        let room: u32 = call.thread.structure(call.long(4))?;
        let mut value = vec![0_u8; size(u64::from(room)).min(LARGEST_OPTION)];
        let mut len = length(value.len());
        let shim = self.shim().ok_or(libc::EBADF)?;
        let (level, name) = (call.int(1), call.int(2));
        // SAFETY: the value is valid for writing.
        let result =
            unsafe { shim.getsockopt(fd, level, name, value.as_mut_ptr().cast(), &raw mut len) };
        let result = result_of_int(result)?;
        let shown = size(u64::from(len)).min(value.len());
        call.thread
            .write(call.long(3), value.get(..shown).unwrap_or(&value))?;
        call.thread.put(call.long(4), &len)?;
        Ok(result)
    }

    fn set_option(&mut self, call: &Call, fd: RawFd) -> Result<i64, c_int> {
        let mut value = vec![0_u8; size(call.long(4)).min(LARGEST_OPTION)];
        call.thread.read(call.long(3), &mut value)?;
        let len = length(value.len());
        let shim = self.shim().ok_or(libc::EBADF)?;
        let (level, name) = (call.int(1), call.int(2));
        // SAFETY: the value is valid for its length.
        result_of_int(unsafe { shim.setsockopt(fd, level, name, value.as_ptr().cast(), len) })
    }
}

/// Where a name has the port.
const PORT: Range<usize> = {
    let start = offset_of!(libc::sockaddr_nl, nl_pid);
    start..start + 4
};

fn is_unbound(fd: RawFd) -> bool {
    netlink_name(fd).is_some_and(|name| name.nl_pid == 0)
}

/// The host's name of a netlink socket.
fn netlink_name(fd: RawFd) -> Option<libc::sockaddr_nl> {
    // SAFETY: all-zero bytes are valid.
    let mut name: libc::sockaddr_nl = unsafe { zeroed() };
    let mut len = length(size_of::<libc::sockaddr_nl>());
    // SAFETY: the name is valid for its length.
    let result = unsafe { libc::getsockname(fd, (&raw mut name).cast(), &raw mut len) };
    (result == 0 && c_int::from(name.nl_family) == libc::AF_NETLINK).then_some(name)
}

/// What a receive has offered.
fn room(call: &Call, place: u64) -> Result<Room, c_int> {
    let thread = call.thread;
    let of_message = |message: msghdr, flags| {
        Ok(Room {
            parts: thread.vector(message.msg_iov as u64, message.msg_iovlen as u64)?,
            name: message.msg_name as u64,
            name_room: message.msg_namelen as usize,
            control_room: if message.msg_control.is_null() {
                0
            } else {
                message.msg_controllen
            },
            flags,
            message: Some(message),
        })
    };
    let of_parts = |parts, name, name_room, flags| Room {
        parts,
        name,
        name_room,
        control_room: 0,
        flags,
        message: None,
    };
    let one = || part(call.long(1), size(call.long(2))).map(|part| vec![part]);
    match call.number {
        libc::SYS_recvmsg => of_message(thread.structure(place)?, call.int(2)),
        libc::SYS_recvmmsg => {
            let flags = call.int(3) & !libc::MSG_WAITFORONE;
            of_message(thread.structure(place)?, flags)
        }
        libc::SYS_recvfrom => {
            let (name, name_len) = (call.long(4), call.long(5));
            let room: u32 = if name == 0 || name_len == 0 {
                0
            } else {
                thread.structure(name_len)?
            };
            Ok(of_parts(one()?, name, room as usize, call.int(3)))
        }
        libc::SYS_readv => {
            let parts = thread.vector(call.long(1), call.long(2))?;
            Ok(of_parts(parts, 0, 0, 0))
        }
        _ => Ok(of_parts(one()?, 0, 0, 0)),
    }
}

/// Writes what was received to where the caller wants it, at once if the host takes so many parts.
fn show(call: &Call, place: u64, room: &Room, datagram: &Datagram) -> Result<(), c_int> {
    let mut parts: Vec<iovec> = beginning(&room.parts, datagram.bytes.len()).collect();
    let mut bytes = datagram.bytes.clone();
    if parts.len() > MOST_PARTS - 3 {
        call.thread.scatter(&parts, &bytes)?;
        parts.clear();
        bytes.clear();
    }
    let mut add = |at: u64, more: &[u8]| {
        bytes.extend_from_slice(more);
        part(at, more.len()).map(|part| parts.push(part))
    };
    if room.name != 0 {
        let name = datagram.name.get(..room.name_room);
        add(room.name, name.unwrap_or(&datagram.name))?;
    }
    match room.message {
        Some(mut message) => {
            add(message.msg_control as u64, &datagram.control)?;
            message.msg_controllen = datagram.control.len() as _;
            message.msg_flags = datagram.flags;
            if room.name != 0 {
                message.msg_namelen = datagram.name_len;
            }
            add(place, bytes_of(&message))?;
        }
        None if call.number == libc::SYS_recvfrom && room.name != 0 && call.long(5) != 0 => {
            add(call.long(5), bytes_of(&datagram.name_len))?;
        }
        None => {}
    }
    call.thread.scatter(&parts, &bytes)
}

/// Whether a receive that finds nothing has to wait.
fn waits(call: &Call, fd: RawFd) -> bool {
    let flags = match call.number {
        libc::SYS_recvmsg => call.int(2),
        libc::SYS_recvmmsg | libc::SYS_recvfrom => call.int(3),
        _ => 0,
    };
    // SAFETY: plain numbers.
    let status = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    flags & libc::MSG_DONTWAIT == 0 && status & libc::O_NONBLOCK == 0
}

/// `SO_RCVTIMEO`, if there is one.
pub(super) fn receive_limit(fd: RawFd) -> Option<Duration> {
    // SAFETY: all-zero bytes are valid.
    let mut limit: libc::timeval = unsafe { zeroed() };
    let mut len = length(size_of::<libc::timeval>());
    // SAFETY: the structure and its length are valid for writing.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw mut limit).cast(),
            &raw mut len,
        )
    };
    let seconds = u64::try_from(limit.tv_sec).ok()?;
    let micros = u64::try_from(limit.tv_usec).ok()?;
    let limit = Duration::from_secs(seconds) + Duration::from_micros(micros);
    (result == 0 && !limit.is_zero()).then_some(limit)
}
