//! The façade: NETLINK_XFRM of a whole machine, without any I/O.
//!
//! An [`Emulator`] is what a running kernel is to its clients. The driver
//! feeds it datagrams, receive calls and the passage of time, and takes
//! datagrams out. Same inputs, seed and clock: same outputs.
//!
//! A client socket is known by its namespace and port id. Delivery,
//! membership and buffering are the driver's; the emulator only says what goes
//! to which port or group, in which order.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use dataplane::keep::{Kept, Kind, Record, Shelf, Unreadable};
use dataplane::netns::{Limits, Listeners};
use dataplane::path::Request;
use dataplane::path::hold::Queue;
use dataplane::sad::SaHandle;
use dataplane::spd::SocketKey;
use dataplane::{BootNanos, Context, Entropy, Netns, Now, Profile};
use xfrm_proto::consts::group;
use xfrm_proto::extack::{AckOptions, XfrmError, write_ack};

use crate::netlink::Sockets;
pub use crate::netlink::{Batch, Datagram, Destination};
use crate::netlink::{Outbox, deliver_events};
use crate::tape::{Asked, Draws, Heard, Step, Tape};
use crate::xfrm::policy::socket::set as policy_option;
use crate::xfrm::{policy, sa};

/// A network namespace of the emulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetnsId(pub u32);

/// Who sends a datagram or receives one.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// The namespace of its socket.
    pub netns: NetnsId,
    /// The port id of its socket.
    pub port: u32,
    /// Its socket's acknowledgement options.
    pub options: AckOptions,
    /// Whether socket and sender have `CAP_NET_ADMIN` over the namespace.
    pub privileged: bool,
    /// The largest receive buffer it has offered so far, 0 for none yet.
    pub recv_bytes: usize,
}

/// What every call needs from outside.
pub struct Inputs<'a> {
    /// The present.
    pub now: Now,
    /// Random numbers.
    pub entropy: &'a mut dyn Entropy,
}

/// Packet threads borrow the engine for a batch of packets, requests have it to themselves.
struct Namespace {
    netns: Arc<RwLock<Netns>>,
    sockets: Sockets,
}

