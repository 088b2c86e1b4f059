//! Many packets: what is sent in one piece, what is joined on the way, what a bad wire makes of
//! it, and what strangers send. The receiving kernel judges the checksums.

use std::fs::File;
use std::io::Read;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::cases::{A, B, ESP, Pair, echo, is_protected, no_secret, past_policies, transfer, udp};
use crate::namespaces::{Namespace, Wire, protocols};

/// In a tunnel.
const V6: [&str; 2] = ["fd01::1", "fd02::1"];
const UDP_SEGMENT: i32 = 103;
const FRAGMENT: u8 = 44;

/// IPv4 in transport mode; IPv6 in a tunnel, since neighbours must be found in clear.
fn protect(pair: &mut Pair) {
    pair.transport();
    for (namespace, own, other, via) in [(&pair.a, 0, 1, 2), (&pair.b, 1, 0, 1)] {
        namespace.sh(&format!(
            "ip addr add {0}/128 dev lo nodad; ip route add {1}/128 via fd77::{via} src {0}",
            V6[own], V6[other]
        ));
    }
    let ends = ["fd77::1", "fd77::2"];
    pair.sas("tunnel", ends[0], ends[1]);
    pair.policies("tunnel", V6, ends, false);
}

/// A counter of `/proc/net/snmp`.
fn counter(namespace: &Namespace, protocol: &str, name: &str) -> u64 {
    let snmp = namespace.sh("cat /proc/net/snmp");
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix(protocol));
    let names = lines.next().unwrap().split_whitespace();
    let mut both = names.zip(lines.next().unwrap().split_whitespace());
    let (_, value) = both.find(|(other, _)| *other == name).unwrap();
    value.parse().unwrap()
}

/// No checksum was wrong, and nothing was malformed.
#[track_caller]
fn is_clean(pair: &Pair) {
    for namespace in [&pair.a, &pair.b] {
        for (protocol, name) in [
            ("Tcp:", "InErrs"),
            ("Tcp:", "InCsumErrors"),
            ("Udp:", "InErrors"),
            ("Udp:", "InCsumErrors"),
            ("Ip:", "InHdrErrors"),
        ] {
            assert_eq!(counter(namespace, protocol, name), 0, "{protocol} {name}");
        }
        let snmp6 = namespace.sh("cat /proc/net/snmp6");
        for line in snmp6.lines().filter(|line| line.contains("CsumErrors")) {
            assert_eq!(line.split_whitespace().nth(1), Some("0"), "{line}");
        }
    }
}

pub(crate) fn large_writes() {
    for mtu in [1280, 1500, 9000] {
        let mut pair = Pair::new();
        pair.a.sh(&format!("ip link set v0 mtu {mtu}"));
        pair.b.sh(&format!("ip link set v1 mtu {mtu}"));
        protect(&mut pair);
        let wire = Wire::listen(&pair.a, "v0");
        transfer(&pair.a, &pair.b, &format!("{B}:0"), 2_000_000);
        transfer(&pair.a, &pair.b, &format!("[{}]:0", V6[1]), 2_000_000);
        let packets = wire.stop();
        no_secret(&packets);
        assert_eq!(protocols(&packets), [ESP]);
        // No smaller packet can be asked for over IPv6.
        let is_fragment = |packet: &Vec<u8>| packet[0] >> 4 == 6 && packet[6] == FRAGMENT;
        assert_eq!(packets.iter().any(is_fragment), mtu == 1280);
        assert!(packets.iter().all(|packet| packet.len() <= mtu));
        is_clean(&pair);
    }
}

