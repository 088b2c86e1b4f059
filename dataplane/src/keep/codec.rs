//! Images as bytes: numbers in as few as they need, structures without their zeros. Recordings are
//! written so too.
//!
//! A reader takes any bytes; what it does not understand is `None`.

use xfrm_proto::uapi::{LifetimeCfg, Pod};

/// Appends to an image.
#[derive(Debug)]
pub struct Writer<'a>(&'a mut Vec<u8>);

impl<'a> Writer<'a> {
    /// Begins an image in place of what is there.
    pub fn new(image: &'a mut Vec<u8>) -> Self {
        image.clear();
        Self(image)
    }

    /// Goes on behind what is there.
    pub const fn behind(out: &'a mut Vec<u8>) -> Self {
        Self(out)
    }

    /// Seven bits a byte, the lowest first.
    pub fn int(&mut self, mut value: u64) {
        loop {
            let [low, ..] = value.to_le_bytes();
            value >>= 7;
            if value == 0 {
                self.0.push(low & 0x7f);
                return;
            }
            self.0.push(low | 0x80);
        }
    }

    /// A number for which "all ones" is common.
    pub fn limit(&mut self, value: u64) {
        self.int(value.wrapping_add(1));
    }

    /// A truth.
    pub fn flag(&mut self, value: bool) {
        self.0.push(u8::from(value));
    }

    /// Bytes, behind their number.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.int(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// A structure: how many zeros, how many other bytes, these, and again.
    pub fn pod<T: Pod>(&mut self, value: &T) {
        let mut rest = value.as_bytes();
        while !rest.is_empty() {
            let zeros = rest.iter().take_while(|&&byte| byte == 0).count().min(255);
            rest = rest.get(zeros..).unwrap_or_default();
            // A lone zero among others is not worth a new run.
            let others = rest
                .windows(2)
                .position(|pair| pair == [0, 0])
                .unwrap_or(rest.len())
                .min(255);
            let (run, after) = rest.split_at(others);
            self.0
                .extend([zeros, others].map(|it| u8::try_from(it).unwrap_or(255)));
            self.0.extend_from_slice(run);
            rest = after;
        }
    }

    /// Lifetimes.
    pub fn limits(&mut self, lft: &LifetimeCfg) {
        for value in [
            lft.soft_byte_limit,
            lft.hard_byte_limit,
            lft.soft_packet_limit,
            lft.hard_packet_limit,
        ] {
            self.limit(value);
        }
        for value in [
            lft.soft_add_expires_seconds,
            lft.hard_add_expires_seconds,
            lft.soft_use_expires_seconds,
            lft.hard_use_expires_seconds,
        ] {
            self.int(value);
        }
    }

    /// Something, or nothing.
    pub fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.flag(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
    }
}

/// Reads an image.
#[derive(Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// From its beginning.
    #[must_use]
    pub const fn new(image: &'a [u8]) -> Self {
        Self(image)
    }

    /// Nothing must be left.
    #[must_use]
    pub fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// A byte.
    pub fn u8(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    /// A number.
    pub fn int(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return None;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// A number that fits.
    pub fn u32(&mut self) -> Option<u32> {
        u32::try_from(self.int()?).ok()
    }

    /// A number that fits a byte.
    pub fn small(&mut self) -> Option<u8> {
        u8::try_from(self.int()?).ok()
    }

    /// A number for which "all ones" is common.
    pub fn limit(&mut self) -> Option<u64> {
        Some(self.int()?.wrapping_sub(1))
    }

    /// A truth.
    pub fn flag(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    /// Bytes, behind their number.
    pub fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.int()?).ok()?;
        self.take(len)
    }

    /// A structure.
    pub fn pod<T: Pod>(&mut self) -> Option<T> {
        let mut value = T::default();
        let mut rest = value.as_mut_bytes();
        while !rest.is_empty() {
            let zeros = usize::from(self.u8()?);
            let others = usize::from(self.u8()?);
            if zeros + others == 0 {
                return None;
            }
            let (skipped, after) = rest.split_at_mut_checked(zeros)?;
            skipped.fill(0);
            let (run, after) = after.split_at_mut_checked(others)?;
            run.copy_from_slice(self.take(others)?);
            rest = after;
        }
        Some(value)
    }

    /// Lifetimes.
    pub fn limits(&mut self) -> Option<LifetimeCfg> {
        Some(LifetimeCfg {
            soft_byte_limit: self.limit()?,
            hard_byte_limit: self.limit()?,
            soft_packet_limit: self.limit()?,
            hard_packet_limit: self.limit()?,
            soft_add_expires_seconds: self.int()?,
            hard_add_expires_seconds: self.int()?,
            soft_use_expires_seconds: self.int()?,
            hard_use_expires_seconds: self.int()?,
        })
    }

    /// `None` for what makes no sense, `Some(None)` for nothing.
    pub fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        match self.flag()? {
            false => Some(None),
            true => read(self).map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use xfrm_proto::uapi::{Selector, UserSaInfo};

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(number: u64, blob: Vec<u8>, info: [u8; 224], sparse in 0usize..224) {
            let mut info = info;
            info[sparse..].fill(0);
            let info = UserSaInfo::read(&info).unwrap();
            let mut image = Vec::new();
            let mut out = Writer::new(&mut image);
            out.int(number);
            out.limit(number);
            out.bytes(&blob);
            out.pod(&info);
            out.limits(&info.lft);
            out.option(Some(number), Writer::int);
            out.option(None, Writer::int);
            let mut from = Reader::new(&image);
            prop_assert_eq!(from.int(), Some(number));
            prop_assert_eq!(from.limit(), Some(number));
            prop_assert_eq!(from.bytes(), Some(&*blob));
            prop_assert_eq!(from.pod(), Some(info));
            prop_assert_eq!(from.limits(), Some(info.lft));
            prop_assert_eq!(from.option(Reader::int), Some(Some(number)));
            prop_assert_eq!(from.option(Reader::int), Some(None));
            prop_assert_eq!(from.end(), Some(()));
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = Reader::new(&bytes).int();
            let _ = Reader::new(&bytes).bytes();
            let _ = Reader::new(&bytes).pod::<Selector>();
            let _ = Reader::new(&bytes).limits();
        }
    }
}