impl Namespace {
    fn read(&self) -> RwLockReadGuard<'_, Netns> {
        self.netns.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Netns> {
        self.netns.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What belongs to no namespace, as it is kept.
const MACHINE: Record = Record {
    netns: 0,
    kind: Kind::Machine,
    place: 0,
};

/// Where state is put that is to outlive the process.
#[derive(Default)]
struct Keeper {
    shelf: Option<Box<dyn Shelf>>,
    /// The machine's image.
    machine: [u8; 8],
}

impl Keeper {
    /// Puts what has changed of a namespace, before anybody can see it.
    fn keep(&mut self, id: NetnsId, netns: &mut Netns, machine: [u32; 2]) {
        let Some(shelf) = &mut self.shelf else { return };
        netns.keep(id.0, shelf.as_mut());
        self.keep_machine(machine);
    }

    fn keep_machine(&mut self, [next_netns, acqseq]: [u32; 2]) {
        let Some(shelf) = &mut self.shelf else { return };
        let machine = u64::from(next_netns) << 32 | u64::from(acqseq);
        if machine.to_le_bytes() != self.machine {
            self.machine = machine.to_le_bytes();
            shelf.put(MACHINE, &self.machine);
        }
        shelf.commit();
    }
}

/// Every namespace's XFRM.
pub struct Emulator {
    profile: &'static Profile,
    limits: Limits,
    namespaces: BTreeMap<NetnsId, Namespace>,
    next_netns: u32,
    acqseq: u32,
    outbox: Outbox,
    keeper: Keeper,
    tape: Option<Box<dyn Tape>>,
}

impl Emulator {
    /// A machine without namespaces that behaves as `profile` says.
    #[must_use]
    pub fn new(profile: &'static Profile, limits: Limits) -> Self {
        Self {
            profile,
            limits,
            namespaces: BTreeMap::new(),
            next_netns: 0,
            acqseq: 0,
            outbox: Outbox::default(),
            keeper: Keeper::default(),
            tape: None,
        }
    }

    /// Tells a tape from now on all that is asked and what is said to it. What there is already
    /// is not told.
    pub fn record(&mut self, tape: Box<dyn Tape>) {
        self.tape = Some(tape);
    }

    /// Tells the tape nothing more.
    pub fn stop_recording(&mut self) {
        self.tape = None;
    }

    /// Tells the tape a step without answers, if there is one.
    fn tell(&mut self, step: &Step<'_>) {
        if let Some(tape) = &mut self.tape {
            tape.hear(step, Heard::nothing());
        }
    }

    /// The machine whose state was put on a shelf. It has the namespaces that it had, without
    /// sockets in them.
    ///
    /// # Errors
    /// The first record that makes no sense.
    pub fn recall(
        profile: &'static Profile,
        limits: Limits,
        records: &[Kept<'_>],
    ) -> Result<Self, Unreadable> {
        let mut emulator = Self::new(profile, limits);
        let mut namespaces: BTreeMap<NetnsId, Vec<Kept<'_>>> = BTreeMap::new();
        for kept in records {
            match kept.record.kind {
                Kind::Machine => {
                    let image = <[u8; 8]>::try_from(kept.image);
                    emulator.keeper.machine = image.map_err(|_| Unreadable(kept.record))?;
                    let [a, b, c, d, e, f, g, h] = emulator.keeper.machine;
                    emulator.acqseq = u32::from_le_bytes([a, b, c, d]);
                    emulator.next_netns = u32::from_le_bytes([e, f, g, h]);
                }
                Kind::Driver => {}
                Kind::Netns | Kind::Sa | Kind::Policy => {
                    let id = NetnsId(kept.record.netns);
                    namespaces.entry(id).or_default().push(*kept);
                }
            }
        }
        for (id, records) in namespaces {
            let netns = Netns::recall(profile, limits, &records)?;
            emulator.next_netns = emulator.next_netns.max(id.0.saturating_add(1));
            emulator.insert(id, netns);
        }
        Ok(emulator)
    }

    /// Puts all state on a shelf from now on: whenever something has changed, before anybody is
    /// told of it.
    pub fn keep_on(&mut self, shelf: Box<dyn Shelf>) {
        self.keeper.shelf = Some(shelf);
        let machine = [self.next_netns, self.acqseq];
        for (&id, ns) in &self.namespaces {
            self.keeper.keep(id, &mut ns.write(), machine);
        }
    }

    /// The shelf, for records of the driver's own.
    pub fn shelf(&mut self) -> Option<&mut (dyn Shelf + 'static)> {
        self.keeper.shelf.as_deref_mut()
    }

    /// Changes what namespaces may hold at most; what they hold already stays.
    pub fn set_limits(&mut self, limits: Limits) {
        self.tell(&Step::Limits(limits));
        self.limits = limits;
        for namespace in self.namespaces.values() {
            let mut netns = namespace.write();
            netns.sad.set_limits(limits);
            netns.spd.set_limits(limits);
        }
    }

    /// The release that is emulated.
    #[must_use]
    pub fn profile(&self) -> &'static Profile {
        self.profile
    }

    /// A fresh namespace, as after `unshare(CLONE_NEWNET)`.
    pub fn create_netns(&mut self) -> NetnsId {
        let id = NetnsId(self.next_netns);
        self.tell(&Step::Create { netns: id });
        self.next_netns += 1;
        self.insert(id, Netns::new(self.profile, self.limits));
        let machine = [self.next_netns, self.acqseq];
        if let Some(ns) = self.namespaces.get(&id) {
            self.keeper.keep(id, &mut ns.write(), machine);
        }
        id
    }

    fn insert(&mut self, id: NetnsId, netns: Netns) {
        let namespace = Namespace {
            netns: Arc::new(RwLock::new(netns)),
            sockets: Sockets::default(),
        };
        self.namespaces.insert(id, namespace);
    }

    /// Forgets a namespace and all that is in it. No packet passes it any more.
    pub fn destroy_netns(&mut self, id: NetnsId) {
        self.tell(&Step::Destroy { netns: id });
        let ended = self.namespaces.remove(&id);
        if let (Some(ns), Some(shelf)) = (ended, &mut self.keeper.shelf) {
            ns.write().forget(id.0, shelf.as_mut());
            shelf.commit();
        }
    }

    /// All namespaces, oldest first.
    #[must_use]
    pub fn namespaces(&self) -> Vec<NetnsId> {
        self.namespaces.keys().copied().collect()
    }

    /// A namespace's engine, for counters and sizes.
    #[must_use]
    pub fn netns(&self, id: NetnsId) -> Option<RwLockReadGuard<'_, Netns>> {
        self.namespaces.get(&id).map(Namespace::read)
    }

    /// All SAs and policies of a namespace at one moment, as the messages of dumps.
    #[must_use]
    pub fn snapshot(&self, id: NetnsId) -> Option<Vec<u8>> {
        let mut netns = self.namespaces.get(&id)?.write();
        let mut messages = Vec::new();
        for start in [sa::start_dump, policy::start_dump] {
            let mut dump = start(&mut netns, &[]);
            // The dump of everything cannot fail.
            let _ = dump.fill(&mut netns, &mut messages, usize::MAX, 0, 0);
        }
        Some(messages)
    }

    /// Changes a namespace's settings. A tape hears of its sysctls.
    pub fn change<T>(&mut self, id: NetnsId, change: impl FnOnce(&mut Netns) -> T) -> Option<T> {
        let machine = [self.next_netns, self.acqseq];
        let mut netns = self.namespaces.get(&id)?.write();
        let before = netns.sysctls;
        let changed = change(&mut netns);
        let sysctls = netns.sysctls;
        if let Some(tape) = self.tape.as_mut().filter(|_| sysctls != before) {
            tape.hear(&Step::Sysctls { netns: id, sysctls }, Heard::nothing());
        }
        self.keeper.keep(id, &mut netns, machine);
        Some(changed)
    }

    /// A namespace's engine. What is done with it no tape hears.
    pub fn netns_mut(&mut self, id: NetnsId) -> Option<RwLockWriteGuard<'_, Netns>> {
        self.namespaces.get(&id).map(Namespace::write)
    }

