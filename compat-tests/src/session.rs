//! What a scenario can do, and the transcript of it.

use std::time::Duration;

use xfrm_proto::align4;
use xfrm_proto::consts::*;
use xfrm_proto::decode::kind_name;
use xfrm_proto::reply::messages;
use xfrm_proto::uapi::{NlMsgHdr, Pod, UserSaInfo};
use xfrmd::recording::normalize::Normalizer;

use crate::message::Message;
use crate::subject::{Packets, Received, Socket, SocketOptions, Subject, UdpSocket};
use crate::transcript::Transcript;

/// A buffer that everything fits.
pub const LARGE_BUFFER: usize = 65536;
/// How late a sleeper may wake.
const MOST_LATE: Duration = Duration::from_millis(100);
/// How long steps without a wait between them may take: all begin within one second.
const LONGEST_MOMENT: Duration = Duration::from_millis(800);

/// How a scenario opens a socket.
#[derive(Clone, Debug)]
pub struct Open {
    options: SocketOptions,
}

impl Open {
    /// Both acknowledgement options, no groups, privileged.
    #[must_use]
    pub fn new() -> Self {
        Self {
            options: SocketOptions {
                port: 0,
                groups: 0,
                cap_ack: true,
                ext_ack: true,
                privileged: true,
            },
        }
    }

    /// Neither `NETLINK_CAP_ACK` nor `NETLINK_EXT_ACK`.
    #[must_use]
    pub fn plain(mut self) -> Self {
        self.options.cap_ack = false;
        self.options.ext_ack = false;
        self
    }

    /// Sets both acknowledgement options.
    #[must_use]
    pub fn acks(mut self, cap_ack: bool, ext_ack: bool) -> Self {
        self.options.cap_ack = cap_ack;
        self.options.ext_ack = ext_ack;
        self
    }

    /// Bound to a mask of groups.
    #[must_use]
    pub fn groups(mut self, mask: u32) -> Self {
        self.options.groups = mask;
        self
    }

    /// Bound to all eight groups of NETLINK_XFRM.
    #[must_use]
    pub fn all_groups(self) -> Self {
        self.groups(0xff)
    }

    /// Without `CAP_NET_ADMIN`.
    #[must_use]
    pub fn unprivileged(mut self) -> Self {
        self.options.privileged = false;
        self
    }
}

impl Default for Open {
    fn default() -> Self {
        Self::new()
    }
}

/// The answer to a request: all messages that its own socket received.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Whole messages, as they came.
    pub messages: Vec<Vec<u8>>,
}

impl Answer {
    /// The errno of the acknowledgement (0 for success), if there was one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.messages.iter().find_map(|message| {
            let header = NlMsgHdr::read(message)?;
            (header.kind == NLMSG_ERROR)
                .then(|| -i32::from_ne_bytes(message[16..20].try_into().unwrap()))
        })
    }

    /// Whether it was acknowledged.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.errno() == Some(0)
    }

    /// The first message of type `kind`: its fixed structure.
    #[must_use]
    pub fn body<T: Pod>(&self, kind: u16) -> Option<T> {
        self.messages.iter().find_map(|message| {
            let header = NlMsgHdr::read(message)?;
            (header.kind == kind).then(|| T::read(&message[NLMSG_HDRLEN..]))?
        })
    }
}

/// A running scenario.
pub struct Session<'s> {
    subject: &'s mut dyn Subject,
    begin: Duration,
    seconds_matter: bool,
    /// When the last wait ended.
    woken: Duration,
    late: bool,
    normalizer: Normalizer,
    transcript: Transcript,
    sockets: Vec<(Socket, String, bool)>,
    next_seq: u32,
}

impl<'s> Session<'s> {
    /// A scenario that begins now.
    #[must_use]
    pub fn new(subject: &'s mut dyn Subject, seconds_matter: bool) -> Self {
        let begin = subject.wall();
        Self {
            subject,
            begin,
            seconds_matter,
            woken: Duration::ZERO,
            late: false,
            normalizer: Normalizer::new(begin.as_secs(), seconds_matter),
            transcript: Transcript::default(),
            sockets: Vec::new(),
            next_seq: 0,
        }
    }

