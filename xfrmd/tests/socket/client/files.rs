//! Files in /proc, sockets of other kinds, namespaces.

use std::ffi::CString;
use std::fs::{File, read_to_string, write};
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use crate::netlink::*;
use crate::process::{NOBODY, succeeds};

const STAT: &str = "/proc/net/xfrm_stat";
const ACQ_EXPIRES: &str = "/proc/sys/net/core/xfrm_acq_expires";

pub(super) fn read_and_write() {
    let text = read_to_string(STAT).unwrap();
    assert!(text.starts_with("XfrmInError             \t0\n"), "{text}");
    assert_eq!(text, read_to_string("/proc/self/net/xfrm_stat").unwrap());
    assert_eq!(read_to_string(ACQ_EXPIRES).unwrap(), "30\n");
    // As charon does it.
    let path = CString::new(ACQ_EXPIRES).unwrap();
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
    let fd = unsafe { libc::open(path.as_ptr(), flags, 0o644) };
    works(fd as isize);
    assert_eq!(unsafe { libc::write(fd, c"165".as_ptr().cast(), 3) }, 3);
    fails(
        unsafe { libc::write(fd, c"no".as_ptr().cast(), 2) },
        libc::EINVAL,
    );
    works(unsafe { libc::close(fd) } as isize);
    assert_eq!(read_to_string(ACQ_EXPIRES).unwrap(), "165\n");
    let larval = "/proc/sys/net/core/xfrm_larval_drop";
    write(larval, "-1\n").unwrap();
    assert_eq!(read_to_string(larval).unwrap(), "-1\n");
    let etime = "/proc/sys/net/core/xfrm_aevent_etime";
    assert_eq!(
        write(etime, "-1").unwrap_err().raw_os_error(),
        Some(libc::EINVAL)
    );
    assert_eq!(read_to_string(etime).unwrap(), "10\n");
    assert_eq!(
        read_to_string("/proc/sys/net/core/xfrm_aevent_rseqth").unwrap(),
        "2\n"
    );
    // As pluto does it.
    unsafe {
        let mut status: libc::stat = std::mem::zeroed();
        works(libc::stat(path.as_ptr(), &raw mut status) as isize);
        assert_eq!(status.st_mode, libc::S_IFREG | 0o644);
        works(libc::access(path.as_ptr(), libc::R_OK) as isize);
        // stdio writes from inside libc, where nothing can be intercepted.
        let stream = libc::fopen(path.as_ptr(), c"w".as_ptr());
        assert!(!stream.is_null());
        libc::fputs(c"44\n".as_ptr(), stream);
        libc::fclose(stream);
    }
    assert_eq!(read_to_string(ACQ_EXPIRES).unwrap(), "44\n");
    assert!(File::create(STAT).is_err());
}

pub(super) fn from_a_shell() {
    let script = format!("echo 55 > {ACQ_EXPIRES} && read value < {ACQ_EXPIRES} && echo $value");
    assert_eq!(succeeds(Command::new("sh").args(["-c", &script])), "55\n");
    let script = format!("(echo 56 | cat > {ACQ_EXPIRES}) && cat {ACQ_EXPIRES} && wc -l < {STAT}");
    let text = succeeds(Command::new("sh").args(["-c", &script]));
    assert!(text.starts_with("56\n"), "{text}");
    assert!(
        text.trim_end()
            .ends_with(|digit: char| digit.is_ascii_digit())
    );
}

pub(super) fn need_rights() {
    works(unsafe { libc::setuid(NOBODY) } as isize);
    read_to_string(STAT).unwrap();
    let refused = write(ACQ_EXPIRES, "1").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
    assert_eq!(read_to_string(ACQ_EXPIRES).unwrap(), "30\n");
}

/// Policies of the host's own SPD; `None` where the host has none to have.
fn host_policies() -> Option<usize> {
    let fd = unsafe {
        libc::syscall(
            libc::SYS_socket,
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            6,
        )
    };
    if fd < 0 {
        return None;
    }
    let request = dump_policies(1);
    let mut seen = 0;
    unsafe {
        libc::syscall(libc::SYS_write, fd, request.as_ptr(), request.len());
        loop {
            let mut buffer = [0_u8; 16384];
            let len = libc::syscall(libc::SYS_read, fd, buffer.as_mut_ptr(), buffer.len());
            let kinds = kinds(&buffer[..works(len as isize)]);
            seen += kinds
                .iter()
                .filter(|&&kind| kind == XFRM_MSG_NEWPOLICY)
                .count();
            if kinds
                .iter()
                .any(|&kind| kind == NLMSG_DONE || kind == NLMSG_ERROR)
            {
                break;
            }
        }
        libc::syscall(libc::SYS_close, fd);
    }
    Some(seen)
}

