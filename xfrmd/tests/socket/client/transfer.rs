//! Sending, receiving, dumps.

use std::mem::zeroed;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use libc::{c_int, iovec, mmsghdr, msghdr};

use crate::netlink::*;

pub(super) fn reply_is_queued() {
    let socket = Xfrm::bound(0);
    for seq in 0..100 {
        socket.asks(seq);
    }
    socket.is_quiet();
    socket.close();
}

pub(super) fn write_unbound() {
    let socket = Xfrm::open_with(libc::SOCK_DGRAM | libc::SOCK_CLOEXEC);
    assert_eq!(socket.name(), (0, 0));
    let bytes = sad_info(5);
    let written = unsafe { libc::write(socket.0, bytes.as_ptr().cast(), bytes.len()) };
    assert_eq!(works(written), bytes.len());
    // The first socket of a process has its pid for a port.
    assert_eq!(socket.name(), (std::process::id(), 0));
    let mut buffer = [0_u8; 4096];
    let len = unsafe { libc::read(socket.0, buffer.as_mut_ptr().cast(), buffer.len()) };
    assert_eq!(head(&buffer[..works(len)]), (XFRM_MSG_NEWSADINFO, 5));
    assert_eq!(
        unsafe { libc::read(socket.0, buffer.as_mut_ptr().cast(), 0) },
        0
    );
    let second = Xfrm::bound(0);
    assert_ne!(second.name().0, std::process::id());
    second.asks(6);
}

pub(super) fn explicit_ports() {
    let socket = Xfrm::open();
    works(socket.bind(12345, 0));
    assert_eq!(socket.name(), (12345, 0));
    fails(Xfrm::open().bind(12345, 0), libc::EADDRINUSE);
    fails(socket.bind(12346, 0), libc::EINVAL);
    works(socket.send(&new_policy(1, ACK)));
    let reply = socket.recv();
    assert_eq!(error_of(&reply.bytes), 0);
    let shown = u32::from_ne_bytes(reply.bytes[12..16].try_into().unwrap());
    assert_eq!(shown, 12345);
}

pub(super) fn peek_and_trunc() {
    let socket = Xfrm::bound(0);
    works(socket.send(&sad_info(1)));
    let mut message: msghdr = unsafe { zeroed() };
    let mut from = address(9, 9);
    message.msg_name = (&raw mut from).cast();
    message.msg_namelen = 12;
    let flags = libc::MSG_PEEK | libc::MSG_TRUNC;
    let len = works(unsafe { libc::recvmsg(socket.0, &raw mut message, flags) });
    assert!(len > 20);
    assert_eq!((from.nl_pid, message.msg_namelen), (0, 12));
    assert_ne!(message.msg_flags & libc::MSG_TRUNC, 0);
    let mut little = [0_u8; 20];
    let peeked = socket.recv_into(&mut little, libc::MSG_PEEK);
    assert_eq!(works(peeked), 20);
    assert_eq!(works(socket.recv_into(&mut little, libc::MSG_TRUNC)), len);
    assert_eq!(head(&little), (XFRM_MSG_NEWSADINFO, 1));
    socket.is_quiet();
}

pub(super) fn send_errors() {
    let socket = Xfrm::open();
    let bytes = sad_info(1);
    fails(socket.send(&[]), libc::ENODATA);
    let mut to = address(0, 0);
    fails(socket.send_to(&bytes, &to, 8, 0), libc::EINVAL);
    fails(
        socket.send_to(&bytes, &to, 12, libc::MSG_OOB),
        libc::EOPNOTSUPP,
    );
    to.nl_family = libc::AF_INET as u16;
    fails(socket.send_to(&bytes, &to, 12, 0), libc::EINVAL);
    // Nothing has been sent yet, so it still has no port.
    assert_eq!(socket.name(), (0, 0));
    works(socket.set(libc::SOL_SOCKET, libc::SO_SNDBUF, 4096));
    fails(socket.send(&vec![0; 8192 - 31]), libc::EMSGSIZE);
    works(socket.send(&vec![0; 8192 - 32]));
    socket.is_quiet();
    socket.asks(2);
}

