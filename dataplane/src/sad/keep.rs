//! SAs that outlive the process ([`crate::keep`]).
//!
//! An image holds what requests and timers change; what packets change is in
//! the SA's words ([`super::traffic`]). Indices, timers and Linux's hash chains
//! are made of the images.

use xfrm_proto::algo::Key;

use super::lifetime::Expiry;
use super::sa::{IptfsConfig, KeyedAlgorithm, SaOptions};
use super::traffic::Traffic;
use super::tunnel::TunnelKey;
use super::window::Window;
use super::{Lifecycle, Sa, SaId, Sad, buckets};
use crate::crypto::{self, Algorithm};
use crate::keep::{self, Kept, Kind, Reader, Record, Shelf, Unreadable, Writer};
use crate::profile::Profile;
use crate::replay::{ReplayWindow, Ring};
use crate::security::SecurityContext;
use crate::sync::OnceLock;
use crate::time::BootNanos;

impl Sad {
    /// An SA came, changed or went.
    pub(super) fn touch(&mut self, place: u32) {
        if let Some(touched) = &mut self.touched
            && touched.last() != Some(&place)
        {
            touched.push(place);
        }
    }

    /// Puts what has changed since the last time, all of it at first.
    pub(crate) fn keep(&mut self, netns: u32, shelf: &mut dyn Shelf, image: &mut Vec<u8>) {
        let touched = match &mut self.touched {
            Some(touched) => std::mem::take(touched),
            None => self.by_age.values().map(|id| id.0).collect(),
        };
        for &place in &touched {
            let record = Record {
                netns,
                kind: Kind::Sa,
                place,
            };
            let slot = self.slots.get_mut(place as usize);
            let Some(sa) = slot.and_then(|slot| slot.as_deref_mut()) else {
                shelf.remove(record);
                continue;
            };
            if !sa.traffic.is_kept() {
                let words = Traffic::words_wanted(&sa.window());
                let Some(words) = shelf.lend(record, words) else {
                    shelf.remove(record);
                    continue;
                };
                sa.traffic.move_to(words);
            }
            sa.traffic.keep_window(&sa.window());
            keep::put(shelf, record, image, |out| write(sa, out));
        }
        let mut touched = touched;
        touched.clear();
        self.touched = Some(touched);
    }

    /// Takes everything from the shelf.
    pub(crate) fn forget(&self, netns: u32, shelf: &mut dyn Shelf) {
        for id in self.by_age.values() {
            shelf.remove(Record {
                netns,
                kind: Kind::Sa,
                place: id.0,
            });
        }
    }

    /// Something that is another once [`Sad::write`] writes something else; `None` if that is not known.
    pub(crate) fn own(&self) -> Option<u32> {
        self.tunnels.are_untouched().then(|| self.buckets.len())
    }

    /// What belongs to no single SA.
    pub(crate) fn write(&self, out: &mut Writer<'_>) {
        out.int(self.buckets.len().into());
        self.tunnels.write(out);
    }

    /// Its reverse.
    pub(crate) fn read(&mut self, from: &mut Reader<'_>) -> Option<()> {
        self.buckets.begin_with(from.u32()?)?;
        self.tunnels.read(from)
    }

    /// Takes SAs in as they were.
    pub(crate) fn recall<'a>(
        &mut self,
        records: impl Iterator<Item = &'a Kept<'a>>,
    ) -> Result<(), Unreadable> {
        let mut found = Vec::new();
        for kept in records {
            let sa = read(self.profile, kept).ok_or(Unreadable(kept.record))?;
            found.push((sa, kept.record));
        }
        found.sort_by_key(|(sa, _)| sa.serial);
        let places = found.iter().map(|(_, record)| record.place as usize + 1);
        self.slots.resize_with(places.max().unwrap_or(0), || None);
        let mut ranks = Vec::new();
        for (sa, record) in found {
            let free = self
                .slots
                .get(record.place as usize)
                .is_some_and(Option::is_none);
            if !free || sa.serial < self.next_serial {
                return Err(Unreadable(record));
            }
            ranks.push((record.place, sa.traffic.rank()));
            self.next_serial = sa.serial;
            let due = sa.expiry.due;
            let tunnel = sa.tunnel.map(|key| (key, sa.is_tunnel));
            let id = self.link_at(record.place, sa);
            if let Some(due) = due {
                self.timers.recall(due, id);
            }
            if let Some((key, is_tunnel)) = tunnel {
                self.tunnels
                    .recall(key, is_tunnel.then_some(id))
                    .ok_or(Unreadable(record))?;
            }
        }
        let vacant = |(place, slot): (u32, &Option<Box<Sa>>)| slot.is_none().then_some(place);
        self.free = (0..).zip(&self.slots).filter_map(vacant).collect();
        self.buckets.set_ranks(ranks.iter().copied());
        self.reorder_chains();
        for (place, rank) in ranks {
            if let Some(sa) = self.get(SaId(place)) {
                sa.traffic.set_rank(rank);
            }
        }
        self.touched = Some(Vec::new());
        Ok(())
    }
}

