//! Numbered datagrams there and back, for as long as a case wants.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::host::eventually;
use crate::namespaces::Namespace;

/// What may not be seen on the wire.
pub(crate) const SECRET: &[u8] = b"attack at dawn, by the river, in clear";
/// Datagrams without an answer, before the sender waits: so that a machine that stalls loses none.
const WINDOW: u64 = 16;
/// When the sender takes those for lost.
const LOST: Duration = Duration::from_millis(300);

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    quit: AtomicBool,
    sent: AtomicU64,
    arrived: AtomicU64,
    answered: AtomicU64,
}

pub(crate) struct Flow {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
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
        let datagram: Vec<u8> = SECRET.iter().copied().cycle().take(bytes).collect();
        let shared = Arc::new(Shared::default());
        let open = |namespace: &Namespace, address: &str| {
            let socket = namespace.inside(|| UdpSocket::bind(address).unwrap());
            let tick = Some(Duration::from_millis(2));
            socket.set_read_timeout(tick).unwrap();
            socket
        };
        let server = open(to, address);
        let client = open(from, source);
        let target = server.local_addr().unwrap();
        let answering = Arc::clone(&shared);
        let asking = Arc::clone(&shared);
        let threads = vec![
            std::thread::spawn(move || {
                let mut buffer = [0; 2000];
                while !answering.quit.load(SeqCst) {
                    if let Ok((len, back)) = server.recv_from(&mut buffer) {
                        answering.arrived.fetch_add(1, SeqCst);
                        let _ = server.send_to(&buffer[..len], back);
                    }
                }
            }),
            std::thread::spawn(move || {
                let mut buffer = [0; 2000];
                let (mut given_up, mut last) = (0, Instant::now());
                while !asking.quit.load(SeqCst) {
                    let answered = asking.answered.load(SeqCst);
                    let open = asking.sent.load(SeqCst) - answered;
                    if open > given_up && last.elapsed() > LOST {
                        given_up = open;
                    }
                    if !asking.stop.load(SeqCst) && open.saturating_sub(given_up) < WINDOW {
                        // It may be refused while there is no SA; then it counts as lost.
                        asking.sent.fetch_add(1, SeqCst);
                        let _ = client.send_to(&datagram, target);
                    }
                    match client.recv(&mut buffer) {
                        Ok(_) => {
                            asking.answered.fetch_add(1, SeqCst);
                            last = Instant::now();
                        }
                        Err(error) => {
                            assert!(!matches!(error.kind(), ErrorKind::InvalidInput), "{error}")
                        }
                    }
                }
            }),
        ];
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

    /// Ends it; how many were sent, and how many of them got no answer.
    pub(crate) fn finish(mut self) -> Outcome {
        self.shared.stop.store(true, SeqCst);
        let start = Instant::now();
        let mut last = (self.answered(), start);
        // What is on its way may still come.
        while self.answered() < self.shared.sent.load(SeqCst) && last.1.elapsed().as_secs() < 3 {
            std::thread::sleep(Duration::from_millis(5));
            if self.answered() != last.0 {
                last = (self.answered(), Instant::now());
            }
        }
        self.shared.quit.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        Outcome {
            sent: self.shared.sent.load(SeqCst),
            arrived: self.shared.arrived.load(SeqCst),
            answered: self.answered(),
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.shared.quit.store(true, SeqCst);
    }
}

#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) sent: u64,
    pub(crate) arrived: u64,
    pub(crate) answered: u64,
}

impl Outcome {
    /// Nothing got lost; how many packets that were, both ways.
    #[track_caller]
    pub(crate) fn complete(&self) -> u64 {
        assert!(
            self.sent == self.arrived && self.sent == self.answered,
            "{self:?}"
        );
        2 * self.sent
    }
}
