//! How packets of a network namespace get into the engine and back, on a host
//! whose kernel has no ESP.
//!
//! * [`classify`]: policies as hash sets; [`firewall`]: the host's packet
//!   filter made of them, which marks what is to be protected and drops what
//!   should have been; [`nft`] and [`netlink`]: its messages.
//! * [`rules`]: what can be had of that on a host without nf_tables.
//! * [`routes`]: what the engine asks of the host's routes.
//! * [`link`]: the TUN device, and the routes by which marked packets reach it.
//!
//! An [`Attachment`] exists while a namespace has policies or SAs: SAs alone take
//! what is protected, as on Linux. It is made when the first one comes, follows
//! each change before the request that made it is answered, and goes with the
//! last one or with the daemon's orderly end. When
//! the daemon is killed its device goes, and rules, table and last route stay:
//! what was to be protected finds no way out, and nothing unprotected in.
//!
//! **Marks.** Three bits of the packet mark are ours, the others are left as they
//! are: [`CAPTURED`] leads to a device, [`RETURNED`] is on what comes from
//! it, [`BYPASS`] on everything that the daemon sends and on the sockets of key
//! managers that have a policy to bypass. [`OWN`] is on sockets whose own policies
//! want anything else, and what else their mark says is which one it is.
//!
//! A TUN device does not tell the mark of a packet. What has one, be it the
//! user's or a socket's, goes to a second device where it is told
//! ([`dataplane::io::marked`]).
//!
//! Not yet: sockets bound to a device do not reach ours, their packets are dropped.

mod classify;
mod firewall;
mod link;
pub(crate) mod netlink;
mod nft;
mod routes;
mod rules;
mod sockets;

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use dataplane::io::marked::Marked;
use dataplane::io::raw::Raw;
use dataplane::io::tun::Tun;
use dataplane::mib::Counter;
use dataplane::packet::Family;
use dataplane::spd::Policy;
use nix::sys::socket::SockProtocol;
use xfrm_proto::consts::IPPROTO_ESP;
use xfrm_proto::uapi::UserPolicyDefault;

use clap::ValueEnum;
use firewall::Firewall;
pub(crate) use routes::{EncapSocket, HostRoutes, LEAST_MTU_V6};
pub(crate) use sockets::OwnSocket;

/// How to get capabilities.
pub(crate) const MORE_RIGHTS: &str =
    "sudo, or unshare -rn; in a container, --cap-add NET_ADMIN --cap-add NET_RAW";
/// Names of the TUN devices: for packets, and for those that have a mark.
const DEVICE: &str = "xfrmd0";
const MARKED_DEVICE: &str = "xfrmd1";
/// How long a daemon that is killed may take to let go of its devices.
const MOST_LOOKS: usize = 50;
const LOOK: Duration = Duration::from_millis(10);
/// The bits of the packet mark that are ours.
pub(crate) const MARK_MASK: u32 = 0x3000_0000;
/// On packets that a policy wants protected.
const CAPTURED: u32 = 0x1000_0000;
/// On packets that the engine has given back.
const RETURNED: u32 = 0x2000_0000;
/// On packets that policies do not apply to (any more).
pub(crate) const BYPASS: u32 = 0x3000_0000;

/// With the other two zero: the mark of a socket that has policies of its own. On captured packets
/// without a socket's number: they come from the device.
pub(crate) const OWN: u32 = 0x0800_0000;
/// All bits that are ours.
pub(crate) const STATE_MASK: u32 = MARK_MASK | OWN;
/// Of the mark of such a socket: what tells it from others.
pub(crate) const OWN_MASK: u32 = 0x0fff_ffff;

/// By what the host picks packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Capture {
    /// nf_tables, or rules and routes where there is none.
    #[default]
    Auto,
    /// nf_tables or nothing.
    #[value(name = "nf_tables")]
    NfTables,
    /// Rules and routes, by which less can be said.
    Routes,
}

