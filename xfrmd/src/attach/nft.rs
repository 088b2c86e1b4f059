//! nf_tables as messages: tables, chains, sets, counters, and the expressions
//! that rules consist of (`include/uapi/linux/netfilter/nf_tables.h`).
//!
//! A transaction is a batch: all of it takes effect at once, or nothing.

use super::netlink::{Body, Messages, NLM_F_ACK, NLM_F_CREATE, attrs};

const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEWTABLE: u16 = SUBSYSTEM;
const DELTABLE: u16 = SUBSYSTEM | 2;
const NEWCHAIN: u16 = SUBSYSTEM | 3;
const NEWRULE: u16 = SUBSYSTEM | 6;
const DELRULE: u16 = SUBSYSTEM | 8;
const NEWSET: u16 = SUBSYSTEM | 9;
const DELSET: u16 = SUBSYSTEM | 11;
const NEWSETELEM: u16 = SUBSYSTEM | 12;
const DELSETELEM: u16 = SUBSYSTEM | 14;
const NEWOBJ: u16 = SUBSYSTEM | 18;
const GETOBJ: u16 = SUBSYSTEM | 19;
const OBJECT_COUNTER: u32 = 1;

const NFPROTO_INET: u8 = 1;
/// Of `nfproto`.
pub(super) const NFPROTO_IPV4: u8 = 2;
/// Of `nfproto`.
pub(super) const NFPROTO_IPV6: u8 = 10;

/// First 32-bit register; the others follow.
pub(super) const REG: u32 = 8;
const REG_VERDICT: u32 = 0;

/// Elements of one message: its attributes count their bytes in 16 bits.
const CHUNK_BYTES: usize = 32 << 10;

/// What a packet can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meta {
    Mark = 3,
    InputInterface = 4,
    OutputInterface = 5,
    InputName = 6,
    OutputName = 7,
    Nfproto = 15,
    L4Protocol = 16,
}

/// Where a payload's bytes count from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    Network = 1,
    Transport = 2,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then<'a> {
    Drop,
    /// Nothing else of this hook's chain is asked.
    Accept,
    Return,
    Jump(&'a str),
    Goto(&'a str),
}

/// Where a base chain sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// A transaction in one table of family inet.
pub(super) struct Transaction<'a> {
    messages: Messages,
    table: &'a str,
}

impl<'a> Transaction<'a> {
    pub(super) fn new(table: &'a str) -> Self {
        let mut messages = Messages::default();
        messages.push(BATCH_BEGIN, 0, |body| body.fixed(&[0, 0, 0, 10]));
        Self { messages, table }
    }

    /// The batch; the host acknowledges its last message.
    pub(super) fn finish(mut self) -> Messages {
        self.messages
            .push(BATCH_END, NLM_F_ACK, |body| body.fixed(&[0, 0, 0, 10]));
        self.messages
    }

    fn push(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Body<'_>)) {
        let table = self.table;
        self.messages.push(kind, flags, |out| {
            out.fixed(&[NFPROTO_INET, 0, 0, 0]);
            // The first attribute of every object is its table's name.
            out.text(1, table);
            body(out);
        });
    }

    /// The table, if it is not there yet.
    pub(super) fn add_table(&mut self) {
        self.push(NEWTABLE, NLM_F_CREATE, |_| {});
    }

    /// The table with all that is in it.
    pub(super) fn delete_table(&mut self) {
        self.push(DELTABLE, 0, |_| {});
    }

    /// A chain that others jump to.
    pub(super) fn add_chain(&mut self, name: &str) {
        self.push(NEWCHAIN, NLM_F_CREATE, |out| out.text(3, name));
    }

    /// A chain that packets come to by themselves.
    pub(super) fn add_base_chain(&mut self, name: &str, kind: &str, hook: Hook, priority: i32) {
        self.push(NEWCHAIN, NLM_F_CREATE, |out| {
            out.text(3, name);
            out.nest(4, |out| {
                out.big(1, hook as u32);
                out.big(2, priority.cast_unsigned());
            });
            out.text(7, kind);
        });
    }

    /// A counter that rules share.
    pub(super) fn add_counter(&mut self, name: &str) {
        self.push(NEWOBJ, NLM_F_CREATE, |out| {
            out.text(2, name);
            out.big(3, OBJECT_COUNTER);
            out.nest(4, |_| {});
        });
    }

    /// All rules of a chain go.
    pub(super) fn flush_chain(&mut self, name: &str) {
        self.push(DELRULE, 0, |out| out.text(2, name));
    }

    /// A rule behind the others of its chain.
    pub(super) fn add_rule(&mut self, chain: &str, rule: impl FnOnce(&mut Rule<'_, '_>)) {
        const NLM_F_APPEND: u16 = 0x800;
        self.push(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |out| {
            out.text(2, chain);
            out.nest(4, |out| rule(&mut Rule(out)));
        });
    }

    /// A set of keys.
    pub(super) fn add_set(&mut self, name: &str, key_bytes: usize, id: u32) {
        self.push(NEWSET, NLM_F_CREATE, |out| {
            out.text(2, name);
            out.big(3, 0);
            out.big(4, 0);
            out.big(5, u32::try_from(key_bytes).unwrap_or(u32::MAX));
            out.big(10, id);
        });
    }

    /// A set that no rule uses.
    pub(super) fn delete_set(&mut self, name: &str) {
        self.push(DELSET, 0, |out| out.text(2, name));
    }

