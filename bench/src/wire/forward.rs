//! What the input and output of a userspace tunnel cost by themselves: forwarders between a TUN
//! device and the wire that look at nothing and encrypt nothing.
//!
//! They are *opaque*: what the device gives, up to 64 KiB with its virtio header, goes over the wire
//! in pieces of 1,400 bytes as it is, and into the other device. No segmentation, no checksums, no
//! headers per packet: the upper bound of this kind of input and output, which nobody who talks to
//! others can reach. Beside them are forwarders *by packets*, which do what any tunnel has to do
//! but for the cipher and the look-ups: they cut what the device gives into packets with checksums
//! of their own, send each in a datagram or packet of its own, and join them for the other device, with the
//! same code and the same offloads as `xfrmd`.

use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use dataplane::io::PacketIo;
use dataplane::io::bulk::{Bulk, BulkReceiver};
use dataplane::io::raw::Raw;
use dataplane::io::tun::Tun;
use dataplane::packet::buffer::MAX_PACKET;
use dataplane::packet::join::Joiner;
use dataplane::packet::segment::{Segmenter, complete_checksum};
use dataplane::packet::{Family, PacketBuf, ip4};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use xfrm_proto::consts::IPPROTO_UDP;

/// The forwarder's device.
pub(crate) const DEVICE: &str = "fw0";
const PORT: u16 = 7777;
/// Of those by packets.
const PACKETS_PORT: u16 = 7778;
const PIECE_BYTES: u16 = 1400;
/// For experiments (RFC 3692).
const PROTOCOL: u8 = 253;
const ROOM_BYTES: usize = 8 << 20;
const FRAME_BYTES: usize = 1 << 16;
/// In front of the first piece of a frame over raw IP: its length. That piece has an identification.
const LENGTH_BYTES: usize = 4;

fn wait(fd: &impl AsFd) -> Result<()> {
    poll(
        &mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)],
        PollTimeout::NONE,
    )?;
    Ok(())
}

/// Of this program, started again.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let [kind, own, other] = args else {
        bail!("forward KIND OWN OTHER");
    };
    let (own, other): (Ipv4Addr, Ipv4Addr) = (own.parse()?, other.parse()?);
    let tun = Tun::open(DEVICE)?;
    let socket = UdpSocket::bind((own, PORT))?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, sockopt::RcvBufForce, &ROOM_BYTES)?;
    setsockopt(&socket, sockopt::SndBufForce, &ROOM_BYTES)?;
    setsockopt(&socket, sockopt::UdpGroSegment, &true)?;
    println!("ready");
    std::thread::scope(|scope| {
        match kind.as_str() {
            "udp" => {
                let (socket, tun) = (&socket, &tun);
                scope.spawn(move || udp_out(tun, socket, other));
                scope.spawn(move || udp_in(tun, socket));
            }
            "raw" => {
                let (mut out, mut back) = (
                    Raw::open(Family::V4, 255, 0)?,
                    Raw::open(Family::V4, PROTOCOL, 0)?,
                );
                let tun = &tun;
                scope.spawn(move || raw_out(tun, &mut out, own, other));
                scope.spawn(move || raw_in(tun, &mut back));
            }
            "udp-packets" => {
                // A port of its own, beside that of the other kind.
                let bulk = Bulk::open((own, PACKETS_PORT).into(), 0)?;
                let bulk = Arc::new(bulk);
                let header = outer_header(own, other, IPPROTO_UDP);
                let (tun, back) = (&tun, Arc::clone(&bulk));
                scope.spawn(move || {
                    packets_out(tun, &header, |packets| {
                        let mut rest = packets;
                        while let Ok(count @ 1..) = bulk.send(rest) {
                            rest = rest.get(count..).unwrap_or_default();
                        }
                    })
                });
                scope.spawn(move || {
                    packets_in(tun, &mut BulkReceiver::new(back), 28, |it| it.bulk().fd())
                });
            }
            "raw-packets" => {
                let (mut out, mut back) = (
                    Raw::open(Family::V4, 255, 0)?,
                    Raw::open(Family::V4, PROTOCOL, 0)?,
                );
                let header = outer_header(own, other, PROTOCOL);
                let tun = &tun;
                scope.spawn(move || {
                    packets_out(tun, &header, |packets| {
                        out.send(packets);
                    })
                });
                scope.spawn(move || packets_in(tun, &mut back, 20, Raw::fd));
            }
            _ => bail!("udp, raw, udp-packets or raw-packets"),
        }
        let _ = std::io::stdin().lines().count();
        std::process::exit(0);
    })
}

