//! charon at both ends of a wire.

use std::path::Path;
use std::process::Command;

use super::{A, B, sites, suite_children, suites};
use crate::charon::{CHARON, Charon, Connection};
use crate::flow::{Flow, transfer};
use crate::host::{Host, Pair, WIRE, eventually};
use crate::namespaces::{Namespace, Wire, XFRMD, protocols};
use crate::sas::{Sas, agreed, sealed};
use crate::wire::Seen;

const SITE_A: &str = "10.1.0.1:0";
const SITE_B: &str = "10.2.0.1:0";

pub(super) fn tunnel() {
    let mut pair = Pair::charons();
    let [a, b] = sites("esp_proposals = aes128gcm16");
    pair.connect("", [&a, &b]);
    let carried = pair.initiate_and_send(SITE_A, SITE_B);
    carried.by_one_pair(|seen| seen.esp);
    // charon counts what the SAs count.
    let listed = pair.a.swanctl("--list-sas");
    for sa in carried.sas.values() {
        let packets = format!("{} packets", sa.packets);
        assert_eq!(listed.matches(&packets).count(), 2, "{listed}");
    }
    pair.end();
}

pub(super) fn transport() {
    let mut pair = Pair::charons();
    let child = "mode = transport\n esp_proposals = aes256-sha256";
    pair.connect("", [child, child]);
    let carried = pair.initiate_and_send("0.0.0.0:0", &format!("{B}:0"));
    carried.by_one_pair(|seen| seen.esp);
    pair.end();
}

/// IPv6 in IPv6, and IPv4 in IPv6.
pub(super) fn ipv6() {
    let mut pair = Pair::charons();
    let [a, b] = [(1, 2), (2, 1)].map(|(own, other)| {
        format!(
            "local_ts = fd0{own}::/64, 10.{own}.0.0/24\n \
             remote_ts = fd0{other}::/64, 10.{other}.0.0/24\n \
             esp_proposals = chacha20poly1305"
        )
    });
    for (host, local, remote, child) in [
        (&mut pair.a, "fd77::1", "fd77::2", &a),
        (&mut pair.b, "fd77::2", "fd77::1", &b),
    ] {
        host.load(&Connection {
            local,
            remote,
            ike: "",
            child,
        });
    }
    let wire = Wire::listen(&pair.a.namespace, WIRE);
    pair.a.swanctl("--initiate --child t");
    let mut packets = 0;
    for (from, to) in [("[fd01::1]:0", "[fd02::1]:0"), (SITE_A, SITE_B)] {
        let flow = pair.flow(from, to);
        flow.more(50);
        packets += flow.finish();
    }
    let sas = agreed(&mut pair.a, &mut pair.b);
    assert_eq!(sas.values().map(|sa| sa.packets).sum::<u64>(), packets);
    assert_eq!(Seen::of(&wire.stop()).esp, packets);
    pair.end();
}

pub(super) fn ah() {
    let mut pair = Pair::charons();
    let [a, b] = sites("ah_proposals = sha256");
    pair.connect("", [&a, &b]);
    let carried = pair.initiate_and_send(SITE_A, SITE_B);
    carried.by_one_pair(|seen| seen.ah);
    pair.end();
}

/// What gets shorter is compressed, what does not goes without.
pub(super) fn ipcomp() {
    let mut pair = Pair::charons();
    let [a, b] = sites("ipcomp = yes\n esp_proposals = aes128gcm16");
    pair.connect("", [&a, &b]);
    let wire = Wire::listen(&pair.a.namespace, WIRE);
    pair.a.swanctl("--initiate --child t");
    let (mut packets, mut compressed) = (Vec::new(), Vec::new());
    for bytes in [0, 1000] {
        let (a, b) = (&pair.a.namespace, &pair.b.namespace);
        let flow = Flow::of_size(a, SITE_A, b, SITE_B, bytes);
        flow.more(50);
        packets.push(flow.finish());
        let sas = agreed(&mut pair.a, &mut pair.b);
        assert_eq!(
            sas.values().map(|sa| sa.packets).sum::<u64>(),
            packets.iter().sum::<u64>()
        );
        let sas = pair.a.sas();
        let ipcomp = sas.iter().filter(|(name, _)| name.starts_with("comp "));
        compressed.push(ipcomp.map(|(_, sa)| sa.packets).sum::<u64>());
    }
    // A sends all by IPComp, and gets as such only what became shorter.
    let expected = [packets[0] / 2, packets[0] / 2 + packets[1]];
    assert_eq!(compressed, expected);
    let seen = wire.stop();
    // A thousand bytes of the same text are few.
    let mut esp = seen.iter().filter(|packet| packet[9] == 50);
    assert!(esp.all(|packet| packet.len() < 500));
    assert_eq!(Seen::of(&seen).esp, packets.iter().sum::<u64>());
    pair.end();
}

