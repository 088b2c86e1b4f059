//! The links of a real kernel: two TUN devices in the calling thread's network namespace.

use std::fs;
use std::io::{self, Read, Write};
use std::mem::{size_of, zeroed};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::ptr;

use libc::{c_int, c_void, sockaddr_storage, socklen_t};

use super::Errno;
use super::packets::{Datagram, LINK_MTU, LINKS, Link, UdpOptions};

/// How long something that the kernel does on its own account may take.
const QUIET_MS: c_int = 10;
const NAMES: [&str; 2] = ["inside", "outside"];
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETIFINDEX: libc::c_ulong = 0x4004_54da;
const IFF_TUN: libc::c_short = 1;
const IFF_NO_PI: libc::c_short = 0x1000;
const UDP_ENCAP: c_int = 100;

const ADDRESSES: &str = "
link set lo up
link set inside addrgenmode none mtu MTU up
link set outside addrgenmode none mtu MTU up
addr add 10.1.0.254/24 dev inside
addr add 10.0.0.1/24 dev outside
addr add fd01::fe/64 dev inside nodad
addr add fd00::1/64 dev outside nodad
route add 10.2.0.0/16 dev outside src 10.0.0.1
route add fd02::/64 dev outside src fd00::1
";

/// Per namespace; what an older kernel does not have is left out.
const SETTINGS: &[(&str, &str)] = &[
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/inside/rp_filter", "0"),
    ("ipv4/conf/outside/rp_filter", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/outside/send_redirects", "0"),
    ("ipv4/conf/inside/send_redirects", "0"),
    ("ipv4/icmp_ratelimit", "0"),
    ("ipv6/icmp/ratelimit", "0"),
    ("ipv6/auto_flowlabels", "0"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
];

/// Takes the modules away that pass software crypto off as a device's: SAs behave differently with
/// them (no TFC padding, sec paths that end at the second tunnel), and kernels do not load them
/// before somebody asks for offload.
pub fn without_offload_modules() {
    for module in ["esp4_offload", "esp6_offload"] {
        let _ = Command::new("rmmod")
            .arg(module)
            .stderr(Stdio::null())
            .status();
    }
}

/// Two TUN devices.
pub(super) struct Links([fs::File; 2]);

impl Links {
    /// Makes them, and gives them addresses and routes.
    ///
    /// # Panics
    /// When the system has no TUN devices or no `ip`.
    pub(super) fn new() -> Self {
        let links = LINKS.map(|link| tun(link).expect("a TUN device"));
        for (name, value) in SETTINGS {
            let _ = fs::write(format!("/proc/sys/net/{name}"), value);
        }
        let mut ip = Command::new("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("ip");
        let batch = ADDRESSES.trim_start().replace("MTU", &LINK_MTU.to_string());
        let input = ip.stdin.take().expect("its input");
        { input }.write_all(batch.as_bytes()).expect("addresses");
        assert!(ip.wait().expect("ip").success(), "addresses and routes");
        let mut links = Self(links);
        // Neighbour discovery and MLD announce themselves.
        for link in LINKS {
            while links.take(link).is_some() {}
        }
        links
    }

    pub(super) fn inject(&mut self, link: Link, packet: &[u8]) {
        // A kernel that refuses a packet says so; the scenario sees that nothing comes of it.
        let _ = self.0[link as usize].write(packet);
    }

    /// The next packet that is not about neighbours or multicast groups.
    pub(super) fn take(&mut self, link: Link) -> Option<Vec<u8>> {
        let file = &mut self.0[link as usize];
        let mut buffer = vec![0; 70_000];
        loop {
            if !readable(file.as_raw_fd()) {
                return None;
            }
            let bytes = file.read(&mut buffer).ok()?;
            let packet = &buffer[..bytes];
            let multicast = packet.first().is_some_and(|first| first >> 4 == 6)
                && packet.get(24) == Some(&0xff);
            if !multicast {
                return Some(packet.to_vec());
            }
        }
    }
}

fn tun(link: Link) -> io::Result<fs::File> {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let index = link.index() as c_int;
    // SAFETY: the number outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFINDEX as _, &raw const index) };
    check(result as isize).map_err(io::Error::from_raw_os_error)?;
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request
        .ifr_name
        .iter_mut()
        .zip(NAMES[link as usize].bytes())
    {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = IFF_TUN | IFF_NO_PI;
    // SAFETY: the request outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF as _, &raw mut request) };
    check(result as isize).map_err(io::Error::from_raw_os_error)?;
    Ok(file)
}

fn readable(fd: c_int) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one descriptor, which is valid.
    unsafe { libc::poll(&raw mut poll, 1, QUIET_MS) > 0 }
}

/// Binds and configures a UDP socket.
pub(super) fn configure_udp(socket: &OwnedFd, options: &UdpOptions) -> Result<(), Errno> {
    let fd = socket.as_raw_fd();
    let v6 = options.source.is_some_and(|source| source.is_ipv6());
    if let Some(source) = options.source {
        let (address, len) = raw_address(source);
        // SAFETY: the address is valid for its length.
        check(unsafe { libc::bind(fd, (&raw const address).cast(), len) } as isize)?;
    }
    if options.mark != 0 {
        set_option(fd, libc::SOL_SOCKET, libc::SO_MARK, options.mark as c_int)?;
    }
    if options.dont_fragment {
        let (level, option) = match v6 {
            false => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
            true => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
        };
        set_option(fd, level, option, libc::IP_PMTUDISC_DO)?;
    }
    if options.encap != 0 {
        set_option(fd, libc::IPPROTO_UDP, UDP_ENCAP, c_int::from(options.encap))?;
    }
    Ok(())
}

/// Sends a datagram.
pub(super) fn send_udp(socket: &OwnedFd, to: SocketAddr, payload: &[u8]) -> Result<(), Errno> {
    let (address, len) = raw_address(to);
    // SAFETY: both pointers are valid for the lengths that go with them.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            payload.as_ptr().cast(),
            payload.len(),
            libc::MSG_DONTWAIT,
            (&raw const address).cast(),
            len,
        )
    };
    check(sent).map(drop)
}

/// The next datagram, `None` when there is none.
pub(super) fn receive_udp(socket: &OwnedFd) -> Result<Option<Datagram>, Errno> {
    let mut buffer = vec![0u8; 70_000];
    // SAFETY: all zeroes is a valid sockaddr_storage.
    let mut from: sockaddr_storage = unsafe { zeroed() };
    let mut len = size_of::<sockaddr_storage>() as socklen_t;
    // SAFETY: all pointers are valid for the lengths that go with them.
    let received = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
            (&raw mut from).cast(),
            &raw mut len,
        )
    };
    match check(received) {
        Ok(bytes) => {
            buffer.truncate(bytes as usize);
            Ok(Some(Datagram {
                from: address_of(&from),
                payload: buffer,
            }))
        }
        Err(libc::EAGAIN) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn set_option(fd: c_int, level: c_int, option: c_int, value: c_int) -> Result<(), Errno> {
    let bytes = size_of::<c_int>() as socklen_t;
    let value: *const c_void = (&raw const value).cast();
    // SAFETY: the value is valid for its length.
    check(unsafe { libc::setsockopt(fd, level, option, value, bytes) } as isize).map(drop)
}

fn check(result: isize) -> Result<isize, Errno> {
    if result < 0 {
        return Err(io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO));
    }
    Ok(result)
}