fn udp_out(tun: &Tun, socket: &UdpSocket, to: Ipv4Addr) -> Result<()> {
    let mut frame = vec![0; FRAME_BYTES];
    let to = SockaddrIn::from(SocketAddrV4::new(to, PORT));
    loop {
        let Ok(len) = nix::unistd::read(tun.fd(), &mut frame) else {
            wait(&tun.fd())?;
            continue;
        };
        let parts = [IoSlice::new(frame.get(..len).unwrap_or_default())];
        let gso = [ControlMessage::UdpGsoSegments(&PIECE_BYTES)];
        let gso = if len > usize::from(PIECE_BYTES) {
            &gso[..]
        } else {
            &[]
        };
        let flags = MsgFlags::empty();
        let _ = sendmsg(socket.as_raw_fd(), &parts, gso, flags, Some(&to));
    }
}

fn udp_in(tun: &Tun, socket: &UdpSocket) -> Result<()> {
    let mut frame = vec![0; FRAME_BYTES];
    let mut control = nix::cmsg_space!(i32);
    loop {
        let received = {
            let mut parts = [IoSliceMut::new(&mut frame)];
            let received = recvmsg::<SockaddrIn>(
                socket.as_raw_fd(),
                &mut parts,
                Some(&mut control),
                MsgFlags::MSG_DONTWAIT,
            );
            received.map(|it| {
                let _ = it.cmsgs().map(|all| {
                    all.filter(|it| matches!(it, ControlMessageOwned::UdpGroSegments(_)))
                        .count()
                });
                it.bytes
            })
        };
        match received {
            // A virtual link keeps together what was sent together.
            Ok(len) => {
                let _ = nix::unistd::write(tun.fd(), frame.get(..len).unwrap_or_default());
            }
            Err(Errno::EAGAIN) => wait(socket)?,
            Err(error) => return Err(error).context("receiving"),
        }
    }
}

/// IP and, if it is that, UDP.
fn outer_header(from: Ipv4Addr, to: Ipv4Addr, protocol: u8) -> Vec<u8> {
    let mut header = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    header.extend(from.octets());
    header.extend(to.octets());
    if protocol == IPPROTO_UDP {
        header.extend(PACKETS_PORT.to_be_bytes());
        header.extend(PACKETS_PORT.to_be_bytes());
        header.extend([0; 4]);
    }
    header
}

fn packets_out(tun: &Tun, header: &[u8], mut send: impl FnMut(&[PacketBuf])) -> Result<()> {
    let mut frame = PacketBuf::with_capacity(MAX_PACKET);
    let mut packets: Vec<_> = (0..64).map(|_| PacketBuf::with_capacity(2048)).collect();
    loop {
        let Some(offload) = tun.read(&mut frame)? else {
            wait(&tun.fd())?;
            continue;
        };
        let mut count = 0;
        if offload.segment_bytes > 0 {
            let cutter = Segmenter::new(&frame, offload.segment_bytes);
            let mut cutter = cutter.context("a frame")?;
            for packet in &mut packets {
                if cutter.next_into(packet) != Some(true) {
                    break;
                }
                count += 1;
            }
        } else {
            if let Some((start, offset)) = offload.checksum {
                complete_checksum(&mut frame, start, offset).context("a checksum")?;
            }
            count += usize::from(packets.first_mut().is_some_and(|it| it.fill(&frame)));
        }
        for packet in packets.iter_mut().take(count) {
            packet.push_front(header.len()).context("headroom")?;
            packet[..header.len()].copy_from_slice(header);
            ip4::finish(packet).context("a header")?;
            if header.len() > ip4::HEADER_BYTES {
                let bytes = u16::try_from(packet.len() - ip4::HEADER_BYTES)?;
                packet[24..26].copy_from_slice(&bytes.to_be_bytes());
            }
        }
        send(packets.get(..count).unwrap_or_default());
    }
}

