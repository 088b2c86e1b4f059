//! Policies that outlive the process ([`crate::keep`]).

use std::cmp::Reverse;

use xfrm_proto::consts::{XFRM_MAX_DEPTH, XFRM_POLICY_MAX, XFRM_POLICY_TYPE_SUB};
use xfrm_proto::uapi::{SpdHthresh, UserPolicyDefault};

use super::order::List;
use super::policy::{Place, Policy, PolicyKey, Templates};
use super::position::no_positions;
use super::socket::SocketKey;
use super::{LastUse, Spd, Thresholds};
use crate::keep::{Kept, Kind, Reader, Record, Shelf, Unreadable, Writer};
use crate::profile::Profile;
use crate::security::SecurityContext;

/// What has changed since it was kept.
#[derive(Debug)]
pub(super) enum Touched {
    /// The policies at these slots.
    Slots(Vec<u32>),
    /// Anything.
    All,
}

/// What belongs to no single policy. (Ages go on from the youngest.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Own {
    next_index: u32,
    masks: [u32; XFRM_POLICY_MAX as usize],
    index_mask: u32,
    thresholds: Thresholds,
    defaults: UserPolicyDefault,
    /// Of each direction that has any, the first of its positions.
    first: [Option<u32>; XFRM_POLICY_MAX as usize],
    directions: usize,
}

/// A timer: the jiffy, and in which order it was armed.
type Due = (u64, Reverse<u64>);

struct Found {
    slot: u32,
    policy: Policy,
    timer: Option<Due>,
    socket: Option<(SocketKey, u8)>,
}

impl Spd {
    /// The policy at a slot came, changed or went.
    pub(super) fn change(&mut self, slot: u32) {
        if let Some(Touched::Slots(slots)) = &mut self.kept
            && slots.last() != Some(&slot)
        {
            slots.push(slot);
        }
    }

    /// Those at these slots did.
    pub(super) fn change_each(&mut self, doomed: &[u32]) {
        if let Some(Touched::Slots(slots)) = &mut self.kept {
            slots.extend_from_slice(doomed);
        }
    }

    /// Any of them may have.
    pub(super) fn change_all(&mut self) {
        if self.kept.is_some() {
            self.kept = Some(Touched::All);
        }
    }

    /// Puts what has changed since the last time, all of it at first.
    pub(crate) fn keep(&mut self, netns: u32, shelf: &mut dyn Shelf, image: &mut Vec<u8>) {
        let touched = match self.kept.take() {
            Some(Touched::Slots(slots)) => slots,
            None | Some(Touched::All) => (0..self.store.bound()).collect(),
        };
        for &slot in &touched {
            let record = Record {
                netns,
                kind: Kind::Policy,
                place: slot,
            };
            let Some(policy) = self.store.get_mut(slot) else {
                shelf.remove(record);
                continue;
            };
            if !policy.used.is_kept() {
                let Some(words) = shelf.lend(record, 1) else {
                    shelf.remove(record);
                    continue;
                };
                policy.used.move_to(words);
            }
            let is_socket = policy.key.dir >= XFRM_POLICY_MAX;
            let socket = is_socket.then(|| self.sockets.owner(slot)).flatten();
            let timer = self.timers.of(slot);
            // No keys: nothing to be wiped.
            write(policy, timer, socket, &mut Writer::new(image));
            shelf.put(record, image);
        }
        let mut touched = touched;
        touched.clear();
        self.kept = Some(Touched::Slots(touched));
    }

    /// Takes everything from the shelf.
    pub(crate) fn forget(&self, netns: u32, shelf: &mut dyn Shelf) {
        for place in self.store.slots() {
            shelf.remove(Record {
                netns,
                kind: Kind::Policy,
                place,
            });
        }
    }

    /// What belongs to no single policy.
    pub(crate) fn own(&self) -> Own {
        let mut first = [None; XFRM_POLICY_MAX as usize];
        for (place, positions) in first.iter_mut().zip(&self.positions) {
            *place = positions.first();
        }
        Own {
            next_index: self.next_index,
            masks: self.masks,
            index_mask: self.index_mask,
            thresholds: self.thresholds,
            defaults: self.defaults,
            first,
            directions: self.positions.len(),
        }
    }

    /// Takes what [`Own::write`] has written as a release.
    pub(crate) fn read(&mut self, from: &mut Reader<'_>, release: &Profile) -> Option<()> {
        self.next_index = from.u32()?;
        for mask in self.masks.iter_mut().chain([&mut self.index_mask]) {
            *mask = from.u32()?;
        }
        let mut bits = || {
            Some(SpdHthresh {
                lbits: from.small()?,
                rbits: from.small()?,
            })
        };
        self.thresholds = Thresholds {
            v4: bits()?,
            v6: bits()?,
        };
        self.defaults.input = from.small()?;
        self.defaults.fwd = from.small()?;
        self.defaults.out = from.small()?;
        let mut positions = self.positions.iter_mut();
        for _ in no_positions(release) {
            let first = from.option(Reader::u32)?;
            if let Some(positions) = positions.next() {
                positions.begin_with(first);
            }
        }
        Some(())
    }

