//! The cases.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use crate::bulk;
use crate::namespaces::{Namespace, Shell, Wire, join, protocols};
use crate::net::{QUIT, Shared};

/// Every case.
pub(crate) static CASES: &[(&str, fn())] = &[
    ("transport_ipv4", transport_v4),
    ("tunnel_ipv4_site_to_site", tunnel_v4),
    ("tunnel_ipv6", tunnel_v6),
    ("strict_and_loose_reverse_path_filters", reverse_path),
    ("a_gateway_forwards_and_tells_the_mtu", gateway),
    ("ah_and_ipcomp", ah_and_ipcomp),
    ("esp_in_udp_beside_a_key_manager", || udp_encap([""; 2])),
    ("esp_in_udp_on_a_shared_port", || {
        udp_encap(["shares"; 2]);
    }),
    ("esp_in_udp_through_raw_sockets", || {
        udp_encap(["alone"; 2]);
    }),
    ("raw_sockets_get_joined_datagrams", || {
        udp_encap(["", "alone"]);
    }),
    (
        "a_key_manager_is_followed_by_another_one",
        crate::net::followed,
    ),
    (
        "a_socket_that_wants_protection_sends_nothing_in_clear",
        socket_policy,
    ),
    ("large_writes_arrive_whole", bulk::large_writes),
    ("datagrams_sent_at_once_arrive_apart", bulk::segments),
    ("flows_side_by_side", bulk::flows),
    ("a_wire_that_loses_and_reorders", bulk::bad_wire),
    ("garbage_floods_and_replays", bulk::strangers),
    ("the_first_packet_acquires_and_waits", acquire),
    ("only_selected_ports_are_protected", selected_ports),
    (
        "policies_with_an_interface_id_select_no_plain_packets",
        crate::interface_ids::select_nothing,
    ),
    ("unprotected_packets_are_dropped_and_counted", unprotected),
    ("blocked_flows_get_eperm", blocked),
    ("nothing_leaks_when_the_daemon_is_killed", killed),
    (
        "a_daemon_that_is_killed_goes_on_carrying",
        crate::restart::killed_under_traffic,
    ),
    (
        "a_keeper_that_is_killed_takes_the_daemon_along",
        crate::restart::killed_keeper,
    ),
    ("nothing_is_left_behind", nothing_left),
    ("one_daemon_carries_for_several_namespaces", shared_daemon),
    (
        "captures_show_both_sides_of_an_sa",
        crate::capture::both_sides,
    ),
    (
        "captures_say_why_a_packet_was_dropped",
        crate::capture::drops,
    ),
];

pub(crate) const ESP: u8 = 50;
pub(crate) const A: &str = "192.168.77.1";
pub(crate) const B: &str = "192.168.77.2";
/// What may not be seen on the wire.
pub(crate) const SECRET: &[u8] = b"attack at dawn, by the river, in clear";
pub(crate) const WAIT: Duration = Duration::from_secs(5);
pub(crate) const SOON: Duration = Duration::from_millis(300);

/// Two namespaces with an xfrmd each.
pub(crate) struct Pair {
    pub(crate) a: Namespace,
    pub(crate) b: Namespace,
    pub(crate) xa: Shell,
    pub(crate) xb: Shell,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let (a, b) = (Namespace::new(), Namespace::new());
        join(&a, &b);
        Self::on(a, b)
    }

    /// On namespaces that are joined.
    pub(crate) fn on(a: Namespace, b: Namespace) -> Self {
        a.sh(&format!(
            "ip addr add {A}/24 dev v0; ip addr add fd77::1/64 dev v0 nodad"
        ));
        b.sh(&format!(
            "ip addr add {B}/24 dev v1; ip addr add fd77::2/64 dev v1 nodad"
        ));
        let (xa, xb) = (a.xfrmd(), b.xfrmd());
        Self { a, b, xa, xb }
    }

    /// SAs for both directions at both ends.
    pub(crate) fn sas(&mut self, mode: &str, a: &str, b: &str) {
        let both = sas(mode, a, b);
        // B first: what waits at A leaves as soon as A has SAs.
        self.xb.sh(&both);
        self.xa.sh(&both);
    }

    /// Policies for both directions at both ends. `plain` are the selectors, `outer` the tunnel's
    /// ends.
    pub(crate) fn policies(
        &mut self,
        mode: &str,
        plain: [&str; 2],
        outer: [&str; 2],
        forward: bool,
    ) {
        let policy = |dir: &str, from: usize, to: usize| {
            let ends = match mode {
                "tunnel" => format!("src {} dst {}", outer[from], outer[to]),
                _ => String::new(),
            };
            format!(
                "ip xfrm policy add dir {dir} src {} dst {} priority 9 \
                 tmpl {ends} proto esp reqid 1 mode {mode}",
                plain[from], plain[to]
            )
        };
        let mut at = [Vec::new(), Vec::new()];
        for (here, there) in [(0, 1), (1, 0)] {
            at[here].push(policy("out", here, there));
            at[here].push(policy("in", there, here));
            if forward {
                at[here].push(policy("fwd", there, here));
            }
        }
        self.xa.sh(&at[0].join("; "));
        self.xb.sh(&at[1].join("; "));
    }

    pub(crate) fn transport(&mut self) {
        self.sas("transport", A, B);
        self.policies("transport", [A, B], [A, B], false);
    }
}

