//! Namespaces that packets are carried for: attached while they have policies or SAs.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

use dataplane::io::bulk::Bulk;
use dataplane::io::udp_encap;
use dataplane::mib::{Counter, Mib};
use dataplane::spd::SocketKey;
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use nix::sys::socket::{SockType, SockaddrStorage, getsockname, getsockopt, sockopt};
use xfrmd::emulator::{Inputs, NetnsId};

use super::connection::{Connection, Reply};
use super::keeper::{self, Role};
use super::namespace::{self, Home};
use super::observe::Observed;
use super::own_sockets::Own;
use super::packets::{Left, PacketThreads, Sockets, Ties};
use super::{Daemon, host};
use crate::attach::{Attachment, BYPASS, Change, Devices, EncapSocket, OwnSocket};
use xfrm_proto::control::{Answer, Socket};

/// How long a packet thread may take to close a socket.
const MOST_LOOKS: usize = 500;
const LOOK: Duration = Duration::from_millis(1);

/// A namespace whose policies are followed.
#[derive(Default)]
pub(super) struct Followed {
    pub(super) attachment: Attachment,
    threads: Option<PacketThreads>,
    /// The namespace while it is attached; none for the daemon's own.
    namespace: Option<OwnedFd>,
    /// Sockets of a daemon before us.
    left: Left,
    /// What the host's packet filter had dropped when it was asked last.
    dropped: Vec<(Counter, u64)>,
    /// A failure has been told.
    told: bool,
    /// Sockets that take ESP in UDP.
    pub(super) encap: Vec<Encap>,
    /// What is seen of its packets.
    observed: Arc<Observed>,
    /// Sockets whose own policies are not to bypass.
    pub(super) own: Vec<Own>,
}

/// A key manager's socket that takes ESP in UDP.
pub(super) struct Encap {
    /// The connection that said so.
    pub(super) connection: u64,
    pub(super) socket: EncapSocket,
    /// Ours beside it, if it allows for one.
    pub(super) bulk: Option<Arc<Bulk>>,
}

/// By namespace.
pub(super) type Following = HashMap<NetnsId, Followed, RandomState>;

fn inside(
    home: &Home,
    namespace: Option<&OwnedFd>,
    work: &mut dyn FnMut() -> io::Result<()>,
) -> io::Result<()> {
    match namespace {
        Some(namespace) => home.inside(namespace.as_fd(), work),
        None => work(),
    }
}

impl Followed {
    /// Starts carrying packets, once the host sends them.
    fn start(&mut self, daemon: &Carrier<'_>, devices: Devices) -> io::Result<()> {
        let mut sockets = None;
        let mut left = std::mem::take(&mut self.left);
        inside(daemon.home, self.namespace.as_ref(), &mut || {
            sockets = Some(Sockets::open(&mut left)?);
            Ok(())
        })?;
        let sockets = sockets.ok_or(io::ErrorKind::Other)?;
        if let Some(keeper) = daemon.keeper {
            for (role, fd) in sockets.held() {
                keeper.hold(daemon.cookie, role, fd);
            }
        }
        let encap = self.encap_sockets();
        let threads = PacketThreads::start(
            daemon.id,
            &daemon.netns,
            devices,
            sockets,
            encap,
            &daemon.ties,
            &self.observed,
        )?;
        self.threads = Some(threads);
        self.tell_own();
        Ok(())
    }

    pub(super) fn drain(&self) {
        if let Some(threads) = &self.threads {
            threads.drain();
        }
    }

    pub(super) fn tell_own(&self) {
        if let Some(threads) = &self.threads {
            let sockets: Vec<OwnSocket> = self.own.iter().map(|own| own.socket).collect();
            threads.set_own_sockets(sockets);
        }
    }

    /// Protected packets that have come or gone.
    pub(super) fn packets(&self) -> u64 {
        self.observed.received.packets() + self.observed.sent.packets()
    }

    /// Goes on with a namespace, a device and sockets that others have left.
    pub(super) fn take_over(&mut self, mut left: Left) {
        self.namespace = left.remove(&Role::Followed);
        self.attachment.take_over(left.remove(&Role::Tun));
        self.left = left;
    }

    /// Tells the threads where ESP in UDP comes to.
    fn tell_ports(&mut self) {
        let (sockets, bulk) = self.encap_sockets();
        if let Some(threads) = &self.threads {
            threads.set_encap_sockets(sockets, bulk);
        }
    }

