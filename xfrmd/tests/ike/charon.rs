//! strongSwan: `charon-systemd`, which is charon in the foreground, and `swanctl`.

use crate::host::{Host, eventually};

/// Where `install.sh` puts a release.
pub(crate) fn home(release: &str) -> String {
    let root = std::env::var("IKE_DAEMONS_DIR").unwrap_or("/opt/ike-daemons".to_owned());
    format!("{root}/{release}")
}

/// How a charon is started.
pub(crate) struct Charon {
    pub(crate) release: &'static str,
    /// Those that come before what every charon has.
    pub(crate) plugins: &'static str,
    /// Of `strongswan.conf`.
    pub(crate) settings: &'static str,
}

pub(crate) const CHARON: Charon = Charon {
    release: "5.9",
    plugins: "",
    settings: "",
};

/// `swanctl.conf` with one connection, `t`, and its child, `t`.
pub(crate) struct Connection<'a> {
    pub(crate) local: &'a str,
    pub(crate) remote: &'a str,
    /// Of the connection.
    pub(crate) ike: &'a str,
    /// Of the child.
    pub(crate) child: &'a str,
}

impl Connection<'_> {
    pub(crate) fn text(&self) -> String {
        format!(
            "connections {{ t {{\n version = 2\n local_addrs = {}\n remote_addrs = {}\n {}\n \
             local {{\n auth = psk\n }}\n remote {{\n auth = psk\n }}\n \
             children {{ t {{\n {}\n }} }}\n}} }}\n\
             secrets {{ ike {{\n secret = \"known to both and nobody else\"\n }} }}\n",
            self.local, self.remote, self.ike, self.child
        )
    }
}

impl Charon {
    /// `strongswan.conf`.
    pub(crate) fn text(&self, vici: &str, log: &str) -> String {
        format!(
            "charon-systemd {{\n load = {} random nonce openssl gcrypt hmac kdf xcbc cmac \
             kernel-netlink socket-default vici\n \
             plugins {{ vici {{\n socket = unix://{vici}\n }} }}\n \
             filelog {{ log {{\n path = {log}\n default = 1\n knl = 2\n flush_line = yes\n }} }}\n \
             journal {{\n default = -1\n }}\n {}\n}}\nswanctl {{\n load =\n}}\n",
            self.plugins, self.settings
        )
    }
}

impl Host {
    /// Starts a charon.
    pub(crate) fn charon(&mut self, charon: &Charon) {
        let home = home(charon.release);
        let text = charon.text(&self.file("vici"), &self.file("charon.log"));
        let path = self.write("strongswan.conf", &text);
        self.shell
            .sh(&format!("mount --bind {home}/ipsec /usr/lib/ipsec"));
        let started = self.shell.sh(&format!(
            "{} STRONGSWAN_CONF={path} {home}/charon-systemd > {} 2>&1 < /dev/null & echo $!",
            self.variables,
            self.file("charon.out")
        ));
        let pid = started.trim();
        // It is the shell's child's child, so that nobody can wait for it but by looking.
        self.stop = Some(format!(
            "kill {pid}; for i in $(seq 1000); do kill -0 {pid} 2> /dev/null || exit 0; sleep 0.02; done; exit 1"
        ));
        self.programs = home;
        let socket = self.directory.join("vici");
        eventually("charon listens", || socket.exists().then_some(()));
    }

    /// Runs swanctl; what it says.
    #[track_caller]
    pub(crate) fn swanctl(&mut self, command: &str) -> String {
        let (success, said) = self.try_swanctl(command);
        assert!(success, "{command}: {said}");
        said
    }

    /// The same where it may fail; whether it did not.
    pub(crate) fn try_swanctl(&mut self, command: &str) -> (bool, String) {
        let command = format!(
            "STRONGSWAN_CONF={} timeout 60 {}/swanctl {command} --uri unix://{} 2>&1",
            self.file("strongswan.conf"),
            self.programs,
            self.file("vici")
        );
        let (code, said) = self.shell.try_sh(&command);
        (code == "0", said)
    }

    #[track_caller]
    pub(crate) fn load(&mut self, connection: &Connection<'_>) {
        let path = self.write("swanctl.conf", &connection.text());
        self.swanctl(&format!("--load-all --file {path}"));
    }
}
