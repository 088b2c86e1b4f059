//! `--record`: what the daemon is asked and says, into a file.
//!
//! The control thread and packet threads hand over whole buffers; a thread of its own writes them. What
//! the control plane does is never left out. Packets are, once more of them wait than memory is for;
//! the recording then says so.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use dataplane::BootNanos;
use nix::time::{ClockId, clock_gettime};
use xfrmd::recording::format::{Head, Source};
use xfrmd::recording::reel::{ControlTape, Reel, Sink};

use super::Daemon;
use super::clock::randomness::Source as RandomSource;

/// Bytes of packets that may wait to be written.
const MOST_WAITING: usize = 256 << 20;
/// Written buffers that are kept for others.
const MOST_SPARE: usize = 16;

/// Where a recording goes, and whether keys do.
#[derive(Clone, Debug)]
pub(crate) struct RecordTo {
    file: Arc<File>,
    keys: bool,
}

impl RecordTo {
    /// Begins the file anew; others cannot read it.
    ///
    /// # Errors
    /// The host's.
    pub(crate) fn create(path: &Path, keys: bool) -> io::Result<Self> {
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        let file = Arc::new(options.open(path)?);
        Ok(Self { file, keys })
    }
}

/// What waits to be written.
#[derive(Default)]
struct Waiting {
    bytes: AtomicUsize,
    spare: Mutex<Vec<Vec<u8>>>,
}

struct Queue {
    sender: Sender<Option<Vec<u8>>>,
    waiting: Arc<Waiting>,
}

impl Sink for Queue {
    fn take(&self, blocks: Vec<u8>, must: bool) -> bool {
        let waiting = &self.waiting.bytes;
        if !must && waiting.load(Ordering::Relaxed) > MOST_WAITING {
            return false;
        }
        waiting.fetch_add(blocks.len(), Ordering::Relaxed);
        self.sender.send(Some(blocks)).is_ok()
    }

    fn buffer(&self) -> Vec<u8> {
        let mut spare = self
            .waiting
            .spare
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        spare.pop().unwrap_or_default()
    }
}

/// A recording under way.
pub(super) struct Recorder {
    reel: Arc<Reel>,
    stop: Sender<Option<Vec<u8>>>,
    writer: Option<JoinHandle<()>>,
}

impl Recorder {
    fn start(to: &RecordTo, head: &Head, boot: BootNanos, nanos: u64) -> io::Result<Self> {
        let (sender, receiver) = channel();
        let waiting = Arc::new(Waiting::default());
        let queue = Queue {
            sender: sender.clone(),
            waiting: Arc::clone(&waiting),
        };
        let file = Arc::clone(&to.file);
        let writer = std::thread::Builder::new()
            .name("recorder".into())
            .spawn(move || write(&file, &receiver, &waiting))?;
        Ok(Self {
            reel: Reel::begin(head, boot, nanos, Box::new(queue)),
            stop: sender,
            writer: Some(writer),
        })
    }

    /// For a packet thread.
    pub(super) fn reel(&self) -> &Arc<Reel> {
        &self.reel
    }
}

impl Drop for Recorder {
    /// Everything that was handed over is written.
    fn drop(&mut self) {
        self.reel.end();
        let _ = self.stop.send(None);
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn write(mut file: &File, blocks: &Receiver<Option<Vec<u8>>>, waiting: &Waiting) {
    let mut works = true;
    while let Ok(Some(mut buffer)) = blocks.recv() {
        if works && let Err(error) = file.write_all(&buffer) {
            tracing::error!(%error, "the recording ends here");
            works = false;
        }
        waiting.bytes.fetch_sub(buffer.len(), Ordering::Relaxed);
        buffer.clear();
        let mut spare = waiting.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < MOST_SPARE {
            spare.push(buffer);
        }
    }
}

impl Daemon {
    /// Records from now on, if that is wanted. `again`: an earlier daemon has begun.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn start_recording(&mut self, again: bool) -> io::Result<()> {
        let Some(to) = &self.settings.record else {
            return Ok(());
        };
        if again {
            tracing::warn!("the recording ends where the daemon was killed");
            return Ok(());
        }
        let head = Head {
            source: Source::Instance,
            kernel: self.settings.profile.name.into(),
            keys: to.keys,
            program: env!("CARGO_PKG_VERSION").into(),
            limits: self.settings.limits,
            seed: match self.settings.randomness {
                RandomSource::Host => None,
                RandomSource::Seed(seed) => Some(seed),
            },
        };
        let now = self.clock.now();
        let nanos = match self.clock.page() {
            Some(_) => i128::from(now.real.0) * 1_000_000_000,
            // As exactly as other captures of this machine have it.
            None => {
                let real = clock_gettime(ClockId::CLOCK_REALTIME)?;
                i128::from(real.tv_sec()) * 1_000_000_000 + i128::from(real.tv_nsec())
            }
        };
        let nanos = u64::try_from(nanos).unwrap_or(0);
        let recorder = Recorder::start(to, &head, now.boot, nanos)?;
        let tape = ControlTape::new(Arc::clone(recorder.reel()));
        self.emulator.record(Box::new(tape));
        self.recorder = Some(recorder);
        Ok(())
    }
}
