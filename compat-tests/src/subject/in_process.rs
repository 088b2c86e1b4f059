//! The emulator, driven directly, with a virtual clock.
//!
//! Sockets are modelled as queues with groups; dumps are pulled as
//! `netlink_recvmsg` pulls them.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use dataplane::netns::{Context, Limits};
use dataplane::spd::SocketKey;
use dataplane::{BootNanos, Entropy, Netns, Now, Profile, SeededEntropy, WallSecs};
use xfrm_proto::consts::errno;
use xfrm_proto::extack::AckOptions;
use xfrmd::emulator::{Destination, Emulator, Inputs, NetnsId, Peer};
use xfrmd::store::{Found, Store};

use super::host::ModelHost;
use super::packets::{Datagram as UdpDatagram, Link, Packets, UdpOptions};
use super::{Errno, Received, Socket, SocketOptions, Subject, UdpSocket};

const EPOCH: u64 = 1_700_000_000;

struct Queue {
    options: SocketOptions,
    groups: u32,
    recv_bytes: usize,
    open: bool,
    datagrams: VecDeque<(Vec<u8>, u32)>,
}

/// The emulator in this process.
pub struct InProcess {
    emulator: Emulator,
    netns: NetnsId,
    entropy: SeededEntropy,
    clock: Duration,
    sockets: Vec<Queue>,
    udp_families: Vec<u16>,
    host: ModelHost,
    deaths: Option<Deaths>,
}

/// When it is killed, and what is left of it then.
struct Deaths {
    profile: &'static Profile,
    state: OwnedFd,
    entropy: SeededEntropy,
    count: u32,
}

/// Each leaves a mapping behind.
const MOST_DEATHS: u32 = 6;

impl InProcess {
    /// One that is killed and goes on from what it left, between steps that `seed` chooses.
    #[must_use]
    pub fn mortal(profile: &'static Profile, seed: u64) -> Self {
        let mut subject = Self::new(profile);
        let state = Store::file().expect("memory");
        let copy = state.try_clone().expect("a descriptor");
        let (store, _) = Store::open(copy, profile).expect("an empty store");
        subject.emulator.keep_on(Box::new(store));
        subject.deaths = Some(Deaths {
            profile,
            state,
            entropy: SeededEntropy::new(seed),
            count: 0,
        });
        subject
    }

    /// How often it was killed.
    #[must_use]
    pub fn deaths(&self) -> u32 {
        self.deaths.as_ref().map_or(0, |deaths| deaths.count)
    }

    fn perhaps_die(&mut self) {
        let ports = self.sockets.iter().map(|queue| queue.options.port);
        let dumps = ports
            .filter(|&port| self.emulator.is_dumping(self.netns, port))
            .count();
        let Some(deaths) = &mut self.deaths else {
            return;
        };
        // A dump under way ends with the daemon.
        if dumps > 0 || deaths.count >= MOST_DEATHS || deaths.entropy.below(6) != 0 {
            return;
        }
        deaths.count += 1;
        let copy = deaths.state.try_clone().expect("a descriptor");
        let (store, found) = Store::open(copy, deaths.profile).expect("its own store");
        let records: Vec<_> = found.iter().map(Found::kept).collect();
        self.emulator = Emulator::recall(deaths.profile, Limits::default(), &records)
            .expect("what it had kept itself");
        self.emulator.keep_on(Box::new(store));
        self.host.forget();
        self.tell_listeners();
    }
}

impl InProcess {
    /// An emulator that behaves as `profile` says.
    #[must_use]
    pub fn new(profile: &'static Profile) -> Self {
        let mut emulator = Emulator::new(profile, Limits::default());
        let netns = emulator.create_netns();
        Self {
            emulator,
            netns,
            entropy: SeededEntropy::new(1),
            clock: Duration::from_millis(100),
            sockets: Vec::new(),
            udp_families: Vec::new(),
            host: ModelHost::new(),
            deaths: None,
        }
    }

