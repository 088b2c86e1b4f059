//! The host's packet filter: which packets are captured, and which may not come in.
//!
//! Table `inet xfrmd`:
//!
//! | chain | at | does |
//! |---|---|---|
//! | `output` | output, rerouting | marks what OUT policies protect, after the host has chosen the source, and drops what they block |
//! | `prerouting` | prerouting | marks the same of what may be forwarded; marks what comes from the device |
//! | `forward` | forward | drops what FWD policies want protected and is not, and what OUT policies block or protect at an interface |
//! | `input` | input | drops what IN policies want protected and is not |
//! | `postrouting` | postrouting | drops what was to be captured and goes elsewhere |
//!
//! Each calls `out`, `fwd` or `in` (and `*_sub` for sub-policies), which hold
//! a rule for each set of [`super::classify`]; before, `own_out` and `own_in`
//! for sockets with policies of their own, which their mark tells. All of it comes
//! behind what others mark (mangle) and where they send it (destination NAT), as
//! policies do on Linux. Exempt are packets that carry
//! the bypass mark, or whose socket has it, the loopback device, and on input
//! the protocols of SAs and tunnels, which policies do not apply to.
//!
//! The table has no owner: it stays when the daemon dies, and a daemon that
//! comes replaces it in one transaction.

mod selection;

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use dataplane::mib::Counter;
use dataplane::spd::Policy;
use nix::sys::socket::SockProtocol;
use xfrm_proto::consts::*;
use xfrm_proto::uapi::UserPolicyDefault;

use super::classify::{Classifier, Edit};
use super::netlink::Socket;
use super::nft::{Hook, Meta, REG, Rule, Then, Transaction, ask_counter, counted};
use super::{
    BYPASS, CAPTURED, DEVICE, MARK_MASK, MARKED_DEVICE, OWN, OWN_MASK, RETURNED, STATE_MASK,
};
use selection::{decide, select};

const TABLE: &str = "xfrmd";
const CAPTURE: &str = "capture";
const BLOCK: &str = "block";
const CHECK: &str = "check";
/// `lo` has this index in every namespace.
const LOOPBACK: u32 = 1;
/// Behind `NF_IP_PRI_MANGLE` and `NF_IP_PRI_NAT_DST`.
const EARLY: i32 = -90;
/// Behind what others filter.
const LATE: i32 = 300;

/// Stands for the type of sockets' own policies.
const TYPE_OWN: u8 = u8::MAX;

/// Chains of policies: direction, type, name.
const CHAINS: [(u8, u8, &str); 8] = [
    (XFRM_POLICY_IN, TYPE_OWN, "own_in"),
    (XFRM_POLICY_OUT, TYPE_OWN, "own_out"),
    (XFRM_POLICY_IN, XFRM_POLICY_TYPE_MAIN, "in"),
    (XFRM_POLICY_IN, XFRM_POLICY_TYPE_SUB, "in_sub"),
    (XFRM_POLICY_OUT, XFRM_POLICY_TYPE_MAIN, "out"),
    (XFRM_POLICY_OUT, XFRM_POLICY_TYPE_SUB, "out_sub"),
    (XFRM_POLICY_FWD, XFRM_POLICY_TYPE_MAIN, "fwd"),
    (XFRM_POLICY_FWD, XFRM_POLICY_TYPE_SUB, "fwd_sub"),
];

const UNPROTECTED: &str = "in_unprotected";
const IN_BLOCKED: &str = "in_blocked";
const NO_POLICY: &str = "in_no_policy";
const OUT_BLOCKED: &str = "out_blocked";
const STRAYED: &str = "out_strayed";

/// Packets that died here, and where Linux counts them.
const COUNTERS: [(&str, Counter); 5] = [
    (UNPROTECTED, Counter::InTmplMismatch),
    (IN_BLOCKED, Counter::InPolBlock),
    (NO_POLICY, Counter::InNoPols),
    (OUT_BLOCKED, Counter::OutPolBlock),
    (STRAYED, Counter::OutError),
];