/// Makes SAs for both directions.
pub(crate) fn sas(mode: &str, a: &str, b: &str) -> String {
    let sa = |src: &str, dst: &str, spi: u32| {
        format!(
            "ip xfrm state add src {src} dst {dst} proto esp spi {spi:#x} reqid 1 mode {mode} \
             replay-window 32 aead 'rfc4106(gcm(aes))' \
             0x0102030405060708090a0b0c0d0e0f1011121314 128"
        )
    };
    format!("{}; {}", sa(a, b, 0x100), sa(b, a, 0x200))
}

pub(crate) fn udp(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(WAIT)).unwrap();
    socket
}

/// A datagram there and back.
#[track_caller]
pub(crate) fn echo(from: &Namespace, to: &Namespace, source: &str, address: &str, bytes: usize) {
    echo_within(1, from, to, source, address, bytes);
}

/// The same where routers do not cut: what is too long for the way is lost once.
#[track_caller]
pub(crate) fn echo_learning(from: &Namespace, to: &Namespace, address: &str, bytes: usize) {
    echo_within(20, from, to, "[::]:0", address, bytes);
}

/// The same with several tries.
#[track_caller]
pub(crate) fn echo_within(
    tries: u32,
    from: &Namespace,
    to: &Namespace,
    source: &str,
    address: &str,
    bytes: usize,
) {
    let server = to.inside(|| udp(address));
    let target = server.local_addr().unwrap();
    let client = from.inside(|| udp(source));
    let sent: Vec<u8> = SECRET.iter().copied().cycle().take(bytes).collect();
    let mut got = vec![0; 70_000];
    let mut pass = |from: &UdpSocket, to: &UdpSocket, at: SocketAddr, what: &str| {
        to.set_read_timeout(Some(if tries > 1 { SOON } else { WAIT }))
            .unwrap();
        let received = (0..tries).find_map(|_| {
            from.send_to(&sent, at).unwrap();
            to.recv_from(&mut got).ok()
        });
        let (len, sender) = received.expect(what);
        assert_eq!(got[..len], sent);
        sender
    };
    let back = pass(&client, &server, target, "there");
    pass(&server, &client, back, "back");
}

/// A transfer in both directions at once.
pub(crate) fn transfer(from: &Namespace, to: &Namespace, address: &str, bytes: usize) {
    let listener = to.inside(|| TcpListener::bind(address).unwrap());
    let target = listener.local_addr().unwrap();
    let sent: Vec<u8> = SECRET.iter().copied().cycle().take(bytes).collect();
    let reflect = to.spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        stream.write_all(&got).unwrap();
    });
    let got = from.inside(|| {
        let mut stream = TcpStream::connect_timeout(&target, WAIT).unwrap();
        stream.set_read_timeout(Some(4 * WAIT)).unwrap();
        stream.set_write_timeout(Some(4 * WAIT)).unwrap();
        stream.write_all(&sent).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        got
    });
    assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
    reflect.join().unwrap();
}

