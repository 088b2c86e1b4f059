//! What happens without a policy, to everything, and to what waits.

use std::net::{TcpStream, UdpSocket};

use crate::cases::{A, B, Pair, SECRET, SOON, echo, is_protected, sas, transfer, udp};
use crate::namespaces::{Namespace, Wire};

/// Cases of this module.
pub(crate) static CASES: &[(&str, fn())] = &[
    ("a_default_that_blocks_output", output),
    ("a_default_that_blocks_input", input),
    ("what_is_blocked_leaves_input_alone", input_alone),
    (
        "a_packet_without_an_sa_is_lost_if_it_may_not_wait",
        larval_drop,
    ),
    ("what_is_forwarded_meets_policies_again", relay),
];

fn output() {
    let mut pair = Pair::new();
    // What IPv6 says of its own accord would be counted too.
    pair.a
        .sh("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6");
    pair.xa
        .sh("ip xfrm policy setdefault in accept fwd accept out block");
    let client = pair.a.inside(|| udp("0.0.0.0:0"));
    let refused = client.send_to(SECRET, (B, 9)).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
    pair.xa.counts("XfrmOutPolBlock", 1);
    let listener = pair
        .b
        .inside(|| std::net::TcpListener::bind((B, 0)).unwrap());
    let target = listener.local_addr().unwrap();
    let refused = pair
        .a
        .inside(|| TcpStream::connect_timeout(&target, SOON))
        .unwrap_err();
    // The first packet of a connection is tried again, as any that is lost.
    assert!(matches!(
        refused.kind(),
        std::io::ErrorKind::TimedOut | std::io::ErrorKind::PermissionDenied
    ));
    // A policy lets it pass, the device for this host is not asked.
    pair.xa
        .sh(&format!("ip xfrm policy add dir out dst {B} action allow"));
    echo(&pair.a, &pair.b, "0.0.0.0:0", &format!("{B}:0"), 10);
    echo(&pair.a, &pair.a, "127.0.0.1:0", "127.0.0.1:0", 10);
    pair.xa
        .sh("ip xfrm policy setdefault in accept fwd accept out accept; ip xfrm policy flush");
    echo(&pair.a, &pair.b, "0.0.0.0:0", &format!("{B}:0"), 10);
}

fn input() {
    let mut pair = Pair::new();
    pair.xb
        .sh("ip xfrm policy setdefault in block fwd block out accept");
    let server = pair.b.inside(|| udp(&format!("{B}:0")));
    server.set_read_timeout(Some(SOON)).unwrap();
    let client = pair.a.inside(|| udp("0.0.0.0:0"));
    client
        .send_to(SECRET, server.local_addr().unwrap())
        .unwrap();
    assert!(server.recv_from(&mut [0; 100]).is_err());
    pair.xb.counts("XfrmInNoPols", 1);
    pair.xb
        .sh(&format!("ip xfrm policy add dir in src {A} action allow"));
    client
        .send_to(SECRET, server.local_addr().unwrap())
        .unwrap();
    server.recv_from(&mut [0; 100]).expect("a policy allows it");
    pair.xb.sh(&format!(
        "ip xfrm policy add dir in src {A} proto udp priority 0 action block; \
         ip xfrm policy update dir in src {A} priority 1 action allow"
    ));
    client
        .send_to(SECRET, server.local_addr().unwrap())
        .unwrap();
    assert!(server.recv_from(&mut [0; 100]).is_err());
    pair.xb.counts("XfrmInPolBlock", 1);
}

/// A policy for all that leaves says nothing of what arrives, wherever the host looks.
fn input_alone() {
    let mut pair = Pair::new();
    pair.xb
        .sh("ip xfrm policy add dir out src 0.0.0.0/0 dst 0.0.0.0/0 action block");
    let server = pair.b.inside(|| udp(&format!("{B}:0")));
    let client = pair.a.inside(|| udp("0.0.0.0:0"));
    client
        .send_to(SECRET, server.local_addr().unwrap())
        .unwrap();
    server.recv_from(&mut [0; 100]).expect("input");
    pair.xb.counts("XfrmOutPolBlock", 0);
    pair.xb
        .sh("ip xfrm policy update dir out src 0.0.0.0/0 dst 0.0.0.0/0 \
         tmpl proto esp reqid 9 mode transport");
    client
        .send_to(SECRET, server.local_addr().unwrap())
        .unwrap();
    server.recv_from(&mut [0; 100]).expect("input");
}

