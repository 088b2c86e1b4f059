//! charon under a virtual clock.

use std::time::Instant;

use super::sites;
use crate::charon::CHARON;
use crate::host::{Host, Pair, eventually};
use crate::namespaces::XFRMD;
use crate::sas::{Sas, agreed, parse, sealed};

/// How many hours it takes in the virtual clock; a hundred take a minute of the host's.
const HOURS: u64 = 10;
/// A datagram a minute.
const PAUSE_SECONDS: u64 = 60;
const DATAGRAMS: u64 = HOURS * 3600 / PAUSE_SECONDS;

/// Lifetimes are charon's own: an hour, a rekeying some minutes before. Nothing is lost, nothing comes twice, and
/// the SAs together have counted every packet.
pub(super) fn many_hours() {
    let mut a = Host::clocked();
    let b = Host::beside(&mut a);
    let mut pair = Pair::of(a, b);
    let [at_a, at_b] = sites("esp_proposals = aes128gcm16");
    pair.a.charon(&CHARON);
    pair.b.charon(&CHARON);
    pair.connect("", [&at_a, &at_b]);
    let monitor = pair.a.file("monitor");
    let listening = format!("ip -s xfrm monitor SA > {monitor} 2> /dev/null & echo $!");
    let listening = pair.a.shell.sh(&listening);
    let me = std::env::current_exe().unwrap();
    let me = me.to_str().unwrap();
    let answering = format!("{me} answer 10.2.0.1 1 > /dev/null & echo $!");
    let answering = pair.b.shell.sh(&answering);
    pair.a.swanctl("--initiate --child t");
    let start = Instant::now();
    let answered = pair.a.shell.sh(&format!(
        "{XFRMD} clock auto > /dev/null; \
         {me} paced 10.1.0.1:0 10.2.0.1:7000 {DATAGRAMS} {PAUSE_SECONDS}; {XFRMD} clock stop > /dev/null"
    ));
    println!(
        "{DATAGRAMS} datagrams, one a minute, took {:?}",
        start.elapsed()
    );
    assert_eq!(answered.trim(), DATAGRAMS.to_string());
    let current = agreed(&mut pair.a, &mut pair.b);
    // Each SA as it was when it was deleted; what is there has not been.
    let mut all: Sas = Sas::new();
    eventually("every packet is counted", || {
        all = sealed(parse(&std::fs::read_to_string(&monitor).unwrap()));
        all.extend(current.clone());
        let packets: u64 = all.values().map(|sa| sa.packets).sum();
        (packets == 2 * DATAGRAMS).then_some(())
    });
    // Two SAs an hour at least.
    assert!(all.len() as u64 > 2 * HOURS, "{}", all.len());
    pair.a.shell.sh(&format!("kill {listening}"));
    pair.b.shell.sh(&format!("kill {answering}"));
    pair.a.shell.sh(&format!("{XFRMD} clock auto > /dev/null"));
    pair.end();
}