/// An echo request to the host itself.
pub(crate) fn ping(from: &Namespace, address: &str) {
    let to: SocketAddr = format!("{address}:0").parse().unwrap();
    let answered = from.inside(|| {
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 1) };
        assert!(fd >= 0);
        let socket = unsafe { <UdpSocket as std::os::fd::FromRawFd>::from_raw_fd(fd) };
        socket.set_read_timeout(Some(WAIT)).unwrap();
        let mut request = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1];
        request.extend_from_slice(SECRET);
        let sum: u32 = request
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
            .sum();
        let check = !((sum & 0xffff) + (sum >> 16)) as u16;
        request[2..4].copy_from_slice(&check.to_be_bytes());
        socket.send_to(&request, to).unwrap();
        let mut got = [0; 200];
        loop {
            let (len, _) = socket.recv_from(&mut got).expect("an echo reply");
            if got[20] == 0 && got[24..28] == request[4..8] {
                return got[28..len] == *SECRET;
            }
        }
    });
    assert!(answered);
}

#[track_caller]
pub(crate) fn is_protected(packets: &[Vec<u8>]) {
    assert_eq!(protocols(packets), [ESP]);
    no_secret(packets);
}

#[track_caller]
pub(crate) fn no_secret(packets: &[Vec<u8>]) {
    let shows = |packet: &&Vec<u8>| packet.windows(16).any(|part| part == &SECRET[..16]);
    assert_eq!(
        packets.iter().filter(shows).count(),
        0,
        "plaintext on the wire"
    );
}

fn transport_v4() {
    let mut pair = Pair::new();
    pair.transport();
    let wire = Wire::listen(&pair.a, "v0");
    ping(&pair.a, B);
    ping(&pair.b, A);
    echo(&pair.a, &pair.b, "0.0.0.0:0", &format!("{B}:0"), 100);
    echo(&pair.b, &pair.a, "0.0.0.0:0", &format!("{A}:0"), 5000);
    transfer(&pair.a, &pair.b, &format!("{B}:0"), 3_000_000);
    is_protected(&wire.stop());
}

fn tunnel_v4() {
    let mut pair = Pair::new();
    for (namespace, own, other, via) in [(&pair.a, 1, 2, B), (&pair.b, 2, 1, A)] {
        namespace.sh(&format!(
            "ip addr add 10.{own}.0.1/24 dev lo; ip route add 10.{other}.0.0/24 via {via} src 10.{own}.0.1"
        ));
    }
    let sites = ["10.1.0.0/24", "10.2.0.0/24"];
    pair.sas("tunnel", A, B);
    pair.policies("tunnel", sites, [A, B], true);
    let wire = Wire::listen(&pair.a, "v0");
    ping(&pair.a, "10.2.0.1");
    echo(&pair.a, &pair.b, "0.0.0.0:0", "10.2.0.1:0", 1400);
    transfer(&pair.b, &pair.a, "10.1.0.1:0", 3_000_000);
    is_protected(&wire.stop());
}

/// The tunnel of [`tunnel_v4`], with filters in both namespaces.
fn reverse_path() {
    for filter in [1, 2] {
        let mut pair = Pair::new();
        for namespace in [&pair.a, &pair.b] {
            namespace.sh(&format!(
                "echo {filter} > /proc/sys/net/ipv4/conf/all/rp_filter; \
                 echo {filter} > /proc/sys/net/ipv4/conf/default/rp_filter"
            ));
        }
        for (namespace, own, other, via) in [(&pair.a, 1, 2, B), (&pair.b, 2, 1, A)] {
            namespace.sh(&format!(
                "ip addr add 10.{own}.0.1/24 dev lo; \
                 ip route add 10.{other}.0.0/24 via {via} src 10.{own}.0.1"
            ));
        }
        pair.sas("tunnel", A, B);
        let sites = ["10.1.0.0/24", "10.2.0.0/24"];
        pair.policies("tunnel", sites, [A, B], true);
        echo(&pair.a, &pair.b, "0.0.0.0:0", "10.2.0.1:0", 100);
        transfer(&pair.b, &pair.a, "10.1.0.1:0", 100_000);
        pair.xa.sh("ip xfrm policy flush; ip xfrm state flush");
        pair.xb.sh("ip xfrm policy flush; ip xfrm state flush");
        pair.transport();
        echo(&pair.a, &pair.b, "0.0.0.0:0", &format!("{B}:0"), 100);
        transfer(&pair.b, &pair.a, &format!("{A}:0"), 100_000);
    }
}

