//! Asking a running daemon, as `xfrmd stat` and `xfrmd env` do.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket,
};
use serde_json::Value;
use xfrm_proto::control::{Address, Answer, Request, VERSION};

/// The daemon's statistics.
pub(crate) fn statistics(address: &Address<'_>) -> Result<Value> {
    let connection = reach(address).with_context(|| {
        format!(
            "no daemon at {}: start one with `xfrmd`, or a private one with `xfrmd run -- COMMAND`",
            String::from_utf8_lossy(address.path)
        )
    })?;
    let token = address.secret.map_or([0; 16], |secret| secret.token);
    let hello = Request::Hello {
        version: VERSION,
        token,
    };
    let asked = ask(&connection, &hello).and_then(|_| ask(&connection, &Request::Stat));
    Ok(serde_json::from_slice(
        &asked.context("asking the daemon")?,
    )?)
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

fn ask(connection: &OwnedFd, request: &Request) -> io::Result<Vec<u8>> {
    send(
        connection.as_raw_fd(),
        &request.encode(),
        MsgFlags::MSG_NOSIGNAL,
    )?;
    let mut buffer = vec![0; 1 << 20];
    let len = recv(connection.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    let frame = buffer.get(..len).unwrap_or_default();
    let (answer, payload) =
        Answer::decode(frame).ok_or(io::Error::from(io::ErrorKind::UnexpectedEof))?;
    match i32::try_from(answer.errno) {
        Ok(0) => Ok(payload.to_vec()),
        Ok(errno) => Err(io::Error::from_raw_os_error(errno)),
        Err(_) => Err(io::ErrorKind::InvalidData.into()),
    }
}
