//! What carries packets between the two namespaces of a pair.

use std::io::{Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use super::forward;
use super::libipsec::{self, Charon};
use super::net::{Pair, Running, Talk, WIRE, daemons};

/// A carrier that runs.
pub(crate) struct Carrier {
    pub(crate) name: &'static str,
    /// The address of the far end.
    pub(crate) to: IpAddr,
    /// Processes that carry, for their CPU time.
    pub(crate) pids: Vec<u32>,
    pub(crate) talks: Vec<Talk>,
    _programs: Vec<Running>,
    _charons: Vec<Charon>,
    // The namespaces go last.
    pub(crate) pair: Arc<Pair>,
}

/// Addresses inside of a tunnel.
const INNER: [&str; 2] = ["10.1.0.1", "10.2.0.1"];
/// As WireGuard's default is for an Ethernet.
const TUNNEL_MTU: u32 = 1420;

impl Carrier {
    fn new(name: &'static str, to: &str) -> Result<Self> {
        Ok(Self {
            name,
            to: to.parse()?,
            pids: Vec::new(),
            talks: Vec::new(),
            _programs: Vec::new(),
            _charons: Vec::new(),
            pair: Arc::new(Pair::new()?),
        })
    }

    /// Gives a tunnel's devices their addresses.
    fn configure(&self, device: &str, more: &str) -> Result<()> {
        for (end, own, other) in [(0, 0, 1), (1, 1, 0)] {
            let end = &self.pair.ends[end];
            end.sh(&format!(
                "ip addr add {}/32 dev {device}; ip link set {device} mtu {TUNNEL_MTU} {more} up; \
                 ip route add {}/32 dev {device}",
                INNER[own], INNER[other]
            ))?;
        }
        Ok(())
    }

    /// Nothing between.
    pub(crate) fn plain() -> Result<Self> {
        Self::new("veth, nothing between", WIRE[1])
    }

    /// No crypto: `udp` or `raw`.
    pub(crate) fn forwarder(name: &'static str, kind: &str) -> Result<Self> {
        let mut carrier = Self::new(name, INNER[1])?;
        for (end, own, other) in [(0, 0, 1), (1, 1, 0)] {
            let end = &carrier.pair.ends[end];
            let me = std::env::current_exe()?;
            let mut command = end.command(&me.to_string_lossy());
            command.args(["wire", "forward", kind, WIRE[own], WIRE[other]]);
            let mut talk = Talk::start(&mut command)?;
            talk.line()?;
            carrier.pids.push(talk.pid());
            carrier.talks.push(talk);
        }
        // A frame must fit one datagram's pieces.
        carrier.configure(forward::DEVICE, "gso_max_size 60000")?;
        Ok(carrier)
    }

    /// Ours, with this many SAs and policies in each direction.
    pub(crate) fn ours(name: &'static str, encap: bool, count: usize) -> Result<Self> {
        Self::ours_with(name, encap, count, &[Vec::new(), Vec::new()])
    }

    /// The same, with options of `xfrmd run` at each end.
    pub(crate) fn ours_with(
        name: &'static str,
        encap: bool,
        count: usize,
        options: &[Vec<String>; 2],
    ) -> Result<Self> {
        let mut carrier = Self::new(name, INNER[1])?;
        for (end, own, other) in [(0, 0, 1), (1, 1, 0)] {
            let end = &carrier.pair.ends[end];
            end.sh(&format!(
                "ip addr add {0}/32 dev lo; ip route add {1}/32 via {2} src {0}",
                INNER[own], INNER[other], WIRE[other]
            ))?;
            let xfrmd = std::env::current_exe()?.with_file_name("xfrmd");
            let mut command = end.command(&xfrmd.to_string_lossy());
            command.args(["run", "--packets"]).args(&options[own]);
            command.arg("--");
            if encap {
                let me = std::env::current_exe()?;
                command.arg(me).args(["wire", "key-manager"]);
            }
            let mut talk = Talk::start(command.arg("sh"))?;
            carrier.pids.push(talk.pid());
            talk.sh(&batch("state", &states(encap, count)))?;
            talk.sh(&batch("policy", &policies(own, other, count)))?;
            carrier.talks.push(talk);
        }
        carrier.pids = daemons(&carrier.pids)?;
        Ok(carrier)
    }

    /// strongSwan's own.
    pub(crate) fn libipsec(name: &'static str) -> Result<Self> {
        let mut carrier = Self::new(name, INNER[1])?;
        for (end, own, other) in [(0, 0, 1), (1, 1, 0)] {
            let end = &carrier.pair.ends[end];
            end.sh(&format!("ip addr add {}/32 dev lo", INNER[own]))?;
            let (outer, inner) = ([WIRE[own], WIRE[other]], [INNER[own], INNER[other]]);
            let charon = Charon::start(end, outer, inner)?;
            carrier.pids.push(charon.pid());
            carrier._charons.push(charon);
        }
        libipsec::initiate(&carrier.pair.ends[0], &carrier._charons)?;
        Ok(carrier)
    }

    /// wireguard-go or boringtun, if the program is there.
    pub(crate) fn wireguard(name: &'static str, program: &Path, args: &[&str]) -> Result<Self> {
        // Curve25519: private and public.
        const KEYS: [[&str; 2]; 2] = [
            [
                "90698e5bfd7ca241362d951f41bbdc63c7877e182cad5b9a2a6ecd6579d62e74",
                "97b4b2bf54c47156cc70b4a128d895b1c5b8dfd89e4e5d55270ae6b24a6c7a57",
            ],
            [
                "58a3c22bbca1408b419f371014fa5ca4ac1a16d4a3572ce87db778fc6be4815c",
                "0138f5f5402d7c91d63e192795ed94db093da810050e8a0882c16bcfe7844f3f",
            ],
        ];
        let mut carrier = Self::new(name, INNER[1])?;
        for (at, other) in [(0, 1), (1, 0)] {
            let end = &carrier.pair.ends[at];
            // The control socket's name is the device's, in a folder that all namespaces and programs
            // share.
            let initial = name.get(..1).unwrap_or_default();
            let device = format!("{initial}{}{at}", std::process::id() % 10_000);
            let control = PathBuf::from(format!("/var/run/wireguard/{device}.sock"));
            let mut command = end.command(&program.to_string_lossy());
            let child = command
                .args(args)
                .arg(&device)
                .env("WG_PROCESS_FOREGROUND", "1")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?;
            carrier.pids.push(child.id());
            carrier._programs.push(Running(child));
            let mut stream = connect(&control)?;
            write!(
                stream,
                "set=1\nprivate_key={}\nlisten_port=51820\npublic_key={}\n\
                 endpoint={}:51820\nallowed_ip={}/32\n\n",
                KEYS[at][0], KEYS[other][1], WIRE[other], INNER[other]
            )?;
            let mut answer = [0; 64];
            let len = stream.read(&mut answer)?;
            let answer = String::from_utf8_lossy(answer.get(..len).unwrap_or_default());
            anyhow::ensure!(answer.contains("errno=0"), "{name}: {answer}");
            end.sh(&format!(
                "for try in $(seq 500); do ip link show {device} > /dev/null 2>&1 && break; \
                 sleep 0.01; done; ip link set {device} down; ip link set {device} name wg0"
            ))?;
        }
        carrier.configure("wg0", "")?;
        Ok(carrier)
    }
}

fn connect(control: &Path) -> Result<UnixStream> {
    for _ in 0..500 {
        if let Ok(stream) = UnixStream::connect(control) {
            return Ok(stream);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    anyhow::bail!("{} does not appear", control.display())
}

/// A script for `ip -batch`.
fn batch(object: &str, lines: &[String]) -> String {
    let lines: Vec<_> = lines
        .iter()
        .map(|it| format!("xfrm {object} add {it}"))
        .collect();
    format!("ip -batch - <<'END'\n{}\nEND", lines.join("\n"))
}

/// The first SA of each direction is the one that is used.
fn states(encap: bool, count: usize) -> Vec<String> {
    let encap = if encap {
        "encap espinudp 4500 4500 0.0.0.0"
    } else {
        ""
    };
    let sa = |from: usize, to: usize, number: usize| {
        format!(
            "src {} dst {} proto esp spi {:#x} reqid {} mode tunnel replay-window 64 \
             aead rfc4106(gcm(aes)) 0x0102030405060708090a0b0c0d0e0f1011121314 128 {encap}",
            WIRE[from],
            WIRE[to],
            0x1000_0000 * (from + 1) + number,
            number + 1
        )
    };
    (0..count)
        .flat_map(|number| [sa(0, 1, number), sa(1, 0, number)])
        .collect()
}

/// What `ip xfrm state` knows an SA of a soak by.
pub(crate) fn name(from: usize, to: usize, generation: usize) -> String {
    let spi = 0x2000_0000 * (from + 1) + generation;
    format!("src {} dst {} proto esp spi {spi:#x}", WIRE[from], WIRE[to])
}

/// An SA of a soak that carries.
pub(crate) fn sa(from: usize, to: usize, generation: usize) -> String {
    format!(
        "{} reqid 1 mode tunnel replay-window 64 encap espinudp 4500 4500 0.0.0.0 \
         aead 'rfc4106(gcm(aes))' {generation:#042x} 128",
        name(from, to, generation)
    )
}

/// One that does not, by name and as a whole.
pub(crate) fn idle_sa(number: usize) -> (String, String) {
    let name = format!(
        "src 10.9.0.1 dst 10.9.0.2 proto esp spi {:#x}",
        0x1000 + number
    );
    let more = "reqid 9 mode tunnel aead 'rfc4106(gcm(aes))' \
                0x0102030405060708090a0b0c0d0e0f1011121314 128";
    let text = format!("{name} {more}");
    (name, text)
}

fn policies(own: usize, other: usize, count: usize) -> Vec<String> {
    let policy = |dir: &str, from: usize, to: usize, number: usize| {
        let selector = match number {
            0 => format!("src {} dst {}", INNER[from], INNER[to]),
            _ => {
                let [.., high, low] = number.to_be_bytes();
                format!(
                    "src 10.{}.{high}.{low}/32 dst 10.{}.{high}.{low}/32",
                    100 + from,
                    100 + to
                )
            }
        };
        format!(
            "dir {dir} {selector} tmpl src {} dst {} proto esp reqid {} mode tunnel",
            WIRE[from],
            WIRE[to],
            number + 1
        )
    };
    (0..count)
        .flat_map(|number| {
            [
                policy("out", own, other, number),
                policy("in", other, own, number),
            ]
        })
        .collect()
}

/// Where a program is, in `PATH`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let output = Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .output()
        .ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| path.trim().into())
}
