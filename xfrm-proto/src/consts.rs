//! Numbers of `linux/netlink.h` and `linux/xfrm.h`, under the kernel's names.
#![allow(
    missing_docs,
    reason = "the kernel's constants keep the kernel's names and documentation"
)]

/// Length of `struct nlmsghdr`.
pub const NLMSG_HDRLEN: usize = 16;
/// Length of `struct nlattr`.
pub const NLA_HDRLEN: usize = 4;
pub const NLA_F_NESTED: u16 = 1 << 15;
pub const NLA_F_NET_BYTEORDER: u16 = 1 << 14;
pub const NLA_TYPE_MASK: u16 = !(NLA_F_NESTED | NLA_F_NET_BYTEORDER);

pub const NLMSG_NOOP: u16 = 1;
pub const NLMSG_ERROR: u16 = 2;
pub const NLMSG_DONE: u16 = 3;
/// Message types below this one are netlink's own and reach no handler.
pub const NLMSG_MIN_TYPE: u16 = 0x10;

pub const NLM_F_REQUEST: u16 = 0x01;
pub const NLM_F_MULTI: u16 = 0x02;
pub const NLM_F_ACK: u16 = 0x04;
pub const NLM_F_ECHO: u16 = 0x08;
pub const NLM_F_DUMP_INTR: u16 = 0x10;
pub const NLM_F_ROOT: u16 = 0x100;
pub const NLM_F_MATCH: u16 = 0x200;
pub const NLM_F_DUMP: u16 = NLM_F_ROOT | NLM_F_MATCH;
pub const NLM_F_REPLACE: u16 = 0x100;
pub const NLM_F_EXCL: u16 = 0x200;
pub const NLM_F_CREATE: u16 = 0x400;
pub const NLM_F_CAPPED: u16 = 0x100;
pub const NLM_F_ACK_TLVS: u16 = 0x200;

pub const NLMSGERR_ATTR_MSG: u16 = 1;
pub const NLMSGERR_ATTR_OFFS: u16 = 2;
pub const NLMSGERR_ATTR_COOKIE: u16 = 3;
pub const NLMSGERR_ATTR_POLICY: u16 = 4;

pub const NL_POLICY_TYPE_ATTR_TYPE: u16 = 1;
pub const NL_POLICY_TYPE_ATTR_MIN_VALUE_U: u16 = 4;
pub const NL_POLICY_TYPE_ATTR_MAX_VALUE_U: u16 = 5;

/// Errnos that replies carry, positive.
pub mod errno {
    pub const EPERM: i32 = 1;
    pub const ENOENT: i32 = 2;
    pub const ESRCH: i32 = 3;
    pub const EAGAIN: i32 = 11;
    pub const ENOMEM: i32 = 12;
    pub const EBUSY: i32 = 16;
    pub const EEXIST: i32 = 17;
    pub const EINVAL: i32 = 22;
    pub const ERANGE: i32 = 34;
    pub const ENOSYS: i32 = 38;
    pub const ENODATA: i32 = 61;
    pub const EOVERFLOW: i32 = 75;
    pub const EMSGSIZE: i32 = 90;
    pub const EPROTONOSUPPORT: i32 = 93;
    pub const ENOPROTOOPT: i32 = 92;
    pub const ESOCKTNOSUPPORT: i32 = 94;
    pub const EOPNOTSUPP: i32 = 95;
    pub const EAFNOSUPPORT: i32 = 97;
    pub const ENOBUFS: i32 = 105;
    pub const ECONNREFUSED: i32 = 111;
}

pub const XFRM_MSG_BASE: u16 = 0x10;
pub const XFRM_MSG_NEWSA: u16 = 0x10;
pub const XFRM_MSG_DELSA: u16 = 0x11;
pub const XFRM_MSG_GETSA: u16 = 0x12;
pub const XFRM_MSG_NEWPOLICY: u16 = 0x13;
pub const XFRM_MSG_DELPOLICY: u16 = 0x14;
pub const XFRM_MSG_GETPOLICY: u16 = 0x15;
pub const XFRM_MSG_ALLOCSPI: u16 = 0x16;
pub const XFRM_MSG_ACQUIRE: u16 = 0x17;
pub const XFRM_MSG_EXPIRE: u16 = 0x18;
pub const XFRM_MSG_UPDPOLICY: u16 = 0x19;
pub const XFRM_MSG_UPDSA: u16 = 0x1a;
pub const XFRM_MSG_POLEXPIRE: u16 = 0x1b;
pub const XFRM_MSG_FLUSHSA: u16 = 0x1c;
pub const XFRM_MSG_FLUSHPOLICY: u16 = 0x1d;
pub const XFRM_MSG_NEWAE: u16 = 0x1e;
pub const XFRM_MSG_GETAE: u16 = 0x1f;
pub const XFRM_MSG_REPORT: u16 = 0x20;
pub const XFRM_MSG_MIGRATE: u16 = 0x21;
pub const XFRM_MSG_NEWSADINFO: u16 = 0x22;
pub const XFRM_MSG_GETSADINFO: u16 = 0x23;
pub const XFRM_MSG_NEWSPDINFO: u16 = 0x24;
pub const XFRM_MSG_GETSPDINFO: u16 = 0x25;
pub const XFRM_MSG_MAPPING: u16 = 0x26;
pub const XFRM_MSG_SETDEFAULT: u16 = 0x27;
pub const XFRM_MSG_GETDEFAULT: u16 = 0x28;
pub const XFRM_MSG_MIGRATE_STATE: u16 = 0x29;

