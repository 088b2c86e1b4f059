//! A packet with room in front and behind, so that headers, padding and ICV
//! are added and taken away without moving the payload.
//!
//! One allocation when it is made, none afterwards; a worker keeps a pool.

use std::ops::{Deref, DerefMut};

/// Room in front of a fresh packet: the deepest chain of headers that Linux
/// makes (six SAs, the outermost UDP-encapsulated, one IPv6 tunnel header and
/// a BEET pseudo header among them) fits.
pub const HEADROOM: usize = 384;

/// Room behind a fresh packet: padding, trailer and ICV of six SAs.
pub const TAILROOM: usize = 6 * (255 + 2 + 64);

/// The longest IP packet without jumbograms: an IPv6 header and 65,535 bytes.
pub const MAX_PACKET: usize = 40 + 65_535;

/// How a packet has come to this host, as far as the host told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Firewall mark.
    pub mark: u32,
    /// Interface, 0 if that is not known.
    pub ifindex: i32,
}

/// A packet and the room around it.
#[derive(Clone, Debug)]
pub struct PacketBuf {
    storage: Box<[u8]>,
    start: usize,
    end: usize,
    origin: Origin,
}

impl PacketBuf {
    /// An empty buffer that takes packets of up to `packet_bytes`.
    #[must_use]
    pub fn with_capacity(packet_bytes: usize) -> Self {
        Self {
            storage: vec![0; HEADROOM + packet_bytes + TAILROOM].into(),
            start: HEADROOM,
            end: HEADROOM,
            origin: Origin::default(),
        }
    }

    /// A buffer that holds a copy of `packet`.
    #[must_use]
    pub fn copy_of(packet: &[u8]) -> Self {
        let mut buffer = Self::with_capacity(packet.len());
        buffer.fill(packet);
        buffer
    }

    /// Forgets the packet and offers the whole payload room for another one;
    /// [`PacketBuf::truncate`] then says how much of it was filled.
    pub fn offer(&mut self) -> &mut [u8] {
        self.start = HEADROOM;
        self.end = self.storage.len() - TAILROOM;
        self
    }

    /// Replaces the packet by a copy of another; false (and empty) when it is too long.
    #[inline]
    pub fn fill(&mut self, packet: &[u8]) -> bool {
        self.start = HEADROOM;
        self.end = HEADROOM;
        self.push_back(packet.len())
            .map(|room| room.copy_from_slice(packet))
            .is_some()
    }

    /// How the packet has come, if it comes from the host.
    #[must_use]
    pub const fn origin(&self) -> Origin {
        self.origin
    }

    /// Says how the packet has come.
    pub const fn set_origin(&mut self, origin: Origin) {
        self.origin = origin;
    }

    /// Bytes that there are for a packet and all around it.
    #[must_use]
    pub const fn room(&self) -> usize {
        self.storage.len()
    }

    /// Bytes that could still be put in front.
    #[must_use]
    pub const fn headroom(&self) -> usize {
        self.start
    }

    /// Bytes that could still be put behind.
    #[must_use]
    pub const fn tailroom(&self) -> usize {
        self.storage.len() - self.end
    }

    /// Bytes of the packet.
    #[must_use]
    #[inline]
    pub const fn len(&self) -> usize {
        self.end.saturating_sub(self.start)
    }

    /// Whether there is no packet.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Grows the packet at its front; the new bytes hold leftovers.
    #[inline]
    pub fn push_front(&mut self, bytes: usize) -> Option<()> {
        self.start = self.start.checked_sub(bytes)?;
        Some(())
    }

    /// Takes bytes from the front.
    #[inline]
    pub fn pull_front(&mut self, bytes: usize) -> Option<()> {
        if bytes > self.len() {
            return None;
        }
        self.start += bytes;
        Some(())
    }

    /// Grows the packet at its end and gives the new bytes, which hold leftovers.
    #[inline]
    pub fn push_back(&mut self, bytes: usize) -> Option<&mut [u8]> {
        let room = self.storage.get_mut(self.end..)?.get_mut(..bytes)?;
        self.end += bytes;
        Some(room)
    }

    /// Cuts the packet to a length, if it is longer.
    #[inline]
    pub fn truncate(&mut self, bytes: usize) {
        self.end = self.end.min(self.start + bytes);
    }

    /// Replaces everything from offset `at` on; `None` (and nothing done) when it does not fit.
    pub fn replace_tail(&mut self, at: usize, bytes: &[u8]) -> Option<()> {
        let from = self.start + at.min(self.len());
        self.storage
            .get_mut(from..)?
            .get_mut(..bytes.len())?
            .copy_from_slice(bytes);
        self.end = from + bytes.len();
        Some(())
    }
}

impl Deref for PacketBuf {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.storage.get(self.start..self.end).unwrap_or_default()
    }
}

impl DerefMut for PacketBuf {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        self.storage
            .get_mut(self.start..self.end)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_and_shrinks_at_both_ends() {
        let mut packet = PacketBuf::copy_of(b"payload");
        packet.push_front(3).unwrap();
        packet[..3].copy_from_slice(b"ip ");
        packet.push_back(2).unwrap().copy_from_slice(b"!!");
        assert_eq!(&*packet, b"ip payload!!");
        packet.pull_front(3).unwrap();
        packet.truncate(7);
        assert_eq!(&*packet, b"payload");
        packet.replace_tail(3, b"LOADED").unwrap();
        assert_eq!(&*packet, b"payLOADED");
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let mut packet = PacketBuf::copy_of(b"x");
        assert!(packet.push_front(HEADROOM + 1).is_none());
        assert!(packet.push_back(TAILROOM + 1).is_none());
        assert!(packet.pull_front(2).is_none());
        assert!(packet.replace_tail(0, &[0; TAILROOM + 2]).is_none());
        assert_eq!(&*packet, b"x");
        assert!(!packet.fill(&[0; TAILROOM + 2]));
        assert!(packet.is_empty());
    }

    #[test]
    fn an_offer_is_the_payload_room() {
        let mut packet = PacketBuf::with_capacity(100);
        assert_eq!(packet.offer().len(), 100);
        packet.truncate(10);
        assert_eq!(packet.len(), 10);
        assert_eq!(packet.headroom(), HEADROOM);
    }
}
