//! Packets at the edges of a subject: a router with two links and sockets of its own.
//!
//! ```text
//!  10.1.0.0/24, fd01::/64 -- inside [10.1.0.254, fd01::fe  subject  10.0.0.1, fd00::1] outside -- 10.0.0.0/24, fd00::/64
//!                                                                            10.2.0.0/16, fd02::/64 --'
//! ```
//! Links carry bare IP packets; whatever is on the other side of them is the scenario.

use std::net::SocketAddr;

use super::{Errno, UdpSocket};

/// A link of the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    /// Where the protected hosts are.
    Inside,
    /// Where the IPsec peers are, and what is behind them.
    Outside,
}

impl Link {
    /// Its interface index.
    #[must_use]
    pub const fn index(self) -> u32 {
        101 + self as u32
    }
}

/// Both links, in the order in which a transcript shows what left.
pub const LINKS: [Link; 2] = [Link::Inside, Link::Outside];

/// Bytes of the largest packet on a link.
pub const LINK_MTU: u32 = 1500;

/// How a UDP socket is used.
#[derive(Clone, Copy, Debug, Default)]
pub struct UdpOptions {
    /// Bound to it.
    pub source: Option<SocketAddr>,
    /// `SO_MARK`, 0 for none.
    pub mark: u32,
    /// `IP_MTU_DISCOVER` is `IP_PMTUDISC_DO`: never fragmented here.
    pub dont_fragment: bool,
    /// `UDP_ENCAP`, 0 for none.
    pub encap: u16,
}

/// A datagram that a UDP socket got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Who sent it.
    pub from: SocketAddr,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// The edges of a subject.
pub trait Packets {
    /// Sets the links up, which takes a real system a while.
    fn prepare(&mut self);

    /// A packet arrives.
    fn inject(&mut self, link: Link, packet: &[u8]);

    /// The next packet that left through `link`, oldest first.
    fn take(&mut self, link: Link) -> Option<Vec<u8>>;

    /// Binds and configures a UDP socket.
    ///
    /// # Errors
    /// What `bind` or `setsockopt` says.
    fn configure_udp(&mut self, socket: UdpSocket, options: &UdpOptions) -> Result<(), Errno>;

    /// Sends a datagram.
    ///
    /// # Errors
    /// What `sendto` says.
    fn send_udp(&mut self, socket: UdpSocket, to: SocketAddr, payload: &[u8]) -> Result<(), Errno>;

    /// The next datagram that a UDP socket has got.
    ///
    /// # Errors
    /// An error that waits at the socket (`ECONNREFUSED` and so on).
    fn receive_udp(&mut self, socket: UdpSocket) -> Result<Option<Datagram>, Errno>;

    /// `/proc/net/xfrm_stat`.
    fn mib(&mut self) -> Vec<(String, u64)>;
}