pub(super) fn vectors_and_batches() {
    let socket = Xfrm::bound(0);
    let bytes = sad_info(3);
    // More parts than fit beside a control header.
    let mut long = bytes.clone();
    long.resize(160, 0);
    long[0] = 160;
    let mut parts: Vec<iovec> = long
        .iter_mut()
        .map(|byte| iovec {
            iov_base: std::ptr::from_mut(byte).cast(),
            iov_len: 1,
        })
        .collect();
    let written = unsafe { libc::writev(socket.0, parts.as_ptr(), parts.len() as c_int) };
    assert_eq!(works(written), 160);
    let mut room = [0_u8; 256];
    for (part, byte) in parts.iter_mut().zip(&mut room) {
        part.iov_base = std::ptr::from_mut(byte).cast();
    }
    let len = unsafe { libc::readv(socket.0, parts.as_ptr(), parts.len() as c_int) };
    works(len);
    assert_eq!(head(&room), (XFRM_MSG_NEWSADINFO, 3));

    let mut requests: Vec<Vec<u8>> = (10..14).map(sad_info).collect();
    let mut vectors: Vec<iovec> = requests
        .iter_mut()
        .map(|bytes| iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        })
        .collect();
    let mut batch: Vec<mmsghdr> = vectors
        .iter_mut()
        .map(|vector| unsafe {
            let mut entry: mmsghdr = zeroed();
            entry.msg_hdr.msg_iov = vector;
            entry.msg_hdr.msg_iovlen = 1;
            entry
        })
        .collect();
    let sent = unsafe { libc::sendmmsg(socket.0, batch.as_mut_ptr(), 4, 0) };
    assert_eq!(sent, 4);
    assert!(batch.iter().all(|entry| entry.msg_len == 20));
    let mut rooms = vec![vec![0_u8; 512]; 8];
    let mut vectors: Vec<iovec> = rooms
        .iter_mut()
        .map(|bytes| iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        })
        .collect();
    let mut batch: Vec<mmsghdr> = vectors
        .iter_mut()
        .map(|vector| unsafe {
            let mut entry: mmsghdr = zeroed();
            entry.msg_hdr.msg_iov = vector;
            entry.msg_hdr.msg_iovlen = 1;
            entry
        })
        .collect();
    let flags = libc::MSG_WAITFORONE;
    let none = std::ptr::null_mut();
    let received = unsafe { libc::recvmmsg(socket.0, batch.as_mut_ptr(), 8, flags, none) };
    assert_eq!(received, 4);
    assert_eq!(head(&rooms[3]), (XFRM_MSG_NEWSADINFO, 13));
}

pub(super) fn large_datagrams() {
    const SO_SNDBUFFORCE: c_int = 32;
    let socket = Xfrm::bound(0);
    works(socket.set(libc::SOL_SOCKET, SO_SNDBUFFORCE, 4 << 20));
    let mut datagram = Vec::new();
    for number in 0..5000 {
        datagram.extend_from_slice(&new_policy(number, 0));
    }
    datagram.extend_from_slice(&new_policy(5000, ACK));
    assert!(datagram.len() > 600_000);
    assert_eq!(works(socket.send(&datagram)), datagram.len());
    assert_eq!(error_of(&socket.recv().bytes), 0);
    assert_eq!(socket.request(&new_policy(4999, ACK)), libc::EEXIST);
}

pub(super) fn options() {
    let socket = Xfrm::bound(0);
    let int = |name| socket.option::<c_int>(libc::SOL_SOCKET, name);
    assert_eq!(int(libc::SO_PROTOCOL), 6);
    assert_eq!(int(libc::SO_DOMAIN), libc::AF_NETLINK);
    assert_eq!(int(libc::SO_TYPE), libc::SOCK_RAW);
    assert_eq!(int(libc::SO_ERROR), 0);
    let rate = socket.option::<u64>(libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE);
    assert_eq!(rate, u64::MAX);
    works(socket.set(libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, 7));
    socket.asks(1);
    // Extended acknowledgements follow the option.
    let mut bad = new_policy(1, ACK);
    bad[16 + 160] = 9;
    assert_eq!(socket.request(&bad), libc::EINVAL);
    works(socket.set(libc::SOL_NETLINK, 11, 1));
    works(socket.set(libc::SOL_NETLINK, 10, 1));
    works(socket.send(&bad));
    let reply = socket.recv().bytes;
    let flags = u16::from_ne_bytes([reply[6], reply[7]]);
    assert_eq!(flags, 0x300, "capped, with TLVs");
    assert_eq!(socket.option::<c_int>(libc::SOL_NETLINK, 11), 1);
    fails(
        unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_STREAM, 6) } as isize,
        libc::ESOCKTNOSUPPORT,
    );
}

fn add_policies(socket: Xfrm, count: u32) {
    for start in (0..count).step_by(100) {
        let mut datagram = Vec::new();
        for number in start..(start + 100).min(count) {
            datagram.extend_from_slice(&new_policy(number, 0));
        }
        works(socket.send(&datagram));
    }
    socket.is_quiet();
}

