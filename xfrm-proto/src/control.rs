//! Frames between the shim and the daemon: one request, one answer, each a
//! record of an `AF_UNIX` `SOCK_SEQPACKET` connection, in host byte order.
//!
//! A frame is a fixed header and, for some kinds, a payload behind it (a
//! datagram, a file's content). File descriptors travel beside it
//! (`SCM_RIGHTS`). Decoding is total: any bytes give a frame or `None`, and the
//! daemon ends a connection that sent `None`.

mod address;

pub use address::{Address, Secret};

/// Version of this format; both sides must have the same.
pub const VERSION: u32 = 3;
/// Where the system's daemon listens.
pub const SYSTEM_PATH: &str = "/run/xfrmd/control";
/// The same as an abstract address, in every namespace where the daemon listens.
pub const SYSTEM_ABSTRACT: &str = "xfrmd";
/// The variable that names another daemon: see [`Address`].
pub const ENV_CONTROL: &str = "XFRMD_CONTROL";
/// `SO_MAX_PACING_RATE` of every socket that stands for a NETLINK_XFRM one: netlink has no use for
/// the option, and it survives dup, fork, exec and `SCM_RIGHTS`.
pub const SOCKET_MARK: u64 = 0x7866_726d_6421;
/// The datagram a shim puts into its own socket when the daemon died during a dump.
pub const DUMP_LOST: [u8; 16] = *b"xfrmd: dump lost";
/// The datagram that stands for events that did not fit (to sockets that get them one by one).
pub const EVENTS_LOST: [u8; 16] = *b"xfrmd: overrun!!";

/// What is behind every event of a private instance, in the same datagram: [`EVENT_MARK`] and a number of the
/// instance's own. All instances of a network namespace speak to the same groups; members drop by this what is
/// not their instance's, before it takes room, and cut it off what is.
pub const EVENT_TAIL_BYTES: usize = 12;
/// Begins it.
pub const EVENT_MARK: [u8; 8] = *b"xfrmd:ev";

/// Bytes of a request's header.
pub const REQUEST_BYTES: usize = 48;
/// Bytes of an answer's header.
pub const ANSWER_BYTES: usize = 24;
/// The largest frame; a datagram that does not fit goes as a file.
pub const LARGEST_FRAME: usize = 448 * 1024;
/// Bytes of each half of the shared secret.
pub const SECRET_BYTES: usize = 16;

/// A client's socket, as the daemon knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Socket {
    /// Its namespace (`SO_NETNS_COOKIE`), which is never used again.
    pub netns: u64,
    /// Itself (`SO_COOKIE`), never used again either.
    pub cookie: u64,
    /// Its port id, 0 while it has none.
    pub port: u32,
    /// The largest receive buffer it has offered.
    pub recv_bytes: u32,
    /// `NETLINK_CAP_ACK`.
    pub cap_ack: bool,
    /// `NETLINK_EXT_ACK`.
    pub ext_ack: bool,
}

/// A file that a namespace shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// `/proc/net/xfrm_stat`.
    Stat,
    /// `/proc/sys/net/core/xfrm_aevent_etime`.
    AeventEtime,
    /// `/proc/sys/net/core/xfrm_aevent_rseqth`.
    AeventRseqth,
    /// `/proc/sys/net/core/xfrm_larval_drop`.
    LarvalDrop,
    /// `/proc/sys/net/core/xfrm_acq_expires`.
    AcqExpires,
}

impl File {
    /// Every file, in wire order.
    pub const ALL: [Self; 5] = [
        Self::Stat,
        Self::AeventEtime,
        Self::AeventRseqth,
        Self::LarvalDrop,
        Self::AcqExpires,
    ];

    fn from_wire(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|&file| file as u32 == number)
    }

    /// The file of an absolute path, as a process names its own namespace's.
    #[must_use]
    pub fn of_path(path: &[u8]) -> Option<Self> {
        let rest = path.strip_prefix(b"/proc/")?;
        Some(match rest {
            b"net/xfrm_stat" | b"self/net/xfrm_stat" | b"thread-self/net/xfrm_stat" => Self::Stat,
            b"sys/net/core/xfrm_aevent_etime" => Self::AeventEtime,
            b"sys/net/core/xfrm_aevent_rseqth" => Self::AeventRseqth,
            b"sys/net/core/xfrm_larval_drop" => Self::LarvalDrop,
            b"sys/net/core/xfrm_acq_expires" => Self::AcqExpires,
            _ => return None,
        })
    }
}

