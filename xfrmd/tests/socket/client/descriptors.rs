//! fork, exec, dup, close, passing, waiting.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::mem::zeroed;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use libc::c_int;

use crate::netlink::*;

fn child(work: impl FnOnce()) -> c_int {
    let child = unsafe { libc::fork() };
    if child == 0 {
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err();
        unsafe { libc::_exit(failed.into()) };
    }
    child
}

fn wait(child: c_int) {
    let mut status = 0;
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(status, 0);
}

pub(super) fn fork_shares() {
    let socket = Xfrm::bound(0);
    socket.asks(1);
    let other = child(|| {
        let own = Xfrm::bound(0);
        for seq in 0..300 {
            own.asks(seq);
        }
        // The parent's socket, whose port both have.
        works(socket.send(&sad_info(5)));
    });
    let mine = Xfrm::bound(0);
    for seq in 0..300 {
        mine.asks(seq);
    }
    wait(other);
    assert_eq!(head(&socket.recv().bytes), (XFRM_MSG_NEWSADINFO, 5));
    // A child that outlives its parent's connections still gets what the parent joined.
    let member = Xfrm::bound(1 << (GROUP_POLICY - 1));
    wait(child(|| {
        works(mine.send(&new_policy(1, 0)));
        assert_eq!(head(&member.recv().bytes), (XFRM_MSG_NEWPOLICY, 1));
    }));
}

pub(super) fn exec_keeps() {
    let socket = Xfrm::open_with(libc::SOCK_RAW);
    works(socket.bind(0, 0));
    works(socket.set(libc::SOL_NETLINK, 11, 1));
    wait(child(|| {
        let me = std::env::current_exe().unwrap();
        let error = Command::new(me)
            .args(["process", &socket.0.to_string()])
            .exec();
        panic!("{error}");
    }));
    // A dump that was begun before exec is continued after it by whoever reads.
    for number in 0..100 {
        works(socket.send(&new_policy(number, 0)));
    }
}

pub(super) fn dup_and_close() {
    let socket = Xfrm::bound(0);
    let copy = Xfrm(unsafe { libc::dup(socket.0) });
    let high = Xfrm(unsafe { libc::fcntl(socket.0, libc::F_DUPFD_CLOEXEC, 100) });
    assert!(high.0 >= 100);
    socket.close();
    copy.asks(1);
    high.asks(2);
    // A dump that is begun through one is continued through the other.
    for number in 0..200 {
        works(copy.send(&new_policy(number, 0)));
    }
    works(copy.send(&dump_policies(3)));
    let mut seen = 0;
    loop {
        let datagram = high.recv().bytes;
        if head(&datagram).0 == NLMSG_DONE {
            break;
        }
        seen += kinds(&datagram).len();
    }
    assert_eq!(seen, 200);
    let placed = Xfrm(unsafe { libc::dup2(copy.0, 77) });
    assert_eq!(placed.0, 77);
    copy.close();
    high.close();
    placed.asks(4);
    let null = File::open("/dev/null").unwrap();
    works(unsafe { libc::dup2(null.as_raw_fd(), 77) } as isize);
    assert_eq!(placed.recv_into(&mut [0; 4], 0), -1);
    assert_eq!(errno(), libc::ENOTSOCK);
}

pub(super) fn close_loops() {
    let first = Xfrm::bound(0);
    first.asks(1);
    for fd in 3..4096 {
        unsafe { libc::close(fd) };
    }
    Xfrm::bound(0).asks(2);
    unsafe extern "C" {
        fn closefrom(first: c_int);
    }
    unsafe { closefrom(3) };
    Xfrm::bound(0).asks(3);
    works(unsafe { libc::close_range(3, u32::MAX, 0) } as isize);
    let socket = Xfrm::bound(0);
    socket.asks(4);
    // Somebody wants a descriptor for himself that is ours.
    let null = File::open("/dev/null").unwrap().into_raw_fd();
    for fd in 890..930 {
        works(unsafe { libc::dup2(null, fd) } as isize);
    }
    socket.asks(5);
    for fd in 890..930 {
        works(unsafe { libc::close(fd) } as isize);
    }
    // And a system call made directly closes all there is.
    works(unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) } as isize);
    Xfrm::bound(0).asks(6);
}

pub(super) fn passed() {
    let mut pair = [0; 2];
    works(
        unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_DGRAM, 0, pair.as_mut_ptr()) } as isize,
    );
    let receiver = child(|| {
        // Known as foreign, then it is ours.
        let mut buffer = [0_u8; 8];
        let mut control = [0_u64; 8];
        let mut part = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: 8,
        };
        unsafe {
            let mut message: libc::msghdr = zeroed();
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = 64;
            works(libc::recvmsg(pair[1], &raw mut message, 0));
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            let socket = Xfrm(libc::CMSG_DATA(header).cast::<c_int>().read_unaligned());
            socket.asks(9);
        }
    });
    let socket = Xfrm::bound(0);
    let mut control = [0_u64; 8];
    let mut part = libc::iovec {
        iov_base: control.as_mut_ptr().cast(),
        iov_len: 1,
    };
    unsafe {
        let mut message: libc::msghdr = zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(4) as usize;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4) as usize;
        libc::CMSG_DATA(header)
            .cast::<c_int>()
            .write_unaligned(socket.0);
        works(libc::sendmsg(pair[0], &raw const message, 0));
    }
    wait(receiver);
}

pub(super) fn lowest() {
    let null = File::open("/dev/null").unwrap();
    let lowest = null.as_raw_fd();
    drop(null);
    assert_eq!(Xfrm::open().0, lowest);
    assert_eq!(Xfrm::bound(0).0, lowest + 1);
    assert_eq!(Xfrm::open().0, lowest + 2);
}

pub(super) fn reused() {
    let socket = Xfrm::bound(0);
    let fd = socket.0;
    socket.asks(1);
    // Closed behind our back; the number then is a file's.
    works(unsafe { libc::syscall(libc::SYS_close, fd) } as isize);
    let file = unsafe { libc::syscall(libc::SYS_memfd_create, c"x".as_ptr(), 0) } as c_int;
    assert_eq!(file, fd);
    let mut buffer = [0_u8; 4];
    assert_eq!(unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), 4) }, 0);
    works(unsafe { libc::write(fd, c"data".as_ptr().cast(), 4) });
    let mut file = unsafe { File::from_raw_fd(file) };
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"data");
}

pub(super) fn poll_and_select() {
    let socket = Xfrm::bound(0);
    assert!(socket.0 < 1024);
    let ready = || {
        let mut poll = libc::pollfd {
            fd: socket.0,
            events: libc::POLLIN | libc::POLLOUT,
            revents: 0,
        };
        unsafe { libc::poll(&raw mut poll, 1, 0) };
        poll.revents
    };
    assert_eq!(ready(), libc::POLLOUT);
    works(socket.send(&sad_info(1)));
    assert_eq!(ready(), libc::POLLIN | libc::POLLOUT);
    unsafe {
        let mut set: libc::fd_set = zeroed();
        libc::FD_SET(socket.0, &raw mut set);
        let none = std::ptr::null_mut();
        let count = libc::select(socket.0 + 1, &raw mut set, none, none, std::ptr::null_mut());
        assert_eq!(count, 1);
    }
    socket.recv();
    assert_eq!(ready(), libc::POLLOUT);
}
