//! The cases, and what they share.

mod charon;
mod clock;
mod faults;
mod network;
mod peers;
mod pluto;
mod rekeying;

use crate::Need::{self, Charon5, Charon6, Compiler, Kernel, Pluto};
use crate::charon::{CHARON, Connection};
use crate::flow::Flow;
use crate::host::{Pair, WIRE};
use crate::namespaces::Wire;
use crate::sas::{Sas, agreed};
use crate::wire::Seen;

/// Name, what it needs, what it does.
pub(crate) type Case = (&'static str, &'static [Need], fn());

/// Every case.
pub(crate) static CASES: &[Case] = &[
    ("the_script_of_the_readme", &[Charon5], charon::script),
    ("charon_tunnel", &[Charon5], charon::tunnel),
    ("charon_transport", &[Charon5], charon::transport),
    ("charon_ipv6", &[Charon5], charon::ipv6),
    ("charon_ah", &[Charon5], charon::ah),
    ("charon_ipcomp", &[Charon5], charon::ipcomp),
    ("charon_esn", &[Charon5], charon::esn),
    ("charon_every_suite", &[Charon5], charon::every_suite),
    ("charon_ports", &[Charon5], charon::ports),
    ("charon_rekeys_under_traffic", &[Charon5], charon::rekey),
    (
        "charon_lives_through_kills_of_xfrmd",
        &[Charon5],
        charon::killed,
    ),
    (
        "charon_rekeys_for_hours_in_seconds",
        &[Charon5, Compiler],
        clock::many_hours,
    ),
    ("charon_trap", &[Charon5], charon::trap),
    ("charon_rekeys_when_sas_expire", &[Charon5], charon::expire),
    (
        "charon_closes_what_nobody_uses",
        &[Charon5],
        charon::inactive,
    ),
    ("charon_blocks_and_lets_pass", &[Charon5], charon::shunts),
    (
        "charon_gives_an_address_and_takes_everything",
        &[Charon5],
        charon::road_warrior,
    ),
    ("charon_6_and_5.9", &[Charon5, Charon6], charon::releases),
    ("charon_behind_nat", &[Charon5], network::nat),
    (
        "two_charons_behind_one_nat",
        &[Charon5],
        network::two_behind_nat,
    ),
    (
        "charon_behind_nat_in_transport_mode",
        &[Charon5],
        network::nat_transport,
    ),
    ("charon_moves", &[Charon5], network::mobike),
    ("charon_finds_its_peer_dead", &[Charon5], network::dead_peer),
    ("charon_5.9_meets_faults", &[Charon5], faults::charon_5),
    (
        "charon_6_meets_faults",
        &[Charon5, Charon6],
        faults::charon_6,
    ),
    (
        "charon_waits_for_ever_for_what_is_lost",
        &[Charon5],
        faults::charon_waits,
    ),
    (
        "charon_that_asks_again_meets_faults",
        &[Charon5],
        faults::charon_asks_again,
    ),
    ("pluto_meets_faults", &[Pluto, Charon5], faults::pluto),
    ("packets_meet_faults", &[Charon5], faults::packets),
    (
        "charon_hears_of_expiries_amiss",
        &[Charon5],
        rekeying::expiries,
    ),
    (
        "charon_hears_of_acquires_amiss",
        &[Charon5],
        rekeying::charon_acquires,
    ),
    (
        "pluto_hears_of_acquires_amiss",
        &[Pluto, Charon5],
        rekeying::pluto_acquires,
    ),
    (
        "charon_meets_faults_while_it_rekeys",
        &[Charon5],
        rekeying::charon,
    ),
    (
        "pluto_meets_faults_while_it_rekeys",
        &[Pluto, Charon5],
        rekeying::pluto,
    ),
    ("pluto_tunnel", &[Pluto], pluto::tunnel),
    ("pluto_transport_rekeys", &[Pluto], pluto::transport),
    ("pluto_in_udp", &[Pluto], pluto::in_udp),
    ("pluto_trap", &[Pluto], pluto::trap),
    ("pluto_and_charon", &[Pluto, Charon5], pluto::and_charon),
    ("charon_and_libipsec", &[Charon5], peers::libipsec),
    (
        "charon_and_linux_6.1",
        &[Charon5, Kernel("6.1")],
        peers::linux_6_1,
    ),
    (
        "charon_and_linux_6.12",
        &[Charon5, Kernel("6.12")],
        peers::linux_6_12,
    ),
    (
        "pluto_and_linux_6.12",
        &[Pluto, Charon5, Kernel("6.12")],
        peers::pluto_and_linux,
    ),
    (
        "charon_and_linux_7.2_every_suite",
        &[Charon5, Kernel("7.2")],
        peers::linux_every_suite,
    ),
];

