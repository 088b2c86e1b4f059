//! What packets are wrapped in, and whose they are: modes, families, hosts and
//! gateways, links of any MTU.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use crate::cases::{
    A, B, Pair, SOON, WAIT, echo, echo_learning, is_protected, past_policies, ping, transfer, udp,
};
use crate::namespaces::{Namespace, Wire};

/// Cases of this module.
pub(crate) static CASES: &[(&str, fn())] = &[
    ("transport_ipv6", transport_v6),
    ("ipv4_in_ipv6", v4_in_v6),
    ("ipv6_in_ipv4", v6_in_v4),
    ("beet", beet),
    ("extended_sequence_numbers", esn),
    ("sites_of_both_families_behind_gateways", sites),
    ("tcp_through_links_of_any_mtu", mtus),
    ("a_local_datagram_learns_the_mtu", local_mtu),
    ("no_reverse_path_filter", no_reverse_path_filter),
];

/// Networks of both families behind either end of a pair, on its `lo`.
fn networks(pair: &Pair) {
    for (namespace, own, other, via) in [(&pair.a, 1, 2, 2), (&pair.b, 2, 1, 1)] {
        namespace.sh(&format!(
            "ip addr add 10.{own}.0.1/24 dev lo; \
             ip route add 10.{other}.0.0/24 via 192.168.77.{via} src 10.{own}.0.1; \
             ip addr add fd0{own}::1/64 dev lo nodad; \
             ip route add fd0{other}::/64 via fd77::{via} src fd0{own}::1"
        ));
    }
}

const ENDS_V6: [&str; 2] = ["fd77::1", "fd77::2"];
const SITES_V4: [&str; 2] = ["10.1.0.0/24", "10.2.0.0/24"];
const SITES_V6: [&str; 2] = ["fd01::/64", "fd02::/64"];

/// Neighbours are found in clear, which key managers see to in the same way.
fn find_neighbours(pair: &mut Pair) {
    let bypass = |dir, kind| {
        format!(
            "ip xfrm policy add dir {dir} src ::/0 dst ::/0 proto ipv6-icmp type {kind} \
             priority 1 action allow; "
        )
    };
    let all: String = ["in", "out"]
        .into_iter()
        .flat_map(|dir| [135, 136].map(|kind| bypass(dir, kind)))
        .collect();
    pair.xa.sh(&all);
    pair.xb.sh(&all);
}

fn transport_v6() {
    let mut pair = Pair::new();
    let [a, b] = ENDS_V6;
    find_neighbours(&mut pair);
    pair.sas("transport", a, b);
    pair.policies("transport", [a, b], [a, b], false);
    let wire = Wire::listen(&pair.a, "v0");
    echo(&pair.a, &pair.b, "[::]:0", &format!("[{b}]:0"), 100);
    echo(&pair.b, &pair.a, "[::]:0", &format!("[{a}]:0"), 5000);
    transfer(&pair.a, &pair.b, &format!("[{b}]:0"), 1_000_000);
    is_protected(&wire.stop());
}

fn v4_in_v6() {
    let mut pair = Pair::new();
    networks(&pair);
    pair.sas("tunnel flag af-unspec", ENDS_V6[0], ENDS_V6[1]);
    pair.policies("tunnel", SITES_V4, ENDS_V6, true);
    let wire = Wire::listen(&pair.a, "v0");
    ping(&pair.a, "10.2.0.1");
    echo(&pair.a, &pair.b, "0.0.0.0:0", "10.2.0.1:0", 3000);
    transfer(&pair.b, &pair.a, "10.1.0.1:0", 1_000_000);
    is_protected(&wire.stop());
}

fn v6_in_v4() {
    let mut pair = Pair::new();
    networks(&pair);
    pair.sas("tunnel flag af-unspec", A, B);
    pair.policies("tunnel", SITES_V6, [A, B], true);
    let wire = Wire::listen(&pair.a, "v0");
    echo(&pair.a, &pair.b, "[::]:0", "[fd02::1]:0", 3000);
    transfer(&pair.b, &pair.a, "[fd01::1]:0", 1_000_000);
    is_protected(&wire.stop());
}