    /// Keys into a set.
    pub(super) fn add_elements<'k>(&mut self, set: &str, keys: impl Iterator<Item = &'k [u8]>) {
        self.elements(NEWSETELEM, NLM_F_CREATE, set, keys);
    }

    /// Keys out of it.
    pub(super) fn delete_elements<'k>(&mut self, set: &str, keys: impl Iterator<Item = &'k [u8]>) {
        self.elements(DELSETELEM, 0, set, keys);
    }

    fn elements<'k>(
        &mut self,
        kind: u16,
        flags: u16,
        set: &str,
        keys: impl Iterator<Item = &'k [u8]>,
    ) {
        let mut keys = keys.peekable();
        while keys.peek().is_some() {
            self.push(kind, flags, |out| {
                out.text(2, set);
                out.nest(3, |out| {
                    let mut bytes = 0;
                    while bytes < CHUNK_BYTES
                        && let Some(key) = keys.next()
                    {
                        bytes += key.len() + 12;
                        out.nest(1, |out| out.nest(1, |out| out.attr(1, key)));
                    }
                });
            });
        }
    }
}

/// A rule's expressions.
pub(super) struct Rule<'a, 'b>(&'a mut Body<'b>);

impl Rule<'_, '_> {
    fn expression(&mut self, name: &str, data: impl FnOnce(&mut Body<'_>)) {
        self.0.nest(1, |out| {
            out.text(1, name);
            out.nest(2, data);
        });
    }

    /// Loads what `meta` knows.
    pub(super) fn meta(&mut self, key: Meta, register: u32) {
        self.expression("meta", |out| {
            out.big(1, register);
            out.big(2, key as u32);
        });
    }

    /// Sets the packet's mark from a register.
    pub(super) fn set_mark(&mut self, register: u32) {
        self.expression("meta", |out| {
            out.big(2, Meta::Mark as u32);
            out.big(3, register);
        });
    }

    /// Loads the mark of the socket that a packet is for; none, and the rule is over.
    pub(super) fn socket_mark(&mut self, register: u32) {
        self.expression("socket", |out| {
            out.big(1, 1);
            out.big(2, register);
        });
    }

    /// Loads bytes of the packet; not there, and the rule is over.
    pub(super) fn payload(&mut self, base: Base, offset: u32, bytes: u32, register: u32) {
        self.expression("payload", |out| {
            out.big(1, register);
            out.big(2, base as u32);
            out.big(3, offset);
            out.big(4, bytes);
        });
    }

    /// Masks and flips a register's bits.
    pub(super) fn bitwise(&mut self, register: u32, mask: &[u8], flip: &[u8]) {
        self.expression("bitwise", |out| {
            out.big(1, register);
            out.big(2, register);
            out.big(3, u32::try_from(mask.len()).unwrap_or(0));
            out.nest(4, |out| out.attr(1, mask));
            out.nest(5, |out| out.attr(1, flip));
        });
    }

    /// Goes on only if a register holds these bytes.
    pub(super) fn equals(&mut self, register: u32, value: &[u8]) {
        self.compare(0, register, value);
    }

    /// Goes on only if a register holds other bytes.
    pub(super) fn differs(&mut self, register: u32, value: &[u8]) {
        self.compare(1, register, value);
    }

    fn compare(&mut self, operator: u32, register: u32, value: &[u8]) {
        self.expression("cmp", |out| {
            out.big(1, register);
            out.big(2, operator);
            out.nest(3, |out| out.attr(1, value));
        });
    }

    /// Goes on only if a set has what the registers from `register` on hold.
    pub(super) fn lookup(&mut self, set: &str, register: u32) {
        self.expression("lookup", |out| {
            out.text(1, set);
            out.big(2, register);
        });
    }

    /// Counts.
    pub(super) fn count(&mut self, counter: &str) {
        self.expression("objref", |out| {
            out.big(1, OBJECT_COUNTER);
            out.text(2, counter);
        });
    }

    /// Decides.
    pub(super) fn then(&mut self, then: Then<'_>) {
        let (code, chain) = match then {
            Then::Drop => (0, None),
            Then::Accept => (1, None),
            Then::Jump(chain) => (-3, Some(chain)),
            Then::Goto(chain) => (-4, Some(chain)),
            Then::Return => (-5_i32, None),
        };
        self.expression("immediate", |out| {
            out.big(1, REG_VERDICT);
            out.nest(2, |out| {
                out.nest(2, |out| {
                    out.big(1, code.cast_unsigned());
                    if let Some(chain) = chain {
                        out.text(2, chain);
                    }
                });
            });
        });
    }
}

/// Asks for a counter of a table.
pub(super) fn ask_counter(table: &str, name: &str) -> Messages {
    let mut messages = Messages::default();
    messages.push(GETOBJ, 0, |out| {
        out.fixed(&[NFPROTO_INET, 0, 0, 0]);
        out.text(1, table);
        out.text(2, name);
        out.big(3, OBJECT_COUNTER);
    });
    messages
}

/// The packets that a counter has counted, from the answer.
pub(super) fn counted(kind: u16, payload: &[u8]) -> Option<u64> {
    const COUNTER_PACKETS: u16 = 2;
    if kind != NEWOBJ {
        return None;
    }
    let (_, data) = attrs(payload.get(4..)?).find(|&(kind, _)| kind == 4)?;
    let (_, packets) = attrs(data).find(|&(kind, _)| kind == COUNTER_PACKETS)?;
    Some(u64::from_be_bytes(*packets.first_chunk()?))
}
