//! Groups, events, rights.

use libc::c_int;

use crate::netlink::*;
use crate::process::{NOBODY, me, succeeds, xfrmd};

const NETLINK_ADD_MEMBERSHIP: c_int = 1;
const NETLINK_DROP_MEMBERSHIP: c_int = 2;
const NETLINK_LIST_MEMBERSHIPS: c_int = 9;
const POLICY_BIT: u32 = 1 << (GROUP_POLICY - 1);

pub(super) fn events_before_ack() {
    let member = Xfrm::bound(POLICY_BIT);
    let other = Xfrm::bound(1);
    works(member.send(&new_policy(7, ACK)));
    let event = member.recv();
    assert_eq!(head(&event.bytes), (XFRM_MSG_NEWPOLICY, 7));
    assert_eq!((event.port, event.groups), (0, POLICY_BIT));
    assert_eq!(error_of(&member.recv().bytes), 0);
    member.is_quiet();
    other.is_quiet();
    // A blocking reader is woken, and a peek with no room shows the group too.
    let reader = std::thread::spawn(move || member.recv_with(libc::MSG_PEEK | libc::MSG_TRUNC));
    works(other.send(&new_policy(8, 0)));
    let event = reader.join().unwrap();
    assert_eq!((event.port, event.groups), (0, POLICY_BIT));
    assert_eq!(head(&member.recv().bytes), (XFRM_MSG_NEWPOLICY, 8));
}

pub(super) fn memberships() {
    let socket = Xfrm::open();
    works(socket.bind(0, u32::MAX));
    let (port, groups) = socket.name();
    assert_ne!(port, 0);
    assert_eq!(groups, u32::MAX);
    works(socket.bind(port, POLICY_BIT));
    assert_eq!(socket.name(), (port, POLICY_BIT));
    let listed = socket.option::<u32>(libc::SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS);
    assert_eq!(listed, POLICY_BIT);
    let change = |option, group| socket.set(libc::SOL_NETLINK, option, group);
    works(change(NETLINK_ADD_MEMBERSHIP, 1));
    assert_eq!(socket.name().1, POLICY_BIT | 1);
    works(change(NETLINK_DROP_MEMBERSHIP, GROUP_POLICY as c_int));
    assert_eq!(socket.name().1, 1);
    fails(change(NETLINK_ADD_MEMBERSHIP, 0), libc::EINVAL);
    works(socket.send(&new_policy(1, 0)));
    socket.is_quiet();
    // Joining needs no port; events come as soon as there is one, and as on Linux none before.
    let early = Xfrm::open();
    works(early.set(
        libc::SOL_NETLINK,
        NETLINK_ADD_MEMBERSHIP,
        GROUP_POLICY as c_int,
    ));
    works(socket.send(&new_policy(2, 0)));
    early.is_quiet();
    works(early.bind(0, POLICY_BIT));
    works(socket.send(&new_policy(3, 0)));
    assert_eq!(head(&early.recv().bytes), (XFRM_MSG_NEWPOLICY, 3));
    early.close();
    works(socket.send(&new_policy(4, 0)));
}

pub(super) fn unread_events_overrun() {
    let member = Xfrm::bound(POLICY_BIT);
    works(member.set(libc::SOL_SOCKET, libc::SO_RCVBUF, 4096));
    let other = Xfrm::bound(0);
    for number in 0..100 {
        works(other.send(&new_policy(number, 0)));
    }
    let mut events = 0;
    let mut overruns = 0;
    // Without privileges the loss is told when there is room: soon, but not at once.
    for _ in 0..200 {
        match member.recv_into(&mut [0; 512], libc::MSG_DONTWAIT) {
            -1 if errno() == libc::ENOBUFS => overruns += 1,
            -1 => {
                assert_eq!(errno(), libc::EAGAIN);
                if overruns > 0 {
                    break;
                }
                let mut ready = libc::pollfd {
                    fd: member.0,
                    events: libc::POLLIN,
                    revents: 0,
                };
                unsafe { libc::poll(&raw mut ready, 1, 100) };
            }
            _ => events += 1,
        }
    }
    assert_eq!(overruns, 1);
    assert!((1..100).contains(&events), "{events}");
    works(other.send(&new_policy(1000, 0)));
    assert_eq!(head(&member.recv().bytes), (XFRM_MSG_NEWPOLICY, 1000));
}

/// A member that reads nothing, and more events than it has room for.
pub(super) fn flood() {
    let member = Xfrm::bound(u32::MAX);
    works(member.set(libc::SOL_SOCKET, libc::SO_RCVBUF, 4096));
    let other = Xfrm::bound(0);
    for number in 0..500 {
        works(other.send(&new_policy(number, 0)));
    }
    let overrun = member.recv_into(&mut [0; 512], libc::MSG_DONTWAIT);
    fails(overrun, libc::ENOBUFS);
}

