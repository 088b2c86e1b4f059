//! strongSwan's own ESP in userspace (`kernel-libipsec`): a charon at each end.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::net::{Namespace, Running};

/// Where `xfrmd/tests/ike/install.sh` puts it.
const HOME: &str = "/opt/ike-daemons/5.9";

/// Whether it is there.
pub(super) fn is_there() -> bool {
    Path::new(HOME).join("swanctl").exists()
}

/// A charon that runs, and its files.
pub(super) struct Charon {
    daemon: Running,
    directory: std::path::PathBuf,
}

impl Drop for Charon {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn command(end: &Namespace, directory: &Path, program: &str) -> Command {
    let mut command = end.command("unshare");
    let script = format!(
        "mount --bind {HOME}/ipsec /usr/lib/ipsec; \
         STRONGSWAN_CONF={}/strongswan.conf exec {HOME}/{program}",
        directory.display()
    );
    command
        .args(["-m", "sh", "-ec", &script])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

impl Charon {
    /// For the tunnel between two addresses, through a pair of outer ones.
    pub(super) fn start(end: &Namespace, outer: [&str; 2], inner: [&str; 2]) -> Result<Self> {
        let name = format!("xfrmd-bench-{}-{}", std::process::id(), outer[0]);
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory)?;
        let vici = directory.join("vici");
        std::fs::write(
            directory.join("strongswan.conf"),
            format!(
                "charon-systemd {{\n load = kernel-libipsec random nonce openssl gcrypt hmac kdf \
                 kernel-netlink socket-default vici\n \
                 plugins {{ vici {{\n socket = unix://{}\n }} }}\n \
                 journal {{\n default = -1\n }}\n}}\nswanctl {{\n load =\n}}\n",
                vici.display()
            ),
        )?;
        std::fs::write(
            directory.join("swanctl.conf"),
            format!(
                "connections {{ t {{\n version = 2\n encap = yes\n local_addrs = {}\n \
                 remote_addrs = {}\n local {{\n auth = psk\n }}\n remote {{\n auth = psk\n }}\n \
                 children {{ t {{\n local_ts = {}/32\n remote_ts = {}/32\n \
                 esp_proposals = aes128gcm16\n }} }}\n}} }}\n\
                 secrets {{ ike {{\n secret = \"known to both\"\n }} }}\n",
                outer[0], outer[1], inner[0], inner[1]
            ),
        )?;
        let daemon = Running(command(end, &directory, "charon-systemd").spawn()?);
        let charon = Self { daemon, directory };
        for _ in 0..1000 {
            if vici.exists() {
                let file = charon.directory.join("swanctl.conf");
                charon.swanctl(end, &format!("--load-all --file {}", file.display()))?;
                return Ok(charon);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        anyhow::bail!("charon does not listen")
    }

    /// Asks it something.
    pub(super) fn swanctl(&self, end: &Namespace, what: &str) -> Result<()> {
        let uri = format!("unix://{}", self.directory.join("vici").display());
        let program = format!("swanctl {what} --uri {uri}");
        let status = command(end, &self.directory, &program).status()?;
        anyhow::ensure!(status.success(), "swanctl {what}");
        Ok(())
    }

    /// The process.
    pub(super) fn pid(&self) -> u32 {
        self.daemon.0.id()
    }
}

/// Agrees on SAs.
pub(super) fn initiate(end: &Namespace, charons: &[Charon]) -> Result<()> {
    let first = charons.first().context("a charon")?;
    first.swanctl(end, "--initiate --child t")
}
