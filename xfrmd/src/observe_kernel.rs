//! `xfrmd record-kernel`: what a command asks the kernel that runs here.
//!
//! An nlmon device shows all netlink messages of its namespace; a packet socket reads it. Both go when the
//! command has ended. Messages are shown before `sendmsg` returns, so that none is missed.

use std::ffi::OsString;
use std::fs::File;
use std::io::{IoSliceMut, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::cmsg_space;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType,
    recvmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeSpec;
use xfrmd::recording::kernel::{Frame, recording};

use crate::attach::netlink::{Messages, NLM_F_ACK, NLM_F_CREATE, Socket};
use crate::driver::host;

/// The protocol, as packet sockets tell it.
const NETLINK_XFRM: u16 = 6;
const DEVICE: &str = "xfrmd-nlmon";
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFF_UP: u32 = 1;
/// Room for messages that have not been read.
const ROOM_BYTES: usize = 256 << 20;
const MOST_BYTES: usize = 1 << 20;
/// How often is looked whether the command has ended.
const LOOK: Duration = Duration::from_millis(50);

/// The device, as long as it is wanted.
struct Device(Socket);

impl Device {
    fn create() -> Result<Self> {
        let rtnetlink = Socket::bound(host::netlink_socket(0)?)?;
        let mut messages = Messages::default();
        messages.push(RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE, |out| {
            out.fixed(&[0; 8]);
            for flags in [IFF_UP; 2] {
                out.fixed(&flags.to_ne_bytes());
            }
            out.text(IFLA_IFNAME, DEVICE);
            out.nest(IFLA_LINKINFO, |out| out.text(IFLA_INFO_KIND, "nlmon"));
        });
        rtnetlink
            .transact(&messages)
            .context("making an nlmon device (modprobe nlmon; CAP_NET_ADMIN)")?;
        Ok(Self(rtnetlink))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let mut messages = Messages::default();
        messages.push(RTM_DELLINK, NLM_F_ACK, |out| {
            out.fixed(&[0; 16]);
            out.text(IFLA_IFNAME, DEVICE);
        });
        let _ = self.0.transact(&messages);
    }
}

/// Records a command; its exit code.
pub(crate) fn record(path: &Path, keys: bool, command: &[OsString]) -> Result<ExitCode> {
    let Some((program, arguments)) = command.split_first() else {
        bail!("no command");
    };
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    let whose = || path.display().to_string();
    let mut file = options.open(path).with_context(whose)?;
    let sees = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )
    .context("a packet socket (CAP_NET_RAW)")?;
    if setsockopt(&sees, sockopt::RcvBufForce, &ROOM_BYTES).is_err() {
        setsockopt(&sees, sockopt::RcvBuf, &ROOM_BYTES)?;
    }
    // As exactly as the kernel has it: whether a timer was due is known by its times.
    setsockopt(&sees, sockopt::ReceiveTimestampns, &true)?;
    let device = Device::create()?;
    let ended = AtomicBool::new(false);
    let (status, frames) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&sees, &ended));
        let status = Command::new(program).args(arguments).status();
        ended.store(true, Ordering::SeqCst);
        (status, reader.join().unwrap_or_default())
    });
    drop(device);
    let status = status.with_context(|| program.to_string_lossy().into_owned())?;
    file.write_all(&recording(&release()?, keys, &frames))
        .with_context(whose)?;
    Ok(exit_code(status).into())
}

/// As shells report it.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or(status.signal().map(|it| 128 + it));
    u8::try_from(code.unwrap_or(1) & 0xff).unwrap_or(1)
}

/// The kernel's, as `--kernel` has it.
fn release() -> Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = text.split(['.', '-', '+', '\n']);
    let (major, minor) = (numbers.next(), numbers.next());
    Ok(format!(
        "{}.{}",
        major.unwrap_or_default(),
        minor.unwrap_or_default()
    ))
}

/// Reads until nothing is left once the command has ended.
fn read(sees: &OwnedFd, ended: &AtomicBool) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut buffer = vec![0; MOST_BYTES];
    let wait = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO);
    loop {
        let is_last = ended.load(Ordering::SeqCst);
        let mut fds = [PollFd::new(sees.as_fd(), PollFlags::POLLIN)];
        let timeout = if is_last { PollTimeout::ZERO } else { wait };
        if poll(&mut fds, timeout) == Ok(0) {
            if is_last {
                return frames;
            }
            continue;
        }
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let mut control = cmsg_space!(TimeSpec);
        let fd = sees.as_raw_fd();
        let Ok(seen) = recvmsg::<LinkAddr>(fd, &mut parts, Some(&mut control), MsgFlags::empty())
        else {
            continue;
        };
        let protocol = seen.address.map(|from| u16::from_be(from.protocol()));
        if protocol != Some(NETLINK_XFRM) {
            continue;
        }
        let len = seen.bytes;
        let mut told = seen.cmsgs().into_iter().flatten();
        let nanos = told.find_map(|it| match it {
            ControlMessageOwned::ScmTimestampns(at) => Some(nanos(at)),
            _ => None,
        });
        frames.push(Frame {
            nanos: nanos.unwrap_or(0),
            bytes: buffer.get(..len).unwrap_or_default().to_vec(),
        });
    }
}

fn nanos(at: TimeSpec) -> u64 {
    let nanos = i128::from(at.tv_sec()) * 1_000_000_000 + i128::from(at.tv_nsec());
    u64::try_from(nanos).unwrap_or(0)
}
