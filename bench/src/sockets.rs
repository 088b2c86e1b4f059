//! Figures that need sockets: this program's `client` half is run under
//! `xfrmd run`, and against the host's kernel in a namespace of its own.

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::figure::{Figure, Target};
use crate::stopwatch::{median, time};
use crate::transport;

type Results = HashMap<String, f64>;

pub(crate) fn beside_me(name: &str) -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    let path = me.with_file_name(name);
    if !path.exists() {
        bail!(
            "{} is missing: cargo build --release --workspace",
            path.display()
        );
    }
    Ok(path)
}

pub(crate) fn client(mut command: Command, args: &[&str]) -> Result<Results> {
    let output = command
        .arg("client")
        .args(args)
        .stderr(std::process::Stdio::inherit())
        .output()?;
    if !output.status.success() {
        bail!("the client failed: {args:?}");
    }
    let text = String::from_utf8(output.stdout)?;
    let rows = text.lines().filter_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    });
    Ok(rows.collect())
}

fn pinned(program: PathBuf, pin: bool) -> Command {
    if pin {
        let mut command = Command::new("taskset");
        command.args(["-c", "0"]).arg(program);
        command
    } else {
        Command::new(program)
    }
}

/// The client under `xfrmd run`.
fn ours(args: &[&str], pin: bool) -> Result<Results> {
    by_front("auto", args, pin)
}

fn by_front(front: &str, args: &[&str], pin: bool) -> Result<Results> {
    let mut command = pinned(beside_me("xfrmd")?, pin);
    command.args(["run", "--front", front, "--"]);
    command.arg(std::env::current_exe()?);
    client(command, args)
}

/// The client against the host's kernel, or why there is none.
fn host(args: &[&str], pin: bool) -> Result<Results> {
    let mut all = args.to_vec();
    all.push("--own-netns");
    client(pinned(std::env::current_exe()?, pin), &all)
        .context("the yardstick: the host's own NETLINK_XFRM, as root")
}

pub(crate) fn value(results: &Results, name: &str) -> Result<f64> {
    results
        .get(name)
        .copied()
        .with_context(|| format!("no result {name}"))
}

/// Each measurement several times in turn, so that what else the machine does hits all of them; of
/// each figure the least disturbed.
fn in_turn<const N: usize>(
    measurements: [&dyn Fn() -> Result<Results>; N],
) -> Result<[Results; N]> {
    const ROUNDS: usize = 5;
    let mut all = std::array::from_fn(|_| Results::new());
    for _ in 0..ROUNDS {
        for (measure, best) in measurements.iter().zip(&mut all) {
            for (name, value) in measure()? {
                let least = best.entry(name).or_insert(value);
                *least = least.min(value);
            }
        }
    }
    Ok(all)
}

struct Row<'a> {
    name: &'a str,
    key: &'a str,
    /// The yardstick's key.
    yard: &'a str,
    limit: f64,
}