/// What a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The first frame of a connection.
    Hello {
        /// [`VERSION`].
        version: u32,
        /// [`Secret::token`], zero for the system's daemon.
        token: [u8; SECRET_BYTES],
    },
    /// Use of a namespace; the answer gives the daemon's port ids in it. May carry one descriptor
    /// (the namespace) or two (sockets for the daemon to speak from, made in the namespace).
    Netns {
        /// `SO_NETNS_COOKIE`.
        netns: u64,
    },
    /// A datagram: the payload, or, where that is empty and the answer says `wants_file`, a
    /// descriptor of a file that holds it.
    Send {
        /// Whose.
        socket: Socket,
        /// The port id it is addressed to, 0 for the kernel.
        to_port: u32,
        /// The groups it is addressed to.
        to_groups: u32,
    },
    /// The next chunk of a dump.
    Pull {
        /// Whose.
        socket: Socket,
    },
    /// A socket (its descriptor comes with it) is this client's: clients without privileges must
    /// show it before they use it, or they could have others answered.
    Prove {
        /// Which.
        socket: Socket,
    },
    /// The groups of a socket.
    Members {
        /// Whose.
        socket: Socket,
        /// Groups that the host's kernel delivers.
        native: u32,
        /// Groups to join that the host's kernel has refused.
        join: u32,
        /// Groups to leave of those; a group that is joined and left needs the right to join.
        leave: u32,
    },
    /// A file's content, as the answer's payload.
    Read {
        /// `SO_NETNS_COOKIE`.
        netns: u64,
        /// Which.
        file: File,
    },
    /// A descriptor to write to a file.
    OpenWrite {
        /// `SO_NETNS_COOKIE`.
        netns: u64,
        /// Which.
        file: File,
    },
    /// New content of a file, as the payload.
    Write {
        /// `SO_NETNS_COOKIE`.
        netns: u64,
        /// Which.
        file: File,
    },
    /// `IP_XFRM_POLICY` or `IPV6_XFRM_POLICY` of a socket that is none of ours: the payload is the
    /// option's value.
    SocketPolicy {
        /// Which: only namespace and cookie count.
        socket: Socket,
        /// The socket's family.
        family: u32,
        /// The option's: `AF_INET` or `AF_INET6`.
        option_family: u32,
        /// Whether there is a value; without one the socket's policies go, as when it is closed.
        set: bool,
    },
    /// A socket that is none of ours, of a key manager, if the daemon carries packets: where the
    /// answer says `wants_proof`, to be repeated with its descriptor. It gets what its socket
    /// policies and options need of the host: a mark, a filter.
    Show {
        /// Which: only namespace and cookie count.
        socket: Socket,
        /// Whether ESP in UDP is to be taken out of what it receives (`UDP_ENCAP`).
        encap: bool,
    },
    /// Counters and table sizes as JSON, in the answer's payload.
    Stat,
    /// Whether the daemon speaks from that port in some namespace: ENOENT if not. For sockets that
    /// hear other namespaces' events (`NETLINK_LISTEN_ALL_NSID`).
    Speaker {
        /// The port id.
        port: u32,
    },
    /// What would become of a packet: the question as JSON in the payload, the answer likewise.
    Explain {
        /// `SO_NETNS_COOKIE`.
        netns: u64,
    },
    /// Packets of a namespace: which, as JSON in the payload. The answer brings a descriptor from
    /// which they can be read.
    Capture {
        /// `SO_NETNS_COOKIE`.
        netns: u64,
    },
    /// The page of the virtual clock ([`crate::clock::Page`]), as a descriptor; ENOENT if there is none.
    Clock,
    /// The number of this connection's word in that page.
    Word,
    /// Something waits for a time. There is no answer before that has come; another wait of the same
    /// connection takes this one's place.
    Wait {
        /// When, as boot time in nanoseconds.
        due: u64,
    },
    /// Nothing waits any more. There is no answer.
    Unwait,
    /// A timer of this process is set, to the [`crate::clock::TimerSetting`] in the payload, or only asked
    /// about; what it was is the answer's payload. A descriptor's timer comes with the descriptor, where the
    /// answer says `wants_file`.
    Timer {
        /// Whether it is set.
        set: bool,
    },
    /// The virtual clock is moved, as JSON in the payload says; the answer's comes when it has been.
    Move,
    /// All SAs and policies of a namespace at one moment: the wall-clock second as eight bytes, then
    /// messages as dumps have them.
    Snapshot {
        /// `SO_NETNS_COOKIE`.
        netns: u64,
    },
    /// Faults on purpose: what is wanted as JSON in the payload; what there is then, likewise.
    Faults,
}

