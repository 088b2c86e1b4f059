//! Policies for some packets of a flow only: by firewall mark, and sockets' own.

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use xfrm_proto::consts::*;
use xfrm_proto::uapi::{UserPolicyInfo, UserTmpl};
use zerocopy::IntoBytes;

use crate::cases::{A, B, Pair, SECRET, SOON, echo, is_protected, udp};
use crate::namespaces::{Namespace, Wire, protocols};

/// Cases of this module.
pub(crate) static CASES: &[(&str, fn())] = &[
    ("policies_with_marks", marks),
    ("a_mark_masked", masked),
    ("a_socket_protects_what_it_sends", sender),
    ("a_socket_takes_only_what_is_protected", receiver),
    ("a_socket_that_may_not_send", blocked),
    ("a_connection_inherits_its_listeners_policies", listener),
];

const IP_XFRM_POLICY: i32 = 17;
const UDP: u8 = 17;
const TCP: u8 = 6;
const PLAIN: &[u8] = b"good morning";

/// A socket's policy: the templates' request id, 0 for none.
pub(crate) fn set_policy(socket: &impl AsFd, dir: u8, action: u8, reqid: u32) -> i32 {
    let mut info = UserPolicyInfo {
        dir,
        action,
        ..UserPolicyInfo::default()
    };
    info.sel.family = AF_INET;
    let mut policy = info.as_bytes().to_vec();
    if reqid != 0 {
        let mut template = UserTmpl {
            family: AF_INET,
            reqid,
            aalgos: u32::MAX,
            ealgos: u32::MAX,
            calgos: u32::MAX,
            ..UserTmpl::default()
        };
        template.id.proto = IPPROTO_ESP;
        policy.extend_from_slice(template.as_bytes());
    }
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            IP_XFRM_POLICY,
            policy.as_ptr().cast(),
            policy.len() as u32,
        )
    };
    if result == 0 {
        0
    } else {
        std::io::Error::last_os_error().raw_os_error().unwrap()
    }
}

