//! What a worker remembers of flows, so that only the first packet is looked up.
//!
//! A fixed number of places, two for each hash; the one that was not used last
//! is given away. Nothing is remembered that a lookup would not find again:
//! each place knows the generations of the tables it was made from.

use std::hash::BuildHasher;

use crate::netns::Netns;
use crate::path::lookup::Looked;
use crate::path::output::OutputMeta;
use crate::path::route::Routes;
use crate::spd::flow::equal_words;
use crate::spd::{Flow, SocketKey};

/// Sets of two places.
const SETS: usize = 2048;

/// The state of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Generations {
    policies: u64,
    routes: u64,
}

/// A flow and what came with its packets, packed as [`Flow::words`].
#[derive(Clone, Copy, Debug)]
struct Key([u64; 10]);

#[derive(Debug)]
struct Place {
    key: Key,
    generations: Generations,
    /// The SAD's number when the sources were last found current.
    sad: u64,
    looked: Looked,
}

/// Two places, and which of them was used last.
#[derive(Debug, Default)]
struct Set {
    recent: bool,
    places: [Option<Place>; 2],
}

/// The flows of one worker.
#[derive(Debug)]
pub(super) struct Flows {
    sets: Box<[Set]>,
    /// Nobody outside knows them, so nobody can make flows that share a set.
    secrets: [u64; 4],
}

impl Default for Flows {
    fn default() -> Self {
        let hasher = foldhash::fast::RandomState::default();
        Self {
            sets: (0..SETS).map(|_| Set::default()).collect(),
            secrets: [0, 1, 2, 3].map(|number| hasher.hash_one(number)),
        }
    }
}

impl Flows {
    #[expect(clippy::cast_possible_truncation, reason = "half of a hash is a hash")]
    #[inline(always)]
    fn set_of(&self, key: &Key) -> usize {
        let [a, b, c, d] = self.secrets;
        let &[d0, d1, s0, s1, upper, came_with, _, if_id, ..] = &key.0;
        let addresses = mix(d0 ^ a, s0 ^ b) ^ mix(d1 ^ c, s1 ^ d);
        mix(addresses ^ upper, came_with ^ if_id ^ b) as usize % SETS
    }

    /// What was decided about a flow, if it would be decided again.
    #[inline(always)]
    pub(super) fn find(
        &mut self,
        netns: &Netns,
        routes: &dyn Routes,
        flow: &Flow,
        meta: &OutputMeta,
    ) -> Option<&Looked> {
        let key = Key::of(flow, meta);
        let set = self.set_of(&key);
        let Set { recent, places } = self.sets.get_mut(set)?;
        let [first, second] = places;
        let (first, second) = if *recent {
            (second, first)
        } else {
            (first, second)
        };
        let holds = |place: &Option<Place>| place.as_ref().is_some_and(|place| place.key.is(&key));
        let place = if holds(first) {
            first
        } else if holds(second) {
            *recent = !*recent;
            second
        } else {
            return None;
        };
        let place = place.as_mut()?;
        if place.generations != Generations::of(netns, routes) {
            return None;
        }
        let sad = netns.sad.choices.all();
        if place.sad != sad {
            place.renew(netns, sad)?;
        }
        Some(&place.looked)
    }

    /// Remembers what was decided while the SAD's number was `sad`.
    pub(super) fn remember(
        &mut self,
        netns: &Netns,
        routes: &dyn Routes,
        (flow, meta): (&Flow, &OutputMeta),
        sad: u64,
        looked: &Looked,
    ) {
        let key = Key::of(flow, meta);
        let set = self.set_of(&key);
        let Some(Set { recent, places }) = self.sets.get_mut(set) else {
            return;
        };
        let own = |place: &Option<Place>| place.as_ref().is_some_and(|place| place.key.is(&key));
        let at = places.iter().position(own).unwrap_or(usize::from(!*recent));
        *recent = at != 0;
        if let Some(place) = places.get_mut(at) {
            *place = Some(Place {
                key,
                generations: Generations::of(netns, routes),
                sad,
                looked: *looked,
            });
        }
    }
}

/// A product, folded.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "both halves are there")]
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

impl Key {
    #[inline(always)]
    fn of(flow: &Flow, meta: &OutputMeta) -> Self {
        let &OutputMeta {
            mark,
            if_id,
            ifindex,
            socket,
            forwarded,
            bypasses,
            loopback,
            mtu,
            hop_limit,
        } = meta;
        let [d0, d1, s0, s1, upper, came_with] = flow.words();
        let of_packet = u64::from(ifindex.cast_unsigned()) << 32 | u64::from(mark);
        let route = u64::from(mtu) << 32 | u64::from(hop_limit) << 8;
        let flags = [forwarded, bypasses, loopback, socket.is_some()];
        let flags = flags
            .iter()
            .fold(0, |all, &flag| all << 1 | u64::from(flag));
        let socket = socket.map_or(0, |SocketKey(key)| key);
        Self([
            d0,
            d1,
            s0,
            s1,
            upper,
            came_with,
            of_packet,
            u64::from(if_id),
            route | flags,
            socket,
        ])
    }

    #[inline(always)]
    fn is(&self, other: &Self) -> bool {
        equal_words(&self.0, &other.0)
    }
}

impl Place {
    /// Holds what it rests on against what there is now that the SAD's number is `sad`.
    #[cold]
    fn renew(&mut self, netns: &Netns, sad: u64) -> Option<()> {
        if !self.looked.sources.are_current(&netns.sad) {
            return None;
        }
        self.sad = sad;
        Some(())
    }
}

impl Generations {
    #[inline]
    fn of(netns: &Netns, routes: &dyn Routes) -> Self {
        Self {
            policies: netns.spd.generation(),
            routes: routes.generation(),
        }
    }
}
