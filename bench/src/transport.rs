//! The bare transport: what a request costs when the daemon does nothing.
//!
//! The system calls are those of the shim and the daemon (a request and an
//! answer over `SOCK_SEQPACKET`, a reply through `NETLINK_USERSOCK`), with a
//! canned acknowledgement in place of an emulator. The two ends are processes,
//! as client and daemon are: threads would spare the change of address space.
#![allow(unsafe_code, reason = "fork")]

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname,
    recv, send, sendto, socket, socketpair,
};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use crate::stopwatch::{median, time};

fn user_socket() -> Result<(OwnedFd, NetlinkAddr)> {
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkUserSock,
    )
    .context("a NETLINK_USERSOCK socket")?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    let address = getsockname(fd.as_raw_fd())?;
    Ok((fd, address))
}

/// Nanoseconds of one round trip with `request_bytes` out and an acknowledgement back.
pub(crate) fn round_trip(request_bytes: usize, count: u32) -> Result<f64> {
    let (client_net, client_address) = user_socket()?;
    let (client, daemon) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    // SAFETY: this process has one thread; the child serves and ends.
    let server = match unsafe { fork() }? {
        ForkResult::Child => {
            drop(client);
            let ended = serve(&daemon, client_address);
            std::process::exit(i32::from(ended.is_err()));
        }
        ForkResult::Parent { child } => child,
    };
    drop(daemon);
    let request = vec![0_u8; request_bytes];
    let mut buffer = [0_u8; 4096];
    let mut samples = Vec::new();
    for _ in 0..7 {
        let mut broken = false;
        let nanos = time(|| {
            for _ in 0..count {
                broken |= send(client.as_raw_fd(), &request, MsgFlags::empty()).is_err()
                    || recv(client.as_raw_fd(), &mut buffer, MsgFlags::empty()).is_err()
                    || recv(client_net.as_raw_fd(), &mut buffer, MsgFlags::empty()).is_err();
            }
        });
        if broken {
            bail!("the bare transport failed");
        }
        samples.push(nanos / f64::from(count));
    }
    drop(client);
    if !matches!(waitpid(server, None)?, WaitStatus::Exited(_, 0)) {
        bail!("the bare daemon failed");
    }
    Ok(median(&mut samples))
}

fn serve(control: &OwnedFd, client: NetlinkAddr) -> Result<()> {
    let (net, _) = user_socket()?;
    let acknowledgement = [0_u8; 36];
    let mut buffer = vec![0_u8; 1 << 16];
    loop {
        if recv(control.as_raw_fd(), &mut buffer, MsgFlags::empty())? == 0 {
            return Ok(());
        }
        sendto(
            net.as_raw_fd(),
            &acknowledgement,
            &client,
            MsgFlags::empty(),
        )?;
        send(
            control.as_raw_fd(),
            &acknowledgement[..16],
            MsgFlags::empty(),
        )?;
    }
}
