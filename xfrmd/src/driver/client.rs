//! Asking a running daemon, as `xfrmd stat`, `explain`, `check`, `capture` and `env` do.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result, anyhow, bail};
use dataplane::WallSecs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, getsockopt, send, socket,
    sockopt,
};
use nix::sys::time::TimeValLike;
use serde_json::Value;
use xfrm_proto::control::{Address, Answer, LARGEST_FRAME, Request, VERSION};
use xfrmd::check::State;

use super::clock::order::Order;
use super::host;

/// The daemon's statistics.
pub(crate) fn statistics(address: &Address<'_>) -> Result<Value> {
    let answer = introduced(address, &Request::Stat, &[]).context("asking the daemon")?;
    Ok(serde_json::from_slice(&answer)?)
}

/// Has the clock moved; waits until it has been.
pub(crate) fn move_clock(address: &Address<'_>, order: Order) -> Result<Value> {
    let text = order.to_json().to_string();
    let answer = introduced(address, &Request::Move, text.as_bytes());
    Ok(serde_json::from_slice(
        &answer.context("asking the daemon")?,
    )?)
}

/// A connection to the daemon of this very process, for another thread.
pub(crate) struct Inside(OwnedFd);

impl Inside {
    /// Introduces the connection, which the daemon has at the other end.
    pub(super) fn new(connection: OwnedFd) -> Self {
        Self(connection)
    }

    /// The daemon's statistics.
    pub(crate) fn statistics(&self) -> io::Result<Value> {
        let answer = ask(&self.0, &Request::Stat, &[])?;
        Ok(serde_json::from_slice(&answer)?)
    }
}

/// A connection that becomes readable when a time of the virtual clock has come.
pub(super) struct Alarm(OwnedFd);

impl Alarm {
    /// One that is not set.
    pub(super) fn new(address: &Address<'_>) -> io::Result<Self> {
        introduction(address).map(Self)
    }

    /// Has it tell of that boot time, in nanoseconds.
    pub(super) fn set(&self, due: u64) -> io::Result<()> {
        say(&self.0, &Request::Wait { due }, &[])
    }

    /// Takes what it has told; false if the daemon is gone.
    pub(super) fn hear(&self) -> bool {
        let mut frame = [0; 64];
        loop {
            match host::receive_frame(self.0.as_fd(), &mut frame) {
                Ok((0, _)) => return false,
                Ok(_) => {}
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
    }

    /// What becomes readable.
    pub(super) fn fd(&self) -> &OwnedFd {
        &self.0
    }
}

/// What would become of a packet in this process's network namespace.
pub(crate) fn explain(address: &Address<'_>, question: &Value) -> Result<Value> {
    let own = host::usersock().and_then(|socket| host::netns_cookie(socket.as_fd()))?;
    let request = Request::Explain { netns: own };
    let answer = introduced(address, &request, question.to_string().as_bytes());
    let answer = answer.map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT) => anyhow!("nobody has configured anything in this network namespace"),
        Some(libc::EINVAL) => anyhow!("that is not an IP packet"),
        _ => anyhow::Error::new(error).context("asking the daemon"),
    })?;
    Ok(serde_json::from_slice(&answer)?)
}

/// SAs and policies of the namespace with that cookie; none if it has ended.
pub(crate) fn state(address: &Address<'_>, netns: u64) -> Result<Option<State>> {
    let answer = match introduced(address, &Request::Snapshot { netns }, &[]) {
        Ok(answer) => answer,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            bail!("only root may see SAs and policies")
        }
        Err(error) => return Err(error).context("asking the daemon"),
    };
    let (now, messages) = answer.split_first_chunk().context("a short answer")?;
    let state = State::read(messages, WallSecs(u64::from_ne_bytes(*now)))?;
    Ok(Some(state))
}

/// What is to go wrong, after something of it was changed.
pub(crate) fn faults(address: &Address<'_>, wanted: &Value) -> Result<Value> {
    let answer = introduced(address, &Request::Faults, wanted.to_string().as_bytes());
    let answer = answer.map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM) => anyhow!("only root may have things go wrong"),
        Some(libc::EEXIST) => anyhow!("there is a fault of that name"),
        Some(libc::ENOENT) => anyhow!("there is no fault of that name"),
        _ => anyhow::Error::new(error).context("asking the daemon"),
    })?;
    Ok(serde_json::from_slice(&answer)?)
}

