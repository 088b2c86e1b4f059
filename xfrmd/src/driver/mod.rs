//! The daemon: sockets, clock and namespaces around the sans-I/O emulator.
//!
//! One thread owns everything, as one mutex owns a namespace's configuration on
//! Linux, so that requests of all clients happen one after the other. It waits
//! in epoll. Measured on two cores, both ends pinned to one: a round trip over
//! `SOCK_SEQPACKET` takes 10.4 us with a blocking receive, 10.9 with
//! `epoll_wait` before it, and 11.9 where a receive is tried before the wait,
//! as an async runtime does it. Hence a plain epoll loop and neither a runtime
//! nor a thread for each client: all else that happens here is rare.
//!
//! * [`connection`]: what clients ask, frame by frame; [`exchange`]: their datagrams; [`reply`]: how it is answered.
//! * [`entry`]: clients entering namespaces, their rights there.
//! * [`instance`]: a namespace's sockets and members; delivery.
//! * [`namespace`]: entering namespaces, learning of their end.
//! * [`keeper`]: the parent that starts a killed daemon again; [`restart`]: how that one goes on.
//! * [`privilege`]: who may configure.
//! * [`attaching`]: namespaces that packets are carried for; [`packets`]: their threads.
//! * [`observe`]: how many packets there are, and captures of them; [`recorder`]: everything, into a file.
//! * [`clock`]: what time it is; how a virtual clock moves.
//! * [`files`]: `/proc/net/xfrm_stat` and sysctls.
//! * [`listener`]: where clients find us.
//! * [`command`], [`program`], [`seccomp`]: `xfrmd run`.
//! * [`explain`]: what would become of a packet.
//! * [`faults`]: what goes wrong on purpose.
//! * [`service`]: what a service manager gives us and is told.
//! * [`client`]: `xfrmd stat`, `check`, `explain` and `env`.

mod attaching;
pub(crate) mod client;
pub(crate) mod clock;
pub(crate) mod command;
mod connection;
mod entry;
mod exchange;
mod explain;
pub(crate) mod faults;
mod files;
pub(crate) mod host;
mod instance;
pub(crate) mod keeper;
pub(crate) mod listener;
mod namespace;
mod observe;
mod outbox;
mod own_sockets;
mod packets;
mod privilege;
pub(crate) mod program;
pub(crate) mod recorder;
mod reply;
mod restart;
pub(crate) mod seccomp;
pub(crate) mod service;
pub(crate) mod signals;
mod statistics;

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use dataplane::netns::Limits;
use dataplane::spd::SocketKey;
use dataplane::{BootNanos, Profile, WallSecs};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use xfrm_proto::control::{LARGEST_FRAME, Secret};
use xfrmd::emulator::{Destination, Emulator, Inputs, NetnsId};

use crate::attach::Capture;
use attaching::Following;
use clock::Clock;
use clock::motion::Motion;
use clock::randomness::{Randomness, Source as RandomSource};
use connection::Connection;
use faults::Mischief;
use files::Writer;
use instance::{Delivery, Instance};
use namespace::{Home, Watch};
use packets::Inquiries;
use recorder::{RecordTo, Recorder};
use restart::Orphan;

/// How often we look whether sockets without a process that told us are still there.
const LINGER: u64 = 2_000_000_000;
/// How often we look whether a closed connection still has something to send.
const CLOSED_LOOK: u64 = 200_000_000;
/// How often we try to tell members that they lost events.
const OVERRUN_RETRY: u64 = 20_000_000;

/// The second that it is on the host.
pub(crate) fn wall_clock() -> WallSecs {
    clock::Clock::default().now().real
}

/// Whose daemon this is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Owner {
    /// The machine's: capabilities decide.
    System,
    /// One user's: that user is its root, and clients must know the secret.
    Private {
        /// Who.
        uid: u32,
        /// What both sides show.
        secret: Secret,
    },
}

/// What the daemon allows and imitates.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Which kernel.
    pub(crate) profile: &'static Profile,
    /// Table sizes of each namespace.
    pub(crate) limits: Limits,
    /// Clients at once.
    pub(crate) max_connections: usize,
    /// Whose it is.
    pub(crate) owner: Owner,
    /// Whether packets are carried, not only requests answered.
    pub(crate) packets: bool,
    /// By what the host picks them.
    pub(crate) capture: Capture,
    /// Where clients load the shim from.
    pub(crate) shim: Option<PathBuf>,
    /// Where everything is recorded.
    pub(crate) record: Option<RecordTo>,
    /// What time it is.
    pub(crate) clock: Clock,
    /// The first process of a run whose clock is virtual.
    pub(crate) root: u32,
    /// Where random numbers come from.
    pub(crate) randomness: RandomSource,
    /// What is to go wrong, as [`faults::keep`] keeps it.
    pub(crate) faults: Arc<File>,
}

