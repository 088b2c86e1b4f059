//! charon over xfrmd, and a peer with an ESP of its own.

use super::pluto::{SITES, connection};
use super::{A, B, sites, suites};
use crate::charon::{CHARON, Charon, Connection};
use crate::flow::{Flow, SECRET};
use crate::host::{Host, Pair, WIRE};
use crate::kernel::Kernel;
use crate::namespaces::{Wire, protocols};
use crate::sas::sealed;
use crate::wire::Seen;

/// strongSwan's own, in userspace, which speaks ESP in UDP only.
pub(super) fn libipsec() {
    let mut pair = Pair::of(Host::new(), Host::plain());
    pair.a.charon(&CHARON);
    pair.b.charon(&Charon {
        plugins: "kernel-libipsec",
        ..CHARON
    });
    let [a, b] = sites("esp_proposals = aes128gcm16");
    pair.connect("encap = yes", [&a, &b]);
    let wire = Wire::listen(&pair.a.namespace, WIRE);
    pair.a.swanctl("--initiate --child t");
    let flow = pair.site_flow();
    flow.more(50);
    super::charon::rekeyed(&mut pair.a, "--rekey --child t");
    flow.more(50);
    super::charon::rekeyed_by(&mut pair.b, &mut pair.a, "--rekey --child t");
    flow.more(50);
    let packets = flow.finish();
    let seen = Seen::of(&wire.stop());
    assert_eq!(seen.esp_in_udp, packets);
    // Both count the packets of the last pair of SAs alike.
    let listed = pair.b.swanctl("--list-sas");
    for sa in pair.a.sas().values() {
        let packets = format!(" {} packets", sa.packets);
        assert!(listed.contains(&packets), "{listed}");
    }
    pair.a.swanctl("--terminate --ike t");
    pair.a.stop();
}

/// One tunnel to each release.
pub(super) fn linux_6_1() {
    linux("6.1", "esp_proposals = aes256-sha256-esn");
}

pub(super) fn linux_6_12() {
    linux("6.12", "esp_proposals = aes128gcm16\n ipcomp = yes");
}

fn linux(release: &'static str, more: &str) {
    let mut a = Host::new();
    a.charon(&CHARON);
    let [own, other] = sites(more);
    let kernel = Kernel::beside(
        &a,
        release,
        &CHARON,
        &Connection {
            local: B,
            remote: A,
            ike: "",
            child: &other,
        },
        1,
    );
    a.load(&Connection {
        local: A,
        remote: B,
        ike: "",
        child: &own,
    });
    let wire = Wire::listen(&a.namespace, WIRE);
    a.swanctl("--initiate --child t");
    let mut packets = 0;
    for bytes in [SECRET.len(), 1200] {
        let flow = Flow::ask(&a.namespace, "10.1.0.1:0", Kernel::address(7000), bytes);
        flow.more(30);
        packets += flow.finish();
    }
    super::charon::rekeyed(&mut a, "--rekey --child t");
    let flow = Flow::ask(&a.namespace, "10.1.0.1:0", Kernel::address(7000), 500);
    flow.more(30);
    let last = flow.finish();
    let ours = sealed(a.sas());
    assert_eq!(ours, sealed(kernel.end()));
    assert_eq!(ours.values().map(|sa| sa.packets).sum::<u64>(), last);
    assert_eq!(Seen::of(&wire.stop()).esp, packets + last);
}

pub(super) fn pluto_and_linux() {
    let mut a = Host::new();
    let [own, _] = connection(&format!("{SITES}\tesp=aes_gcm256\n\tpfs=no\n"));
    a.pluto(&own);
    let [_, other] = sites("esp_proposals = aes256gcm16");
    let kernel = Kernel::beside(
        &a,
        "6.12",
        &CHARON,
        &Connection {
            local: B,
            remote: A,
            ike: "",
            child: &other,
        },
        1,
    );
    let wire = Wire::listen(&a.namespace, WIRE);
    // It has seen its interface come only if it looks.
    a.whack("--listen");
    a.whack("--name t --initiate");
    let target = Kernel::address(7000);
    let flow = Flow::ask(&a.namespace, "10.1.0.1:0", target, SECRET.len());
    flow.more(50);
    let packets = flow.finish();
    let ours = a.sas();
    assert_eq!(ours, kernel.end());
    assert_eq!(ours.values().map(|sa| sa.packets).sum::<u64>(), packets);
    assert_eq!(Seen::of(&wire.stop()).esp, packets);
}

/// Every cipher suite, against what Linux makes of it.
pub(super) fn linux_every_suite() {
    let mut a = Host::new();
    let charon = Charon {
        settings: "send_vendor_id = yes",
        ..CHARON
    };
    a.charon(&charon);
    let suites = suites();
    let [own, other] = super::suite_children(&suites);
    let ports = u16::try_from(suites.len()).unwrap();
    let kernel = Kernel::beside(
        &a,
        "7.2",
        &charon,
        &Connection {
            local: B,
            remote: A,
            ike: "",
            child: &other,
        },
        ports,
    );
    a.load(&Connection {
        local: A,
        remote: B,
        ike: "",
        child: &own,
    });
    let wire = Wire::listen(&a.namespace, WIRE);
    for port in 7000..7000 + ports {
        a.swanctl(&format!("--initiate --child c{port}"));
        let target = Kernel::address(port);
        let flow = Flow::ask(&a.namespace, "10.1.0.1:0", target, SECRET.len());
        flow.more(10);
        flow.finish();
    }
    let ours = a.sas();
    assert_eq!(ours.len(), 2 * suites.len());
    assert!(ours.values().all(|sa| sa.packets >= 10), "{ours:?}");
    assert_eq!(ours, kernel.end());
    assert_eq!(protocols(&wire.stop()), [17, 50]);
}
