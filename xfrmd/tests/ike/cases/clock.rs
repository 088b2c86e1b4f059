//! charon under a virtual clock.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Instant;

use super::sites;
use crate::charon::CHARON;
use crate::host::{Host, Pair, eventually};
use crate::namespaces::XFRMD;
use crate::sas::{Sas, agreed, parse, sealed};

/// How many hours it takes in the virtual clock; [`HOURS_VARIABLE`] says another number, for more by hand.
const HOURS: u64 = 5;
const HOURS_VARIABLE: &str = "XFRMD_VIRTUAL_HOURS";
/// A datagram a minute.
const PAUSE_SECONDS: u64 = 60;

/// How much earlier than it must A rekeys, and B: of 2^31. charon's threads share libc's generator, which it seeds
/// from its process id; for all that matters here they draw how long before its end an SA is rekeyed.
const EARLIER: [u32; 2] = [0x6000_0000, 0x2000_0000];

/// Lifetimes are charon's own: an hour, a rekeying some minutes before. Nothing is lost, nothing comes twice, and
/// SAs have counted every packet; and the second time everything is as it was the first time.
pub(super) fn many_hours() {
    let first = hours();
    let second = hours();
    for (number, (line, again)) in first.iter().zip(&second).enumerate() {
        let before = &first[number.saturating_sub(20)..number];
        assert_eq!(line, again, "event line {number}, after {before:#?}");
    }
    assert_eq!(first.len(), second.len());
}

/// What `ip xfrm monitor` has said meanwhile.
fn hours() -> Vec<String> {
    let hours = std::env::var(HOURS_VARIABLE).map_or(HOURS, |it| it.parse().unwrap());
    let datagrams = hours * 3600 / PAUSE_SECONDS;
    let mut a = Host::clocked("7");
    let b = Host::beside(&mut a);
    let mut pair = Pair::of(a, b);
    for (host, earlier) in [&mut pair.a, &mut pair.b].into_iter().zip(EARLIER) {
        let random = random_of(host, earlier);
        host.variables = format!("LD_PRELOAD=$LD_PRELOAD:{random}");
        host.charon(&CHARON);
    }
    let monitor = pair.a.file("monitor");
    let listening = format!("ip -ts -s xfrm monitor > {monitor} 2> /dev/null & echo $!");
    let listening = pair.a.shell.sh(&listening);
    pair.a.shell.sh(&format!("{XFRMD} clock run-until idle"));
    let [at_a, at_b] = sites("esp_proposals = aes128gcm16");
    pair.connect("", [&at_a, &at_b]);
    let me = std::env::current_exe().unwrap();
    let me = me.to_str().unwrap();
    let answering = format!("{me} answer 10.2.0.1 1 > /dev/null & echo $!");
    let answering = pair.b.shell.sh(&answering);
    pair.a.swanctl("--initiate --child t");
    let start = Instant::now();
    let answered = pair.a.shell.sh(&format!(
        "{XFRMD} clock auto > /dev/null; \
         {me} paced 10.1.0.1:0 10.2.0.1:7000 {datagrams} {PAUSE_SECONDS}; {XFRMD} clock stop > /dev/null"
    ));
    let took = start.elapsed();
    assert_eq!(answered.trim(), datagrams.to_string());
    let current = agreed(&mut pair.a, &mut pair.b);
    // Each SA as it was when it was deleted; what is there has not been.
    let mut all = Sas::new();
    let mut said = String::new();
    eventually("every packet is counted", || {
        said = std::fs::read_to_string(&monitor).unwrap();
        all = sealed(parse(&said));
        all.extend(current.clone());
        let packets: u64 = all.values().map(|sa| sa.packets).sum();
        (packets == 2 * datagrams).then_some(())
    });
    let sequences = sequences(&format!("{said}{}", pair.a.shell.sh("ip -s xfrm state")));
    for (name, sa) in &all {
        let (arrived, sent) = sequences[name];
        assert_eq!(
            (arrived.min(sent), arrived.max(sent)),
            (0, sa.packets),
            "{name}"
        );
    }
    assert_eq!(
        pair.a.shell.sh("grep -wv 0 /proc/net/xfrm_stat || true"),
        ""
    );
    let rekeyings = all.len() as u64 / 2 - 1;
    assert!(rekeyings >= hours, "{rekeyings} rekeyings");
    println!(
        "{hours} hours: {rekeyings} rekeyings, {datagrams} datagrams and answers, in {took:?}"
    );
    pair.a.shell.sh(&format!("kill {listening}"));
    pair.b.shell.sh(&format!("kill {answering}"));
    pair.a.shell.sh(&format!("{XFRMD} clock auto > /dev/null"));
    pair.end();
    events(&said)
}

/// A library in which libc's generator always draws that.
fn random_of(host: &Host, drawn: u32) -> String {
    let text = format!("long random(void) {{\n return {drawn};\n}}\n");
    let source = host.write("random.c", &text);
    let library = host.file("random.so");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o", &library, &source])
        .status();
    assert!(built.unwrap().success());
    library
}

/// The last sequence numbers that came and went, by protocol and SPI.
fn sequences(text: &str) -> BTreeMap<String, (u64, u64)> {
    let mut sequences = BTreeMap::new();
    let mut name = String::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |text: &str| {
            let digits = text.trim_end_matches(',').trim_start_matches("0x");
            u64::from_str_radix(digits, 16).unwrap()
        };
        match words[..] {
            ["proto", protocol, "spi", spi, ..] => name = format!("{protocol} {}", &spi[..10]),
            ["anti-replay", "context:", "seq", seq, "oseq", oseq, ..] => {
                sequences.insert(name.clone(), (number(seq), number(oseq)));
            }
            _ => {}
        }
    }
    sequences
}

/// What happened, and when, from the first: without keys, which charon draws, and times of day.
fn events(said: &str) -> Vec<String> {
    let seconds = |time: &str| {
        let (_, time) = time.split_once('T').unwrap();
        let units = time.split(':').map(|it| it.parse::<f64>().unwrap());
        units.fold(0.0, |sum, unit| sum * 60.0 + unit)
    };
    let mut first = None;
    let mut events = Vec::new();
    for line in said.lines() {
        let line = line.trim();
        if ["aead ", "add ", "lastused "]
            .iter()
            .any(|it| line.starts_with(it))
        {
            continue;
        }
        let stamped = line.strip_prefix('[').and_then(|it| it.split_once(']'));
        events.push(match stamped {
            Some((time, what)) => {
                let at = seconds(time);
                let start = *first.get_or_insert(at);
                format!("{:.6} {what}", (at - start).rem_euclid(86400.0))
            }
            None => line.to_owned(),
        });
    }
    assert!(events.len() > 100, "{said}");
    events
}
