//! What is sent through each carrier, and how fast it arrives.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use dataplane::io::PacketIo as _;
use dataplane::io::raw::Raw;
use dataplane::packet::{Family, PacketBuf, ip4};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use super::net::{Pair, WIRE};
use crate::stopwatch::median;

const WAIT: Duration = Duration::from_secs(10);
/// Not measured, so that windows are open.
const LEAD: Duration = Duration::from_millis(300);
const DATAGRAM_BYTES: usize = 1400;
/// Datagrams on their way at most: what is measured is what arrives.
const MOST_UNDER_WAY: u64 = 256;

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn now() -> Instant {
    Instant::now()
}

/// A TCP stream without bytes for so long is looked at.
pub(crate) const PAUSE: Duration = Duration::from_secs(1);

/// How a TCP stream went.
pub(crate) struct Stream {
    /// Gbit/s once windows were open.
    pub(crate) rate: f64,
    /// Bytes of all of it.
    pub(crate) bytes: u64,
    /// The longest time in which nothing came.
    pub(crate) pause: Duration,
}

/// One TCP stream.
pub(crate) fn tcp(pair: &Pair, to: IpAddr, time: Duration) -> Result<Stream> {
    tcp_watched(pair, to, time, &|| ())
}

/// [`tcp`]; `paused` looks at what is the matter when nothing has come for [`PAUSE`].
pub(crate) fn tcp_watched(
    pair: &Pair,
    to: IpAddr,
    time: Duration,
    paused: &(dyn Fn() + Sync),
) -> Result<Stream> {
    let [a, b] = &pair.ends;
    let listener = b.inside(|| Ok(TcpListener::bind((to, 0))?))?;
    let target = listener.local_addr()?;
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            a.inside(|| {
                let mut stream = TcpStream::connect_timeout(&target, WAIT)?;
                stream.set_write_timeout(Some(WAIT))?;
                let bytes = vec![7; 256 << 10];
                // Until the other end has had enough.
                while stream.write_all(&bytes).is_ok() {}
                Ok(())
            })
        });
        let measured = receive(&listener, time, paused);
        let sent = sender.join().map_err(|_| anyhow::anyhow!("a panic"))?;
        sent.context("sending")?;
        measured
    })
}

fn receive(listener: &TcpListener, time: Duration, paused: &dyn Fn()) -> Result<Stream> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(PAUSE))?;
    let mut buffer = vec![0; 256 << 10];
    let begin = now();
    let (mut last, mut pause) = (begin, Duration::ZERO);
    let mut told = false;
    let mut read = || loop {
        match stream.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock && last.elapsed() < WAIT => {
                if !std::mem::replace(&mut told, true) {
                    paused();
                }
            }
            other => {
                let len = other?;
                anyhow::ensure!(len > 0, "the sender has ended");
                let time_now = now();
                pause = pause.max(time_now - last);
                last = time_now;
                return Ok((u64::try_from(len)?, time_now));
            }
        }
    };
    let mut lead = 0;
    let begin = loop {
        let (len, time_now) = read()?;
        lead += len;
        if time_now - begin >= LEAD {
            break time_now;
        }
    };
    let mut bytes = 0;
    loop {
        let (len, time_now) = read()?;
        bytes += len;
        let elapsed = time_now - begin;
        if elapsed >= time {
            return Ok(Stream {
                rate: gbits(bytes, elapsed),
                bytes: lead + bytes,
                pause,
            });
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn gbits(bytes: u64, time: Duration) -> f64 {
    bytes as f64 * 8.0 / time.as_secs_f64() / 1e9
}

/// Gbit/s of UDP payload, 1,400 bytes a datagram and a call.
pub(crate) fn udp(pair: &Pair, to: IpAddr, time: Duration) -> Result<f64> {
    let [a, b] = &pair.ends;
    let receiver = b.inside(|| Ok(UdpSocket::bind((to, 0))?))?;
    receiver.set_read_timeout(Some(Duration::from_millis(200)))?;
    let target = receiver.local_addr()?;
    let (received, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            a.inside(|| {
                let socket = UdpSocket::bind((unspecified(to), 0))?;
                let bytes = [7; DATAGRAM_BYTES];
                let (mut sent, mut lost) = (0_u64, 0_u64);
                let mut waiting = None;
                while !done.load(Ordering::Relaxed) {
                    let under_way = sent - lost - received.load(Ordering::Relaxed).min(sent - lost);
                    if under_way < MOST_UNDER_WAY {
                        waiting = None;
                        // It may be too long until the MTU is known.
                        if socket.send_to(&bytes, target).is_ok() {
                            sent += 1;
                        }
                    } else if now() - *waiting.get_or_insert_with(now) > Duration::from_millis(20) {
                        lost += under_way;
                    } else {
                        std::thread::yield_now();
                    }
                }
                Ok(())
            })
        });
        let measured = count(&receiver, &received, time);
        done.store(true, Ordering::Relaxed);
        let sent = sender.join().map_err(|_| anyhow::anyhow!("a panic"))?;
        sent.context("sending")?;
        measured
    })
}

fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn count(receiver: &UdpSocket, received: &AtomicU64, time: Duration) -> Result<f64> {
    let mut buffer = [0; 2000];
    let start = now();
    let mut begin = None;
    let mut bytes = 0_u64;
    loop {
        if let Ok(len) = receiver.recv(&mut buffer) {
            received.fetch_add(1, Ordering::Relaxed);
            bytes += u64::try_from(len)?;
        }
        let time_now = now();
        match begin {
            None if time_now - start >= LEAD => {
                begin = Some(time_now);
                bytes = 0;
            }
            Some(begin) if time_now - begin >= time => return Ok(gbits(bytes, time_now - begin)),
            _ => {}
        }
    }
}

/// What strangers send in a second while [`tcp`] is measured.
const STRANGE_A_SECOND: u64 = 5000;

/// [`tcp`] while somebody sends garbage for an SA that is there, for SPIs that nobody has, and
/// fragments that never complete, from one end's address to the other's.
pub(crate) fn tcp_among_strangers(pair: &Pair, to: IpAddr, time: Duration) -> Result<f64> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let [a, _] = &pair.ends;
        let strangers = scope.spawn(|| a.inside(|| disturb(&done)));
        let measured = tcp(pair, to, time);
        done.store(true, Ordering::Relaxed);
        let sent = strangers.join().map_err(|_| anyhow::anyhow!("a panic"))??;
        anyhow::ensure!(sent > 1000, "only {sent} strange packets");
        Ok(measured?.rate)
    })
}

/// How many packets were sent.
fn disturb(done: &AtomicBool) -> Result<u64> {
    const ESP: u8 = 50;
    const MORE_FRAGMENTS: u8 = 0x20;
    let mut raw = Raw::open(Family::V4, 255, 0)?;
    let ends: Vec<Ipv4Addr> = WIRE.iter().map(|it| it.parse()).collect::<Result<_, _>>()?;
    let mut packet = PacketBuf::with_capacity(1500);
    let begin = now();
    let mut sent = 0_u64;
    while !done.load(Ordering::Relaxed) {
        let due = u64::try_from((now() - begin).as_micros())? * STRANGE_A_SECOND / 1_000_000;
        if sent >= due {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        let [.., a, b, c, d] = sent.to_be_bytes();
        // The first of the SAs that receive here, or any other.
        let spi = match sent % 3 {
            0 => [0x10, 0, 0, 0],
            _ => [0x70, b, c, d],
        };
        let fragment = if sent % 3 == 2 { MORE_FRAGMENTS } else { 0 };
        let mut bytes = vec![0x45, 0, 0, 0, c, d, fragment, 0, 64, ESP, 0, 0];
        for end in &ends {
            bytes.extend(end.octets());
        }
        bytes.extend(spi);
        bytes.extend([0x70, a, c, d]);
        bytes.resize(20 + 8 + 1000, d);
        packet.fill(&bytes);
        ip4::finish(&mut packet).context("a header")?;
        raw.send(std::slice::from_ref(&packet));
        sent += 1;
    }
    Ok(sent)
}

/// Microseconds of an echo request's round trip, answered by the other end's kernel.
pub(crate) fn ping(pair: &Pair, to: IpAddr, count: usize) -> Result<f64> {
    let [a, _] = &pair.ends;
    a.inside(|| {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(
            AddressFamily::Inet,
            SockType::Raw,
            flags,
            SockProtocol::Icmp,
        )?;
        let socket = UdpSocket::from(fd);
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        let mut times = Vec::new();
        let mut buffer = [0; 200];
        for number in 0..count + count / 10 {
            let [.., high, low] = number.to_be_bytes();
            let mut request = [8, 0, 0, 0, 0x12, 0x34, high, low, 1, 2, 3, 4, 5, 6, 7, 8];
            let check = dataplane::packet::checksum::checksum(&request).to_be_bytes();
            request[2..4].copy_from_slice(&check);
            let begin = now();
            socket.send_to(&request, SocketAddr::new(to, 0))?;
            while let Ok((len, _)) = socket.recv_from(&mut buffer) {
                let reply = buffer.get(20..len).unwrap_or_default();
                if reply.first() == Some(&0) && reply.get(4..8) == request.get(4..8) {
                    times.push((now() - begin).as_secs_f64() * 1e6);
                    break;
                }
            }
        }
        anyhow::ensure!(times.len() >= count, "only {} answers", times.len());
        let measured = times.len() - count;
        Ok(median(times.get_mut(measured..).unwrap_or_default()))
    })
}