    /// What has waited long enough, for a packet thread: packets without SAs, and IPTFS SAs.
    pub fn release(&mut self, id: NetnsId, now: BootNanos) -> (Vec<Queue>, Vec<SaHandle>) {
        let Some(ns) = self.namespaces.get(&id) else {
            return Default::default();
        };
        let mut netns = ns.write();
        let released = (netns.take_held(now), netns.take_iptfs(now));
        if let Some(tape) = &mut self.tape
            && (!released.0.is_empty() || !released.1.is_empty())
        {
            tape.hear(&Step::Release { netns: id, now }, Heard::nothing());
        }
        released
    }

    /// A namespace's engine, for a packet thread.
    #[must_use]
    pub fn shared(&self, id: NetnsId) -> Option<Arc<RwLock<Netns>>> {
        self.namespaces.get(&id).map(|ns| Arc::clone(&ns.netns))
    }

    /// Handles all messages of a datagram; what they cause waits in [`Emulator::poll_datagram`].
    pub fn handle_datagram(&mut self, inputs: Inputs<'_>, peer: Peer, datagram: &[u8]) {
        let now = inputs.now;
        let step = || {
            let bytes = datagram.into();
            Step::Request { now, peer, bytes }
        };
        self.act(inputs, peer.netns, Some(step), |netns, sockets, cx, out| {
            crate::netlink::receive(netns, sockets, cx, out, peer, datagram);
            netns.run_workers();
        });
    }

