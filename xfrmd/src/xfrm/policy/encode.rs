//! Policies as messages.
//!
//! Source: `net/xfrm/xfrm_user.c dump_one_policy`, `xfrm_notify_policy`,
//! `xfrm_notify_policy_flush`, `build_polexpire`.

use dataplane::event::Acquire;
use dataplane::security::SecurityContext;
use dataplane::spd::{Policy, Templates};
use xfrm_proto::consts::*;
use xfrm_proto::reply::Writer;
use xfrm_proto::uapi::{NlMsgHdr, Selector, UserPolExpire, UserPolicyId, UserPolicyType};
use zerocopy::IntoBytes;

use crate::xfrm::sa::encode;

/// A policy as GETPOLICY and dumps show it.
pub(super) fn new_policy(out: &mut Vec<u8>, policy: &Policy, flags: u16, seq: u32, port: u32) {
    let mut w = Writer::begin(out, XFRM_MSG_NEWPOLICY, flags, seq, port);
    w.body(&policy.info());
    labelled_attributes(&mut w, policy);
    w.end();
}

/// The event of NEWPOLICY or UPDPOLICY.
pub(super) fn added(out: &mut Vec<u8>, policy: &Policy, request: &NlMsgHdr) {
    let mut w = Writer::begin(out, request.kind, 0, request.seq, request.pid);
    w.body(&policy.info());
    attributes(&mut w, policy);
    w.end();
}

/// The event of DELPOLICY: the id names the policy the way the request did.
pub(super) fn deleted(out: &mut Vec<u8>, policy: &Policy, by_index: bool, request: &NlMsgHdr) {
    let id = UserPolicyId {
        sel: if by_index {
            Selector::default()
        } else {
            policy.key.selector
        },
        index: if by_index { policy.index } else { 0 },
        dir: policy.key.dir,
        pad: [0; 3],
    };
    let mut w = Writer::begin(out, request.kind, 0, request.seq, request.pid);
    w.body(&id);
    w.attr_pod(XFRMA_POLICY, &policy.info());
    attributes(&mut w, policy);
    w.end();
}

/// The event of FLUSHPOLICY.
pub(super) fn flushed(out: &mut Vec<u8>, kind: u8, request: &NlMsgHdr) {
    let mut w = Writer::begin(out, XFRM_MSG_FLUSHPOLICY, 0, request.seq, request.pid);
    policy_type(&mut w, kind);
    w.end();
}

/// The event of a soft or hard expiry; `pid` is 0 for a timer's.
pub(in crate::xfrm) fn expired(out: &mut Vec<u8>, policy: &Policy, hard: bool, pid: u32) {
    let body = UserPolExpire {
        pol: policy.info(),
        hard: u8::from(hard),
        pad: [0; 7],
    };
    let mut w = Writer::begin(out, XFRM_MSG_POLEXPIRE, 0, 0, pid);
    w.body(&body);
    labelled_attributes(&mut w, policy);
    w.end();
}

/// The attributes of a policy, in the kernel's order. Most events leave the context out.
fn labelled_attributes(w: &mut Writer<'_>, policy: &Policy) {
    templates(w, &policy.templates);
    security(w, policy.security.as_ref());
    other_attributes(w, policy);
}

fn security(w: &mut Writer<'_>, context: Option<&SecurityContext>) {
    if let Some(context) = context {
        let head = context.head();
        w.attr_parts(XFRMA_SEC_CTX, &[head.as_bytes(), context.bytes()]);
    }
}

/// Appends an ACQUIRE message.
pub(in crate::xfrm) fn acquire(out: &mut Vec<u8>, event: &Acquire) {
    let mut w = Writer::begin(out, XFRM_MSG_ACQUIRE, 0, 0, 0);
    w.body(&event.body);
    templates(&mut w, &event.templates);
    security(&mut w, event.security.as_ref());
    policy_type(&mut w, event.kind);
    encode::mark(&mut w, event.mark);
    encode::nonzero(&mut w, XFRMA_IF_ID, event.if_id);
    encode::cpu(&mut w, event.pcpu);
    w.end();
}

/// The same without the context.
pub(super) fn attributes(w: &mut Writer<'_>, policy: &Policy) {
    templates(w, &policy.templates);
    other_attributes(w, policy);
}

fn other_attributes(w: &mut Writer<'_>, policy: &Policy) {
    policy_type(w, policy.key.kind);
    encode::mark(w, policy.key.mark);
    encode::nonzero(w, XFRMA_IF_ID, policy.key.if_id);
}

fn templates(w: &mut Writer<'_>, given: &Templates) {
    let mut parts: [&[u8]; XFRM_MAX_DEPTH] = [&[]; XFRM_MAX_DEPTH];
    for (part, tmpl) in parts.iter_mut().zip(given.iter()) {
        *part = tmpl.as_bytes();
    }
    if !given.is_empty() {
        w.attr_parts(XFRMA_TMPL, &parts);
    }
}

pub(super) fn policy_type(w: &mut Writer<'_>, kind: u8) {
    w.attr_pod(
        XFRMA_POLICY_TYPE,
        &UserPolicyType {
            kind,
            ..UserPolicyType::default()
        },
    );
}