    /// Ends the scenario.
    #[must_use]
    pub fn finish(self) -> String {
        for index in 0..self.sockets.len() {
            if self.sockets[index].2 {
                self.subject.close(self.sockets[index].0);
            }
        }
        self.transcript.into_text()
    }

    /// Leaves the sizes of hash tables out of the transcript.
    pub fn ignore_hash_sizes(&mut self) {
        self.normalizer.ignores_hash_sizes = true;
    }

    /// Says what comes.
    pub fn note(&mut self, text: impl AsRef<str>) {
        self.transcript.note(text.as_ref());
    }

    /// Opens a socket that the transcript calls `name`; its port id is 1001, 1002, ...
    ///
    /// # Panics
    /// When it cannot be opened.
    pub fn open(&mut self, name: &str, how: Open) -> Socket {
        self.try_open(name, how).expect("a socket")
    }

    /// Opens a socket, or says in the transcript why not.
    ///
    /// # Errors
    /// The errno.
    pub fn try_open(&mut self, name: &str, how: Open) -> Result<Socket, i32> {
        let mut options = how.options;
        options.port = 1001 + self.sockets.len() as u32;
        let result = self.subject.open(&options);
        if let Err(errno) = result {
            self.transcript.act(name, "open", Err(errno));
        }
        let socket = result?;
        self.sockets.push((socket, name.to_owned(), true));
        Ok(socket)
    }

    /// The port id of a socket.
    #[must_use]
    pub fn port(&self, socket: Socket) -> u32 {
        let index = self.sockets.iter().position(|entry| entry.0 == socket);
        1001 + index.unwrap() as u32
    }

    /// Closes a socket.
    pub fn close(&mut self, socket: Socket) {
        self.subject.close(socket);
        let entry = self.sockets.iter_mut().find(|entry| entry.0 == socket);
        entry.unwrap().2 = false;
    }

    /// Joins or leaves a group.
    pub fn set_member(&mut self, socket: Socket, group: u32, member: bool) {
        let result = self.subject.set_member(socket, group, member);
        let verb = if member { "join" } else { "leave" };
        let name = self.name(socket);
        self.transcript
            .act(&name, &format!("{verb} {group}"), result);
    }

    /// Sends one request; then everything that any socket has received is taken.
    pub fn request(&mut self, socket: Socket, label: &str, message: Message) -> Answer {
        self.send(socket, label, vec![message]);
        self.drain(socket)
    }

    /// Sends several messages in one datagram, and takes what comes.
    pub fn datagram(&mut self, socket: Socket, label: &str, messages: Vec<Message>) -> Answer {
        self.send(socket, label, messages);
        self.drain(socket)
    }

    /// Sends messages in one datagram, and leaves what comes in the queues.
    pub fn send(&mut self, socket: Socket, label: &str, messages: Vec<Message>) {
        let mut bytes = Vec::new();
        for mut message in messages {
            message.number(&mut self.next_seq);
            bytes.resize(align4(bytes.len()), 0);
            bytes.extend_from_slice(&message.bytes());
        }
        self.send_bytes(socket, label, &bytes);
    }

    /// Sends bytes, and leaves what comes in the queues.
    pub fn send_bytes(&mut self, socket: Socket, label: &str, bytes: &[u8]) {
        let result = self.subject.send(socket, bytes);
        let mut kinds: Vec<_> = messages(bytes)
            .map(|(header, _)| kind_name(header.kind))
            .collect();
        let count = kinds.len();
        if count > 4 {
            kinds.truncate(1);
            kinds.push(format!("{} more", count - 1));
        }
        let kinds = kinds.join("+");
        let name = self.name(socket);
        self.transcript
            .act(&name, &format!("{kinds} {label}"), result);
    }

    /// Takes everything that any socket has received; returns what `own` has.
    pub fn drain(&mut self, own: Socket) -> Answer {
        let mut answer = Answer::default();
        for index in 0..self.sockets.len() {
            let (socket, _, open) = self.sockets[index];
            if !open {
                continue;
            }
            while let Some(received) = self.recv(socket, LARGE_BUFFER) {
                if socket == own {
                    let whole = messages(&received.bytes).map(|(_, message)| message.to_vec());
                    answer.messages.extend(whole);
                }
            }
        }
        answer
    }