/// The policies of a direction and type.
pub(super) struct Chain<'a> {
    pub(super) dir: u8,
    pub(super) kind: u8,
    pub(super) classifier: &'a Classifier,
    /// What no policy is for may not pass.
    pub(super) default_blocks: bool,
}

/// The table, and what it is made from.
#[derive(Debug, Default)]
pub(super) struct Firewall {
    classifiers: [Classifier; CHAINS.len()],
    defaults: Option<UserPolicyDefault>,
    /// The host's table is needed whatever policies there are.
    is_needed: bool,
    /// What the host has shows the present state but for edits.
    installed: bool,
    /// What the host has is ours.
    is_ours: bool,
}

impl Firewall {
    /// Notes what the policy of an index is now.
    pub(super) fn set(&mut self, index: u32, policy: Option<&Policy>) {
        // The direction is in the index, the type is not.
        let dir = direction(index);
        for ((chain_dir, kind, _), classifier) in CHAINS.iter().zip(&mut self.classifiers) {
            if *chain_dir == dir && *kind != TYPE_OWN {
                // Interface ids belong to xfrm interfaces, of which there are none.
                let here = policy.filter(|it| it.key.kind == *kind && it.key.if_id == 0);
                classifier.set(index, here);
            }
        }
    }

    /// Notes what happens without a policy; whether that is new.
    pub(super) fn set_defaults(&mut self, defaults: UserPolicyDefault) -> bool {
        let block = |it: &UserPolicyDefault| {
            [it.input, it.fwd, it.out].map(|it| it == XFRM_USERPOLICY_BLOCK)
        };
        let changed = self.defaults.as_ref().map(block).unwrap_or_default() != block(&defaults);
        self.defaults = Some(defaults);
        changed
    }

    /// Notes what the own policies are of the socket whose packets have this mark: for input, for
    /// output.
    pub(super) fn set_own(&mut self, mark: u32, policies: [Option<&Policy>; 2]) {
        for ((dir, kind, _), classifier) in CHAINS.iter().zip(&mut self.classifiers) {
            if *kind == TYPE_OWN {
                let [input, output] = policies;
                let policy = if *dir == XFRM_POLICY_OUT {
                    output
                } else {
                    input
                };
                let marked = policy.cloned().map(|mut policy| {
                    policy.key.dir = *dir;
                    policy.key.mark.v = mark;
                    policy.key.mark.m = OWN_MASK;
                    policy
                });
                classifier.set(mark, marked.as_ref());
            }
        }
    }

