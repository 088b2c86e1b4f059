//! Numbered datagrams there and back, for as long as a case wants.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::host::{PATIENCE, eventually};
use crate::namespaces::{Namespace, inside};

/// What may not be seen on the wire.
pub(crate) const SECRET: &[u8] = b"attack at dawn, by the river, in clear";
/// Datagrams without an answer, before the sender waits: so that a machine that stalls loses none.
const WINDOW: u64 = 16;
/// When the sender takes those for lost and sends as many again: seldom, because what waits for an SA is
/// not lost, and a policy holds no more than a hundred.
const LOST: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    stopped: AtomicBool,
    quit: AtomicBool,
    sent: AtomicU64,
    arrived: AtomicU64,
    answered: AtomicU64,
}

pub(crate) struct Flow {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// Sends back what comes.
fn answer(shared: &Shared, server: &UdpSocket) {
    let mut buffer = [0; 2000];
    while !shared.quit.load(SeqCst) {
        if let Ok((len, back)) = server.recv_from(&mut buffer) {
            shared.arrived.fetch_add(1, SeqCst);
            let _ = server.send_to(&buffer[..len], back);
        }
    }
}

fn ask(shared: &Shared, client: &UdpSocket, target: SocketAddr, datagram: &[u8]) {
    let mut buffer = [0; 2000];
    let (mut given_up, mut last) = (0, Instant::now());
    while !shared.quit.load(SeqCst) {
        let open = shared.sent.load(SeqCst) - shared.answered.load(SeqCst);
        if last.elapsed() > LOST {
            (given_up, last) = (open, Instant::now());
        }
        let stop = shared.stop.load(SeqCst);
        shared.stopped.store(stop, SeqCst);
        if !stop && open.saturating_sub(given_up) < WINDOW {
            // It may be refused while there is no SA; then it counts as lost.
            shared.sent.fetch_add(1, SeqCst);
            let _ = client.send_to(datagram, target);
        }
        if client.recv(&mut buffer).is_ok() {
            shared.answered.fetch_add(1, SeqCst);
            last = Instant::now();
        }
    }
}

fn open(namespace: &Namespace, address: &str) -> UdpSocket {
    let socket = namespace.inside(|| UdpSocket::bind(address).unwrap());
    let tick = Some(Duration::from_millis(2));
    socket.set_read_timeout(tick).unwrap();
    socket
}

impl Flow {
    /// From an address in one namespace to one in another.
    pub(crate) fn start(from: &Namespace, source: &str, to: &Namespace, address: &str) -> Self {
        Self::of_size(from, source, to, address, SECRET.len())
    }

    /// The same, of so many bytes.
    pub(crate) fn of_size(
        from: &Namespace,
        source: &str,
        to: &Namespace,
        address: &str,
        bytes: usize,
    ) -> Self {
        let server = open(to, address);
        let mut flow = Self::ask(from, source, server.local_addr().unwrap(), bytes);
        let shared = Arc::clone(&flow.shared);
        let answering = std::thread::spawn(move || answer(&shared, &server));
        flow.threads.push(answering);
        flow
    }

    /// To somebody who answers as it is, and whose count is not known.
    pub(crate) fn ask(from: &Namespace, source: &str, target: SocketAddr, bytes: usize) -> Self {
        let datagram: Vec<u8> = SECRET.iter().copied().cycle().take(bytes).collect();
        let client = open(from, source);
        let shared = Arc::new(Shared::default());
        let asking = Arc::clone(&shared);
        let threads = vec![std::thread::spawn(move || {
            ask(&asking, &client, target, &datagram)
        })];
        Self { shared, threads }
    }

    pub(crate) fn answered(&self) -> u64 {
        self.shared.answered.load(SeqCst)
    }

    /// Waits for that many more answers.
    #[track_caller]
    pub(crate) fn more(&self, count: u64) {
        let before = self.answered();
        eventually("answers", || {
            (self.answered() >= before + count).then_some(())
        });
    }

    /// Ends it when every datagram has been answered; how many packets that were, both ways.
    #[track_caller]
    pub(crate) fn finish(self) -> u64 {
        self.finish_but(|| 0)
    }

    /// Ends it when every datagram has been answered, but for those that somebody else counted as
    /// lost; how many packets were sent, both ways.
    #[track_caller]
    pub(crate) fn finish_but(self, mut lost: impl FnMut() -> u64) -> u64 {
        self.shared.stop.store(true, SeqCst);
        eventually("no more is sent", || {
            self.shared.stopped.load(SeqCst).then_some(())
        });
        let sent = self.shared.sent.load(SeqCst);
        let start = Instant::now();
        while self.answered() + lost() < sent {
            let arrived = self.shared.arrived.load(SeqCst);
            assert!(
                start.elapsed() < PATIENCE,
                "of {sent} datagrams {arrived} arrived and {} were answered",
                self.answered()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(self.answered() + lost(), sent);
        2 * sent
    }
}

impl Drop for Flow {
    /// What is lost then is lost.
    fn drop(&mut self) {
        self.shared.quit.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A TCP connection that carries so many bytes there and back, between the namespaces of two
/// processes.
#[track_caller]
pub(crate) fn transfer(from: u32, to: u32, address: &str, bytes: usize) {
    let listener = inside(to, || TcpListener::bind(address).unwrap());
    let target = listener.local_addr().unwrap();
    let sent: Vec<u8> = SECRET.iter().copied().cycle().take(bytes).collect();
    let reflect = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::copy(&mut stream.try_clone().unwrap(), &mut stream).unwrap();
    });
    let mut stream = inside(from, || {
        TcpStream::connect_timeout(&target, PATIENCE).unwrap()
    });
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut reader = stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        stream.write_all(&sent).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        sent
    });
    let mut got = Vec::new();
    reader.read_to_end(&mut got).unwrap();
    assert!(
        got == writer.join().unwrap(),
        "{} of {bytes} bytes",
        got.len()
    );
    reflect.join().unwrap();
}

/// Of this program, started again: answers at an address and some ports from 7000 on, until it is
/// killed.
pub(crate) fn answer_alone(address: &str, ports: u16) {
    let serve = |port| {
        let server = UdpSocket::bind((address, port)).unwrap();
        std::thread::spawn(move || answer(&Shared::default(), &server))
    };
    let threads: Vec<JoinHandle<()>> = (7000..7000 + ports).map(serve).collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

const A_DAY: Duration = Duration::from_secs(86_400);

/// Of this program, started again under a virtual clock: a numbered datagram, its answer, and a pause, again and
/// again. Says how many were answered, in order and once.
pub(crate) fn paced(source: &str, target: &str, count: u64, seconds: u64) {
    let client = UdpSocket::bind(source).unwrap();
    client.connect(target).unwrap();
    // By the virtual clock: whoever loses one is not fast.
    client.set_read_timeout(Some(A_DAY)).unwrap();
    let mut answered = 0;
    for number in 0..count {
        let datagram = [&number.to_be_bytes()[..], SECRET].concat();
        client.send(&datagram).unwrap();
        let mut buffer = [0; 2000];
        let len = client.recv(&mut buffer).unwrap_or(0);
        answered += u64::from(buffer[..len] == datagram);
        std::thread::sleep(Duration::from_secs(seconds));
    }
    println!("{answered}");
}
