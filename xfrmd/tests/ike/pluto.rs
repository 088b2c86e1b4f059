//! libreswan: `pluto`, and `whack`.

use crate::host::{Host, eventually};

pub(crate) const PROGRAMS: &str = "/usr/libexec/ipsec";

impl Host {
    /// Starts a pluto with one connection, `t`.
    pub(crate) fn pluto(&mut self, connection: &str) {
        let nss = self.file("nss");
        let control = self.file("pluto.ctl");
        std::fs::create_dir_all(&nss).unwrap();
        let secrets = self.write("ipsec.secrets", ": PSK \"known to both and nobody else\"\n");
        let configuration = self.write(
            "ipsec.conf",
            &format!("config setup\n\tnssdir={nss}\n\nconn t\n{connection}\tauto=add\n"),
        );
        let started = self.shell.sh(&format!(
            "certutil -N -d sql:{nss} --empty-password; \
             {PROGRAMS}/pluto --config {configuration} --secretsfile {secrets} --nssdir {nss} \
                --rundir {} --logfile {} --nofork > {} 2>&1 < /dev/null & echo $!",
            self.directory.display(),
            self.file("pluto.log"),
            self.file("pluto.out")
        ));
        let pid = started.trim();
        self.stop = Some(format!(
            "timeout 60 {PROGRAMS}/whack --ctlsocket {control} --shutdown > /dev/null; \
             for i in $(seq 1000); do kill -0 {pid} 2> /dev/null || exit 0; sleep 0.02; done; exit 1"
        ));
        let socket = self.directory.join("pluto.ctl");
        eventually("pluto listens", || socket.exists().then_some(()));
        let log = self.directory.join("pluto.log");
        eventually("pluto has its interfaces", || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            text.contains("adding UDP interface").then_some(())
        });
        self.shell.sh(&format!(
            "timeout 60 {PROGRAMS}/addconn --config {configuration} --ctlsocket {control} t"
        ));
    }

    /// Runs whack where it may fail, or never come back; what it says.
    pub(crate) fn try_whack(&mut self, command: &str) -> String {
        let control = self.file("pluto.ctl");
        let command = format!("timeout 5 {PROGRAMS}/whack --ctlsocket {control} {command} 2>&1");
        self.shell.try_sh(&command).1
    }

    /// Runs whack; what it says.
    #[track_caller]
    pub(crate) fn whack(&mut self, command: &str) -> String {
        let control = self.file("pluto.ctl");
        self.shell.sh(&format!(
            "timeout 60 {PROGRAMS}/whack --ctlsocket {control} {command} 2>&1"
        ))
    }
}