fn rows(
    ours: &Results,
    yard: &Results,
    against: &'static str,
    rows: &[Row<'_>],
) -> Result<Vec<Figure>> {
    rows.iter()
        .map(|row| {
            Ok(Figure {
                name: row.name.to_owned(),
                ours: value(ours, row.key)?,
                yardstick: value(yard, row.yard)?,
                unit: "ns",
                against,
                target: Target::AtMost(row.limit),
            })
        })
        .collect()
}

/// One request with ACK, both ends on one CPU.
pub(crate) fn round_trip() -> Result<Vec<Figure>> {
    let [mine, bare, kernel] =
        in_turn([&|| ours(&["round-trip"], true), &bare_transport, &|| {
            host(&["round-trip"], true)
        }])?;
    let request = |limit| {
        [
            Row {
                name: "round-trip: UPDPOLICY with ACK",
                key: "ack",
                yard: "ack",
                limit,
            },
            Row {
                name: "round-trip: GETSADINFO",
                key: "get",
                yard: "get",
                limit,
            },
        ]
    };
    let mut all = rows(&mine, &bare, "bare transport", &request(1.3))?;
    all.extend(rows(&mine, &kernel, "host kernel", &request(10.0))?);
    Ok(all)
}

/// The same for a program without the shim, beside one with it: one call that is brought to the
/// supervisor, and a round trip, which is two.
pub(crate) fn supervised() -> Result<Vec<Figure>> {
    const COUNT: &str = "5000";
    let [supervised, preloaded] = in_turn([
        &|| by_front("seccomp", &["round-trip", COUNT], true),
        &|| by_front("preload", &["round-trip", COUNT], true),
    ])?;
    let row = |name, key, limit| Row {
        name,
        key,
        yard: key,
        limit,
    };
    rows(
        &supervised,
        &preloaded,
        "with the shim",
        &[
            row("supervised: a send", "send", 1.5),
            row("supervised: GETSADINFO, both calls", "get", 3.0),
        ],
    )
}

/// `xfrmd run -- true`, from its start to its end.
pub(crate) fn start() -> Result<Vec<Figure>> {
    const RUNS: usize = 41;
    let program = beside_me("xfrmd")?;
    let mut samples = Vec::new();
    for _ in 0..RUNS {
        let mut command = Command::new(&program);
        command.args(["run", "--", "true"]);
        let mut ended = None;
        samples.push(time(|| ended = command.status().ok()));
        if !ended.is_some_and(|status| status.success()) {
            bail!("xfrmd run -- true failed");
        }
    }
    Ok(vec![Figure {
        name: "start: xfrmd run -- true".to_owned(),
        ours: median(&mut samples) / 1e6,
        yardstick: 50.0,
        unit: "ms",
        against: "target",
        target: Target::AtMost(1.0),
    }])
}

fn bare_transport() -> Result<Results> {
    const COUNT: u32 = 20_000;
    let mut bare = Results::new();
    for (key, bytes) in [("ack", 16 + 168 + 68), ("get", 20)] {
        let mut command = pinned(std::env::current_exe()?, true);
        command.args(["client", "bare", &bytes.to_string(), &COUNT.to_string()]);
        let output = command.output()?;
        let text = String::from_utf8(output.stdout)?;
        bare.insert(
            key.to_owned(),
            text.trim().parse().context("the bare transport's time")?,
        );
    }
    Ok(bare)
}

/// The bare transport, for the other half of this program to time.
pub(crate) fn bare(bytes: usize, count: u32) -> Result<()> {
    println!("{:.1}", transport::round_trip(bytes, count)?);
    Ok(())
}

/// Many messages a datagram.
pub(crate) fn datagrams() -> Result<Vec<Figure>> {
    let [mine, kernel] = in_turn([&|| ours(&["datagrams"], false), &|| {
        host(&["datagrams", "policies-only"], false)
    }])?;
    let row = |name, key| Row {
        name,
        key,
        yard: "NEWPOLICY",
        limit: 1.0,
    };
    rows(
        &mine,
        &kernel,
        "host kernel's NEWPOLICY",
        &[
            row("datagrams: NEWPOLICY", "NEWPOLICY"),
            row("datagrams: NEWSA", "NEWSA"),
            row("datagrams: GETSA", "GETSA"),
        ],
    )
}

/// Requests in tables in which Linux walks lists.
pub(crate) fn large_tables() -> Result<Vec<Figure>> {
    let row = |name, key, limit| Row {
        name,
        key,
        yard: key,
        limit,
    };
    let mut all = Vec::new();
    let args = ["policies-at", "scattered", "100000", "100"];
    all.extend(rows(
        &ours(&args, false)?,
        &host(&args, false)?,
        "host kernel",
        &[
            row("host: UPDPOLICY, 100k scattered", "UPDPOLICY", 0.01),
            row("host: DELPOLICY, 100k scattered", "DELPOLICY", 0.01),
        ],
    )?);
    let args = ["policies-at", "ports", "10000", "500"];
    all.extend(rows(
        &ours(&args, false)?,
        &host(&args, false)?,
        "host kernel",
        &[row("host: NEWPOLICY, 10k ports", "NEWPOLICY", 0.05)],
    )?);
    let args = ["alloc-spi-at", "20000"];
    all.extend(rows(
        &ours(&args, false)?,
        &host(&args, false)?,
        "host kernel",
        &[row("host: ALLOCSPI, 20k larvals", "ALLOCSPI", 0.1)],
    )?);
    Ok(all)
}

/// A million SAs: time to load, bytes each, and what a dump costs the daemon in memory.
pub(crate) fn load() -> Result<Vec<Figure>> {
    let mine = ours(&["load-sas", "1000000"], false)?;
    let figure = |name: &str, ours, yardstick, unit, against| Figure {
        name: name.to_owned(),
        ours,
        yardstick,
        unit,
        against,
        target: Target::AtMost(1.0),
    };
    Ok(vec![
        figure(
            "load: 1M SAs",
            value(&mine, "load")? / 1e9,
            10.0,
            "s",
            "target",
        ),
        figure(
            "load: bytes per SA",
            value(&mine, "bytes-per-sa")?,
            1536.0,
            "B",
            "target",
        ),
        figure(
            "load: dump of 1M SAs, growth",
            value(&mine, "dump-growth-mib")?,
            4.0,
            "MiB",
            "target",
        ),
    ])
}
