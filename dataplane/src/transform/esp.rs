//! Encapsulating Security Payload (RFC 4303).
//!
//! ```text
//! SPI | sequence number | IV | payload [TFC padding] 1 2 3 .. | pad length | next header | ICV
//! ```
//!
//! Source: `net/ipv4/esp4.c`, `net/ipv6/esp6.c`. The cipher itself, its IV and
//! the ICV are [`EspTransform`]'s; here are the header, the trailer and UDP.

use xfrm_proto::consts::{IPPROTO_ESP, IPPROTO_UDP};

use super::{Inbound, MOST_AT_ONCE, Opened, Place, Placed, Sequence};
use crate::crypto::{EspTransform, Layout, Refusal, Seal};
use crate::drop_reason::DropReason;
use crate::packet::encap::{self, Encap};
use crate::packet::{Family, PacketBuf, ip6};

/// Pad length and next header.
const TRAILER_BYTES: usize = 2;
/// What padding is, as far as it goes.
static PADDING: [u8; 255] = {
    let mut padding = [0; 255];
    let mut rest: &mut [u8] = &mut padding;
    let mut value = 0;
    while let [first, others @ ..] = rest {
        value += 1;
        *first = value;
        rest = others;
    }
    padding
};
/// Bytes to which ESP aligns whatever the cipher's block is.
const ALIGNMENT: usize = 4;

/// ESP of one SA.
#[derive(Debug)]
pub struct Esp {
    spi: u32,
    crypto: EspTransform,
    tfc_pad: u32,
    /// One less than what the encrypted part is a multiple of: a cipher's block, 4 at least.
    block_mask: usize,
}

impl Esp {
    /// ESP with its keys; `tfc_pad` is `XFRMA_TFCPAD`.
    #[must_use]
    pub fn new(spi: u32, crypto: EspTransform, tfc_pad: u32) -> Self {
        let block_bytes = crypto.layout().block_bytes.max(ALIGNMENT);
        Self {
            spi,
            crypto,
            tfc_pad,
            block_mask: block_bytes.next_power_of_two() - 1,
        }
    }

    /// `XFRMA_TFCPAD`.
    pub(super) const fn tfc_pad(&self) -> u32 {
        self.tfc_pad
    }

    #[inline]
    const fn layout(&self) -> &Layout {
        self.crypto.layout()
    }

    /// Bytes of header and IV.
    #[inline]
    pub(super) const fn header_bytes(&self) -> usize {
        self.layout().prefix_bytes()
    }

    pub(super) fn icv_bytes(&self) -> u32 {
        u32::try_from(self.layout().icv_bytes).unwrap_or(u32::MAX)
    }

    /// What the encrypted part is a multiple of.
    pub(super) fn block_bytes(&self) -> u32 {
        u32::try_from(self.block_mask + 1).unwrap_or(1)
    }

    /// Encrypts (`esp_output`); `pad_to` is what TFC makes of shorter payloads.
    #[inline]
    pub(super) fn seal(
        &self,
        packet: &mut PacketBuf,
        place: &Place,
        encap: Option<&Encap>,
        sequence: Sequence,
        pad_to: u32,
    ) -> Result<(), DropReason> {
        let frame = self.prepare(packet, place, encap, sequence, pad_to)?;
        self.crypto
            .seal(sequence.0, frame)
            .map_err(|_| DropReason::OutCrypto)?;
        complete(packet, place, encap)
    }

