//! The way of captured packets to the devices: the devices themselves, a routing
//! table for each, and the rules that lead there. Packets that have a mark of
//! their own go to the one where it is told.
//!
//! A table's last route is unreachable: without the device nothing goes on
//! to other tables, where it would leave in clear.
//!
//! Source: rtnetlink(7), `include/uapi/linux/fib_rules.h`.

use std::io;

use nix::net::if_::if_nametoindex;
use nix::sys::socket::SockProtocol;
use xfrm_proto::consts::AF_INET6;
use xfrm_proto::uapi::Address;

use super::netlink::{Messages, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Socket};
use super::{CAPTURED, DEVICE, MARK_MASK, MARKED_DEVICE, RETURNED};

/// The routing tables, and the devices that they lead to.
pub(super) const TABLE: u32 = 0x7866;
const MARKED_TABLE: u32 = TABLE + 1;
const WAYS: [(&str, u32); 2] = [(DEVICE, TABLE), (MARKED_DEVICE, MARKED_TABLE)];
/// Rules come before strongSwan's table 220, and before main.
const CAPTURED_PREFERENCE: u32 = 89;
const MARKED_PREFERENCE: u32 = 90;
const RETURNED_PREFERENCE: u32 = 91;
/// Behind every other route.
const LAST_RESORT_METRIC: u32 = 0xff00_0000;
/// The engine decides what is too long for a path, not the device.
const DEVICE_MTU: u32 = 65_535;
const DEVICE_QUEUE: u32 = 1000;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTN_UNICAST: u8 = 1;
const RTN_UNREACHABLE: u8 = 7;
const RT_SCOPE_LINK: u8 = 253;
/// `RTPROT_STATIC`.
const PROTOCOL: u8 = 4;

const FAMILIES: [u8; 2] = [2, 10];

/// Settings of the device under `/proc/sys/net`: packets from it are what SAs protected, whatever
/// the route back is, and no neighbours are there.
const SYSCTLS: [(&str, &str); 6] = [
    ("ipv4/conf/*/rp_filter", "0"),
    ("ipv4/conf/*/src_valid_mark", "1"),
    ("ipv4/conf/*/accept_local", "1"),
    ("ipv4/conf/*/send_redirects", "0"),
    ("ipv6/conf/*/accept_ra", "0"),
    ("ipv6/conf/*/disable_ipv6", "0"),
];

/// Whether there is a device of our name in the thread's namespace.
pub(super) fn is_there() -> bool {
    if_nametoindex(DEVICE).is_ok()
}

/// Sets the device up and leads captured packets to it. To be called in its namespace.
///
/// # Errors
/// The host's. What had been done is undone.
pub(super) fn set_up() -> io::Result<()> {
    let socket = Socket::open(SockProtocol::NetlinkRoute)?;
    set_up_with(&socket).inspect_err(|_| take_down_with(&socket))
}

