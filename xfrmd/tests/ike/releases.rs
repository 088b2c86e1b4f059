//! What a recording comes to when it is replayed, and where another release does otherwise.
//!
//! A release that differs in nothing here must do everything exactly as it was. Of one that does, the
//! behaviours of its profile say what becomes of each recorded message:
//!
//! * without `tells_last_use`, an SA has no LASTUSED unless it is mobile IPv6's;
//! * one that does not know directions passes over SA_DIR, and never tells it.
//!
//! Messages that are so much shorter fill a dump's datagrams otherwise, so a dump is compared as a whole.

use std::collections::BTreeMap;

use dataplane::Profile;
use xfrm_proto::align4;
use xfrm_proto::consts::*;
use xfrm_proto::decode::{self, fixed_bytes};
use xfrm_proto::reply::messages;
use xfrm_proto::uapi::{NlAttr, NlMsgHdr, Pod, UserSaInfo};
use xfrmd::emulator::{Destination, NetnsId};
use xfrmd::recording::compare::{title, with_replay};
use xfrmd::recording::format::To;
use xfrmd::recording::read::{Answer, Recording};
use xfrmd::recording::replay::replay;

/// Does everything again, as each release.
#[track_caller]
pub(crate) fn replays(file: &[u8]) {
    let recording = Recording::read(file).unwrap();
    assert_eq!((&recording.cut, recording.lost), (&None, 0));
    let recorded = Profile::by_name(&recording.head.kernel).unwrap();
    for profile in Profile::ALL {
        let outcomes = replay(&recording, profile).unwrap();
        let untold = Untold::by(profile, recorded);
        if untold == Untold::default() {
            let differences = with_replay(&recording, &outcomes);
            let first = differences.first();
            assert_eq!(
                first,
                None,
                "{}: {} differ",
                profile.name,
                differences.len()
            );
            continue;
        }
        let [mut dumps, mut dumps_now] = [Dumps::new(), Dumps::new()];
        for (happening, outcome) in recording.happenings.iter().zip(&outcomes) {
            let expected = take(&happening.answers, &untold, &mut dumps);
            let found = take(&outcome.answers, &Untold::default(), &mut dumps_now);
            let fates = [&*happening.happened.fate, &outcome.fate];
            assert!(
                expected == found && fates[0] == fates[1],
                "{}: {} at byte {}: {fates:?}\n{}\nis\n{}",
                profile.name,
                title(happening),
                happening.offset,
                shown(&expected),
                shown(&found)
            );
        }
        assert!(dumps.keys().eq(dumps_now.keys()));
        for (socket, expected) in &dumps {
            let found = &dumps_now[socket];
            let both = expected.iter().zip(found);
            if let Some((expected, found)) = both.into_iter().find(|(a, b)| a != b) {
                let [expected, found] = [expected, found].map(|it| decode::message(it).join("\n"));
                panic!("{}: in a dump\n{expected}\nis\n{found}", profile.name);
            }
            assert_eq!(expected.len(), found.len(), "{}", profile.name);
        }
    }
}

/// Messages that go to a socket in parts, in order.
type Dumps = BTreeMap<(NetnsId, u32), Vec<Vec<u8>>>;

/// What came of something, but for what belongs to dumps.
fn take(answers: &[Answer<'_>], untold: &Untold, dumps: &mut Dumps) -> Vec<(To, Vec<u8>)> {
    let mut out = Vec::new();
    for answer in answers {
        let To::Client(netns, to) = answer.to else {
            out.push((answer.to, answer.bytes.to_vec()));
            continue;
        };
        for (header, message) in messages(&answer.bytes) {
            let message = untold.left_of(header, message);
            match to {
                Destination::Port(port) if header.flags & NLM_F_MULTI != 0 => {
                    dumps.entry((netns, port)).or_default().push(message);
                }
                _ => out.push((answer.to, message)),
            }
        }
    }
    out
}

fn shown(answers: &[(To, Vec<u8>)]) -> String {
    let lines = answers.iter().map(|(to, bytes)| match to {
        To::Client(..) => format!("{to:?}: {}", decode::message(bytes).join("\n    ")),
        _ => format!("{to:?}: {}", decode::hex(bytes)),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Attributes that one release tells and another does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Untold {
    last_use: bool,
    direction: bool,
}

impl Untold {
    fn by(profile: &Profile, recorded: &Profile) -> Self {
        Self {
            last_use: recorded.tells_last_use && !profile.tells_last_use,
            direction: recorded.knows_direction() && !profile.knows_direction(),
        }
    }

    /// A message without them. The copy of a request in an error stays what it was.
    fn left_of(self, header: NlMsgHdr, message: &[u8]) -> Vec<u8> {
        if header.kind < NLMSG_MIN_TYPE {
            return message.to_vec();
        }
        let at = align4(NLMSG_HDRLEN + fixed_bytes(header.kind));
        let (fixed, mut rest) = message.split_at(at.min(message.len()));
        let mut left = fixed.to_vec();
        let sa = UserSaInfo::read(&message[NLMSG_HDRLEN..]);
        let is_mobile =
            sa.is_some_and(|sa| matches!(sa.id.proto, IPPROTO_ROUTING | IPPROTO_DSTOPTS));
        while let Some(attribute) = NlAttr::read(rest) {
            let len = align4(usize::from(attribute.len)).clamp(NLA_HDRLEN, rest.len());
            let (whole, after) = rest.split_at(len);
            let goes = match attribute.kind {
                XFRMA_LASTUSED => self.last_use && !is_mobile,
                XFRMA_SA_DIR => self.direction,
                _ => false,
            };
            if !goes {
                left.extend_from_slice(whole);
            }
            rest = after;
        }
        let len = u32::try_from(left.len()).unwrap();
        left[..4].copy_from_slice(&len.to_ne_bytes());
        left
    }
}
