//! What IKE daemons make of events that go wrong, and of faults while they make SAs anew; docs/faults.md has
//! what is asserted here as a table.
//!
//! A has the faults, B is a charon 5.9 that has none.

use std::fmt;
use std::net::UdpSocket;

use super::charon::only_others;
use super::faults::Daemon;
use crate::flow::SECRET;
use crate::host::{Host, Pair, eventually};
use crate::sas::{agreed, sealed};

/// What came of a rekeying.
#[derive(PartialEq, Eq)]
struct Outcome {
    /// The SAs that A had are gone.
    renewed: bool,
    /// SAs at A and at B.
    sas: [usize; 2],
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b] = self.sas;
        let renewed = if self.renewed { "renewed" } else { "kept" };
        write!(f, "{renewed}, {a} SAs here and {b} there")
    }
}

const RENEWS: Outcome = Outcome {
    renewed: true,
    sas: [2, 2],
};

const KEEPS: Outcome = Outcome {
    renewed: false,
    sas: [2, 2],
};
const DELETION_FAILS: &str = "netlink.error message=DELSA errno=EBUSY nth=1";
/// Of what it had.
const LEAVES_ONE: Outcome = Outcome {
    renewed: false,
    sas: [3, 2],
};
const BEGINS_AGAIN: Outcome = Outcome {
    renewed: true,
    sas: [2, 6],
};

impl Daemon {
    /// Asks for a child, and waits until both ends have it.
    #[track_caller]
    fn establishes(self, pair: &mut Pair) {
        self.initiate(&mut pair.a);
        eventually("SAs", || {
            let a = sealed(pair.a.sas());
            let same = a.len() == 2 && sealed(pair.b.sas()).keys().eq(a.keys());
            same.then_some(())
        });
    }

    fn rekey(self, host: &mut Host) {
        match self {
            Self::Charon(_) => drop(host.try_swanctl("--rekey --child t")),
            Self::Pluto => drop(host.try_whack("--name t --rekey-ipsec --asynchronous")),
        }
    }

    /// Meets a fault while it makes the SAs of a child anew.
    fn rekeys(self, fault: &str, expected: &Outcome) {
        let pair = &mut self.start_with("", "");
        self.establishes(pair);
        let before = sealed(pair.a.sas());
        pair.a.fault(fault);
        self.rekey(&mut pair.a);
        let mut seen = String::new();
        eventually(fault, || {
            let [a, b] = [&mut pair.a, &mut pair.b].map(|host| sealed(host.sas()));
            let outcome = Outcome {
                renewed: a.keys().all(|name| !before.contains_key(name)),
                sas: [a.len(), b.len()],
            };
            let now = format!("{fault}: {outcome:?}");
            if seen != now {
                eprintln!("{now}");
                seen = now;
            }
            (outcome == *expected && pair.a.struck() > 0).then_some(())
        });
        pair.a.clear_faults();
        if expected.sas[0] >= 2 {
            let flow = pair.site_flow();
            flow.more(20);
        }
        self.terminate(pair);
    }
}

/// Soft limits that are told late, twice or in another order are as good as any; one that is not told is missed
/// for good.
pub(super) fn expiries() {
    let daemon = Daemon::Charon("5.9");
    let limit = "rekey_packets = 300\n life_packets = 100000\n rand_packets = 0";
    let mut pair = daemon.start_with("", limit);
    daemon.establishes(&mut pair);
    for (fault, rekeys) in [
        ("netlink.event-twice", true),
        ("netlink.event-late delay=200ms", true),
        ("netlink.event-swapped", true),
        ("netlink.event-lost", false),
        ("netlink.event-overrun", false),
    ] {
        let before = agreed(&mut pair.a, &mut pair.b);
        pair.a.fault(&format!("{fault} message=EXPIRE times=2"));
        let flow = pair.site_flow();
        // Both directions reach their limit.
        eventually(fault, || (pair.a.struck() == 2).then_some(()));
        if !rekeys {
            flow.more(100);
        }
        flow.finish();
        pair.a.clear_faults();
        if !rekeys {
            let now = agreed(&mut pair.a, &mut pair.b);
            assert!(now.keys().eq(before.keys()), "{fault}");
            daemon.rekey(&mut pair.a);
        }
        only_others(&mut pair.a, &before);
    }
    pair.end();
}

/// A trap whose ACQUIRE goes wrong: SAs come, if not by this one then by that of the next larval SA.
fn acquires(daemon: Daemon, pair: &mut Pair) {
    let client = pair
        .a
        .namespace
        .inside(|| UdpSocket::bind("10.1.0.1:0").unwrap());
    for (fault, is_heard) in [
        ("netlink.event-twice", true),
        ("netlink.event-late delay=200ms", true),
        ("netlink.event-swapped", true),
        ("netlink.event-lost", false),
        ("netlink.event-overrun", false),
    ] {
        pair.a.fault(&format!("{fault} message=ACQUIRE times=1"));
        // It may be refused while there is no SA.
        let send = || drop(client.send_to(SECRET, "10.2.0.1:7000"));
        eventually(fault, || {
            send();
            (pair.a.struck() == 1).then_some(())
        });
        if !is_heard {
            // As when its time is up.
            send();
            assert!(sealed(pair.a.sas()).is_empty());
            pair.a.shell.sh("ip xfrm state flush");
        }
        eventually(fault, || {
            send();
            let a = sealed(pair.a.sas());
            let same = a.len() == 2 && sealed(pair.b.sas()).keys().eq(a.keys());
            same.then_some(())
        });
        pair.a.clear_faults();
        daemon.terminate(pair);
        pair.a.shell.sh("ip xfrm state flush");
    }
}

pub(super) fn charon_acquires() {
    let daemon = Daemon::Charon("5.9");
    acquires(daemon, &mut daemon.start_with("", "start_action = trap"));
}

pub(super) fn pluto_acquires() {
    let mut pair = Daemon::Pluto.start_with("", "");
    pair.a.whack("--name t --route");
    acquires(Daemon::Pluto, &mut pair);
}

/// What it cannot do it gives up, and keeps what it had.
pub(super) fn charon() {
    for (fault, expected) in [
        ("netlink.no-memory message=ALLOCSPI", KEEPS),
        ("netlink.no-memory message=UPDSA", KEEPS),
        ("netlink.no-memory message=NEWSA", KEEPS),
        (DELETION_FAILS, RENEWS),
        ("netlink.reply-late message=NEWSA delay=300ms", RENEWS),
        ("daemon.pause message=DELSA delay=300ms nth=1", RENEWS),
        ("daemon.crash message=NEWSA nth=1", KEEPS),
    ] {
        Daemon::Charon("5.9").rekeys(fault, &expected);
    }
}

/// Forgets what it had together with what it could not do, its IKE SA included, without a word, and begins
/// again: its peer keeps both.
pub(super) fn pluto() {
    for (fault, expected) in [
        ("netlink.no-memory message=ALLOCSPI", KEEPS),
        ("netlink.no-memory message=UPDSA nth=1", BEGINS_AGAIN),
        ("netlink.no-memory message=NEWSA nth=1", BEGINS_AGAIN),
        (DELETION_FAILS, LEAVES_ONE),
        ("netlink.reply-late message=NEWSA delay=300ms", RENEWS),
        ("daemon.pause message=DELSA delay=300ms nth=1", RENEWS),
        ("daemon.crash message=NEWSA nth=1", BEGINS_AGAIN),
    ] {
        Daemon::Pluto.rekeys(fault, &expected);
    }
}