const CAP_ACK: u32 = 1;
const EXT_ACK: u32 = 2;

impl Request {
    /// The wire form of the header.
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_BYTES] {
        match *self {
            Self::Hello { version, token } => {
                let mut out = header(0, &Socket::default(), [version, 0, 0]);
                if let Some(slot) = out.get_mut(8..8 + SECRET_BYTES) {
                    slot.copy_from_slice(&token);
                }
                out
            }
            Self::Netns { netns } => header(1, &in_netns(netns), [0; 3]),
            Self::Send {
                socket,
                to_port,
                to_groups,
            } => header(2, &socket, [to_port, to_groups, 0]),
            Self::Pull { socket } => header(3, &socket, [0; 3]),
            Self::Members {
                socket,
                native,
                join,
                leave,
            } => header(4, &socket, [native, join, leave]),
            Self::Read { netns, file } => header(5, &in_netns(netns), [file as u32, 0, 0]),
            Self::OpenWrite { netns, file } => header(6, &in_netns(netns), [file as u32, 0, 0]),
            Self::Write { netns, file } => header(7, &in_netns(netns), [file as u32, 0, 0]),
            Self::SocketPolicy {
                socket,
                family,
                option_family,
                set,
            } => header(8, &socket, [family, option_family, set.into()]),
            Self::Prove { socket } => header(10, &socket, [0; 3]),
            Self::Show { socket, encap } => header(11, &socket, [encap.into(), 0, 0]),
            Self::Stat => header(9, &Socket::default(), [0; 3]),
            Self::Explain { netns } => header(13, &in_netns(netns), [0; 3]),
            Self::Capture { netns } => header(14, &in_netns(netns), [0; 3]),
            Self::Faults => header(30, &Socket::default(), [0; 3]),
            Self::Speaker { port } => header(12, &Socket::default(), [port, 0, 0]),
            Self::Clock => header(15, &Socket::default(), [0; 3]),
            Self::Word => header(16, &Socket::default(), [0; 3]),
            Self::Wait { due } => header(17, &in_netns(due), [0; 3]),
            Self::Unwait => header(18, &Socket::default(), [0; 3]),
            Self::Timer { set } => header(19, &Socket::default(), [set.into(), 0, 0]),
            Self::Move => header(20, &Socket::default(), [0; 3]),
            Self::Snapshot { netns } => header(21, &in_netns(netns), [0; 3]),
        }
    }

    /// Reads a frame: the request and its payload.
    #[must_use]
    pub fn decode(frame: &[u8]) -> Option<(Self, &[u8])> {
        let (bytes, payload) = frame.split_first_chunk::<REQUEST_BYTES>()?;
        let word = |at: usize| -> Option<u32> {
            Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
        };
        let long = |at: usize| -> Option<u64> {
            Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
        };
        let flags = word(4)?;
        let netns = long(8)?;
        let socket = Socket {
            netns,
            cookie: long(16)?,
            port: word(24)?,
            recv_bytes: word(28)?,
            cap_ack: flags & CAP_ACK != 0,
            ext_ack: flags & EXT_ACK != 0,
        };
        let [a, b, c] = [word(32)?, word(36)?, word(40)?];
        let request = match word(0)? {
            0 => Self::Hello {
                version: a,
                token: bytes.get(8..8 + SECRET_BYTES)?.try_into().ok()?,
            },
            1 => Self::Netns { netns },
            2 => Self::Send {
                socket,
                to_port: a,
                to_groups: b,
            },
            3 => Self::Pull { socket },
            4 => Self::Members {
                socket,
                native: a,
                join: b,
                leave: c,
            },
            5 => Self::Read {
                netns,
                file: File::from_wire(a)?,
            },
            6 => Self::OpenWrite {
                netns,
                file: File::from_wire(a)?,
            },
            7 => Self::Write {
                netns,
                file: File::from_wire(a)?,
            },
            8 => Self::SocketPolicy {
                socket,
                family: a,
                option_family: b,
                set: c != 0,
            },
            9 => Self::Stat,
            10 => Self::Prove { socket },
            11 => Self::Show {
                socket,
                encap: a != 0,
            },
            12 => Self::Speaker { port: a },
            13 => Self::Explain { netns },
            14 => Self::Capture { netns },
            15 => Self::Clock,
            16 => Self::Word,
            17 => Self::Wait { due: netns },
            18 => Self::Unwait,
            19 => Self::Timer { set: a != 0 },
            20 => Self::Move,
            21 => Self::Snapshot { netns },
            30 => Self::Faults,
            _ => return None,
        };
        Some((request, payload))
    }
}

