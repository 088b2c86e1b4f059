//! NETLINK_XFRM: which handler serves which message.
//!
//! A handler checks a request in the kernel's order, calls the engine, and
//! writes replies and events; framing and acknowledgements are `netlink`'s.
//!
//! Source: `net/xfrm/xfrm_user.c xfrm_dispatch, xfrm_msg_min`.

pub(crate) mod ae;
pub(crate) mod info;
pub(crate) mod migrate;
pub(crate) mod notify;
pub(crate) mod policy;
pub(crate) mod sa;

use dataplane::{Context, Netns, Profile};
use xfrm_proto::attrs::Attrs;
use xfrm_proto::consts::*;
use xfrm_proto::extack::{ExtAck, XfrmError};
use xfrm_proto::policy::Table;
use xfrm_proto::uapi::{self, NlMsgHdr, Pod};

use crate::emulator::NetnsId;
use crate::netlink::{Destination, Outbox, Sockets};

/// What a handler works on.
pub(crate) struct Call<'a, 'b> {
    /// The namespace.
    pub(crate) ns: &'a mut Netns,
    /// Time, randomness, acquire sequence.
    pub(crate) cx: &'a mut Context<'b>,
    /// Where replies and events go.
    pub(crate) out: &'a mut Outbox,
    /// Who listens.
    pub(crate) sockets: &'a Sockets,
    /// The namespace's id.
    pub(crate) netns: NetnsId,
    /// What an acknowledgement says although all went well.
    pub(crate) warning: &'a mut ExtAck,
    /// Where the handler has written into the request: see [`Call::rewrite_family`].
    pub(crate) rewrites: &'a mut Vec<(usize, u16)>,
}

impl Call<'_, '_> {
    /// Sends a datagram to the requester.
    pub(crate) fn reply(&mut self, request: &Request<'_>, write: impl FnOnce(&mut Vec<u8>)) {
        self.out
            .send(self.netns, Destination::Port(request.port), write);
    }

    /// Writes an address family into the request, at that offset of the message: an error that
    /// echoes the request shows it, as the kernel's handlers alter the request where it lies.
    pub(crate) fn rewrite_family(&mut self, offset: usize, family: u16) {
        self.rewrites.push((offset, family));
    }

    /// Sends a datagram to a group.
    pub(crate) fn multicast(&mut self, group: u32, write: impl FnOnce(&mut Vec<u8>)) {
        if self.sockets.has_listeners(group) {
            self.out.send(self.netns, Destination::Group(group), write);
        }
    }
}

/// A request that has passed the checks that all share.
pub(crate) struct Request<'a> {
    /// Its header.
    pub(crate) header: NlMsgHdr,
    /// What follows the header: at least the fixed structure.
    pub(crate) body: &'a [u8],
    /// Its attributes.
    pub(crate) attrs: Attrs<'a>,
    /// The requester's port id.
    pub(crate) port: u32,
}

impl Request<'_> {
    /// The fixed structure; dispatch has checked that it is there.
    pub(crate) fn fixed<T: Pod>(&self) -> T {
        T::read(self.body).unwrap_or_default()
    }
}

