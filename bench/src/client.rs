//! A NETLINK_XFRM client that measures: the same program against the host's
//! kernel (in a namespace of its own) and, under `xfrmd run`, against us.
//!
//! It speaks through libc's symbols, as every client does, so that the shim
//! serves it. Results are lines `NAME NANOSECONDS` on standard output.
#![allow(unsafe_code, reason = "raw sockets, as a C client uses them")]

use std::io;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use xfrm_proto::consts::*;
use xfrm_proto::reply::messages;

use crate::messages::{self as msg, Shape};
use crate::stopwatch::{median, ns};

const AF_NETLINK: i32 = 16;
const NETLINK_XFRM: i32 = 6;

unsafe extern "C" {
    fn socket(domain: i32, kind: i32, protocol: i32) -> i32;
    fn send(fd: i32, buf: *const u8, len: usize, flags: i32) -> isize;
    fn recv(fd: i32, buf: *mut u8, len: usize, flags: i32) -> isize;
    fn setsockopt(fd: i32, level: i32, name: i32, value: *const i32, len: u32) -> i32;
    fn bind(fd: i32, address: *const [u16; 6], len: u32) -> i32;
}

/// One NETLINK_XFRM socket.
pub(crate) struct Client {
    fd: i32,
    buffer: Vec<u8>,
}

impl Client {
    pub(crate) fn open() -> Result<Self> {
        const SOL_SOCKET: i32 = 1;
        const SO_SNDBUFFORCE: i32 = 32;
        const SO_RCVBUFFORCE: i32 = 33;
        // SAFETY: no pointers.
        let fd = unsafe { socket(AF_NETLINK, 3, NETLINK_XFRM) };
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("a NETLINK_XFRM socket");
        }
        for option in [SO_SNDBUFFORCE, SO_RCVBUFFORCE] {
            let bytes = 8 << 20;
            // SAFETY: `bytes` is four bytes that live through the call.
            unsafe { setsockopt(fd, SOL_SOCKET, option, &raw const bytes, 4) };
        }
        Ok(Self {
            fd,
            buffer: vec![0; 1 << 16],
        })
    }

    /// Hears what is multicast to a group.
    pub(crate) fn join(&self, group: u32) -> Result<()> {
        const SOL_NETLINK: i32 = 270;
        const NETLINK_ADD_MEMBERSHIP: i32 = 1;
        // `sockaddr_nl` of any port: a socket without one is told nothing.
        let address = [AF_NETLINK.try_into()?, 0, 0, 0, 0, 0];
        // SAFETY: `address` is twelve bytes that live through the call.
        if unsafe { bind(self.fd, &raw const address, 12) } < 0 {
            return Err(io::Error::last_os_error()).context("a port");
        }
        let group = i32::try_from(group)?;
        // SAFETY: `group` is four bytes that live through the call.
        let joined = unsafe {
            setsockopt(
                self.fd,
                SOL_NETLINK,
                NETLINK_ADD_MEMBERSHIP,
                &raw const group,
                4,
            )
        };
        match joined {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()).context("a multicast group"),
        }
    }

    pub(crate) fn send(&self, datagram: &[u8]) -> Result<()> {
        // SAFETY: pointer and length are the slice's.
        let sent = unsafe { send(self.fd, datagram.as_ptr(), datagram.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error()).context("send");
        }
        Ok(())
    }

    pub(crate) fn recv(&mut self) -> Result<&[u8]> {
        // SAFETY: pointer and length are the buffer's.
        let got = unsafe { recv(self.fd, self.buffer.as_mut_ptr(), self.buffer.len(), 0) };
        let got = usize::try_from(got)
            .map_err(|_| io::Error::last_os_error())
            .context("recv")?;
        Ok(self.buffer.get(..got).unwrap_or_default())
    }

    /// Receives until an acknowledgement or the end of a dump; an error is an error.
    pub(crate) fn until_answered(&mut self) -> Result<usize> {
        let mut others = 0;
        loop {
            let mut end = None;
            let datagram = self.recv()?;
            for (header, message) in messages(datagram) {
                match header.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        let errno = message.get(NLMSG_HDRLEN..).and_then(|b| b.first_chunk());
                        end = Some(errno.copied().map_or(0, i32::from_ne_bytes));
                    }
                    _ => others += 1,
                }
            }
            match end {
                Some(0) => return Ok(others),
                Some(errno) => bail!("answered with errno {}", -errno),
                None => {}
            }
        }
    }

    /// Sends `count` requests, `per_datagram` at a time, the last one with an ACK.
    pub(crate) fn load(
        &mut self,
        range: std::ops::Range<u32>,
        per_datagram: u32,
        put: impl Fn(&mut Vec<u8>, u16, u32),
    ) -> Result<()> {
        let mut datagram = Vec::new();
        let mut start = range.start;
        while start < range.end {
            let end = (start + per_datagram).min(range.end);
            datagram.clear();
            for i in start..end {
                put(&mut datagram, if i + 1 == end { NLM_F_ACK } else { 0 }, i);
            }
            self.send(&datagram)?;
            self.until_answered()?;
            start = end;
        }
        Ok(())
    }
}