fn beet() {
    let mut pair = Pair::new();
    networks(&pair);
    let inner = ["10.1.0.1", "10.2.0.1"];
    let sa = |src: usize, dst: usize, spi: u32| {
        let ends = [A, B];
        format!(
            "ip xfrm state add src {} dst {} proto esp spi {spi} reqid 1 mode beet \
             replay-window 32 aead 'rfc4106(gcm(aes))' \
             0x0102030405060708090a0b0c0d0e0f1011121314 128 sel src {} dst {}",
            ends[src], ends[dst], inner[src], inner[dst]
        )
    };
    let both = format!("{}; {}", sa(0, 1, 0x100), sa(1, 0, 0x200));
    pair.xa.sh(&both);
    pair.xb.sh(&both);
    for (xfrmd, here, there) in [(&mut pair.xa, 0, 1), (&mut pair.xb, 1, 0)] {
        let ends = [A, B];
        for (dir, from, to) in [("out", here, there), ("in", there, here)] {
            xfrmd.sh(&format!(
                "ip xfrm policy add dir {dir} src {} dst {} \
                 tmpl src {} dst {} proto esp reqid 1 mode beet",
                inner[from], inner[to], ends[from], ends[to]
            ));
        }
    }
    let wire = Wire::listen(&pair.a, "v0");
    ping(&pair.a, "10.2.0.1");
    echo(&pair.a, &pair.b, "0.0.0.0:0", "10.2.0.1:0", 3000);
    transfer(&pair.b, &pair.a, "10.1.0.1:0", 1_000_000);
    is_protected(&wire.stop());
}

fn esn() {
    let mut pair = Pair::new();
    pair.sas("transport flag esn", A, B);
    pair.policies("transport", [A, B], [A, B], false);
    let wire = Wire::listen(&pair.a, "v0");
    echo(&pair.a, &pair.b, "0.0.0.0:0", &format!("{B}:0"), 100);
    transfer(&pair.a, &pair.b, &format!("{B}:0"), 300_000);
    is_protected(&wire.stop());
    assert!(pair.xa.sh("ip -s xfrm state").contains("esn"));
}

/// Two hosts, each behind a gateway.
struct Sites {
    pair: Pair,
    a: Namespace,
    b: Namespace,
}

impl Sites {
    fn new() -> Self {
        let pair = Pair::new();
        let hosts = [Namespace::new(), Namespace::new()];
        for (gateway, host, own, other, via) in
            [(&pair.a, &hosts[0], 1, 2, 2), (&pair.b, &hosts[1], 2, 1, 1)]
        {
            gateway.sh(&format!(
                "ip link add i0 type veth peer name v3 netns {}; ip link set i0 up; \
                 ip addr add 10.{own}.0.1/24 dev i0; ip addr add fd0{own}::1/64 dev i0 nodad; \
                 echo 1 > /proc/sys/net/ipv4/ip_forward; \
                 echo 1 > /proc/sys/net/ipv6/conf/all/forwarding; \
                 ip route add 10.{other}.0.0/24 via 192.168.77.{via}; \
                 ip route add fd0{other}::/64 via fd77::{via}",
                host.pid()
            ));
            host.sh(&format!(
                "ip link set v3 up; ip addr add 10.{own}.0.9/24 dev v3; \
                 ip addr add fd0{own}::9/64 dev v3 nodad; \
                 ip route add default via 10.{own}.0.1; ip route add default via fd0{own}::1"
            ));
        }
        let [a, b] = hosts;
        Self { pair, a, b }
    }

    fn tunnels(&mut self) {
        self.pair.sas("tunnel flag af-unspec", A, B);
        self.pair.policies("tunnel", SITES_V4, [A, B], true);
        self.pair.policies("tunnel", SITES_V6, [A, B], true);
    }
}

fn sites() {
    let mut sites = Sites::new();
    sites.tunnels();
    let wire = Wire::listen(&sites.pair.a, "v0");
    ping(&sites.a, "10.2.0.9");
    for (source, to_b, to_a) in [
        ("0.0.0.0:0", "10.2.0.9:0", "10.1.0.9:0"),
        ("[::]:0", "[fd02::9]:0", "[fd01::9]:0"),
    ] {
        echo(&sites.a, &sites.b, source, to_b, 100);
        transfer(&sites.a, &sites.b, to_b, 1_000_000);
        transfer(&sites.b, &sites.a, to_a, 1_000_000);
    }
    echo(&sites.b, &sites.a, "0.0.0.0:0", "10.1.0.9:0", 3000);
    echo_learning(&sites.b, &sites.a, "[fd01::9]:0", 3000);
    is_protected(&wire.stop());
    // A packet in clear from outside reaches no host behind a gateway, of either family.
    for (address, target) in [("10.2.0.1:0", "10.1.0.9:0"), ("[fd02::1]:0", "[fd01::9]:0")] {
        let server = sites.a.inside(|| udp(target));
        let before = sites.pair.xa.counter("XfrmInTmplMismatch");
        let intruder = sites.pair.b.inside(|| udp(address));
        past_policies(&intruder);
        intruder
            .send_to(b"let me in", server.local_addr().unwrap())
            .unwrap();
        server.set_read_timeout(Some(SOON)).unwrap();
        assert!(server.recv_from(&mut [0; 100]).is_err());
        sites.pair.xa.counts("XfrmInTmplMismatch", before + 1);
    }
    // Nor does one that a policy blocks leave.
    sites.pair.xa.sh(
        "ip xfrm policy add dir out src 10.1.0.9 dst 10.2.0.9 priority 0 action block; \
                ip xfrm policy add dir out src fd01::9 dst fd02::9 priority 0 action block",
    );
    for (source, target) in [("10.1.0.9:0", "10.2.0.9:0"), ("[fd01::9]:0", "[fd02::9]:0")] {
        let server = sites.b.inside(|| udp(target));
        let before = sites.pair.xa.counter("XfrmOutPolBlock");
        let client = sites.a.inside(|| udp(source));
        client
            .send_to(b"let me out", server.local_addr().unwrap())
            .unwrap();
        server.set_read_timeout(Some(SOON)).unwrap();
        assert!(server.recv_from(&mut [0; 100]).is_err());
        assert_eq!(
            sites.pair.xa.counter("XfrmOutPolBlock"),
            before + 1,
            "{source}"
        );
    }
}