pub(super) fn esn() {
    let mut pair = Pair::charons();
    let [a, b] = sites("esp_proposals = aes128gcm16-esn\n replay_window = 128");
    pair.connect("", [&a, &b]);
    let carried = pair.initiate_and_send(SITE_A, SITE_B);
    carried.by_one_pair(|seen| seen.esp);
    let states = pair.a.shell.sh("ip xfrm state");
    assert_eq!(states.matches("flag af-unspec esn").count(), 2, "{states}");
    pair.end();
}

/// Each suite as a child for a port of its own.
pub(super) fn every_suite() {
    let suites = suites();
    let mut pair = Pair::new();
    for host in [&mut pair.a, &mut pair.b] {
        host.charon(&Charon {
            settings: "send_vendor_id = yes",
            ..CHARON
        });
    }
    let [a, b] = suite_children(&suites);
    pair.connect("", [&a, &b]);
    let wire = Wire::listen(&pair.a.namespace, WIRE);
    let (ports, mut packets) = (suites.len(), 0);
    for port in 7000..7000 + ports {
        pair.a.swanctl(&format!("--initiate --child c{port}"));
        let flow = pair.flow(SITE_A, &format!("10.2.0.1:{port}"));
        flow.more(10);
        packets += flow.finish();
    }
    let sas = agreed(&mut pair.a, &mut pair.b);
    assert_eq!(sas.len(), 2 * suites.len());
    assert!(sas.values().all(|sa| sa.packets >= 10), "{sas:?}");
    assert_eq!(sas.values().map(|sa| sa.packets).sum::<u64>(), packets);
    // The cipher `null` hides nothing, so only what it was wrapped in counts.
    assert_eq!(protocols(&wire.stop()), [17, 50]);
    pair.end();
}

/// A child for one port; the others are left alone.
pub(super) fn ports() {
    let mut pair = Pair::charons();
    let more = "mode = transport\n esp_proposals = aes128gcm16";
    pair.connect(
        "",
        [
            &format!("local_ts = dynamic[udp]\n remote_ts = dynamic[udp/7000]\n {more}"),
            &format!("local_ts = dynamic[udp/7000]\n remote_ts = dynamic[udp]\n {more}"),
        ],
    );
    let carried = pair.initiate_and_send("0.0.0.0:0", &format!("{B}:7000"));
    carried.by_one_pair(|seen| seen.esp);
    let wire = Wire::listen(&pair.a.namespace, WIRE);
    let flow = pair.flow("0.0.0.0:0", &format!("{B}:7001"));
    flow.more(10);
    flow.finish();
    assert_eq!(agreed(&mut pair.a, &mut pair.b), carried.sas);
    assert_eq!(protocols(&wire.stop()), [17]);
    pair.end();
}

/// Has a host make new SAs; waits until those are all it has.
#[track_caller]
pub(super) fn rekeyed(host: &mut Host, command: &str) {
    let before = sealed(host.sas());
    host.swanctl(command);
    only_others(host, &before);
}

/// The same, as it is seen at another.
#[track_caller]
pub(super) fn rekeyed_by(host: &mut Host, seen_by: &mut Host, command: &str) {
    let before = sealed(seen_by.sas());
    host.swanctl(command);
    only_others(seen_by, &before);
}

#[track_caller]
pub(super) fn only_others(host: &mut Host, before: &Sas) {
    let count = before.len();
    eventually("new SAs, and only those", || {
        let now = sealed(host.sas());
        let other = now.len() == count && now.keys().all(|name| !before.contains_key(name));
        other.then_some(())
    });
}