pub(crate) fn segments() {
    const COUNT: usize = 40;
    const BYTES: u16 = 1000;
    let mut pair = Pair::new();
    protect(&mut pair);
    for (from, to) in [("0.0.0.0:0", B), ("[::]:0", V6[1])] {
        let address = if to == B {
            format!("{B}:0")
        } else {
            format!("[{to}]:0")
        };
        let receiver = pair.b.inside(|| udp(&address));
        let target = receiver.local_addr().unwrap();
        let sender = pair.a.inside(|| udp(from));
        let size = i32::from(BYTES);
        let set = unsafe {
            libc::setsockopt(
                sender.as_raw_fd(),
                libc::SOL_UDP,
                UDP_SEGMENT,
                (&raw const size).cast(),
                4,
            )
        };
        assert_eq!(set, 0);
        let part = |number: usize| {
            let bytes = if number + 1 == COUNT {
                700
            } else {
                BYTES.into()
            };
            vec![u8::try_from(number).unwrap(); bytes]
        };
        let all: Vec<u8> = (0..COUNT).flat_map(part).collect();
        sender.send_to(&all, target).unwrap();
        let mut buffer = [0; 2000];
        for number in 0..COUNT {
            let len = receiver.recv(&mut buffer).expect("a datagram");
            assert_eq!(buffer[..len], part(number), "{number}");
        }
    }
    is_clean(&pair);
}

pub(crate) fn flows() {
    let mut pair = Pair::new();
    protect(&mut pair);
    let wire = Wire::listen(&pair.a, "v0");
    std::thread::scope(|scope| {
        let pair = &pair;
        for to in [format!("{B}:0"), format!("[{}]:0", V6[1]), format!("{B}:0")] {
            scope.spawn(move || transfer(&pair.a, &pair.b, &to, 1_000_000));
        }
        scope.spawn(move || transfer(&pair.b, &pair.a, &format!("{A}:0"), 1_000_000));
        for _ in 0..50 {
            echo(&pair.a, &pair.b, "0.0.0.0:0", &format!("{B}:0"), 1000);
            echo(&pair.b, &pair.a, "[::]:0", &format!("[{}]:0", V6[0]), 1000);
        }
    });
    is_protected(&wire.stop());
    is_clean(&pair);
}

/// A wire between two devices that loses packets and lets some be overtaken.
pub(crate) struct BadWire {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl BadWire {
    /// `v0` here is `v1` there.
    pub(crate) fn join(here: &Namespace, there: &Namespace) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let devices = [(here, "v0"), (there, "v1")].map(|(namespace, name)| {
            let device = namespace.inside(|| open_tun(name));
            namespace.sh(&format!("ip link set {name} mtu 1500 up"));
            Arc::new(device)
        });
        let threads = [(0, 1), (1, 0)].map(|(from, to)| {
            let (from, to) = (Arc::clone(&devices[from]), Arc::clone(&devices[to]));
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || carry_badly(&from, &to, &stop))
        });
        Self {
            stop,
            threads: threads.into(),
        }
    }
}

impl Drop for BadWire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Of the packets that are not small, each 60th is lost and each 25th late.
fn carry_badly(from: &File, to: &File, stop: &AtomicBool) {
    let write = |packet: &[u8]| {
        let _ = nix::unistd::write(to, packet);
    };
    let mut late: Option<(Vec<u8>, u32)> = None;
    let mut count = 0;
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::SeqCst) {
        let mut fds = [libc::pollfd {
            fd: from.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        }];
        // Whoever is late is not so for ever.
        if unsafe { libc::poll(fds.as_mut_ptr(), 1, 10) } == 0 {
            if let Some((packet, _)) = late.take() {
                write(&packet);
            }
            continue;
        }
        let Ok(len) = (&*from).read(&mut buffer) else {
            continue;
        };
        let packet = &buffer[..len];
        if len > 300 {
            count += 1;
            if count % 60 == 0 {
                continue;
            }
            if count % 25 == 0 && late.is_none() {
                late = Some((packet.to_vec(), 3));
                continue;
            }
        }
        write(packet);
        if let Some((packet, left)) = &mut late {
            *left -= 1;
            if *left == 0 {
                write(packet);
                late = None;
            }
        }
    }
}

/// A TUN device that gives packets as they go over a wire.
fn open_tun(name: &str) -> File {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
    let made = unsafe { libc::ioctl(device.as_raw_fd(), TUNSETIFF, &raw mut request) };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
    device
}

