//! The emulator, driven directly, with a virtual clock.
//!
//! Sockets are modelled as queues with groups; dumps are pulled as
//! `netlink_recvmsg` pulls them.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use dataplane::netns::{Context, Limits};
use dataplane::spd::SocketKey;
use dataplane::{BootNanos, Netns, Now, Profile, SeededEntropy, WallSecs};
use xfrm_proto::consts::errno;
use xfrm_proto::extack::AckOptions;
use xfrmd::emulator::{Destination, Emulator, Inputs, NetnsId, Peer};

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
        let (now, key) = (self.now(), SocketKey(socket.0 as u64));
        self.emulator
            .set_socket_policy(now, self.netns, key, family, option_family, value)
    }

    fn set_sysctl(&mut self, name: &str, value: u32) -> Result<(), Errno> {
        let mut netns = self.emulator.netns_mut(self.netns).ok_or(errno::ENOENT)?;
        let sysctls = &mut netns.sysctls;
        match name {
            "xfrm_aevent_etime" => sysctls.aevent_etime = value,
            "xfrm_aevent_rseqth" => sysctls.aevent_rseqth = value,
            "xfrm_larval_drop" => sysctls.larval_drop = value as i32,
            "xfrm_acq_expires" => sysctls.acq_expires = value,
            _ => return Err(errno::ENOENT),
        }
        Ok(())
    }

    fn sleep(&mut self, time: Duration) {
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
