//! What a worker remembers of flows, so that only the first packet is looked up.
//!
//! A fixed number of places, two for each hash; the one that was not used last
//! is given away. Nothing is remembered that a lookup would not find again:
//! each place knows the generations of the tables it was made from.

use std::hash::{BuildHasher, Hasher};

use xfrm_proto::consts::AF_INET;

use crate::netns::Netns;
use crate::path::lookup::Looked;
use crate::path::output::OutputMeta;
use crate::path::route::Routes;
use crate::spd::Flow;

/// Sets of two places.
const SETS: usize = 2048;

/// The state of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Generations {
    policies: u64,
    routes: u64,
}

#[derive(Debug)]
struct Place {
    flow: Flow,
    meta: OutputMeta,
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
    hasher: foldhash::fast::RandomState,
}

impl Default for Flows {
    fn default() -> Self {
        Self {
            sets: (0..SETS).map(|_| Set::default()).collect(),
            hasher: foldhash::fast::RandomState::default(),
        }
    }
}

impl Flows {
    #[expect(clippy::cast_possible_truncation, reason = "half of a hash is a hash")]
    #[inline]
    fn set_of(&self, flow: &Flow, meta: &OutputMeta) -> usize {
        let mut hasher = self.hasher.build_hasher();
        if flow.family == AF_INET {
            hasher
                .write_u64(u64::from(flow.daddr.v4_bits()) << 32 | u64::from(flow.saddr.v4_bits()));
        } else {
            hasher.write_u128(flow.daddr.bits());
            hasher.write_u128(flow.saddr.bits());
        }
        let ports = u64::from(flow.dport) << 32 | u64::from(flow.sport) << 16;
        hasher.write_u64(ports | u64::from(flow.proto));
        hasher.write_u64(u64::from(flow.mark) << 32 | u64::from(meta.if_id));
        hasher.finish() as usize % SETS
    }

    /// What was decided about a flow, if it would be decided again.
    #[inline]
    pub(super) fn find(
        &mut self,
        netns: &Netns,
        routes: &dyn Routes,
        flow: &Flow,
        meta: &OutputMeta,
    ) -> Option<&Looked> {
        let set = self.set_of(flow, meta);
        let Set { recent, places } = self.sets.get_mut(set)?;
        let [first, second] = places;
        let holds =
            |place: &Option<Place>| place.as_ref().is_some_and(|place| place.is_of(flow, meta));
        let place = if holds(first) {
            *recent = false;
            first
        } else if holds(second) {
            *recent = true;
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
            if !place.looked.sources.are_current(&netns.sad) {
                return None;
            }
            place.sad = sad;
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
        let set = self.set_of(flow, meta);
        let Some(Set { recent, places }) = self.sets.get_mut(set) else {
            return;
        };
        let own =
            |place: &Option<Place>| place.as_ref().is_some_and(|place| place.is_of(flow, meta));
        let at = places.iter().position(own).unwrap_or(usize::from(!*recent));
        *recent = at != 0;
        if let Some(place) = places.get_mut(at) {
            *place = Some(Place {
                flow: *flow,
                meta: *meta,
                generations: Generations::of(netns, routes),
                sad,
                looked: *looked,
            });
        }
    }
}

impl Place {
    #[inline]
    fn is_of(&self, flow: &Flow, meta: &OutputMeta) -> bool {
        self.flow == *flow && self.meta == *meta
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
