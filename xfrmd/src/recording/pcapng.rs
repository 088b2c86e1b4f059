//! pcapng (draft-ietf-opsawg-pcapng): blocks and their options, as bytes and back.
//!
//! In the writer's byte order, of which a reader has the same or refuses. Option codes and block types
//! with the highest bit set are left to everybody by the format, and skipped by programs that do not
//! know them.

use super::Damage;

/// Section header.
pub const SECTION: u32 = 0x0a0d_0d0a;
/// Interface description.
pub const INTERFACE: u32 = 1;
/// A packet.
pub const ENHANCED_PACKET: u32 = 6;
/// Of [`SECTION`]: tells the byte order.
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
/// `opt_comment`, of any block.
pub const OPT_COMMENT: u16 = 1;
/// The program that wrote a section.
pub const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_DESCRIPTION: u16 = 3;
const IF_TSRESOL: u16 = 9;
/// Which way a packet went.
pub const EPB_FLAGS: u16 = 2;
/// Packets that were lost before this one.
pub const EPB_DROPCOUNT: u16 = 4;
/// The same for packets that belong together.
pub const EPB_PACKETID: u16 = 5;
/// Nanoseconds.
const RESOLUTION: u8 = 9;

/// `LINKTYPE_NETLINK`: the header below, and a netlink message.
pub const LINK_NETLINK: u16 = 253;
/// `LINKTYPE_LINUX_SLL`: a header that tells the direction. Of interfaces without a header
/// (`LINKTYPE_RAW`) libpcap opens only files with a single one.
pub const LINK_COOKED: u16 = 113;
/// Length of the header of both.
pub const COOKED_BYTES: usize = 16;
/// `sll_pkttype`: it came.
pub const PACKET_HOST: u16 = 0;
/// It goes.
pub const PACKET_OUTGOING: u16 = 4;
/// From the kernel.
pub const PACKET_USER: u16 = 6;
/// To the kernel.
pub const PACKET_KERNEL: u16 = 7;
/// A device without a header of its own.
const ARPHRD_NONE: u16 = 0xfffe;
/// An nlmon device.
const ARPHRD_NETLINK: u16 = 824;
const NETLINK_XFRM: u16 = 6;
const ETHERTYPES: [u16; 2] = [0x0800, 0x86dd];

/// A block that is being written.
#[derive(Debug)]
pub struct Block<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Block<'a> {
    /// Begins one at the end of `out`.
    pub fn begin(out: &'a mut Vec<u8>, kind: u32) -> Self {
        let start = out.len();
        out.extend_from_slice(&kind.to_ne_bytes());
        out.extend_from_slice(&[0; 4]);
        Self { out, start }
    }

    /// Goes on with one that was left open at `start`.
    pub const fn resume(out: &'a mut Vec<u8>, start: usize) -> Self {
        Self { out, start }
    }

    /// Begins a packet: `captured` bytes follow, of `bytes` that it had.
    pub fn packet(
        out: &'a mut Vec<u8>,
        interface: u32,
        nanos: u64,
        [captured, bytes]: [usize; 2],
    ) -> Self {
        let mut block = Self::begin(out, ENHANCED_PACKET);
        let [low, high] = [nanos & u64::from(u32::MAX), nanos >> 32];
        let word = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).to_ne_bytes();
        block.put(&interface.to_ne_bytes());
        for value in [high, low, len64(captured), len64(bytes)] {
            block.put(&word(value));
        }
        block
    }

    /// Appends bytes.
    pub fn put(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Fills up to four bytes.
    pub fn pad(&mut self) {
        let used = self.out.len() - self.start;
        self.out.resize(self.start + used.next_multiple_of(4), 0);
    }

    /// Appends an option; one that is too long for its length is cut.
    pub fn option(&mut self, code: u16, value: &[u8]) {
        let len = u16::try_from(value.len()).unwrap_or(u16::MAX);
        self.put(&code.to_ne_bytes());
        self.put(&len.to_ne_bytes());
        self.put(value.get(..usize::from(len)).unwrap_or_default());
        self.pad();
    }

    /// Ends the options and the block.
    pub fn end(mut self) {
        self.put(&[0; 4]);
        let len = u32::try_from(self.out.len() - self.start + 4).unwrap_or(u32::MAX);
        self.put(&len.to_ne_bytes());
        let at = self.start + 4;
        if let Some(field) = self.out.get_mut(at..at + 4) {
            field.copy_from_slice(&len.to_ne_bytes());
        }
    }
}

fn len64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// A section of these interfaces: link type, name, description.
pub fn section(
    out: &mut Vec<u8>,
    most_bytes: u32,
    comment: Option<&str>,
    interfaces: &[(u16, &str, &str)],
) {
    let mut block = Block::begin(out, SECTION);
    block.put(&BYTE_ORDER.to_ne_bytes());
    block.put(&1_u16.to_ne_bytes());
    block.put(&0_u16.to_ne_bytes());
    block.put(&(-1_i64).to_ne_bytes());
    if let Some(comment) = comment {
        block.option(OPT_COMMENT, comment.as_bytes());
    }
    let program = concat!("xfrmd ", env!("CARGO_PKG_VERSION"));
    block.option(SHB_USERAPPL, program.as_bytes());
    block.end();
    for (link, name, description) in interfaces {
        let mut block = Block::begin(out, INTERFACE);
        block.put(&link.to_ne_bytes());
        block.put(&[0; 2]);
        block.put(&most_bytes.to_ne_bytes());
        block.option(IF_NAME, name.as_bytes());
        block.option(IF_DESCRIPTION, description.as_bytes());
        block.option(IF_TSRESOL, &[RESOLUTION]);
        block.end();
    }
}

