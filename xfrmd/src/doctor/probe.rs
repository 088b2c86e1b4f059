//! The single questions, and how they are asked.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use nix::sys::utsname::uname;
use nix::unistd::geteuid;
use xfrm_proto::consts::{
    AF_INET, IPPROTO_AH, IPPROTO_COMP, IPPROTO_ESP, XFRM_MSG_NEWSA, XFRMA_ALG_AUTH, XFRMA_ALG_COMP,
};
use xfrm_proto::control::Address;
use xfrm_proto::uapi::UserSaInfo;
use zerocopy::IntoBytes;

use super::{Finding, For, State};
use crate::attach::{self, Capture, netlink};
use crate::driver::seccomp::Front;
use crate::driver::seccomp::filter::Handover;
use crate::driver::{client, command, host};

/// Somebody without privileges.
const NOBODY: u32 = 65534;
/// What a child that has succeeded says: no system call fails with it.
const WORKED: i32 = 4095;

fn found(name: &'static str, wanted_for: For, detail: impl Into<String>) -> Finding {
    Finding {
        name,
        wanted_for,
        state: State::Found,
        detail: detail.into(),
    }
}

fn missing(name: &'static str, wanted_for: For, detail: String, remedy: &str) -> Finding {
    Finding {
        name,
        wanted_for,
        state: State::Missing(remedy.into()),
        detail,
    }
}

/// What came of trying something.
fn tried(
    name: &'static str,
    wanted_for: For,
    result: io::Result<()>,
    meaning: &str,
    remedy: &str,
) -> Finding {
    match result {
        Ok(()) => found(name, wanted_for, meaning),
        Err(error) => missing(name, wanted_for, format!("{meaning}: {error}"), remedy),
    }
}

/// Name, release and machine.
pub(super) fn kernel() -> String {
    let Ok(name) = uname() else {
        return "an unknown kernel".into();
    };
    let parts = [name.sysname(), name.release(), name.machine()];
    parts.map(|part| part.to_string_lossy()).join(" ")
}

/// Does something in a child, as another user if one is given.
fn in_child(
    uid: Option<u32>,
    mut work: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) -> io::Result<()> {
    let mut child = Command::new("/");
    if let Some(uid) = uid {
        child.uid(uid).gid(uid);
    }
    // SAFETY: the child makes a few system calls. It never gets as far as running a program, and
    // what it says instead comes back as its error.
    unsafe {
        child.pre_exec(move || {
            work()?;
            Err(io::Error::from_raw_os_error(WORKED))
        });
    }
    match child.status() {
        Err(error) if error.raw_os_error() == Some(WORKED) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(io::ErrorKind::Other.into()),
    }
}

fn setting(path: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/sys/net/{path}")).ok()?;
    Some(text.trim().to_owned())
}

/// Where we are, as we are.
pub(super) fn here() -> Vec<Finding> {
    let sockets = host::usersock().and_then(|socket| host::netns_cookie(socket.as_fd()).map(drop));
    let mut findings = vec![
        tried(
            "netlink sockets",
            For::Requests,
            sockets,
            "what clients' sockets are made of (NETLINK_USERSOCK, SO_NETNS_COOKIE)",
            "Linux 5.14 or newer; in a sandbox, let AF_NETLINK sockets pass",
        ),
        shim(),
        filter(),
        user_namespaces(),
    ];
    findings.extend(attach::needs().into_iter().map(|need| match need.missing {
        None => found(need.name, For::Packets, need.meaning),
        Some((error, remedy)) => missing(
            need.name,
            For::Packets,
            format!("{}: {error}", need.meaning),
            remedy,
        ),
    }));
    let need = attach::nf_tables();
    findings.push(match need.missing {
        None => found(need.name, For::Else, need.meaning),
        Some((error, remedy)) => missing(
            need.name,
            For::Else,
            format!(
                "{}: {error}; rules and routes in its place, which know prefixes and protocols",
                need.meaning
            ),
            remedy,
        ),
    });
    findings.push(capability(
        "CAP_SYS_ADMIN",
        21,
        "to serve other network namespaces than the own",
    ));
    findings.extend([
        forwarding("IPv4 forwarding", "ipv4/ip_forward", "net.ipv4.ip_forward"),
        forwarding(
            "IPv6 forwarding",
            "ipv6/conf/all/forwarding",
            "net.ipv6.conf.all.forwarding",
        ),
    ]);
    if let Some(mode) = setting("ipv4/conf/all/rp_filter") {
        let kind = match mode.as_str() {
            "0" => "off",
            "1" => "strict",
            _ => "loose",
        };
        let detail = format!("{kind}; any works, captured packets have a rule of their own");
        findings.push(found("reverse-path filter", For::Else, detail));
    }
    findings.push(daemon());
    findings.extend(attach::has_rules().then(rules));
    findings
}

/// Of a daemon, of which we do not know whether it lives.
fn rules() -> Finding {
    found(
        "rules in the packet filter",
        For::Else,
        "of a daemon; if none runs, it was killed, and what it protected finds no way out until \
         one runs again (or nft delete table inet xfrmd)",
    )
}

fn shim() -> Finding {
    let place = ["/run", "/var/lib", "/tmp", "/var/tmp", "/dev/shm"]
        .into_iter()
        .find(|directory| command::is_executable(Path::new(directory)));
    match place {
        Some(place) => found(
            "a place for the shim",
            For::Requests,
            format!("{place}: programs may be loaded from there"),
        ),
        None => missing(
            "a place for the shim",
            For::Requests,
            "every candidate is mounted noexec".into(),
            "mount -o remount,exec /tmp, or TMPDIR=DIRECTORY xfrmd run",
        ),
    }
}

