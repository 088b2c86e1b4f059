//! Clients' connections: what they ask, frame by frame.
//!
//! A frame that makes no sense ends its connection and touches nothing else.
//! Every other frame is answered before the next one of that connection is
//! read, and only when all that it causes is queued.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use dataplane::spd::SocketKey;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, accept4, getsockopt, setsockopt, socketpair, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use xfrm_proto::control::{Answer, Request, Socket, VERSION};
use xfrmd::emulator::NetnsId;

use super::client::Inside;
use super::files::WriteError;
use super::privilege::Credentials;
pub(super) use super::reply::Reply;
use super::{Daemon, Owner, Source, host};

/// Sockets that a client without privileges can show before it must show them again.
const MOST_PROVEN: usize = 256;
/// How long a thread of ours waits for an answer.
const INSIDE_SECONDS: i64 = 10;

/// A client's connection.
pub(super) struct Connection {
    /// A number that no other has had.
    pub(super) id: u64,
    /// Its place among those that there are.
    index: usize,
    fd: OwnedFd,
    /// Who is at the other end.
    pub(super) peer: Credentials,
    introduced: bool,
    /// Namespaces that it uses.
    pub(super) entered: Vec<Entered>,
    /// Its next frame may bring descriptors; receiving them costs, so no other may.
    brings: bool,
    /// Cookies and ports of sockets that it has shown.
    proven: Vec<(u64, u32)>,
    /// Cookies of sockets to which it gave policies.
    pub(super) policies: Vec<(NetnsId, u64)>,
}

/// A namespace that the connection uses.
#[derive(Clone, Copy)]
pub(super) struct Entered {
    /// The host's number of it.
    pub(super) netns: u64,
    /// The emulator's.
    pub(super) id: NetnsId,
    /// Whether the client may configure it.
    pub(super) privileged: bool,
    /// When that was looked up, in nanoseconds since boot.
    pub(super) checked_at: u64,
}

/// What became of a connection's turn.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// A frame was answered.
    Served,
    /// There was none.
    Empty,
    /// The connection has ended, or must.
    Over,
}

impl Connection {
    /// Whether the client can speak for the socket: without privileges it must have shown it.
    pub(super) fn may_use(&self, entered: Entered, socket: &Socket) -> bool {
        entered.privileged || self.proven.contains(&(socket.cookie, socket.port))
    }
}

/// Looks at a socket that a client says is its own.
fn prove(connection: &mut Connection, socket: &Socket, [fd, _]: [Option<OwnedFd>; 2]) -> Reply {
    let Some(fd) = fd else { return Reply::HangUp };
    let fd = fd.as_fd();
    let is_it = host::is_usersock(fd)
        && host::netns_cookie(fd).is_ok_and(|netns| netns == socket.netns)
        && host::socket_cookie(fd).is_ok_and(|cookie| cookie == socket.cookie)
        && host::port(fd).is_ok_and(|port| port == socket.port);
    if !is_it {
        return Reply::HangUp;
    }
    if connection.proven.len() >= MOST_PROVEN {
        connection.proven.clear();
    }
    connection.proven.push((socket.cookie, socket.port));
    Reply::Answer(Answer::default())
}

impl Daemon {
    pub(super) fn accept(&mut self, index: usize) {
        let Some(listener) = self.listeners.get(index) else {
            return;
        };
        let fd = match accept4(
            listener.as_raw_fd(),
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        ) {
            // SAFETY: the descriptor is new and ours.
            Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
            Err(error) => {
                tracing::debug!(%error, "accepting");
                return;
            }
        };
        if let Err(error) = self.admit(fd) {
            tracing::warn!(%error, "a client was refused");
        }
    }