fn set_up_with(socket: &Socket) -> io::Result<()> {
    for (device, table) in WAYS {
        let index = if_nametoindex(device)?;
        for (path, value) in SYSCTLS {
            let path = format!("/proc/sys/net/{}", path.replace('*', device));
            if let Err(error) = std::fs::write(&path, value) {
                tracing::debug!(path, %error, "not set");
            }
        }
        start_device(socket, index)?;
        for family in FAMILIES {
            if let Err(error) = lead(socket, family, table, index) {
                let absent = error.raw_os_error() == Some(libc::EAFNOSUPPORT)
                    || error.raw_os_error() == Some(libc::EOPNOTSUPP);
                if i32::from(family) == libc::AF_INET6 && absent {
                    tracing::debug!("no IPv6");
                    continue;
                }
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Takes rules and tables away; the devices go with their descriptors.
pub(super) fn take_down() -> io::Result<()> {
    take_down_with(&Socket::open(SockProtocol::NetlinkRoute)?);
    Ok(())
}

fn take_down_with(socket: &Socket) {
    for family in FAMILIES {
        let mut messages = Messages::default();
        for which in RULES {
            rule(&mut messages, RTM_DELRULE, 0, family, which);
        }
        for (_, table) in WAYS {
            route(&mut messages, RTM_DELROUTE, 0, family, table, None);
        }
        if let Err(error) = socket.transact(&messages) {
            tracing::debug!(family, %error, "taking rules away");
        }
    }
}

fn start_device(socket: &Socket, index: u32) -> io::Result<()> {
    const IFLA_MTU: u16 = 4;
    const IFLA_TXQLEN: u16 = 13;
    const IFLA_AF_SPEC: u16 = 26;
    const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
    const ADDR_GEN_MODE_NONE: u8 = 1;
    let header = |up: u32| {
        let mut header = [0; 16];
        let fields = [index.to_ne_bytes(), up.to_ne_bytes(), up.to_ne_bytes()];
        for (slot, field) in header.chunks_exact_mut(4).skip(1).zip(fields) {
            slot.copy_from_slice(&field);
        }
        header
    };
    let mut messages = Messages::default();
    messages.push(RTM_NEWLINK, NLM_F_ACK, |out| {
        out.fixed(&header(0));
        out.number(IFLA_MTU, DEVICE_MTU);
        out.number(IFLA_TXQLEN, DEVICE_QUEUE);
    });
    socket.transact(&messages)?;
    let mut messages = Messages::default();
    messages.push(RTM_NEWLINK, NLM_F_ACK, |out| {
        out.fixed(&header(0));
        out.nest(IFLA_AF_SPEC, |out| {
            out.nest(10, |out| {
                out.attr(IFLA_INET6_ADDR_GEN_MODE, &[ADDR_GEN_MODE_NONE])
            });
        });
    });
    // Without IPv6 there is no such setting.
    if let Err(error) = socket.transact(&messages) {
        tracing::debug!(%error, "no IPv6 on the device");
    }
    let mut messages = Messages::default();
    messages.push(RTM_NEWLINK, NLM_F_ACK, |out| {
        out.fixed(&header(libc::IFF_UP.cast_unsigned()));
    });
    socket.transact(&messages)
}

fn lead(socket: &Socket, family: u8, table: u32, index: u32) -> io::Result<()> {
    let mut messages = Messages::default();
    let add = NLM_F_CREATE | NLM_F_REPLACE;
    // The last resort first.
    route(&mut messages, RTM_NEWROUTE, add, family, table, None);
    route(&mut messages, RTM_NEWROUTE, add, family, table, Some(index));
    socket.transact(&messages)?;
    for which in RULES.into_iter().filter(|which| which.table() == table) {
        let mut messages = Messages::default();
        // A dead daemon's rule stays, and is ours.
        rule(
            &mut messages,
            RTM_NEWRULE,
            NLM_F_CREATE | NLM_F_EXCL,
            family,
            which,
        );
        match socket.transact(&messages) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            other => other?,
        }
    }
    Ok(())
}

/// A table, and the interface that it leads to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    pub(super) table: u32,
    index: u32,
}

/// Both ways in the thread's namespace.
///
/// # Errors
/// The host's.
pub(super) fn ways() -> io::Result<Vec<Way>> {
    let way = |(device, table)| -> io::Result<_> {
        let index = if_nametoindex(device)?;
        Ok(Way { table, index })
    };
    WAYS.into_iter().map(way).collect()
}

/// Where packets go that are led to the devices by their destination alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Destination {
    pub(super) family: u16,
    /// An address, and how many of its bits count.
    pub(super) prefix: ([u8; 16], u8),
    /// Of packets whose sender has said nothing.
    pub(super) source: Option<Address>,
    /// Of the way that they would go without us.
    pub(super) mtu: u32,
}

/// Leads what goes to a destination to the devices.
///
/// Datagrams must come whole, and such that they may be cut: what is longer than the way allows is
/// for the engine to cut. For TCP to make segments that fit nevertheless, both ends are told so.
///
/// # Errors
/// The host's.
pub(super) fn lead_destination(
    socket: &Socket,
    ways: &[Way],
    destination: &Destination,
) -> io::Result<()> {
    const RTA_DST: u16 = 1;
    const RTA_OIF: u16 = 4;
    const RTA_PREFSRC: u16 = 7;
    const RTA_METRICS: u16 = 8;
    const RTA_TABLE: u16 = 15;
    const RTAX_LOCK: u16 = 1;
    const RTAX_MTU: u16 = 2;
    const RTAX_ADVMSS: u16 = 8;
    /// IP and TCP, and the longest of what SAs usually add.
    const OVERHEAD_BYTES: u32 = 40 + 20 + 100;
    let &Destination {
        family,
        prefix: (address, bits),
        source,
        mtu,
    } = destination;
    let bytes = if family == AF_INET6 { 16 } else { 4 };
    let [family, _] = family.to_le_bytes();
    for &Way { table, index } in ways {
        let mut messages = Messages::default();
        let flags = NLM_F_CREATE | NLM_F_REPLACE | NLM_F_ACK;
        messages.push(RTM_NEWROUTE, flags, |out| {
            let scope = RT_SCOPE_LINK;
            out.fixed(&[
                family,
                bits,
                0,
                0,
                0,
                PROTOCOL,
                scope,
                RTN_UNICAST,
                0,
                0,
                0,
                0,
            ]);
            out.number(RTA_TABLE, table);
            out.number(RTA_OIF, index);
            if bits > 0 {
                out.attr(RTA_DST, address.get(..bytes).unwrap_or_default());
            }
            if let Some(source) = source {
                out.attr(RTA_PREFSRC, source.0.get(..bytes).unwrap_or_default());
            }
            out.nest(RTA_METRICS, |out| {
                out.number(RTAX_LOCK, 1 << RTAX_MTU);
                out.number(RTAX_MTU, DEVICE_MTU);
                out.number(RTAX_ADVMSS, mtu.saturating_sub(OVERHEAD_BYTES).max(536));
            });
        });
        socket.transact(&messages)?;
    }
    Ok(())
}

/// A default route into the device, or the last resort.
fn route(
    messages: &mut Messages,
    kind: u16,
    flags: u16,
    family: u8,
    table: u32,
    device: Option<u32>,
) {
    const RTA_OIF: u16 = 4;
    const RTA_PRIORITY: u16 = 6;
    const RTA_TABLE: u16 = 15;
    let (scope, route_kind) = match device {
        Some(_) => (RT_SCOPE_LINK, RTN_UNICAST),
        None => (0, RTN_UNREACHABLE),
    };
    messages.push(kind, flags | NLM_F_ACK, |out| {
        out.fixed(&[family, 0, 0, 0, 0, PROTOCOL, scope, route_kind, 0, 0, 0, 0]);
        out.number(RTA_TABLE, table);
        match device {
            Some(index) => {
                out.number(RTA_OIF, index);
                out.number(RTA_PRIORITY, 1);
            }
            None => out.number(RTA_PRIORITY, LAST_RESORT_METRIC),
        }
    });
}

#[derive(Clone, Copy)]
enum Rule {
    /// Captured packets without another mark go to the device.
    Captured,
    /// Those with one go where it is told.
    Marked,
    /// The way back of what comes from the device, when the host looks whether there is one: such
    /// a look is taken as if a packet came from `lo`.
    Returned,
}

const RULES: [Rule; 3] = [Rule::Captured, Rule::Marked, Rule::Returned];

impl Rule {
    const fn table(self) -> u32 {
        match self {
            Self::Captured | Self::Returned => TABLE,
            Self::Marked => MARKED_TABLE,
        }
    }
}

fn rule(messages: &mut Messages, kind: u16, flags: u16, family: u8, rule: Rule) {
    const FRA_IIFNAME: u16 = 3;
    const FRA_PRIORITY: u16 = 6;
    const FRA_FWMARK: u16 = 10;
    const FRA_TABLE: u16 = 15;
    const FRA_FWMASK: u16 = 16;
    const TO_TABLE: u8 = 1;
    messages.push(kind, flags | NLM_F_ACK, |out| {
        out.fixed(&[family, 0, 0, 0, 0, 0, 0, TO_TABLE, 0, 0, 0, 0]);
        let (preference, mark, mask) = match rule {
            Rule::Captured => (CAPTURED_PREFERENCE, CAPTURED, u32::MAX),
            Rule::Marked => (MARKED_PREFERENCE, CAPTURED, MARK_MASK),
            Rule::Returned => (RETURNED_PREFERENCE, RETURNED, MARK_MASK),
        };
        if matches!(rule, Rule::Returned) {
            out.text(FRA_IIFNAME, "lo");
        }
        out.number(FRA_PRIORITY, preference);
        out.number(FRA_FWMARK, mark);
        out.number(FRA_FWMASK, mask);
        out.number(FRA_TABLE, rule.table());
    });
}