fn raw_address(address: SocketAddr) -> (sockaddr_storage, socklen_t) {
    // SAFETY: all zeroes is a valid sockaddr_storage.
    let mut storage: sockaddr_storage = unsafe { zeroed() };
    let len = match address {
        SocketAddr::V4(v4) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(v4.ip().octets()),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: a sockaddr_storage is large enough and aligned for every address.
            unsafe { ptr::write((&raw mut storage).cast(), raw) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as u16,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr {
                    s6_addr: v6.ip().octets(),
                },
                sin6_scope_id: 0,
            };
            // SAFETY: as above.
            unsafe { ptr::write((&raw mut storage).cast(), raw) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, len as socklen_t)
}

fn address_of(storage: &sockaddr_storage) -> SocketAddr {
    if c_int::from(storage.ss_family) == libc::AF_INET6 {
        // SAFETY: the family says that this is what it is.
        let raw: libc::sockaddr_in6 = unsafe { ptr::read(ptr::from_ref(storage).cast()) };
        (raw.sin6_addr.s6_addr, u16::from_be(raw.sin6_port)).into()
    } else {
        // SAFETY: all other sockets here are IPv4's.
        let raw: libc::sockaddr_in = unsafe { ptr::read(ptr::from_ref(storage).cast()) };
        let octets = raw.sin_addr.s_addr.to_ne_bytes();
        (octets, u16::from_be(raw.sin_port)).into()
    }
}

/// `/proc/net/xfrm_stat` of the calling thread's namespace.
pub(super) fn mib() -> Vec<(String, u64)> {
    let text = fs::read_to_string("/proc/thread-self/net/xfrm_stat").unwrap_or_default();
    let rows = text.lines().filter_map(|row| {
        let (name, value) = row.split_once(char::is_whitespace)?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    });
    rows.collect()
}
