//! Reference kernels: whether one is installed, and how to run a command in it.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Condvar, Mutex, OnceLock};

use dataplane::Profile;

/// A kernel release that goldens are recorded from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// `6.1`, `6.12`, `7.2`, `7.2-iptfs`.
    pub name: &'static str,
    /// The same without what was added to it.
    pub release: &'static str,
    directory: &'static str,
    has_iptfs: bool,
}

/// All of them, oldest first.
pub const ALL: [Kernel; 3] = [
    Kernel {
        name: "6.1",
        release: "6.1",
        directory: "oldstable",
        has_iptfs: false,
    },
    Kernel {
        name: "6.12",
        release: "6.12",
        directory: "stable",
        has_iptfs: false,
    },
    Kernel {
        name: "7.2",
        release: "7.2",
        directory: "newest",
        has_iptfs: false,
    },
];

/// 7.2 with the module that Debian's build lacks (`kernel/iptfs.sh` makes it). Its transcripts
/// are those of 7.2 but for the few in its own directory.
pub const WITH_IPTFS: Kernel = Kernel {
    name: "7.2-iptfs",
    release: "7.2",
    directory: "newest",
    has_iptfs: true,
};

/// The directory of this crate: scripts, goldens, regressions.
#[must_use]
pub fn suite_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// One of the kernels that run at once.
struct Turn;

static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

impl Turn {
    const AT_ONCE: usize = 4;

    fn wait() -> Self {
        let running = RUNNING.lock().unwrap();
        *ENDED
            .wait_while(running, |running| *running == Self::AT_ONCE)
            .unwrap() += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap() -= 1;
        ENDED.notify_one();
    }
}

impl Kernel {
    /// The kernel of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        let mut known = ALL.into_iter().chain([WITH_IPTFS]);
        known.find(|kernel| kernel.name == name)
    }

    /// The kernel with the modules that a distribution's ordinary build has.
    #[must_use]
    pub fn ordinary(self) -> Self {
        if self.release == WITH_IPTFS.release {
            WITH_IPTFS
        } else {
            self
        }
    }

    /// The emulator's profile of this very build, which differs from what distributions ship for
    /// real machines in what was chosen when it was built: ticks, SELinux, no IPTFS.
    ///
    /// # Panics
    /// When the emulator does not know the release.
    #[must_use]
    pub fn profile(self) -> &'static Profile {
        static BUILDS: OnceLock<Vec<Profile>> = OnceLock::new();
        let builds = BUILDS.get_or_init(|| {
            let builds = Profile::ALL.into_iter().flat_map(|release| {
                [false, true].map(|has_iptfs| Profile {
                    hz: 100,
                    possible_cpus: 1,
                    has_iptfs,
                    has_selinux: true,
                    ..release.clone()
                })
            });
            builds.collect()
        });
        let mut builds = builds.iter();
        let build =
            builds.find(|build| build.name == self.release && build.has_iptfs == self.has_iptfs);
        build.expect("a profile of every reference kernel")
    }

    /// Whether it can be run here.
    ///
    /// # Errors
    /// Why not, and what to do about it.
    pub fn available(self) -> Result<(), String> {
        #[expect(
            clippy::disallowed_methods,
            reason = "the scripts take the same variable"
        )]
        let root = std::env::var_os("REFERENCE_KERNEL_DIR");
        let root = root.map_or_else(|| PathBuf::from("/opt/reference-kernel"), PathBuf::from);
        let home = root.join(self.directory);
        let install = format!("compat-tests/kernel/install.sh {}", self.release);
        let release = std::fs::read_to_string(home.join("RELEASE"))
            .map_err(|_| format!("kernel {} is not installed: {install}", self.release))?;
        let dotted = format!("{}.", self.release);
        if !release.starts_with(&dotted) && release.trim() != self.release {
            return Err(format!(
                "installed is {}, not {}",
                release.trim(),
                self.release
            ));
        }
        if self.has_iptfs && !home.join("xfrm_iptfs.ko").exists() {
            return Err("its module is not built: compat-tests/kernel/iptfs.sh".into());
        }
        Ok(())
    }

    /// Runs `program` inside the kernel; its output goes where ours goes.
    ///
    /// # Errors
    /// When the script cannot be started.
    pub fn run(self, seconds: u32, program: &Path, args: &[String]) -> std::io::Result<ExitStatus> {
        self.start(&[], seconds, program, args)
    }

    /// The same where no module is loaded on demand: much faster for scenarios.
    ///
    /// # Errors
    /// When the script cannot be started.
    pub fn run_sealed(
        self,
        seconds: u32,
        program: &Path,
        args: &[String],
    ) -> std::io::Result<ExitStatus> {
        self.start(&["-s"], seconds, program, args)
    }

    /// Waits until few enough run: each sleeps most of the time, but its timers have to come in time.
    fn start(
        self,
        options: &[&str],
        seconds: u32,
        program: &Path,
        args: &[String],
    ) -> std::io::Result<ExitStatus> {
        let _turn = Turn::wait();
        Command::new(suite_dir().join("kernel/run.sh"))
            .args(options)
            .args(["-k", self.name, "-r", "-t", &seconds.to_string(), "--"])
            .arg(program)
            .args(args)
            .stdin(Stdio::null())
            .status()
    }
}
