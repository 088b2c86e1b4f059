//! Policies as hash sets: which packets a direction's policies select, in a
//! form that the host's nf_tables finds fast.
//!
//! Selectors that look at the same fields with the same masks have one
//! [`Shape`], and a set of the masked fields finds all of them at once
//! (tuple-space search), so that a packet costs as many lookups as there are
//! shapes, not policies. Order matters only between policies that do different
//! things: policies of neighbouring priorities that do the same form a
//! [`Band`], and the first band with a match decides. A policy that comes or
//! goes is one element; only where it falls among the priorities of a band
//! that does something else are all bands made anew.
//!
//! Here the answer is exact for prefixes, protocols, ports, ICMP types, marks
//! and interfaces. Of GRE keys and mobility headers only the protocol is looked
//! at. Among policies of the same priority those that block or protect win,
//! where Linux asks for age.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use dataplane::packet::Family;
use dataplane::spd::Policy;
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use xfrm_proto::consts::*;
use xfrm_proto::uapi::{Address, Selector};

/// What a policy does to a packet without protection.
///
/// The order is that of policies of the same priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    /// It may not pass.
    Block,
    /// It must be protected.
    Protect,
    /// It may pass.
    Bypass,
}

impl Verdict {
    /// What a policy does (`xfrm_policy_check`: a packet needs what is not optional).
    pub(super) fn of(policy: &Policy) -> Self {
        if policy.action == XFRM_POLICY_BLOCK {
            return Self::Block;
        }
        let protects = match policy.key.dir {
            XFRM_POLICY_OUT => !policy.templates.is_empty(),
            _ => policy
                .templates
                .iter()
                .any(|template| template.optional == 0),
        };
        if protects {
            Self::Protect
        } else {
            Self::Bypass
        }
    }
}

/// Which fields selectors look at, and through which masks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Shape {
    /// Which IP.
    pub(super) is_v6: bool,
    /// Bits of the source address.
    pub(super) source_bits: u8,
    /// Bits of the destination address.
    pub(super) destination_bits: u8,
    /// Whether the protocol counts.
    pub(super) protocol: bool,
    /// Of the first four bytes behind the IP header: ports, or ICMP type and code.
    pub(super) ports: [u8; 4],
    /// Whether the interface counts.
    pub(super) interface: bool,
    /// Of the firewall mark.
    pub(super) mark: u32,
}

impl Shape {
    /// Bytes of an address.
    pub(super) fn address_bytes(&self) -> usize {
        if self.is_v6 { 16 } else { 4 }
    }

    /// Bytes of a key.
    pub(super) fn key_bytes(&self) -> usize {
        let address = |bits| if bits == 0 { 0 } else { self.address_bytes() };
        let word = |used: bool| if used { 4 } else { 0 };
        address(self.source_bits)
            + address(self.destination_bits)
            + word(self.protocol)
            + word(self.ports != [0; 4])
            + word(self.interface)
            + word(self.mark != 0)
    }
}

/// The first `bits` bits.
pub(super) fn prefix_mask(bits: u8, bytes: usize) -> Vec<u8> {
    let mask = match bits {
        0 => 0,
        _ => u128::MAX << (128 - u32::from(bits.min(128))),
    };
    mask.to_be_bytes().into_iter().take(bytes).collect()
}

/// A masked selector: fields in the order of [`Shape`], each in whole registers.
type Key = Box<[u8]>;

/// The shapes and keys that a policy's selector comes to.
fn keys(policy: &Policy) -> Vec<(Shape, Key)> {
    let selector = &policy.key.selector;
    let families = match Family::from_af(selector.family) {
        Some(family) => vec![family],
        None => vec![Family::V4, Family::V6],
    };
    let mut found = Vec::new();
    for family in families {
        for (protocol, value, ports) in protocols(selector) {
            let is_v6 = family == Family::V6;
            let most = if is_v6 { 128 } else { 32 };
            let shape = Shape {
                is_v6,
                source_bits: selector.prefixlen_s.min(most),
                destination_bits: selector.prefixlen_d.min(most),
                protocol: protocol != 0,
                ports,
                interface: selector.ifindex != 0,
                mark: policy.key.mark.m,
            };
            let mut key = Vec::with_capacity(shape.key_bytes());
            for (address, bits) in [
                (selector.saddr, shape.source_bits),
                (selector.daddr, shape.destination_bits),
            ] {
                key.extend(masked(address, bits, shape.address_bytes()));
            }
            if shape.protocol {
                key.extend([protocol, 0, 0, 0]);
            }
            if ports != [0; 4] {
                key.extend(value.iter().zip(ports).map(|(value, mask)| value & mask));
            }
            if shape.interface {
                key.extend(selector.ifindex.to_ne_bytes());
            }
            if shape.mark != 0 {
                key.extend((policy.key.mark.v & shape.mark).to_ne_bytes());
            }
            found.push((shape, key.into()));
        }
    }
    found
}

