//! Packets of a namespace: threads that take them from the host through the
//! engine to the wire ([`outbound`]) and back ([`inbound`]), and what they and
//! the control thread say to each other.
//!
//! A thread uses the engine for a batch of packets at a time, under a read
//! guard. What packets ask for (an SA that is missing, one that has expired)
//! goes to the control thread; what has waited for an SA comes back.
//!
//! One thread a direction keeps the packets of each SA in order, and lets a
//! transfer and its acknowledgements pass each other.

mod disturb;
mod inbound;
mod outbound;
mod sockets;
mod watch;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use dataplane::Netns;
use dataplane::io::bulk::Bulk;
use dataplane::io::tun::Tun;
use dataplane::packet::buffer::MAX_PACKET;
use dataplane::packet::{Family, PacketBuf};
use dataplane::path::hold::Queue;
use dataplane::path::{Departure, Request, Worker};
use dataplane::sad::SaHandle;
use nix::sched::{CloneFlags, setns};
use nix::sys::eventfd::{EfdFlags, EventFd};
use xfrmd::emulator::NetnsId;
use xfrmd::recording::format::Passage;
use xfrmd::recording::packets::PacketTape;
use xfrmd::recording::reel::Reel;
use xfrmd::tape::Asked;

use super::clock::Clock;
use super::clock::randomness::Source as RandomSource;
use super::faults::Faults;
use super::keeper::Role;
use super::observe::Observed;
use crate::attach::{Devices, EncapSocket, HostRoutes, OwnSocket};
use inbound::Inbound;
use outbound::Outbound;
pub(super) use sockets::Left;
use sockets::{Receivers, Senders};

/// A thread that is overwhelmed is not waited for.
const LONGEST_DRAIN: Duration = Duration::from_secs(1);
/// Packets of one round.
const BATCH: usize = 128;

/// Packets to the device all go the same way.
const HOST: Departure = Departure {
    family: Family::V4,
    mark: 0,
};

/// What packets of a worker ask for.
pub(super) type Inquiry = (Asked, Vec<Request>);

/// How threads reach the control thread, and what they know from it.
#[derive(Clone)]
pub(super) struct Line {
    sender: Sender<Inquiry>,
    wake: Arc<EventFd>,
    faults: Arc<Faults>,
}

/// What packet threads have of the control thread.
pub(super) struct Ties {
    pub(super) line: Line,
    pub(super) clock: Clock,
    pub(super) randomness: RandomSource,
    /// Of a recording.
    pub(super) reel: Option<Arc<Reel>>,
}

/// The control thread's end.
pub(super) struct Inquiries {
    receiver: Receiver<Inquiry>,
    line: Line,
}

