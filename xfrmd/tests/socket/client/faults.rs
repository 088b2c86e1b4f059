//! What goes wrong because somebody wants it to.

use crate::netlink::*;
use crate::process::{succeeds, xfrmd};

const SOL_NETLINK: i32 = 270;
const NETLINK_EXT_ACK: i32 = 11;

/// Switches a fault on.
#[track_caller]
fn fault(text: &str) {
    succeeds(xfrmd().args(["fault", "add", text]));
}

/// Switches all of them off; how often they had struck.
#[track_caller]
fn struck() -> u64 {
    let listed = succeeds(xfrmd().args(["fault", "list", "-j"]));
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    succeeds(xfrmd().args(["fault", "clear"]));
    let faults = listed["faults"].as_array().unwrap();
    let counts = faults.iter().map(|it| it["struck"].as_u64().unwrap());
    counts.sum()
}

pub(super) fn requests() {
    let socket = Xfrm::open();
    fault("netlink.error message=NEWPOLICY nth=2 errno=ENOMEM extack=\"no room\"");
    assert_eq!(socket.request(&new_policy(1, ACK)), 0);
    works(socket.set(SOL_NETLINK, NETLINK_EXT_ACK, 1));
    works(socket.send(&new_policy(2, ACK)));
    let refused = socket.recv().bytes;
    assert_eq!(error_of(&refused), libc::ENOMEM);
    assert!(refused.windows(8).any(|it| it == b"no room\0"));
    // It has not been done.
    assert_eq!(socket.request(&new_policy(2, ACK)), 0);
    assert_eq!(struck(), 1);

    fault("netlink.error message=NEWPOLICY nth=1 errno=EIO when=after");
    assert_eq!(socket.request(&new_policy(3, ACK)), libc::EIO);
    assert_eq!(socket.request(&new_policy(3, ACK)), libc::EEXIST);
    assert_eq!(struck(), 1);

    fault("netlink.reply-lost message=NEWPOLICY");
    works(socket.send(&new_policy(4, ACK)));
    socket.is_quiet();
    socket.asks(5);
    assert_eq!(struck(), 1);

    fault("netlink.overrun message=GETSADINFO");
    works(socket.send(&sad_info(6)));
    fails(socket.recv_into(&mut [0; 64], 0), libc::ENOBUFS);
    socket.is_quiet();
    assert_eq!(struck(), 1);

    fault("netlink.reply-late message=GETSADINFO delay=50ms");
    works(socket.send(&sad_info(7)));
    assert_eq!(head(&socket.recv_with(0).bytes), (XFRM_MSG_NEWSADINFO, 7));
    assert_eq!(struck(), 1);
    socket.asks(8);
}

pub(super) fn dumps() {
    let socket = Xfrm::open();
    for number in 1..4 {
        assert_eq!(socket.request(&new_policy(number, ACK)), 0);
    }
    fault("netlink.dump-cut");
    works(socket.send(&dump_policies(1)));
    socket.is_quiet();
    assert_eq!(struck(), 1);
    // Nothing of it is left.
    fault("netlink.dump-error errno=ENOBUFS");
    works(socket.send(&dump_policies(2)));
    let end = socket.recv().bytes;
    assert_eq!(head(&end), (NLMSG_DONE, 2));
    assert_eq!(end[16..20], (-libc::ENOBUFS).to_ne_bytes());
    socket.is_quiet();
    assert_eq!(struck(), 1);

    fault("netlink.dump-error errno=ENOBUFS chunk=2");
    works(socket.send(&dump_policies(3)));
    assert_eq!(kinds(&socket.recv().bytes).len(), 3);
    assert_eq!(socket.recv().bytes[16..20], (-libc::ENOBUFS).to_ne_bytes());
    socket.is_quiet();
    assert_eq!(struck(), 1);

    fault("netlink.dump-interrupted");
    works(socket.send(&dump_policies(4)));
    for kinds_wanted in [3, 1] {
        let chunk = socket.recv().bytes;
        assert_eq!(kinds(&chunk).len(), kinds_wanted);
        assert_ne!(chunk[6] & 0x10, 0);
    }
    assert_eq!(struck(), 1);
    works(socket.send(&dump_policies(5)));
    assert_eq!(socket.recv().bytes[6] & 0x10, 0);
}

pub(super) fn events() {
    let socket = Xfrm::open();
    let listener = Xfrm::bound(1 << (GROUP_POLICY - 1));
    let add = |number| assert_eq!(socket.request(&new_policy(number, ACK)), 0);
    // The last byte of the source address tells policies apart.
    let heard = || {
        let event = listener.recv().bytes;
        assert_eq!(head(&event).0, XFRM_MSG_NEWPOLICY);
        event[16 + 16 + 3]
    };
    fault("netlink.event-lost message=NEWPOLICY nth=1");
    add(1);
    add(2);
    assert_eq!(heard(), 2);
    assert_eq!(struck(), 1);

    fault("netlink.event-twice dst=11.0.0.1");
    add(3);
    assert_eq!([heard(), heard()], [3, 3]);
    assert_eq!(struck(), 1);

    fault("netlink.event-swapped nth=1");
    for number in 4..7 {
        add(number);
    }
    assert_eq!([heard(), heard(), heard()], [5, 4, 6]);
    assert_eq!(struck(), 1);

    fault("netlink.event-overrun nth=1");
    add(7);
    fails(listener.recv_into(&mut [0; 64], 0), libc::ENOBUFS);
    add(8);
    assert_eq!(heard(), 8);
    assert_eq!(struck(), 1);

    fault("netlink.event-late nth=1 delay=20ms");
    add(9);
    let late = listener.recv_with(0).bytes;
    assert_eq!(late[16 + 16 + 3], 9);
    assert_eq!(struck(), 1);
    listener.is_quiet();
}

/// A killed daemon goes on, and its faults do not begin again.
pub(super) fn crashes() {
    let socket = Xfrm::open();
    for (number, when, done) in [(1, "before", 0), (2, "after", libc::EEXIST)] {
        fault(&format!("daemon.crash message=NEWPOLICY nth=1 when={when}"));
        fails(socket.send(&new_policy(number, ACK)), libc::ECONNREFUSED);
        assert_eq!(socket.request(&new_policy(number, ACK)), done, "{when}");
        assert_eq!(struck(), 1);
    }
}
