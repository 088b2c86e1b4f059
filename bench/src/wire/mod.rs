//! Packets on a wire: two namespaces joined by a veth pair, and what carries
//! packets between them: nothing, forwarders without crypto, other userspace
//! tunnels, and `xfrmd`. All run at once, each in a pair of its own, and are
//! loaded in turn.
#![allow(
    unsafe_code,
    reason = "a socket option that a client sets through the shim"
)]
#![allow(
    clippy::indexing_slicing,
    reason = "two ends, and headers of fixed length: a panic is a failed bench"
)]

mod carriers;
mod forward;
mod libipsec;
mod load;
mod net;
pub(crate) mod recorded;
pub(crate) mod soak;

use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, socket, sockopt};

use crate::figure::{Figure, Target};
use crate::stopwatch::median;
use carriers::Carrier;

const ROUNDS: usize = 5;
const TIME: Duration = Duration::from_millis(1500);
const PINGS: usize = 300;
/// `USER_HZ` is 100 everywhere.
const TICK_MICROS: f64 = 10_000.0;
/// Payload of a packet, about.
const PACKET_BYTES: f64 = 1400.0;

const PLAIN: usize = 0;
const FORWARD_UDP: usize = 1;
const FORWARD_RAW: usize = 2;
const PACKETS_UDP: usize = 3;
const PACKETS_RAW: usize = 4;
const OURS_UDP: usize = 5;
const OURS_ESP: usize = 6;
const OURS_MANY: usize = 7;

/// What a carrier did, round by round.
#[derive(Default)]
struct Measured {
    tcp: Vec<f64>,
    udp: Vec<f64>,
    ping: Vec<f64>,
    /// TCP while strangers send garbage, for ours.
    disturbed: Vec<f64>,
    /// CPU time that the carrier's processes take for a packet of TCP, in microseconds.
    cpu: Vec<f64>,
}

/// Parts of this program that are started again.
pub(crate) fn part(args: &[String]) -> Result<()> {
    match args.split_first() {
        Some((first, [])) if first == "namespace" => net::hold(),
        Some((first, rest)) if first == "key-manager" => manage_keys(rest),
        Some((first, rest)) if first == "forward" => forward::run(rest),
        _ => bail!("wire namespace | key-manager COMMAND | forward KIND OWN OTHER"),
    }
}

/// Holds the port of ESP in UDP as an IKE daemon does, while a command runs.
fn manage_keys(command: &[String]) -> Result<()> {
    const UDP_ENCAP: i32 = 100;
    let kind: i32 = 2;
    unsafe extern "C" {
        fn setsockopt(fd: i32, level: i32, name: i32, value: *const i32, len: u32) -> i32;
    }
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    nix::sys::socket::setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    bind(fd.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, 4500))?;
    // SAFETY: the value is four bytes that live through the call.
    let set = unsafe { setsockopt(fd.as_raw_fd(), 17, UDP_ENCAP, &raw const kind, 4) };
    anyhow::ensure!(set == 0, "UDP_ENCAP");
    let (program, args) = command.split_first().context("which command?")?;
    std::process::Command::new(program).args(args).status()?;
    Ok(())
}

/// All of them in turn, so that what else the machine does falls on each.
fn measure(carriers: &[Carrier]) -> Result<Vec<Measured>> {
    let mut all: Vec<Measured> = carriers.iter().map(|_| Measured::default()).collect();
    for round in 1..=ROUNDS {
        for (carrier, measured) in carriers.iter().zip(&mut all) {
            let Carrier { name, pair, to, .. } = carrier;
            let before = ticks(&carrier.pids)?;
            let load::Stream {
                rate: tcp,
                bytes,
                pause,
            } = load::tcp(pair, *to, TIME).with_context(|| format!("{name}: TCP"))?;
            let used = ticks(&carrier.pids)? - before;
            #[expect(clippy::cast_precision_loss, reason = "an estimate")]
            let cpu = used as f64 * TICK_MICROS / (bytes as f64 / PACKET_BYTES);
            if pause >= load::PAUSE {
                eprintln!("{name}: nothing came for {} ms", pause.as_millis());
            }
            let udp = load::udp(pair, *to, TIME).with_context(|| format!("{name}: UDP"))?;
            let ping = load::ping(pair, *to, PINGS).with_context(|| format!("{name}: ping"))?;
            eprintln!(
                "{round}/{ROUNDS} {name:<34} TCP {tcp:>6.3} UDP {udp:>6.3} Gbit/s, ping {ping:>6.1} us"
            );
            if name.starts_with("xfrmd, ESP") {
                let disturbed = load::tcp_among_strangers(pair, *to, TIME);
                measured
                    .disturbed
                    .push(disturbed.with_context(|| format!("{name}: strangers"))?);
            }
            measured.tcp.push(tcp);
            measured.udp.push(udp);
            measured.ping.push(ping);
            measured.cpu.push(cpu);
        }
    }
    Ok(all)
}

/// Clock ticks of CPU time that processes have used.
fn ticks(pids: &[u32]) -> Result<u64> {
    let mut sum = 0;
    for pid in pids {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // Behind the name, which may contain anything: the state is the third field.
        let (_, fields) = stat.rsplit_once(')').context("a process")?;
        let times = fields.split_whitespace().skip(11).take(2);
        for time in times {
            sum += time.parse::<u64>()?;
        }
    }
    Ok(sum)
}

