//! Traffic for a long time, while SAs come and go: `bench soak [MINUTES [SECONDS]]`.
//!
//! Every five seconds, or so many, both SAs that carry are made anew, as an IKE daemon does it: first those
//! that receive, then those that send, then the old ones go. Beside them there are others, of
//! which some, chosen at random, are deleted and come back. Now and then those that carry are
//! deleted before there are others. What is looked at: that every SA is there that should be, that
//! packets flow, and what memory the daemons have.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::carriers::{Carrier, idle_sa, name, sa};
use super::net::Pair;
use super::{load, ticks};
use crate::figure::{Figure, Target};

pub(crate) const REKEY_SECONDS: u64 = 5;
/// SAs that nobody uses.
const IDLE: usize = 200;
/// Rounds until memory is what it will be.
const WARM_UP: u32 = 12;
/// Rounds after which the SAs that carry are deleted first.
const GAP: u32 = 7;

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn now() -> Instant {
    Instant::now()
}

/// Numbers that nobody foresees but who knows the seed (an LCG of Knuth's).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % bound
    }
}

struct Soak {
    carrier: Carrier,
    generation: usize,
    /// Which of the idle SAs are there.
    idle: BTreeSet<usize>,
    random: Random,
}

impl Soak {
    fn both(&mut self, script: &str) -> Result<()> {
        for talk in self.carrier.talks.iter_mut().rev() {
            talk.sh(script)?;
        }
        Ok(())
    }

    /// SAs of both directions are made anew; with `gap`, the old ones go first.
    fn rekey(&mut self, gap: bool) -> Result<()> {
        let old = self.generation;
        self.generation += 1;
        let add = |from, to, generation| format!("ip xfrm state add {}", sa(from, to, generation));
        let (there, back) = (add(0, 1, self.generation), add(1, 0, self.generation));
        let delete = [(0, 1), (1, 0)]
            .map(|(from, to)| format!("ip xfrm state delete {}", name(from, to, old)));
        let delete = delete.join("; ");
        if gap {
            self.both(&delete)?;
        }
        // Those that receive.
        for (at, script) in [(0, &back), (1, &there), (0, &there), (1, &back)] {
            let talk = self.carrier.talks.get_mut(at).context("an end")?;
            talk.sh(script)?;
        }
        if !gap {
            self.both(&delete)?;
        }
        Ok(())
    }

    /// Some of the idle SAs go, and some come.
    fn shuffle(&mut self) -> Result<()> {
        let mut script = String::new();
        for _ in 0..20 {
            let which = self.random.below(IDLE);
            let (name, text) = idle_sa(which);
            if self.idle.remove(&which) {
                script += &format!("ip xfrm state delete {name}\n");
            } else {
                self.idle.insert(which);
                script += &format!("ip xfrm state add {text}\n");
            }
        }
        self.both(&script)
    }

    /// That there are as many SAs as there should be.
    fn count(&mut self) -> Result<()> {
        let wanted = 2 + self.idle.len();
        let spi = 0x2000_0000 + self.generation;
        self.both(&format!(
            "test $(ip -o xfrm state | grep -c 'proto esp') = {wanted}; \
             ip -o xfrm state | grep -q 'spi {spi:#x}'"
        ))
        .with_context(|| format!("there should be {wanted} SAs, {spi:#x} among them"))
    }
}

/// What both ends' hosts and the daemons' threads are at.
fn look(pair: &Pair, pids: &[u32]) {
    let pids: Vec<_> = pids.iter().map(u32::to_string).collect();
    for (at, end) in pair.ends.iter().enumerate() {
        let looked = end.sh(&format!(
            "exec >&2; echo \"end {at}\"; ss -tmi; ss -uanm; nstat -as | grep -v '^#'; ip -s link; \
             ip route show cache; for pid in {}; do for task in /proc/$pid/task/*; do \
             echo \"$(cat $task/comm) $(cut -d' ' -f3 $task/stat) $(cat $task/wchan)\"; done; done",
            pids.join(" ")
        ));
        if let Err(error) = looked {
            eprintln!("{error}");
        }
    }
}