    /// A client inside this process, for another thread.
    ///
    /// # Errors
    /// The host's.
    pub(crate) fn inside_client(&mut self) -> io::Result<Inside> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        setsockopt(
            &theirs,
            sockopt::ReceiveTimeout,
            &TimeVal::seconds(INSIDE_SECONDS),
        )?;
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let index = self.admit(ours)?;
        if let Some(Some(connection)) = self.connections.get_mut(index) {
            connection.introduced = true;
        }
        Ok(Inside::new(theirs))
    }

    fn admit(&mut self, fd: OwnedFd) -> io::Result<usize> {
        let peer = getsockopt(&fd, sockopt::PeerCredentials)?;
        let free = self.connections.iter().position(Option::is_none);
        let index = free.unwrap_or(self.connections.len());
        // No user but root can take all of them.
        let same = self.connections.iter().flatten();
        let same = same.filter(|other| other.peer.uid == peer.uid()).count();
        let most = self.settings.max_connections;
        if index >= most || (peer.uid() != 0 && same >= most / 2) {
            return Err(io::Error::other("too many clients"));
        }
        // Edge-triggered, which spares a look at the socket after each frame: a client waits for an
        // answer before it sends again. One that does not is served when it sends again.
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        let event = EpollEvent::new(flags, Source::Connection.data(index));
        self.epoll.add(&fd, event)?;
        // A process that comes back has what it had.
        let adopted = self.adopt(peer.pid());
        let (id, policies) = match adopted {
            Some(orphan) => (orphan.connection, orphan.policies),
            None => {
                self.next_connection += 1;
                (self.next_connection - 1, Vec::new())
            }
        };
        let connection = Connection {
            id,
            index,
            fd,
            peer: Credentials {
                pid: peer.pid(),
                uid: peer.uid(),
            },
            introduced: false,
            entered: Vec::new(),
            brings: false,
            proven: Vec::new(),
            policies,
        };
        if let Some(slot) = self.connections.get_mut(index) {
            *slot = Some(connection);
        } else {
            self.connections.push(Some(connection));
        }
        Ok(index)
    }

    pub(super) fn serve_connection(&mut self, index: usize, events: EpollFlags) {
        let Some(mut connection) = self.connections.get_mut(index).and_then(Option::take) else {
            return;
        };
        let mut frame = std::mem::take(&mut self.frame);
        let mut turn = self.serve_frame(&mut connection, &mut frame);
        if events.intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP) {
            // Nothing more will come than what is queued.
            while turn == Turn::Served {
                turn = self.serve_frame(&mut connection, &mut frame);
            }
            turn = Turn::Over;
        }
        self.frame = frame;
        if turn == Turn::Over {
            self.end_connection(connection);
        } else if let Some(slot) = self.connections.get_mut(index) {
            *slot = Some(connection);
        }
    }

    fn serve_frame(&mut self, connection: &mut Connection, frame: &mut [u8]) -> Turn {
        let received = if std::mem::take(&mut connection.brings) {
            host::receive_frame(connection.fd.as_fd(), frame)
        } else {
            host::receive_plain(connection.fd.as_fd(), frame).map(|len| (len, [None, None]))
        };
        let (len, fds) = match received {
            Ok((0, _)) => return Turn::Over,
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Turn::Empty,
            Err(_) => return Turn::Over,
        };
        let decoded = frame.get(..len).and_then(Request::decode);
        let Some((request, payload)) = decoded else {
            tracing::warn!(pid = connection.peer.pid, "a frame that makes no sense");
            return Turn::Over;
        };
        let reply = self.handle(connection, &request, payload, fds);
        let fd = connection.fd.as_fd();
        let sent = match &reply {
            Reply::Answer(answer) => {
                connection.brings = answer.wants_descriptors();
                host::send_frame(fd, &answer.encode(), &[], None)
            }
            Reply::Content(content) => {
                host::send_frame(fd, &Answer::default().encode(), content, None)
            }
            Reply::Descriptor(passed) => {
                host::send_frame(fd, &Answer::default().encode(), &[0], Some(passed.as_fd()))
            }
            Reply::Nothing => Ok(()),
            Reply::HangUp => return Turn::Over,
        };
        if sent.is_ok() {
            Turn::Served
        } else {
            Turn::Over
        }
    }

    fn handle(
        &mut self,
        connection: &mut Connection,
        request: &Request,
        payload: &[u8],
        fds: [Option<OwnedFd>; 2],
    ) -> Reply {
        if let Request::Hello { version, token } = *request {
            return self.hello(connection, version, token);
        }
        if !connection.introduced {
            return Reply::HangUp;
        }
        match *request {
            Request::Hello { .. } => Reply::HangUp,
            Request::Send {
                socket,
                to_port,
                to_groups,
            } => self.send(connection, socket, (to_port, to_groups), payload, fds),
            Request::Pull { socket } => self.pull(connection, socket),
            Request::Prove { socket } => prove(connection, &socket, fds),
            Request::Netns { netns } => self.netns(connection, netns, fds),
            Request::Members {
                socket,
                native,
                join,
                leave,
            } => self.members(connection, socket, native, join, leave),
            Request::Read { netns, file } => match self.enter(connection, netns) {
                Some(entered) => Reply::Content(self.read_file(entered.id, file)),
                None => Reply::unknown_netns(),
            },
            Request::OpenWrite { netns, file } => match self.enter(connection, netns) {
                Some(entered) if entered.privileged => match self.open_writer(entered.id, file) {
                    Ok(fd) => Reply::Descriptor(fd),
                    Err(error) => Reply::error(error.raw_os_error().unwrap_or(libc::EIO)),
                },
                Some(_) => Reply::error(libc::EACCES),
                None => Reply::unknown_netns(),
            },
            Request::Write { netns, file } => match self.enter(connection, netns) {
                Some(entered) if entered.privileged => {
                    self.read_writers();
                    match self.write_file(entered.id, file, payload) {
                        Ok(()) => Reply::Answer(Answer::default()),
                        Err(WriteError::ReadOnly) => Reply::error(libc::EACCES),
                        Err(WriteError::Invalid) => Reply::error(libc::EINVAL),
                    }
                }
                Some(_) => Reply::error(libc::EACCES),
                None => Reply::unknown_netns(),
            },
            Request::SocketPolicy {
                socket,
                family,
                option_family,
                set,
            } => {
                let value = set.then_some(payload);
                self.socket_policy(connection, socket, (family, option_family), value)
            }
            Request::Show { socket, encap } => self.show(connection, socket, encap, fds),
            Request::Stat => Reply::document(self.statistics().to_string()),
            Request::Explain { netns } => self.explain(connection, netns, payload),
            Request::Faults => self.faults(connection, payload),
            Request::Capture { netns } => self.capture(connection, netns, payload),
            Request::Clock => self.clock_page(),
            Request::Word => Reply::Answer(Answer {
                first: u32::try_from(connection.index).unwrap_or(u32::MAX),
                ..Answer::default()
            }),
            Request::Wait { due } => self.clock_wait(connection, Some(due)),
            Request::Unwait => self.clock_wait(connection, None),
            Request::Timer { set } => self.clock_timer(connection, set, payload, fds),
            Request::Move => match self.order_clock(connection.id, payload) {
                Some(said) => Reply::document(said.to_string()),
                None => Reply::Nothing,
            },
            Request::Snapshot { netns } => self.snapshot(connection, netns),
            Request::Speaker { port } => match self.speaks_from(port) {
                true => Reply::Answer(Answer::default()),
                false => Reply::error(libc::ENOENT),
            },
        }
    }

    fn hello(&self, connection: &mut Connection, version: u32, token: [u8; 16]) -> Reply {
        if connection.introduced || version != VERSION {
            return Reply::HangUp;
        }
        match self.settings.owner {
            Owner::System => {
                connection.introduced = true;
                Reply::Answer(Answer::default())
            }
            Owner::Private { secret, .. } => {
                // All bytes are compared, so that time tells nothing.
                let differs = token
                    .iter()
                    .zip(secret.token)
                    .fold(0, |differs, (a, b)| differs | (a ^ b));
                if differs != 0 {
                    return Reply::HangUp;
                }
                connection.introduced = true;
                Reply::Content(secret.proof.to_vec())
            }
        }
    }

    fn members(
        &mut self,
        connection: &mut Connection,
        socket: Socket,
        native: u32,
        join: u32,
        leave: u32,
    ) -> Reply {
        let Some(entered) = self.enter(connection, socket.netns) else {
            return Reply::unknown_netns();
        };
        let may_join = entered.privileged && matches!(self.settings.owner, Owner::Private { .. });
        if join != 0 && !may_join {
            return Reply::error(libc::EPERM);
        }
        if !entered.privileged {
            // What it was a member of before it lost its rights has been told.
            return Reply::Answer(Answer::default());
        }
        let Some(instance) = self.instances.get_mut(&entered.id) else {
            return Reply::unknown_netns();
        };
        let kept = instance.set_member(
            socket.cookie,
            connection.id,
            socket.port,
            native,
            join,
            leave,
        );
        self.count_listeners();
        Reply::Answer(Answer {
            first: kept,
            ..Answer::default()
        })
    }

    fn socket_policy(
        &mut self,
        connection: &mut Connection,
        socket: Socket,
        (family, option_family): (u32, u32),
        value: Option<&[u8]>,
    ) -> Reply {
        let Some(entered) = self.enter(connection, socket.netns) else {
            return Reply::unknown_netns();
        };
        if !entered.privileged {
            return Reply::error(libc::EPERM);
        }
        let holder = (entered.id, socket.cookie);
        // Without a family the socket is about to be closed.
        let closed = value.is_none() && family == 0;
        if closed && !self.may_forget(entered.id, SocketKey(socket.cookie)) {
            connection.policies.retain(|&other| other != holder);
            self.arm();
            return Reply::Answer(Answer::default());
        }
        let number = |family: u32| u16::try_from(family).unwrap_or(u16::MAX);
        let result = self.emulator.set_socket_policy(
            self.clock.now(),
            entered.id,
            SocketKey(socket.cookie),
            number(family),
            number(option_family),
            value,
        );
        if let Err(errno) = result {
            return Reply::error(errno);
        }
        connection.policies.retain(|&other| other != holder);
        if value.is_some() {
            connection.policies.push(holder);
        } else {
            self.forget_own_sockets(|own| own.socket.key.0 == socket.cookie);
        }
        self.keep_belongings(connection, entered.id);
        Reply::Answer(Answer::default())
    }

    /// Takes away what a process had set through a connection.
    pub(super) fn end_belongings(&mut self, connection: u64, policies: &[(NetnsId, u64)]) {
        for &(id, cookie) in policies {
            let socket = SocketKey(cookie);
            if !self.may_forget(id, socket) {
                continue;
            }
            let now = self.clock.now();
            // Taking policies away does not fail.
            let _ = self.emulator.set_socket_policy(now, id, socket, 0, 0, None);
            self.keep_driver(id);
        }
        for id in self.end_shown(connection) {
            self.keep_driver(id);
        }
    }

    /// Whether that is the connection with a number.
    pub(super) fn is_connection(connection: &Option<Connection>, id: u64) -> bool {
        connection.as_ref().is_some_and(|it| it.id == id)
    }

    /// Sends a client an answer that it has been waiting for.
    pub(super) fn say(&self, index: usize, content: &[u8]) {
        if let Some(Some(connection)) = self.connections.get(index) {
            let fd = connection.fd.as_fd();
            // Of one that is gone the end will be heard.
            let _ = host::send_frame(fd, &Answer::default().encode(), content, None);
        }
    }

    /// Forgets a client, and what only it needed.
    fn end_connection(&mut self, connection: Connection) {
        if let Some(motion) = &mut self.motion {
            motion.forget(connection.id);
        }
        self.end_belongings(connection.id, &connection.policies);
        for entered in &connection.entered {
            let Some(instance) = self.instances.get(&entered.id) else {
                continue;
            };
            // Its sockets may live on in another process.
            let alive = if instance.has_members_of(connection.id) {
                self.listeners_in(instance)
            } else {
                None
            };
            if let Some(instance) = self.instances.get_mut(&entered.id) {
                instance.users.retain(|&user| user != connection.id);
                if instance.drop_members(connection.id, alive.as_deref()) {
                    self.count_listeners();
                }
            }
            self.release_if_unused(entered.id);
        }
        self.arm();
    }
}