/// A host behind A, whose packets A forwards into a tunnel.
fn gateway() {
    let mut pair = Pair::new();
    let host = Namespace::new();
    pair.a.sh(&format!(
        "ip link add v2 type veth peer name v3 netns {}; ip link set v2 up; \
         ip addr add 10.1.0.1/24 dev v2; echo 1 > /proc/sys/net/ipv4/ip_forward; \
         ip route add 10.2.0.0/24 via {B}",
        host.pid()
    ));
    host.sh("ip link set v3 up; ip addr add 10.1.0.9/24 dev v3; ip route add default via 10.1.0.1");
    pair.b.sh(&format!(
        "ip addr add 10.2.0.1/24 dev lo; ip route add 10.1.0.0/24 via {A} src 10.2.0.1"
    ));
    pair.sas("tunnel", A, B);
    let sites = ["10.1.0.0/24", "10.2.0.0/24"];
    pair.policies("tunnel", sites, [A, B], true);
    let wire = Wire::listen(&pair.a, "v0");
    echo(&host, &pair.b, "0.0.0.0:0", "10.2.0.1:0", 100);
    echo(&pair.b, &host, "0.0.0.0:0", "10.1.0.9:0", 3000);
    transfer(&host, &pair.b, "10.2.0.1:0", 2_000_000);
    transfer(&pair.b, &host, "10.1.0.9:0", 2_000_000);
    is_protected(&wire.stop());
    // What should have been protected is not forwarded.
    let server = host.inside(|| udp("10.1.0.9:0"));
    let intruder = pair.b.inside(|| udp("10.2.0.1:0"));
    past_policies(&intruder);
    intruder
        .send_to(SECRET, server.local_addr().unwrap())
        .unwrap();
    server.set_read_timeout(Some(SOON)).unwrap();
    assert!(server.recv_from(&mut [0; 100]).is_err());
    pair.xa.counts("XfrmInTmplMismatch", 1);
}

fn ah_and_ipcomp() {
    const AH: u8 = 51;
    const IPCOMP: u8 = 108;
    let mut pair = Pair::new();
    let both = |pair: &mut Pair, script: &str| {
        pair.xa.sh(script);
        pair.xb.sh(script);
    };
    let key = "0x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    both(
        &mut pair,
        &format!(
            "for pair in '{A} {B} 0x100' '{B} {A} 0x200'; do set -- $pair; \
             ip xfrm state add src $1 dst $2 proto ah spi $3 reqid 1 mode transport \
                auth-trunc 'hmac(sha256)' {key} 128; \
             ip xfrm state add src $1 dst $2 proto comp spi $3 reqid 1 mode transport comp deflate; \
             done"
        ),
    );
    for (protocol, name) in [(AH, "ah"), (IPCOMP, "comp")] {
        // Short packets are not compressed.
        let level = if protocol == IPCOMP {
            "use"
        } else {
            "required"
        };
        let tmpl = format!("tmpl proto {name} reqid 1 mode transport level {level}");
        for (xfrmd, here, there) in [(&mut pair.xa, A, B), (&mut pair.xb, B, A)] {
            xfrmd.sh(&format!(
                "ip xfrm policy flush; \
                 ip xfrm policy add dir out src {here} dst {there} {tmpl}; \
                 ip xfrm policy add dir in src {there} dst {here} {tmpl}"
            ));
        }
        let wire = Wire::listen(&pair.a, "v0");
        echo(&pair.a, &pair.b, "0.0.0.0:0", &format!("{B}:0"), 1000);
        transfer(&pair.a, &pair.b, &format!("{B}:0"), 100_000);
        assert!(protocols(&wire.stop()).contains(&protocol));
    }
}

