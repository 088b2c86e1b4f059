//! Daemons that are killed while they carry packets.

use std::collections::HashSet;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::cases::{A, B, ESP, Pair, SECRET, no_secret};
use crate::namespaces::Wire;

/// However slow the machine: what has not happened by then does not happen.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often each end is killed.
const DEATHS: usize = 4;

#[track_caller]
fn until(what: &str, mut fits: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !fits() {
        assert!(begin.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What the receiver has got.
#[derive(Default)]
struct Got {
    highest: u64,
    numbers: HashSet<u64>,
    twice: Vec<u64>,
}

/// Numbered datagrams from A to B, one every two milliseconds, until it is dropped.
struct Stream {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    got: Arc<Mutex<Got>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Stream {
    fn start(pair: &Pair) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let got = Arc::new(Mutex::new(Got::default()));
        let server = pair.b.inside(|| UdpSocket::bind((B, 7000)).unwrap());
        server
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        let client = pair.a.inside(|| UdpSocket::bind((A, 7001)).unwrap());
        let (stopped, number) = (Arc::clone(&stop), Arc::clone(&sent));
        let sender = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                let number = number.fetch_add(1, Ordering::SeqCst) + 1;
                let datagram = [SECRET, &number.to_be_bytes()].concat();
                // Meanwhile there may be no way.
                let _ = client.send_to(&datagram, (B, 7000));
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let (stopped, kept) = (Arc::clone(&stop), Arc::clone(&got));
        let receiver = std::thread::spawn(move || {
            let mut buffer = [0; 2000];
            while !stopped.load(Ordering::SeqCst) {
                let Ok(len) = server.recv(&mut buffer) else {
                    continue;
                };
                let number = u64::from_be_bytes(*buffer[..len].last_chunk().unwrap());
                let mut got = kept.lock().unwrap();
                got.highest = got.highest.max(number);
                if !got.numbers.insert(number) {
                    got.twice.push(number);
                }
            }
        });
        Self {
            stop,
            sent,
            got,
            threads: vec![sender, receiver],
        }
    }

    /// Waits until something arrives that has not been sent yet; how long that took.
    #[track_caller]
    fn flows(&self) -> Duration {
        let begin = Instant::now();
        let next = self.sent.load(Ordering::SeqCst) + 1;
        until("packets flow again", || {
            self.got.lock().unwrap().highest >= next
        });
        begin.elapsed()
    }

    fn stop(mut self) -> Arc<Mutex<Got>> {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        Arc::clone(&self.got)
    }
}

/// ESP packets from A to B.
fn of_a(packets: &[Vec<u8>]) -> Vec<&[u8]> {
    let source: [u8; 4] = A.parse::<std::net::Ipv4Addr>().unwrap().octets();
    let esp = packets.iter().filter(|it| it[0] == 0x45 && it[9] == ESP);
    esp.filter(|it| it[12..16] == source)
        .map(|it| &it[..usize::from(u16::from_be_bytes([it[2], it[3]]))])
        .collect()
}

/// Kill -9 of the daemons of both ends, again and again: nothing in clear, no number and no IV
/// twice, and traffic goes on. What is sent again after a kill is not accepted again.
pub(crate) fn killed_under_traffic() {
    let mut pair = Pair::new();
    pair.transport();
    let wire = Wire::listen(&pair.b, "v1");
    let stream = Stream::start(&pair);
    stream.flows();
    let mut longest = Duration::ZERO;
    for _ in 0..DEATHS {
        pair.xa.kill_daemon();
        longest = longest.max(stream.flows());
        pair.xb.kill_daemon();
        longest = longest.max(stream.flows());
        // A keeper gives up on a daemon that is killed more often than this.
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("the longest gap: {longest:?}");
    // The receiver of before the kill has them; it must not get them again.
    let packets = wire.stop();
    let replayed = of_a(&packets);
    assert!(replayed.len() > DEATHS, "{}", replayed.len());
    pair.xb.kill_daemon();
    let before = pair.xb.counter("XfrmInStateSeqError");
    let raw = pair.a.inside(|| {
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW) };
        assert!(fd >= 0);
        unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) }
    });
    let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    address.sin_family = libc::AF_INET as u16;
    address.sin_addr.s_addr = u32::from_ne_bytes(B.parse::<std::net::Ipv4Addr>().unwrap().octets());
    let again = |packet: &[u8]| unsafe {
        libc::sendto(
            raw.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            (&raw const address).cast(),
            size_of_val(&address) as u32,
        )
    };
    for packet in &replayed {
        assert_eq!(again(packet), packet.len() as isize);
    }
    // The last one is refused as often as it comes, however many the socket had no room for.
    until("replayed packets are refused", || {
        let last = replayed.last().unwrap();
        assert_eq!(again(last), last.len() as isize);
        pair.xb.counter("XfrmInStateSeqError") > before
    });
    stream.flows();
    let got = stream.stop();
    assert!(got.lock().unwrap().twice.is_empty(), "accepted twice");
    no_secret(&packets);
    let (mut numbers, mut ivs) = (HashSet::new(), HashSet::new());
    for packet in &replayed {
        assert!(numbers.insert(&packet[20..28]), "a number twice");
        assert!(ivs.insert(&packet[28..36]), "an IV twice");
    }
}

/// Kill -9 of the keeper ends the daemon too, and what policies protect stays blocked. A new one
/// takes over what they left on the host.
pub(crate) fn killed_keeper() {
    let mut pair = Pair::new();
    pair.transport();
    let stream = Stream::start(&pair);
    stream.flows();
    let wire = Wire::listen(&pair.b, "v1");
    let Pair { a, b, mut xa, xb } = pair;
    let daemon = xa.daemon();
    xa.kill();
    until("the daemon ends with its keeper", || {
        !std::path::Path::new(&format!("/proc/{daemon}")).exists()
    });
    let mut pair = Pair {
        xa: a.xfrmd(),
        a,
        b,
        xb,
    };
    // SAs with numbers of their own: B has seen those of before.
    pair.xb.sh("ip xfrm state deleteall");
    pair.sas("transport", A, B);
    pair.xa.sh(&format!(
        "ip xfrm policy add dir out src {A} dst {B} tmpl proto esp reqid 1 mode transport; \
         ip xfrm policy add dir in src {B} dst {A} tmpl proto esp reqid 1 mode transport"
    ));
    stream.flows();
    stream.stop();
    no_secret(&wire.stop());
}
