//! charon, and a network between that does things.

use super::{A, B, sites};
use crate::charon::{CHARON, Charon, Connection};
use crate::flow::{Flow, transfer};
use crate::host::{Host, Pair, WIRE, eventually};
use crate::namespaces::{Namespace, Wire};
use crate::sas::Traffic;
use crate::wire::Seen;

/// A behind a namespace that masquerades.
fn behind_nat() -> (Pair, Namespace) {
    let (a, b, between) = (Host::new(), Host::new(), Namespace::new());
    between.sh(&format!(
        "ip link add n0 type veth peer name {WIRE} netns {}; \
         ip link add n1 type veth peer name v1 netns {}; \
         ip addr add 10.0.5.254/24 dev n0; ip addr add {A}/24 dev n1; \
         ip link set n0 up; ip link set n1 up; echo 1 > /proc/sys/net/ipv4/ip_forward; \
         iptables -t nat -A POSTROUTING -o n1 -p udp -j MASQUERADE --to-ports 20000-20100",
        a.namespace.pid(),
        b.namespace.pid()
    ));
    a.namespace.sh(&format!(
        "ip addr add 10.0.5.1/24 dev {WIRE}; ip link set {WIRE} up; \
         ip route add default via 10.0.5.254; ip addr add 10.1.0.1/24 dev lo; \
         ip route add 10.2.0.0/24 via 10.0.5.254 src 10.1.0.1"
    ));
    b.namespace.sh(&format!(
        "ip addr add {B}/24 dev v1; ip link set v1 up; ip addr add 10.2.0.1/24 dev lo; \
         ip route add 10.1.0.0/24 via {A} src 10.2.0.1"
    ));
    let mut pair = Pair { a, b };
    pair.a.charon(&CHARON);
    pair.b.charon(&CHARON);
    (pair, between)
}

impl Pair {
    /// A knows B's address, and B takes whom it gets.
    fn connect_to_b(&mut self, ike: &str, [a, b]: [&str; 2]) {
        for (host, remote, child) in [(&mut self.a, B, a), (&mut self.b, "%any", b)] {
            host.load(&Connection {
                local: "%any",
                remote,
                ike,
                child,
            });
        }
    }
}

/// Two clients behind one address: B tells them by their ports.
pub(super) fn two_behind_nat() {
    let (mut pair, between) = behind_nat();
    let mut second = Host::new();
    between.sh(&format!(
        "ip link add n2 type veth peer name {WIRE} netns {}; \
         ip addr add 10.0.6.254/24 dev n2; ip link set n2 up",
        second.namespace.pid()
    ));
    second.namespace.sh(&format!(
        "ip addr add 10.0.6.1/24 dev {WIRE}; ip link set {WIRE} up; \
         ip route add default via 10.0.6.254; ip addr add 10.3.0.1/24 dev lo; \
         ip route add 10.2.0.0/24 via 10.0.6.254 src 10.3.0.1"
    ));
    pair.b
        .namespace
        .sh(&format!("ip route add 10.3.0.0/24 via {A} src 10.2.0.1"));
    second.charon(&CHARON);
    let more = "esp_proposals = aes128gcm16";
    pair.b.load(&Connection {
        local: "%any",
        remote: "%any",
        ike: "",
        child: &format!("local_ts = 10.2.0.0/24\n remote_ts = 10.0.0.0/8\n {more}"),
    });
    for (host, site) in [(&mut pair.a, 1), (&mut second, 3)] {
        host.load(&Connection {
            local: "%any",
            remote: B,
            ike: "",
            child: &format!("local_ts = 10.{site}.0.0/24\n remote_ts = 10.2.0.0/24\n {more}"),
        });
    }
    let wire = Wire::listen(&pair.b.namespace, "v1");
    for host in [&mut pair.a, &mut second] {
        host.swanctl("--initiate --child t");
    }
    let to_b = |host: &Host, from: &str| {
        Flow::start(&host.namespace, from, &pair.b.namespace, "10.2.0.1:0")
    };
    let flows = [to_b(&pair.a, "10.1.0.1:0"), to_b(&second, "10.3.0.1:0")];
    for flow in &flows {
        flow.more(100);
    }
    let packets: u64 = flows.map(Flow::finish).iter().sum();
    for host in [&pair.a, &second] {
        let (from, to) = (host.namespace.pid(), pair.b.namespace.pid());
        transfer(from, to, "10.2.0.1:0", 300_000);
    }
    assert!(Seen::of(&wire.stop()).esp_in_udp > packets);
    assert_eq!(pair.b.sas().len(), 4);
    second.swanctl("--terminate --ike t");
    second.stop();
    pair.end();
}

/// What NAT makes of the addresses is not what the checksums were made of.
pub(super) fn nat_transport() {
    let (mut pair, _between) = behind_nat();
    let child = "mode = transport\n esp_proposals = aes128gcm16";
    pair.connect_to_b("", [child, child]);
    let carried = pair.initiate_and_send("0.0.0.0:0", &format!("{B}:0"));
    carried.by_one_pair(|seen| seen.esp_in_udp);
    pair.end();
}

