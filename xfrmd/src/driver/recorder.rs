//! `--record`: what the daemon is asked and says, into a file.
//!
//! The control thread and packet threads hand over whole buffers; a thread of its own writes them. What
//! the control plane does is never left out. Packets are, once more of them wait than memory is for;
//! the recording then says so.
//!
//! Where a daemon goes on for one that was killed, the file goes on with what that had kept, if keys may
//! be in it.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use dataplane::BootNanos;
use nix::time::{ClockId, clock_gettime};
use xfrmd::recording::format::{Head, Kept, Source};
use xfrmd::recording::pcapng;
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
        options.read(true).write(true);
        options.create(true).truncate(true).mode(0o600);
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

/// What a daemon has found that goes on, and how many there were before it.
pub(super) struct Found {
    pub(super) generation: u64,
    pub(super) kept: Vec<Kept<'static>>,
}

impl Recorder {
    fn start(
        to: &RecordTo,
        head: &Head,
        (boot, nanos): (BootNanos, u64),
        found: Option<&Found>,
    ) -> io::Result<Self> {
        let (sender, receiver) = channel();
        let waiting = Arc::new(Waiting::default());
        let queue = Queue {
            sender: sender.clone(),
            waiting: Arc::clone(&waiting),
        };
        let file = Arc::clone(&to.file);
        let goes_on = found.is_some();
        let writer = std::thread::Builder::new()
            .name("recorder".into())
            .spawn(move || {
                let begun = match goes_on {
                    true => mend(&file),
                    false => Ok(()),
                };
                write(&file, begun, &receiver, &waiting);
            })?;
        let sink = Box::new(queue);
        Ok(Self {
            reel: match found {
                Some(found) => {
                    let found = (found.generation, &*found.kept);
                    Reel::go_on(head, boot, nanos, sink, found)
                }
                None => Reel::begin(head, boot, nanos, sink),
            },
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

/// Takes away what the daemon before had half written.
fn mend(mut file: &File) -> io::Result<()> {
    let bytes = file.metadata()?.len();
    let whole = pcapng::whole_blocks(bytes, |at, head| file.read_exact_at(head, at).ok());
    file.set_len(whole)?;
    file.seek(SeekFrom::Start(whole))?;
    Ok(())
}

fn write(
    mut file: &File,
    begun: io::Result<()>,
    blocks: &Receiver<Option<Vec<u8>>>,
    waiting: &Waiting,
) {
    let mut works = true;
    let mut check = |done: io::Result<()>| {
        if let Err(error) = done {
            tracing::error!(%error, "the recording ends here");
            works = false;
        }
        works
    };
    check(begun);
    while let Ok(Some(mut buffer)) = blocks.recv() {
        if check(Ok(())) {
            check(file.write_all(&buffer));
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
    /// Records from now on, if that is wanted; a daemon that goes on says what it has found.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn start_recording(&mut self, found: Option<&Found>) -> io::Result<()> {
        let Some(to) = &self.settings.record else {
            return Ok(());
        };
        if found.is_some() && !to.keys {
            tracing::warn!(
                "the recording ends where the daemon was killed: it goes on only with --record-keys"
            );
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
        let recorder = Recorder::start(to, &head, (now.boot, nanos), found)?;
        let tape = ControlTape::new(Arc::clone(recorder.reel()));
        self.emulator.record(Box::new(tape));
        self.recorder = Some(recorder);
        Ok(())
    }
}
