//! Reference kernels: whether one is installed, and how to run a command in it.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use dataplane::Profile;

/// A kernel release that goldens are recorded from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// `6.1`, `6.12`, `7.2`.
    pub name: &'static str,
    directory: &'static str,
}

/// All of them, oldest first.
pub const ALL: [Kernel; 3] = [
    Kernel {
        name: "6.1",
        directory: "oldstable",
    },
    Kernel {
        name: "6.12",
        directory: "stable",
    },
    Kernel {
        name: "7.2",
        directory: "newest",
    },
];

/// The directory of this crate: scripts, goldens, regressions.
#[must_use]
pub fn suite_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

impl Kernel {
    /// The kernel of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        ALL.into_iter().find(|kernel| kernel.name == name)
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
            let builds = Profile::ALL.into_iter().map(|release| Profile {
                hz: 100,
                possible_cpus: 1,
                has_iptfs: false,
                has_selinux: true,
                ..release.clone()
            });
            builds.collect()
        });
        let build = builds.iter().find(|build| build.name == self.name);
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
        let install = format!("compat-tests/kernel/install.sh {}", self.name);
        let release = std::fs::read_to_string(root.join(self.directory).join("RELEASE"))
            .map_err(|_| format!("kernel {} is not installed: {install}", self.name))?;
        let dotted = format!("{}.", self.name);
        if !release.starts_with(&dotted) && release.trim() != self.name {
            return Err(format!(
                "installed is {}, not {}",
                release.trim(),
                self.name
            ));
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

    fn start(
        self,
        options: &[&str],
        seconds: u32,
        program: &Path,
        args: &[String],
    ) -> std::io::Result<ExitStatus> {
        Command::new(suite_dir().join("kernel/run.sh"))
            .args(options)
            .args(["-k", self.name, "-t", &seconds.to_string(), "--"])
            .arg(program)
            .args(args)
            .stdin(Stdio::null())
            .status()
    }
}