    /// All chains of policies but sockets' own.
    pub(super) fn chains(&self) -> impl Iterator<Item = Chain<'_>> {
        let all = CHAINS
            .iter()
            .zip(&self.classifiers)
            .zip(self.default_blocks());
        let all = all.filter(|((chain, _), _)| chain.1 != TYPE_OWN);
        all.map(|((&(dir, kind, _), classifier), default_blocks)| Chain {
            dir,
            kind,
            classifier,
            default_blocks,
        })
    }

    /// Forgets how policies have changed: whoever asks looks at all of them.
    pub(super) fn forget_edits(&mut self) {
        for classifier in &mut self.classifiers {
            drop(classifier.take_edits());
        }
    }

    /// Notes that the host's table is needed whatever policies there are.
    pub(super) fn set_needed(&mut self) {
        self.is_needed = true;
    }

    /// Whether all packets may pass as if we were not there.
    pub(super) fn is_idle(&self) -> bool {
        !self.is_needed
            && self.classifiers.iter().all(Classifier::is_empty)
            && self.default_blocks().all(|it| !it)
    }

    /// By chain.
    fn default_blocks(&self) -> impl Iterator<Item = bool> {
        CHAINS.iter().map(|&(dir, kind, _)| {
            kind == XFRM_POLICY_TYPE_MAIN
                && self.defaults.is_some_and(|defaults| {
                    XFRM_USERPOLICY_BLOCK
                        == match dir {
                            XFRM_POLICY_IN => defaults.input,
                            XFRM_POLICY_OUT => defaults.out,
                            _ => defaults.fwd,
                        }
                })
        })
    }

    /// Whether the host's table is changed and not made anew.
    pub(super) fn is_installed(&self) -> bool {
        self.installed
    }

    /// Brings the host's table up to date, in one transaction.
    ///
    /// What a daemon has left that was killed stays until there is something in its place: without
    /// policies, what it blocks stays blocked.
    ///
    /// # Errors
    /// The host's: then it has what it had, and the next call makes the table anew.
    pub(super) fn apply(&mut self, socket: &Socket) -> io::Result<()> {
        if !self.is_ours && self.is_idle() && !dropped(socket).is_empty() {
            return Ok(());
        }
        let mut transaction = Transaction::new(TABLE);
        let edits = self.classifiers.each_mut().map(Classifier::take_edits);
        if self.installed {
            for (index, edits) in edits.iter().enumerate() {
                self.edit(&mut transaction, index, edits);
            }
        } else {
            self.install(&mut transaction);
        }
        let result = socket.transact(&transaction.finish());
        self.installed = result.is_ok();
        self.is_ours |= self.installed;
        result
    }

    /// Takes the host's table away, if it is ours.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn remove(&mut self, socket: &Socket) -> io::Result<()> {
        self.installed = false;
        if !std::mem::take(&mut self.is_ours) {
            return Ok(());
        }
        let mut transaction = Transaction::new(TABLE);
        transaction.delete_table();
        socket.transact(&transaction.finish())
    }

    /// Takes what the host has for ours: the daemon before us knew the same policies.
    pub(super) fn adopt(&mut self) {
        self.is_ours = true;
    }

    /// Whether the host's table is ours.
    pub(super) fn is_ours(&self) -> bool {
        self.is_ours
    }

    /// Makes the next [`Firewall::apply`] write everything.
    pub(super) fn forget_host(&mut self) {
        self.installed = false;
    }

    /// Leaves what the host has to whoever comes.
    pub(super) fn abandon(&mut self) {
        self.installed = false;
        self.is_ours = false;
    }

    fn edit(&self, transaction: &mut Transaction<'_>, index: usize, edits: &[Edit]) {
        let Some(&(_, _, chain)) = CHAINS.get(index) else {
            return;
        };
        let order = edits.contains(&Edit::Order);
        let dropped = edits.iter().filter_map(|edit| match edit {
            Edit::DropSet(id, bytes) => Some((*id, *bytes)),
            _ => None,
        });
        let drops: BTreeMap<u32, usize> = dropped.collect();
        let mut fresh = BTreeSet::new();
        if order {
            transaction.flush_chain(chain);
        }
        for edit in edits {
            match edit {
                Edit::NewSet(id, bytes) => {
                    fresh.insert(*id);
                    if *bytes > 0 && !drops.contains_key(id) {
                        transaction.add_set(&set_name(chain, *id), *bytes, *id);
                    }
                }
                Edit::Add(_, key) | Edit::Remove(_, key) if key.is_empty() => {}
                Edit::Add(id, key) if !drops.contains_key(id) => {
                    transaction.add_elements(&set_name(chain, *id), std::iter::once(&**key));
                }
                Edit::Remove(id, key) if !drops.contains_key(id) => {
                    transaction.delete_elements(&set_name(chain, *id), std::iter::once(&**key));
                }
                _ => {}
            }
        }
        if order {
            self.rules(transaction, index);
        }
        for (id, bytes) in drops {
            // A set without fields is none on the host.
            if bytes > 0 && !fresh.contains(&id) {
                transaction.delete_set(&set_name(chain, id));
            }
        }
    }

    fn install(&self, transaction: &mut Transaction<'_>) {
        transaction.add_table();
        transaction.delete_table();
        transaction.add_table();
        for (name, _) in COUNTERS {
            transaction.add_counter(name);
        }
        transaction.add_chain(CAPTURE);
        transaction.add_rule(CAPTURE, |rule| set_mark(rule, CAPTURED));
        // What goes back to where it came from would be answered with a redirect.
        transaction.add_rule(CAPTURE, |rule| {
            rule.meta(Meta::InputName, REG);
            rule.equals(REG, &device_name(DEVICE));
            rule.meta(Meta::Mark, REG);
            rule.equals(REG, &CAPTURED.to_ne_bytes());
            set_mark(rule, CAPTURED | OWN);
        });
        transaction.add_chain(BLOCK);
        // Before routing nobody knows whether the packet is for this host.
        transaction.add_rule(BLOCK, |rule| {
            rule.meta(Meta::OutputInterface, REG);
            rule.equals(REG, &[0; 4]);
            rule.then(Then::Return);
        });
        transaction.add_rule(BLOCK, |rule| {
            rule.count(OUT_BLOCKED);
            rule.then(Then::Drop);
        });
        for (index, (&(_, _, chain), classifier)) in
            CHAINS.iter().zip(&self.classifiers).enumerate()
        {
            transaction.add_chain(chain);
            for band in classifier.bands() {
                for (shape, set) in band.sets.iter().filter(|(shape, _)| shape.key_bytes() > 0) {
                    let name = set_name(chain, set.id);
                    transaction.add_set(&name, shape.key_bytes(), set.id);
                    transaction.add_elements(&name, set.keys());
                }
            }
            self.rules(transaction, index);
        }
        base_chains(transaction);
    }

    /// The rules of a chain of policies: the first band with a match decides.
    fn rules(&self, transaction: &mut Transaction<'_>, index: usize) {
        let (Some(&(dir, kind, chain)), Some(classifier)) =
            (CHAINS.get(index), self.classifiers.get(index))
        else {
            return;
        };
        for band in classifier.bands() {
            for (shape, set) in &band.sets {
                transaction.add_rule(chain, |rule| {
                    select(rule, shape, (dir, kind), &set_name(chain, set.id));
                    decide(rule, (dir, kind), band.verdict());
                });
            }
        }
        if self.default_blocks().nth(index) == Some(true) {
            transaction.add_rule(chain, |rule| {
                if dir == XFRM_POLICY_OUT {
                    rule.then(Then::Goto(BLOCK));
                } else {
                    rule.count(NO_POLICY);
                    rule.then(Then::Drop);
                }
            });
        }
    }
}