    /// Lets go of what stands beside a socket that must have been closed, since there is another one
    /// in its place.
    fn forget_closed(&mut self, address: SocketAddr, key: SocketKey) {
        let is_closed = |it: &mut Encap| {
            let bulk = it.bulk.as_ref().map(|bulk| bulk.address());
            bulk == Some(address) && it.socket.key != key
        };
        let closed: Vec<Encap> = self.encap.extract_if(.., is_closed).collect();
        if closed.is_empty() {
            return;
        }
        self.tell_ports();
        let ours = closed.into_iter().filter_map(|it| it.bulk);
        let left: Vec<Weak<Bulk>> = ours.map(|bulk| Arc::downgrade(&bulk)).collect();
        // Two that share a port with the same owner would get each other's packets.
        for _ in 0..MOST_LOOKS {
            if left.iter().all(|bulk| bulk.strong_count() == 0) {
                return;
            }
            std::thread::sleep(LOOK);
        }
        tracing::warn!(%address, "packet threads take long to close a socket");
    }

    /// Counts what the host's packet filter has dropped since the last time.
    fn count_dropped(&mut self, mib: &Mib) {
        let dropped = self.attachment.dropped();
        for &(counter, packets) in &dropped {
            let mut before = self.dropped.iter();
            let before = before.find(|&&(other, _)| other == counter);
            let before = before.map_or(0, |&(_, packets)| packets);
            mib.add(counter, packets.saturating_sub(before));
        }
        self.dropped = dropped;
    }

    /// Sockets that take ESP in UDP, one a port, and ours beside them.
    fn encap_sockets(&mut self) -> (Vec<EncapSocket>, Vec<Arc<Bulk>>) {
        // A port where one socket has none of ours beside it is left to raw sockets.
        let bare = |it: &&Encap| it.bulk.is_none();
        let bare: Vec<u16> = self
            .encap
            .iter()
            .filter(bare)
            .map(|it| it.socket.port)
            .collect();
        for encap in &mut self.encap {
            if bare.contains(&encap.socket.port) {
                encap.bulk = None;
            }
        }
        let mut sockets: Vec<EncapSocket> = self.encap.iter().map(|it| it.socket).collect();
        // Of several with the same port the newest counts.
        sockets.reverse();
        sockets.sort_by_key(|it| it.port);
        sockets.dedup_by_key(|it| it.port);
        sockets.truncate(udp_encap::MOST_PORTS);
        let bulk = self.encap.iter().filter_map(|it| it.bulk.clone());
        (sockets, bulk.collect())
    }

    fn detach(&mut self, home: &Home) {
        let namespace = self.namespace.take();
        let detached = self
            .attachment
            .detach(|work| inside(home, namespace.as_ref(), work));
        if let Err(error) = detached {
            tracing::error!(%error, "rules in the host's packet filter or routes may have stayed");
        }
        self.threads = None;
        self.dropped.clear();
    }
}

/// What of the daemon a packet thread needs.
struct Carrier<'a> {
    id: NetnsId,
    home: &'a Home,
    netns: Arc<std::sync::RwLock<dataplane::Netns>>,
    ties: Ties,
    /// Who holds the sockets, and by which number of the namespace.
    keeper: Option<&'a keeper::Line>,
    cookie: u64,
}