    fn now(&self) -> Now {
        Now {
            boot: BootNanos(self.clock.as_nanos() as u64),
            real: WallSecs(EPOCH + self.clock.as_secs()),
        }
    }

    fn peer(&self, socket: Socket) -> Peer {
        let queue = &self.sockets[socket.0];
        Peer {
            netns: self.netns,
            port: queue.options.port,
            options: AckOptions {
                cap_ack: queue.options.cap_ack,
                ext_ack: queue.options.ext_ack,
            },
            privileged: queue.options.privileged,
            recv_bytes: queue.recv_bytes,
        }
    }

    fn deliver(&mut self) {
        while let Some(datagram) = self.emulator.poll_datagram() {
            for queue in self.sockets.iter_mut().filter(|queue| queue.open) {
                let groups = match datagram.to {
                    Destination::Port(port) if port == queue.options.port => 0,
                    Destination::Group(group) if queue.groups & (1 << (group - 1)) != 0 => {
                        1 << (group - 1)
                    }
                    _ => continue,
                };
                queue.datagrams.push_back((datagram.bytes.to_vec(), groups));
            }
        }
    }

    fn tell_listeners(&mut self) {
        for group in 1..=32 {
            let listens = |queue: &&Queue| queue.open && queue.groups & (1 << (group - 1)) != 0;
            let count = self.sockets.iter().filter(listens).count();
            self.emulator.set_listeners(self.netns, group, count as u32);
        }
    }
}

impl InProcess {
    /// Lets packets pass, and delivers what they cause.
    fn pass<T>(
        &mut self,
        act: impl FnOnce(&mut ModelHost, &mut Netns, &mut Context<'_>) -> T,
    ) -> T {
        self.perhaps_die();
        let now = self.now();
        let inputs = Inputs {
            now,
            entropy: &mut self.entropy,
        };
        let host = &mut self.host;
        let passed = self
            .emulator
            .with_packets(inputs, self.netns, |netns, cx| act(host, netns, cx));
        self.deliver();
        passed.expect("the subject's own namespace")
    }
}

impl Packets for InProcess {
    fn prepare(&mut self) {}

    fn inject(&mut self, link: Link, packet: &[u8]) {
        self.pass(|host, netns, cx| host.inject(netns, cx, link, packet));
    }

    fn take(&mut self, link: Link) -> Option<Vec<u8>> {
        self.host.take(link)
    }

    fn configure_udp(&mut self, socket: UdpSocket, options: &UdpOptions) -> Result<(), Errno> {
        self.host.configure_udp(socket.0, options);
        Ok(())
    }

    fn send_udp(&mut self, socket: UdpSocket, to: SocketAddr, payload: &[u8]) -> Result<(), Errno> {
        self.pass(|host, netns, cx| host.send_udp(netns, cx, socket.0, to, payload))
    }

    fn receive_udp(&mut self, socket: UdpSocket) -> Result<Option<UdpDatagram>, Errno> {
        Ok(self.host.receive_udp(socket.0))
    }

    fn mib(&mut self) -> Vec<(String, u64)> {
        let netns = self.emulator.netns(self.netns).expect("its namespace");
        netns.mib.rows(netns.profile).collect()
    }
}

impl Subject for InProcess {
    fn open(&mut self, options: &SocketOptions) -> Result<Socket, Errno> {
        if options.groups != 0 && !options.privileged {
            return Err(errno::EPERM);
        }
        self.sockets.push(Queue {
            options: options.clone(),
            groups: options.groups,
            recv_bytes: 0,
            open: true,
            datagrams: VecDeque::new(),
        });
        self.tell_listeners();
        Ok(Socket(self.sockets.len() - 1))
    }

    fn close(&mut self, socket: Socket) {
        let queue = &mut self.sockets[socket.0];
        queue.open = false;
        let port = queue.options.port;
        self.emulator.close_socket(self.netns, port);
        self.tell_listeners();
    }