fn masked(address: Address, bits: u8, bytes: usize) -> Vec<u8> {
    if bits == 0 {
        return Vec::new();
    }
    let mask = prefix_mask(bits, bytes);
    address
        .0
        .iter()
        .zip(mask)
        .map(|(byte, mask)| byte & mask)
        .collect()
}

/// Protocols that a selector is for (0 is any), and the value and mask of what follows the IP
/// header.
fn protocols(selector: &Selector) -> Vec<(u8, [u8; 4], [u8; 4])> {
    let (source, destination) = (selector.sport.get(), selector.dport.get());
    let (source_mask, destination_mask) = (selector.sport_mask.get(), selector.dport_mask.get());
    if source_mask | destination_mask == 0 {
        return vec![(selector.proto, [0; 4], [0; 4])];
    }
    let pair = |a: u16, b: u16| {
        let ([a, b], [c, d]) = (a.to_be_bytes(), b.to_be_bytes());
        [a, b, c, d]
    };
    let with_ports = |protocol| {
        (
            protocol,
            pair(source, destination),
            pair(source_mask, destination_mask),
        )
    };
    // Type and code are what policies see as ports; as ports they have a byte of zeros in front.
    let with_type = |protocol| {
        let ([high, kind], [above, code]) = (source.to_be_bytes(), destination.to_be_bytes());
        let ([high_mask, kind_mask], [above_mask, code_mask]) =
            (source_mask.to_be_bytes(), destination_mask.to_be_bytes());
        let possible = high & high_mask == 0 && above & above_mask == 0;
        possible.then_some((protocol, [kind, code, 0, 0], [kind_mask, code_mask, 0, 0]))
    };
    // What has no ports shows 0.
    let without = |protocol| {
        let possible = source & source_mask == 0 && destination & destination_mask == 0;
        possible.then_some((protocol, [0; 4], [0; 4]))
    };
    let one = |protocol: u8| match protocol {
        IPPROTO_TCP | IPPROTO_UDP | IPPROTO_UDPLITE | IPPROTO_SCTP => Some(with_ports(protocol)),
        IPPROTO_ICMP | IPPROTO_ICMPV6 => with_type(protocol),
        IPPROTO_GRE | IPPROTO_MH => Some((protocol, [0; 4], [0; 4])),
        _ => without(protocol),
    };
    match selector.proto {
        0 => (1..=u8::MAX).filter_map(one).collect(),
        protocol => one(protocol).into_iter().collect(),
    }
}

/// A set of keys of one shape.
#[derive(Debug)]
pub(super) struct Set {
    /// Never used again.
    pub(super) id: u32,
    /// How many policies need each key.
    keys: HashMap<Key, u32, RandomState>,
}

impl Set {
    /// All keys.
    pub(super) fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.keys.keys().map(|key| &**key)
    }
}

/// Where a policy stands: lower is earlier.
type Rank = (u32, Verdict);

/// Policies of neighbouring ranks that do the same.
#[derive(Debug)]
pub(super) struct Band {
    ranks: RangeInclusive<Rank>,
    /// By shape.
    pub(super) sets: BTreeMap<Shape, Set>,
}

impl Band {
    /// What its policies do.
    pub(super) fn verdict(&self) -> Verdict {
        self.ranks.start().1
    }
}

/// A change that the host has not seen.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Edit {
    /// A key into a set.
    Add(u32, Key),
    /// A key out of it.
    Remove(u32, Key),
    /// A new set, and the bytes of its keys.
    NewSet(u32, usize),
    /// A set that is gone, and the bytes of its keys.
    DropSet(u32, usize),
    /// Which sets are asked in which order is different.
    Order,
}

#[derive(Debug)]
struct Member {
    rank: Rank,
    keys: Vec<(Shape, Key)>,
}

/// The policies of one direction and type.
#[derive(Debug, Default)]
pub(super) struct Classifier {
    members: HashMap<u32, Member, RandomState>,
    /// In order; the first with a match decides.
    bands: Vec<Band>,
    next_set: u32,
    edits: Vec<Edit>,
}

impl Classifier {
    /// In the order in which they are asked.
    pub(super) fn bands(&self) -> &[Band] {
        &self.bands
    }

    /// Whether no packet can match anything.
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// What the host has to be told, in order.
    pub(super) fn take_edits(&mut self) -> Vec<Edit> {
        std::mem::take(&mut self.edits)
    }

