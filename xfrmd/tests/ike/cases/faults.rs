//! What IKE daemons make of faults; docs/faults.md has what is asserted here as a table.
//!
//! A has the faults, B is a charon 5.9 that has none.

use std::fmt;
use std::net::UdpSocket;

use super::pluto::{SITES, connection};
use super::{A, B, sites};
use crate::charon::{CHARON, Charon, Connection};
use crate::flow::SECRET;
use crate::host::{Host, PATIENCE, Pair, eventually};
use crate::namespaces::XFRMD;
use crate::sas::sealed;

impl Host {
    #[track_caller]
    pub(super) fn fault(&mut self, text: &str) {
        self.shell.sh(&format!("{XFRMD} fault add {text}"));
    }

    /// How often faults have struck.
    #[track_caller]
    pub(super) fn struck(&mut self) -> u64 {
        let listed = self.shell.sh(&format!("{XFRMD} fault list"));
        let counts = listed.split("struck ").skip(1);
        let number = |text: &str| text.split(')').next()?.parse::<u64>().ok();
        counts.map(|text| number(text).unwrap()).sum()
    }

    #[track_caller]
    pub(super) fn clear_faults(&mut self) {
        self.shell.sh(&format!("{XFRMD} fault clear"));
    }
}

/// Replaced SAs go after a second rather than five.
const SOON: &str = "delete_rekeyed_delay = 1\n";

/// Which daemon has the faults.
#[derive(Clone, Copy)]
pub(super) enum Daemon {
    Charon(&'static str),
    Pluto,
}

/// What came of a fault.
#[derive(PartialEq, Eq)]
struct Outcome {
    /// The daemon says that the child is there.
    success: bool,
    /// SAs at A and at B.
    sas: [usize; 2],
    /// SAs at A when its daemon has ended the connection.
    left: usize,
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b] = self.sas;
        let success = if self.success { "done" } else { "failed" };
        write!(
            f,
            "{success}, {a} SAs here and {b} there, {} left",
            self.left
        )
    }
}

impl Daemon {
    fn start(self, settings: &'static str) -> Pair {
        self.start_with(settings, "")
    }

    /// With more in the child's configuration at A.
    pub(super) fn start_with(self, settings: &'static str, more: &str) -> Pair {
        let mut pair = Pair::new();
        pair.b.charon(&Charon {
            settings: SOON,
            ..CHARON
        });
        let [a, b] = sites("esp_proposals = aes256gcm16");
        match self {
            Self::Charon(release) => {
                pair.a.charon(&Charon {
                    release,
                    settings: if settings.is_empty() { SOON } else { settings },
                    ..CHARON
                });
                pair.a.load(&Connection {
                    local: A,
                    remote: B,
                    ike: "",
                    child: &format!("{a}\n{more}"),
                });
            }
            Self::Pluto => {
                let more = format!("{SITES}\tesp=aes_gcm256\n\tpfs=no\n{more}");
                pair.a.pluto(&connection(&more)[0]);
            }
        }
        pair.b.load(&Connection {
            local: B,
            remote: A,
            ike: "",
            child: &b,
        });
        pair
    }

    /// Asks for the child.
    pub(super) fn initiate(self, host: &mut Host) {
        match self {
            Self::Charon(_) => drop(host.try_swanctl("--initiate --child t --timeout 30")),
            Self::Pluto => drop(host.try_whack("--name t --initiate --asynchronous")),
        }
    }

    /// How often it has said that the child is there.
    fn established(self, host: &mut Host) -> usize {
        let (log, said) = match self {
            Self::Charon(_) => ("charon.log", "CHILD_SA t{"),
            Self::Pluto => ("pluto.log", "initiator established Child SA"),
        };
        let log = std::fs::read_to_string(host.directory.join(log)).unwrap();
        let established = |line: &&str| line.contains(said) && line.contains("established");
        log.lines().filter(established).count()
    }

    /// Ends what is there.
    pub(super) fn terminate(self, pair: &mut Pair) {
        match self {
            Self::Charon(_) => drop(pair.a.try_swanctl("--terminate --ike t --force")),
            Self::Pluto => drop(pair.a.try_whack("--name t --terminate")),
        }
        pair.b.try_swanctl("--terminate --ike t --force");
        eventually("B has no SAs", || pair.b.sas().is_empty().then_some(()));
    }