/// The figures.
pub(crate) fn run() -> Result<Vec<Figure>> {
    if !nix::unistd::geteuid().is_root() || std::fs::File::open("/dev/net/tun").is_err() {
        bail!("wire needs root and /dev/net/tun");
    }
    let mut carriers = vec![
        Carrier::plain()?,
        Carrier::forwarder("TUN-UDP forwarder, no crypto", "udp")?,
        Carrier::forwarder("TUN-raw-IP forwarder, no crypto", "raw")?,
        Carrier::forwarder("TUN-UDP forwarder by packets", "udp-packets")?,
        Carrier::forwarder("TUN-raw-IP forwarder by packets", "raw-packets")?,
        Carrier::ours("xfrmd, ESP in UDP", true, 1)?,
        Carrier::ours("xfrmd, ESP", false, 1)?,
        Carrier::ours("xfrmd, ESP, 10,000 SAs", false, 10_000)?,
    ];
    let mut others = Vec::new();
    for (name, args, how) in [
        (
            "wireguard-go",
            &["-f"][..],
            "apt-get install wireguard-go, or a newer one in PATH",
        ),
        (
            "boringtun-cli",
            &["-f", "--disable-drop-privileges"],
            "cargo install boringtun-cli",
        ),
    ] {
        match carriers::find(name) {
            Some(program) => {
                others.push(carriers.len());
                carriers.push(Carrier::wireguard(name, &program, args)?);
            }
            None => println!("no {name} to compare with: {how}"),
        }
    }
    let mut own_esp = None;
    if libipsec::is_there() {
        own_esp = Some(carriers.len());
        carriers.push(Carrier::libipsec("strongSwan's kernel-libipsec")?);
    } else {
        println!("no strongSwan to compare with: xfrmd/tests/ike/install.sh 5.9");
    }
    let measured = measure(&carriers)?;
    let ours = carriers.iter().filter(|it| it.name.starts_with("xfrmd"));
    let pids: Vec<u32> = ours.flat_map(|it| it.pids.iter().copied()).collect();
    let before = ticks(&pids)?;
    std::thread::sleep(2 * TIME);
    #[expect(clippy::cast_precision_loss, reason = "a few ticks")]
    let idle = (ticks(&pids)? - before) as f64;
    let rate = |select: fn(&Measured) -> &Vec<f64>, at: usize| {
        median(&mut measured.get(at).map(select).cloned().unwrap_or_default())
    };
    let figure = |name: &str, unit, select, ours: usize, against: usize, target| Figure {
        name: name.to_owned(),
        ours: rate(select, ours),
        yardstick: rate(select, against),
        unit,
        against: carriers.get(against).map_or("", |it| it.name),
        target,
    };
    let tcp: fn(&Measured) -> &Vec<f64> = |it| &it.tcp;
    let udp: fn(&Measured) -> &Vec<f64> = |it| &it.udp;
    let ping: fn(&Measured) -> &Vec<f64> = |it| &it.ping;
    let cpu: fn(&Measured) -> &Vec<f64> = |it| &it.cpu;
    let least = Target::AtLeast;
    let speed = "Gb/s";
    let known = Target::AtMost(f64::INFINITY);
    let mut figures = vec![
        figure("TCP, ESP in UDP", speed, tcp, OURS_UDP, PLAIN, least(0.0)),
        figure(
            "CPU a packet of TCP, ESP in UDP",
            "us",
            cpu,
            OURS_UDP,
            FORWARD_UDP,
            known,
        ),
        figure(
            "CPU a packet of TCP, ESP",
            "us",
            cpu,
            OURS_ESP,
            FORWARD_RAW,
            known,
        ),
        figure(
            "TCP, ESP in UDP",
            speed,
            tcp,
            OURS_UDP,
            FORWARD_UDP,
            least(0.7),
        ),
        figure("TCP, ESP", speed, tcp, OURS_ESP, FORWARD_RAW, least(0.75)),
        figure(
            "TCP, ESP in UDP",
            speed,
            tcp,
            OURS_UDP,
            PACKETS_UDP,
            least(0.7),
        ),
        figure("TCP, ESP", speed, tcp, OURS_ESP, PACKETS_RAW, least(0.75)),
        figure(
            "TCP, ESP, 10,000 SAs and policies",
            speed,
            tcp,
            OURS_MANY,
            OURS_ESP,
            least(0.9),
        ),
    ];
    for &other in &others {
        let name = carriers.get(other).map(|it| it.name);
        if name == Some("wireguard-go") {
            figures.push(figure(
                "TCP, ESP in UDP",
                speed,
                tcp,
                OURS_UDP,
                other,
                least(1.5),
            ));
        }
    }
    let better = others
        .iter()
        .copied()
        .max_by(|&a, &b| rate(udp, a).total_cmp(&rate(udp, b)));
    if let Some(better) = better {
        figures.push(figure(
            "UDP 1,400 bytes, ESP in UDP",
            speed,
            udp,
            OURS_UDP,
            better,
            least(1.5),
        ));
    }
    for at in [OURS_UDP, OURS_ESP] {
        figures.push(Figure {
            name: "TCP among 5,000 strange packets a second".to_owned(),
            ours: rate(|it| &it.disturbed, at),
            yardstick: rate(tcp, at),
            unit: speed,
            against: carriers.get(at).map_or("", |it| it.name),
            target: least(0.9),
        });
    }
    if let Some(at) = own_esp {
        figures.push(figure(
            "TCP, ESP in UDP",
            speed,
            tcp,
            OURS_UDP,
            at,
            least(40.0),
        ));
    }
    let most = Target::AtMost(1.5);
    figures.push(figure(
        "ping, ESP in UDP",
        "us",
        ping,
        OURS_UDP,
        FORWARD_UDP,
        most,
    ));
    figures.push(figure("ping, ESP", "us", ping, OURS_ESP, FORWARD_RAW, most));
    figures.push(Figure {
        name: "CPU ticks of six idle daemons in 3 s".to_owned(),
        ours: idle,
        yardstick: 1.0,
        unit: "",
        against: "one tick",
        target: Target::AtMost(1.0),
    });
    Ok(figures)
}