    /// Takes everything that any socket has received into buffers of `buffer_bytes`.
    pub fn drain_with(&mut self, buffer_bytes: usize) {
        for index in 0..self.sockets.len() {
            let (socket, _, open) = self.sockets[index];
            while open && self.recv(socket, buffer_bytes).is_some() {}
        }
    }

    /// Takes everything that any socket has received, and leaves it out of the transcript.
    pub fn drain_silently(&mut self) {
        for index in 0..self.sockets.len() {
            let (socket, _, open) = self.sockets[index];
            while open && self.subject.recv(socket, LARGE_BUFFER).is_ok() {}
        }
    }

    /// Takes one datagram into a buffer of `buffer_bytes`; `None` when there is none.
    pub fn recv(&mut self, socket: Socket, buffer_bytes: usize) -> Option<Received> {
        let name = self.name(socket);
        match self.subject.recv(socket, buffer_bytes) {
            Ok(received) => {
                let bytes = self.normalizer.datagram(&received.bytes, received.groups);
                self.transcript
                    .datagram(&name, received.groups, received.sender, &bytes);
                if received.full_len > received.bytes.len() {
                    self.transcript
                        .note(&format!("truncated, was {}", received.full_len));
                }
                Some(received)
            }
            Err(EAGAIN) => None,
            Err(errno) => {
                self.transcript.recv_error(&name, errno);
                None
            }
        }
    }

    /// Sends an ALLOCSPI whose SPI is drawn at random; returns that SPI.
    pub fn alloc_spi(&mut self, socket: Socket, label: &str, message: Message) -> u32 {
        self.normalizer.learns_spis = true;
        let answer = self.request(socket, label, message);
        self.normalizer.learns_spis = false;
        let info: Option<UserSaInfo> = answer.body(XFRM_MSG_NEWSA);
        info.map_or(0, |info| info.id.spi.get())
    }

    /// Sends a request; only its errno comes back, nothing goes into the transcript.
    pub fn request_for_errno(&mut self, socket: Socket, mut message: Message) -> i32 {
        message.number(&mut self.next_seq);
        let result = self.subject.send(socket, &message.bytes());
        let mut answer = Answer::default();
        while let Ok(received) = self.subject.recv(socket, LARGE_BUFFER) {
            let whole = messages(&received.bytes).map(|(_, message)| message.to_vec());
            answer.messages.extend(whole);
        }
        result.err().or(answer.errno()).unwrap_or(-1)
    }

    /// Sends a request and takes only what its own socket gets.
    pub fn request_quietly(&mut self, socket: Socket, label: &str, message: Message) {
        self.send(socket, label, vec![message]);
        while self.recv(socket, LARGE_BUFFER).is_some() {}
    }

    /// Takes all datagrams of a socket; only their sizes go into the transcript, and what is not
    /// part of a dump's body.
    pub fn recv_lengths(&mut self, socket: Socket, buffer_bytes: usize) {
        self.recv_brief(socket, buffer_bytes, |_| String::new());
    }

    /// Takes all datagrams of a socket; of each SA only its SPI goes into the transcript.
    pub fn recv_spis(&mut self, socket: Socket, buffer_bytes: usize) {
        self.recv_brief(socket, buffer_bytes, |message| {
            let info = UserSaInfo::read(&message[NLMSG_HDRLEN..]);
            info.map_or_else(String::new, |info| format!(" {:#x}", info.id.spi))
        });
    }

    fn recv_brief(&mut self, socket: Socket, buffer_bytes: usize, brief: fn(&[u8]) -> String) {
        let name = self.name(socket);
        while let Ok(received) = self.subject.recv(socket, buffer_bytes) {
            let whole: Vec<_> = messages(&received.bytes).collect();
            let in_dump = whole
                .iter()
                .all(|(header, _)| header.kind >= NLMSG_MIN_TYPE);
            if !in_dump {
                let bytes = self.normalizer.datagram(&received.bytes, received.groups);
                self.transcript
                    .datagram(&name, received.groups, received.sender, &bytes);
                continue;
            }
            let briefs: String = whole.iter().map(|(_, message)| brief(message)).collect();
            let text = format!(
                "{} messages, {} of {} bytes{briefs}",
                whole.len(),
                received.bytes.len(),
                received.full_len
            );
            self.transcript.note(&format!("{name} receives {text}"));
        }
    }

