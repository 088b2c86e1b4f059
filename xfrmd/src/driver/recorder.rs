//! `--record`: what the daemon is asked and says, into a file.
//!
//! The control thread and packet threads hand over whole buffers; a thread of its own collects and writes them. What
//! the control plane does is never left out. Packets are, once more of them wait than memory is for;
//! the recording then says so.
//!
//! Where a daemon goes on for one that was killed, the file goes on with what that had kept, if keys may
//! be in it.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use dataplane::BootNanos;
use nix::time::{ClockId, clock_gettime};
use xfrmd::recording::format::{Head, Kept, Source};
use xfrmd::recording::pcapng;
use xfrmd::recording::reel::{ControlTape, Reel, Sink};

use super::Daemon;
use super::clock::randomness::Source as RandomSource;

/// Bytes of packets that may wait to be written.
const MOST_WAITING: usize = 256 << 20;
/// As many are written without waiting for more.
const ENOUGH: usize = 1 << 20;
/// How long is waited for more: so often is written at least while anything happens.
const WHILE: Duration = Duration::from_millis(20);

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
    blocks: Mutex<Blocks>,
    /// Something has come that the writer may not know of.
    news: Condvar,
}

#[derive(Default)]
struct Blocks {
    bytes: Vec<u8>,
    /// No more will come.
    over: bool,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing more comes.
    fn end(&self) {
        self.lock().over = true;
        self.news.notify_one();
    }

    /// Waits for something, and a while for more; `None` at the end.
    fn collect(&self, mut into: Vec<u8>) -> Option<Vec<u8>> {
        let nothing = |it: &mut Blocks| it.bytes.is_empty() && !it.over;
        let blocks = self.news.wait_while(self.lock(), nothing);
        let blocks = blocks.unwrap_or_else(PoisonError::into_inner);
        let little = |it: &mut Blocks| it.bytes.len() < ENOUGH && !it.over;
        let waited = self.news.wait_timeout_while(blocks, WHILE, little);
        let (mut blocks, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if blocks.bytes.is_empty() {
            return None;
        }
        std::mem::swap(&mut blocks.bytes, &mut into);
        Some(into)
    }
}

struct Queue(Arc<Waiting>);

impl Sink for Queue {
    fn take(&self, blocks: &[u8], must: bool) -> bool {
        let mut waiting = self.0.lock();
        let before = waiting.bytes.len();
        if !must && before > MOST_WAITING {
            return false;
        }
        waiting.bytes.extend_from_slice(blocks);
        let now = waiting.bytes.len();
        drop(waiting);
        // To wake a thread costs more than a packet.
        if before == 0 || (before < ENOUGH && now >= ENOUGH) {
            self.0.news.notify_one();
        }
        true
    }
}

/// A recording under way.
pub(super) struct Recorder {
    reel: Arc<Reel>,
    waiting: Arc<Waiting>,
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
        let waiting = Arc::new(Waiting::default());
        let queue = Queue(Arc::clone(&waiting));
        let written = Arc::clone(&waiting);
        let file = Arc::clone(&to.file);
        let goes_on = found.is_some();
        let writer = std::thread::Builder::new()
            .name("recorder".into())
            .spawn(move || {
                let begun = match goes_on {
                    true => mend(&file),
                    false => Ok(()),
                };
                if let Err(error) = &begun {
                    tracing::error!(%error, "the recording does not go on");
                }
                write(&file, begun, &written);
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
            waiting,
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
        self.waiting.end();
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

fn write(mut file: &File, begun: io::Result<()>, waiting: &Waiting) {
    let mut done = begun;
    let mut buffer = Vec::new();
    while let Some(blocks) = waiting.collect(buffer) {
        if done.is_ok() {
            done = file.write_all(&blocks);
            if let Err(error) = &done {
                tracing::error!(%error, "the recording ends here");
            }
        }
        buffer = blocks;
        buffer.clear();
        buffer.shrink_to(2 * ENOUGH);
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