/// What an epoll event is about; the upper half of its data, the index is the lower.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Listener = 0,
    Connection = 1,
    Timer = 2,
    Writer = 3,
    Namespaces = 4,
    Caller = 5,
    Packets = 6,
}

impl Source {
    const ALL: [Self; 7] = [
        Self::Listener,
        Self::Connection,
        Self::Timer,
        Self::Writer,
        Self::Namespaces,
        Self::Caller,
        Self::Packets,
    ];

    fn data(self, index: usize) -> u64 {
        (self as u64) << 32 | index as u64 & u64::from(u32::MAX)
    }

    fn of(data: u64) -> Option<(Self, usize)> {
        let source = Self::ALL.into_iter().find(|&it| it as u64 == data >> 32)?;
        usize::try_from(data & u64::from(u32::MAX))
            .ok()
            .map(|index| (source, index))
    }
}

/// The daemon.
pub(crate) struct Daemon {
    settings: Settings,
    emulator: Emulator,
    clock: Clock,
    /// What moves a virtual clock.
    motion: Option<Motion>,
    entropy: Randomness,
    home: Home,
    watch: Option<Watch>,
    epoll: Epoll,
    timer: TimerFd,
    armed: Option<BootNanos>,
    listeners: Vec<OwnedFd>,
    connections: Vec<Option<Connection>>,
    next_connection: u64,
    instances: HashMap<NetnsId, Instance, RandomState>,
    by_cookie: HashMap<u64, NetnsId, RandomState>,
    writers: Vec<Option<Writer>>,
    group_members: [u32; 32],
    native_groups: u32,
    overruns: bool,
    lingering: bool,
    /// Connections whose policies stay although their programs have closed them.
    closed: Vec<(NetnsId, SocketKey)>,
    following: Following,
    /// What packets ask for, if they are carried.
    inquiries: Option<Inquiries>,
    frame: Vec<u8>,
    /// Who holds what must outlive us.
    line: Option<keeper::Line>,
    orphans: Vec<Orphan>,
    mischief: Mischief,
    recorder: Option<Recorder>,
}