    fn set_member(&mut self, socket: Socket, group: u32, member: bool) -> Result<(), Errno> {
        let queue = &mut self.sockets[socket.0];
        if !queue.options.privileged {
            return Err(errno::EPERM);
        }
        if !(1..=32).contains(&group) {
            return Err(errno::EINVAL);
        }
        queue.groups = queue.groups & !(1 << (group - 1)) | u32::from(member) << (group - 1);
        self.tell_listeners();
        Ok(())
    }

    fn send(&mut self, socket: Socket, datagram: &[u8]) -> Result<(), Errno> {
        if datagram.is_empty() {
            return Err(errno::ENODATA);
        }
        self.perhaps_die();
        let peer = self.peer(socket);
        let now = self.now();
        let inputs = Inputs {
            now,
            entropy: &mut self.entropy,
        };
        self.emulator.handle_datagram(inputs, peer, datagram);
        self.deliver();
        Ok(())
    }

    fn recv(&mut self, socket: Socket, buffer_bytes: usize) -> Result<Received, Errno> {
        let queue = &mut self.sockets[socket.0];
        let (mut bytes, groups) = queue.datagrams.pop_front().ok_or(errno::EAGAIN)?;
        queue.recv_bytes = queue.recv_bytes.max(buffer_bytes);
        let full_len = bytes.len();
        bytes.truncate(buffer_bytes);
        let peer = self.peer(socket);
        self.emulator.handle_recv(peer);
        self.deliver();
        Ok(Received {
            bytes,
            full_len,
            sender: 0,
            groups,
        })
    }

    fn open_udp(&mut self, family: u16) -> Result<UdpSocket, Errno> {
        self.udp_families.push(family);
        Ok(UdpSocket(self.udp_families.len() - 1))
    }

    fn close_udp(&mut self, socket: UdpSocket) {
        let family = self.udp_families[socket.0];
        let _ = self.set_socket_policy(socket, family, None);
    }

    fn set_socket_policy(
        &mut self,
        socket: UdpSocket,
        option_family: u16,
        value: Option<&[u8]>,
    ) -> Result<(), Errno> {
        let family = self.udp_families[socket.0];
        self.perhaps_die();
        let (now, key) = (self.now(), SocketKey(socket.0 as u64));
        self.emulator
            .set_socket_policy(now, self.netns, key, family, option_family, value)
    }

    fn set_sysctl(&mut self, name: &str, value: u32) -> Result<(), Errno> {
        let set = |netns: &mut Netns| {
            let sysctls = &mut netns.sysctls;
            match name {
                "xfrm_aevent_etime" => sysctls.aevent_etime = value,
                "xfrm_aevent_rseqth" => sysctls.aevent_rseqth = value,
                "xfrm_larval_drop" => sysctls.larval_drop = value as i32,
                "xfrm_acq_expires" => sysctls.acq_expires = value,
                _ => return Err(errno::ENOENT),
            }
            Ok(())
        };
        let changed = self.emulator.change(self.netns, set);
        changed.unwrap_or(Err(errno::ENOENT))
    }

    fn sleep(&mut self, time: Duration) {
        self.perhaps_die();
        let end = self.clock + time;
        loop {
            let due = self
                .emulator
                .poll_timeout()
                .map(|at| Duration::from_nanos(at.0));
            let Some(due) = due.filter(|due| *due <= end) else {
                break;
            };
            self.clock = self.clock.max(due);
            let now = self.now();
            let inputs = Inputs {
                now,
                entropy: &mut self.entropy,
            };
            self.emulator.handle_timeout(inputs);
            self.deliver();
            self.pass(ModelHost::handle_timeout);
        }
        self.clock = end;
    }

    fn wall(&self) -> Duration {
        Duration::from_secs(EPOCH) + self.clock
    }

    fn packets(&mut self) -> Option<&mut dyn Packets> {
        Some(self)
    }
}