fn udp_encap([at_a, at_b]: [&'static str; 2]) {
    const UDP: u8 = 17;
    let mut pair = Pair::new();
    let me = std::env::current_exe().unwrap();
    let log = |name: &str| {
        let file = format!("xfrmd-{name}-{at_a}-{at_b}-{}", std::process::id());
        std::env::temp_dir().join(file)
    };
    let ends = [
        (&mut pair.xa, log("ike-a"), at_a),
        (&mut pair.xb, log("ike-b"), at_b),
    ];
    for (xfrmd, log, how) in ends {
        xfrmd.sh(&format!(
            "{} key-manager {log} {how} > /dev/null 2>&1 < /dev/null & \
             while ! grep -q ready {log} 2> /dev/null; do sleep 0.01; done",
            me.display(),
            log = log.display()
        ));
    }
    let encap = "encap espinudp 4500 4500 0.0.0.0";
    pair.sas(&format!("transport {encap}"), A, B);
    pair.policies("transport", [A, B], [A, B], false);
    let wire = Wire::listen(&pair.a, "v0");
    echo(&pair.a, &pair.b, "0.0.0.0:0", &format!("{B}:0"), 1000);
    transfer(&pair.a, &pair.b, &format!("{B}:0"), 500_000);
    let frames = wire.stop_joined();
    let packets = frames.concat();
    assert_eq!(protocols(&packets), [UDP]);
    no_secret(&packets);
    // The virtual link carries as one packet what is sent at once.
    let is_joined = frames.iter().any(|packets| packets.len() > 1);
    assert_eq!(is_joined, [at_a, at_b] != ["alone"; 2]);
    // The key managers' own packets pass by all of it, and they see nothing else.
    for (here, there, log) in [(&pair.a, B, log("ike-b")), (&pair.b, A, log("ike-a"))] {
        let client = here.inside(|| udp("0.0.0.0:0"));
        past_policies(&client);
        client.send_to(&[0xff], (there, 4500)).unwrap();
        client.send_to(QUIT, (there, 4500)).unwrap();
        let expected = [&b"ready\n"[..], QUIT, b"\n"].concat();
        let seen = || std::fs::read(&log).unwrap();
        for _ in 0..100 {
            if seen().ends_with(&expected[6..]) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(seen(), expected);
        std::fs::remove_file(log).unwrap();
    }
}

fn socket_policy() {
    let mut pair = Pair::new();
    let me = std::env::current_exe().unwrap();
    let wire = Wire::listen(&pair.a, "v0");
    let rules = |pair: &Pair| pair.a.sh("ip rule");
    let before = rules(&pair);
    pair.xa.sh(&format!(
        "{} protected-sender {B} > /dev/null",
        me.display()
    ));
    assert!(!protocols(&wire.stop()).contains(&17));
    for _ in 0..100 {
        if rules(&pair) == before {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("nobody has such a socket any more");
}

fn acquire() {
    let mut pair = Pair::new();
    pair.xa.sh("echo 0 > /proc/sys/net/core/xfrm_larval_drop");
    pair.policies("transport", [A, B], [A, B], false);
    let log = std::env::temp_dir().join(format!("xfrmd-acquire-{}", std::process::id()));
    pair.xa.sh(&format!(
        "timeout 60 ip xfrm monitor acquire > {} 2> /dev/null & echo $! > {0}.pid",
        log.display()
    ));
    let server = pair.b.inside(|| udp(&format!("{B}:0")));
    let client = pair.a.inside(|| udp("0.0.0.0:0"));
    let heard = || std::fs::read_to_string(&log).unwrap_or_default();
    for _ in 0..100 {
        // The monitor may not listen yet, and without a listener nobody is asked.
        client
            .send_to(SECRET, server.local_addr().unwrap())
            .unwrap();
        std::thread::sleep(Duration::from_millis(20));
        if heard().contains("acquire proto esp") {
            break;
        }
    }
    assert!(
        heard().contains(&format!("sel src {A}/32 dst {B}/32 proto udp")),
        "{}",
        heard()
    );
    pair.sas("transport", A, B);
    let mut got = [0; 100];
    // Each look takes place after twice as long.
    server.set_read_timeout(Some(6 * WAIT)).unwrap();
    let (len, _) = server.recv_from(&mut got).expect("what waited");
    assert_eq!(&got[..len], SECRET);
    pair.xa.sh(&format!(
        "kill $(cat {0}.pid); rm {0} {0}.pid",
        log.display()
    ));
}

fn tunnel_v6() {
    let mut pair = Pair::new();
    for (namespace, own, other, via) in [(&pair.a, 1, 2, 2), (&pair.b, 2, 1, 1)] {
        namespace.sh(&format!(
            "ip addr add fd0{own}::1/64 dev lo nodad; \
             ip route add fd0{other}::/64 via fd77::{via} src fd0{own}::1"
        ));
    }
    let ends = ["fd77::1", "fd77::2"];
    pair.sas("tunnel", ends[0], ends[1]);
    pair.policies("tunnel", ["fd01::/64", "fd02::/64"], ends, true);
    let wire = Wire::listen(&pair.a, "v0");
    echo(&pair.a, &pair.b, "[::]:0", "[fd02::1]:0", 1000);
    transfer(&pair.a, &pair.b, "[fd02::1]:0", 1_000_000);
    is_protected(&wire.stop());
}

fn selected_ports() {
    const UDP: u8 = 17;
    let mut pair = Pair::new();
    pair.sas("transport", A, B);
    let tmpl = "tmpl proto esp reqid 1 mode transport";
    pair.xa.sh(&format!(
        "ip xfrm policy add dir out src {A} dst {B} proto udp dport 7000 {tmpl}; \
         ip xfrm policy add dir in src {B} dst {A} proto udp sport 7000 {tmpl}"
    ));
    pair.xb.sh(&format!(
        "ip xfrm policy add dir out src {B} dst {A} proto udp sport 7000 {tmpl}; \
         ip xfrm policy add dir in src {A} dst {B} proto udp dport 7000 {tmpl}"
    ));
    let wire = Wire::listen(&pair.a, "v0");
    echo(&pair.a, &pair.b, "0.0.0.0:0", &format!("{B}:7000"), 100);
    is_protected(&wire.stop());
    let wire = Wire::listen(&pair.a, "v0");
    echo(&pair.a, &pair.b, "0.0.0.0:0", &format!("{B}:7001"), 100);
    assert_eq!(protocols(&wire.stop()), [UDP]);
}

/// As if the other end had no policies.
pub(crate) fn past_policies(socket: &UdpSocket) {
    let bypass: u32 = 0x3000_0000;
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MARK,
            (&raw const bypass).cast(),
            4,
        )
    };
    assert_eq!(set, 0);
}

fn unprotected() {
    let mut pair = Pair::new();
    pair.transport();
    let server = pair.b.inside(|| udp(&format!("{B}:0")));
    let target = server.local_addr().unwrap();
    let client = pair.a.inside(|| udp(&format!("{A}:0")));
    past_policies(&client);
    for _ in 0..3 {
        client.send_to(SECRET, target).unwrap();
    }
    server.set_read_timeout(Some(SOON)).unwrap();
    assert!(server.recv_from(&mut [0; 100]).is_err());
    pair.xb.counts("XfrmInTmplMismatch", 3);
    // What a policy lets pass, passes, however many others there are.
    pair.xb.sh(&format!(
        "ip xfrm policy add dir in src {A} dst {B} proto udp dport {} priority 1 action allow; \
         ip xfrm policy delete dir in src {A} dst {B}; \
         ip xfrm policy add dir in src {A} dst {B} priority 2 \
            tmpl proto esp reqid 1 mode transport",
        target.port()
    ));
    client.send_to(SECRET, target).unwrap();
    server
        .recv_from(&mut [0; 100])
        .expect("a policy lets it pass");
    pair.xb.counts("XfrmInTmplMismatch", 3);
}

fn blocked() {
    let mut pair = Pair::new();
    let client = pair.a.inside(|| udp("0.0.0.0:0"));
    let target = format!("{B}:9");
    client.send_to(SECRET, &target).unwrap();
    pair.xa.sh(&format!(
        "ip xfrm policy add dir out src {A} dst {B} action block"
    ));
    let refused = client.send_to(SECRET, &target).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
    pair.xa.counts("XfrmOutPolBlock", 1);
    pair.xa.sh("ip xfrm policy flush");
    client.send_to(SECRET, &target).unwrap();
}

/// Kills the first daemon of a pair: in clear nothing leaves from there and nothing comes in, not even
/// from a socket of the peer that `freed` lets out. The socket there that was open before.
pub(crate) fn nothing_passes_a_killed_one(
    pair: &mut Pair,
    freed: impl FnOnce(&mut Pair, &UdpSocket),
) -> UdpSocket {
    pair.transport();
    echo(&pair.a, &pair.b, "0.0.0.0:0", &format!("{B}:0"), 100);
    let wire = Wire::listen(&pair.b, "v1");
    let (client, listening) = pair.a.inside(|| (udp("0.0.0.0:0"), udp(&format!("{A}:0"))));
    listening.set_read_timeout(Some(SOON)).unwrap();
    pair.xa.kill();
    for _ in 0..10 {
        // It may fail or be lost, but not go.
        let _ = client.send_to(SECRET, format!("{B}:9"));
        let _ = pair
            .a
            .inside(|| UdpSocket::bind("0.0.0.0:0")?.send_to(SECRET, (B, 9)));
    }
    let intruder = pair.b.inside(|| udp(&format!("{B}:0")));
    freed(pair, &intruder);
    intruder
        .send_to(b"let me in", listening.local_addr().unwrap())
        .unwrap();
    assert!(listening.recv_from(&mut [0; 100]).is_err());
    no_secret(&wire.stop());
    client
}

fn killed() {
    let mut pair = Pair::new();
    let client = nothing_passes_a_killed_one(&mut pair, |_, intruder| past_policies(intruder));
    // Another daemon takes over what the dead one left, and takes it away in the end.
    let mut next = pair.a.xfrmd();
    next.sh(&format!(
        "ip xfrm policy add dir out src {A} dst {B} action block; ip xfrm policy flush"
    ));
    client.send_to(b"free", format!("{B}:9")).unwrap();
}

fn nothing_left() {
    let state = |namespace: &Namespace| {
        namespace.sh("ip -o link | cut -d: -f2; ip rule; ip -6 rule; ip route show table all | grep -w 30822 || true")
    };
    let mut pair = Pair::new();
    let before = state(&pair.a);
    pair.transport();
    assert_ne!(state(&pair.a), before);
    pair.xa.sh("ip xfrm policy deleteall");
    assert_ne!(state(&pair.a), before, "SAs alone take what comes");
    pair.xa.sh("ip xfrm state deleteall");
    assert_eq!(state(&pair.a), before);
    pair.xa.sh(&format!(
        "ip xfrm policy add dir in src {B} dst {A} action block"
    ));
    let Pair { a, xa, .. } = pair;
    assert_ne!(state(&a), before);
    drop(xa);
    assert_eq!(state(&a), before);
}

fn shared_daemon() {
    let mut daemon = Shared::start();
    let (a, b) = (Namespace::new(), Namespace::new());
    join(&a, &b);
    a.sh(&format!("ip addr add {A}/24 dev v0"));
    b.sh(&format!("ip addr add {B}/24 dev v1"));
    let script = |here: &str, there: &str| {
        let sa = |src: &str, dst: &str, spi: u32| {
            format!(
                "ip xfrm state add src {src} dst {dst} proto esp spi {spi} reqid 1 mode transport \
                 aead 'rfc4106(gcm(aes))' 0x0102030405060708090a0b0c0d0e0f1011121314 128"
            )
        };
        let tmpl = "tmpl proto esp reqid 1 mode transport";
        format!(
            "{}; {}; ip xfrm policy add dir out src {here} dst {there} {tmpl}; \
             ip xfrm policy add dir in src {there} dst {here} {tmpl}",
            sa(A, B, 0x100),
            sa(B, A, 0x200)
        )
    };
    daemon.sh(&a, &script(A, B));
    daemon.sh(&b, &script(B, A));
    let wire = Wire::listen(&a, "v0");
    // Whoever asked has gone; packets are carried all the same.
    echo(&a, &b, "0.0.0.0:0", &format!("{B}:0"), 100);
    is_protected(&wire.stop());
    // A namespace ends, although we are in it.
    drop(b);
    let ended = |count: usize| {
        for _ in 0..100 {
            if daemon.stat().unwrap().matches("\"cookie\"").count() == count {
                return true;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        false
    };
    assert!(ended(1), "{:?}", daemon.stat());
    assert!(a.sh("ip rule").contains("30822"));
    daemon.stop();
    assert!(!a.sh("ip rule; ip link").contains("30822"));
}