impl Daemon {
    /// Without clients; they come through `listeners`.
    pub(crate) fn new(settings: Settings, listeners: Vec<OwnedFd>) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let timer = TimerFd::new(
            ClockId::CLOCK_BOOTTIME,
            TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK,
        )?;
        let watch = Watch::new()
            .inspect_err(|error| tracing::debug!(%error, "ends of namespaces go unnoticed"))
            .ok();
        let wait = |fd: std::os::fd::BorrowedFd<'_>, source: Source, index| {
            epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, source.data(index)))
        };
        wait(timer.as_fd(), Source::Timer, 0)?;
        for (index, listener) in listeners.iter().enumerate() {
            wait(listener.as_fd(), Source::Listener, index)?;
        }
        if let Some(watch) = &watch {
            wait(watch.fd(), Source::Namespaces, 0)?;
        }
        let motion = settings.clock.page().map(|_| Motion::new(settings.root));
        let motion = motion.transpose()?;
        let mischief = Mischief::new(Arc::clone(&settings.faults));
        let inquiries = || Inquiries::new(&mischief.faults);
        let inquiries = settings.packets.then(inquiries).transpose()?;
        if let Some(inquiries) = &inquiries {
            wait(inquiries.fd(), Source::Packets, 0)?;
        }
        Ok(Self {
            emulator: Emulator::new(settings.profile, settings.limits),
            clock: settings.clock.clone(),
            motion,
            entropy: settings.randomness.stream(0),
            settings,
            home: Home::here()?,
            watch,
            epoll,
            timer,
            armed: None,
            listeners,
            connections: Vec::new(),
            next_connection: 1,
            instances: HashMap::default(),
            by_cookie: HashMap::default(),
            writers: Vec::new(),
            group_members: [0; 32],
            native_groups: 0,
            overruns: false,
            lingering: false,
            closed: Vec::new(),
            following: Following::default(),
            inquiries,
            frame: vec![0; LARGEST_FRAME],
            line: None,
            orphans: Vec::new(),
            mischief,
            recorder: None,
        })
    }

    /// Changes what may be there at most, from now on: what is there stays.
    pub(crate) fn set_limits(&mut self, limits: Limits, max_connections: usize) {
        self.settings.limits = limits;
        self.settings.max_connections = max_connections;
        self.emulator.set_limits(limits);
    }

    /// Waits for a descriptor of the caller's too.
    pub(crate) fn watch_for_caller(&self, fd: &impl AsFd, index: usize) -> io::Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, Source::Caller.data(index));
        Ok(self.epoll.add(fd, event)?)
    }

    /// Serves until `caller`, called with the index of a descriptor of its own, breaks.
    pub(crate) fn serve<T>(
        &mut self,
        mut caller: impl FnMut(usize) -> io::Result<ControlFlow<T>>,
    ) -> io::Result<T> {
        let mut events = [EpollEvent::empty(); 64];
        let mut timeout = EpollTimeout::NONE;
        loop {
            let ready = match self.epoll.wait(&mut events, timeout) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            for event in events.iter().take(ready) {
                match Source::of(event.data()) {
                    Some((Source::Connection, index)) => {
                        self.serve_connection(index, event.events());
                    }
                    Some((Source::Listener, index)) => self.accept(index),
                    Some((Source::Timer, _)) => self.run_timers(),
                    Some((Source::Writer, index)) => self.read_writer(index),
                    Some((Source::Namespaces, _)) => self.end_namespaces(),
                    Some((Source::Packets, _)) => self.answer_packets(),
                    Some((Source::Caller, index)) => {
                        if let ControlFlow::Break(result) = caller(index)? {
                            return Ok(result);
                        }
                    }
                    None => {}
                }
            }
            if self.motion.is_some() {
                timeout = self.move_clock(ready);
            }
        }
    }

    fn run_timers(&mut self) {
        let _ = self.timer.wait();
        self.armed = None;
        self.run_engine_timers();
        if self.overruns {
            self.overruns = false;
            for instance in self.instances.values_mut() {
                self.overruns |= instance.tell_overruns();
            }
        }
        if self.lingering {
            self.look_for_lingerers();
        }
        self.look_at_closed();
        self.arm();
    }

    /// Does what is due by the engine's clock.
    fn run_engine_timers(&mut self) {
        self.read_writers();
        let inputs = Inputs {
            now: self.clock.now(),
            entropy: &mut self.entropy,
        };
        self.emulator.handle_timeout(inputs);
        self.release_held();
        self.follow_all_policies();
        self.deliver(None, false);
    }

    /// When something is due on the engine's clock.
    fn next_timer(&self) -> Option<BootNanos> {
        let kept = self.mischief.poll_timeout();
        self.emulator.poll_timeout().into_iter().chain(kept).min()
    }

    /// Sets the timer for what comes next, unless it is set for that or earlier.
    fn arm(&mut self) {
        let mut next = self.next_timer().and_then(|at| self.clock.at_uptime(at));
        let mut also = |nanos| {
            let at = clock::uptime().plus_nanos(nanos);
            next = Some(next.map_or(at, |next| next.min(at)));
        };
        if self.overruns {
            also(OVERRUN_RETRY);
        }
        if self.lingering {
            also(LINGER);
        }
        if !self.closed.is_empty() {
            also(CLOSED_LOOK);
        }
        if let Some(due) = self.mischief.poll_timeout() {
            next = Some(next.map_or(due, |next| next.min(due)));
        }
        let Some(next) = next else { return };
        if self.armed.is_some_and(|armed| armed <= next) {
            return;
        }
        // All zero would disarm it.
        let nanos = next.0.max(1);
        let at = TimeSpec::new(
            i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX),
            i64::try_from(nanos % 1_000_000_000).unwrap_or(0),
        );
        let set = self.timer.set(
            Expiration::OneShot(at),
            TimerSetTimeFlags::TFD_TIMER_ABSTIME,
        );
        if let Err(error) = set {
            tracing::error!(%error, "setting the timer");
            return;
        }
        self.armed = Some(next);
    }

    /// Queues everything that the emulator has to say; whether `requester` lost a part of it.
    ///
    /// Chunks of a dump are kept until there is room.
    fn deliver(&mut self, requester: Option<(NetnsId, u32)>, chunks: bool) -> bool {
        if self.mischief.meddles() {
            self.meddle();
        }
        let mut rejected: Vec<(NetnsId, u32, Vec<u8>)> = Vec::new();
        let mut gone = Vec::new();
        while let Some(batch) = self.emulator.poll_batch() {
            let netns = batch.netns;
            let Some(instance) = self.instances.get_mut(&netns) else {
                continue;
            };
            let port = match batch.to {
                Destination::Group(group) => {
                    for bytes in batch.datagrams() {
                        if let Some(motion) = &mut self.motion {
                            motion.see(group, bytes);
                        }
                        self.overruns |= instance.multicast(group, self.native_groups, bytes);
                    }
                    continue;
                }
                Destination::Port(port) => port,
            };
            // What could not be queued, all that follows must not overtake.
            let waits = instance.holds(port)
                || rejected
                    .iter()
                    .any(|&(other, to, _)| (other, to) == (netns, port));
            let (sent, delivery) = if waits {
                (0, Delivery::NoRoom)
            } else {
                instance.unicast(port, batch.datagrams())
            };
            match delivery {
                Delivery::Done => {}
                Delivery::NoSocket => gone.push((netns, port)),
                Delivery::NoRoom => rejected.extend(
                    batch
                        .datagrams()
                        .skip(sent)
                        .map(|bytes| (netns, port, bytes.to_vec())),
                ),
            }
        }
        for (netns, port) in gone {
            self.emulator.close_socket(netns, port);
        }
        let mut overrun = false;
        for (netns, port, bytes) in rejected {
            let Some(instance) = self.instances.get_mut(&netns) else {
                continue;
            };
            if chunks || instance.holds(port) || self.emulator.is_dumping(netns, port) {
                instance.hold(port, bytes);
            } else {
                overrun |= requester == Some((netns, port));
            }
        }
        overrun
    }

    /// Tells the emulator how many listen to each group, wherever they are: on Linux too one
    /// listener in any namespace counts for all (`netlink_update_listeners`).
    fn count_listeners(&mut self) {
        let mut counts = [0; 32];
        self.native_groups = 0;
        for instance in self.instances.values() {
            self.native_groups |= instance.native_groups();
            for (sum, count) in counts.iter_mut().zip(instance.listeners()) {
                *sum += count;
            }
        }
        if counts == self.group_members {
            return;
        }
        self.group_members = counts;
        for &id in self.instances.keys() {
            for (group, &count) in (1..).zip(&counts) {
                self.emulator.set_listeners(id, group, count);
            }
        }
    }

    /// Whether events of some namespace come from that port.
    fn speaks_from(&self, port: u32) -> bool {
        self.instances
            .values()
            .filter_map(|instance| instance.speakers.as_ref())
            .any(|speakers| speakers.reply_port == port)
    }

    /// The listeners in an instance's namespace, where the host shows them.
    fn listeners_in(&self, instance: &Instance) -> Option<Vec<(u32, u32)>> {
        if instance.netns == self.home.cookie {
            return namespace::listeners().ok();
        }
        let namespace = instance.namespace.as_ref()?;
        self.home
            .inside(namespace.as_fd(), namespace::listeners)
            .ok()
    }

    /// Drops what only sockets needed that no process has told us of for long.
    fn look_for_lingerers(&mut self) {
        self.lingering = false;
        let idle: Vec<NetnsId> = self
            .instances
            .values()
            .filter(|instance| {
                instance.users.is_empty()
                    && (instance.speakers.is_some() || self.following.contains_key(&instance.id))
            })
            .map(|instance| instance.id)
            .collect();
        for id in idle {
            self.release_if_unused(id);
        }
        self.lingering |= self.bury_orphans();
        self.count_listeners();
    }

    /// Closes the sockets of an instance that nobody uses, so that its namespace can end.
    ///
    /// A member that we were told of by a connection that has ended, or found, may still listen.
    fn release_if_unused(&mut self, id: NetnsId) {
        let Some(instance) = self.instances.get(&id) else {
            return;
        };
        if !instance.users.is_empty() {
            return;
        }
        let alive = if instance.has_members() {
            self.listeners_in(instance)
        } else {
            None
        };
        let Some(instance) = self.instances.get_mut(&id) else {
            return;
        };
        instance.drop_members(0, alive.as_deref());
        if instance.has_members() {
            self.lingering = true;
            return;
        }
        instance.speakers = None;
        instance.namespace = None;
        self.hold_instance(id);
        self.lingering |= self.let_go(id);
    }

    fn end_namespaces(&mut self) {
        let ended = self.watch.as_mut().map(Watch::ended).unwrap_or_default();
        for cookie in ended {
            let Some(id) = self.by_cookie.remove(&cookie) else {
                continue;
            };
            tracing::info!(netns = cookie, "namespace ended");
            self.instances.remove(&id);
            self.unfollow(id);
            self.forget_kept(id, cookie);
            self.emulator.destroy_netns(id);
        }
        self.count_listeners();
    }
}

impl Drop for Daemon {
    /// An orderly end: what was to be protected goes as if we had never been there. A recording
    /// ends behind the last packet.
    fn drop(&mut self) {
        self.detach_all();
    }
}
