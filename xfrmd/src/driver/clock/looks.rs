//! Whether everything of a run sleeps.
//!
//! A look goes through all threads of all processes of the run, of `xfrmd run` itself and of the
//! daemon, and notes how often the kernel has switched away from each. All sleep at once if all were asleep
//! at a first look, and at a second one nobody has been switched to since: then there was a
//! moment, between the last thread of the first look and the first one of the second, at which none ran.
//!
//! Processes of a run are the descendants of `xfrmd run`, which adopts those whose parents end, and whoever is
//! connected to the daemon, with descendants.
//! A thread that is stopped sleeps too; one that waits for a disk does not.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use foldhash::fast::RandomState;
use hashbrown::HashSet;
use nix::unistd::{getpid, getppid, gettid};

/// The largest status that we know has about 1500 bytes, and what we want is in its first and last lines.
const STATUS_BYTES: usize = 4096;

/// A thread as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    process: u32,
    thread: u32,
    switches: u64,
}

/// Looks at the processes of a run.
pub(super) struct Looks {
    /// `xfrmd run`.
    root: u32,
    /// The keeper, which is one of its children, and none of the run's.
    keeper: u32,
    seen: Vec<Seen>,
    /// Those whose threads have been looked at.
    processes: HashSet<u32, RandomState>,
    path: String,
    text: Vec<u8>,
}

impl Looks {
    /// At the descendants of `root`, which is the parent of the daemon's parent.
    ///
    /// # Errors
    /// Where the host's kernel does not tell who is whose child.
    pub(super) fn new(root: u32) -> io::Result<Self> {
        let children = format!("/proc/self/task/{}/children", gettid());
        if !Path::new(&children).exists() {
            return Err(io::Error::other(
                "a virtual clock needs /proc/PID/task/TID/children, which this kernel does not have \
                 (CONFIG_PROC_CHILDREN)",
            ));
        }
        Ok(Self {
            root,
            keeper: getppid().as_raw().cast_unsigned(),
            seen: Vec::new(),
            processes: HashSet::default(),
            path: String::new(),
            text: vec![0; STATUS_BYTES],
        })
    }

    /// A first look: whether every thread sleeps; also those of `clients` and of their descendants.
    pub(super) fn all_sleep(&mut self, clients: impl Iterator<Item = u32>) -> bool {
        self.seen.clear();
        self.processes.clear();
        let own = getpid().as_raw().cast_unsigned();
        let this = gettid().as_raw().cast_unsigned();
        for thread in threads(own).into_iter().filter(|&it| it != this) {
            if !self.note(own, thread) {
                return false;
            }
        }
        self.processes.extend([own, self.keeper]);
        let mut left = vec![self.root];
        left.extend(clients);
        while let Some(process) = left.pop() {
            if !self.processes.insert(process) {
                continue;
            }
            for thread in threads(process) {
                if !self.note(process, thread) {
                    return false;
                }
                left.extend(self.children(process, thread));
            }
        }
        true
    }

    /// A second look: whether no thread has run since the first.
    pub(super) fn still_sleep(&mut self) -> bool {
        (0..self.seen.len()).all(|index| {
            let Some(&before) = self.seen.get(index) else {
                return false;
            };
            let now = self.look(before.process, before.thread);
            now == Some((true, before.switches))
        })
    }

    /// Notes a thread; whether it sleeps. One that has ended does not run any more.
    fn note(&mut self, process: u32, thread: u32) -> bool {
        match self.look(process, thread) {
            Some((true, switches)) => {
                self.seen.push(Seen {
                    process,
                    thread,
                    switches,
                });
                true
            }
            Some((false, _)) => false,
            None => true,
        }
    }

    fn read(&mut self, process: u32, thread: u32, name: &str) -> Option<usize> {
        self.path.clear();
        let _ = write!(self.path, "/proc/{process}/task/{thread}/{name}");
        let mut file = File::open(&self.path).ok()?;
        let mut len = 0;
        loop {
            let room = self.text.get_mut(len..).unwrap_or_default();
            if room.is_empty() {
                self.text.resize(2 * len, 0);
                continue;
            }
            match file.read(room) {
                Ok(0) => return Some(len),
                Ok(more) => len += more,
                Err(_) => return None,
            }
        }
    }

    /// Whether a thread sleeps, and how often it has been switched away from; none if it has ended.
    fn look(&mut self, process: u32, thread: u32) -> Option<(bool, u64)> {
        let len = self.read(process, thread, "status")?;
        let text = self.text.get(..len).unwrap_or_default();
        state_of(text)
    }

    fn children(&mut self, process: u32, thread: u32) -> Vec<u32> {
        let Some(len) = self.read(process, thread, "children") else {
            return Vec::new();
        };
        let text = self.text.get(..len).unwrap_or_default();
        let numbers = text.split(|byte| byte.is_ascii_whitespace());
        numbers.filter_map(number).collect()
    }
}

/// The threads of a process, none if it has ended.
fn threads(process: u32) -> Vec<u32> {
    let entries = std::fs::read_dir(format!("/proc/{process}/task"));
    let names = entries.into_iter().flatten().flatten();
    let numbers = names.filter_map(|entry| number(entry.file_name().as_encoded_bytes()));
    numbers.collect()
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

/// The state and the switches of a `status`; none for what has ended.
fn state_of(text: &[u8]) -> Option<(bool, u64)> {
    let mut sleeps = None;
    let mut switches = 0;
    for line in text.split(|&byte| byte == b'\n') {
        if let Some(state) = line.strip_prefix(b"State:") {
            sleeps = match state.trim_ascii().first() {
                Some(b'Z' | b'X') => return None,
                state => Some(matches!(state, Some(b'S' | b'T' | b't'))),
            };
        } else if let Some(count) = line
            .strip_prefix(b"voluntary_ctxt_switches:")
            .or_else(|| line.strip_prefix(b"nonvoluntary_ctxt_switches:"))
        {
            switches += number::<u64>(count).unwrap_or(0);
        }
    }
    Some((sleeps?, switches))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_who_sleeps() {
        let text = |state: &str| {
            format!(
                "Name:\tcat\nState:\t{state}\nvoluntary_ctxt_switches:\t7\n\
                 nonvoluntary_ctxt_switches:\t3\n"
            )
        };
        let of = |state| state_of(text(state).as_bytes());
        assert_eq!(of("S (sleeping)"), Some((true, 10)));
        assert_eq!(of("T (stopped)"), Some((true, 10)));
        assert_eq!(of("R (running)"), Some((false, 10)));
        assert_eq!(of("D (disk sleep)"), Some((false, 10)));
        assert_eq!(of("Z (zombie)"), None);
        assert_eq!(state_of(b"nothing"), None);
    }

    #[test]
    fn who_runs_is_seen() {
        use std::process::{Command, Stdio};
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut looks = Looks {
            root: child.id(),
            keeper: 0,
            seen: Vec::new(),
            processes: HashSet::default(),
            path: String::new(),
            text: vec![0; STATUS_BYTES],
        };
        let mut asleep = false;
        for _ in 0..30_000 {
            // Only at the child: other tests run in this process.
            let (sleeps, switches) = looks.look(child.id(), child.id()).unwrap();
            if sleeps {
                looks.seen = vec![Seen {
                    process: child.id(),
                    thread: child.id(),
                    switches,
                }];
                asleep = looks.still_sleep();
            }
            if asleep {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(asleep);
        use std::io::Write as _;
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        let mut ran = false;
        for _ in 0..30_000 {
            ran = !looks.still_sleep();
            if ran {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(ran);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!looks.still_sleep());
    }
}