/// Packets that the table has dropped, by where Linux counts them; to be asked in any namespace.
pub(super) fn dropped(socket: &Socket) -> Vec<(Counter, u64)> {
    let mut found = Vec::new();
    for (name, counter) in COUNTERS {
        let asked = socket.exchange(&ask_counter(TABLE, name), |kind, payload| {
            found.extend(counted(kind, payload).map(|packets| (counter, packets)));
        });
        if let Err(error) = asked {
            tracing::debug!(name, %error, "a counter of the packet filter");
        }
    }
    found
}

/// A socket in the thread's namespace.
pub(super) fn socket() -> io::Result<Socket> {
    Socket::open(SockProtocol::NetlinkNetFilter)
}

fn set_name(chain: &str, id: u32) -> String {
    format!("{chain}_{id}")
}

/// The direction that a policy's index tells.
fn direction(index: u32) -> u8 {
    (index & 7).to_le_bytes()[0]
}

fn base_chains(transaction: &mut Transaction<'_>) {
    transaction.add_base_chain("output", "route", Hook::Output, EARLY);
    transaction.add_rule("output", |rule| {
        interface_is(rule, Meta::OutputInterface);
        rule.then(Then::Return);
    });
    transaction.add_rule("output", |rule| {
        has_mark(rule, BYPASS);
        rule.then(Then::Return);
    });
    transaction.add_rule("output", |rule| {
        rule.meta(Meta::Mark, REG);
        is_own(rule);
        rule.then(Then::Jump("own_out"));
    });
    transaction.add_rule("output", |rule| {
        has_mark(rule, CAPTURED);
        rule.then(Then::Return);
    });
    call(transaction, "output", ["out", "out_sub"]);

    transaction.add_base_chain("prerouting", "filter", Hook::Prerouting, EARLY);
    transaction.add_rule("prerouting", |rule| {
        interface_is(rule, Meta::InputInterface);
        rule.then(Then::Return);
    });
    transaction.add_rule("prerouting", |rule| {
        rule.meta(Meta::InputName, REG);
        rule.equals(REG, &device_name(DEVICE));
        set_mark(rule, RETURNED);
    });
    call(transaction, "prerouting", ["out", "out_sub"]);

    transaction.add_base_chain("input", "filter", Hook::Input, LATE);
    comes_protected(transaction, "input");
    for protocol in [
        IPPROTO_ESP,
        IPPROTO_AH,
        IPPROTO_COMP,
        IPPROTO_IPIP,
        IPPROTO_IPV6,
    ] {
        transaction.add_rule("input", |rule| {
            rule.meta(Meta::L4Protocol, REG);
            rule.equals(REG, &[protocol]);
            rule.then(Then::Return);
        });
    }
    transaction.add_rule("input", |rule| {
        rule.socket_mark(REG);
        mask_mark(rule);
        rule.equals(REG, &BYPASS.to_ne_bytes());
        rule.then(Then::Return);
    });
    transaction.add_rule("input", |rule| {
        rule.socket_mark(REG);
        is_own(rule);
        rule.then(Then::Jump("own_in"));
    });
    call(transaction, "input", ["in", "in_sub"]);

    transaction.add_chain(CHECK);
    comes_protected(transaction, CHECK);
    call(transaction, CHECK, ["fwd", "fwd_sub"]);
    transaction.add_base_chain("forward", "filter", Hook::Forward, LATE);
    transaction.add_rule("forward", |rule| rule.then(Then::Jump(CHECK)));
    // Now the interface is known: what is for one and was not captured is dropped behind.
    call(transaction, "forward", ["out", "out_sub"]);

    transaction.add_base_chain("postrouting", "filter", Hook::Postrouting, LATE);
    transaction.add_rule("postrouting", |rule| {
        has_mark(rule, CAPTURED);
        rule.meta(Meta::OutputName, REG);
        rule.differs(REG, &device_name(DEVICE));
        rule.differs(REG, &device_name(MARKED_DEVICE));
        rule.count(STRAYED);
        rule.then(Then::Drop);
    });
}

