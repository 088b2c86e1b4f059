//! Policies and SAs with an interface id belong to packets of an xfrm interface with that id,
//! of which there are none.

use crate::cases::{A, B, Pair, echo, is_protected, sas};
use crate::namespaces::{Wire, protocols};

const UDP: u8 = 17;

/// Policies with an id neither protect nor block nor let pass what has none, and SAs with one
/// carry nothing for policies without.
pub(crate) fn select_nothing() {
    let mut pair = Pair::new();
    let (client, server) = ("0.0.0.0:0", format!("{B}:0"));
    let policy = |dir: &str, from: &str, to: &str, what: &str| {
        format!("ip xfrm policy add dir {dir} src {from} dst {to} {what}")
    };
    for (shell, own, other) in [(&mut pair.xa, A, B), (&mut pair.xb, B, A)] {
        let wants = "if_id 42 priority 1 tmpl proto esp reqid 1 mode transport";
        shell.sh(&sas("transport", A, B));
        shell.sh(&policy("out", own, other, wants));
        shell.sh(&policy("in", other, own, wants));
        shell.sh(&policy("fwd", other, own, "if_id 42 action block"));
        shell.sh(&policy("out", own, other, "if_id 43 action block"));
        shell.sh(&policy("in", other, own, "if_id 43 action block"));
    }
    let wire = Wire::listen(&pair.a, "v0");
    echo(&pair.a, &pair.b, client, &server, 100);
    assert_eq!(protocols(&wire.stop()), [UDP]);
    for shell in [&mut pair.xa, &mut pair.xb] {
        shell.counts("XfrmInTmplMismatch", 0);
        shell.counts("XfrmInPolBlock", 0);
        shell.counts("XfrmOutPolBlock", 0);
    }

    // The one without an id counts, though those with one come first.
    for (shell, own, other) in [(&mut pair.xa, A, B), (&mut pair.xb, B, A)] {
        let wants = "priority 9 tmpl proto esp reqid 1 mode transport";
        shell.sh(&policy("out", own, other, wants));
        shell.sh(&policy("in", other, own, wants));
    }
    let wire = Wire::listen(&pair.a, "v0");
    echo(&pair.a, &pair.b, client, &server, 100);
    is_protected(&wire.stop());

    // Its SAs are those without one.
    let sas = sas("transport", A, B).replace("aead", "if_id 42 aead");
    pair.xa.sh(&format!("ip xfrm state flush; {sas}"));
    let socket = pair.a.inside(|| crate::cases::udp(client));
    let _ = socket.send_to(b"nothing", (B, 9));
    pair.xa.counts("XfrmOutNoStates", 1);
}
