//! Algorithm blobs (`struct xfrm_algo`, `xfrm_algo_auth`, `xfrm_algo_aead`) and
//! the keys inside them.

use zeroize::Zeroizing;

/// Length of an algorithm's name field.
pub const NAME_BYTES: usize = 64;

/// Keys up to this many bytes need no memory of their own: all of AES's, with salt.
const SHORT_KEY_BYTES: usize = 38;

/// Key bytes: wiped when dropped, compared in constant time, never shown.
///
/// Short ones lie in the key itself, so that an SA and its key are read together.
#[derive(Clone)]
pub struct Key(Bytes);

#[derive(Clone)]
enum Bytes {
    Short(u8, Zeroizing<[u8; SHORT_KEY_BYTES]>),
    Long(Zeroizing<Box<[u8]>>),
}

impl Default for Key {
    fn default() -> Self {
        Self::new(&[])
    }
}

impl Key {
    /// Takes a copy of `bytes`.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        let mut short = Zeroizing::new([0; SHORT_KEY_BYTES]);
        match (u8::try_from(bytes.len()), short.get_mut(..bytes.len())) {
            (Ok(len), Some(place)) => {
                place.copy_from_slice(bytes);
                Self(Bytes::Short(len, short))
            }
            _ => Self(Bytes::Long(Zeroizing::new(bytes.into()))),
        }
    }

    /// The key itself, for a cipher or for a reply that Linux puts it in.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        match &self.0 {
            Bytes::Short(len, bytes) => bytes.get(..usize::from(*len)).unwrap_or_default(),
            Bytes::Long(bytes) => bytes,
        }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.expose().len()
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({} bytes)", self.len())
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        let (own, other) = (self.expose(), other.expose());
        let difference = own.iter().zip(other).fold(0, |acc, (a, b)| acc | (a ^ b));
        own.len() == other.len() && std::hint::black_box(difference) == 0
    }
}

impl Eq for Key {}

/// Which of the three structures a blob is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `struct xfrm_algo`: name, key bits.
    Plain,
    /// `struct xfrm_algo_auth` and `xfrm_algo_aead`: name, key bits, ICV bits.
    WithIcv,
}

impl Layout {
    /// Bytes in front of the key.
    #[must_use]
    pub const fn header_bytes(self) -> usize {
        match self {
            Self::Plain => NAME_BYTES + 4,
            Self::WithIcv => NAME_BYTES + 8,
        }
    }
}

/// An algorithm as a client gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlgoBlob {
    /// The name field, all of it.
    pub name: [u8; NAME_BYTES],
    /// Key length in bits, as given.
    pub key_bits: u32,
    /// `alg_trunc_len` or `alg_icv_len`; 0 in the plain layout.
    pub icv_bits: u32,
    /// The key, `key_bits` rounded up to bytes.
    pub key: Key,
}

impl AlgoBlob {
    /// An algorithm by its name, of which as much is taken as the field has room for.
    #[must_use]
    pub fn new(name: &str, key: &[u8], icv_bits: u32) -> Self {
        let mut field = [0; NAME_BYTES];
        for (to, from) in field.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        Self {
            name: field,
            key_bits: u32::try_from(key.len() * 8).unwrap_or(u32::MAX),
            icv_bits,
            key: Key::new(key),
        }
    }

    /// Reads a blob; `None` when `bytes` are too few for the key they announce.
    #[must_use]
    pub fn read(bytes: &[u8], layout: Layout) -> Option<Self> {
        let name = *bytes.first_chunk::<NAME_BYTES>()?;
        let key_bits = u32::from_ne_bytes(*bytes.get(NAME_BYTES..)?.first_chunk()?);
        let icv_bits = match layout {
            Layout::Plain => 0,
            Layout::WithIcv => u32::from_ne_bytes(*bytes.get(NAME_BYTES + 4..)?.first_chunk()?),
        };
        let key = bytes
            .get(layout.header_bytes()..)?
            .get(..key_bytes(key_bits)?)?;
        Some(Self {
            name,
            key_bits,
            icv_bits,
            key: Key::new(key),
        })
    }

    /// The name up to its first NUL.
    #[must_use]
    pub fn name_bytes(&self) -> &[u8] {
        self.name.split(|&b| b == 0).next().unwrap_or_default()
    }
}

/// Bytes that `bits` of key take.
///
/// QUIRK: key_bits_wrap. Linux adds 7 in 32 bits, so the seven highest lengths are no bytes at all.
#[must_use]
pub fn key_bytes(bits: u32) -> Option<usize> {
    usize::try_from(bits.wrapping_add(7) / 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_does_not_show_itself() {
        let blob = AlgoBlob::new("", b"sentinel", 0);
        assert!(!format!("{blob:?}").contains("sentinel"));
        assert!(!format!("{blob:?}").contains("115"));
    }

    #[test]
    fn keys_of_any_length_are_kept() {
        for len in 0..100 {
            let bytes: Vec<u8> = (0..len).collect();
            let key = Key::new(&bytes);
            assert_eq!((key.expose(), key.len()), (&*bytes, bytes.len()));
            assert_eq!(key, key.clone());
            assert_ne!(key, Key::new(&[&*bytes, &[0]].concat()));
        }
    }

    #[test]
    fn a_lying_key_length_is_refused() {
        let mut bytes = vec![0; 68];
        bytes[64] = 8;
        assert!(AlgoBlob::read(&bytes, Layout::Plain).is_none());
        bytes.push(1);
        assert_eq!(AlgoBlob::read(&bytes, Layout::Plain).unwrap().key.len(), 1);
        bytes[67] = 0x7f;
        assert!(AlgoBlob::read(&bytes, Layout::Plain).is_none());
    }

    #[test]
    fn key_bits_wrap() {
        assert_eq!(key_bytes(u32::MAX), Some(0));
        assert_eq!(key_bytes(121), Some(16));
    }
}