/// The link between the gateways is smaller, as large as, and larger than those of the hosts.
fn mtus() {
    for mtu in [1280, 1500, 9000] {
        let mut sites = Sites::new();
        sites.pair.a.sh(&format!("ip link set v0 mtu {mtu}"));
        sites.pair.b.sh(&format!("ip link set v1 mtu {mtu}"));
        sites.tunnels();
        find_neighbours(&mut sites.pair);
        sites.pair.sas("transport", ENDS_V6[0], ENDS_V6[1]);
        sites.pair.policies("transport", [A, B], [A, B], false);
        sites.pair.policies("transport", ENDS_V6, ENDS_V6, false);
        let wire = Wire::listen(&sites.pair.a, "v0");
        transfer(&sites.a, &sites.b, "10.2.0.9:0", 300_000);
        // Over IPv4's SAs an IPv6 packet of 1280 bytes does not fit through 1280.
        transfer(&sites.a, &sites.b, "[fd02::9]:0", 300_000);
        transfer(
            &sites.pair.a,
            &sites.pair.b,
            &format!("[{}]:0", ENDS_V6[1]),
            300_000,
        );
        echo(&sites.a, &sites.b, "0.0.0.0:0", "10.2.0.9:0", 9000);
        echo_learning(&sites.a, &sites.b, "[fd02::9]:0", 9000);
        is_protected(&wire.stop());
    }
}

fn set_option(socket: &UdpSocket, level: i32, name: i32, value: i32) {
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            4,
        )
    };
    assert_eq!(result, 0);
}

fn option(socket: &UdpSocket, level: i32, name: i32) -> i32 {
    let (mut value, mut len) = (0_i32, 4);
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    value
}

fn local_mtu() {
    let mut pair = Pair::new();
    networks(&pair);
    pair.sas("tunnel flag af-unspec", A, B);
    pair.policies("tunnel", SITES_V4, [A, B], true);
    pair.policies("tunnel", SITES_V6, [A, B], true);
    for (source, target, level, discover, mtu_name) in [
        (
            "0.0.0.0:0",
            "10.2.0.1:0",
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_MTU,
        ),
        (
            "[::]:0",
            "[fd02::1]:0",
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_MTU,
        ),
    ] {
        let server = pair.b.inside(|| udp(target));
        let client = pair.a.inside(|| udp(source));
        set_option(&client, level, discover, libc::IP_PMTUDISC_DO);
        client.connect(server.local_addr().unwrap()).unwrap();
        let too_long = [7; 1490 - 40];
        // The first may go, the answer to it may be what the second hears.
        let refused = std::iter::repeat_with(|| client.send(&too_long))
            .take(100)
            .find_map(|sent| {
                std::thread::sleep(WAIT / 500);
                sent.err()
            });
        assert_eq!(
            refused.and_then(|it| it.raw_os_error()),
            Some(libc::EMSGSIZE),
            "{source}"
        );
        client.take_error().unwrap();
        let mtu = option(&client, level, mtu_name);
        assert!((1400..1480).contains(&mtu), "{mtu}");
        let headers = if level == libc::IPPROTO_IP { 28 } else { 48 };
        let fits = vec![7; mtu as usize - headers];
        client.send(&fits).unwrap();
        // What was too long may have gone in pieces, until the sender knew.
        let arrives = || server.recv(&mut [0; 2000]).expect("what fits") == fits.len();
        assert!((0..200).any(|_| arrives()));
    }
}

fn no_reverse_path_filter() {
    let mut pair = Pair::new();
    for namespace in [&pair.a, &pair.b] {
        namespace.sh("for it in all default v0 v1; do \
             echo 0 > /proc/sys/net/ipv4/conf/$it/rp_filter 2> /dev/null || true; done");
    }
    networks(&pair);
    pair.sas("tunnel", A, B);
    pair.policies("tunnel", SITES_V4, [A, B], true);
    echo(&pair.a, &pair.b, "0.0.0.0:0", "10.2.0.1:0", 100);
    transfer(&pair.b, &pair.a, "10.1.0.1:0", 100_000);
}