/// And the namespace between changes its mind about ports.
pub(super) fn nat() {
    let (mut pair, between) = behind_nat();
    let [a, b] = sites("esp_proposals = aes128gcm16");
    pair.connect_to_b("", [&a, &b]);
    let carried = pair.initiate_and_send("10.1.0.1:0", "10.2.0.1:0");
    carried.by_one_pair(|seen| seen.esp_in_udp);
    let peer_port = |host: &mut Host| {
        let states = host.shell.sh("ip xfrm state");
        let encap = states.lines().find(|line| {
            line.contains("encap type espinudp sport") && !line.contains("sport 4500")
        });
        encap.map(str::to_owned)
    };
    let before = peer_port(&mut pair.b).expect("an SA with the port that NAT chose");
    assert!(before.contains("sport 20"), "{before}");
    // Other ports from now on: the device forgets the old ones.
    between.sh("iptables -t nat -F; \
         iptables -t nat -A POSTROUTING -o n1 -p udp -j MASQUERADE --to-ports 30000-30100; \
         ip link set n1 down; ip link set n1 up");
    let flow = pair.site_flow();
    eventually("the SAs follow", || {
        peer_port(&mut pair.b).filter(|port| port.contains("sport 30"))
    });
    flow.more(50);
    // Lost is what came back before B knew.
    drop(flow);
    let log = std::fs::read_to_string(pair.b.file("charon.log")).unwrap();
    assert!(log.contains("NAT mappings of CHILD_SA"), "{log}");
    let wire = Wire::listen(&pair.a.namespace, WIRE);
    let flow = pair.site_flow();
    flow.more(50);
    let packets = flow.finish();
    // What was under way of the flow before may be among them.
    assert!(Seen::of(&wire.stop()).esp_in_udp >= packets);
    pair.end();
}

/// A's address changes.
pub(super) fn mobike() {
    let mut pair = Pair::charons();
    // Or it might prefer IPv6.
    pair.a
        .namespace
        .sh(&format!("ip addr del fd77::1/64 dev {WIRE}"));
    let [a, b] = sites("esp_proposals = aes128gcm16");
    pair.connect_to_b("mobike = yes", [&a, &b]);
    let wire = Wire::listen(&pair.a.namespace, WIRE);
    pair.a.swanctl("--initiate --child t");
    let flow = pair.site_flow();
    flow.more(50);
    pair.a.namespace.sh(&format!(
        "echo 1 > /proc/sys/net/ipv4/conf/{WIRE}/promote_secondaries; \
         ip addr add 192.168.77.11/24 dev {WIRE}; ip addr del {A}/24 dev {WIRE}"
    ));
    for host in [&mut pair.a, &mut pair.b] {
        eventually("the SAs move", || {
            let states = host.shell.sh("ip xfrm state");
            let moved = |at: &str| states.matches(&format!("{at} 192.168.77.11")).count() == 1;
            (moved("src") && moved("dst")).then_some(())
        });
    }
    flow.more(50);
    // Lost is what one end sent while the other did not know of the address.
    drop(flow);
    // What was still on its way is there before what follows it.
    let flow = pair.site_flow();
    flow.more(10);
    flow.finish();
    let (a, b) = (pair.a.sas(), pair.b.sas());
    let flow = pair.site_flow();
    flow.more(50);
    let packets = flow.finish();
    for (before, host) in [(a, &mut pair.a), (b, &mut pair.b)] {
        let more = |(name, sa): (String, Traffic)| sa.packets - before[&name].packets;
        let counted: Vec<u64> = host.sas().into_iter().map(more).collect();
        assert_eq!(counted, [packets / 2; 2]);
    }
    // And now to IPv6, as there is nothing else.
    pair.a.namespace.sh(&format!(
        "ip addr add fd77::1/64 dev {WIRE} nodad; ip addr del 192.168.77.11/24 dev {WIRE}; \
         ip route replace 10.2.0.0/24 via inet6 fd77::2 src 10.1.0.1"
    ));
    pair.b
        .namespace
        .sh("ip route replace 10.1.0.0/24 via inet6 fd77::1 src 10.2.0.1");
    for host in [&mut pair.a, &mut pair.b] {
        eventually("the SAs move", || {
            let states = host.shell.sh("ip xfrm state");
            let moved = |at: &str| states.matches(&format!("{at} fd77::1")).count() == 1;
            (moved("src") && moved("dst")).then_some(())
        });
    }
    let flow = pair.site_flow();
    flow.more(50);
    drop(flow);
    Seen::of(&wire.stop());
    pair.end();
}

/// B is gone for a while: A notices, and comes back when B does.
pub(super) fn dead_peer() {
    let mut pair = Pair::new();
    pair.a.charon(&Charon {
        settings: "retransmit_timeout = 1\n retransmit_tries = 3\n retransmit_base = 1",
        ..CHARON
    });
    pair.b.charon(&CHARON);
    let [a, b] = sites("esp_proposals = aes128gcm16\n dpd_action = trap");
    for (host, local, remote, ike, child) in [
        (&mut pair.a, A, B, "dpd_delay = 1s", &a),
        (&mut pair.b, B, A, "", &b),
    ] {
        host.load(&Connection {
            local,
            remote,
            ike,
            child,
        });
    }
    let wire = Wire::listen(&pair.a.namespace, WIRE);
    pair.a.swanctl("--initiate --child t");
    let flow = pair.site_flow();
    flow.more(50);
    flow.finish();
    pair.b.namespace.sh("ip link set v1 down");
    eventually("A gives up", || pair.a.sas().is_empty().then_some(()));
    pair.b.namespace.sh(&format!(
        "ip link set v1 up; ip route replace 10.1.0.0/24 via {A} src 10.2.0.1"
    ));
    // The trap that is left asks again.
    let flow = pair.site_flow();
    flow.more(50);
    drop(flow);
    Seen::of(&wire.stop());
    pair.end();
}