pub const XFRMA_ALG_AUTH: u16 = 1;
pub const XFRMA_ALG_CRYPT: u16 = 2;
pub const XFRMA_ALG_COMP: u16 = 3;
pub const XFRMA_ENCAP: u16 = 4;
pub const XFRMA_TMPL: u16 = 5;
pub const XFRMA_SA: u16 = 6;
pub const XFRMA_POLICY: u16 = 7;
pub const XFRMA_SEC_CTX: u16 = 8;
pub const XFRMA_LTIME_VAL: u16 = 9;
pub const XFRMA_REPLAY_VAL: u16 = 10;
pub const XFRMA_REPLAY_THRESH: u16 = 11;
pub const XFRMA_ETIMER_THRESH: u16 = 12;
pub const XFRMA_SRCADDR: u16 = 13;
pub const XFRMA_COADDR: u16 = 14;
pub const XFRMA_LASTUSED: u16 = 15;
pub const XFRMA_POLICY_TYPE: u16 = 16;
pub const XFRMA_MIGRATE: u16 = 17;
pub const XFRMA_ALG_AEAD: u16 = 18;
pub const XFRMA_KMADDRESS: u16 = 19;
pub const XFRMA_ALG_AUTH_TRUNC: u16 = 20;
pub const XFRMA_MARK: u16 = 21;
pub const XFRMA_TFCPAD: u16 = 22;
pub const XFRMA_REPLAY_ESN_VAL: u16 = 23;
pub const XFRMA_SA_EXTRA_FLAGS: u16 = 24;
pub const XFRMA_PROTO: u16 = 25;
pub const XFRMA_ADDRESS_FILTER: u16 = 26;
pub const XFRMA_PAD: u16 = 27;
pub const XFRMA_OFFLOAD_DEV: u16 = 28;
pub const XFRMA_SET_MARK: u16 = 29;
pub const XFRMA_SET_MARK_MASK: u16 = 30;
pub const XFRMA_IF_ID: u16 = 31;
pub const XFRMA_MTIMER_THRESH: u16 = 32;
pub const XFRMA_SA_DIR: u16 = 33;
pub const XFRMA_NAT_KEEPALIVE_INTERVAL: u16 = 34;
pub const XFRMA_SA_PCPU: u16 = 35;
pub const XFRMA_IPTFS_DROP_TIME: u16 = 36;
pub const XFRMA_IPTFS_REORDER_WINDOW: u16 = 37;
pub const XFRMA_IPTFS_DONT_FRAG: u16 = 38;
pub const XFRMA_IPTFS_INIT_DELAY: u16 = 39;
pub const XFRMA_IPTFS_MAX_QSIZE: u16 = 40;
pub const XFRMA_IPTFS_PKT_SIZE: u16 = 41;
/// Highest attribute of the newest kernel emulated.
pub const XFRMA_MAX: u16 = XFRMA_IPTFS_PKT_SIZE;

pub const XFRMA_SAD_CNT: u16 = 1;
pub const XFRMA_SAD_HINFO: u16 = 2;
pub const XFRMA_SPD_INFO: u16 = 1;
pub const XFRMA_SPD_HINFO: u16 = 2;
pub const XFRMA_SPD_IPV4_HTHRESH: u16 = 3;
pub const XFRMA_SPD_IPV6_HTHRESH: u16 = 4;

/// Multicast groups of NETLINK_XFRM.
pub mod group {
    pub const ACQUIRE: u32 = 1;
    pub const EXPIRE: u32 = 2;
    pub const SA: u32 = 3;
    pub const POLICY: u32 = 4;
    pub const AEVENTS: u32 = 5;
    pub const REPORT: u32 = 6;
    pub const MIGRATE: u32 = 7;
    pub const MAPPING: u32 = 8;
}

pub const AF_UNSPEC: u16 = 0;
pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;