fn filter() -> Finding {
    tried(
        "seccomp notification",
        For::Else,
        Handover::new(Front::Auto, false)
            .and_then(|handover| in_child(None, move || handover.set_up())),
        "static programs and Go's under `xfrmd run` are served",
        "",
    )
}

fn user_namespaces() -> Finding {
    let uid = geteuid().is_root().then_some(NOBODY);
    let own = || {
        Ok(unshare(
            CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET,
        )?)
    };
    tried(
        "user namespaces",
        For::Else,
        in_child(uid, own),
        "packets without root: unshare -rn xfrmd run --packets -- COMMAND",
        "",
    )
}

/// Of the effective ones of this process.
fn capability(name: &'static str, number: u32, meaning: &str) -> Finding {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let held = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|held| held & 1 << number != 0);
    if held {
        found(name, For::Else, meaning)
    } else {
        missing(name, For::Else, meaning.into(), "sudo")
    }
}

fn forwarding(name: &'static str, path: &str, key: &str) -> Finding {
    match setting(path).as_deref() {
        None => missing(name, For::Else, "not of this kernel".into(), ""),
        Some("0") => missing(
            name,
            For::Else,
            format!("off: a host, not a gateway (sysctl -w {key}=1)"),
            &format!("sysctl -w {key}=1"),
        ),
        Some(_) => found(name, For::Else, "on: can be a gateway"),
    }
}

fn daemon() -> Finding {
    match client::statistics(&Address::SYSTEM) {
        Ok(_) => found("a running daemon", For::Else, "at /run/xfrmd/control"),
        Err(_) => missing(
            "a running daemon",
            For::Else,
            "none at /run/xfrmd/control".into(),
            "systemctl start xfrmd",
        ),
    }
}

/// In a network namespace of our own, into which the process goes for good.
pub(super) fn elsewhere(here: &[Finding]) -> Vec<Finding> {
    let entered = unshare(CloneFlags::CLONE_NEWNET)
        .or_else(|_| unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET));
    if entered.is_err() {
        let unknown = |name, wanted_for| Finding {
            name,
            wanted_for,
            state: State::Unknown,
            detail: "not tried: no network namespace of one's own without rights".into(),
        };
        return vec![
            unknown("capture", For::Packets),
            unknown("the kernel's own XFRM", For::Else),
        ];
    }
    let lacks = |it: &Finding| it.wanted_for == For::Packets && it.state != State::Found;
    let needs = "TUN device, policy routes and nf_tables, tried together";
    let capture = match attach::try_out(Capture::NfTables) {
        Ok(()) => found("capture", For::Packets, needs),
        Err(error) if here.iter().any(lacks) => Finding {
            name: "capture",
            wanted_for: For::Packets,
            state: State::Unknown,
            detail: format!("not without what is missing above: {error}"),
        },
        Err(error) => tried(
            "capture",
            For::Packets,
            attach::try_out(Capture::Routes),
            &format!("TUN device and policy routes, because without nf_tables ({error})"),
            "modprobe -a tun nf_tables nft_socket; a kernel with CONFIG_NF_TABLES_INET, \
             CONFIG_NFT_SOCKET, CONFIG_IP_MULTIPLE_TABLES and CONFIG_IPV6_MULTIPLE_TABLES",
        ),
    };
    let mut findings = vec![capture];
    findings.extend(native());
    findings
}

/// What the host's kernel could do without us.
fn native() -> Vec<Finding> {
    let socket = match host::netlink_socket(libc::NETLINK_XFRM).and_then(netlink::Socket::bound) {
        Ok(socket) => socket,
        Err(error) => {
            let detail = format!("NETLINK_XFRM: {error}; that is what xfrmd is for");
            return vec![missing("the kernel's own XFRM", For::Else, detail, "")];
        }
    };
    let mut findings = vec![found(
        "the kernel's own XFRM",
        For::Else,
        "NETLINK_XFRM answers; clients of xfrmd do not reach it",
    )];
    for (name, protocol, attr, algorithm, key_bytes) in [
        (
            "the kernel's own ESP",
            IPPROTO_ESP,
            XFRMA_ALG_AUTH,
            "hmac(sha1)",
            20_u32,
        ),
        (
            "the kernel's own AH",
            IPPROTO_AH,
            XFRMA_ALG_AUTH,
            "hmac(sha1)",
            20,
        ),
        (
            "the kernel's own IPComp",
            IPPROTO_COMP,
            XFRMA_ALG_COMP,
            "deflate",
            0,
        ),
    ] {
        let mut info = UserSaInfo {
            family: AF_INET,
            ..UserSaInfo::default()
        };
        info.id.proto = protocol;
        info.id.spi.set(0x1000);
        info.id.daddr.0 = [127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut value = algorithm.as_bytes().to_vec();
        value.resize(64, 0);
        value.extend_from_slice(&(key_bytes * 8).to_ne_bytes());
        value.resize(value.len() + usize::try_from(key_bytes).unwrap_or(0), 0);
        let mut messages = netlink::Messages::default();
        messages.push(XFRM_MSG_NEWSA, netlink::NLM_F_ACK, |body| {
            body.fixed(info.as_bytes());
            body.attr(attr, &value);
        });
        let refused = socket.transact(&messages).err();
        findings.push(match refused.and_then(|error| error.raw_os_error()) {
            // Without a cipher, ESP that is there says EINVAL.
            None | Some(libc::EINVAL) => found(name, For::Else, "there; not used"),
            Some(libc::EPROTONOSUPPORT) => missing(name, For::Else, "none".into(), ""),
            Some(errno) => Finding {
                name,
                wanted_for: For::Else,
                state: State::Unknown,
                detail: io::Error::from_raw_os_error(errno).to_string(),
            },
        });
    }
    findings
}