    /// Takes policies in as they were when that release put them. Positions that it does not have are
    /// those of policies that come in the order of their age.
    pub(crate) fn recall<'a>(
        &mut self,
        records: impl Iterator<Item = &'a Kept<'a>>,
        release: &Profile,
    ) -> Result<(), Unreadable> {
        let mut found = Vec::new();
        for kept in records {
            let policy = read(kept).ok_or(Unreadable(kept.record))?;
            found.push(policy);
        }
        found.sort_by_key(|found| found.policy.place.age);
        let first: Vec<_> = self.positions.iter().map(|it| it.first()).collect();
        for found in found {
            self.link_kept(found).map_err(|place| {
                Unreadable(Record {
                    netns: 0,
                    kind: Kind::Policy,
                    place,
                })
            })?;
        }
        if release.policies_have_positions {
            for (positions, first) in self.positions.iter_mut().zip(first) {
                positions.begin_with(first);
            }
        }
        self.store.find_vacant();
        self.generation += 1;
        self.kept = Some(Touched::Slots(Vec::new()));
        Ok(())
    }

    fn link_kept(&mut self, found: Found) -> Result<(), u32> {
        let Found {
            slot,
            policy,
            timer,
            socket,
        } = found;
        let (dir, is_sub) = (policy.key.dir, policy.key.kind == XFRM_POLICY_TYPE_SUB);
        self.age = self.age.max(policy.place.age);
        let hashes = (policy.key.hash(), super::hash_index(policy.index));
        if !self.store.insert_at(slot, policy) {
            return Err(slot);
        }
        *self.count_mut(dir) += 1;
        if let Some(owner) = socket {
            self.sockets.own(owner, slot);
            return Ok(());
        }
        self.subs += usize::from(is_sub);
        self.by_key.insert(hashes.0, slot);
        self.by_index.insert(hashes.1, slot);
        self.index_flow(slot);
        if let Some(due) = timer {
            self.timers.recall(slot, due);
        }
        Ok(())
    }
}

impl Own {
    /// All of it.
    pub(crate) fn write(&self, out: &mut Writer<'_>) {
        out.int(self.next_index.into());
        for mask in self.masks.iter().chain([&self.index_mask]) {
            out.int((*mask).into());
        }
        let Thresholds { v4, v6 } = self.thresholds;
        for bits in [v4.lbits, v4.rbits, v6.lbits, v6.rbits] {
            out.int(bits.into());
        }
        let UserPolicyDefault {
            input, fwd, out: o, ..
        } = self.defaults;
        for default in [input, fwd, o] {
            out.int(default.into());
        }
        for first in self.first.iter().take(self.directions) {
            out.option(*first, |out, slot| out.int(slot.into()));
        }
    }
}

fn write(
    policy: &Policy,
    timer: Option<Due>,
    socket: Option<(SocketKey, u8)>,
    out: &mut Writer<'_>,
) {
    let key = &policy.key;
    out.pod(&key.selector);
    out.pod(&key.mark);
    out.int(key.if_id.into());
    out.int(key.kind.into());
    out.int(key.dir.into());
    out.flag(key.labelled);
    out.int(policy.action.into());
    out.int(policy.flags.into());
    out.int(policy.priority.into());
    out.int(policy.index.into());
    out.int(policy.templates.len() as u64);
    for template in policy.templates.iter() {
        out.pod(template);
    }
    out.option(policy.security.as_ref(), |out, it| out.bytes(it.bytes()));
    out.limits(&policy.lft);
    out.int(policy.add_time);
    out.int(policy.place.age);
    out.int(policy.place.rank);
    let list = List::ALL.iter().position(|&list| list == policy.place.list);
    out.int(list.unwrap_or(0) as u64);
    out.option(timer, |out, (jiffy, Reverse(armed))| {
        out.int(jiffy);
        out.int(armed);
    });
    out.option(socket, |out, (SocketKey(key), dir)| {
        out.int(key);
        out.int(dir.into());
    });
}

fn read(kept: &Kept<'_>) -> Option<Found> {
    let from = &mut Reader::new(kept.image);
    let key = PolicyKey {
        selector: from.pod()?,
        mark: from.pod()?,
        if_id: from.u32()?,
        kind: from.small()?,
        dir: from.small()?,
        labelled: from.flag()?,
    };
    let (action, flags) = (from.small()?, from.small()?);
    let (priority, index) = (from.u32()?, from.u32()?);
    let templates = from.int()?;
    if templates > XFRM_MAX_DEPTH as u64 {
        return None;
    }
    let templates: Option<Vec<_>> = (0..templates).map(|_| from.pod()).collect();
    let mut policy = Policy {
        key,
        action,
        flags,
        priority,
        index,
        templates: Templates::new(templates?),
        security: from.option(|from| Some(SecurityContext::recall(from.bytes()?)))?,
        lft: from.limits()?,
        add_time: from.int()?,
        used: LastUse::default(),
        place: Place {
            age: from.int()?,
            rank: from.int()?,
            list: *List::ALL.get(usize::try_from(from.int()?).ok()?)?,
        },
    };
    let timer = from.option(|from| Some((from.int()?, Reverse(from.int()?))))?;
    let socket = from.option(|from| Some((SocketKey(from.int()?), from.small()?)))?;
    from.end()?;
    policy.used.recall(kept.words)?;
    let is_socket = policy.key.dir >= XFRM_POLICY_MAX;
    (is_socket == socket.is_some()).then_some(Found {
        slot: kept.record.place,
        policy,
        timer,
        socket,
    })
}
