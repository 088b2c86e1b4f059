//! Which SAs packets have come to, so that only the first packet of one is looked up.
//!
//! An entry holds until any SA of the namespace comes, goes or changes.

use xfrm_proto::uapi::Address;

use crate::sad::{SaId, Sad};

const PLACES: usize = 64;

/// What an SA is looked up by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) mark: u32,
    pub(super) daddr: Address,
    pub(super) spi: u32,
    pub(super) proto: u8,
    pub(super) family: u16,
}

impl Wanted {
    #[inline(always)]
    fn words(&self) -> [u64; 4] {
        let [d0, d1] = self.daddr.halves();
        let name = u64::from(self.mark) << 32 | u64::from(self.spi);
        let kind = u64::from(self.proto) << 16 | u64::from(self.family);
        [d0, d1, name, kind]
    }
}

#[derive(Clone, Copy, Debug)]
struct Place {
    words: [u64; 4],
    /// The SAD's number when it was found.
    sad: u64,
    id: SaId,
}

/// The SAs of one worker's packets, one for each value of some bits of the SPI.
#[derive(Debug)]
pub(super) struct Arrivals {
    places: [Place; PLACES],
}

impl Default for Arrivals {
    fn default() -> Self {
        // No packet comes to an SA of protocol 0.
        let empty = Place {
            words: [0; 4],
            sad: 0,
            id: SaId::default(),
        };
        Self {
            places: [empty; PLACES],
        }
    }
}

impl Arrivals {
    /// [`Sad::lookup`].
    #[inline(always)]
    pub(super) fn lookup(&mut self, sad: &Sad, wanted: &Wanted) -> Option<SaId> {
        let words = wanted.words();
        let now = sad.choices.all();
        let place = self.places.get_mut(wanted.spi as usize % PLACES)?;
        if place.sad == now && place.words == words {
            return Some(place.id);
        }
        place.renew(sad, wanted, words, now)
    }
}

impl Place {
    #[inline(never)]
    fn renew(&mut self, sad: &Sad, wanted: &Wanted, words: [u64; 4], now: u64) -> Option<SaId> {
        let &Wanted {
            mark,
            daddr,
            spi,
            proto,
            family,
        } = wanted;
        let id = sad.lookup(mark, daddr, spi, proto, family)?;
        *self = Self {
            words,
            sad: now,
            id,
        };
        Some(id)
    }
}