pub(crate) fn report(name: &str, nanos: f64) {
    println!("{name} {nanos:.1}");
}

fn timed(count: u32, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
    let start = Instant::now();
    work()?;
    Ok(ns(start.elapsed()) / f64::from(count))
}

/// Runs the measurement `name`.
pub(crate) fn run(name: &str, args: &[String]) -> Result<()> {
    let number = |i: usize| args.get(i).and_then(|a| a.parse::<u32>().ok());
    if name == "bare" {
        let bytes = args.first().and_then(|a| a.parse().ok()).unwrap_or(36);
        return crate::sockets::bare(bytes, number(1).unwrap_or(1000));
    }
    let mut client = Client::open()?;
    match name {
        "round-trip" => round_trip(&mut client, number(0).unwrap_or(20_000)),
        "datagrams" => datagrams(
            &mut client,
            args.first().is_none_or(|a| a != "policies-only"),
        ),
        "policies-at" => {
            let shape = args
                .first()
                .and_then(|a| Shape::by_name(a))
                .context("a shape")?;
            policies_at(
                &mut client,
                shape,
                number(1).unwrap_or(1000),
                number(2).unwrap_or(1000),
            )
        }
        "alloc-spi-at" => alloc_spi_at(&mut client, number(0).unwrap_or(1000)),
        "rekey" => crate::hours::rekey(&mut client, args),
        "load-sas" => load_sas(&mut client, number(0).unwrap_or(1_000_000)),
        _ => bail!("no measurement {name:?}"),
    }
}

fn round_trip(client: &mut Client, count: u32) -> Result<()> {
    let mut request = Vec::new();
    msg::put_policy(&mut request, XFRM_MSG_UPDPOLICY, NLM_F_ACK, Shape::Pairs, 1);
    let mut samples = Vec::new();
    for _ in 0..7 {
        samples.push(timed(count, || {
            for _ in 0..count {
                client.send(&request)?;
                client.recv()?;
            }
            Ok(())
        })?);
    }
    report("ack", median(&mut samples));
    request.clear();
    msg::put_sad_info(&mut request, 0, 1);
    let mut samples = Vec::new();
    for _ in 0..7 {
        samples.push(timed(count, || {
            for _ in 0..count {
                client.send(&request)?;
                client.recv()?;
            }
            Ok(())
        })?);
    }
    report("get", median(&mut samples));
    request.clear();
    msg::put_policy(&mut request, XFRM_MSG_UPDPOLICY, 0, Shape::Pairs, 1);
    let mut samples = Vec::new();
    for _ in 0..7 {
        samples.push(timed(count, || {
            (0..count).try_for_each(|_| client.send(&request))
        })?);
    }
    report("send", median(&mut samples));
    Ok(())
}