/// Both kinds of SAs are made anew, from both ends, and no packet gets lost.
pub(super) fn rekey() {
    let mut pair = Pair::charons();
    let [a, b] = sites("esp_proposals = aes128gcm16");
    pair.connect("", [&a, &b]);
    let wire = Wire::listen(&pair.a.namespace, WIRE);
    pair.a.swanctl("--initiate --child t");
    let flow = pair.site_flow();
    flow.more(50);
    let Pair { a, b } = &mut pair;
    for _ in 0..2 {
        rekeyed(a, "--rekey --child t");
        flow.more(50);
        rekeyed_by(b, a, "--rekey --child t");
        flow.more(50);
    }
    for (host, name) in [(&mut *a, "t: #2, ESTABLISHED"), (b, "t: #3, ESTABLISHED")] {
        host.swanctl("--rekey --ike t");
        eventually("another IKE SA", || {
            let listed = host.swanctl("--list-sas");
            (listed.contains(name) && listed.matches("IKEv2").count() == 1).then_some(())
        });
        flow.more(50);
    }
    let packets = flow.finish();
    agreed(&mut pair.a, &mut pair.b);
    assert_eq!(Seen::of(&wire.stop()).esp, packets);
    // A connection goes on over it, too.
    let wire = Wire::listen(&pair.a.namespace, WIRE);
    let Pair { a, b } = &mut pair;
    let [from, to] = [&a.namespace, &b.namespace].map(Namespace::pid);
    let connection = std::thread::spawn(move || transfer(from, to, SITE_B, 5_000_000));
    rekeyed(a, "--rekey --child t");
    connection.join().unwrap();
    agreed(a, b);
    assert!(Seen::of(&wire.stop()).esp > 2 * 5_000_000 / 1500);
    pair.end();
}

/// Daemons of both ends are killed under traffic: charon notices nothing, and goes on to rekey.
pub(super) fn killed() {
    let mut pair = Pair::new();
    for host in [&mut pair.a, &mut pair.b] {
        host.charon(&Charon {
            settings: "delete_rekeyed_delay = 1",
            ..CHARON
        });
    }
    let [a, b] = sites("esp_proposals = aes128gcm16");
    pair.connect("", [&a, &b]);
    let wire = Wire::listen(&pair.a.namespace, WIRE);
    pair.a.swanctl("--initiate --child t");
    for at_a in [true, false] {
        let flow = pair.site_flow();
        flow.more(50);
        let killed = if at_a { &mut pair.a } else { &mut pair.b };
        killed.shell.kill_daemon();
        // What came while it was away is lost, and the flow waits for it long; another one does not.
        drop(flow);
        rekeyed(&mut pair.a, "--rekey --child t");
        let flow = pair.site_flow();
        flow.more(50);
        flow.finish();
        let (from, to) = (pair.a.namespace.pid(), pair.b.namespace.pid());
        transfer(from, to, SITE_B, 300_000);
        agreed(&mut pair.a, &mut pair.b);
    }
    assert!(Seen::of(&wire.stop()).esp > 0);
    pair.end();
}

/// The first packet asks for the SA and waits for it.
pub(super) fn trap() {
    let mut pair = Pair::charons();
    pair.a
        .shell
        .sh("echo 0 > /proc/sys/net/core/xfrm_larval_drop");
    let trap = "start_action = trap\n esp_proposals = aes128gcm16";
    let [a, _] = sites(trap);
    let [_, b] = sites("esp_proposals = aes128gcm16");
    pair.connect("", [&a, &b]);
    assert_eq!(agreed(&mut pair.a, &mut pair.b).len(), 0);
    let wire = Wire::listen(&pair.a.namespace, WIRE);
    let carried = pair.send(wire, SITE_A, SITE_B);
    carried.by_one_pair(|seen| seen.esp);
    // Without SAs it traps again.
    pair.a.swanctl("--terminate --ike t");
    let wire = Wire::listen(&pair.a.namespace, WIRE);
    let carried = pair.send(wire, SITE_A, SITE_B);
    carried.by_one_pair(|seen| seen.esp);
    pair.end();
}

pub(super) fn releases() {
    for (first, second) in [("6.0", "5.9"), ("6.0", "6.0")] {
        let mut pair = Pair::new();
        pair.a.charon(&Charon {
            release: first,
            ..CHARON
        });
        pair.b.charon(&Charon {
            release: second,
            ..CHARON
        });
        let [a, b] = sites("esp_proposals = aes256gcm16");
        pair.connect("", [&a, &b]);
        let carried = pair.initiate_and_send(SITE_A, SITE_B);
        carried.by_one_pair(|seen| seen.esp);
        rekeyed_by(&mut pair.b, &mut pair.a, "--rekey --child t");
        let wire = Wire::listen(&pair.a.namespace, WIRE);
        assert!(pair.send(wire, SITE_A, SITE_B).seen.esp > 0);
        pair.end();
    }
}

pub(super) fn script() {
    let programs = Path::new(XFRMD).parent().unwrap().display();
    let output = Command::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/two-charons.sh"
    ))
    .env(
        "PATH",
        format!("{programs}:{}", std::env::var("PATH").unwrap()),
    )
    .output()
    .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        said.matches("3 packets transmitted, 3 received").count(),
        2,
        "{said}"
    );
}

