//! The cases.

use crate::Need;
use crate::charon::{CHARON, Connection};
use crate::flow::Flow;
use crate::host::{Pair, WIRE};
use crate::namespaces::Wire;
use crate::sas::agreed;
use crate::wire::Seen;

/// Every case: name, what it needs, what it does.
pub(crate) static CASES: &[(&str, &[Need], fn())] =
    &[("charon_tunnel", &[Need::Charon5], charon_tunnel)];

const A: &str = "192.168.77.1";
const B: &str = "192.168.77.2";

impl Pair {
    /// Both configured the same, from either's own side. `here` and `there` in the child are the
    /// networks.
    fn connect(&mut self, ike: &str, child: [&str; 2]) {
        for (host, local, remote, child) in
            [(&mut self.a, A, B, child[0]), (&mut self.b, B, A, child[1])]
        {
            host.load(&Connection {
                local,
                remote,
                ike,
                child,
            });
        }
    }
}

/// The networks behind the two.
fn sites(more: &str) -> [String; 2] {
    [(1, 2), (2, 1)].map(|(own, other)| {
        format!("local_ts = 10.{own}.0.0/24\n remote_ts = 10.{other}.0.0/24\n {more}")
    })
}

fn charon_tunnel() {
    let mut pair = Pair::new();
    pair.a.charon(&CHARON);
    pair.b.charon(&CHARON);
    let [a, b] = sites("esp_proposals = aes128gcm16");
    pair.connect("", [&a, &b]);
    let wire = Wire::listen(&pair.a.namespace, WIRE);
    pair.a.swanctl("--initiate --child t");
    let flow = Flow::start(
        &pair.a.namespace,
        "10.1.0.1:0",
        &pair.b.namespace,
        "10.2.0.1:0",
    );
    flow.more(100);
    let packets = flow.finish().complete();
    let sas = agreed(&mut pair.a, &mut pair.b);
    assert_eq!(sas.len(), 2);
    assert_eq!(sas.values().map(|sa| sa.packets).sum::<u64>(), packets);
    let seen = Seen::of(&wire.stop());
    assert_eq!(seen.esp, packets);
    assert!(seen.ike > 0);
    pair.a.swanctl("--terminate --ike t");
    pair.a.stop();
    pair.b.stop();
}