/// The header in front of a netlink message.
#[must_use]
pub fn netlink_header(to_kernel: bool) -> [u8; COOKED_BYTES] {
    let kind = if to_kernel {
        PACKET_KERNEL
    } else {
        PACKET_USER
    };
    cooked(kind, ARPHRD_NETLINK, NETLINK_XFRM)
}

/// The header in front of an IP packet.
#[must_use]
pub fn packet_header(leaves: bool, packet: &[u8]) -> [u8; COOKED_BYTES] {
    let kind = if leaves { PACKET_OUTGOING } else { PACKET_HOST };
    let [v4, v6] = ETHERTYPES;
    let is_v6 = packet.first().is_some_and(|first| first >> 4 == 6);
    cooked(kind, ARPHRD_NONE, if is_v6 { v6 } else { v4 })
}

/// In network byte order: direction, kind of device, an address of no bytes, protocol.
fn cooked(kind: u16, device: u16, protocol: u16) -> [u8; COOKED_BYTES] {
    let [a, b] = kind.to_be_bytes();
    let [c, d] = device.to_be_bytes();
    let [e, f] = protocol.to_be_bytes();
    [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, e, f]
}

/// A block that was read.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// Where it begins.
    pub offset: usize,
    /// Its type.
    pub kind: u32,
    body: &'a [u8],
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .copied()
        .map(u32::from_ne_bytes)
}

/// All blocks of a file; the last may be damage.
pub fn blocks(file: &[u8]) -> impl Iterator<Item = Result<Found<'_>, Damage>> {
    let mut offset = 0;
    std::iter::from_fn(move || {
        let rest = file.get(offset..).filter(|rest| !rest.is_empty())?;
        let begin = offset;
        // Nothing behind damage makes sense.
        offset = file.len();
        let damage = |what| Some(Err(Damage::new(begin, what)));
        let (Some(kind), Some(len)) = (word(rest, 0), word(rest, 4)) else {
            return damage("the file is cut short within a block");
        };
        if begin == 0 {
            if kind != SECTION {
                return damage("this is no pcapng file");
            }
            match word(rest, 8) {
                Some(BYTE_ORDER) => {}
                Some(other) if other == BYTE_ORDER.swap_bytes() => {
                    return damage("it was written on a machine with another byte order");
                }
                _ => return damage("this is no pcapng file"),
            }
        }
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len < 12 || len % 4 != 0 {
            return damage("a block has an impossible length");
        }
        let Some(block) = rest.get(..len) else {
            return damage("the file is cut short within a block");
        };
        if word(block, len - 4) != word(rest, 4) {
            return damage("a block's two lengths differ");
        }
        offset = begin + len;
        Some(Ok(Found {
            offset: begin,
            kind,
            body: block.get(8..len - 4).unwrap_or_default(),
        }))
    })
}

/// How much of a file of so many bytes is whole blocks. `read` fills a buffer from a place in the file.
pub fn whole_blocks(bytes: u64, mut read: impl FnMut(u64, &mut [u8]) -> Option<()>) -> u64 {
    let mut whole = 0;
    while let Some(rest) = bytes.checked_sub(whole) {
        let mut head = [0; 8];
        if rest < 12 || read(whole, &mut head).is_none() {
            break;
        }
        let len = word(&head, 4).map_or(0, u64::from);
        if !(12..=rest).contains(&len) {
            break;
        }
        whole += len;
    }
    whole
}

/// A packet that was read.
#[derive(Clone, Copy, Debug)]
pub struct FoundPacket<'a> {
    /// Its interface.
    pub interface: u32,
    /// Nanoseconds since 1970.
    pub nanos: u64,
    /// Its bytes, link-layer header included.
    pub bytes: &'a [u8],
    options: &'a [u8],
}

impl<'a> Found<'a> {
    /// As a packet, if it is one.
    #[must_use]
    pub fn packet(&self) -> Option<FoundPacket<'a>> {
        let [high, low] = [word(self.body, 4)?, word(self.body, 8)?];
        let len = usize::try_from(word(self.body, 12)?).ok()?;
        let bytes = self.body.get(20..)?.get(..len)?;
        Some(FoundPacket {
            interface: word(self.body, 0)?,
            nanos: u64::from(high) << 32 | u64::from(low),
            bytes,
            options: self.body.get(20 + len.next_multiple_of(4)..)?,
        })
    }

    /// The options of a block that has nothing else.
    pub fn options(&self) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        options(self.body)
    }

    /// The link type, if it is an interface.
    #[must_use]
    pub fn link(&self) -> Option<u16> {
        let first = self.body.first_chunk().copied().map(u16::from_ne_bytes);
        first.filter(|_| self.kind == INTERFACE)
    }
}

impl<'a> FoundPacket<'a> {
    /// Its options.
    pub fn options(&self) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        options(self.options)
    }

    /// What is behind the link-layer header.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.bytes.get(COOKED_BYTES..).unwrap_or_default()
    }
}

fn options(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let &[a, b, c, d] = bytes.first_chunk()?;
        let (code, len) = (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]));
        let len = usize::from(len);
        let value = bytes.get(4..4 + len).filter(|_| code != 0)?;
        bytes = bytes.get(4 + len.next_multiple_of(4)..).unwrap_or_default();
        Some((code, value))
    })
}
