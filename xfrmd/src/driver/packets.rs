//! Packets of a namespace: a thread that takes them from the host through the
//! engine and back, and what it and the control thread say to each other.
//!
//! The thread has the engine to itself for a batch of packets at a time, under
//! a read guard. What packets ask for (an SA that is missing, one that has
//! expired) goes to the control thread; what has waited for an SA comes back.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;

use dataplane::Netns;
use dataplane::Now;
use dataplane::io::raw::Raw;
use dataplane::io::tun::Tun;
use dataplane::io::udp_encap::UdpEncap;
use dataplane::io::{PacketIo, Sent};
use dataplane::packet::buffer::MAX_PACKET;
use dataplane::packet::{Family, PacketBuf, icmp};
use dataplane::path::hold::Queue;
use dataplane::path::{Departure, InputMeta, OutputMeta, Received, Request, Verdict, Worker};
use dataplane::sad::SaHandle;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::eventfd::{EfdFlags, EventFd};
use xfrm_proto::consts::{AF_INET, AF_INET6, IPPROTO_AH, IPPROTO_COMP, IPPROTO_ESP};
use xfrm_proto::uapi::Address;
use xfrmd::emulator::NetnsId;

use super::clock::{self, HostEntropy};
use super::outbox::Outbox;
use crate::attach::{BYPASS, EncapSocket, HostRoutes, MARK_MASK};

/// Packets between two looks at anything else.
const BATCH: usize = 64;
/// Descriptors in front of those of the wire in [`Road::wait`].
const BEFORE_SOURCES: usize = 3;
/// `IPPROTO_RAW`.
const IPPROTO_RAW: u8 = 255;
/// Sockets for marks that SAs set.
const MOST_MARKS: usize = 64;

/// Packets to the device all go the same way.
const HOST: Departure = Departure {
    family: Family::V4,
    mark: 0,
};

/// What packets of a namespace ask for.
pub(super) type Asked = (NetnsId, Vec<Request>);

/// How threads reach the control thread.
#[derive(Clone)]
pub(super) struct Line {
    sender: Sender<Asked>,
    wake: Arc<EventFd>,
}

/// The control thread's end.
pub(super) struct Inquiries {
    receiver: Receiver<Asked>,
    line: Line,
}

impl Inquiries {
    pub(super) fn new() -> io::Result<Self> {
        let (sender, receiver) = channel();
        let wake = Arc::new(wake_up_call()?);
        Ok(Self {
            receiver,
            line: Line { sender, wake },
        })
    }

    /// Becomes readable when something is asked.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.line.wake.as_fd()
    }

    /// For a thread.
    pub(super) fn line(&self) -> Line {
        self.line.clone()
    }

    /// What has been asked, oldest first.
    pub(super) fn take(&self) -> Vec<Asked> {
        let _ = self.line.wake.read();
        self.receiver.try_iter().collect()
    }
}

fn wake_up_call() -> io::Result<EventFd> {
    Ok(EventFd::from_flags(
        EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
    )?)
}

enum Command {
    /// Packets have waited long enough.
    Retry(Vec<Queue>),
    /// Timers of these IPTFS SAs are due.
    Iptfs(Vec<SaHandle>),
    /// Sockets that take ESP in UDP, one a port.
    EncapSockets(Vec<EncapSocket>),
    Stop,
}

/// A packet thread.
pub(super) struct PacketThread {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    handle: Option<JoinHandle<()>>,
}

impl PacketThread {
    /// Starts it.
    pub(super) fn start(
        id: NetnsId,
        netns: Arc<RwLock<Netns>>,
        tun: Tun,
        sockets: Sockets,
        line: Line,
    ) -> io::Result<Self> {
        let (commands, receiver) = channel();
        let wake = Arc::new(wake_up_call()?);
        let mut road = Road {
            id,
            netns,
            tun,
            sockets,
            worker: Worker::new(0, Box::new(HostEntropy::default())),
            commands: receiver,
            wake: Arc::clone(&wake),
            line,
            batch: (0..BATCH)
                .map(|_| PacketBuf::with_capacity(MAX_PACKET))
                .collect(),
            wire: Outbox::default(),
            host: Outbox::default(),
            ident: 0,
            ready: Vec::new(),
        };
        let handle = std::thread::Builder::new()
            .name("packets".into())
            .spawn(move || road.run())?;
        Ok(Self {
            commands,
            wake,
            handle: Some(handle),
        })
    }

