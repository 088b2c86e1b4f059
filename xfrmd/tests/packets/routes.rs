//! A host without nf_tables: rules and routes in its place.

use crate::cases::{
    A, B, Pair, SECRET, SOON, WAIT, echo, is_protected, nothing_passes_a_killed_one, ping, sas,
    transfer, udp,
};
use crate::namespaces::{Namespace, Shell, Wire, XFRMD, join, protocols};

/// Cases of this module.
pub(crate) static CASES: &[(&str, fn())] = &[
    ("without_nf_tables_a_tunnel", tunnel),
    ("without_nf_tables_transport_and_ports", transport),
    ("without_nf_tables_nothing_leaks", killed),
];

fn by_routes(namespace: &Namespace) -> Shell {
    namespace.shell(&[XFRMD, "run", "--packets", "--capture", "routes", "--", "sh"])
}

fn pair() -> Pair {
    let (a, b) = (Namespace::new(), Namespace::new());
    join(&a, &b);
    a.sh(&format!(
        "ip addr add {A}/24 dev v0; ip addr add fd77::1/64 dev v0 nodad"
    ));
    b.sh(&format!(
        "ip addr add {B}/24 dev v1; ip addr add fd77::2/64 dev v1 nodad"
    ));
    let (xa, xb) = (by_routes(&a), by_routes(&b));
    Pair { a, b, xa, xb }
}

/// All that is there of rules and routes.
fn state(namespace: &Namespace) -> String {
    namespace.sh("ip -o link | cut -d: -f2; ip rule; ip -6 rule; ip route show table all | grep -w 30822 || true")
}

fn tunnel() {
    let mut pair = pair();
    for (namespace, own, other, via) in [(&pair.a, 1, 2, B), (&pair.b, 2, 1, A)] {
        namespace.sh(&format!(
            "ip addr add 10.{own}.0.1/24 dev lo; ip route add 10.{other}.0.0/24 via {via}"
        ));
    }
    let before = state(&pair.a);
    pair.sas("tunnel", A, B);
    pair.policies("tunnel", ["10.1.0.0/24", "10.2.0.0/24"], [A, B], true);
    let wire = Wire::listen(&pair.a, "v0");
    // The policy's source is that of senders without one.
    ping(&pair.a, "10.2.0.1");
    echo(&pair.a, &pair.b, "0.0.0.0:0", "10.2.0.1:0", 1400);
    transfer(&pair.b, &pair.a, "10.1.0.1:0", 1_000_000);
    is_protected(&wire.stop());
    // No policy is for this source.
    let wire = Wire::listen(&pair.a, "v0");
    echo(&pair.a, &pair.b, &format!("{A}:0"), "10.2.0.1:0", 3000);
    transfer(&pair.a, &pair.b, &format!("{B}:0"), 100_000);
    assert!(!protocols(&wire.stop()).contains(&50));
    // What comes in clear and should not have is dropped.
    pair.xb.sh("ip xfrm policy deleteall");
    let server = pair.a.inside(|| udp("10.1.0.1:0"));
    let intruder = pair.b.inside(|| udp("10.2.0.1:0"));
    intruder
        .send_to(SECRET, server.local_addr().unwrap())
        .unwrap();
    server.set_read_timeout(Some(SOON)).unwrap();
    assert!(server.recv_from(&mut [0; 100]).is_err());
    pair.xa
        .sh("ip xfrm policy deleteall; ip xfrm state deleteall");
    assert_eq!(state(&pair.a), before);
    server.set_read_timeout(Some(WAIT)).unwrap();
    intruder
        .send_to(SECRET, server.local_addr().unwrap())
        .unwrap();
    server.recv_from(&mut [0; 100]).expect("there is no policy");
}

fn transport() {
    let mut pair = pair();
    pair.sas("transport", A, B);
    for (shell, here, there, port) in [(&mut pair.xa, A, B, "dport"), (&mut pair.xb, B, A, "sport")]
    {
        let back = if port == "dport" { "sport" } else { "dport" };
        shell.sh(&format!(
            "ip xfrm policy add dir out src {here} dst {there} proto udp {port} 7000 priority 9 \
               tmpl proto esp reqid 1 mode transport; \
             ip xfrm policy add dir in src {there} dst {here} proto udp {back} 7000 priority 9 \
               tmpl proto esp reqid 1 mode transport"
        ));
    }
    let wire = Wire::listen(&pair.a, "v0");
    echo(&pair.a, &pair.b, "0.0.0.0:0", &format!("{B}:7000"), 3000);
    is_protected(&wire.stop());
    // Another protocol is left alone.
    let wire = Wire::listen(&pair.a, "v0");
    transfer(&pair.a, &pair.b, &format!("{B}:0"), 300_000);
    assert_eq!(protocols(&wire.stop()), [6]);
    // Ports cannot be told: whatever is UDP in clear is dropped.
    let server = pair.b.inside(|| udp(&format!("{B}:7001")));
    let client = pair.a.inside(|| udp(&format!("{A}:0")));
    server.set_read_timeout(Some(SOON)).unwrap();
    client
        .send_to(SECRET, server.local_addr().unwrap())
        .unwrap();
    assert!(server.recv_from(&mut [0; 100]).is_err());
    // Policies that come and go change that, and nothing else in between.
    for round in 0..20 {
        pair.xb.sh(&format!(
            "ip xfrm policy add dir in src 10.9.{round}.0/24 dst {B} action block"
        ));
    }
    client
        .send_to(SECRET, server.local_addr().unwrap())
        .unwrap();
    assert!(server.recv_from(&mut [0; 100]).is_err());
    pair.xb.sh(&format!(
        "ip xfrm policy add dir in src {A} dst {B} proto udp priority 1 action allow"
    ));
    client
        .send_to(SECRET, server.local_addr().unwrap())
        .unwrap();
    server.set_read_timeout(Some(WAIT)).unwrap();
    server
        .recv_from(&mut [0; 100])
        .expect("a policy lets it pass");
}

fn killed() {
    let mut pair = pair();
    let before = state(&pair.a);
    let client = nothing_passes_a_killed_one(&mut pair, |pair, _| {
        pair.xb.sh("ip xfrm policy deleteall");
    });
    // Others take over what a dead one left, whatever they work with. SAs alone change nothing.
    let comes_and_goes = |next: &mut Shell| {
        next.sh(&sas("transport", A, B));
        next.sh("ip xfrm state deleteall");
        assert_ne!(state(&pair.a), before);
        next.sh(&format!(
            "ip xfrm policy add dir in src {B} dst {A} action block"
        ));
    };
    let mut next = by_routes(&pair.a);
    comes_and_goes(&mut next);
    next.sh("ip xfrm policy deleteall");
    assert_eq!(state(&pair.a), before);
    next.sh(&format!(
        "ip xfrm policy add dir in src {B} dst {A} action block"
    ));
    next.kill();
    let mut next = pair.a.xfrmd();
    comes_and_goes(&mut next);
    next.sh("ip xfrm policy deleteall");
    assert_eq!(state(&pair.a), before);
    client.send_to(b"free", format!("{B}:9")).unwrap();
}
