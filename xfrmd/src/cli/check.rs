//! `xfrmd check`: findings in the namespaces of a daemon, or in the kernel's own, for people and programs.

use std::io;
use std::os::fd::AsRawFd;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use nix::sys::socket::{MsgFlags, NetlinkAddr, bind, recv, send};
use serde_json::{Value, json};
use xfrm_proto::consts::*;
use xfrm_proto::control::{Address, ENV_CONTROL};
use xfrm_proto::uapi::{NlMsgHdr, Pod};
use xfrmd::check::{Finding, Kind, Scope, State, Subject, findings};
use zerocopy::IntoBytes as _;

use super::options::SocketOption;
use super::{print, variable, with_daemon};
use crate::driver::{client, host, wall_clock};

/// Exit code when there are findings.
const FOUND: u8 = 1;
/// Exit code when nothing could be looked at.
const FAILED: u8 = 2;
/// How often a dump is begun anew because tables have changed meanwhile.
const ATTEMPTS: usize = 20;
const DUMP_BYTES: usize = 1 << 16;

/// What to look at, and for what.
#[derive(Args)]
pub(super) struct Wanted {
    /// Nothing should be left, as after a test: each SA and policy is a finding.
    #[arg(long)]
    left: bool,
    /// Accepts what is of this kind; may be given several times.
    #[arg(long, value_name = "KIND")]
    ignore: Vec<Kind>,
    /// Looks at the kernel's own SAs and policies, in the network namespace that it is called in.
    #[arg(long, conflicts_with = "socket")]
    host: bool,
    /// As JSON.
    #[arg(short, long)]
    json: bool,
    #[command(flatten)]
    socket: SocketOption,
}

/// A namespace that was looked at.
struct Looked {
    /// What is known of it beside its state; none of the host's.
    known: Option<Value>,
    state: State,
}

/// Looks, prints, and says by the exit code what was found.
pub(super) fn run(wanted: &Wanted) -> ExitCode {
    let scope = Scope {
        ignored: wanted.ignore.clone(),
        expects_nothing: wanted.left,
    };
    let looked = match wanted.host {
        true => host_state().map(|state| vec![Looked { known: None, state }]),
        false => with_daemon(&wanted.socket, states),
    };
    let report = looked.map(|looked| report(&looked, &scope));
    match report.and_then(|report| {
        print(&report, wanted.json, plain)?;
        Ok(count(&report))
    }) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => FOUND.into(),
        Err(error) => {
            eprintln!("xfrmd: {error:#}");
            FAILED.into()
        }
    }
}

/// What a command has left behind in its own instance, on standard error, and the exit code for that.
pub(super) fn at_end(address: &Address<'_>, ignored: &[Kind]) -> u8 {
    let scope = Scope {
        ignored: ignored.to_vec(),
        expects_nothing: true,
    };
    match states(address) {
        Ok(looked) => {
            let report = report(&looked, &scope);
            if count(&report) == 0 {
                return 0;
            }
            eprint!("xfrmd: what the command has left:\n{}", plain(&report));
            FOUND
        }
        Err(error) => {
            eprintln!("xfrmd: what the command has left cannot be told: {error:#}");
            FAILED
        }
    }
}

fn states(address: &Address<'_>) -> Result<Vec<Looked>> {
    let mut statistics = client::statistics(address)?;
    let namespaces = statistics.get_mut("namespaces").map(Value::take);
    let Some(Value::Array(namespaces)) = namespaces else {
        bail!("the daemon does not say which namespaces it has");
    };
    let mut looked = Vec::new();
    for known in namespaces {
        let cookie = known.get("cookie").and_then(Value::as_u64).unwrap_or(0);
        if let Some(state) = client::state(address, cookie)? {
            let known = Some(known);
            looked.push(Looked { known, state });
        }
    }
    Ok(looked)
}

fn report(looked: &[Looked], scope: &Scope) -> Value {
    let namespaces = looked.iter().map(|it| namespace(it, scope));
    json!({ "namespaces": namespaces.collect::<Vec<_>>() })
}

fn namespace(looked: &Looked, scope: &Scope) -> Value {
    let known = |name: &str| looked.known.as_ref().map(|known| &known[name]);
    let state = &looked.state;
    json!({
        "cookie": known("cookie"),
        "users": known("users"),
        "states": state.sas.len(),
        "policies": state.policies.len(),
        "findings": findings(state, scope).iter().map(described).collect::<Vec<_>>(),
    })
}