    fn tell(&self, command: Command) {
        // A thread that is gone needs to be told nothing.
        let _ = self.commands.send(command);
        let _ = self.wake.write(1);
    }

    /// Looks packets up again that have waited for SAs.
    pub(super) fn retry(&self, queues: Vec<Queue>) {
        self.tell(Command::Retry(queues));
    }

    /// Does what the timers of IPTFS SAs are for.
    pub(super) fn run_iptfs(&self, sas: Vec<SaHandle>) {
        self.tell(Command::Iptfs(sas));
    }

    /// Takes ESP in UDP that comes to these sockets, one a port.
    pub(super) fn set_encap_sockets(&self, sockets: Vec<EncapSocket>) {
        self.tell(Command::EncapSockets(sockets));
    }
}

impl Drop for PacketThread {
    fn drop(&mut self) {
        self.tell(Command::Stop);
        if let Some(handle) = self.handle.take()
            && handle.join().is_err()
        {
            tracing::error!("a packet thread has panicked");
        }
    }
}

/// The sockets of a namespace.
pub(super) struct Sockets {
    protocols: Vec<Raw>,
    udp: Vec<UdpEncap>,
    too_big: Vec<Raw>,
    /// By family and mark, opened when needed.
    senders: Vec<(Family, u32, Raw)>,
    routes: HostRoutes,
    /// In which more are opened.
    namespace: File,
}

impl Sockets {
    /// In the calling thread's namespace.
    pub(super) fn open() -> io::Result<Self> {
        let mut protocols = Vec::new();
        let mut udp = Vec::new();
        let mut too_big = Vec::new();
        for family in [Family::V4, Family::V6] {
            for protocol in [IPPROTO_ESP, IPPROTO_AH, IPPROTO_COMP] {
                match Raw::open(family, protocol, BYPASS) {
                    Err(error) if family == Family::V6 => tracing::debug!(%error, "no IPv6"),
                    other => protocols.push(other?),
                }
            }
            match Raw::open_too_big(family, BYPASS) {
                Err(error) if family == Family::V6 => tracing::debug!(%error, "no IPv6"),
                other => too_big.push(other?),
            }
            match UdpEncap::open(family, &[], BYPASS) {
                Err(error) if family == Family::V6 => tracing::debug!(%error, "no IPv6"),
                other => udp.push(other?),
            }
        }
        Ok(Self {
            protocols,
            udp,
            too_big,
            senders: Vec::new(),
            routes: HostRoutes::open()?,
            namespace: File::open("/proc/thread-self/ns/net")?,
        })
    }

    fn send(&mut self, to: Departure, packets: &[PacketBuf]) -> io::Result<Sent> {
        let mark = BYPASS | to.mark & !MARK_MASK;
        let find = |it: &(Family, u32, Raw)| (it.0, it.1) == (to.family, mark);
        let at = match self.senders.iter().position(find) {
            Some(at) => at,
            None => {
                if self.senders.len() >= MOST_MARKS {
                    self.senders.clear();
                }
                // Any protocol; with this one nothing is received.
                let raw = Raw::open(to.family, IPPROTO_RAW, mark)?;
                self.senders.push((to.family, mark, raw));
                self.senders.len() - 1
            }
        };
        let sender = self.senders.get_mut(at).ok_or(io::ErrorKind::NotFound)?;
        Ok(sender.2.send(packets))
    }
}

/// The thread's own.
struct Road {
    id: NetnsId,
    netns: Arc<RwLock<Netns>>,
    tun: Tun,
    sockets: Sockets,
    worker: Worker,
    commands: Receiver<Command>,
    wake: Arc<EventFd>,
    line: Line,
    batch: Vec<PacketBuf>,
    wire: Outbox,
    host: Outbox,
    ident: u16,
    /// What is readable, in the order of [`Road::wait`].
    ready: Vec<bool>,
}

impl Road {
    fn run(&mut self) {
        if let Err(error) = setns(&self.sockets.namespace, CloneFlags::CLONE_NEWNET) {
            tracing::error!(%error, "a packet thread cannot enter its namespace");
            return;
        }
        loop {
            self.wait();
            let [wake, routes, tun, ..] = *self.ready else {
                continue;
            };
            if wake && !self.obey() {
                return;
            }
            self.sockets.routes.expire(clock::boot());
            if routes {
                self.sockets.routes.forget();
            }
            if tun || self.tun.has_pieces() {
                self.take_from_host();
            }
            self.take_from_wire();
            self.learn();
            self.flush();
        }
    }