impl Capture {
    /// Its name.
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// What the host picks packets by.
#[derive(Debug)]
enum Picker {
    NfTables {
        host: netlink::Socket,
        /// Rules of a daemon that was killed and did without, until there is something in their
        /// place.
        left: Option<netlink::Socket>,
    },
    Routes(rules::Rules),
}

impl Picker {
    /// The first time. To be called in the namespace.
    fn start(capture: Capture, firewall: &mut Firewall) -> io::Result<Self> {
        let tables = || {
            let host = firewall::socket()?;
            let routes = netlink::Socket::open(SockProtocol::NetlinkRoute)?;
            let left = rules::any(&routes)?.then_some(routes);
            let mut picker = Self::NfTables { host, left };
            picker.apply(firewall).map(|()| picker)
        };
        let named = |error: io::Error| io::Error::new(error.kind(), format!("nf_tables: {error}"));
        match (capture != Capture::Routes).then(tables) {
            Some(Ok(picker)) => return Ok(picker),
            Some(Err(error)) if capture == Capture::NfTables || !is_absent(&error) => {
                return Err(named(error));
            }
            Some(Err(error)) => tracing::warn!(
                %error,
                "no nf_tables: packets are picked by destination and checked by prefixes and \
                 protocol alone, nothing that is dropped is counted (docs/operating.md)"
            ),
            None => {}
        }
        let rules = rules::Rules::open()?;
        if let Err(error) = rules.apply(firewall) {
            rules::remove(rules.socket())?;
            return Err(error);
        }
        Ok(Self::Routes(rules))
    }

    fn apply(&mut self, firewall: &mut Firewall) -> io::Result<()> {
        match self {
            Self::NfTables { left: Some(_), .. } if firewall.is_idle() => Ok(()),
            Self::NfTables { host, left } => {
                firewall.apply(host)?;
                match left.take() {
                    Some(routes) => rules::remove(&routes),
                    None => Ok(()),
                }
            }
            Self::Routes(rules) => rules.apply(firewall),
        }
    }

    fn remove(&self, firewall: &mut Firewall) -> io::Result<()> {
        match self {
            Self::NfTables { host, .. } => firewall.remove(host),
            Self::Routes(rules) if rules.are_ours() => rules::remove(rules.socket()),
            Self::Routes(_) => Ok(()),
        }
    }
}

/// Whether the host does not know nf_tables, or not what we want of it.
fn is_absent(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    matches!(
        code,
        Some(
            libc::EPROTONOSUPPORT
                | libc::EAFNOSUPPORT
                | libc::EOPNOTSUPP
                | libc::EINVAL
                | libc::ENOENT
        )
    )
}

/// Something that carrying packets needs of the host.
pub(crate) struct Need {
    pub(crate) name: &'static str,
    /// What it is for.
    pub(crate) meaning: &'static str,
    /// Why it cannot be had, and what can be done.
    pub(crate) missing: Option<(io::Error, &'static str)>,
}

/// What this process needs where it is, as far as that can be found out without changing anything.
pub(crate) fn needs() -> [Need; 2] {
    let device = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    let advice = match device.as_ref().map_err(io::Error::kind) {
        Err(io::ErrorKind::PermissionDenied) => "as root, or chmod 666 /dev/net/tun",
        _ => "modprobe tun; in a container, --device /dev/net/tun",
    };
    let raw = Raw::open(Family::V4, IPPROTO_ESP, BYPASS);
    [
        Need {
            name: "/dev/net/tun",
            meaning: "how packets come from the host and go back",
            missing: device.err().map(|error| (error, advice)),
        },
        Need {
            name: "raw sockets with marks",
            meaning: "how ESP goes and comes (CAP_NET_RAW, CAP_NET_ADMIN)",
            missing: raw.err().map(|error| (error, MORE_RIGHTS)),
        },
    ]
}

/// What packets are picked by where it is there.
pub(crate) fn nf_tables() -> Need {
    Need {
        name: "nf_tables",
        meaning: "how the host picks packets (CAP_NET_ADMIN)",
        missing: firewall::socket()
            .err()
            .map(|error| (error, "modprobe nf_tables, CONFIG_NF_TABLES_INET")),
    }
}

/// What this process lacks to carry packets, and how to get it.
pub(crate) fn missing() -> Option<String> {
    let lacks = |need: Need| {
        let (error, advice) = need.missing?;
        Some(format!("{}: {error} ({advice})", need.name))
    };
    needs().into_iter().find_map(lacks)
}

/// Whether a daemon, alive or killed, has put its rules into the thread's network namespace.
pub(crate) fn has_rules() -> bool {
    rules::are_there() || firewall::socket().is_ok_and(|host| !firewall::dropped(&host).is_empty())
}

/// Attaches the thread's network namespace for a moment, to see whether that works.
///
/// # Errors
/// The host's.
pub(crate) fn try_out(capture: Capture) -> io::Result<()> {
    let mut attachment = Attachment::default();
    attachment.firewall.set_needed();
    attachment.apply(capture, |work| work())?;
    attachment.detach(|work| work())
}

/// Policies of a namespace as the host's packet filter has to show them, attached or not.
#[derive(Debug, Default)]
pub(crate) struct Attachment {
    firewall: Firewall,
    has_sas: bool,
    /// Sockets' own policies are not what the host knows.
    own_changed: bool,
    host: Option<Picker>,
    /// Tells of sockets.
    sockets: Option<netlink::Socket>,
    /// The device that a daemon before us has left, until we are attached.
    left: Option<OwnedFd>,
}

/// What packets of the host come from.
#[derive(Debug)]
pub(crate) struct Devices {
    /// Those without a mark; and where packets for the host go to.
    pub(crate) tun: Tun,
    /// Those with one; none on a host that does not tell marks, where they are lost.
    pub(crate) marked: Option<Marked>,
    /// The host sends more than policies select: what none is for goes on as it is.
    pub(crate) are_beyond_policies: bool,
}

/// What a change comes to.
#[derive(Debug)]
pub(crate) enum Change {
    /// Nothing, or a change of what is there.
    Same,
    /// The first policy or SA has come: packets come from these devices.
    Attached(Box<Devices>),
    /// The last one has gone.
    Detached,
}

impl Attachment {
    /// Notes what the policy of an index is now.
    pub(crate) fn set(&mut self, index: u32, policy: Option<&Policy>) {
        self.firewall.set(index, policy);
    }