/// Soft limits, of packets and of time, have charon make new SAs by itself.
pub(super) fn expire() {
    for limit in [
        "rekey_packets = 200\n life_packets = 100000\n rand_packets = 0",
        "rekey_time = 1s\n life_time = 1000s\n rand_time = 0",
    ] {
        let mut pair = Pair::charons();
        let [a, _] = sites(&format!("{limit}\n esp_proposals = aes128gcm16"));
        let [_, b] = sites("esp_proposals = aes128gcm16");
        pair.connect("", [&a, &b]);
        let wire = Wire::listen(&pair.a.namespace, WIRE);
        pair.a.swanctl("--initiate --child t");
        let flow = pair.site_flow();
        let log = pair.a.directory.join("charon.log");
        eventually("three times", || {
            let text = std::fs::read_to_string(&log).unwrap();
            (text.matches("inbound CHILD_SA t{").count() >= 3).then_some(())
        });
        let packets = flow.finish();
        assert_eq!(Seen::of(&wire.stop()).esp, packets);
        pair.end();
    }
}

pub(super) fn inactive() {
    let mut pair = Pair::charons();
    let [a, b] = sites("inactivity = 3s\n esp_proposals = aes128gcm16");
    pair.connect("", [&a, &b]);
    pair.initiate_and_send(SITE_A, SITE_B);
    for host in [&mut pair.a, &mut pair.b] {
        eventually("nobody uses it", || host.sas().is_empty().then_some(()));
    }
    pair.a.stop();
    pair.b.stop();
}

/// Policies without SAs: one port is protected, another passes in clear, the rest is blocked.
pub(super) fn shunts() {
    let mut pair = Pair::charons();
    let [a, b] = [(1, 2), (2, 1)].map(|(own, other)| {
        let between = |port: &str| {
            let ports = ["[udp]", port];
            let (here, there) = (ports[own - 1], ports[other - 1]);
            format!("local_ts = 10.{own}.0.0/24{here}\n remote_ts = 10.{other}.0.0/24{there}\n")
        };
        format!(
            "{} esp_proposals = aes128gcm16\n }}\n \
             passed {{\n {} mode = pass\n start_action = trap\n }}\n \
             blocked {{\n {} mode = drop\n start_action = trap\n",
            between("[udp/7000]"),
            between("[udp/7001]"),
            between("[udp]")
        )
    });
    pair.connect("", [&a, &b]);
    pair.initiate_and_send(SITE_A, "10.2.0.1:7000")
        .by_one_pair(|seen| seen.esp);
    let wire = Wire::listen(&pair.a.namespace, WIRE);
    let flow = pair.flow(SITE_A, "10.2.0.1:7001");
    flow.more(10);
    flow.finish();
    assert_eq!(protocols(&wire.stop()), [17]);
    let refused = pair.a.namespace.inside(|| {
        let socket = std::net::UdpSocket::bind(SITE_A).unwrap();
        socket.send_to(b"nothing", "10.2.0.1:7002").unwrap_err()
    });
    assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
    pair.end();
}

/// A gets an address of B's, and all that A sends from it goes to B.
pub(super) fn road_warrior() {
    let mut pair = Pair::charons();
    pair.a.load(&Connection {
        local: A,
        remote: B,
        ike: "vips = 0.0.0.0, ::",
        child: "remote_ts = 0.0.0.0/0, ::/0\n esp_proposals = aes128gcm16",
    });
    pair.b.load(&Connection {
        local: B,
        remote: A,
        ike: "pools = four, six",
        child: "local_ts = 0.0.0.0/0, ::/0\n esp_proposals = aes128gcm16\n }\n }\n }\n }\n \
                pools {\n four {\n addrs = 10.3.0.0/24\n }\n six {\n addrs = fd03::/120\n }\n }\n \
                connections {\n other {\n children {\n other {",
    });
    let wire = Wire::listen(&pair.a.namespace, WIRE);
    pair.a.swanctl("--initiate --child t");
    // Anywhere: those who ask do not choose their address.
    let mut packets = 0;
    for (from, to) in [("0.0.0.0:0", SITE_B), ("[::]:0", "[fd02::1]:0")] {
        let flow = pair.flow(from, to);
        flow.more(50);
        packets += flow.finish();
    }
    let sas = agreed(&mut pair.a, &mut pair.b);
    assert_eq!(sas.values().map(|sa| sa.packets).sum::<u64>(), packets);
    assert_eq!(Seen::of(&wire.stop()).esp, packets);
    pair.end();
}