fn packets_in<T: PacketIo>(
    tun: &Tun,
    from: &mut T,
    header_bytes: usize,
    fd: impl Fn(&T) -> BorrowedFd<'_>,
) -> Result<()> {
    let mut packets: Vec<_> = (0..128).map(|_| PacketBuf::with_capacity(2048)).collect();
    let mut joiner = Joiner::default();
    loop {
        let count = from.receive(&mut packets)?;
        if count == 0 {
            wait(&fd(from))?;
        }
        let packets = packets.get_mut(..count).unwrap_or_default();
        for packet in packets.iter_mut() {
            packet.pull_front(header_bytes).context("a header")?;
        }
        tun.write(packets, &mut joiner);
    }
}

fn raw_out(tun: &Tun, raw: &mut Raw, from: Ipv4Addr, to: Ipv4Addr) -> Result<()> {
    let mut frame = vec![0; LENGTH_BYTES + FRAME_BYTES];
    let mut pieces: Vec<_> = (0..64).map(|_| PacketBuf::with_capacity(2048)).collect();
    loop {
        let room = frame.get_mut(LENGTH_BYTES..).unwrap_or_default();
        let Ok(len) = nix::unistd::read(tun.fd(), room) else {
            wait(&tun.fd())?;
            continue;
        };
        frame[..LENGTH_BYTES].copy_from_slice(&u32::try_from(len)?.to_be_bytes());
        let bytes = frame.get(..LENGTH_BYTES + len).unwrap_or_default();
        let mut count = 0;
        for (piece, part) in pieces
            .iter_mut()
            .zip(bytes.chunks(usize::from(PIECE_BYTES)))
        {
            piece.fill(part);
            piece.push_front(ip4::HEADER_BYTES).context("headroom")?;
            let begins = u8::from(count == 0);
            let header = [0x45, 0, 0, 0, 0, begins, 0x40, 0, 64, PROTOCOL, 0, 0];
            piece[..12].copy_from_slice(&header);
            piece[12..16].copy_from_slice(&from.octets());
            piece[16..20].copy_from_slice(&to.octets());
            ip4::finish(piece).context("a header")?;
            count += 1;
        }
        raw.send(pieces.get(..count).unwrap_or_default());
    }
}

fn raw_in(tun: &Tun, raw: &mut Raw) -> Result<()> {
    let mut pieces: Vec<_> = (0..64).map(|_| PacketBuf::with_capacity(2048)).collect();
    let mut frame = Vec::with_capacity(FRAME_BYTES);
    let mut wanted = 0;
    loop {
        let count = raw.receive(&mut pieces)?;
        if count == 0 {
            wait(&raw.fd())?;
        }
        for piece in pieces.iter().take(count) {
            let mut bytes = piece.get(ip4::HEADER_BYTES..).unwrap_or_default();
            if piece.get(5) == Some(&1)
                && let Some((length, rest)) = bytes.split_first_chunk()
            {
                wanted = usize::try_from(u32::from_be_bytes(*length))?;
                bytes = rest;
                frame.clear();
            }
            frame.extend_from_slice(bytes);
            if frame.len() == wanted {
                let _ = nix::unistd::write(tun.fd(), &frame);
            }
        }
    }
}