    /// Notes what happens without a policy; whether that is new.
    pub(crate) fn set_defaults(&mut self, defaults: UserPolicyDefault) -> bool {
        let changed = self.firewall.set_defaults(defaults);
        if changed {
            self.firewall.forget_host();
        }
        changed
    }

    /// Notes whether there are SAs, which may get packets without any policy.
    pub(crate) fn set_sas(&mut self, some: bool) {
        self.has_sas = some;
    }

    /// Notes what the own policies are of the socket with this mark: for input, for output.
    pub(crate) fn set_own(&mut self, mark: u32, policies: [Option<&Policy>; 2]) {
        self.firewall.set_own(mark, policies);
        self.own_changed = true;
    }

    /// Whether the host has to be told of sockets' own policies.
    pub(crate) fn has_own_changes(&self) -> bool {
        self.own_changed
    }

    /// Whether the host should send us packets.
    pub(crate) fn is_wanted(&self) -> bool {
        self.has_sas || !self.firewall.is_idle()
    }

    /// Goes on with a device, to which the host has sent packets all the time.
    pub(crate) fn take_over(&mut self, device: Option<OwnedFd>) {
        if device.is_some() {
            self.firewall.adopt();
        }
        self.left = device;
    }

    /// Whether the host can tell packets of sockets with policies of their own.
    pub(crate) fn knows_sockets(&self) -> bool {
        matches!(self.host, Some(Picker::NfTables { .. }))
    }

    /// Whether the host sends us packets.
    pub(crate) fn is_attached(&self) -> bool {
        self.host.is_some()
    }

    /// Whether [`Attachment::apply`] makes [`Attachment::dropped`] begin anew.
    pub(crate) fn will_reset_counters(&self) -> bool {
        self.is_attached() && (!self.is_wanted() || !self.firewall.is_installed())
    }

