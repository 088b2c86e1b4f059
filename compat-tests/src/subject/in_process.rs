//! An instance in this process, with a virtual clock.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use dataplane::netns::{Context, Limits};
use dataplane::spd::SocketKey;
use dataplane::{Entropy, Netns, Profile, SeededEntropy};
use xfrmd::emulator::{Emulator, NetnsId};
use xfrmd::store::{Found, Store};
use xfrmd::testing::{self, Instance, Open};

use super::host::ModelHost;
use super::packets::{Datagram as UdpDatagram, Link, Packets, UdpOptions};
use super::{Errno, Received, Socket, SocketOptions, Subject, UdpSocket};

/// The emulator in this process.
pub struct InProcess {
    instance: Instance,
    netns: NetnsId,
    sockets: Vec<testing::Socket>,
    udp_families: Vec<u16>,
    host: ModelHost,
    deaths: Option<Deaths>,
}

/// When it is killed, and what is left of it then.
struct Deaths {
    state: OwnedFd,
    entropy: SeededEntropy,
    count: u32,
}

/// Each leaves a mapping behind.
const MOST_DEATHS: u32 = 6;

impl InProcess {
    /// An emulator that behaves as `profile` says.
    #[must_use]
    pub fn new(profile: &'static Profile) -> Self {
        Self::of(Instance::new(profile))
    }

    /// One that records what it is asked, with keys or without.
    #[must_use]
    pub fn recorded(profile: &'static Profile, keys: bool) -> Self {
        Self::of(Instance::new(profile).recorded(keys))
    }

    /// Ends the recording; the file.
    pub fn end_recording(&mut self) -> Vec<u8> {
        self.instance.end_recording()
    }

    fn of(mut instance: Instance) -> Self {
        let netns = instance.create_netns();
        Self {
            instance,
            netns,
            sockets: Vec::new(),
            udp_families: Vec::new(),
            host: ModelHost::new(),
            deaths: None,
        }
    }

    /// One that is killed and goes on from what it left, between steps that `seed` chooses.
    #[must_use]
    pub fn mortal(profile: &'static Profile, seed: u64) -> Self {
        let mut subject = Self::new(profile);
        let state = Store::file().expect("memory");
        let copy = state.try_clone().expect("a descriptor");
        let (store, _) = Store::open(copy, profile).expect("an empty store");
        subject.instance.emulator().keep_on(Box::new(store));
        subject.deaths = Some(Deaths {
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
        let Some(deaths) = &mut self.deaths else {
            return;
        };
        // A dump under way ends with the daemon.
        let mut sockets = self.sockets.iter();
        let dumps = sockets.any(|&socket| self.instance.is_dumping(socket));
        if dumps || deaths.count >= MOST_DEATHS || deaths.entropy.below(6) != 0 {
            return;
        }
        deaths.count += 1;
        let profile = self.instance.profile();
        let copy = deaths.state.try_clone().expect("a descriptor");
        let (store, found) = Store::open(copy, profile).expect("its own store");
        let records: Vec<_> = found.iter().map(Found::kept).collect();
        let emulator = self.instance.emulator();
        *emulator = Emulator::recall(profile, Limits::default(), &records)
            .expect("what it had kept itself");
        emulator.keep_on(Box::new(store));
        self.host.forget();
        self.instance.tell_listeners();
    }

    /// Lets packets pass, and delivers what they cause.
    fn pass<T>(
        &mut self,
        act: impl FnOnce(&mut ModelHost, &mut Netns, &mut Context<'_>) -> T,
    ) -> T {
        self.perhaps_die();
        let host = &mut self.host;
        let passed = self
            .instance
            .with_packets(self.netns, |netns, cx| act(host, netns, cx));
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
        self.instance.xfrm_stat(self.netns)
    }
}

impl Subject for InProcess {
    fn open(&mut self, options: &SocketOptions) -> Result<Socket, Errno> {
        let options = Open {
            port: options.port,
            groups: options.groups,
            cap_ack: options.cap_ack,
            ext_ack: options.ext_ack,
            privileged: options.privileged,
        };
        self.sockets.push(self.instance.open(self.netns, &options)?);
        Ok(Socket(self.sockets.len() - 1))
    }

    fn close(&mut self, socket: Socket) {
        self.instance.close(self.sockets[socket.0]);
    }

    fn set_member(&mut self, socket: Socket, group: u32, member: bool) -> Result<(), Errno> {
        let socket = self.sockets[socket.0];
        self.instance.set_member(socket, group, member)
    }

    fn send(&mut self, socket: Socket, datagram: &[u8]) -> Result<(), Errno> {
        if !datagram.is_empty() {
            self.perhaps_die();
        }
        self.instance.post(self.sockets[socket.0], datagram)
    }

    fn recv(&mut self, socket: Socket, buffer_bytes: usize) -> Result<Received, Errno> {
        let received = self.instance.recv(self.sockets[socket.0], buffer_bytes)?;
        Ok(Received {
            bytes: received.bytes,
            full_len: received.full_len,
            sender: 0,
            groups: received.groups,
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
        let families = [self.udp_families[socket.0], option_family];
        self.perhaps_die();
        let key = SocketKey(socket.0 as u64);
        self.instance
            .set_socket_policy(self.netns, key, families, value)
    }

    fn set_sysctl(&mut self, name: &str, value: u32) -> Result<(), Errno> {
        self.instance.set_sysctl(self.netns, name, value)
    }

    fn sleep(&mut self, time: Duration) {
        self.perhaps_die();
        let end = self.instance.uptime() + time;
        while self.instance.run_timer(end) {
            self.pass(ModelHost::handle_timeout);
        }
    }

    fn wall(&self) -> Duration {
        self.instance.wall()
    }

    fn packets(&mut self) -> Option<&mut dyn Packets> {
        Some(self)
    }
}