impl Daemon {
    /// Makes the host send us what policies select, as they are now. To be called before the
    /// request that changed them is answered.
    pub(super) fn follow_policies(&mut self, id: NetnsId) {
        let Some(inquiries) = &self.inquiries else {
            return;
        };
        let (Some(netns), Some(instance)) = (self.emulator.shared(id), self.instances.get(&id))
        else {
            return;
        };
        let followed = self.following.entry(id).or_default();
        {
            let mut netns = netns
                .write()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            let touched = netns.spd.take_touched();
            let defaults = followed.attachment.set_defaults(netns.spd.defaults());
            let attachment = &mut followed.attachment;
            attachment.set_sas(!netns.sad.is_empty());
            let differs = attachment.is_wanted() != attachment.is_attached();
            if touched.is_empty() && !defaults && !differs && !attachment.has_own_changes() {
                return;
            }
            for index in touched {
                followed.attachment.set(index, netns.spd.of_index(index));
            }
            if followed.attachment.will_reset_counters() {
                followed.count_dropped(&netns.mib);
                followed.dropped.clear();
            }
        }
        let is_home = instance.netns == self.home.cookie;
        if !followed.attachment.is_attached() && !is_home {
            let knows = instance.namespace.is_some() || followed.namespace.is_some();
            if instance.users.is_empty() && !knows {
                // Let go; the next client brings us back.
                return;
            }
            if followed.namespace.is_none() {
                let namespace = instance.namespace.as_ref().map(OwnedFd::try_clone);
                followed.namespace = namespace.and_then(Result::ok);
            }
            if followed.namespace.is_none() {
                if !std::mem::replace(&mut followed.told, true) {
                    tracing::error!(
                        "a namespace that we cannot enter: no packets are carried there"
                    );
                }
                return;
            }
        }
        let home = &self.home;
        let namespace = followed.namespace.as_ref();
        let changed = followed
            .attachment
            .apply(self.settings.capture, |work| inside(home, namespace, work));
        let carrier = Carrier {
            id,
            home,
            netns,
            ties: Ties {
                line: inquiries.line(),
                clock: self.clock.clone(),
                randomness: self.settings.randomness,
                reel: self.recorder.as_ref().map(|it| Arc::clone(it.reel())),
            },
            keeper: self.line.as_ref(),
            cookie: instance.netns,
        };
        let result = match changed {
            Ok(Change::Same) => Ok(()),
            Ok(Change::Attached(devices)) => {
                tracing::info!(netns = instance.netns, "carrying packets");
                if let Some(line) = &self.line {
                    line.hold(instance.netns, Role::Tun, devices.tun.fd());
                    if let Some(namespace) = &followed.namespace {
                        line.hold(instance.netns, Role::Followed, namespace.as_fd());
                    }
                }
                let started = followed.start(&carrier, *devices);
                if started.is_err() {
                    followed.detach(home);
                }
                started
            }
            Ok(Change::Detached) => {
                tracing::info!(netns = instance.netns, "no more packets");
                followed.threads = None;
                followed.namespace = None;
                followed.dropped.clear();
                if let Some(line) = &self.line {
                    for role in Role::carrying() {
                        line.release(instance.netns, role);
                    }
                }
                Ok(())
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => followed.told = false,
            Err(error) if !followed.told => {
                followed.told = true;
                tracing::error!(%error, netns = instance.netns, "no packets are carried");
            }
            Err(error) => tracing::debug!(%error, "still no packets"),
        }
    }

    /// The same for every namespace, after timers.
    pub(super) fn follow_all_policies(&mut self) {
        let ids: Vec<NetnsId> = self.following.keys().copied().collect();
        for id in ids {
            self.follow_policies(id);
        }
    }

    /// Does what packets asked for.
    pub(super) fn answer_packets(&mut self) {
        let Some(inquiries) = &self.inquiries else {
            return;
        };
        for (asked, requests) in inquiries.take() {
            let inputs = Inputs {
                now: self.clock.now(),
                entropy: &mut self.entropy,
            };
            self.emulator.handle_requests(inputs, asked, requests);
        }
        self.deliver(None, false);
        self.arm();
    }

    /// Gives packets back that have waited, for SAs or in them.
    pub(super) fn release_held(&mut self) {
        let now = self.clock.now().boot;
        for (&id, followed) in &self.following {
            let Some(threads) = &followed.threads else {
                continue;
            };
            let (queues, due) = self.emulator.release(id, now);
            if !queues.is_empty() {
                threads.retry(queues);
            }
            if !due.is_empty() {
                threads.run_iptfs(due);
            }
        }
    }

    /// What is seen of a namespace's packets.
    pub(super) fn observed(&mut self, id: NetnsId) -> &Arc<Observed> {
        &self.following.entry(id).or_default().observed
    }

    /// What is carried of a namespace's packets, if any are.
    pub(super) fn carried(&self, id: NetnsId) -> Option<serde_json::Value> {
        let followed = self.following.get(&id)?;
        Some(serde_json::json!({
            "attached": followed.attachment.is_attached(),
            "in": followed.observed.received.to_json(),
            "out": followed.observed.sent.to_json(),
        }))
    }

    /// Counts what the host's packet filter has dropped for us.
    pub(super) fn count_dropped(&mut self, id: NetnsId) {
        let Some(followed) = self.following.get_mut(&id) else {
            return;
        };
        if let Some(netns) = self.emulator.netns(id) {
            followed.count_dropped(&netns.mib);
        }
    }

    /// Does to a key manager's socket what the host's XFRM would do by itself.
    pub(super) fn show(
        &mut self,
        connection: &mut Connection,
        socket: Socket,
        encap: bool,
        [fd, _]: [Option<OwnedFd>; 2],
    ) -> Reply {
        if self.inquiries.is_none() {
            return Reply::Answer(Answer::default());
        }
        let Some(entered) = self.enter(connection, socket.netns) else {
            return Reply::unknown_netns();
        };
        let Some(fd) = fd else {
            return Reply::wants_proof();
        };
        let is_it = host::netns_cookie(fd.as_fd()).is_ok_and(|netns| netns == socket.netns)
            && host::socket_cookie(fd.as_fd()).is_ok_and(|cookie| cookie == socket.cookie);
        if !is_it {
            return Reply::HangUp;
        }
        let key = SocketKey(socket.cookie);
        if entered.privileged
            && let Err(error) = self.mark_socket(connection.id, entered.id, key, &fd)
        {
            tracing::warn!(%error, "a socket's own policy has no effect on packets");
            return Reply::error(error.raw_os_error().unwrap_or(libc::EOPNOTSUPP));
        }
        let shown = encap || !self.following.is_empty();
        if encap {
            let taken = take_encap(&fd);
            match taken {
                Ok(address) => {
                    let port = address.port();
                    let followed = self.following.entry(entered.id).or_default();
                    followed.forget_closed(address, key);
                    let bulk = self.bulk_beside(entered.id, key, &fd);
                    let followed = self.following.entry(entered.id).or_default();
                    followed.encap.push(Encap {
                        connection: connection.id,
                        socket: EncapSocket { port, key },
                        bulk,
                    });
                    followed.tell_ports();
                }
                Err(error) => tracing::warn!(%error, "no ESP in UDP for a socket"),
            }
        }
        if shown {
            self.keep_belongings(connection, entered.id);
        }
        Reply::Answer(Answer::default())
    }

    /// A socket of ours on the port of a key manager's, or the one that there is.
    fn bulk_beside(&self, id: NetnsId, key: SocketKey, owner: &OwnedFd) -> Option<Arc<Bulk>> {
        let known = self.following.get(&id).into_iter().flat_map(|it| &it.encap);
        let mut known = known.filter(|it| it.socket.key == key);
        if let Some(bulk) = known.find_map(|it| it.bulk.clone()) {
            return Some(bulk);
        }
        let instance = self.instances.get(&id)?;
        let namespace = instance.namespace.as_ref();
        if namespace.is_none() && instance.netns != self.home.cookie {
            return None;
        }
        let mut bulk = None;
        let opened = inside(&self.home, namespace, &mut || {
            bulk = Some(Arc::new(Bulk::beside(owner, BYPASS)?));
            Ok(())
        });
        if let Err(error) = opened {
            tracing::debug!(%error, "ESP in UDP goes one packet a call");
        }
        bulk
    }

    /// Forgets what only a connection needed; where there was something.
    pub(super) fn end_shown(&mut self, connection: u64) -> Vec<NetnsId> {
        let mut ended = Vec::new();
        for (&id, followed) in &mut self.following {
            let before = followed.encap.len();
            followed.encap.retain(|it| it.connection != connection);
            if followed.encap.len() != before {
                followed.tell_ports();
                ended.push(id);
            }
        }
        ended.extend(self.forget_own_sockets(|own| own.connection == Some(connection)));
        ended
    }

    /// Lets go of a namespace that nobody else is in, so that it can end; whether it must be
    /// looked at again. Should it live on, its rules stay, and the next client brings us back.
    pub(super) fn let_go(&mut self, id: NetnsId) -> bool {
        let Some(followed) = self.following.get_mut(&id) else {
            return false;
        };
        let Some(namespace) = &followed.namespace else {
            return false;
        };
        if namespace::is_inhabited(namespace.as_fd()) {
            return true;
        }
        tracing::info!("nobody is left in a namespace that packets were carried for");
        followed.threads = None;
        followed.attachment.abandon();
        followed.namespace = None;
        followed.dropped.clear();
        if let (Some(line), Some(instance)) = (&self.line, self.instances.get(&id)) {
            for role in Role::carrying() {
                line.release(instance.netns, role);
            }
        }
        false
    }

    /// Carries packets of a namespace no more, because it is gone.
    pub(super) fn unfollow(&mut self, id: NetnsId) {
        self.following.remove(&id);
    }

    /// Carries no packets any more: the host goes on as without us.
    pub(super) fn detach_all(&mut self) {
        for (_, mut followed) in self.following.drain() {
            if followed.attachment.is_attached() {
                followed.detach(&self.home);
            }
        }
    }
}

/// Takes ESP out of what a UDP socket receives; where it is bound.
fn take_encap(fd: &OwnedFd) -> io::Result<SocketAddr> {
    if getsockopt(fd, sockopt::SockType)? != SockType::Datagram {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let address: SockaddrStorage = getsockname(fd.as_raw_fd())?;
    let address: Option<SocketAddr> = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(v4), _) => Some((v4.ip(), v4.port()).into()),
        (_, Some(v6)) => Some((v6.ip(), v6.port()).into()),
        _ => None,
    };
    let Some(address) = address.filter(|address| address.port() != 0) else {
        return Err(io::Error::other("it has no port yet"));
    };
    udp_encap::filter_owner(fd)?;
    Ok(address)
}