    /// Waits for packets, commands or news.
    fn wait(&mut self) {
        let timeout = match self.sockets.routes.poll_timeout() {
            _ if self.tun.has_pieces() => PollTimeout::ZERO,
            None => PollTimeout::NONE,
            Some(at) => {
                let nanos = at.0.saturating_sub(clock::boot().0);
                let ms = i32::try_from(nanos / 1_000_000 + 1).unwrap_or(i32::MAX);
                PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX)
            }
        };
        let Sockets {
            protocols,
            udp,
            too_big,
            routes,
            ..
        } = &self.sockets;
        let mut fds: Vec<_> = [self.wake.as_fd(), routes.fd(), self.tun.fd()]
            .into_iter()
            .chain(protocols.iter().map(Raw::fd))
            .chain(udp.iter().map(UdpEncap::fd))
            .chain(too_big.iter().map(Raw::fd))
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        // An error, such as one that a router sent, is read like a packet.
        let _ = poll(&mut fds, timeout);
        self.ready.clear();
        self.ready.extend(
            fds.iter()
                .map(|fd| fd.revents().is_some_and(|found| !found.is_empty())),
        );
    }

    /// Does what the control thread wants; false when that is to stop.
    fn obey(&mut self) -> bool {
        let _ = self.wake.read();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Stop => return false,
                Command::EncapSockets(sockets) => self.set_encap_sockets(sockets),
                Command::Retry(queues) => self.retry(queues),
                Command::Iptfs(sas) => self.run_iptfs(&sas),
            }
        }
        true
    }

    fn set_encap_sockets(&self, sockets: Vec<EncapSocket>) {
        let ports: Vec<u16> = sockets.iter().map(|it| it.port).collect();
        for udp in &self.sockets.udp {
            if let Err(error) = udp.set_ports(&ports) {
                tracing::error!(%error, ?ports, "no ESP in UDP for these ports");
            }
        }
        self.sockets.routes.set_encap_sockets(sockets);
    }

    fn retry(&mut self, queues: Vec<Queue>) {
        let netns = self.netns.read().unwrap_or_else(PoisonError::into_inner);
        let wire = &mut self.wire;
        for queue in queues {
            self.worker.retry(
                &netns,
                clock::now(),
                queue,
                &self.sockets.routes,
                &mut |packet, to| wire.push(packet, *to),
            );
        }
    }

    fn run_iptfs(&mut self, sas: &[SaHandle]) {
        let netns = self.netns.read().unwrap_or_else(PoisonError::into_inner);
        let (wire, now) = (&mut self.wire, clock::now());
        for &sa in sas {
            self.worker
                .run_iptfs(&netns, now, sa, &mut |packet, to| wire.push(packet, *to));
        }
        let routes = &self.sockets.routes;
        receive_inner(&mut self.worker, &netns, now, routes, &mut self.host);
    }

    /// Plain packets that the host wants protected.
    fn take_from_host(&mut self) {
        let count = match self.tun.receive(&mut self.batch) {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) => {
                tracing::debug!(%error, "reading the device");
                return;
            }
        };
        let netns = self.netns.read().unwrap_or_else(PoisonError::into_inner);
        let now = clock::now();
        let routes = &self.sockets.routes;
        for packet in self.batch.iter_mut().take(count) {
            let Some((family, source, destination)) = ends(packet) else {
                continue;
            };
            // The way that it would have gone without us. Without one there is none with us.
            let Some((ifindex, way)) = routes.way(family, destination) else {
                continue;
            };
            let meta = OutputMeta {
                mark: 0,
                if_id: 0,
                ifindex,
                socket: None,
                // A sender on this host too learns the SAs' MTU from an error, not from its route.
                forwarded: true,
                bypasses: false,
                loopback: false,
                mtu: way.mtu,
                hop_limit: way.hop_limit,
            };
            let wire = &mut self.wire;
            let verdict =
                self.worker
                    .output(&netns, now, packet, &meta, routes, &mut |packet, to| {
                        wire.push(packet, *to)
                    });
            match verdict {
                Verdict::TooBig { mtu } => {
                    // To ourselves we cannot be the sender.
                    let from = if routes.is_local(family, source) {
                        Some(destination)
                    } else {
                        routes.own_address(family, source)
                    };
                    self.ident = self.ident.wrapping_add(1);
                    let bytes = if family == AF_INET6 { 16 } else { 4 };
                    let answered = from.and_then(|from| {
                        icmp::answer_too_big(packet, from.0.get(..bytes)?, mtu, self.ident)
                    });
                    if answered.is_some() {
                        self.host.push(packet, HOST);
                    }
                }
                // The host's packet filter sends us what policies select, as long as they do.
                Verdict::Plain => tracing::trace!("a packet without a policy"),
                Verdict::Sent(_) | Verdict::Held | Verdict::Queued | Verdict::Dropped { .. } => {}
            }
        }
    }

    /// What routers say of packets of SAs.
    fn learn(&mut self) {
        let ready = self.ready.iter().rev();
        let sockets = self.sockets.too_big.iter_mut().rev().zip(ready);
        for (socket, _) in sockets.filter(|(_, ready)| **ready) {
            let Ok(count @ 1..) = socket.receive(&mut self.batch) else {
                continue;
            };
            let netns = self.netns.read().unwrap_or_else(PoisonError::into_inner);
            for packet in self.batch.iter().take(count) {
                if let Some(learned) = netns.learn_mtu(packet, 0, &self.sockets.routes) {
                    self.sockets.routes.learn(&learned, clock::boot());
                }
            }
        }
    }

    /// Protected packets.
    fn take_from_wire(&mut self) {
        let Sockets {
            protocols,
            udp,
            routes,
            ..
        } = &mut self.sockets;
        let sources = protocols.iter_mut().map(|it| it as &mut dyn PacketIo);
        let sources = sources.chain(udp.iter_mut().map(|it| it as &mut dyn PacketIo));
        let ready = self.ready.iter().skip(BEFORE_SOURCES);
        for (source, _) in sources.zip(ready).filter(|(_, ready)| **ready) {
            let count = match source.receive(&mut self.batch) {
                Ok(0) => continue,
                Ok(count) => count,
                Err(error) => {
                    tracing::debug!(%error, "receiving");
                    continue;
                }
            };
            let netns = self.netns.read().unwrap_or_else(PoisonError::into_inner);
            let now = clock::now();
            for packet in self.batch.iter_mut().take(count) {
                let mut meta = InputMeta::default();
                let received = self
                    .worker
                    .receive(&netns, now, packet, &mut meta, &*routes);
                match received {
                    Received::Local | Received::Forward => self.host.push(packet, HOST),
                    Received::Kept | Received::Consumed | Received::Inner => {}
                    Received::Dropped(reason) => tracing::trace!(?reason, "dropped"),
                }
            }
            receive_inner(&mut self.worker, &netns, now, routes, &mut self.host);
        }
    }

    /// Sends what is ready, and asks what there is to ask.
    fn flush(&mut self) {
        let tun = &mut self.tun;
        self.host.drain(|_, packets| {
            let sent = tun.send(packets);
            if sent.lost > 0 {
                tracing::debug!(?sent, "writing to the device");
            }
        });
        let sockets = &mut self.sockets;
        self.wire
            .drain(|to, packets| match sockets.send(to, packets) {
                Ok(sent) if sent.too_long > 0 => sockets.routes.forget(),
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "a socket for outgoing packets"),
            });
        if self.worker.has_requests() {
            let asked = (self.id, self.worker.drain_requests().collect());
            // The control thread ends after us.
            let _ = self.line.sender.send(asked);
            let _ = self.line.wake.write(1);
        }
    }
}

/// Receives what came out of IPTFS payloads.
fn receive_inner(
    worker: &mut Worker,
    netns: &Netns,
    now: Now,
    routes: &HostRoutes,
    host: &mut Outbox,
) {
    if !worker.has_inner() {
        return;
    }
    let mut packet = PacketBuf::with_capacity(MAX_PACKET);
    let mut meta = InputMeta::default();
    while worker.next_inner(&mut packet, &mut meta) {
        let received = worker.receive(netns, now, &mut packet, &mut meta, routes);
        if matches!(received, Received::Local | Received::Forward) {
            host.push(&mut packet, HOST);
        }
    }
}

/// Family, source and destination of a packet.
fn ends(packet: &[u8]) -> Option<(u16, Address, Address)> {
    let (family, at, bytes) = match Family::of(packet)? {
        Family::V4 => (AF_INET, 12, 4),
        Family::V6 => (AF_INET6, 8, 16),
    };
    let address = |at: usize| {
        let mut address = Address::ANY;
        let source = packet.get(at..)?.get(..bytes)?;
        address.0.get_mut(..bytes)?.copy_from_slice(source);
        Some(address)
    };
    Some((family, address(at)?, address(at + bytes)?))
}
