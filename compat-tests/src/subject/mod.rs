//! Who answers a scenario.
//!
//! A [`Subject`] is a fresh network namespace with nothing in it, and the
//! netlink sockets that a scenario opens there.

mod host;
mod in_process;
pub mod packets;
mod raw_socket;
mod tun;

use std::time::Duration;

pub use in_process::InProcess;
pub use packets::Packets;
pub use raw_socket::RawSocket;
pub use tun::without_offload_modules;

/// A positive errno.
pub type Errno = i32;

/// A socket of a scenario, in order of opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Socket(pub usize);

/// A UDP socket of a scenario, in order of opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpSocket(pub usize);

/// How to open a socket.
#[derive(Clone, Debug)]
pub struct SocketOptions {
    /// Its port id; scenarios choose them, so that transcripts agree.
    pub port: u32,
    /// `nl_groups` of its bind.
    pub groups: u32,
    /// `NETLINK_CAP_ACK`.
    pub cap_ack: bool,
    /// `NETLINK_EXT_ACK`.
    pub ext_ack: bool,
    /// Opened and used with `CAP_NET_ADMIN`.
    pub privileged: bool,
}

/// What a receive call gave.
#[derive(Clone, Debug)]
pub struct Received {
    /// As much of the datagram as fits the buffer.
    pub bytes: Vec<u8>,
    /// Length of the datagram.
    pub full_len: usize,
    /// `nl_pid` of the sender.
    pub sender: u32,
    /// `nl_groups` of the sender.
    pub groups: u32,
}

/// A namespace to run one scenario in.
pub trait Subject {
    /// Opens, binds and configures a socket.
    ///
    /// # Errors
    /// What `bind` says.
    fn open(&mut self, options: &SocketOptions) -> Result<Socket, Errno>;

    /// Closes a socket.
    fn close(&mut self, socket: Socket);

    /// Joins a group (`NETLINK_ADD_MEMBERSHIP`) or leaves it.
    ///
    /// # Errors
    /// What `setsockopt` says.
    fn set_member(&mut self, socket: Socket, group: u32, member: bool) -> Result<(), Errno>;

    /// Sends a datagram to the kernel.
    ///
    /// # Errors
    /// What `sendmsg` says.
    fn send(&mut self, socket: Socket, datagram: &[u8]) -> Result<(), Errno>;

    /// Receives a datagram into a buffer of `buffer_bytes` without waiting.
    ///
    /// # Errors
    /// What `recvmsg` says: EAGAIN when there is nothing.
    fn recv(&mut self, socket: Socket, buffer_bytes: usize) -> Result<Received, Errno>;

    /// Opens a UDP socket of `family` (AF_INET or AF_INET6), which can have policies of its own.
    ///
    /// # Errors
    /// What `socket` says.
    fn open_udp(&mut self, family: u16) -> Result<UdpSocket, Errno>;

    /// Closes it.
    fn close_udp(&mut self, socket: UdpSocket);

    /// `setsockopt` of `IP_XFRM_POLICY` (`option_family` AF_INET) or `IPV6_XFRM_POLICY`
    /// (AF_INET6); `None` is a null pointer of length 0.
    ///
    /// # Errors
    /// What `setsockopt` says.
    fn set_socket_policy(
        &mut self,
        socket: UdpSocket,
        option_family: u16,
        value: Option<&[u8]>,
    ) -> Result<(), Errno>;

    /// Sets `net.core.NAME`.
    ///
    /// # Errors
    /// What writing the file says.
    fn set_sysctl(&mut self, name: &str, value: u32) -> Result<(), Errno>;

    /// Lets time pass.
    fn sleep(&mut self, time: Duration);

    /// The wall clock.
    fn wall(&self) -> Duration;

    /// Its links and what its UDP sockets do, if it has any; made on first use.
    fn packets(&mut self) -> Option<&mut dyn Packets> {
        None
    }
}