pub const IPPROTO_ICMP: u8 = 1;
pub const IPPROTO_IPIP: u8 = 4;
pub const IPPROTO_TCP: u8 = 6;
pub const IPPROTO_UDP: u8 = 17;
pub const IPPROTO_IPV6: u8 = 41;
pub const IPPROTO_ROUTING: u8 = 43;
pub const IPPROTO_GRE: u8 = 47;
pub const IPPROTO_ESP: u8 = 50;
pub const IPPROTO_AH: u8 = 51;
pub const IPPROTO_ICMPV6: u8 = 58;
pub const IPPROTO_DSTOPTS: u8 = 60;
pub const IPPROTO_COMP: u8 = 108;
pub const IPPROTO_SCTP: u8 = 132;
pub const IPPROTO_MH: u8 = 135;
pub const IPPROTO_UDPLITE: u8 = 136;
/// Matches AH, ESP and COMP in a protocol filter.
pub const IPSEC_PROTO_ANY: u8 = 255;

pub const XFRM_MODE_TRANSPORT: u8 = 0;
pub const XFRM_MODE_TUNNEL: u8 = 1;
pub const XFRM_MODE_ROUTEOPTIMIZATION: u8 = 2;
pub const XFRM_MODE_IN_TRIGGER: u8 = 3;
pub const XFRM_MODE_BEET: u8 = 4;
pub const XFRM_MODE_IPTFS: u8 = 5;

pub const XFRM_STATE_NOECN: u8 = 1;
pub const XFRM_STATE_DECAP_DSCP: u8 = 2;
pub const XFRM_STATE_NOPMTUDISC: u8 = 4;
pub const XFRM_STATE_WILDRECV: u8 = 8;
pub const XFRM_STATE_ICMP: u8 = 16;
pub const XFRM_STATE_AF_UNSPEC: u8 = 32;
pub const XFRM_STATE_ALIGN4: u8 = 64;
pub const XFRM_STATE_ESN: u8 = 128;

pub const XFRM_SA_XFLAG_DONT_ENCAP_DSCP: u32 = 1;
pub const XFRM_SA_XFLAG_OSEQ_MAY_WRAP: u32 = 2;

pub const XFRM_SA_DIR_IN: u8 = 1;
pub const XFRM_SA_DIR_OUT: u8 = 2;

pub const XFRM_POLICY_IN: u8 = 0;
pub const XFRM_POLICY_OUT: u8 = 1;
pub const XFRM_POLICY_FWD: u8 = 2;
pub const XFRM_POLICY_MAX: u8 = 3;
pub const XFRM_POLICY_ALLOW: u8 = 0;
pub const XFRM_POLICY_BLOCK: u8 = 1;
pub const XFRM_POLICY_LOCALOK: u8 = 1;
pub const XFRM_POLICY_ICMP: u8 = 2;
pub const XFRM_POLICY_CPU_ACQUIRE: u8 = 4;
pub const XFRM_POLICY_TYPE_MAIN: u8 = 0;
pub const XFRM_POLICY_TYPE_SUB: u8 = 1;
pub const XFRM_POLICY_TYPE_MAX: u8 = 2;
pub const XFRM_POLICY_TYPE_ANY: u8 = 255;
pub const XFRM_SHARE_ANY: u8 = 0;
pub const XFRM_SHARE_SESSION: u8 = 1;
pub const XFRM_SHARE_USER: u8 = 2;
pub const XFRM_SHARE_UNIQUE: u8 = 3;
pub const XFRM_USERPOLICY_UNSPEC: u8 = 0;
pub const XFRM_USERPOLICY_BLOCK: u8 = 1;
pub const XFRM_USERPOLICY_ACCEPT: u8 = 2;

/// Most templates of a policy, and most SAs around a packet.
pub const XFRM_MAX_DEPTH: usize = 6;
/// "No limit" in the byte and packet fields of a lifetime.
pub const XFRM_INF: u64 = u64::MAX;
/// Most 32-bit words of an ESN replay bitmap.
pub const XFRMA_REPLAY_ESN_MAX_WORDS: u32 = 128;

pub const XFRM_AE_RTHR: u32 = 1;
pub const XFRM_AE_RVAL: u32 = 2;
pub const XFRM_AE_LVAL: u32 = 4;
pub const XFRM_AE_ETHR: u32 = 8;
pub const XFRM_AE_CR: u32 = 16;
pub const XFRM_AE_CE: u32 = 32;
pub const XFRM_AE_CU: u32 = 64;

pub const XFRM_OFFLOAD_IPV6: u8 = 1;
pub const XFRM_OFFLOAD_INBOUND: u8 = 2;
pub const XFRM_OFFLOAD_PACKET: u8 = 4;

pub const XFRM_MIGRATE_STATE_CLEAR_OFFLOAD: u32 = 1;
pub const XFRM_MIGRATE_STATE_UPDATE_H2H_SEL: u32 = 2;

pub const UDP_ENCAP_ESPINUDP_NON_IKE: u16 = 1;
pub const UDP_ENCAP_ESPINUDP: u16 = 2;
pub const TCP_ENCAP_ESPINTCP: u16 = 7;
