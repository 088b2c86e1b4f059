//! Which flows policies have let in, so that only their first packet is held against them.
//!
//! What a check depends on is the flow, the SAs that brought it, and the tables:
//! all of it is in the key, or in the generations that each place knows.

use xfrm_proto::consts::{IPPROTO_ICMP, IPPROTO_ICMPV6, XFRM_MAX_DEPTH};

use crate::drop_reason::DropReason;
use crate::path::check::Question;
use crate::path::flows::{Memory, Place};
use crate::path::lookup::Policies;
use crate::path::sec_path::SecPath;
use crate::spd::SocketKey;
use crate::spd::flow::equal_words;
use crate::time::WallSecs;

/// Words of a key in front of the SAs.
const OWN_WORDS: usize = 9;
const WORDS: usize = OWN_WORDS + XFRM_MAX_DEPTH;

#[derive(Debug)]
struct Admission {
    /// When the policies were marked as used last.
    marked: WallSecs,
    /// Generations of both databases.
    generations: [u64; 2],
    /// Policies to be marked as used by every packet.
    policies: Policies,
    /// What of the sec path has been held against them.
    verified: usize,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            marked: WallSecs::default(),
            // No table has changed as often.
            generations: [u64::MAX; 2],
            policies: [None; 2],
            verified: 0,
        }
    }
}

const _: () = assert!(Place::<WORDS, Admission>::IS_ODD);

/// A flow that has been let in a moment ago.
#[derive(Debug)]
struct Recent {
    own: [u64; OWN_WORDS],
    verified: usize,
}

/// The flows of one worker.
#[derive(Debug, Default)]
pub(super) struct Admitted {
    memory: Memory<WORDS, Admission>,
    /// While packets pass that the same SAs have brought at the same time.
    recent: Option<Recent>,
    remembers_recent: bool,
}

impl Admitted {
    /// Packets follow that the same SAs have brought, all at one time and under one borrow of the
    /// namespace; or they end.
    pub(super) fn expect_alike(&mut self, begins: bool) {
        self.remembers_recent = begins;
        self.recent = None;
    }

    /// [`Question::check`], of which a pass is remembered.
    #[inline]
    pub(super) fn check(
        &mut self,
        question: &Question<'_>,
        path: &mut SecPath,
    ) -> Result<(), DropReason> {
        let netns = question.netns;
        let (Some(now), Some(own)) = (question.used, own_words(question, path)) else {
            return question.check(path).map(drop);
        };
        if let Some(recent) = &self.recent
            && path.len() == 1
            && equal_words(&recent.own, &own)
        {
            path.verified = recent.verified;
            return Ok(());
        }
        let key = key(&own, path);
        let generations = [netns.spd.generation(), netns.sad.choices.all()];
        if let Some(admission) = self.memory.find(&key)
            && admission.generations == generations
        {
            if std::mem::replace(&mut admission.marked, now) != now {
                for &policy in admission.policies.iter().flatten() {
                    netns.spd.mark_used(policy, now);
                }
            }
            path.verified = admission.verified;
            if self.remembers_recent {
                self.recent = Some(Recent {
                    own,
                    verified: admission.verified,
                });
            }
            return Ok(());
        }
        let policies = question.check(path)?;
        let admission = Admission {
            marked: now,
            generations,
            policies,
            verified: path.verified,
        };
        self.memory.put(key, admission);
        Ok(())
    }
}

/// All that the check looks at but for the SAs; `None` where that is more, because errors are judged
/// by the packet that they are about.
#[inline]
fn own_words(question: &Question<'_>, path: &SecPath) -> Option<[u64; OWN_WORDS]> {
    let &Question {
        netns: _,
        used: _,
        packet: _,
        flow,
        dir,
        socket,
        if_id,
    } = question;
    if matches!(flow.proto, IPPROTO_ICMP | IPPROTO_ICMPV6) {
        return None;
    }
    let [d0, d1, s0, s1, upper, came_with] = flow.words();
    let lengths = (path.len() as u64) << 16 | path.verified as u64;
    let socket_is_there = u64::from(socket.is_some()) << 8 | u64::from(dir);
    Some([
        d0,
        d1,
        s0,
        s1,
        upper,
        came_with,
        u64::from(if_id) << 32 | socket_is_there,
        socket.map_or(0, |SocketKey(key)| key),
        lengths,
    ])
}

/// All of it.
#[inline(always)]
fn key(own: &[u64; OWN_WORDS], path: &SecPath) -> [u64; WORDS] {
    let [a, b, c, d, e, f, g, h, i] = *own;
    let [j, k, l, m, n, o] = path.serials();
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o]
}