pub(crate) type Handler = fn(&mut Call<'_, '_>, &Request<'_>) -> Result<(), XfrmError>;
/// Makes a dump of a request (all of the message); errors wait for [`Dump::fill`].
pub(crate) type StartDump = fn(&mut Netns, &[u8]) -> Dump;

/// A dump under way.
pub(crate) enum Dump {
    Sa(sa::SaDump),
    Policy(policy::PolicyDump),
}

impl Dump {
    /// Appends as many whole messages as fit below `limit` (a length of `out`); none when it is over.
    pub(crate) fn fill(
        &mut self,
        ns: &mut Netns,
        out: &mut Vec<u8>,
        limit: usize,
        seq: u32,
        port: u32,
    ) -> Result<(), XfrmError> {
        match self {
            Self::Sa(dump) => dump.fill(ns, out, limit, seq, port),
            Self::Policy(dump) => dump.fill(ns, out, limit, seq, port),
        }
    }
}

/// How a message type is served.
#[derive(Clone, Copy)]
pub(crate) struct Link {
    /// Bytes that must follow the header.
    pub(crate) min_body: usize,
    /// `None` for messages that only the kernel sends.
    pub(crate) handler: Option<Handler>,
    /// How it dumps, if it does.
    pub(crate) dump: Option<StartDump>,
    own_attributes: bool,
}

impl Link {
    const fn new(min_body: usize, handler: Handler) -> Self {
        Self {
            min_body,
            handler: Some(handler),
            dump: None,
            own_attributes: false,
        }
    }

    const fn from_kernel_only(min_body: usize) -> Self {
        Self {
            min_body,
            handler: None,
            dump: None,
            own_attributes: false,
        }
    }

    /// The attribute space of the message.
    pub(crate) const fn table(&self, profile: &Profile) -> Table {
        if self.own_attributes {
            Table::spd()
        } else {
            Table::xfrma(profile.attr_max)
        }
    }
}

/// The dispatch table.
pub(crate) fn link(kind: u16) -> Link {
    match kind {
        XFRM_MSG_NEWSA | XFRM_MSG_UPDSA => Link::new(uapi::UserSaInfo::SIZE, sa::new_sa),
        XFRM_MSG_DELSA => Link::new(uapi::UserSaId::SIZE, sa::del_sa),
        XFRM_MSG_GETSA => Link {
            dump: Some(sa::start_dump),
            ..Link::new(uapi::UserSaId::SIZE, sa::get_sa)
        },
        XFRM_MSG_NEWPOLICY | XFRM_MSG_UPDPOLICY => {
            Link::new(uapi::UserPolicyInfo::SIZE, policy::new_policy)
        }
        XFRM_MSG_DELPOLICY => Link::new(uapi::UserPolicyId::SIZE, policy::get_policy),
        XFRM_MSG_GETPOLICY => Link {
            dump: Some(policy::start_dump),
            ..Link::new(uapi::UserPolicyId::SIZE, policy::get_policy)
        },
        XFRM_MSG_ALLOCSPI => Link::new(uapi::UserSpiInfo::SIZE, sa::alloc_spi),
        XFRM_MSG_ACQUIRE => Link::new(uapi::UserAcquire::SIZE, policy::acquire),
        XFRM_MSG_EXPIRE => Link::new(uapi::UserExpire::SIZE, sa::expire),
        XFRM_MSG_POLEXPIRE => Link::new(uapi::UserPolExpire::SIZE, policy::expire),
        XFRM_MSG_FLUSHSA => Link::new(uapi::UserSaFlush::SIZE, sa::flush),
        XFRM_MSG_FLUSHPOLICY => Link::new(0, policy::flush),
        XFRM_MSG_NEWAE => Link::new(uapi::AeventId::SIZE, ae::new_ae),
        XFRM_MSG_GETAE => Link::new(uapi::AeventId::SIZE, ae::get_ae),
        XFRM_MSG_REPORT => Link::from_kernel_only(uapi::UserReport::SIZE),
        XFRM_MSG_MIGRATE => Link::new(uapi::UserPolicyId::SIZE, policy::migrate),
        XFRM_MSG_NEWSADINFO => Link::from_kernel_only(0),
        XFRM_MSG_GETSADINFO => Link::new(4, info::get_sad),
        XFRM_MSG_NEWSPDINFO => Link {
            own_attributes: true,
            ..Link::new(4, info::set_spd)
        },
        XFRM_MSG_GETSPDINFO => Link::new(4, info::get_spd),
        XFRM_MSG_MAPPING => Link::from_kernel_only(uapi::UserMapping::SIZE),
        XFRM_MSG_SETDEFAULT => Link::new(uapi::UserPolicyDefault::SIZE, info::set_default),
        XFRM_MSG_GETDEFAULT => Link::new(uapi::UserPolicyDefault::SIZE, info::get_default),
        XFRM_MSG_MIGRATE_STATE => Link::new(uapi::UserMigrateState::SIZE, migrate::state),
        _ => Link::from_kernel_only(0),
    }
}

/// Attributes that only some messages may carry (`xfrm_reject_unused_attr`).
pub(crate) fn reject_misplaced(
    profile: &Profile,
    kind: u16,
    attrs: &Attrs<'_>,
) -> Result<(), XfrmError> {
    if kind == XFRM_MSG_NEWSPDINFO {
        return Ok(());
    }
    let makes_sa = matches!(kind, XFRM_MSG_NEWSA | XFRM_MSG_UPDSA | XFRM_MSG_ALLOCSPI);
    if attrs.has(XFRMA_SA_DIR) && !makes_sa {
        return Err(XfrmError::invalid("Invalid attribute SA_DIR"));
    }
    if profile.rejects_misplaced_pcpu
        && attrs.has(XFRMA_SA_PCPU)
        && !makes_sa
        && kind != XFRM_MSG_ACQUIRE
    {
        return Err(XfrmError::invalid("Invalid attribute SA_PCPU"));
    }
    if kind == XFRM_MSG_MIGRATE_STATE
        && let Some(other) = attrs
            .kinds()
            .find(|kind| !migrate::STATE_ATTRS.contains(kind))
    {
        let mut error = XfrmError::invalid("Unsupported attribute in XFRM_MSG_MIGRATE_STATE");
        error.extack.offset = attrs.offset(other);
        return Err(error);
    }
    Ok(())
}