pub(super) fn udp_sockets() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let mut policy = [0_u8; 168];
    // Allow, out; byte and packet limits none.
    policy[56..88].fill(0xff);
    policy[160] = 1;
    let set = |socket: Xfrm, level, option, bytes: &[u8]| unsafe {
        let len = bytes.len() as libc::socklen_t;
        libc::setsockopt(socket.0, level, option, bytes.as_ptr().cast(), len) as isize
    };
    let v4 = Xfrm(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0) });
    let v6 = Xfrm(unsafe { libc::socket(libc::AF_INET6, libc::SOCK_DGRAM, 0) });
    policy[40..42].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    works(set(v4, libc::IPPROTO_IP, 17, &policy));
    policy[40..42].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
    works(set(v6, libc::IPPROTO_IPV6, 35, &policy));
    assert!(host_policies().is_none_or(|count| count == 0));
    assert_eq!(policies(), 2);
    fails(set(v4, libc::IPPROTO_IP, 17, &policy[..100]), libc::EINVAL);
    fails(set(v6, libc::IPPROTO_IP, 17, &policy), libc::EOPNOTSUPP);
    fails(set(v4, libc::IPPROTO_IPV6, 35, &policy), libc::ENOPROTOOPT);
    // They go with the last descriptor, and with the process; a child's copy does not count.
    let child = unsafe { libc::fork() };
    if child == 0 {
        v4.close();
        v6.close();
        unsafe { libc::_exit(0) };
    }
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    assert_eq!(policies(), 2);
    let copy = Xfrm(unsafe { libc::dup(v4.0) });
    v4.close();
    assert_eq!(policies(), 2);
    copy.close();
    assert_eq!(policies(), 1);
    works(unsafe { libc::setsockopt(v6.0, libc::IPPROTO_IPV6, 35, std::ptr::null(), 0) } as isize);
    assert_eq!(policies(), 0);
    works(v6.set(libc::IPPROTO_UDP, 100, 2));
    // What is no UDP socket is the host's to judge.
    let tcp = Xfrm(unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) });
    assert_eq!(tcp.set(libc::IPPROTO_UDP, 100, 2), -1);
}

fn policies() -> usize {
    let socket = Xfrm::bound(0);
    works(socket.send(&dump_policies(1)));
    let mut seen = 0;
    loop {
        let datagram = socket.recv().bytes;
        if head(&datagram).0 == NLMSG_DONE {
            socket.close();
            return seen;
        }
        seen += kinds(&datagram).len();
    }
}

pub(super) fn namespaces_are_apart() {
    let here = File::open("/proc/thread-self/ns/net").unwrap();
    let socket = Xfrm::bound(0);
    assert_eq!(socket.request(&new_policy(1, ACK)), 0);
    write(ACQ_EXPIRES, "31").unwrap();
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    assert_eq!(read_to_string(ACQ_EXPIRES).unwrap(), "30\n");
    let inside = Xfrm::bound(1 << (GROUP_POLICY - 1));
    assert_eq!(policies(), 0);
    works(inside.send(&new_policy(2, 0)));
    works(inside.send(&new_policy(3, 0)));
    assert_eq!(head(&inside.recv().bytes), (XFRM_MSG_NEWPOLICY, 2));
    assert_eq!(policies(), 2);
    // A socket stays where it was made.
    assert_eq!(socket.request(&new_policy(2, ACK)), 0);
    setns(&here, CloneFlags::CLONE_NEWNET).unwrap();
    assert_eq!(policies(), 2);
    assert_eq!(read_to_string(ACQ_EXPIRES).unwrap(), "31\n");
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        policies()
    });
    assert_eq!(thread.join().unwrap(), 0);
    assert_eq!(policies(), 2);
}

pub(super) fn user_namespaces() {
    let outside = Xfrm::bound(0);
    assert_eq!(outside.request(&new_policy(1, ACK)), 0);
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).unwrap();
    let inside = Xfrm::bound(1 << (GROUP_POLICY - 1));
    assert_eq!(policies(), 0);
    works(inside.send(&new_policy(5, ACK)));
    assert_eq!(head(&inside.recv().bytes), (XFRM_MSG_NEWPOLICY, 5));
    assert_eq!(error_of(&inside.recv().bytes), 0);
    assert_eq!(policies(), 1);
    outside.asks(3);
}

/// In a mount namespace that hides the daemon's pathname, and a network namespace without its
/// abstract address.
pub(super) fn hidden_pathname() {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    for directory in ["/tmp", "/run", "/var/tmp", "/dev/shm"] {
        mount(
            Some("tmpfs"),
            directory,
            Some("tmpfs"),
            MsFlags::empty(),
            none,
        )
        .unwrap();
    }
    Xfrm::bound(0).asks(1);
}
