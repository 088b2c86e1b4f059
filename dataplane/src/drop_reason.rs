//! Why a packet died: one list for the MIB counter and the text.
//!
//! Linux counts a handful of ways to die under one XFRM counter; the reason
//! here is the finer one, and says which counter it belongs to. Reasons that
//! Linux counts outside the XFRM MIB (an inner packet that `ip_rcv` refuses,
//! a fragment queue that is full) have none.

use crate::mib::Counter;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident => $counter:expr, $text:literal;)*) => {
        /// A way for a packet to die.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum DropReason { $($(#[$doc])* $name,)* }

        impl DropReason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The XFRM counter that moves, if one does.
            #[must_use]
            pub const fn counter(self) -> Option<Counter> {
                match self { $(Self::$name => $counter,)* }
            }

            /// What happened, in words.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// No room in the buffer for what has to be put in front or behind.
    InNoRoom => Some(Counter::InError), "the packet buffer is too small";
    /// Not an IP packet, or its headers do not parse.
    InHeader => Some(Counter::InHdrError), "the IP header does not parse";
    /// Fewer bytes than the protocol's header has.
    InHeaderShort => Some(Counter::InHdrError), "shorter than the protocol's header";
    /// Sequence number 0, outside the window, or seen already.
    InReplay => Some(Counter::InStateSeqError), "the sequence number is a replay or too old";
    /// No SA has the SPI.
    InNoStates => Some(Counter::InNoStates), "no SA has that SPI";
    /// The SA is an outbound one.
    InDirection => Some(Counter::InStateDirError), "the SA is not for input";
    /// The SA waits for its key manager.
    InLarval => Some(Counter::AcquireError), "the SA has no keys yet";
    /// The SA is on its way out.
    InInvalid => Some(Counter::InStateInvalid), "the SA is not valid";
    /// In UDP where the SA knows no encapsulation, or the other way round.
    InEncap => Some(Counter::InStateMismatch), "the encapsulation is not the SA's";
    /// ESP in UDP, shorter than Linux takes it for.
    InEncapShort => None, "ESP in UDP is shorter than an IP header";
    /// A hard limit in bytes or packets is reached.
    InExpired => Some(Counter::InStateExpired), "the SA has reached its limit";
    /// More SAs than a sec path holds.
    InDepth => Some(Counter::InBufferError), "the packet passes too many SAs";
    /// The engine has no packet path for the SA's mode.
    InUnsupported => Some(Counter::InStateModeError), "the SA's mode has no packet path";
    /// An SA that brought the packet is not for such packets.
    InSelector => Some(Counter::InStateMismatch), "the packet is not what the SA's selector is for";
    /// No policy, and a tunnel brought it, or that means block.
    InNoPolicy => Some(Counter::InNoPols), "no policy is for the packet";
    /// The policy's action.
    InPolicyBlock => Some(Counter::InPolBlock), "a policy blocks it";
    /// Too many templates.
    InPolicyDepth => Some(Counter::InBufferError), "the policies have more templates than a sec path holds";
    /// A template has no SA, or a tunnel no template.
    InTemplate => Some(Counter::InTmplMismatch), "the SAs that brought it are not what the policy wants";
    /// The host does not know where it goes.
    InNoRoute => None, "no route to the packet's destination";
    /// No room for an IV, or nothing behind it.
    EspShort => Some(Counter::InStateProtoError), "shorter than ESP header, IV and ICV";
    /// Ciphertext is no whole number of blocks.
    EspBlocks => Some(Counter::InStateProtoError), "the ciphertext is not a number of whole blocks";
    /// The integrity check failed.
    EspIcv => Some(Counter::InStateProtoError), "ESP integrity check failed";
    /// The pad length covers more than there is.
    EspPadding => Some(Counter::InStateProtoError), "the ESP pad length lies";
    /// Next header 59.
    EspDummy => Some(Counter::InStateProtoError), "a dummy packet";
    /// Length field fits neither the truncated nor the full ICV.
    AhLength => Some(Counter::InStateProtoError), "the AH length is not the SA's";
    /// Options or extension headers that cannot be walked.
    AhOptions => Some(Counter::InStateProtoError), "IP options in front of AH do not parse";
    /// The integrity check failed.
    AhIcv => Some(Counter::InStateProtoError), "AH integrity check failed";
    /// Shorter than an IPComp header.
    CompShort => Some(Counter::InStateProtoError), "shorter than an IPComp header";
    /// Not deflate, or too much of it.
    CompData => Some(Counter::InStateProtoError), "the compressed data do not decompress";
    /// Decompression did not make it longer.
    CompGrew => Some(Counter::InStateProtoError), "the compressed data were longer than the plain ones";
    /// Route optimization: the address in the packet is not the SA's.
    RouteAddress => Some(Counter::InNoStates), "no route optimization for these addresses";
    /// What came out of a tunnel is neither IPv4 nor IPv6.
    InnerProtocol => Some(Counter::InStateModeError), "the inner protocol is not IP";
    /// Inner packet shorter than an IP header.
    InnerShort => Some(Counter::InStateModeError), "the inner packet is shorter than an IP header";
    /// The BEET pseudo header does not parse.
    BeetHeader => Some(Counter::InStateModeError), "the BEET pseudo header does not parse";
    /// The SA's mode has no input side.
    InMode => Some(Counter::InStateModeError), "the SA's mode takes no packets in";
    /// `ip_rcv` refuses the decapsulated packet.
    InnerHeader => None, "the inner IP header is not valid";
    /// The decapsulated packet is shorter than its header says.
    InnerTruncated => None, "the inner packet is shorter than it says";
    /// Shorter than an AGGFRAG header.
    IptfsShort => Some(Counter::InBufferError), "shorter than an AGGFRAG header";
    /// A kind of AGGFRAG header that nobody knows.
    IptfsSubtype => Some(Counter::InHdrError), "an unknown kind of AGGFRAG header";
    /// Flags in the AGGFRAG header.
    IptfsFlags => Some(Counter::InHdrError), "the AGGFRAG header has flags";
    /// A data block is an IPv4 packet whose lengths cannot be.
    IptfsInner => Some(Counter::InHdrError), "an inner packet's lengths cannot be";
    /// A data block is neither IP nor padding.
    IptfsVersion => Some(Counter::InBufferError), "a data block is neither IP nor padding";
    /// The payload with the next piece of an inner packet was lost.
    IptfsLost => Some(Counter::InIptfsError), "a piece of an inner packet was lost";
    /// A payload says that the inner packet it continues ends too early.
    IptfsFragment => Some(Counter::InIptfsError), "a piece of an inner packet does not fit";
    /// The rest of an inner packet did not come in time.
    IptfsTimeout => None, "the rest of an inner packet did not come in time";
    /// An outer packet came when it had been given up.
    IptfsLate => None, "an outer packet came too late";
    /// An outer packet that waits came again.
    IptfsDuplicate => None, "an outer packet came twice";
    /// Fragments that overlap, exceed 64 KiB, or do not fit the bounds.
    Reassembly => None, "the fragment cannot be part of a packet";
    /// An SA is missing, or waits for its key manager.
    OutNoStates => Some(Counter::OutNoStates), "there is no SA for a template";
    /// The same, for a socket's own policy.
    OutSocketNoStates => None, "there is no SA for a template of the socket's policy";
    /// The policy's action.
    OutPolicyBlock => Some(Counter::OutPolBlock), "a policy blocks it";
    /// No policy, and that means block.
    OutDefaultBlock => None, "no policy is for it, which the default blocks";
    /// Too many templates.
    OutDepth => Some(Counter::OutPolError), "the policies have more templates than a packet can pass SAs";
    /// The SA is an inbound one.
    OutDirection => Some(Counter::OutPolError), "the SA is not for output";
    /// The template names an SPI that another SA has.
    OutSpiTaken => Some(Counter::OutPolError), "the template's SPI belongs to an SA that does not fit";
    /// No source address for a tunnel.
    OutSource => Some(Counter::OutPolError), "the host has no source address for the tunnel";
    /// No route for the outer packet.
    OutRoute => Some(Counter::OutBundleGenError), "no route to the other end";
    /// The engine has no packet path for the SA's mode.
    OutUnsupported => Some(Counter::OutStateModeError), "the SA's mode has no packet path";
    /// A checksum that was left to be done has no place.
    OutChecksum => Some(Counter::OutError), "the checksum that is to be filled in lies outside";
    /// A large packet that cannot be cut into segments.
    OutSegments => None, "the packet cannot be cut into segments";
    /// Too many packets wait for an SA.
    OutHoldFull => None, "as many packets wait for an SA as may";
    /// The SA went away or expired while the packet was on its way.
    OutInvalid => Some(Counter::OutStateInvalid), "the SA is not valid";
    /// A hard limit in bytes or packets is reached.
    OutExpired => Some(Counter::OutStateExpired), "the SA has reached its limit";
    /// A packet on its way through whose headers do not parse.
    ForwardHeader => Some(Counter::FwdHdrError), "the IP header does not parse";
    /// No room in the buffer.
    OutNoRoom => Some(Counter::OutError), "no headroom or tailroom left";
    /// Not an IP packet, or its headers do not parse.
    OutHeader => Some(Counter::OutStateModeError), "the IP header does not parse";
    /// Larger than the tunnel's MTU with DF set.
    OutTooBig => Some(Counter::OutStateModeError), "larger than the path MTU";
    /// BEET does not carry fragments.
    OutFragment => Some(Counter::OutStateModeError), "BEET mode carries no IPv4 fragments";
    /// The SA's mode cannot carry this family.
    OutFamily => Some(Counter::OutStateModeError), "the SA's mode does not carry this family";
    /// IPTFS: the queue is full.
    IptfsQueueFull => Some(Counter::OutNoQueueSpace), "the IPTFS queue is full";
    /// IPTFS: larger than a payload, and not to be split.
    IptfsTooBig => Some(Counter::OutError), "larger than an IPTFS payload, and not to be split";
    /// Sequence numbers are used up.
    OutSequence => Some(Counter::OutStateSeqError), "the sequence number would wrap";
    /// More than 64 KiB in the end.
    OutOversize => Some(Counter::OutStateProtoError), "longer than an IP packet can be";
    /// AH over options or extension headers that cannot be walked.
    OutOptions => Some(Counter::OutStateProtoError), "IP options do not parse";
    /// The cipher refused.
    OutCrypto => Some(Counter::OutStateProtoError), "the cipher refused the packet";
}