/// KiB that the daemons have resident.
fn memory(pids: &[u32]) -> Result<f64> {
    let mut sum = 0;
    for pid in pids {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        sum += number.context("memory")?.parse::<u32>()?;
    }
    Ok(sum.into())
}

/// The figures, after so many minutes.
pub(crate) fn run(minutes: u64, seconds: u64) -> Result<Vec<Figure>> {
    let rekey = Duration::from_secs(seconds.max(1));
    let mut soak = Soak {
        carrier: Carrier::ours("xfrmd, ESP in UDP", true, 1)?,
        generation: 0,
        idle: BTreeSet::new(),
        random: Random(0x7866_726d),
    };
    // Policies go by request id, and take the newest.
    soak.both("ip xfrm state deleteall")?;
    soak.generation = 1;
    for (from, to) in [(0, 1), (1, 0)] {
        soak.both(&format!("ip xfrm state add {}", sa(from, to, 1)))?;
    }
    let pids = soak.carrier.pids.clone();
    let begin = now();
    let mut least = f64::INFINITY;
    let (mut before, mut round, mut bytes) = (0.0, 0_u32, 0_u64);
    let mut longest = Duration::ZERO;
    while begin.elapsed() < Duration::from_secs(60 * minutes) || round <= WARM_UP {
        round += 1;
        let due = now() + rekey;
        let to = soak.carrier.to;
        let pair = std::sync::Arc::clone(&soak.carrier.pair);
        let watched = pids.clone();
        let traffic = std::thread::spawn(move || {
            load::tcp_watched(&pair, to, rekey * 7 / 10, &|| look(&pair, &watched))
        });
        std::thread::sleep(rekey / 5);
        soak.rekey(round.is_multiple_of(GAP))?;
        soak.shuffle()?;
        let load::Stream {
            rate,
            bytes: some,
            pause,
        } = traffic
            .join()
            .map_err(|_| anyhow::anyhow!("a panic"))?
            .with_context(|| format!("round {round}"))?;
        bytes += some;
        least = least.min(rate);
        longest = longest.max(pause);
        if pause >= load::PAUSE {
            eprintln!(
                "round {round}: {rate:.3} Gbit/s, nothing for {} ms",
                pause.as_millis()
            );
            soak.both("ip -s xfrm state | grep -A20 'reqid 1 '; grep -wv 0 /proc/net/xfrm_stat")?;
        }
        soak.count()?;
        let now_used = memory(&pids)?;
        if round == WARM_UP {
            before = now_used;
        }
        if round % 12 == 1 || round == WARM_UP {
            eprintln!(
                "{:>5} s round {round:>3}: {rate:.2} Gbit/s, {} SAs, {now_used:.0} KiB",
                begin.elapsed().as_secs(),
                2 + soak.idle.len(),
            );
        }
        std::thread::sleep(due.saturating_duration_since(now()));
    }
    let after = memory(&pids)?;
    eprintln!(
        "{round} rounds, {:.1} GB, at least {least:.2} Gbit/s, {} ticks of CPU",
        f64::from(u32::try_from(bytes >> 20)?) / 1024.0,
        ticks(&pids)?
    );
    let pause = Figure {
        name: "the longest time without a byte".to_owned(),
        ours: longest.as_secs_f64(),
        yardstick: load::PAUSE.as_secs_f64(),
        unit: "s",
        against: "a second",
        target: Target::AtMost(1.0),
    };
    let memory = Figure {
        name: format!("memory of two daemons after {round} rekeyings"),
        ours: after,
        yardstick: before,
        unit: "KiB",
        against: "that after 12",
        target: Target::AtMost(1.02),
    };
    Ok(vec![pause, memory])
}