fn datagrams(client: &mut Client, with_sas: bool) -> Result<()> {
    const COUNT: u32 = 20_000;
    let mut flush = Vec::new();
    let mut samples: [Vec<f64>; 3] = Default::default();
    for _ in 0..5 {
        let [policy, new_sa, get_sa] = &mut samples;
        policy.push(timed(COUNT, || {
            client.load(0..COUNT, 100, |out, flags, i| {
                msg::put_policy(out, XFRM_MSG_NEWPOLICY, flags, Shape::Pairs, i);
            })
        })?);
        flush.clear();
        msg::put_flush(&mut flush, XFRM_MSG_FLUSHPOLICY);
        client.send(&flush)?;
        client.until_answered()?;
        if with_sas {
            new_sa.push(timed(COUNT, || client.load(0..COUNT, 100, msg::put_sa))?);
            get_sa.push(timed(COUNT, || {
                client.load(0..COUNT, 50, |out, flags, i| {
                    msg::put_sa_id(out, XFRM_MSG_GETSA, flags, i);
                })
            })?);
            flush.clear();
            msg::put_flush(&mut flush, XFRM_MSG_FLUSHSA);
            client.send(&flush)?;
            client.until_answered()?;
        }
    }
    for (name, samples) in ["NEWPOLICY", "NEWSA", "GETSA"]
        .into_iter()
        .zip(&mut samples)
    {
        if !samples.is_empty() {
            report(name, median(samples));
        }
    }
    Ok(())
}

/// Loads `base` policies, then times `count` of each request among them.
fn policies_at(client: &mut Client, shape: Shape, base: u32, count: u32) -> Result<()> {
    let per_datagram = 100;
    client.load(0..base, per_datagram, |out, flags, i| {
        msg::put_policy(out, XFRM_MSG_NEWPOLICY, flags, shape, i);
    })?;
    let some = |i: u32| msg::scramble(i) % base;
    let new = timed(count, || {
        client.load(base..base + count, per_datagram, |out, flags, i| {
            msg::put_policy(out, XFRM_MSG_NEWPOLICY, flags, shape, i);
        })
    })?;
    report("NEWPOLICY", new);
    let update = timed(count, || {
        client.load(0..count, per_datagram, |out, flags, i| {
            msg::put_policy(out, XFRM_MSG_UPDPOLICY, flags, shape, some(i));
        })
    })?;
    report("UPDPOLICY", update);
    let delete = timed(count, || {
        client.load(base..base + count, per_datagram, |out, flags, i| {
            msg::put_policy_id(out, XFRM_MSG_DELPOLICY, flags, shape, i);
        })
    })?;
    report("DELPOLICY", delete);
    Ok(())
}

fn alloc_spi_at(client: &mut Client, base: u32) -> Result<()> {
    const COUNT: u32 = 500;
    client.load(0..base, 20, msg::put_alloc_spi)?;
    let nanos = timed(COUNT, || {
        client.load(base..base + COUNT, 20, msg::put_alloc_spi)
    })?;
    report("ALLOCSPI", nanos);
    Ok(())
}

fn load_sas(client: &mut Client, count: u32) -> Result<()> {
    let before = daemon_rss_kib()?;
    let nanos = timed(1, || client.load(0..count, 200, msg::put_sa))?;
    report("load", nanos);
    let loaded = daemon_rss_kib()?;
    report(
        "bytes-per-sa",
        (loaded - before) * 1024.0 / f64::from(count),
    );
    let mut request = Vec::new();
    msg::put_dump(&mut request, XFRM_MSG_GETSA);
    let mut seen = 0;
    let nanos = timed(1, || {
        client.send(&request)?;
        seen = client.until_answered()?;
        Ok(())
    })?;
    report("dump", nanos);
    report("dump-growth-mib", (daemon_rss_kib()? - loaded) / 1024.0);
    if seen != usize::try_from(count)? {
        bail!("the dump told of {seen} SAs, not {count}");
    }
    Ok(())
}

/// Resident memory of the daemon: under `xfrmd run` our parent's child is its keeper, whose child it
/// is itself.
fn daemon_rss_kib() -> Result<f64> {
    let children = |pid: u32| -> Result<Vec<u32>> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let pids = text.split_ascii_whitespace().map(str::parse);
        Ok(pids.collect::<Result<_, _>>()?)
    };
    let mut daemons = Vec::new();
    for keeper in children(std::os::unix::process::parent_id())? {
        daemons.extend(children(keeper)?);
    }
    let is_xfrmd = |pid: &&u32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "xfrmd\n")
    };
    let daemon = daemons.iter().find(is_xfrmd).context("the daemon")?;
    let status = std::fs::read_to_string(format!("/proc/{daemon}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