    /// Notes what the policy of an index is now.
    pub(super) fn set(&mut self, index: u32, policy: Option<&Policy>) {
        if let Some(old) = self.members.remove(&index) {
            self.remove(&old);
        }
        let Some(policy) = policy else { return };
        let member = Member {
            rank: (policy.priority, Verdict::of(policy)),
            keys: keys(policy),
        };
        if member.keys.is_empty() {
            return;
        }
        self.add(&member);
        self.members.insert(index, member);
    }

    fn add(&mut self, member: &Member) {
        let rank = member.rank;
        let at = self.bands.partition_point(|band| *band.ranks.end() < rank);
        let same = |band: Option<&Band>| band.is_some_and(|band| band.verdict() == rank.1);
        let inside = self
            .bands
            .get(at)
            .is_some_and(|band| *band.ranks.start() <= rank);
        let before = at.checked_sub(1);
        let chosen = if inside && !same(self.bands.get(at)) {
            let between = self.split(at, rank);
            self.insert_band(between, rank)
        } else if inside || same(self.bands.get(at)) {
            at
        } else if let Some(before) = before.filter(|&before| same(self.bands.get(before))) {
            before
        } else {
            self.insert_band(at, rank)
        };
        let (next_set, edits) = (&mut self.next_set, &mut self.edits);
        let Some(band) = self.bands.get_mut(chosen) else {
            return;
        };
        let start = rank.min(*band.ranks.start());
        band.ranks = start..=rank.max(*band.ranks.end());
        for (shape, key) in &member.keys {
            put(band, *shape, key, next_set, edits);
        }
    }

    fn insert_band(&mut self, at: usize, rank: Rank) -> usize {
        let band = Band {
            ranks: rank..=rank,
            sets: BTreeMap::new(),
        };
        self.bands.insert(at, band);
        at
    }

    /// Makes two bands of one: what stands before `rank`, and what stands behind it. Where the
    /// second begins.
    fn split(&mut self, at: usize, rank: Rank) -> usize {
        let Some(old) = self.bands.get(at) else {
            return at;
        };
        let range = old.ranks.clone();
        for (shape, set) in &old.sets {
            self.edits.push(Edit::DropSet(set.id, shape.key_bytes()));
        }
        self.edits.push(Edit::Order);
        let mut halves = [None::<Band>, None];
        for member in self.members.values() {
            if !range.contains(&member.rank) {
                continue;
            }
            let [before, behind] = &mut halves;
            let half = if member.rank < rank { before } else { behind };
            let band = half.get_or_insert_with(|| Band {
                ranks: member.rank..=member.rank,
                sets: BTreeMap::new(),
            });
            let start = member.rank.min(*band.ranks.start());
            band.ranks = start..=member.rank.max(*band.ranks.end());
            for (shape, key) in &member.keys {
                put(band, *shape, key, &mut self.next_set, &mut self.edits);
            }
        }
        let between = at + usize::from(halves[0].is_some());
        self.bands.splice(at..=at, halves.into_iter().flatten());
        between
    }

    fn remove(&mut self, member: &Member) {
        let rank = member.rank;
        let at = self.bands.partition_point(|band| *band.ranks.end() < rank);
        let Some(band) = self.bands.get_mut(at) else {
            return;
        };
        for (shape, key) in &member.keys {
            let Some(set) = band.sets.get_mut(shape) else {
                continue;
            };
            let Some(count) = set.keys.get_mut(key) else {
                continue;
            };
            *count -= 1;
            if *count > 0 {
                continue;
            }
            set.keys.remove(key);
            if set.keys.is_empty() {
                self.edits.push(Edit::DropSet(set.id, shape.key_bytes()));
                self.edits.push(Edit::Order);
                band.sets.remove(shape);
            } else {
                self.edits.push(Edit::Remove(set.id, key.clone()));
            }
        }
        if band.sets.is_empty() {
            self.bands.remove(at);
        }
    }
}

fn put(band: &mut Band, shape: Shape, key: &Key, next_set: &mut u32, edits: &mut Vec<Edit>) {
    let set = band.sets.entry(shape).or_insert_with(|| {
        *next_set += 1;
        edits.push(Edit::NewSet(*next_set, shape.key_bytes()));
        edits.push(Edit::Order);
        Set {
            id: *next_set,
            keys: HashMap::default(),
        }
    });
    let count = set.keys.entry(key.clone()).or_insert(0);
    *count += 1;
    if *count == 1 {
        edits.push(Edit::Add(set.id, key.clone()));
    }
}

#[cfg(test)]
mod tests;