fn write(sa: &Sa, out: &mut Writer<'_>) {
    out.int(sa.serial);
    out.pod(&sa.id);
    out.pod(&sa.saddr);
    out.pod(&sa.mark);
    for value in [sa.reqid, sa.seq, sa.family.into(), sa.if_id] {
        out.int(value.into());
    }
    for value in [sa.mode, sa.dir, sa.flags, sa.replay_window] {
        out.int(value.into());
    }
    out.flag(sa.state == Lifecycle::Larval);
    out.flag(sa.is_tunnel);
    out.limit(u64::from(sa.pcpu) | (u64::MAX << 32));
    out.pod(&sa.sel);
    out.limits(&sa.lft);
    out.int(sa.replay_maxage.into());
    out.int(sa.replay_maxdiff.into());
    out.int(sa.inserted.0);
    out.option(sa.expiry.due, |out, (at, armed)| {
        out.int(at.0);
        out.int(armed);
    });
    out.option(sa.expiry.soft_wait, |out, secs| {
        out.int(secs.cast_unsigned())
    });
    out.option(sa.tunnel, |out, key| out.int(key.0));
    match &*sa.window() {
        ReplayWindow::Legacy { window, .. } => {
            out.int(0);
            out.int((*window).into());
        }
        ReplayWindow::Bitmap(ring) => write_ring(1, ring, out),
        ReplayWindow::Esn(ring) => write_ring(2, ring, out),
    }
    for algorithm in [&sa.aead, &sa.auth, &sa.crypt] {
        out.option(algorithm.as_ref(), |out, keyed| {
            out.bytes(keyed.algorithm.name.as_bytes());
            out.int(keyed.key_bits.into());
            out.int(keyed.icv_bits.into());
            out.bytes(keyed.key.expose());
        });
    }
    out.option(sa.comp, |out, comp| out.bytes(comp.name.as_bytes()));
    out.option(sa.options.as_deref(), |out, options| {
        out.option(options.encap.as_ref(), Writer::pod);
        out.option(options.coaddr.as_ref(), Writer::pod);
        out.pod(&options.smark);
        for value in [
            options.extra_flags,
            options.tfcpad,
            options.nat_keepalive_secs,
            options.mapping_maxage_secs,
        ] {
            out.int(value.into());
        }
        out.option(options.security.as_ref(), |out, it| out.bytes(it.bytes()));
        out.option(options.iptfs.as_ref(), write_iptfs);
    });
}

fn write_ring(kind: u64, ring: &Ring, out: &mut Writer<'_>) {
    out.int(kind);
    out.int(ring.bitmap.len() as u64);
    out.int(ring.window.into());
    out.int(ring.idle_oseq_hi.into());
}

fn write_iptfs(out: &mut Writer<'_>, config: &IptfsConfig) {
    for value in [
        config.drop_time_usecs,
        config.reorder_window.into(),
        config.init_delay_usecs,
        config.max_queue_bytes,
        config.packet_bytes,
    ] {
        out.int(value.into());
    }
    out.flag(config.dont_frag);
}