impl Inquiries {
    pub(super) fn new(faults: &Arc<Faults>) -> io::Result<Self> {
        let (sender, receiver) = channel();
        let wake = Arc::new(wake_up_call()?);
        let faults = Arc::clone(faults);
        Ok(Self {
            receiver,
            line: Line {
                sender,
                wake,
                faults,
            },
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
    pub(super) fn take(&self) -> Vec<Inquiry> {
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
    /// Sockets that take ESP in UDP, one a port, and some for it beside them.
    EncapSockets(Vec<EncapSocket>, Vec<Arc<Bulk>>),
    /// Sockets that have policies of their own.
    OwnSockets(Vec<OwnSocket>),
    /// Everything that the host has sent by now has to leave first.
    Drain(SyncSender<()>),
    Stop,
}

/// What the threads of a namespace take from it.
pub(super) struct Sockets {
    receivers: Receivers,
    senders: Senders,
    routes: [HostRoutes; 2],
    /// In which more sockets are opened.
    namespace: File,
}

impl Sockets {
    /// In the calling thread's namespace; with those that are left of a daemon before us.
    pub(super) fn open(left: &mut Left) -> io::Result<Self> {
        Ok(Self {
            receivers: Receivers::open(left)?,
            senders: Senders::open()?,
            routes: [HostRoutes::open()?, HostRoutes::open()?],
            namespace: File::open("/proc/thread-self/ns/net")?,
        })
    }
}

impl Sockets {
    /// Those in which packets can wait for another daemon.
    pub(super) fn held(&self) -> impl Iterator<Item = (Role, BorrowedFd<'_>)> {
        self.receivers.held()
    }
}

/// The packet threads of a namespace.
pub(super) struct PacketThreads {
    outbound: Thread,
    inbound: Thread,
}

impl PacketThreads {
    /// Starts them, with what [`PacketThreads::set_encap_sockets`] would tell them later.
    pub(super) fn start(
        id: NetnsId,
        netns: &Arc<RwLock<Netns>>,
        devices: Devices,
        sockets: Sockets,
        (encap, bulk): (Vec<EncapSocket>, Vec<Arc<Bulk>>),
        ties: &Ties,
        observed: &Arc<Observed>,
    ) -> io::Result<Self> {
        let Devices {
            tun,
            marked,
            are_beyond_policies,
        } = devices;
        let tun = Arc::new(tun);
        let Sockets {
            mut receivers,
            mut senders,
            routes: [routes_out, routes_in],
            namespace,
        } = sockets;
        let ports: Vec<u16> = encap.iter().map(|it| it.port).collect();
        receivers.set_ports(&ports, &bulk);
        senders.set_bulk(bulk);
        let road = |routes: HostRoutes, number| -> io::Result<_> {
            // The control thread is the first.
            let user = 1 + 2 * u64::from(id.0) + u64::from(number);
            routes.set_encap_sockets(encap.clone());
            let (sender, commands) = channel();
            let wake = Arc::new(wake_up_call()?);
            let ours = Arc::clone(&wake);
            let entropy = Box::new(ties.randomness.stream(user));
            let (worker, tape) = match &ties.reel {
                None => (Worker::new(number, entropy), None),
                Some(reel) => {
                    let tape = PacketTape::new(Arc::clone(reel), id, number);
                    let worker = Worker::new(number, tape.entropy(entropy));
                    tape.note(Passage::Begin { cpu: number });
                    (worker, Some(tape))
                }
            };
            let road = Road {
                id,
                number,
                netns: Arc::clone(netns),
                tun: Arc::clone(&tun),
                routes,
                worker,
                tape,
                commands,
                wake,
                line: ties.line.clone(),
                clock: ties.clock.clone(),
                observed: Arc::clone(observed),
            };
            Ok((road, sender, ours))
        };
        let (road_out, commands_out, wake_out) = road(routes_out, 0)?;
        let (road_in, commands_in, wake_in) = road(routes_in, 1)?;
        let namespace_out = namespace.try_clone()?;
        let outbound = Thread::start("packets-out", commands_out, wake_out, move || {
            enter(&namespace_out, || {
                Outbound::new(road_out, marked, senders, are_beyond_policies).map(|mut it| it.run())
            });
        })?;
        let inbound = Thread::start("packets-in", commands_in, wake_in, move || {
            enter(&namespace, || {
                Inbound::new(road_in, receivers).map(|mut it| it.run())
            });
        })?;
        Ok(Self { outbound, inbound })
    }

    /// Looks packets up again that have waited for SAs.
    pub(super) fn retry(&self, queues: Vec<Queue>) {
        self.outbound.tell(Command::Retry(queues));
    }

    /// Does what the timers of IPTFS SAs are for.
    pub(super) fn run_iptfs(&self, sas: Vec<SaHandle>) {
        self.outbound.tell(Command::Iptfs(sas));
    }

    /// Takes ESP in UDP that comes to these sockets, one a port, or beside them.
    pub(super) fn set_encap_sockets(&self, sockets: Vec<EncapSocket>, bulk: Vec<Arc<Bulk>>) {
        self.outbound
            .tell(Command::EncapSockets(sockets.clone(), bulk.clone()));
        self.inbound.tell(Command::EncapSockets(sockets, bulk));
    }

    /// Waits until what the host has sent by now has passed the engine.
    pub(super) fn drain(&self) {
        let (sender, done) = sync_channel(1);
        self.outbound.tell(Command::Drain(sender));
        if done.recv_timeout(LONGEST_DRAIN).is_err() {
            tracing::warn!("packets have been waiting for long");
        }
    }

    /// Knows these sockets by their marks.
    pub(super) fn set_own_sockets(&self, sockets: Vec<OwnSocket>) {
        self.outbound.tell(Command::OwnSockets(sockets.clone()));
        self.inbound.tell(Command::OwnSockets(sockets));
    }
}

fn enter(namespace: &File, run: impl FnOnce() -> io::Result<()>) {
    let entered = setns(namespace, CloneFlags::CLONE_NEWNET);
    if let Err(error) = entered.map_err(io::Error::from).and_then(|()| run()) {
        tracing::error!(%error, "a packet thread cannot begin in its namespace");
    }
}

/// One thread, as others see it.
struct Thread {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    handle: Option<JoinHandle<()>>,
}

impl Thread {
    fn start(
        name: &str,
        commands: Sender<Command>,
        wake: Arc<EventFd>,
        run: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let handle = std::thread::Builder::new().name(name.into()).spawn(run)?;
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
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.tell(Command::Stop);
        if let Some(handle) = self.handle.take()
            && handle.join().is_err()
        {
            tracing::error!("a packet thread has panicked");
        }
    }
}

/// What both directions need.
struct Road {
    id: NetnsId,
    /// Of its worker.
    number: u32,
    netns: Arc<RwLock<Netns>>,
    tun: Arc<Tun>,
    routes: HostRoutes,
    worker: Worker,
    /// Of a recording.
    tape: Option<PacketTape>,
    commands: Receiver<Command>,
    wake: Arc<EventFd>,
    line: Line,
    clock: Clock,
    observed: Arc<Observed>,
}

impl Road {
    /// Becomes readable when there are commands.
    fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// What the control thread wants.
    fn commands(&self) -> Vec<Command> {
        let _ = self.wake.read();
        self.commands.try_iter().collect()
    }

    /// Asks what packets want of the control thread, and hands over what was recorded.
    fn ask(&mut self) {
        if let Some(tape) = &self.tape {
            tape.flush();
        }
        if self.worker.has_requests() {
            let asked = Asked {
                netns: self.id,
                worker: self.number,
                upto: self.tape.as_ref().map_or(u64::MAX, PacketTape::last),
            };
            let requests = self.worker.drain_requests().collect();
            // The control thread ends after us.
            let _ = self.line.sender.send((asked, requests));
            let _ = self.line.wake.write(1);
        }
    }
}

/// Buffers for a batch.
fn buffers() -> Vec<PacketBuf> {
    (0..BATCH)
        .map(|_| PacketBuf::with_capacity(MAX_PACKET))
        .collect()
}