pub(crate) fn bad_wire() {
    let (a, b) = (Namespace::new(), Namespace::new());
    let wire = BadWire::join(&a, &b);
    let mut pair = Pair::on(a, b);
    protect(&mut pair);
    transfer(&pair.a, &pair.b, &format!("{B}:0"), 400_000);
    transfer(&pair.b, &pair.a, &format!("[{}]:0", V6[0]), 400_000);
    is_clean(&pair);
    // There were such packets.
    assert!(counter(&pair.a, "Tcp:", "RetransSegs") > 0);
    pair.xb.counts("XfrmInStateProtoError", 0);
    drop(wire);
}

/// A raw socket past everything, for packets that nobody asked for.
fn stranger(namespace: &Namespace) -> OwnedFd {
    namespace.inside(|| {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        let fd = unsafe { libc::socket(libc::AF_INET, kind, i32::from(ESP)) };
        assert!(fd >= 0);
        let socket = unsafe { UdpSocket::from_raw_fd(fd) };
        past_policies(&socket);
        socket.into()
    })
}

fn send_esp(socket: &OwnedFd, to: &str, payload: &[u8]) {
    use nix::sys::socket::{MsgFlags, SockaddrIn, sendto};
    let address: std::net::SocketAddrV4 = format!("{to}:0").parse().unwrap();
    let address = SockaddrIn::from(address);
    sendto(socket.as_raw_fd(), payload, &address, MsgFlags::empty()).unwrap();
}

/// Kilobytes that a process has in memory.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.unwrap().split_whitespace().next().unwrap();
    kilobytes.parse().unwrap()
}

/// Waits until a counter of B is what it must be.
#[track_caller]
fn reaches(pair: &mut Pair, name: &str, value: u64) {
    for _ in 0..3000 {
        if pair.xb.counter(name) >= value {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    pair.xb.counts(name, value);
}

pub(crate) fn strangers() {
    // The socket's buffer takes so many at once.
    const EACH: u32 = 2000;
    const ROUNDS: u32 = 5;
    const PROTECTED: u64 = 20;
    let mut pair = Pair::new();
    pair.transport();
    echo(&pair.a, &pair.b, "0.0.0.0:0", &format!("{B}:0"), 100);
    let pid = pair.xb.pid();
    let stranger = stranger(&pair.a);
    let mut before = 0;
    for round in 1..=ROUNDS {
        for number in 0..EACH {
            // An SPI that nobody has, one that somebody has with nonsense behind it, and too little.
            let mut garbage = [0xa5; 120];
            garbage[..4].copy_from_slice(&(0x4000_0000 + round * EACH + number).to_be_bytes());
            send_esp(&stranger, B, &garbage);
            garbage[..4].copy_from_slice(&0x100_u32.to_be_bytes());
            garbage[4..8].copy_from_slice(&(1_000_000 + number).to_be_bytes());
            send_esp(&stranger, B, &garbage);
        }
        let sent = u64::from(round * EACH);
        reaches(&mut pair, "XfrmInNoStates", sent);
        reaches(&mut pair, "XfrmInStateProtoError", sent);
        if round == 1 {
            before = resident(pid);
        }
    }
    let grown = resident(pid).saturating_sub(before);
    assert!(grown < 4096, "{grown} KiB more");
    // All the while, SAs work; and what was on the wire once is not taken again.
    let wire = Wire::listen(&pair.b, "v1");
    for _ in 0..PROTECTED {
        echo(&pair.a, &pair.b, "0.0.0.0:0", &format!("{B}:0"), 100);
    }
    let mut replayed = 0;
    for packet in wire.stop() {
        if packet[9] == ESP && packet[16..20] == [192, 168, 77, 2] {
            send_esp(&stranger, B, &packet[20..]);
            replayed += 1;
        }
    }
    assert_eq!(replayed, PROTECTED);
    reaches(&mut pair, "XfrmInStateSeqError", replayed);
    echo(&pair.a, &pair.b, "0.0.0.0:0", &format!("{B}:0"), 100);
}