fn in_netns(netns: u64) -> Socket {
    Socket {
        netns,
        ..Socket::default()
    }
}

fn header(kind: u32, socket: &Socket, args: [u32; 3]) -> [u8; REQUEST_BYTES] {
    let mut flags = 0;
    if socket.cap_ack {
        flags |= CAP_ACK;
    }
    if socket.ext_ack {
        flags |= EXT_ACK;
    }
    let [a, b, c] = args;
    let words: [[u8; 8]; 6] = [
        pair(kind, flags),
        socket.netns.to_ne_bytes(),
        socket.cookie.to_ne_bytes(),
        pair(socket.port, socket.recv_bytes),
        pair(a, b),
        pair(c, 0),
    ];
    let mut out = [0; REQUEST_BYTES];
    for (slot, word) in out.chunks_exact_mut(8).zip(words) {
        slot.copy_from_slice(&word);
    }
    out
}

fn pair(first: u32, second: u32) -> [u8; 8] {
    let [a, b, c, d] = first.to_ne_bytes();
    let [e, f, g, h] = second.to_ne_bytes();
    [a, b, c, d, e, f, g, h]
}

/// The daemon's answer; what the words mean depends on the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Positive errno of the call, 0 for success.
    pub errno: u32,
    /// The socket's dump goes on: pull the next chunk after the next receive.
    pub dumping: bool,
    /// Something for the socket did not fit: its next receive fails with ENOBUFS.
    pub overrun: bool,
    /// The daemon does not know the namespace (again): send [`Request::Netns`] and repeat.
    pub unknown_netns: bool,
    /// Send [`Request::Prove`] and repeat. [`Request::Show`]: repeat it with the descriptor.
    pub wants_proof: bool,
    /// [`Request::Send`] without payload: repeat it with the file's descriptor.
    pub wants_file: bool,
    /// [`Request::Netns`]: repeat it with the namespace's descriptor.
    pub wants_netns: bool,
    /// [`Request::Netns`]: repeat it with two sockets.
    pub wants_sockets: bool,
    /// [`Request::Netns`]: where replies and multicasts come from. [`Request::Members`]: the groups
    /// that the daemon delivers one by one.
    pub first: u32,
    /// [`Request::Netns`]: where events for such groups come from.
    pub second: u32,
}

impl Answer {
    /// An errno.
    #[must_use]
    pub fn error(errno: u32) -> Self {
        Self {
            errno,
            ..Self::default()
        }
    }

    /// Whether the client's next frame brings descriptors; no other does.
    #[must_use]
    pub fn wants_descriptors(&self) -> bool {
        self.wants_netns || self.wants_sockets || self.wants_proof || self.wants_file
    }