/// What comes from the device has been checked by the engine, what comes from `lo` needs no check.
fn comes_protected(transaction: &mut Transaction<'_>, chain: &str) {
    transaction.add_rule(chain, |rule| {
        interface_is(rule, Meta::InputInterface);
        rule.then(Then::Return);
    });
    transaction.add_rule(chain, |rule| {
        rule.meta(Meta::InputName, REG);
        rule.equals(REG, &device_name(DEVICE));
        rule.then(Then::Return);
    });
}

fn call(transaction: &mut Transaction<'_>, chain: &str, called: [&str; 2]) {
    for called in called {
        transaction.add_rule(chain, |rule| rule.then(Then::Jump(called)));
    }
}

fn interface_is(rule: &mut Rule<'_, '_>, which: Meta) {
    rule.meta(which, REG);
    rule.equals(REG, &LOOPBACK.to_ne_bytes());
}

fn device_name(device: &str) -> [u8; 16] {
    let mut name = [0; 16];
    for (slot, byte) in name.iter_mut().zip(device.bytes()) {
        *slot = byte;
    }
    name
}

fn mask_mark(rule: &mut Rule<'_, '_>) {
    rule.bitwise(REG, &MARK_MASK.to_ne_bytes(), &[0; 4]);
}

fn has_mark(rule: &mut Rule<'_, '_>, mark: u32) {
    rule.meta(Meta::Mark, REG);
    mask_mark(rule);
    rule.equals(REG, &mark.to_ne_bytes());
}

/// Goes on only if the mark in the register is that of a socket with policies of its own.
fn is_own(rule: &mut Rule<'_, '_>) {
    rule.bitwise(REG, &STATE_MASK.to_ne_bytes(), &[0; 4]);
    rule.equals(REG, &OWN.to_ne_bytes());
}

/// Sets our bits of the mark; the others stay.
fn set_mark(rule: &mut Rule<'_, '_>, mark: u32) {
    rule.meta(Meta::Mark, REG);
    rule.bitwise(REG, &(!MARK_MASK).to_ne_bytes(), &mark.to_ne_bytes());
    rule.set_mark(REG);
}
