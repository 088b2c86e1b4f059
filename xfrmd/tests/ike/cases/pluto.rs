//! libreswan at one end, or at both.

use super::charon::only_others;
use super::{A, B};
use crate::charon::CHARON;
use crate::charon::Connection;
use crate::host::{Pair, WIRE, eventually};
use crate::namespaces::Wire;
use crate::wire::Seen;

/// `ipsec.conf`'s, of A and of B.
pub(super) fn connection(more: &str) -> [String; 2] {
    [(1, 2), (2, 1)].map(|(own, other)| {
        format!(
            "\tauthby=secret\n\tikev2=insist\n\tleft=192.168.77.{own}\n\tright=192.168.77.{other}\n{}",
            more.replace("OWN", &own.to_string())
                .replace("OTHER", &other.to_string())
        )
    })
}

pub(super) const SITES: &str = "\tleftsubnet=10.OWN.0.0/24\n\trightsubnet=10.OTHER.0.0/24\n";

pub(super) fn tunnel() {
    let mut pair = Pair::new();
    let [a, b] = connection(SITES);
    pair.a.pluto(&a);
    pair.b.pluto(&b);
    let wire = Wire::listen(&pair.a.namespace, WIRE);
    pair.a.whack("--name t --initiate");
    let carried = pair.send(wire, "10.1.0.1:0", "10.2.0.1:0");
    carried.by_one_pair(|seen| seen.esp);
    pair.a.whack("--name t --terminate");
    pair.a.stop();
    pair.b.stop();
}

/// And the SAs are made anew under traffic. A pluto that responds sends through the new SA at once, when
/// the other end may still have but the larval one, or none.
pub(super) fn transport() {
    let mut pair = Pair::new();
    let [a, b] = connection("\ttype=transport\n\tesp=aes_cbc128-sha2_256\n");
    pair.a.pluto(&a);
    pair.b.pluto(&b);
    let wire = Wire::listen(&pair.a.namespace, WIRE);
    pair.a.whack("--name t --initiate");
    let carried = pair.send(wire, "0.0.0.0:0", &format!("{B}:0"));
    carried.by_one_pair(|seen| seen.esp);
    let wire = Wire::listen(&pair.a.namespace, WIRE);
    let flow = pair.flow("0.0.0.0:0", &format!("{B}:0"));
    flow.more(20);
    let before = pair.a.sas();
    pair.a.whack("--name t --rekey-ipsec");
    only_others(&mut pair.a, &before);
    flow.more(20);
    flow.finish_but(|| {
        let early = pair.a.shell.counter("XfrmAcquireError");
        early + pair.a.shell.counter("XfrmInNoStates")
    });
    Seen::of(&wire.stop());
    pair.a.whack("--name t --terminate");
    pair.a.stop();
    pair.b.stop();
}

/// ESP in UDP, as behind NAT.
pub(super) fn in_udp() {
    let mut pair = Pair::new();
    let [a, b] = connection(&format!("{SITES}\tencapsulation=yes\n"));
    pair.a.pluto(&a);
    pair.b.pluto(&b);
    let wire = Wire::listen(&pair.a.namespace, WIRE);
    pair.a.whack("--name t --initiate");
    let carried = pair.send(wire, "10.1.0.1:0", "10.2.0.1:0");
    carried.by_one_pair(|seen| seen.esp_in_udp);
    pair.a.whack("--name t --terminate");
    pair.a.stop();
    pair.b.stop();
}

/// The first packet asks for the SA and waits for it.
pub(super) fn trap() {
    let mut pair = Pair::new();
    pair.a
        .shell
        .sh("echo 0 > /proc/sys/net/core/xfrm_larval_drop");
    let [a, b] = connection(SITES);
    pair.a.pluto(&a);
    pair.b.pluto(&b);
    pair.a.whack("--name t --route");
    let wire = Wire::listen(&pair.a.namespace, WIRE);
    let carried = pair.send(wire, "10.1.0.1:0", "10.2.0.1:0");
    carried.by_one_pair(|seen| seen.esp);
    pair.a.whack("--name t --terminate");
    pair.a.whack("--name t --unroute");
    pair.a.stop();
    pair.b.stop();
}

/// Each initiates once.
pub(super) fn and_charon() {
    let mut pair = Pair::new();
    let [a, _] = connection(&format!("{SITES}\tesp=aes_gcm256\n\tpfs=no\n"));
    pair.a.pluto(&a);
    pair.b.charon(&CHARON);
    pair.b.load(&Connection {
        local: B,
        remote: A,
        ike: "",
        child: "local_ts = 10.2.0.0/24\n remote_ts = 10.1.0.0/24\n esp_proposals = aes256gcm16",
    });
    let wire = Wire::listen(&pair.a.namespace, WIRE);
    pair.a.whack("--name t --initiate");
    let carried = pair.send(wire, "10.1.0.1:0", "10.2.0.1:0");
    carried.by_one_pair(|seen| seen.esp);
    pair.a.whack("--name t --terminate");
    eventually("charon hears of it", || {
        pair.b.sas().is_empty().then_some(())
    });
    let wire = Wire::listen(&pair.a.namespace, WIRE);
    pair.b.swanctl("--initiate --child t");
    let carried = pair.send(wire, "10.1.0.1:0", "10.2.0.1:0");
    carried.by_one_pair(|seen| seen.esp);
    pair.b.swanctl("--terminate --ike t");
    pair.a.stop();
    pair.b.stop();
}