fn larval_drop() {
    let mut pair = Pair::new();
    pair.policies("transport", [A, B], [A, B], false);
    let wire = Wire::listen(&pair.a, "v0");
    let server = pair.b.inside(|| udp(&format!("{B}:0")));
    let client = pair.a.inside(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    client
        .send_to(SECRET, server.local_addr().unwrap())
        .unwrap();
    // Nobody listens for acquires: there is nobody to make an SA.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while pair.xa.counter("XfrmOutNoStates") == 0 {
        assert!(std::time::Instant::now() < deadline, "not counted");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    pair.sas("transport", A, B);
    client
        .send_to(b"second", server.local_addr().unwrap())
        .unwrap();
    let mut got = [0; 100];
    let (len, _) = server.recv_from(&mut got).expect("the second");
    assert_eq!(&got[..len], b"second");
    is_protected(&wire.stop());
}

/// What comes out of one tunnel goes into another one, or is blocked.
fn relay() {
    let mut pair = Pair::new();
    let far = Namespace::new();
    pair.b.sh(&format!(
        "ip link add w0 type veth peer name w1 netns {}; ip link set w0 up; \
         ip addr add 192.168.78.1/24 dev w0; echo 1 > /proc/sys/net/ipv4/ip_forward; \
         ip route add 10.1.0.0/24 via {A}; ip route add 10.3.0.0/24 via 192.168.78.2",
        far.pid()
    ));
    pair.a.sh(&format!(
        "ip addr add 10.1.0.1/24 dev lo; ip route add 10.3.0.0/24 via {B} src 10.1.0.1"
    ));
    far.sh(
        "ip link set w1 up; ip addr add 192.168.78.2/24 dev w1; ip addr add 10.3.0.1/24 dev lo; \
         ip route add 10.1.0.0/24 via 192.168.78.1 src 10.3.0.1",
    );
    let mut xfar = far.xfrmd();
    let (hub, leaf) = ("192.168.78.1", "192.168.78.2");
    pair.sas("tunnel", A, B);
    let sas = sas("tunnel", hub, leaf);
    pair.xb.sh(&sas);
    xfar.sh(&sas);
    let policy = |dir: &str, [src, dst]: [&str; 2], [from, to]: [&str; 2]| {
        format!(
            "ip xfrm policy add dir {dir} src {src} dst {dst} priority 9 \
             tmpl src {from} dst {to} proto esp reqid 1 mode tunnel; "
        )
    };
    let (there, back) = (
        ["10.1.0.0/24", "10.3.0.0/24"],
        ["10.3.0.0/24", "10.1.0.0/24"],
    );
    pair.xa
        .sh(&(policy("out", there, [A, B]) + &policy("in", back, [B, A])));
    xfar.sh(&(policy("out", back, [leaf, hub]) + &policy("in", there, [hub, leaf])));
    pair.xb.sh(&[
        policy("fwd", there, [A, B]),
        policy("out", there, [hub, leaf]),
        policy("fwd", back, [leaf, hub]),
        policy("out", back, [B, A]),
    ]
    .concat());
    let wires = [Wire::listen(&pair.a, "v0"), Wire::listen(&far, "w1")];
    echo(&pair.a, &far, "0.0.0.0:0", "10.3.0.1:0", 100);
    transfer(&pair.a, &far, "10.3.0.1:0", 200_000);
    for wire in wires {
        is_protected(&wire.stop());
    }
    let server = far.inside(|| udp("10.3.0.1:0"));
    server.set_read_timeout(Some(SOON)).unwrap();
    pair.xb
        .sh("ip xfrm policy add dir out src 10.1.0.0/24 dst 10.3.0.1 priority 1 action block");
    let client = pair.a.inside(|| udp("0.0.0.0:0"));
    client
        .send_to(SECRET, server.local_addr().unwrap())
        .unwrap();
    assert!(server.recv_from(&mut [0; 100]).is_err());
    pair.xb.counts("XfrmOutPolBlock", 1);
}