/// Instances side by side in one namespace: the host delivers the events of each to the members of all.
pub(super) fn other_instances() {
    let member = Xfrm::bound(u32::MAX);
    works(member.set(libc::SOL_SOCKET, libc::SO_RCVBUF, 4096));
    let flood = || {
        let mut another = xfrmd();
        another.args(["run", "--"]).arg(me().get_program());
        another.args(["client", "an_instance_that_floods_its_members"]);
        another
    };
    succeeds(&mut flood());
    let mut ready = libc::pollfd {
        fd: member.0,
        events: libc::POLLIN,
        revents: 0,
    };
    assert_eq!(unsafe { libc::poll(&raw mut ready, 1, 0) }, 0);
    member.is_quiet();
    // While the other one floods, all of its own arrive, and nothing else.
    let mut flooding = flood().spawn().unwrap();
    let other = Xfrm::bound(0);
    for number in 0..500 {
        works(other.send(&new_policy(number, 0)));
        let event = member.recv().bytes;
        assert_eq!(head(&event), (XFRM_MSG_NEWPOLICY, number));
    }
    assert!(flooding.wait().unwrap().success());
    member.is_quiet();
    event_of_any_room(member, other);
}

/// An event is as long as Linux's, into room of any size, and says so in every way.
fn event_of_any_room(member: Xfrm, other: Xfrm) {
    works(other.send(&new_policy(7000, 0)));
    let peek = libc::MSG_PEEK | libc::MSG_TRUNC;
    let len = works(member.recv_into(&mut [], peek));
    for room in [
        len - 13,
        len - 12,
        len - 1,
        len,
        len + 1,
        len + 12,
        len + 13,
    ] {
        let mut buffer = vec![0xee; len + 32];
        assert_eq!(works(member.recv_into(&mut buffer[..room], peek)), len);
        let shown = len.min(room);
        let peeked = member.recv_into(&mut buffer[..room], libc::MSG_PEEK);
        assert_eq!(works(peeked), shown, "{room}");
        assert!(buffer[room..].iter().all(|&byte| byte == 0xee), "{room}");
        let flags = member.peeked_flags(&mut buffer[..room]);
        assert_eq!(flags & libc::MSG_TRUNC != 0, room < len, "{room}");
    }
    let event = member.recv();
    assert_eq!(head(&event.bytes), (XFRM_MSG_NEWPOLICY, 7000));
    assert_eq!(event.bytes.len(), len);
    let said = u32::from_ne_bytes(event.bytes[..4].try_into().unwrap());
    assert_eq!(said as usize, len);
    member.is_quiet();
}

fn in_a_child(work: impl FnOnce()) {
    let child = unsafe { libc::fork() };
    if child == 0 {
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err();
        unsafe { libc::_exit(failed.into()) };
    }
    let mut status = 0;
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(status, 0);
}

pub(super) fn other_users() {
    let socket = Xfrm::bound(0);
    assert_eq!(socket.request(&new_policy(1, ACK)), 0);
    in_a_child(move || {
        works(unsafe { libc::setuid(NOBODY) } as isize);
        let own = Xfrm::bound(0);
        assert_eq!(own.request(&new_policy(2, ACK)), libc::EPERM);
        assert_eq!(
            own.request(&message(XFRM_MSG_GETSADINFO, REQUEST, 1, &[0; 4])),
            libc::EPERM
        );
        works(own.send(&dump_policies(3)));
        assert_eq!(error_of(&own.recv().bytes), libc::EPERM);
        // The socket of a privileged parent does not lend its rights.
        assert_eq!(socket.request(&new_policy(3, ACK)), libc::EPERM);
        fails(Xfrm::open().bind(0, POLICY_BIT), libc::EPERM);
        let added = own.set(libc::SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, 4);
        fails(added, libc::EPERM);
        assert_eq!(own.name().1, 0);
        let to = address(1, 0);
        fails(own.send_to(&sad_info(1), &to, 12, 0), libc::EPERM);
    });
    assert_eq!(socket.request(&new_policy(4, ACK)), 0);
}

/// Others need the capability, which counts without the uid.
pub(super) fn dropped_capabilities() {
    const PR_SET_KEEPCAPS: c_int = 8;
    in_a_child(|| {
        #[repr(C)]
        struct Header(u32, c_int);
        let set = |bits: u32| {
            let mut header = Header(0x2008_0522, 0);
            let data = [bits, bits, 0, 0, 0, 0];
            let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
            works(result as isize);
        };
        let socket = Xfrm::bound(0);
        unsafe { libc::prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) };
        works(unsafe { libc::setuid(NOBODY) } as isize);
        set(1 << 12);
        assert_eq!(socket.request(&new_policy(1, ACK)), 0);
        set(0);
        // A system call made directly goes unnoticed for some milliseconds.
        std::thread::sleep(std::time::Duration::from_millis(30));
        assert_eq!(socket.request(&new_policy(2, ACK)), libc::EPERM);
    });
}
