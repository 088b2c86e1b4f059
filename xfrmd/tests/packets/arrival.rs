//! What arrives where there are SAs alone, and by mark.

use crate::cases::{A, B, Pair, SECRET, SOON, WAIT, is_protected, past_policies, udp};
use crate::namespaces::Wire;

/// Cases of this module.
pub(crate) static CASES: &[(&str, fn())] = &[
    ("sas_alone_take_what_comes", sas_alone),
    ("marks_of_what_arrives", marks),
];

const TEMPLATE: &str = "tmpl proto esp reqid 1 mode transport";

/// An SA from A to B.
fn sa(mode: &str, more: &str) -> String {
    format!(
        "ip xfrm state add src {A} dst {B} proto esp spi 0x100 reqid 1 mode {mode} {more} \
         replay-window 32 aead 'rfc4106(gcm(aes))' \
         0x0102030405060708090a0b0c0d0e0f1011121314 128"
    )
}

/// Sends from A until B gets it; false if it does not within a while.
fn arrives(pair: &Pair, tries: usize) -> bool {
    let server = pair.b.inside(|| udp(&format!("{B}:0")));
    let client = pair.a.inside(|| udp("0.0.0.0:0"));
    server.set_read_timeout(Some(SOON)).unwrap();
    (0..tries).any(|_| {
        client
            .send_to(SECRET, server.local_addr().unwrap())
            .unwrap();
        server.recv_from(&mut [0; 100]).is_ok()
    })
}

const OFTEN: usize = 50;

fn protect_at_a(pair: &mut Pair, mode: &str) {
    pair.xa.sh(&format!(
        "{}; ip xfrm policy add dir out src {A} dst {B} \
         tmpl src {A} dst {B} proto esp reqid 1 mode {mode}",
        sa(mode, "")
    ));
}

fn sas_alone() {
    let mut pair = Pair::new();
    protect_at_a(&mut pair, "transport");
    // Another SA makes B look at ESP; what is for none of its SAs is counted.
    pair.xb.sh(&sa("transport", "").replace("0x100", "0x101"));
    assert!(!arrives(&pair, 1));
    pair.xb.counts("XfrmInNoStates", 1);
    pair.xb.sh(&sa("transport", ""));
    let wire = Wire::listen(&pair.b, "v1");
    assert!(arrives(&pair, OFTEN));
    is_protected(&wire.stop());
    // Nobody forbids what comes in clear.
    let server = pair.b.inside(|| udp(&format!("{B}:0")));
    let client = pair.a.inside(|| udp("0.0.0.0:0"));
    past_policies(&client);
    client
        .send_to(SECRET, server.local_addr().unwrap())
        .unwrap();
    server.set_read_timeout(Some(WAIT)).unwrap();
    server.recv_from(&mut [0; 100]).expect("in clear");
    // What was in a tunnel needs a policy.
    pair.xa
        .sh("ip xfrm state deleteall; ip xfrm policy deleteall");
    pair.xb.sh("ip xfrm state deleteall");
    protect_at_a(&mut pair, "tunnel");
    pair.xb.sh(&sa("tunnel", ""));
    assert!(!arrives(&pair, 1));
    pair.xb.counts("XfrmInNoPols", 1);
}

fn marks() {
    let mut pair = Pair::new();
    protect_at_a(&mut pair, "transport");
    pair.xb.sh(&format!(
        "{}; ip xfrm policy add dir in src {A} dst {B} mark 7 priority 5 {TEMPLATE}",
        sa("transport", "mark 7 mask 0xff")
    ));
    assert!(!arrives(&pair, 1));
    pair.xb.counts("XfrmInNoStates", 1);
    pair.b
        .sh("iptables -t mangle -A PREROUTING -p esp -j MARK --set-mark 7");
    let wire = Wire::listen(&pair.b, "v1");
    assert!(arrives(&pair, OFTEN));
    is_protected(&wire.stop());
    // By mark it is blocked.
    pair.xb.sh(&format!(
        "ip xfrm policy add dir in src {A} dst {B} mark 7 mask 0xf priority 0 action block"
    ));
    let before = pair.xb.counter("XfrmInPolBlock");
    assert!(!arrives(&pair, 1));
    pair.xb.counts("XfrmInPolBlock", before + 1);
}