/// Of this program, started again under `xfrmd run`: sockets with policies.
pub(crate) fn play(part: &str, mut arguments: impl Iterator<Item = String>) {
    let mut next = || arguments.next().unwrap();
    match part {
        // One socket protects, the other one does not.
        "sender" => {
            let to = next();
            let own = UdpSocket::bind("0.0.0.0:0").unwrap();
            assert_eq!(set_policy(&own, XFRM_POLICY_OUT, XFRM_POLICY_ALLOW, 1), 0);
            setsockopt(&own, sockopt::Mark, &5).unwrap();
            own.send_to(SECRET, &to).unwrap();
            let other = UdpSocket::bind("0.0.0.0:0").unwrap();
            other.send_to(PLAIN, &to).unwrap();
            own.send_to(SECRET, &to).unwrap();
        }
        "blocked" => {
            let to = next();
            let own = UdpSocket::bind("0.0.0.0:0").unwrap();
            assert_eq!(set_policy(&own, XFRM_POLICY_OUT, XFRM_POLICY_BLOCK, 0), 0);
            let refused = own.send_to(SECRET, &to).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
            let stream = TcpStream::connect(&to).map(drop);
            assert_eq!(stream.unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
        }
        // Writes down what it gets, until that is `PLAIN`.
        "receiver" => {
            let (address, reqid, log) = (next(), next().parse().unwrap(), next());
            let own = UdpSocket::bind(address).unwrap();
            assert_eq!(
                set_policy(&own, XFRM_POLICY_IN, XFRM_POLICY_ALLOW, reqid),
                0
            );
            std::fs::write(&log, "ready\n").unwrap();
            let mut got = [0; 1000];
            own.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            while let Ok((len, _)) = own.recv_from(&mut got) {
                let so_far = std::fs::read_to_string(&log).unwrap();
                let text = String::from_utf8_lossy(&got[..len]);
                std::fs::write(&log, format!("{so_far}{text}\n")).unwrap();
                if &got[..len] == b"end" {
                    return;
                }
            }
        }
        "listener" => {
            let (address, log) = (next(), next());
            let own = TcpListener::bind(address).unwrap();
            for dir in [XFRM_POLICY_IN, XFRM_POLICY_OUT] {
                assert_eq!(set_policy(&own, dir, XFRM_POLICY_ALLOW, 1), 0);
            }
            std::fs::write(&log, "ready\n").unwrap();
            let (mut stream, _) = own.accept().unwrap();
            std::io::copy(&mut stream.try_clone().unwrap(), &mut stream).unwrap();
        }
        "connector" => {
            use std::io::{Read, Write};
            let to: std::net::SocketAddr = next().parse().unwrap();
            let socket = nix::sys::socket::socket(
                nix::sys::socket::AddressFamily::Inet,
                nix::sys::socket::SockType::Stream,
                nix::sys::socket::SockFlag::empty(),
                None,
            )
            .unwrap();
            for dir in [XFRM_POLICY_IN, XFRM_POLICY_OUT] {
                assert_eq!(set_policy(&socket, dir, XFRM_POLICY_ALLOW, 1), 0);
            }
            let std::net::SocketAddr::V4(to) = to else {
                panic!("IPv4");
            };
            nix::sys::socket::connect(socket.as_raw_fd(), &nix::sys::socket::SockaddrIn::from(to))
                .unwrap();
            let mut stream = TcpStream::from(socket);
            let sent: Vec<u8> = SECRET.iter().copied().cycle().take(200_000).collect();
            let mut other = stream.try_clone().unwrap();
            let all = sent.clone();
            let writer = std::thread::spawn(move || {
                other.write_all(&all).unwrap();
                other.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let mut got = Vec::new();
            stream.read_to_end(&mut got).unwrap();
            writer.join().unwrap();
            assert!(got == sent);
        }
        _ => panic!("{part}"),
    }
}

fn me() -> String {
    std::env::current_exe().unwrap().display().to_string()
}

fn log(name: &str) -> String {
    let file = format!("xfrmd-own-{name}-{}", std::process::id());
    std::env::temp_dir().join(file).display().to_string()
}

fn wait_for(log: &str, what: &str) -> String {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    loop {
        let seen = std::fs::read_to_string(log).unwrap_or_default();
        if seen.contains(what) || std::time::Instant::now() > deadline {
            return seen;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn marked(namespace: &Namespace, mark: u32) -> UdpSocket {
    let socket = namespace.inside(|| udp("0.0.0.0:0"));
    setsockopt(&socket, sockopt::Mark, &mark).unwrap();
    socket
}

/// The SPIs of ESP packets, in order of appearance.
fn spis(packets: &[Vec<u8>]) -> Vec<u32> {
    let esp = packets.iter().filter(|it| it[0] == 0x45 && it[9] == 50);
    esp.map(|it| u32::from_be_bytes(it[20..24].try_into().unwrap()))
        .collect()
}

/// A namespace takes what SAs have protected once it has any policy.
fn attach_receiver(pair: &mut Pair) {
    pair.xb
        .sh("ip xfrm policy add dir in src 10.9.9.9 action allow");
}

fn marks() {
    let mut pair = Pair::new();
    attach_receiver(&mut pair);
    let sa = |spi: u32, reqid: u32| {
        format!(
            "ip xfrm state add src {A} dst {B} proto esp spi {spi} reqid {reqid} mode transport \
             aead 'rfc4106(gcm(aes))' 0x0102030405060708090a0b0c0d0e0f1011121314 128; "
        )
    };
    let sas = sa(1, 1) + &sa(2, 2);
    pair.xb.sh(&sas);
    pair.xa.sh(&sas);
    for (mark, reqid) in [(1, 1), (2, 2)] {
        pair.xa.sh(&format!(
            "ip xfrm policy add dir out src {A} dst {B} mark {mark} \
             tmpl proto esp reqid {reqid} mode transport"
        ));
    }
    pair.xa.sh(&format!(
        "ip xfrm policy add dir out src {A} dst {B} mark 3 action block"
    ));
    let server = pair.b.inside(|| udp(&format!("{B}:0")));
    let target = server.local_addr().unwrap();
    let wire = Wire::listen(&pair.a, "v0");
    let mut got = [0; 100];
    for mark in [2, 1, 0x4000_0000, 2] {
        marked(&pair.a, mark).send_to(PLAIN, target).unwrap();
        let (len, _) = server.recv_from(&mut got).expect("any mark");
        assert_eq!(&got[..len], PLAIN);
    }
    let refused = marked(&pair.a, 3).send_to(PLAIN, target).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
    let packets = wire.stop();
    assert_eq!(spis(&packets), [2, 1, 2]);
    assert_eq!(protocols(&packets), [50, UDP]);
}

/// Some bits of the mark say which policy, the others where the outer packet goes.
fn masked() {
    let mut pair = Pair::new();
    attach_receiver(&mut pair);
    pair.sas("transport", A, B);
    pair.xa.sh(&format!(
        "ip xfrm policy add dir out src {A} dst {B} mark 0x10 mask 0xf0 \
         tmpl proto esp reqid 1 mode transport"
    ));
    pair.a.sh("ip rule add fwmark 0x1/0xf prohibit");
    let server = pair.b.inside(|| udp(&format!("{B}:0")));
    let target = server.local_addr().unwrap();
    let wire = Wire::listen(&pair.a, "v0");
    let mut got = [0; 100];
    marked(&pair.a, 0x12).send_to(SECRET, target).unwrap();
    server.recv_from(&mut got).expect("protected");
    let stopped = marked(&pair.a, 0x11).send_to(SECRET, target);
    assert!(stopped.is_err());
    is_protected(&wire.stop());
}

fn sender() {
    let mut pair = Pair::new();
    attach_receiver(&mut pair);
    pair.sas("transport", A, B);
    let server = pair.b.inside(|| udp(&format!("{B}:0")));
    let wire = Wire::listen(&pair.a, "v0");
    let to = server.local_addr().unwrap();
    pair.xa.sh(&format!("timeout 30 {} own sender {to}", me()));
    let mut got = [0; 100];
    let mut seen = Vec::new();
    for _ in 0..3 {
        let (len, _) = server.recv_from(&mut got).expect("all of them");
        seen.push(got[..len].to_vec());
    }
    seen.sort();
    assert_eq!(seen, [SECRET, SECRET, PLAIN]);
    let packets = wire.stop();
    assert_eq!(spis(&packets).len(), 2);
    crate::cases::no_secret(&packets);
    assert!(protocols(&packets).contains(&UDP));
    // It is gone, and with it all that it needed.
    assert_eq!(pair.xa.sh("ip xfrm policy"), "");
}

fn receiver() {
    let mut pair = Pair::new();
    pair.sas("transport", A, B);
    let (one, two) = (log("one"), log("two"));
    for (port, reqid, log) in [(7000, 1, &one), (7001, 2, &two)] {
        pair.xb.sh(&format!(
            "timeout 60 {} own receiver {B}:{port} {reqid} {log} > /dev/null 2>&1 < /dev/null &",
            me()
        ));
        wait_for(log, "ready");
    }
    let other = pair.b.inside(|| udp(&format!("{B}:0")));
    let plain = pair.a.inside(|| udp("0.0.0.0:0"));
    plain.send_to(PLAIN, (B, 7000)).unwrap();
    plain.send_to(PLAIN, other.local_addr().unwrap()).unwrap();
    other
        .recv_from(&mut [0; 100])
        .expect("no policy is for this");
    pair.xb.counts("XfrmInTmplMismatch", 1);
    pair.xa.sh(&format!(
        "ip xfrm policy add dir out src {A} dst {B} tmpl proto esp reqid 1 mode transport"
    ));
    plain.send_to(b"protected", (B, 7001)).unwrap();
    plain.send_to(b"protected", (B, 7000)).unwrap();
    plain.send_to(b"end", (B, 7000)).unwrap();
    assert_eq!(wait_for(&one, "end"), "ready\nprotected\nend\n");
    // An SA of another request id is not what that one wants.
    assert_eq!(wait_for(&two, "ready"), "ready\n");
    pair.xb.counts("XfrmInTmplMismatch", 2);
    for log in [one, two] {
        std::fs::remove_file(log).unwrap();
    }
}

fn blocked() {
    let mut pair = Pair::new();
    let server = pair.b.inside(|| udp(&format!("{B}:0")));
    server.set_read_timeout(Some(SOON)).unwrap();
    let to = server.local_addr().unwrap();
    pair.xa.sh(&format!("timeout 30 {} own blocked {to}", me()));
    assert!(server.recv_from(&mut [0; 100]).is_err());
    pair.xa.counts("XfrmOutPolBlock", 1);
    // Others may.
    echo(&pair.a, &pair.b, "0.0.0.0:0", &format!("{B}:0"), 10);
}

fn listener() {
    let mut pair = Pair::new();
    pair.sas("transport", A, B);
    let ready = log("listener");
    pair.xb.sh(&format!(
        "timeout 60 {} own listener {B}:7000 {ready} > /dev/null 2>&1 < /dev/null &",
        me()
    ));
    wait_for(&ready, "ready");
    let wire = Wire::listen(&pair.a, "v0");
    pair.xa
        .sh(&format!("timeout 30 {} own connector {B}:7000", me()));
    let packets = wire.stop();
    is_protected(&packets);
    assert!(!protocols(&packets).contains(&TCP));
    std::fs::remove_file(ready).unwrap();
}