const A: &str = "192.168.77.1";
const B: &str = "192.168.77.2";

/// The networks behind the two, as A and as B says it.
fn sites(more: &str) -> [String; 2] {
    [(1, 2), (2, 1)].map(|(own, other)| {
        format!("local_ts = 10.{own}.0.0/24\n remote_ts = 10.{other}.0.0/24\n {more}")
    })
}

/// Every cipher suite that charon knows to propose for ESP.
fn suites() -> Vec<String> {
    let mut suites: Vec<String> = vec!["chacha20poly1305".to_owned()];
    for bits in [128, 192, 256] {
        for mode in ["gmac", "gcm8", "gcm12", "gcm16", "ccm8", "ccm12", "ccm16"] {
            suites.push(format!("aes{bits}{mode}"));
        }
        // Some have numbers of strongSwan's own, which its peer must know it by.
        for cipher in ["aes", "camellia", "blowfish", "serpent", "twofish"] {
            suites.push(format!("{cipher}{bits}-sha256"));
        }
        suites.push(format!("aes{bits}ctr-sha256"));
    }
    for cipher in ["cast128", "3des", "des", "null"] {
        suites.push(format!("{cipher}-sha1"));
    }
    for integrity in [
        "md5",
        "md5_128",
        "sha1",
        "sha1_160",
        "sha256_96",
        "sha384",
        "sha512",
        "aesxcbc",
        "aescmac",
    ] {
        suites.push(format!("aes128-{integrity}"));
    }
    suites
}

/// As A and as B says it: a child `c7000` for the first suite and this port at B, and so on.
fn suite_children(suites: &[String]) -> [String; 2] {
    [(1, 2), (2, 1)].map(|(own, other)| {
        // A child named `t` is there; nobody uses it.
        let mut text = "esp_proposals = aes128gcm16\n }\n".to_owned();
        for (port, suite) in (7000..).zip(suites) {
            let udp = |site: u8| match site {
                2 => format!("10.2.0.0/24[udp/{port}]"),
                _ => "10.1.0.0/24[udp]".to_owned(),
            };
            text += &format!(
                "c{port} {{\n local_ts = {}\n remote_ts = {}\n esp_proposals = {suite}\n }}\n",
                udp(own),
                udp(other)
            );
        }
        text + "unused {"
    })
}

impl Pair {
    /// Both with strongSwan 5.9.
    fn charons() -> Self {
        let mut pair = Self::new();
        pair.a.charon(&CHARON);
        pair.b.charon(&CHARON);
        pair
    }

    /// Both configured for each other; `ike` is the same for both.
    fn connect(&mut self, ike: &str, [a, b]: [&str; 2]) {
        self.a.load(&Connection {
            local: A,
            remote: B,
            ike,
            child: a,
        });
        self.b.load(&Connection {
            local: B,
            remote: A,
            ike,
            child: b,
        });
    }

    fn flow(&self, from: &str, to: &str) -> Flow {
        Flow::start(&self.a.namespace, from, &self.b.namespace, to)
    }

    fn site_flow(&self) -> Flow {
        self.flow("10.1.0.1:0", "10.2.0.1:0")
    }

    /// Initiates at A, and sends through what comes of it.
    #[track_caller]
    fn initiate_and_send(&mut self, from: &str, to: &str) -> Carried {
        let wire = Wire::listen(&self.a.namespace, WIRE);
        self.a.swanctl("--initiate --child t");
        self.send(wire, from, to)
    }

    /// Sends through SAs that have not been used.
    #[track_caller]
    fn send(&mut self, wire: Wire, from: &str, to: &str) -> Carried {
        let flow = self.flow(from, to);
        flow.more(100);
        let packets = flow.finish();
        let sas = agreed(&mut self.a, &mut self.b);
        Carried {
            packets,
            sas,
            seen: Seen::of(&wire.stop()),
        }
    }

    /// An orderly end: one deletes the SAs, both daemons go, nothing is left.
    fn end(mut self) {
        self.a.swanctl("--terminate --ike t");
        self.a.stop();
        self.b.stop();
    }
}

/// What went through.
struct Carried {
    packets: u64,
    sas: Sas,
    seen: Seen,
}

impl Carried {
    /// By one SA each way, and all of it was on the wire as what it should be.
    #[track_caller]
    fn by_one_pair(&self, on_the_wire: impl FnOnce(&Seen) -> u64) {
        assert_eq!(self.sas.len(), 2, "{:?}", self.sas);
        let counted: u64 = self.sas.values().map(|sa| sa.packets).sum();
        assert_eq!(counted, self.packets, "{:?}", self.sas);
        assert_eq!(on_the_wire(&self.seen), self.packets, "{:?}", self.seen);
        assert!(self.seen.ike > 0);
    }
}
