//! `xfrmd capture`: packets on both sides of their SAs, as lines or as pcapng.
//!
//! The daemon's packet threads put records ([`record`]) into a socket pair whose other end is ours.
//! What does not fit there is lost and counted: packets do not wait for a capture.

mod pcapng;
pub(crate) mod record;

use std::fs::File;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::socket::{MsgFlags, recv};
use serde_json::{Value, json};

use xfrmd::recording::compare::ends;

use crate::driver::signals::Signals;
use record::{Direction, Layer, MOST_COMMENT, Record};

/// A record of the largest packet.
const MOST_BYTES: usize = (1 << 16) + MOST_COMMENT + 1024;

/// Which packets, and where to.
#[derive(Args)]
pub(crate) struct Wanted {
    /// Only packets as they are on the wire.
    #[arg(long, conflicts_with_all = ["inner", "both"])]
    outer: bool,
    /// Only packets as the host has them.
    #[arg(long, conflicts_with = "both")]
    inner: bool,
    /// Both, each naming the other [default].
    #[arg(long)]
    both: bool,
    /// Writes pcapng to a file, or to standard output (-), in place of lines.
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Only packets of an SA with this SPI.
    #[arg(long, value_name = "SPI", value_parser = crate::explain::number)]
    spi: Option<u32>,
    /// Only packets from or to this address or prefix, outer or inner.
    #[arg(long, value_name = "ADDRESS[/BITS]", value_parser = prefix)]
    address: Option<(IpAddr, u8)>,
    /// Ends after so many packets.
    #[arg(short, long, value_name = "PACKETS")]
    count: Option<u64>,
    /// Bytes of each packet.
    #[arg(long, value_name = "BYTES", default_value_t = 65535)]
    snaplen: u32,
}

fn prefix(text: &str) -> Result<(IpAddr, u8), String> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| "no IP address")?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.map_or(Ok(most), str::parse).ok();
    let bits = bits
        .filter(|&bits| bits <= most)
        .ok_or("no prefix length")?;
    Ok((address, bits))
}

impl Wanted {
    /// As the daemon wants it.
    pub(crate) fn as_json(&self) -> Value {
        json!({
            "outer": !self.inner,
            "inner": !self.outer,
            "spi": self.spi,
            "address": self.address.map(|(address, _)| address.to_string()),
            "bits": self.address.map(|(_, bits)| bits),
            "snaplen": self.snaplen,
        })
    }

    /// Writes what comes until it ends, or somebody does not want more.
    pub(crate) fn receive(&self, packets: &OwnedFd) -> Result<ExitCode> {
        let signals = Signals::block(&[Signal::SIGINT, Signal::SIGTERM])?;
        let mut out: Box<dyn Write> = match &self.write {
            Some(path) if path.as_os_str() != "-" => {
                Box::new(File::create(path).with_context(|| path.display().to_string())?)
            }
            _ => Box::new(io::stdout()),
        };
        if self.write.is_some() {
            out.write_all(&pcapng::header(self.snaplen))?;
        }
        out.flush()?;
        eprintln!("xfrmd: capturing");
        let mut buffer = vec![0; MOST_BYTES];
        let (mut count, mut lost) = (0, 0_u64);
        while self.count.is_none_or(|most| count < most) {
            let wait_for = |fd| PollFd::new(fd, PollFlags::POLLIN);
            let mut fds = [wait_for(packets.as_fd()), wait_for(signals.fd().as_fd())];
            let _ = poll(&mut fds, PollTimeout::NONE);
            if signals.next().is_some() {
                break;
            }
            let len = match recv(packets.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => bail!("the daemon has ended, or the namespace ({count} packets)"),
                Ok(len) => len,
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let record = Record::decode(buffer.get(..len).unwrap_or_default())
                .context("the daemon is of another version")?;
            let written = match &self.write {
                Some(_) => out.write_all(&pcapng::packet(&record)),
                None => writeln!(out, "{}", line(&record)),
            };
            match written.and_then(|()| out.flush()) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
                other => other?,
            }
            count += 1;
            lost += u64::from(record.lost);
        }
        eprintln!("xfrmd: {count} packets, {lost} lost");
        Ok(ExitCode::SUCCESS)
    }
}

/// A packet in a line.
fn line(record: &Record<'_>) -> String {
    const DAY: u64 = 86400;
    let seconds = record.time / 1_000_000_000;
    let (of_day, micros) = (seconds % DAY, record.time / 1000 % 1_000_000);
    let (hours, minutes) = (of_day / 3600, of_day / 60 % 60);
    let direction = match record.direction {
        Direction::In => "in ",
        Direction::Out => "out",
    };
    let layer = match record.layer {
        Layer::Outer => "outer",
        Layer::Inner => "inner",
    };
    let (from, to, protocol) = ends(record.packet).map_or_else(Default::default, |ends| {
        (ends.0.to_string(), ends.1.to_string(), ends.2.to_string())
    });
    format!(
        "{hours:02}:{minutes:02}:{:02}.{micros:06} {direction} {layer} {from} > {to} protocol \
         {protocol} length {}: {}",
        of_day % 60,
        record.bytes,
        record.comment
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        assert_eq!(prefix("10.1.0.0/16"), Ok(("10.1.0.0".parse().unwrap(), 16)));
        assert_eq!(prefix("fd00::1"), Ok(("fd00::1".parse().unwrap(), 128)));
        for wrong in ["", "10.0.0.0/33", "fd00::/129", "10.0.0/8", "10.0.0.0/x"] {
            assert!(prefix(wrong).is_err(), "{wrong}");
        }
    }
}
