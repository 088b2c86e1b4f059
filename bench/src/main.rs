//! `cargo xtask bench [NAME]...`: the project's figures, one line each.
//!
//! Every figure is measured beside its yardstick in the same run; machines are
//! noisy, so both take turns, and it is medians and ratios that count. Exit code 1 when a target
//! was missed. `client NAME` is the program's other half: the measuring client
//! that it starts under `xfrmd run` and against the host's kernel.

mod client;
mod crypto;
mod fidelity;
mod figure;
mod hours;
mod lookup;
mod messages;
mod path;
mod scale;
mod sockets;
mod stopwatch;
mod transport;
mod tunnel;
mod wire;

use std::process::ExitCode;

use anyhow::Result;
use figure::Figure;

/// As in `xfrmd`, whose emulator is measured here.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A group of figures.
struct Bench {
    name: &'static str,
    about: &'static str,
    run: fn() -> Result<Vec<Figure>>,
}

const BENCHES: &[Bench] = &[
    Bench {
        name: "fidelity",
        about: "replies that are byte for byte those recorded from each kernel",
        run: fidelity::run,
    },
    Bench {
        name: "round-trip",
        about: "one request with ACK through the shim, beside the bare transport and the host's kernel",
        run: sockets::round_trip,
    },
    Bench {
        name: "supervised",
        about: "a call of a program without the shim, beside one with it",
        run: sockets::supervised,
    },
    Bench {
        name: "start",
        about: "xfrmd run -- true, from its start to its end",
        run: sockets::start,
    },
    Bench {
        name: "hours",
        about: "virtual time: 1,000 SAs that rekey hourly for 100 hours; what ip says of an hour-long SA",
        run: hours::run,
    },
    Bench {
        name: "datagrams",
        about: "many messages a datagram through the shim, beside the host's kernel",
        run: sockets::datagrams,
    },
    Bench {
        name: "host",
        about: "UPDPOLICY, DELPOLICY, NEWPOLICY, ALLOCSPI in large tables, beside the host's kernel",
        run: sockets::large_tables,
    },
    Bench {
        name: "load",
        about: "a million SAs through the shim: time, memory, dump",
        run: sockets::load,
    },
    Bench {
        name: "scale",
        about: "requests among a million entries beside a thousand, in the emulator",
        run: || Ok(scale::run()),
    },
    Bench {
        name: "lookup",
        about: "the policy for a flow that no cache knows, among a thousand to a million",
        run: || Ok(lookup::run()),
    },
    Bench {
        name: "crypto",
        about: "an SA's transform on packets of five sizes, beside the bare ciphers",
        run: crypto::run,
    },
    Bench {
        name: "path",
        about: "a packet's whole way, out and in, beside the bare cipher; two workers; instructions",
        run: path::run,
    },
    Bench {
        name: "wire",
        about: "TCP, UDP and pings between two namespaces, beside forwarders without crypto and other tunnels",
        run: wire::run,
    },
    Bench {
        name: "recording",
        about: "packets of 1,420 bytes through daemons that record, beside others that do not",
        run: wire::recorded::run,
    },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.split_first() {
        Some((first, rest)) if first == "client" => client_main(rest),
        Some((first, rest)) if first == "packets" => tunnel::packets(rest),
        Some((first, rest)) if first == "wire" && !rest.is_empty() => {
            wire::part(rest).map(|()| true)
        }
        Some((first, rest)) if first == "soak" => soak(rest),
        Some((first, _)) if first == "-h" || first == "--help" => {
            println!("usage: cargo xtask bench [NAME]... | soak [MINUTES [SECONDS]]");
            BENCHES
                .iter()
                .for_each(|b| println!("  {:11} {}", b.name, b.about));
            Ok(true)
        }
        _ => run(&args),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn soak(args: &[String]) -> Result<bool> {
    let number = |at: usize, default| args.get(at).map_or(Ok(default), |it| it.parse());
    let figures = wire::soak::run(number(0, 30)?, number(1, wire::soak::REKEY_SECONDS)?)?;
    figures.iter().for_each(|figure| println!("{figure}"));
    Ok(figures.iter().all(Figure::met))
}

fn client_main(args: &[String]) -> Result<bool> {
    let own_netns = args.iter().any(|a| a == "--own-netns");
    if own_netns {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
    }
    let args: Vec<String> = args
        .iter()
        .filter(|a| *a != "--own-netns")
        .cloned()
        .collect();
    let (name, rest) = args
        .split_first()
        .ok_or_else(|| anyhow::anyhow!("client: which measurement?"))?;
    client::run(name, rest)?;
    Ok(true)
}

fn run(names: &[String]) -> Result<bool> {
    if let Some(unknown) = names
        .iter()
        .find(|n| !BENCHES.iter().any(|b| b.name == **n))
    {
        anyhow::bail!("no benchmark {unknown:?}; --help lists them");
    }
    let mut met = true;
    for bench in BENCHES
        .iter()
        .filter(|b| names.is_empty() || names.iter().any(|n| n == b.name))
    {
        for figure in (bench.run)()? {
            println!("{figure}");
            met &= figure.met();
        }
    }
    Ok(met)
}