fn read(profile: &'static Profile, kept: &Kept<'_>) -> Option<Box<Sa>> {
    let from = &mut Reader::new(kept.image);
    let mut sa = Box::new(Sa::blank(0));
    sa.serial = from.int()?;
    sa.id = from.pod()?;
    sa.saddr = from.pod()?;
    sa.mark = from.pod()?;
    (sa.reqid, sa.seq) = (from.u32()?, from.u32()?);
    sa.family = u16::try_from(from.int()?).ok()?;
    sa.if_id = from.u32()?;
    (sa.mode, sa.dir) = (from.small()?, from.small()?);
    (sa.flags, sa.replay_window) = (from.small()?, from.small()?);
    if from.flag()? {
        sa.state = Lifecycle::Larval;
    }
    sa.is_tunnel = from.flag()?;
    sa.pcpu = u32::try_from(from.limit()? & u64::from(u32::MAX)).ok()?;
    if !profile.knows_direction() {
        // Nor CPUs: it is another release's SA.
        let blank = Sa::blank(0);
        (sa.dir, sa.pcpu) = (blank.dir, blank.pcpu);
    }
    sa.sel = from.pod()?;
    sa.lft = from.limits()?;
    (sa.replay_maxage, sa.replay_maxdiff) = (from.u32()?, from.u32()?);
    sa.inserted = BootNanos(from.int()?);
    sa.expiry = Expiry {
        due: from.option(|from| Some((BootNanos(from.int()?), from.int()?)))?,
        soft_wait: from.option(|from| Some(from.int()?.cast_signed()))?,
    };
    sa.tunnel = from.option(|from| Some(TunnelKey(from.int()?)))?;
    let mut window = read_window(from)?;
    sa.aead = from.option(|from| keyed(from, crypto::aead))?;
    sa.auth = from.option(|from| keyed(from, |name, _| crypto::auth(profile, name)))?;
    sa.crypt = from.option(|from| keyed(from, |name, _| crypto::cipher(profile, name)))?;
    sa.comp = from.option(|from| crypto::compressor(from.bytes()?))?;
    sa.options = from.option(|from| read_options(from).map(Box::new))?;
    from.end()?;
    if kept.words.len() != Traffic::words_wanted(&window) {
        return None;
    }
    sa.traffic.recall(kept.words, &mut window);
    sa.window = Window::new(window);
    sa.told = OnceLock::new();
    let (esn, may_wrap) = (sa.is_esn(), sa.may_wrap());
    sa.traffic.bound(esn, may_wrap);
    Some(sa)
}

fn read_window(from: &mut Reader<'_>) -> Option<ReplayWindow> {
    let kind = from.int()?;
    if kind == 0 {
        return Some(ReplayWindow::Legacy {
            window: from.small()?,
            seq: 0,
            bitmap: 0,
        });
    }
    let words = usize::try_from(from.int()?).ok()?;
    if words > xfrm_proto::consts::XFRMA_REPLAY_ESN_MAX_WORDS as usize {
        return None;
    }
    let ring = Box::new(Ring {
        seq: 0,
        seq_hi: 0,
        window: from.u32()?,
        idle_oseq_hi: from.u32()?,
        bitmap: vec![0; words].into(),
    });
    match kind {
        1 => Some(ReplayWindow::Bitmap(ring)),
        2 => Some(ReplayWindow::Esn(ring)),
        _ => None,
    }
}

fn keyed(
    from: &mut Reader<'_>,
    find: impl FnOnce(&[u8], u32) -> Option<&'static Algorithm>,
) -> Option<KeyedAlgorithm> {
    let name = from.bytes()?;
    let (key_bits, icv_bits) = (from.u32()?, from.u32()?);
    Some(KeyedAlgorithm {
        algorithm: find(name, icv_bits)?,
        key: Key::new(from.bytes()?),
        key_bits,
        icv_bits,
    })
}

fn read_options(from: &mut Reader<'_>) -> Option<SaOptions> {
    Some(SaOptions {
        encap: from.option(Reader::pod)?,
        coaddr: from.option(Reader::pod)?,
        smark: from.pod()?,
        extra_flags: from.u32()?,
        tfcpad: from.u32()?,
        nat_keepalive_secs: from.u32()?,
        mapping_maxage_secs: from.u32()?,
        security: from.option(|from| Some(SecurityContext::recall(from.bytes()?)))?,
        iptfs: from.option(|from| {
            Some(IptfsConfig {
                drop_time_usecs: from.u32()?,
                reorder_window: u16::try_from(from.int()?).ok()?,
                init_delay_usecs: from.u32()?,
                max_queue_bytes: from.u32()?,
                packet_bytes: from.u32()?,
                dont_frag: from.flag()?,
            })
        })?,
    })
}

impl Sad {
    fn reorder_chains(&mut self) {
        let buckets: &buckets::Buckets = &self.buckets;
        for index in [
            &mut self.by_spi,
            &mut self.by_spi_alone,
            &mut self.by_source,
            &mut self.by_template,
            &mut self.larval,
            &mut self.larval_by_seq,
        ] {
            index.reorder(|place| buckets.rank(place));
        }
    }

    /// Does what Linux's worker does when the hash tables are to grow.
    pub(super) fn grow_tables(&mut self) {
        self.buckets.grow(self.by_age.values().map(|id| id.0));
        self.reorder_chains();
        for (id, sa) in self.iter() {
            sa.traffic.set_rank(self.buckets.rank(id.0));
        }
    }
}
