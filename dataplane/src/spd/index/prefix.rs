//! Which prefixes the policies of a class name, on one side.
//!
//! One hash probe per prefix length that occurs tells all prefixes that cover
//! an address; the probes do not wait for each other.

use std::hash::{BuildHasher, Hasher};

use crate::spd::policy::hash_state;
use crate::spd::slots::SlotTable;

/// A prefix with what hangs off it.
#[derive(Clone, Debug)]
pub(super) struct Node<T> {
    bits: u128,
    len: u8,
    /// Policies that name it.
    users: u32,
    pub(super) data: T,
}

/// The prefixes of one side; each has a number while somebody uses it.
#[derive(Debug)]
pub(super) struct Prefixes<T> {
    nodes: Vec<Node<T>>,
    free: Vec<u32>,
    table: SlotTable,
    /// Prefixes by length, and the lengths that occur, longest first.
    by_len: Vec<u32>,
    lens: Vec<u8>,
}

impl<T> Default for Prefixes<T> {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            free: Vec::new(),
            table: SlotTable::default(),
            by_len: vec![0; 129],
            lens: Vec::new(),
        }
    }
}

fn masked(addr: u128, len: u8) -> u128 {
    match len {
        0 => 0,
        _ => addr & (u128::MAX << (128 - u32::from(len.min(128)))),
    }
}

fn hash(bits: u128, len: u8) -> u32 {
    let mut hasher = hash_state().build_hasher();
    hasher.write_u128(bits);
    hasher.write_u8(len);
    (hasher.finish() >> 32) as u32
}

impl<T: Default> Prefixes<T> {
    pub(super) fn node(&self, number: u32) -> Option<&T> {
        self.nodes.get(number as usize).map(|node| &node.data)
    }

    pub(super) fn node_mut(&mut self, number: u32) -> Option<&mut T> {
        self.nodes
            .get_mut(number as usize)
            .map(|node| &mut node.data)
    }

    fn find(&self, bits: u128, len: u8) -> Option<u32> {
        self.table.find(hash(bits, len), |number| {
            self.nodes
                .get(number as usize)
                .is_some_and(|node| node.bits == bits && node.len == len)
        })
    }

    /// The prefix's number, now with one user more.
    pub(super) fn take(&mut self, bits: u128, len: u8) -> u32 {
        if let Some(number) = self.find(bits, len) {
            if let Some(node) = self.nodes.get_mut(number as usize) {
                node.users += 1;
            }
            return number;
        }
        let node = Node {
            bits,
            len,
            users: 1,
            data: T::default(),
        };
        let number = match self.free.pop() {
            Some(number) => {
                if let Some(place) = self.nodes.get_mut(number as usize) {
                    *place = node;
                }
                number
            }
            None => {
                self.nodes.push(node);
                u32::try_from(self.nodes.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.table.insert(hash(bits, len), number);
        self.count(len, 1);
        number
    }

    /// One user less; without users the prefix is forgotten.
    pub(super) fn release(&mut self, number: u32) {
        let Some(node) = self.nodes.get_mut(number as usize) else {
            return;
        };
        node.users -= 1;
        if node.users == 0 {
            node.data = T::default();
            let (bits, len) = (node.bits, node.len);
            self.table.remove(hash(bits, len), number);
            self.free.push(number);
            self.count(len, -1);
        }
    }

    fn count(&mut self, len: u8, change: i32) {
        let Some(count) = self.by_len.get_mut(usize::from(len)) else {
            return;
        };
        let before = *count;
        *count = count.wrapping_add_signed(change);
        if (before == 0) != (*count == 0) {
            self.lens = (0..=128u8)
                .rev()
                .filter(|&len| self.by_len.get(usize::from(len)).is_some_and(|&n| n > 0))
                .collect();
        }
    }

    /// The numbers of all prefixes that cover `addr`.
    pub(super) fn covering(&self, addr: u128) -> impl Iterator<Item = u32> + '_ {
        self.lens
            .iter()
            .filter_map(move |&len| self.find(masked(addr, len), len))
    }

    pub(super) fn data(&self) -> impl Iterator<Item = &T> {
        self.nodes.iter().map(|node| &node.data)
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node<T>>()
            + self.free.capacity() * size_of::<u32>()
            + self.table.heap_bytes()
    }
}