pub(super) fn dumps_are_pulled() {
    const SO_MEMINFO: c_int = 55;
    let socket = Xfrm::bound(0);
    add_policies(socket, 2000);
    works(socket.send(&dump_policies(9)));
    // One dump at a time; the error waits behind the first chunk.
    works(socket.send(&dump_policies(10)));
    let mut seen = 0;
    let mut most = 0;
    let mut busy = 0;
    loop {
        let [used, ..] = socket.option::<[u32; 9]>(libc::SOL_SOCKET, SO_MEMINFO);
        most = most.max(used);
        let datagram = socket.recv().bytes;
        match head(&datagram) {
            (NLMSG_DONE, 9) => break,
            (NLMSG_ERROR, 10) => {
                assert_eq!(error_of(&datagram), libc::EBUSY);
                busy += 1;
            }
            (XFRM_MSG_NEWPOLICY, 9) => seen += kinds(&datagram).len(),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((seen, busy), (2000, 1));
    assert!(
        most < 150_000,
        "chunks were not pulled: {most} bytes at once"
    );
    socket.is_quiet();
    socket.asks(11);
}

pub(super) fn peek_pulls() {
    let socket = Xfrm::bound(0);
    add_policies(socket, 50);
    works(socket.send(&dump_policies(1)));
    let mut buffer = vec![0_u8; 8192];
    let first = works(socket.recv_into(&mut buffer, libc::MSG_PEEK));
    assert_eq!(works(socket.recv_into(&mut buffer, 0)), first);
    let mut seen = kinds(&buffer[..first]).len();
    loop {
        let datagram = socket.recv().bytes;
        if head(&datagram).0 == NLMSG_DONE {
            break;
        }
        seen += kinds(&datagram).len();
    }
    assert_eq!(seen, 50);
}

pub(super) fn unread_replies_overrun() {
    const NETLINK_NO_ENOBUFS: c_int = 5;
    let socket = Xfrm::bound(0);
    works(socket.set(libc::SOL_SOCKET, libc::SO_RCVBUF, 4096));
    for seq in 0..100 {
        works(socket.send(&sad_info(seq)));
    }
    fails(
        socket.recv_into(&mut [0; 64], libc::MSG_DONTWAIT),
        libc::ENOBUFS,
    );
    let mut next = 0;
    while socket.recv_into(&mut [0; 512], libc::MSG_DONTWAIT) > 0 {
        next += 1;
    }
    assert!((1..100).contains(&next));
    socket.asks(200);
    works(socket.set(libc::SOL_NETLINK, NETLINK_NO_ENOBUFS, 1));
    for seq in 0..100 {
        works(socket.send(&sad_info(seq)));
    }
    socket.recv();
}

static SIGNALLED: AtomicI32 = AtomicI32::new(-1);
static HANDLED: AtomicU32 = AtomicU32::new(0);

extern "C" fn on_alarm(_: c_int) {
    let socket = Xfrm(SIGNALLED.load(Ordering::Relaxed));
    let errno = errno();
    works(socket.send(&sad_info(1)));
    let mut buffer = [0; 512];
    works(socket.recv_into(&mut buffer, libc::MSG_DONTWAIT));
    HANDLED.fetch_add(1, Ordering::Relaxed);
    unsafe { *libc::__errno_location() = errno };
}

pub(super) fn threads_and_signals() {
    SIGNALLED.store(Xfrm::bound(0).0, Ordering::Relaxed);
    unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = on_alarm as *const () as usize;
        libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut());
        let every = libc::timeval {
            tv_sec: 0,
            tv_usec: 500,
        };
        let timer = libc::itimerval {
            it_interval: every,
            it_value: every,
        };
        libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut());
    }
    let threads: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(|| {
                let socket = Xfrm::bound(0);
                for seq in 0..500 {
                    socket.asks(seq);
                }
                socket.close();
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(HANDLED.load(Ordering::Relaxed) > 0);
}

pub(super) fn connect_to_kernel() {
    let socket = Xfrm::open();
    let kernel = address(0, 0);
    let connected = unsafe { libc::connect(socket.0, (&raw const kernel).cast(), 12) };
    works(connected as isize);
    assert_ne!(socket.name().0, 0);
    socket.asks(1);
}

pub(super) fn strangers() {
    const NETLINK_USERSOCK: c_int = 2;
    let socket = Xfrm::bound(0);
    let stranger = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, NETLINK_USERSOCK) };
    let stranger = Xfrm(stranger);
    let to = address(socket.name().0, 0);
    works(stranger.send_to(b"I am the kernel, honest", &to, 12, 0));
    let mut buffer = [0; 64];
    fails(
        socket.recv_into(&mut buffer, libc::MSG_DONTWAIT | libc::MSG_PEEK),
        libc::EAGAIN,
    );
    works(stranger.send_to(b"I am the kernel, honest", &to, 12, 0));
    socket.asks(2);
}