    /// Opens a UDP socket.
    ///
    /// # Panics
    /// When it cannot be opened.
    pub fn open_udp(&mut self, family: u16) -> UdpSocket {
        self.subject.open_udp(family).expect("a UDP socket")
    }

    /// Closes a UDP socket.
    pub fn close_udp(&mut self, socket: UdpSocket) {
        self.subject.close_udp(socket);
    }

    /// Sets or clears a UDP socket's own policies.
    pub fn set_socket_policy(
        &mut self,
        socket: UdpSocket,
        label: &str,
        option_family: u16,
        value: Option<&[u8]>,
    ) {
        let result = self.subject.set_socket_policy(socket, option_family, value);
        let name = format!("udp {}", socket.0);
        self.transcript.act(
            &name,
            &format!("option of {option_family}: {label}"),
            result,
        );
    }

    /// Sets `net.core.NAME`.
    pub fn set_sysctl(&mut self, name: &str, value: u32) {
        let result = self.subject.set_sysctl(name, value);
        self.transcript
            .act("sysctl", &format!("{name} = {value}"), result);
    }

    /// Sets `net.core.NAME`; nothing goes into the transcript.
    pub(crate) fn set_sysctl_silently(&mut self, name: &str, value: u32) {
        let _ = self.subject.set_sysctl(name, value);
    }

    /// Lets time pass, then takes everything that any socket has received.
    pub fn sleep(&mut self, time: Duration) {
        self.transcript
            .note(&format!("{} ms later", time.as_millis()));
        self.sleep_silently(time);
    }

    fn sleep_silently(&mut self, time: Duration) {
        self.subject.sleep(time);
        for index in 0..self.sockets.len() {
            let (socket, _, open) = self.sockets[index];
            while open && self.recv(socket, LARGE_BUFFER).is_some() {}
        }
    }

    /// How long ago the scenario began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.subject.wall().saturating_sub(self.begin)
    }

    /// Lets time pass until `end` after the scenario's begin, then takes what has come.
    pub fn sleep_until(&mut self, end: Duration) {
        self.transcript.note(&format!("at {} ms", end.as_millis()));
        let now = self.elapsed();
        self.subject.sleep(end.saturating_sub(now));
        self.late |= now > end || self.elapsed() > end + MOST_LATE;
        self.woken = end;
        self.sleep_silently(Duration::ZERO);
    }

    /// Notes if steps that belong to one moment took too long, where seconds count.
    pub(crate) fn expect_prompt(&mut self) {
        self.late |= self.seconds_matter && self.elapsed() > self.woken + LONGEST_MOMENT;
    }

    /// Whether the machine was too busy to wake a sleeper in time: then the transcript may be wrong.
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.late
    }

    /// Sends a request whose answer is wanted, not its place in the transcript: the messages of
    /// the answer, renamed.
    pub(crate) fn fetch(&mut self, socket: Socket, mut message: Message) -> Vec<Vec<u8>> {
        message.number(&mut self.next_seq);
        let mut found = Vec::new();
        if self.subject.send(socket, &message.bytes()).is_ok() {
            while let Ok(received) = self.subject.recv(socket, LARGE_BUFFER) {
                let bytes = self.normalizer.datagram(&received.bytes, received.groups);
                found.extend(messages(&bytes).map(|(_, message)| message.to_vec()));
            }
        }
        found
    }

    /// A line of the transcript.
    pub(crate) fn line(&mut self, text: &str) {
        self.transcript.line(text);
    }

    /// The subject's links.
    ///
    /// # Panics
    /// When it has none.
    pub(crate) fn packets(&mut self) -> &mut dyn Packets {
        self.subject.packets().expect("a subject with links")
    }

    fn name(&self, socket: Socket) -> String {
        let entry = self.sockets.iter().find(|entry| entry.0 == socket);
        entry.unwrap().1.clone()
    }
}

const EAGAIN: i32 = errno::EAGAIN;