    /// Encrypts several packets, at most [`MOST_AT_ONCE`], with ciphers that take their blocks
    /// side by side.
    pub(super) fn seal_batch(
        &self,
        packets: &mut [PacketBuf],
        placed: &[Placed],
        encap: Option<&Encap>,
        pad_to: u32,
    ) -> Result<(), DropReason> {
        let mut jobs: [Seal<'_>; MOST_AT_ONCE] = std::array::from_fn(|_| Seal {
            seq: 0,
            packet: &mut [],
        });
        let mut count = 0;
        for ((packet, placed), job) in packets.iter_mut().zip(placed).zip(&mut jobs) {
            let Placed { place, sequence } = placed;
            job.seq = sequence.0;
            job.packet = self.prepare(packet, place, encap, *sequence, pad_to)?;
            count += 1;
        }
        self.crypto
            .seal_batch(jobs.get_mut(..count).unwrap_or_default())
            .map_err(|_| DropReason::OutCrypto)?;
        let mut both = packets.iter_mut().zip(placed);
        both.try_for_each(|(packet, placed)| complete(packet, &placed.place, encap))
    }

    /// Writes header and trailer; everything from the header on.
    #[inline(always)]
    fn prepare<'p>(
        &self,
        packet: &'p mut PacketBuf,
        place: &Place,
        encap: Option<&Encap>,
        sequence: Sequence,
        pad_to: u32,
    ) -> Result<&'p mut [u8], DropReason> {
        let no_room = DropReason::OutNoRoom;
        let payload_bytes = packet.len().saturating_sub(place.payload_at);
        let padded = usize::try_from(pad_to).map_or(payload_bytes, |to| to.max(payload_bytes));
        let body_bytes = (padded + TRAILER_BYTES + self.block_mask) & !self.block_mask;
        let tail_bytes = body_bytes - payload_bytes + self.layout().icv_bytes;
        packet.push_back(tail_bytes).ok_or(no_room)?;
        let (headers, datagram) = packet
            .split_at_mut_checked(place.header_at)
            .ok_or(no_room)?;
        let protocol = headers.get_mut(place.next_header_at).ok_or(no_room)?;
        let next_header = std::mem::replace(protocol, IPPROTO_ESP);
        let mut encap_bytes = 0;
        if let Some(encap) = encap {
            *protocol = IPPROTO_UDP;
            encap.write(datagram).ok_or(DropReason::OutOversize)?;
            encap_bytes = encap.header_bytes();
        }
        let frame = datagram.get_mut(encap_bytes..).ok_or(no_room)?;
        let header = frame.first_chunk_mut().ok_or(no_room)?;
        *header = (u64::from(self.spi) << 32 | u64::from(sequence.low())).to_be_bytes();
        let tail_at = frame.len().checked_sub(tail_bytes);
        let tail = tail_at.and_then(|at| frame.get_mut(at..)).ok_or(no_room)?;
        fill_trailer(
            tail,
            padded - payload_bytes,
            body_bytes - padded,
            next_header,
        )
        .ok_or(no_room)?;
        Ok(frame)
    }

    /// Decrypts (`esp_input`, `esp_input_done2`).
    #[inline]
    pub(super) fn open(
        &self,
        packet: &mut PacketBuf,
        inbound: &Inbound,
        sequence: Sequence,
    ) -> Result<Opened, DropReason> {
        let prefix = self.header_bytes();
        let frame = packet
            .get_mut(inbound.at..)
            .filter(|frame| frame.len() > prefix)
            .ok_or(DropReason::EspShort)?;
        self.crypto
            .open(sequence.high(), frame)
            .map_err(|refusal| match refusal {
                Refusal::Length => DropReason::EspShort,
                Refusal::Integrity => DropReason::EspIcv,
            })?;

        let icv_at = frame.len() - self.layout().icv_bytes;
        let body = frame.get(prefix..icv_at).unwrap_or_default();
        let &[pad, protocol] = body.last_chunk().ok_or(DropReason::EspPadding)?;
        // QUIRK: empty_payload_is_refused. The pad length must leave one byte at least.
        let payload_bytes = body
            .len()
            .checked_sub(usize::from(pad) + TRAILER_BYTES)
            .filter(|bytes| *bytes > 0)
            .ok_or(DropReason::EspPadding)?;
        if protocol == ip6::NONE {
            return Err(DropReason::EspDummy);
        }
        let at = inbound.at + prefix;
        packet.truncate(at + payload_bytes);
        Ok(Opened { at, protocol })
    }
}

/// Finishes the UDP header of a sealed packet.
#[inline]
fn complete(
    packet: &mut PacketBuf,
    place: &Place,
    encap: Option<&Encap>,
) -> Result<(), DropReason> {
    if encap.is_some() && Family::of(packet) == Some(Family::V6) {
        encap::finish_checksum(packet, place.header_at).ok_or(DropReason::OutNoRoom)?;
    }
    Ok(())
}

/// TFC zeros, pad bytes 1, 2, 3.., their number, the next header
/// (`esp_output_fill_trailer`). `own_bytes` are padding and trailer.
#[inline]
fn fill_trailer(
    tail: &mut [u8],
    tfc_bytes: usize,
    own_bytes: usize,
    next_header: u8,
) -> Option<()> {
    let mut tail = tail;
    if tfc_bytes > 0 {
        let (tfc, own) = tail.split_at_mut_checked(tfc_bytes)?;
        tfc.fill(0);
        tail = own;
    }
    let pad_bytes = own_bytes.checked_sub(TRAILER_BYTES)?;
    let (padding, trailer) = tail.split_at_mut_checked(pad_bytes)?;
    padding.copy_from_slice(PADDING.get(..pad_bytes)?);
    *trailer.first_chunk_mut()? = [u8::try_from(pad_bytes).ok()?, next_header];
    Some(())
}
