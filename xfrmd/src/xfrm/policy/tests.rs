//! Policy requests through the façade. What the kernels answer is compared by
//! the suite of scenarios; here is what that suite cannot show.

use dataplane::netns::Limits;
use dataplane::profile::V7_2;
use dataplane::spd::SocketKey;
use dataplane::{Now, SeededEntropy};
use xfrm_proto::consts::*;
use xfrm_proto::extack::AckOptions;
use xfrm_proto::reply::{Writer, messages};
use xfrm_proto::uapi::*;
use zerocopy::IntoBytes;

use crate::emulator::{Emulator, Inputs, NetnsId, Peer};

struct Machine {
    emulator: Emulator,
    netns: NetnsId,
}

impl Machine {
    fn new() -> Self {
        let mut emulator = Emulator::new(&V7_2, Limits::default());
        let netns = emulator.create_netns();
        emulator.set_listeners(netns, group::POLICY, 1);
        Self { emulator, netns }
    }

    /// All messages that a request causes.
    fn request(&mut self, kind: u16, write: impl FnOnce(&mut Writer<'_>)) -> Vec<Vec<u8>> {
        let mut datagram = Vec::new();
        let mut w = Writer::begin(&mut datagram, kind, NLM_F_REQUEST | NLM_F_ACK, 1, 0);
        write(&mut w);
        w.end();
        let peer = Peer {
            netns: self.netns,
            port: 7,
            options: AckOptions::default(),
            privileged: true,
            recv_bytes: 0,
        };
        let inputs = Inputs {
            now: Now::default(),
            entropy: &mut SeededEntropy::new(1),
        };
        self.emulator.handle_datagram(inputs, peer, &datagram);
        let mut got = Vec::new();
        while let Some(datagram) = self.emulator.poll_datagram() {
            got.extend(messages(datagram.bytes).map(|(_, message)| message.to_vec()));
        }
        got
    }

    fn spd_info(&mut self) -> SpdInfo {
        let got = self.request(XFRM_MSG_GETSPDINFO, |w| w.put(&[0; 4]));
        SpdInfo::read(&got[0][24..]).unwrap()
    }
}

fn info() -> UserPolicyInfo {
    UserPolicyInfo {
        sel: Selector {
            family: AF_INET,
            ..Selector::default()
        },
        dir: XFRM_POLICY_OUT,
        ..UserPolicyInfo::default()
    }
}

#[test]
fn template_family_zero_is_written_into_the_request() {
    let tmpl = UserTmpl {
        mode: 9,
        ..UserTmpl::default()
    };
    let got = Machine::new().request(XFRM_MSG_NEWPOLICY, |w| {
        w.body(&info());
        w.attr_pod(XFRMA_TMPL, &tmpl);
    });
    let echo = &got[0][20..];
    let family = NLMSG_HDRLEN + UserPolicyInfo::SIZE + NLA_HDRLEN + 24;
    assert_eq!(echo[family..family + 2], AF_INET.to_ne_bytes());
}

#[test]
fn setdefault_event_is_a_getdefault() {
    let got = Machine::new().request(XFRM_MSG_SETDEFAULT, |w| {
        w.body(&UserPolicyDefault {
            input: 1,
            fwd: 0,
            out: 7,
        });
    });
    let header = NlMsgHdr::read(&got[0]).unwrap();
    assert_eq!(
        (header.kind, header.seq, header.pid, header.len),
        (XFRM_MSG_GETDEFAULT, 0, 0, 20)
    );
    assert_eq!(got[0][16..20], [1, 2, 2, 0]);
}

#[test]
fn a_full_table_is_enomem() {
    let mut machine = Machine::new();
    let limits = Limits {
        max_policies: 1,
        ..Limits::default()
    };
    machine.emulator = Emulator::new(&V7_2, limits);
    machine.netns = machine.emulator.create_netns();
    let errnos = [1, 2].map(|user| {
        let mut info = info();
        info.sel.user = user;
        let got = machine.request(XFRM_MSG_NEWPOLICY, |w| w.body(&info));
        -i32::from_ne_bytes(got[0][16..20].try_into().unwrap())
    });
    assert_eq!(errnos, [0, errno::ENOMEM]);
}

#[test]
fn socket_policies_are_counted_and_checked() {
    let mut machine = Machine::new();
    let (socket, netns) = (SocketKey(1), machine.netns);
    let set = |machine: &mut Machine, families: (u16, u16), value: Option<&[u8]>| {
        let now = Now::default();
        let (family, option) = families;
        machine
            .emulator
            .set_socket_policy(now, netns, socket, family, option, value)
    };
    let v4 = (AF_INET, AF_INET);
    let good = info();
    assert_eq!(set(&mut machine, v4, Some(good.as_bytes())), Ok(()));
    assert_eq!(machine.spd_info().outscnt, 1);

    let bytes = good.as_bytes();
    let forward = UserPolicyInfo {
        dir: XFRM_POLICY_FWD,
        ..good
    };
    let long = [bytes, &[0; 4096]].concat();
    for (families, value, errno) in [
        (v4, &bytes[..0], errno::EMSGSIZE),
        (v4, &long, errno::EMSGSIZE),
        (v4, &bytes[..167], errno::EINVAL),
        (v4, forward.as_bytes(), errno::EINVAL),
        ((AF_INET6, AF_INET), bytes, errno::EOPNOTSUPP),
        ((AF_UNSPEC, AF_INET), bytes, errno::EINVAL),
    ] {
        assert_eq!(set(&mut machine, families, Some(value)), Err(errno));
    }
    assert_eq!(set(&mut machine, v4, None), Ok(()));
    assert_eq!(machine.spd_info().outscnt, 0);
}