fn described(finding: &Finding<'_>) -> Value {
    let (name, what, about) = match finding.subject {
        Subject::Sa(sa) => {
            let [source, destination] = sa.addresses();
            let id = &sa.info.id;
            let about = json!({
                "source": source.to_string(),
                "destination": destination.to_string(),
                "protocol": id.proto,
                "spi": id.spi.get(),
                "reqid": sa.info.reqid,
                "mark": sa.mark.v,
                "mask": sa.mark.m,
                "if_id": sa.if_id,
            });
            ("sa", sa.to_string(), about)
        }
        Subject::Policy(policy) => {
            let [source, destination] = policy.prefixes();
            let about = json!({
                "direction": policy.direction_name(),
                "source": source,
                "destination": destination,
                "protocol": policy.info.sel.proto,
                "priority": policy.info.priority,
                "index": policy.info.index,
                "mark": policy.mark.v,
                "mask": policy.mark.m,
                "if_id": policy.if_id,
            });
            ("policy", policy.to_string(), about)
        }
    };
    json!({ "kind": finding.kind.name(), "what": what, "why": finding.why, name: about })
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

/// All findings of a report.
fn count(report: &Value) -> usize {
    let namespaces = list(report, "namespaces").iter();
    namespaces.map(|it| list(it, "findings").len()).sum()
}

/// A report for people.
fn plain(report: &Value) -> String {
    let mut out = String::new();
    for namespace in list(report, "namespaces") {
        let found = list(namespace, "findings");
        out += &match namespace["cookie"].as_u64() {
            Some(cookie) => format!("namespace {cookie}, {} users", namespace["users"]),
            None => "the kernel's own".to_owned(),
        };
        let (states, policies) = (&namespace["states"], &namespace["policies"]);
        out += &format!(": {states} states, {policies} policies, ");
        out += &match found.len() {
            0 => "nothing found\n".to_owned(),
            1 => "1 finding\n".to_owned(),
            many => format!("{many} findings\n"),
        };
        for finding in found {
            let text = |name: &str| finding[name].as_str().unwrap_or_default();
            let (kind, what, why) = (text("kind"), text("what"), text("why"));
            out += &format!("  {kind}: {what}: {why}\n");
        }
    }
    if out.is_empty() {
        out += "nobody has configured anything\n";
    }
    out
}

/// The kernel's own state, where no request of ours is answered by a daemon.
fn host_state() -> Result<State> {
    if variable(ENV_CONTROL).is_some() {
        bail!("{ENV_CONTROL} is set: programs here reach xfrmd, not the kernel");
    }
    let mut dumps = dump(XFRM_MSG_GETSA)?;
    dumps.extend(dump(XFRM_MSG_GETPOLICY)?);
    let now = wall_clock();
    Ok(State::read(&dumps, now)?)
}

/// The messages of a dump; again if the tables have changed under it.
fn dump(kind: u16) -> Result<Vec<u8>> {
    for _ in 0..ATTEMPTS {
        match dump_once(kind) {
            Ok(Some(messages)) => return Ok(messages),
            Ok(None) => {}
            Err(error) => return Err(error).context("asking the kernel for its SAs and policies"),
        }
    }
    bail!("the kernel's tables change faster than they can be read");
}

fn dump_once(kind: u16) -> io::Result<Option<Vec<u8>>> {
    let fd = host::netlink_socket(libc::NETLINK_XFRM)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    let request = NlMsgHdr {
        len: u32::try_from(NLMSG_HDRLEN).unwrap_or(0),
        kind,
        flags: NLM_F_REQUEST | NLM_F_DUMP,
        seq: 1,
        pid: 0,
    };
    send(fd.as_raw_fd(), request.as_bytes(), MsgFlags::empty())?;
    let mut messages = Vec::new();
    let mut buffer = vec![0; DUMP_BYTES];
    loop {
        let len = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC)?;
        let datagram = buffer.get(..len);
        let datagram = datagram.ok_or(io::Error::from(io::ErrorKind::InvalidData))?;
        let header = NlMsgHdr::read(datagram).unwrap_or_default();
        if header.flags & NLM_F_DUMP_INTR != 0 {
            return Ok(None);
        }
        match header.kind {
            NLMSG_DONE => return Ok(Some(messages)),
            NLMSG_ERROR => {
                let code = datagram.get(NLMSG_HDRLEN..).and_then(<[u8]>::first_chunk);
                let code = code.map_or(-libc::EIO, |code| i32::from_ne_bytes(*code));
                return Err(io::Error::from_raw_os_error(-code));
            }
            _ => messages.extend_from_slice(datagram),
        }
    }
}