/// Where packets of this process's network namespace can be read.
pub(crate) fn capture(address: &Address<'_>, wanted: &Value) -> Result<OwnedFd> {
    let own = host::usersock().and_then(|socket| host::netns_cookie(socket.as_fd()))?;
    let request = Request::Capture { netns: own };
    let asked = introduction(address).and_then(|connection| {
        say(&connection, &request, wanted.to_string().as_bytes())?;
        let (_, packets) = hear(&connection)?;
        packets.ok_or(io::ErrorKind::UnexpectedEof.into())
    });
    asked.map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT) => anyhow!("nobody has configured anything in this network namespace"),
        Some(libc::EOPNOTSUPP) => anyhow!("the daemon carries no packets (--packets)"),
        Some(libc::EPERM) => anyhow!("only root may see packets"),
        Some(libc::EBUSY) => anyhow!("there are too many captures already"),
        _ => anyhow::Error::new(error).context("asking the daemon"),
    })
}

/// Asks one thing on a connection of its own.
fn introduced(address: &Address<'_>, request: &Request, payload: &[u8]) -> io::Result<Vec<u8>> {
    ask(&introduction(address)?, request, payload)
}

/// A connection on which anything can be asked.
fn introduction(address: &Address<'_>) -> io::Result<OwnedFd> {
    let connection = reach(address).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!(
                "no daemon at {}: start one with `xfrmd`, or a private one with \
                 `xfrmd run -- COMMAND`: {error}",
                String::from_utf8_lossy(address.path)
            ),
        )
    })?;
    let token = address.secret.map_or([0; 16], |secret| secret.token);
    let hello = Request::Hello {
        version: VERSION,
        token,
    };
    ask(&connection, &hello, &[])?;
    Ok(connection)
}

fn reach(address: &Address<'_>) -> io::Result<OwnedFd> {
    let mut last = io::Error::from_raw_os_error(libc::ECONNREFUSED);
    let ways = [
        UnixAddr::new(address.path),
        UnixAddr::new_abstract(address.abstract_name),
    ];
    for way in ways {
        let fd = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        match way.and_then(|way| connect(fd.as_raw_fd(), &way)) {
            Ok(()) => return Ok(fd),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

pub(super) fn ask(connection: &OwnedFd, request: &Request, payload: &[u8]) -> io::Result<Vec<u8>> {
    say(connection, request, payload)?;
    let (content, file) = hear(connection)?;
    match file {
        None => Ok(content),
        Some(file) => {
            let mut text = Vec::new();
            File::from(file).read_to_end(&mut text)?;
            Ok(text)
        }
    }
}

fn say(connection: &OwnedFd, request: &Request, payload: &[u8]) -> io::Result<()> {
    let frame = [&request.encode(), payload].concat();
    send(connection.as_raw_fd(), &frame, MsgFlags::MSG_NOSIGNAL)?;
    Ok(())
}

/// An answer's payload and descriptor, or its error.
fn hear(connection: &OwnedFd) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let timeout = getsockopt(connection, sockopt::ReceiveTimeout)?.num_milliseconds();
    let timeout = match i32::try_from(timeout) {
        Ok(0) | Err(_) => PollTimeout::NONE,
        Ok(ms) => PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX),
    };
    let mut fds = [PollFd::new(connection.as_fd(), PollFlags::POLLIN)];
    if poll(&mut fds, timeout)? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut buffer = vec![0; LARGEST_FRAME];
    let (len, [file, _]) = host::receive_frame(connection.as_fd(), &mut buffer)?;
    let frame = buffer.get(..len).unwrap_or_default();
    let (answer, content) =
        Answer::decode(frame).ok_or(io::Error::from(io::ErrorKind::UnexpectedEof))?;
    match i32::try_from(answer.errno) {
        Ok(0) => Ok((content.to_vec(), file)),
        Ok(errno) => Err(io::Error::from_raw_os_error(errno)),
        Err(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}
