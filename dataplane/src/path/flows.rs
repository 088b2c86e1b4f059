//! What a worker remembers of flows, so that only the first packet is looked up.
//!
//! A fixed number of places, two for each hash; the one that was not used last
//! is given away. Nothing is remembered that a lookup would not find again:
//! each place knows the generations of the tables it was made from.
//! [`Flows`] is for packets that leave; `admitted` has those that arrive.

use std::hash::BuildHasher;

use crate::netns::Netns;
use crate::path::lookup::Looked;
use crate::path::output::OutputMeta;
use crate::path::route::Routes;
use crate::spd::flow::equal_words;
use crate::spd::{Flow, SocketKey};

/// Sets of two places.
const SETS: usize = 2048;

/// What is known by keys, which are packed as [`Flow::words`]: first those, then what else counts.
#[derive(Debug)]
pub(super) struct Memory<const WORDS: usize, T> {
    /// Two for each set. None before there is something to remember.
    places: Box<[Place<WORDS, T>]>,
    /// Of each set, whether the second one was used last. Here they take a few cache lines in all.
    recent: Box<[bool]>,
    /// Nobody outside knows them, so nobody can make flows that share a set.
    secrets: [u64; 4],
}

/// Something that is known. What is looked at first shares cache lines with the key.
///
/// Of an odd number of lines, as those of [`Flows`] and of `admitted` are, any line of all places uses all
/// sets of the caches; of eight lines, the first lines of a hundred flows do not fit the first cache.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Place<const WORDS: usize, T> {
    key: [u64; WORDS],
    /// Under a key of zeros, which nothing has: something that is never current.
    known: T,
}

impl<const WORDS: usize, T> Place<WORDS, T> {
    /// Whether its size is an odd number of cache lines.
    pub(super) const IS_ODD: bool = size_of::<Self>() / 64 % 2 == 1;
}

const _: () = assert!(Place::<10, Decided>::IS_ODD);

impl<const WORDS: usize, T> Default for Memory<WORDS, T> {
    fn default() -> Self {
        let hasher = foldhash::fast::RandomState::default();
        Self {
            places: Box::default(),
            recent: Box::default(),
            secrets: [0, 1, 2, 3].map(|number| hasher.hash_one(number)),
        }
    }
}

impl<const WORDS: usize, T: Default> Memory<WORDS, T> {
    #[expect(clippy::cast_possible_truncation, reason = "half of a hash is a hash")]
    #[inline(always)]
    fn set_of(&self, key: &[u64; WORDS]) -> usize {
        let [a, b, c, d] = self.secrets;
        let word = |at| key.get(at).copied().unwrap_or_default();
        let addresses = mix(word(0) ^ a, word(2) ^ b) ^ mix(word(1) ^ c, word(3) ^ d);
        mix(addresses ^ word(4), word(5) ^ word(6) ^ b) as usize % SETS
    }

    /// What was remembered under a key last.
    #[inline(always)]
    pub(super) fn find(&mut self, key: &[u64; WORDS]) -> Option<&mut T> {
        let set = self.set_of(key);
        let recent = self.recent.get_mut(set)?;
        let places = self.places.get_mut(2 * set..)?;
        let [first, second, ..] = places else {
            return None;
        };
        let (one, other) = match *recent {
            false => (first, second),
            true => (second, first),
        };
        if equal_words(&one.key, key) {
            return Some(&mut one.known);
        }
        if !equal_words(&other.key, key) {
            return None;
        }
        *recent = !*recent;
        Some(&mut other.known)
    }

    /// Remembers something.
    pub(super) fn put(&mut self, key: [u64; WORDS], known: T) {
        if self.places.is_empty() {
            let empty = |_| Place {
                key: [0; WORDS],
                known: T::default(),
            };
            self.places = (0..2 * SETS).map(empty).collect();
            self.recent = [false; SETS].into();
        }
        let set = self.set_of(&key);
        let (Some(recent), Some([first, second, ..])) =
            (self.recent.get_mut(set), self.places.get_mut(2 * set..))
        else {
            return;
        };
        let own = |place: &Place<WORDS, T>| equal_words(&place.key, &key);
        *recent = match (own(first), own(second)) {
            (true, _) => false,
            (_, true) => true,
            _ => !*recent,
        };
        let place = if *recent { second } else { first };
        *place = Place { key, known };
    }
}

/// A product, folded.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "both halves are there")]
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// The state of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Generations {
    policies: u64,
    routes: u64,
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

/// What was decided about a flow, and when.
#[derive(Debug)]
#[repr(C)]
struct Decided {
    generations: Generations,
    /// The SAD's number when the sources were last found current.
    sad: u64,
    looked: Looked,
}

impl Default for Decided {
    fn default() -> Self {
        Self {
            // No table has changed as often.
            generations: Generations {
                policies: u64::MAX,
                routes: u64::MAX,
            },
            sad: 0,
            looked: Looked::default(),
        }
    }
}

/// The flows of one worker, with what came with their packets.
#[derive(Debug, Default)]
pub(super) struct Flows {
    memory: Memory<10, Decided>,
}

impl Flows {
    /// What was decided about a flow, if it would be decided again.
    #[inline(always)]
    pub(super) fn find(
        &mut self,
        netns: &Netns,
        routes: &dyn Routes,
        flow: &Flow,
        meta: &OutputMeta,
    ) -> Option<&Looked> {
        let decided = self.memory.find(&key(flow, meta))?;
        if decided.generations != Generations::of(netns, routes) {
            return None;
        }
        let sad = netns.sad.choices.all();
        if decided.sad != sad {
            decided.renew(netns, sad)?;
        }
        Some(&decided.looked)
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
        let decided = Decided {
            generations: Generations::of(netns, routes),
            sad,
            looked: looked.clone(),
        };
        self.memory.put(key(flow, meta), decided);
    }
}

impl Decided {
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

/// A flow and what came with its packets.
#[inline(always)]
fn key(flow: &Flow, meta: &OutputMeta) -> [u64; 10] {
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
    [
        d0,
        d1,
        s0,
        s1,
        upper,
        came_with,
        u64::from(if_id),
        of_packet,
        route | flags,
        socket,
    ]
}