    /// Brings the host up to date; `inside` runs work in the namespace.
    ///
    /// # Errors
    /// The host's, and what was tried: nothing is half attached. A failed change of what is there
    /// is tried again with the next one.
    pub(crate) fn apply(
        &mut self,
        capture: Capture,
        inside: impl FnOnce(&mut dyn FnMut() -> io::Result<()>) -> io::Result<()>,
    ) -> io::Result<Change> {
        self.own_changed = false;
        let wanted = self.is_wanted();
        match (&mut self.host, wanted) {
            (None, false) => Ok(Change::Same),
            (Some(host), true) => host.apply(&mut self.firewall).map(|()| Change::Same),
            (None, true) => {
                let mut made = None;
                inside(&mut || {
                    made = Some(attach(capture, &mut self.firewall, self.left.take())?);
                    Ok(())
                })?;
                let (host, sockets, devices) = made.ok_or(io::ErrorKind::Other)?;
                self.host = Some(host);
                self.sockets = sockets;
                Ok(Change::Attached(Box::new(devices)))
            }
            (Some(_), false) => {
                self.detach(inside)?;
                Ok(Change::Detached)
            }
        }
    }

    /// Takes everything away.
    ///
    /// # Errors
    /// The host's.
    pub(crate) fn detach(
        &mut self,
        inside: impl FnOnce(&mut dyn FnMut() -> io::Result<()>) -> io::Result<()>,
    ) -> io::Result<()> {
        self.sockets = None;
        let Some(host) = self.host.take() else {
            return Ok(());
        };
        let removed = host.remove(&mut self.firewall);
        let by_routes = matches!(&host, Picker::Routes(rules) if rules.are_ours());
        inside(&mut || {
            if by_routes {
                rules::restore_delivery()?;
            }
            link::take_down()
        })?;
        removed
    }

    /// Lets the host's objects be as if we had been killed: what was to be protected finds no way.
    pub(crate) fn abandon(&mut self) {
        self.firewall.abandon();
        self.host = None;
        self.sockets = None;
    }

    /// Which of these marks of sockets are on a connection that lives on.
    pub(crate) fn alive(&self, marks: &[u32]) -> Vec<u32> {
        let asked = self.sockets.as_ref().map(|it| sockets::alive(it, marks));
        asked.and_then(Result::ok).unwrap_or_default()
    }

    /// Packets that the host dropped for us, by where Linux counts them.
    pub(crate) fn dropped(&self) -> Vec<(Counter, u64)> {
        match &self.host {
            Some(Picker::NfTables { host, .. }) => firewall::dropped(host),
            _ => Vec::new(),
        }
    }
}

/// A device, which a daemon that is being killed may have for another moment.
fn open(name: &str) -> io::Result<Tun> {
    for _ in 0..MOST_LOOKS {
        match Tun::open(name) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => std::thread::sleep(LOOK),
            other => return other,
        }
    }
    Tun::open(name)
}

/// Devices, routes, then what leads packets there, in the thread's namespace.
fn attach(
    capture: Capture,
    firewall: &mut Firewall,
    left: Option<OwnedFd>,
) -> io::Result<(Picker, Option<netlink::Socket>, Devices)> {
    let named =
        |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    // Somebody may have removed the device meanwhile.
    let tun = match left.filter(|_| link::is_there()) {
        Some(device) => Tun::adopt(device),
        None => open(DEVICE),
    };
    let tun = tun.map_err(|error| named("/dev/net/tun", error))?;
    let for_marked = open(MARKED_DEVICE).map_err(|error| named("/dev/net/tun", error))?;
    link::set_up().map_err(|error| named("routes to the device", error))?;
    let marked = Marked::new(for_marked, MARKED_DEVICE);
    if let Err(error) = &marked {
        tracing::warn!(%error, "packets with a mark are lost: this host does not tell marks (Linux 5.19)");
    }
    match Picker::start(capture, firewall) {
        Ok(host) => {
            let devices = Devices {
                tun,
                marked: marked.ok(),
                are_beyond_policies: matches!(host, Picker::Routes(_)),
            };
            let sockets = netlink::Socket::open(SockProtocol::NetlinkSockDiag);
            Ok((host, sockets.ok(), devices))
        }
        Err(error) => {
            if let Err(error) = link::take_down() {
                tracing::warn!(%error, "routes to the device stay");
            }
            Err(error)
        }
    }
}
