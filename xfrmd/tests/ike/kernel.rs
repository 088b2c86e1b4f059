//! B as a real Linux: a reference kernel of `compat-tests`, joined to A by a TAP device, with the
//! daemon in it.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::charon::{Charon, Connection, home};
use crate::host::{Host, WIRE};
use crate::namespaces::Talk;
use crate::sas::{Sas, parse};

/// The kernel's program.
pub(crate) fn linux(release: &str) -> String {
    let root = std::env::var("REFERENCE_KERNEL_DIR").unwrap_or("/opt/reference-kernel".to_owned());
    let name = match release {
        "6.1" => "oldstable",
        "6.12" => "stable",
        _ => "newest",
    };
    format!("{root}/{name}/linux")
}

/// The kernel with its charon; answers at 10.2.0.1.
pub(crate) struct Kernel {
    talk: Talk,
    quit: PathBuf,
}

impl Kernel {
    /// Gives A its wire, with the addresses that A has in a pair, and starts the other end.
    pub(crate) fn beside(
        a: &Host,
        release: &str,
        charon: &Charon,
        connection: &Connection<'_>,
        ports: u16,
    ) -> Self {
        a.namespace.sh(&format!(
            "ip tuntap add dev {WIRE} mode tap; ip addr add 192.168.77.1/24 dev {WIRE}; \
             ip link set {WIRE} up; ip addr add 10.1.0.1/24 dev lo; \
             ip route add 10.2.0.0/24 via 192.168.77.2 src 10.1.0.1"
        ));
        let home = home(charon.release);
        let log = a.file("kernel-charon.log");
        let strongswan = a.write("kernel-strongswan.conf", &charon.text("/run/vici", &log));
        let swanctl = a.write("kernel-swanctl.conf", &connection.text());
        let quit = a.directory.join("quit");
        let script = format!(
            // A packet that this module takes from GRO has no route yet, and Linux drops it when IPComp is
            // inside.
            "set -e
            rmmod esp4_offload
            ip addr add 192.168.77.2/24 dev vec0
            ip link set vec0 up
            ip addr add 10.2.0.1/24 dev lo
            ip route add 10.1.0.0/24 via 192.168.77.1 src 10.2.0.1
            mount --bind {home}/ipsec /usr/lib/ipsec
            export STRONGSWAN_CONF={strongswan}
            {home}/charon-systemd > /dev/null 2>&1 &
            while [ ! -S /run/vici ]; do sleep 0.1; done
            {home}/swanctl --load-all --file {swanctl} --uri unix:///run/vici
            {} answer 10.2.0.1 {ports} &
            echo ready
            while [ ! -e {} ]; do sleep 0.1; done
            cat /proc/net/xfrm_stat > {}
            ip -s xfrm state
            echo that is all
            ",
            std::env::current_exe().unwrap().display(),
            quit.display(),
            a.file("kernel-xfrm_stat")
        );
        let run = concat!(env!("CARGO_MANIFEST_DIR"), "/../compat-tests/kernel/run.sh");
        let mut command = a.namespace.command(run);
        command.args([
            "-k", release, "-n", WIRE, "-t", "120", "--", "bash", "-c", &script,
        ]);
        let mut kernel = Self {
            talk: Talk::start(&mut command),
            quit,
        };
        while kernel.talk.line() != "ready" {}
        kernel
    }

    /// Ends it; its SAs.
    pub(crate) fn end(mut self) -> Sas {
        std::fs::write(&self.quit, "").unwrap();
        let mut said = String::new();
        loop {
            let line = self.talk.line();
            if line == "that is all" {
                return parse(&said);
            }
            said += &line;
            said.push('\n');
        }
    }

    pub(crate) fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 2, 0, 1], port))
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // Whatever happened.
        let _ = std::fs::write(&self.quit, "");
    }
}