    /// The wire form of the header.
    #[must_use]
    pub fn encode(&self) -> [u8; ANSWER_BYTES] {
        let flags = u32::from(self.dumping)
            | u32::from(self.overrun) << 1
            | u32::from(self.unknown_netns) << 2
            | u32::from(self.wants_netns) << 3
            | u32::from(self.wants_sockets) << 4
            | u32::from(self.wants_proof) << 5
            | u32::from(self.wants_file) << 6;
        let words = [
            pair(self.errno, flags),
            pair(self.first, self.second),
            [0; 8],
        ];
        let mut out = [0; ANSWER_BYTES];
        for (slot, word) in out.chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word);
        }
        out
    }

    /// Reads a frame: the answer and its payload.
    #[must_use]
    pub fn decode(frame: &[u8]) -> Option<(Self, &[u8])> {
        let (bytes, payload) = frame.split_first_chunk::<ANSWER_BYTES>()?;
        let word = |at: usize| -> Option<u32> {
            Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
        };
        let flags = word(4)?;
        let answer = Self {
            errno: word(0)?,
            dumping: flags & 1 != 0,
            overrun: flags & 2 != 0,
            unknown_netns: flags & 4 != 0,
            wants_netns: flags & 8 != 0,
            wants_sockets: flags & 16 != 0,
            wants_proof: flags & 32 != 0,
            wants_file: flags & 64 != 0,
            first: word(8)?,
            second: word(12)?,
        };
        Some((answer, payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_wire() {
        let socket = Socket {
            netns: 1 << 40,
            cookie: 7,
            port: 8,
            recv_bytes: 9,
            cap_ack: true,
            ext_ack: false,
        };
        let requests = [
            Request::Hello {
                version: VERSION,
                token: [5; SECRET_BYTES],
            },
            Request::Netns { netns: 3 },
            Request::Send {
                socket,
                to_port: 1,
                to_groups: 2,
            },
            Request::Pull { socket },
            Request::Prove { socket },
            Request::Members {
                socket,
                native: 1,
                join: 2,
                leave: 4,
            },
            Request::Read {
                netns: 1,
                file: File::Stat,
            },
            Request::OpenWrite {
                netns: 1,
                file: File::AcqExpires,
            },
            Request::Write {
                netns: 1,
                file: File::LarvalDrop,
            },
            Request::SocketPolicy {
                socket,
                family: 10,
                option_family: 2,
                set: true,
            },
            Request::Show {
                socket,
                encap: true,
            },
            Request::Stat,
            Request::Speaker { port: 9 },
            Request::Explain { netns: 7 },
            Request::Capture { netns: 8 },
            Request::Clock,
            Request::Word,
            Request::Wait { due: u64::MAX },
            Request::Unwait,
            Request::Timer { set: true },
            Request::Move,
            Request::Snapshot { netns: 9 },
            Request::Faults,
        ];
        for request in requests {
            let mut frame = request.encode().to_vec();
            frame.extend_from_slice(b"rest");
            assert_eq!(Request::decode(&frame), Some((request, &b"rest"[..])));
        }
        assert_eq!(Request::decode(&[0xff; REQUEST_BYTES]), None);
        assert_eq!(Request::decode(&[0; REQUEST_BYTES - 1]), None);
    }

    #[test]
    fn answers_survive_the_wire() {
        let answer = Answer {
            errno: 11,
            dumping: true,
            overrun: false,
            unknown_netns: true,
            wants_netns: false,
            wants_sockets: true,
            wants_proof: true,
            wants_file: true,
            first: 1,
            second: 2,
        };
        assert_eq!(Answer::decode(&answer.encode()), Some((answer, &b""[..])));
    }

    #[test]
    fn addresses_survive_the_environment() {
        let address = Address {
            path: b"/tmp/x/control",
            abstract_name: b"xfrmd-1",
            pid: 42,
            secret: Some(Secret {
                token: [0xab; SECRET_BYTES],
                proof: [0x01; SECRET_BYTES],
            }),
        };
        let text = address.to_string();
        assert_eq!(Address::parse(text.as_bytes()), Some(address));
        let bare = Address::parse(b"/run/xfrmd/control").unwrap();
        assert_eq!((bare.path, bare.secret), (SYSTEM_PATH.as_bytes(), None));
        assert_eq!(Address::parse(b"relative"), None);
        assert_eq!(Address::parse(b"/x|y|z"), None);
    }

    #[test]
    fn files_have_one_name_for_each_way_to_the_own_namespace() {
        assert_eq!(File::of_path(b"/proc/self/net/xfrm_stat"), Some(File::Stat));
        assert_eq!(
            File::of_path(b"/proc/sys/net/core/xfrm_acq_expires"),
            Some(File::AcqExpires)
        );
        assert_eq!(File::of_path(b"/proc/1/net/xfrm_stat"), None);
    }
}