    /// Has a namespace to itself, keeps and tells what that has changed.
    fn act<'s, T>(
        &mut self,
        inputs: Inputs<'_>,
        id: NetnsId,
        step: Option<impl FnOnce() -> Step<'s>>,
        work: impl FnOnce(&mut Netns, &mut Sockets, Context<'_>, &mut Outbox) -> T,
    ) -> Option<T> {
        let ns = self.namespaces.get_mut(&id)?;
        let mut netns = ns.netns.write().unwrap_or_else(PoisonError::into_inner);
        let before = self.outbox.len();
        let mut draws = Draws::new(inputs.entropy, self.tape.is_some());
        let cx = Context {
            now: inputs.now,
            entropy: &mut draws,
            acqseq: &mut self.acqseq,
        };
        let done = work(&mut netns, &mut ns.sockets, cx, &mut self.outbox);
        let machine = [self.next_netns, self.acqseq];
        self.keeper.keep(id, &mut netns, machine);
        deliver_events(&mut netns, &mut self.outbox, id);
        // While the namespace is held: the tape has packets and requests in their order.
        if let (Some(tape), Some(step)) = (&mut self.tape, step) {
            tape.hear(&step(), draws.heard(&self.outbox, before));
        }
        Some(done)
    }

    /// Refuses a message (header included) that is not handled, with netlink's own
    /// acknowledgement; it waits in [`Emulator::poll_datagram`].
    pub fn refuse(&mut self, peer: Peer, message: &[u8], error: &XfrmError) {
        self.outbox
            .send(peer.netns, Destination::Port(peer.port), |bytes| {
                let (errno, extack) = (error.errno, &error.extack);
                write_ack(bytes, message, peer.port, errno, extack, peer.options);
            });
    }

    /// Has a datagram of the caller's wait behind all others in [`Emulator::poll_datagram`].
    pub fn queue(&mut self, netns: NetnsId, to: Destination, datagram: &[u8]) {
        self.outbox
            .send(netns, to, |bytes| bytes.extend_from_slice(datagram));
    }

    /// Tells that `peer` has received a datagram: if it dumps, the next chunk is made.
    ///
    /// Returns whether the dump goes on.
    pub fn handle_recv(&mut self, peer: Peer) -> bool {
        let Some(ns) = self.namespaces.get_mut(&peer.netns) else {
            return false;
        };
        let before = self.outbox.len();
        let mut netns = ns.netns.write().unwrap_or_else(PoisonError::into_inner);
        let was_dumping = ns.sockets.is_dumping(peer.port);
        let goes_on =
            crate::netlink::continue_dump(&mut netns, &mut ns.sockets, &mut self.outbox, peer);
        if let Some(tape) = self.tape.as_mut().filter(|_| was_dumping) {
            tape.hear(&Step::Pull { peer }, Heard::answers(&self.outbox, before));
        }
        goes_on
    }

    /// Whether a dump of that socket is under way.
    #[must_use]
    pub fn is_dumping(&self, netns: NetnsId, port: u32) -> bool {
        self.namespaces
            .get(&netns)
            .is_some_and(|ns| ns.sockets.is_dumping(port))
    }

    /// Forgets a client's socket.
    pub fn close_socket(&mut self, netns: NetnsId, port: u32) {
        if let Some(ns) = self.namespaces.get_mut(&netns) {
            let was_dumping = ns.sockets.is_dumping(port);
            ns.sockets.close(port);
            if was_dumping {
                self.tell(&Step::Close { netns, port });
            }
        }
    }