    /// Meets faults while it makes a child; each next one finds it fit to make another.
    fn meets(self, pair: &mut Pair, faults: &[(&str, Outcome)]) {
        let mut before = 0;
        for (fault, expected) in faults {
            pair.a.fault(fault);
            self.initiate(&mut pair.a);
            let mut seen = String::new();
            eventually(fault, || {
                let said = self.established(&mut pair.a);
                let outcome = Outcome {
                    success: said > before,
                    sas: [&mut pair.a, &mut pair.b].map(|host| sealed(host.sas()).len()),
                    left: expected.left,
                };
                let now = format!("{fault}: {outcome:?}");
                if seen != now {
                    eprintln!("{now}");
                    seen = now;
                }
                (outcome == *expected).then_some(())
            });
            assert!(pair.a.struck() > 0, "{fault}");
            pair.a.clear_faults();
            self.terminate(pair);
            eventually("what is left", || {
                (sealed(pair.a.sas()).len() == expected.left).then_some(())
            });
            pair.a.shell.sh("ip xfrm state flush");
            before = self.established(&mut pair.a);
        }
    }
}

const fn outcome(success: bool, sas: [usize; 2], left: usize) -> Outcome {
    Outcome { success, sas, left }
}

const WORKS: Outcome = outcome(true, [2, 2], 0);
const FAILS: Outcome = outcome(false, [0, 0], 0);
/// It tries again at once, and what its peer has of the first time stays there.
const TRIES_AGAIN: Outcome = outcome(true, [2, 4], 0);

pub(super) fn charon_6() {
    Daemon::Charon("6.0").meets(&mut Daemon::Charon("6.0").start(""), &NO_MEMORY);
}

const NO_MEMORY: [(&str, Outcome); 4] = [
    ("netlink.no-memory message=ALLOCSPI", FAILS),
    ("netlink.no-memory message=UPDSA", FAILS),
    ("netlink.no-memory message=NEWSA", FAILS),
    ("netlink.no-memory message=NEWPOLICY nth=1", FAILS),
];

/// Fails what it was about, cleans up, tells its peer, and can do the next.
pub(super) fn charon_5() {
    let daemon = Daemon::Charon("5.9");
    let mut pair = daemon.start("");
    daemon.meets(&mut pair, &NO_MEMORY);
    daemon.meets(
        &mut pair,
        &[
            ("netlink.error message=NEWSA errno=ENOMEM when=after", FAILS),
            ("netlink.reply-late message=UPDSA delay=300ms", WORKS),
            ("daemon.pause message=ALLOCSPI delay=300ms", WORKS),
            ("daemon.crash message=ALLOCSPI nth=1", FAILS),
            ("daemon.crash message=UPDSA nth=1", FAILS),
            ("daemon.crash message=UPDSA nth=1 when=after", FAILS),
        ],
    );
}

/// Waits for ever for an answer that is lost, or finds no room, and does nothing else any more.
pub(super) fn charon_waits() {
    let daemon = Daemon::Charon("5.9");
    for (fault, sas) in [
        ("netlink.reply-lost message=NEWSA", [2, 2]),
        ("netlink.overrun message=NEWSA", [2, 2]),
    ] {
        let mut pair = daemon.start("");
        // It cannot end by itself.
        let stop = pair.a.stop.take().unwrap();
        pair.a.stop = Some(stop.replacen("kill", "kill -9", 1));
        pair.a.fault(fault);
        let initiate = "--initiate --child t --timeout 1";
        assert!(!pair.a.try_swanctl(initiate).0);
        eventually(fault, || {
            let now = [&mut pair.a, &mut pair.b].map(|host| sealed(host.sas()).len());
            (now == sas && pair.a.struck() == 1).then_some(())
        });
        pair.a.clear_faults();
        assert!(!pair.a.try_swanctl(initiate).0);
        assert_eq!(pair.a.shell.sh("ip xfrm policy").matches("tmpl").count(), 0);
    }
}