    /// `setsockopt` of `IP_XFRM_POLICY` (`option_family` AF_INET) or `IPV6_XFRM_POLICY`
    /// (AF_INET6) on a socket of `family`; `None` is the null pointer of length 0 that takes
    /// the socket's policies away, as does closing it. The caller has checked `CAP_NET_ADMIN`.
    ///
    /// # Errors
    /// The errno for `setsockopt`.
    pub fn set_socket_policy(
        &mut self,
        now: Now,
        netns: NetnsId,
        socket: SocketKey,
        family: u16,
        option_family: u16,
        value: Option<&[u8]>,
    ) -> Result<(), i32> {
        let machine = [self.next_netns, self.acqseq];
        let Some(ns) = self.namespaces.get(&netns) else {
            return Ok(());
        };
        let mut engine = ns.write();
        let result = policy_option(&mut engine, now, socket, family, option_family, value);
        self.keeper.keep(netns, &mut engine, machine);
        if let Some(tape) = &mut self.tape {
            let step = Step::SocketPolicy {
                now,
                netns,
                socket,
                family,
                option_family,
                value: value.map(Into::into),
            };
            tape.hear(&step, Heard::errno(result.err()));
        }
        result
    }

    /// Tells how many sockets of any namespace listen to `group` (1 to 32).
    pub fn set_listeners(&mut self, netns: NetnsId, group: u32, count: u32) {
        if let Some(ns) = self.namespaces.get_mut(&netns) {
            let changes = ns.sockets.listeners(group) != count;
            ns.sockets.set_listeners(group, count);
            let mut engine = ns.write();
            engine.listeners = Listeners {
                acquire: ns.sockets.has_listeners(group::ACQUIRE),
                aevents: ns.sockets.has_listeners(group::AEVENTS),
            };
            if let Some(tape) = self.tape.as_mut().filter(|_| changes) {
                let step = Step::Listeners {
                    netns,
                    group,
                    count,
                };
                tape.hear(&step, Heard::nothing());
            }
        }
    }

    /// Carries out what packets of a worker have asked for; what that causes waits in
    /// [`Emulator::poll_datagram`].
    pub fn handle_requests(
        &mut self,
        inputs: Inputs<'_>,
        asked: Asked,
        requests: impl IntoIterator<Item = Request>,
    ) {
        let now = inputs.now;
        let step = || Step::Inquiries { now, asked };
        self.act(inputs, asked.netns, Some(step), |netns, _, mut cx, _| {
            netns.handle_requests(&mut cx, requests);
        });
    }

    /// Lets packets pass through a namespace; what they cause waits in [`Emulator::poll_datagram`].
    /// What is done no tape hears.
    pub fn with_packets<T>(
        &mut self,
        inputs: Inputs<'_>,
        id: NetnsId,
        pass: impl FnOnce(&mut Netns, &mut Context<'_>) -> T,
    ) -> Option<T> {
        let untold = None::<fn() -> Step<'static>>;
        self.act(inputs, id, untold, |netns, _, mut cx, _| {
            pass(netns, &mut cx)
        })
    }

    /// Runs the timers that are due.
    pub fn handle_timeout(&mut self, inputs: Inputs<'_>) {
        let Inputs { now, entropy } = inputs;
        for netns in self.namespaces() {
            let entropy = &mut *entropy;
            self.handle_timeout_of(Inputs { now, entropy }, netns);
        }
    }

    /// Runs the timers of a namespace that are due.
    pub fn handle_timeout_of(&mut self, inputs: Inputs<'_>, id: NetnsId) {
        let now = inputs.now;
        let ns = self.namespaces.get(&id);
        let due = ns.and_then(|ns| ns.read().poll_timeout());
        if due.is_none_or(|due| due > now.boot) {
            return;
        }
        let step = || Step::Timers { now, netns: id };
        self.act(inputs, id, Some(step), |netns, _, mut cx, _| {
            netns.handle_timeout(&mut cx);
        });
    }

    /// When [`Emulator::handle_timeout`] wants to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<BootNanos> {
        self.namespaces
            .values()
            .filter_map(|ns| ns.read().poll_timeout())
            .min()
    }

    /// The next datagram to deliver, oldest first.
    pub fn poll_datagram(&mut self) -> Option<Datagram<'_>> {
        self.outbox.pop()
    }

    /// The same, several at once where they go the same way.
    pub fn poll_batch(&mut self) -> Option<Batch<'_>> {
        self.outbox.pop_batch()
    }
}