/// With the settings by which it asks again: what was done already cannot be done twice, and the first
/// SPI is never used.
pub(super) fn charon_asks_again() {
    let daemon = Daemon::Charon("5.9");
    // Long enough for a machine that stalls.
    let settings = "plugins { kernel-netlink {\n timeout = 1000\n retries = 2\n } }\n";
    let mut pair = daemon.start(settings);
    daemon.meets(
        &mut pair,
        &[
            (
                "netlink.reply-lost message=ALLOCSPI nth=1",
                outcome(true, [3, 2], 1),
            ),
            ("netlink.reply-lost message=UPDSA nth=1", WORKS),
            ("netlink.reply-lost message=NEWSA nth=1", FAILS),
            ("netlink.overrun message=NEWSA nth=1", FAILS),
        ],
    );
}

/// Forgets its IKE SA without a word and begins again: what the peer has of it stays there.
pub(super) fn pluto() {
    let daemon = Daemon::Pluto;
    let mut pair = daemon.start("");
    daemon.meets(
        &mut pair,
        &[
            ("netlink.no-memory message=UPDSA nth=1", TRIES_AGAIN),
            (
                "netlink.error message=UPDSA errno=ENOMEM when=after nth=1",
                TRIES_AGAIN,
            ),
            ("netlink.reply-late message=UPDSA delay=300ms", WORKS),
            ("netlink.overrun message=NEWSA nth=1", TRIES_AGAIN),
            ("daemon.pause message=ALLOCSPI delay=300ms", WORKS),
            ("daemon.crash message=UPDSA nth=1", TRIES_AGAIN),
            ("daemon.crash message=UPDSA nth=1 when=after", TRIES_AGAIN),
        ],
    );
}

/// Packets go wrong on their way to B: the SAs count it, and no daemon does anything about it.
pub(super) fn packets() {
    let daemon = Daemon::Charon("5.9");
    let pair = &mut daemon.start("");
    daemon.initiate(&mut pair.a);
    let sas = eventually("SAs to send by", || {
        let sas = sealed(pair.b.sas());
        (sealed(pair.a.sas()) == sas && sas.len() == 2).then_some(sas)
    });
    let server = pair
        .b
        .namespace
        .inside(|| UdpSocket::bind("10.2.0.1:0").unwrap());
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let target = server.local_addr().unwrap();
    let client = pair
        .a
        .namespace
        .inside(|| UdpSocket::bind("10.1.0.1:0").unwrap());
    // Packets that arrive of a hundred, and what B counts of the others.
    let mut arrived = 0;
    for (fault, arrives, counter, count) in [
        ("packet.lost every=10", 90, "XfrmInStateSeqError", 0),
        ("packet.twice every=10", 100, "XfrmInStateSeqError", 10),
        ("packet.swapped every=10", 100, "XfrmInStateSeqError", 10),
        (
            "packet.late every=10 delay=20ms",
            100,
            "XfrmInStateSeqError",
            10,
        ),
        ("packet.corrupt every=10", 90, "XfrmInStateProtoError", 10),
        ("packet.too-big mtu=80", 0, "XfrmInStateProtoError", 10),
    ] {
        pair.a.fault(&format!("{fault} direction=out"));
        let mut received = 0;
        for tens in 1..=10 {
            for _ in 0..10 {
                client.send_to(SECRET, target).unwrap();
            }
            // No more than a replay window is on its way: one of them may wait for the next.
            while received + 1 < tens * arrives / 10 {
                server.recv(&mut [0; 100]).expect(fault);
                received += 1;
            }
        }
        while received < arrives {
            server.recv(&mut [0; 100]).expect(fault);
            received += 1;
        }
        arrived += arrives;
        eventually(fault, || {
            let now = sealed(pair.b.sas());
            assert!(now.keys().eq(sas.keys()), "{now:?}");
            let most = now.values().map(|sa| sa.packets).max();
            (most == Some(arrived)).then_some(())
        });
        pair.b.shell.counts(counter, count);
        pair.a.clear_faults();
    }
    daemon.terminate(pair);
}
