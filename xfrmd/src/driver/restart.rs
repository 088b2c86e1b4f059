//! Going on where a daemon that was killed had to stop.
//!
//! The engine comes from the store, descriptors from the keeper. What the
//! driver itself must know again of a namespace is a record in the store:
//! its cookie, and what belongs to client processes and not to the engine: whose sockets' own
//! policies there are, and which sockets take ESP in UDP. It waits for the
//! process to connect again, which is known by its number, and goes when that process is no more.

use std::os::fd::{AsFd as _, BorrowedFd};

use anyhow::{Context as _, Result};
use dataplane::keep::{Kept, Kind, Record};
use dataplane::spd::SocketKey;
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use xfrmd::emulator::{Emulator, NetnsId};
use xfrmd::store::{Found, Store};

use super::Daemon;
use super::attaching::Encap;
use super::connection::Connection;
use super::instance::{Instance, Speakers};
use super::keeper::{Held, Inheritance, Role};
use super::own_sockets::Own;
use super::recorder;
use crate::attach::{EncapSocket, OwnSocket};

/// What a process had set, until it connects again.
pub(super) struct Orphan {
    /// The number of the connection that it was.
    pub(super) connection: u64,
    /// The process.
    pub(super) pid: i32,
    /// Cookies of sockets to which it gave policies.
    pub(super) policies: Vec<(NetnsId, u64)>,
}

/// What belongs to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Belonging {
    /// A socket has policies of its own.
    Policies { cookie: u64 },
    /// A socket takes ESP in UDP.
    Encap { port: u16, key: u64 },
    /// A socket's own policies are not to bypass: our mark on it, and its user's.
    Own { mark: u32, user_mark: u32, key: u64 },
}

/// The driver's record of a namespace.
#[derive(Debug, Default, PartialEq, Eq)]
struct Image {
    cookie: u64,
    /// By connection and process.
    belongings: Vec<(u64, i32, Belonging)>,
}

const WORDS_EACH: usize = 5;

impl Image {
    fn encode(&self) -> Vec<u8> {
        let mut words = vec![self.cookie];
        for &(connection, pid, belonging) in &self.belongings {
            let [kind, first, second] = match belonging {
                Belonging::Policies { cookie } => [0, cookie, 0],
                Belonging::Encap { port, key } => [1, port.into(), key],
                Belonging::Own {
                    mark,
                    user_mark,
                    key,
                } => [2, u64::from(mark) << 32 | u64::from(user_mark), key],
            };
            words.extend([
                connection,
                u64::from(pid.cast_unsigned()),
                kind,
                first,
                second,
            ]);
        }
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (words, []) = bytes.as_chunks::<8>() else {
            return None;
        };
        let words: Vec<u64> = words.iter().map(|&word| u64::from_le_bytes(word)).collect();
        let (&cookie, rest) = words.split_first()?;
        let (rest, []) = rest.as_chunks::<WORDS_EACH>() else {
            return None;
        };
        let belonging = |&[connection, pid, kind, first, second]: &[u64; WORDS_EACH]| {
            let belonging = match kind {
                0 => Belonging::Policies { cookie: first },
                1 => Belonging::Encap {
                    port: u16::try_from(first).ok()?,
                    key: second,
                },
                2 => Belonging::Own {
                    mark: u32::try_from(first >> 32).ok()?,
                    user_mark: u32::try_from(first & u64::from(u32::MAX)).ok()?,
                    key: second,
                },
                _ => return None,
            };
            Some((connection, i32::try_from(pid).ok()?, belonging))
        };
        Some(Self {
            cookie,
            belongings: rest.iter().map(belonging).collect::<Option<_>>()?,
        })
    }
}

const fn record(id: NetnsId) -> Record {
    Record {
        netns: id.0,
        kind: Kind::Driver,
        place: 0,
    }
}

/// A connection: its number, its process, and the sockets that it gave policies to.
type Served<'a> = (u64, i32, &'a [(NetnsId, u64)]);

impl Daemon {
    /// Takes over what others have left, if there were any, and keeps state from now on.
    ///
    /// # Errors
    /// When what is there cannot be used.
    pub(crate) fn inherit(&mut self, inheritance: Inheritance) -> Result<()> {
        let Inheritance {
            state,
            held,
            line,
            generation,
        } = inheritance;
        let left = "the state that the daemon before has left cannot be used; what its policies protect stays blocked";
        let (store, found) = Store::open(state, self.settings.profile).context(left)?;
        self.line = Some(line);
        if generation > 0 {
            self.recall(&found, held).context(left)?;
            // The numbers from before must not come again, and who waits must tell us so.
            self.settings.randomness = self.settings.randomness.of_generation(generation);
            self.entropy = self.settings.randomness.stream(0);
            if let Some(page) = self.clock.page() {
                page.wake_all();
            }
        }
        let found_by = |generation| recorder::Found {
            generation,
            kept: found.iter().map(|it| it.kept().into()).collect(),
        };
        let records = self.settings.record.is_some() && generation > 0;
        let recalled = records.then(|| found_by(generation.into()));
        drop(found);
        self.emulator.keep_on(Box::new(store));
        self.start_recording(recalled.as_ref())?;
        if generation > 0 {
            let ids: Vec<NetnsId> = self.instances.keys().copied().collect();
            for &id in &ids {
                self.follow_policies(id);
            }
            self.lingering = true;
            self.count_listeners();
            self.arm();
            tracing::info!(namespaces = ids.len(), generation, "going on");
        }
        Ok(())
    }

    fn recall(&mut self, found: &[Found], mut held: Held) -> Result<()> {
        let records: Vec<Kept<'_>> = found.iter().map(Found::kept).collect();
        let settings = &self.settings;
        self.emulator = Emulator::recall(settings.profile, settings.limits, &records)?;
        let drivers = records.iter().filter(|it| it.record.kind == Kind::Driver);
        for kept in drivers {
            let id = NetnsId(kept.record.netns);
            let image = Image::decode(kept.image).context("a namespace's record is damaged")?;
            let mut take = |role| held.remove(&(image.cookie, role));
            let mut instance = Instance::new(id, image.cookie, self.event_tail());
            instance.namespace = take(Role::Namespace);
            if let (Some(reply), Some(event)) = (take(Role::Reply), take(Role::Event)) {
                let speakers = Speakers::new(image.cookie, reply, event);
                instance.speakers = speakers
                    .inspect_err(|error| tracing::warn!(%error, "sockets of a namespace"))
                    .ok();
            }
            if let (Some(watch), Some(namespace)) = (&mut self.watch, &instance.namespace)
                && let Err(error) = watch.add(image.cookie, namespace.as_fd())
            {
                tracing::debug!(%error, "the namespace's end will go unnoticed");
            }
            let listeners = self.listeners_in(&instance).unwrap_or_default();
            instance.find_members(&listeners);
            let followed = self.following.entry(id).or_default();
            let left = Role::carrying();
            followed.take_over(left.filter_map(|role| Some((role, take(role)?))).collect());
            for &(connection, pid, belonging) in &image.belongings {
                self.next_connection = self.next_connection.max(connection + 1);
                let known = |orphan: &Orphan| orphan.connection == connection;
                let at = match self.orphans.iter().position(known) {
                    Some(at) => at,
                    None => {
                        self.orphans.push(Orphan {
                            connection,
                            pid,
                            policies: Vec::new(),
                        });
                        self.orphans.len() - 1
                    }
                };
                match belonging {
                    Belonging::Policies { cookie } => {
                        if let Some(orphan) = self.orphans.get_mut(at) {
                            orphan.policies.push((id, cookie));
                        }
                    }
                    Belonging::Encap { port, key } => {
                        let key = SocketKey(key);
                        followed.encap.push(Encap {
                            connection,
                            socket: EncapSocket { port, key },
                            bulk: None,
                        });
                    }
                    Belonging::Own {
                        mark,
                        user_mark,
                        key,
                    } => {
                        let key = SocketKey(key);
                        if let Some(netns) = self.emulator.netns(id) {
                            let policies = netns.spd.socket_policies(key);
                            followed.attachment.set_own(mark, policies);
                        }
                        followed.own.push(Own {
                            connection: Some(connection),
                            socket: OwnSocket {
                                mark,
                                user_mark,
                                key,
                            },
                        });
                    }
                }
            }
            self.by_cookie.insert(image.cookie, id);
            self.instances.insert(id, instance);
        }
        Ok(())
    }

    /// Keeps what the driver knows of a namespace, if that is new, while a connection is served.
    pub(super) fn keep_belongings(&mut self, served: &Connection, id: NetnsId) {
        let served = (served.id, served.peer.pid, &*served.policies);
        self.keep_with(Some(served), id);
    }

    /// The same, between connections' turns.
    pub(super) fn keep_driver(&mut self, id: NetnsId) {
        self.keep_with(None, id);
    }

    fn keep_with(&mut self, served: Option<Served<'_>>, id: NetnsId) {
        let Some(instance) = self.instances.get_mut(&id) else {
            return;
        };
        let followed = self.following.get(&id);
        let mut image = Image {
            cookie: instance.netns,
            belongings: Vec::new(),
        };
        let connections = self.connections.iter().flatten();
        let living = connections.map(|it| (it.id, it.peer.pid, &*it.policies));
        let orphans = self
            .orphans
            .iter()
            .map(|it| (it.connection, it.pid, &*it.policies));
        for (connection, pid, policies) in served.into_iter().chain(living).chain(orphans) {
            let of_policies = policies.iter().filter(|(netns, _)| *netns == id);
            let of_policies = of_policies.map(|&(_, cookie)| Belonging::Policies { cookie });
            let encap = followed.iter().flat_map(|it| &it.encap);
            let encap = encap.filter(|it| it.connection == connection);
            let encap = encap.map(|it| Belonging::Encap {
                port: it.socket.port,
                key: it.socket.key.0,
            });
            let own = followed.iter().flat_map(|it| &it.own);
            let own = own.filter(|it| it.connection == Some(connection));
            let own = own.map(|it| Belonging::Own {
                mark: it.socket.mark,
                user_mark: it.socket.user_mark,
                key: it.socket.key.0,
            });
            let all = of_policies.chain(encap).chain(own);
            image
                .belongings
                .extend(all.map(|belonging| (connection, pid, belonging)));
        }
        let bytes = image.encode();
        if bytes != instance.kept
            && let Some(shelf) = self.emulator.shelf()
        {
            shelf.put(record(id), &bytes);
            shelf.commit();
            instance.kept = bytes;
        }
    }

    /// Forgets the driver's record of a namespace, and what is held of it.
    pub(super) fn forget_kept(&mut self, id: NetnsId, cookie: u64) {
        if let Some(shelf) = self.emulator.shelf() {
            shelf.remove(record(id));
            shelf.commit();
        }
        if let Some(line) = &self.line {
            for role in Role::ALL {
                line.release(cookie, role);
            }
        }
    }

    /// Has the keeper hold an instance's sockets and namespace, or no longer.
    pub(super) fn hold_instance(&self, id: NetnsId) {
        let (Some(line), Some(instance)) = (&self.line, self.instances.get(&id)) else {
            return;
        };
        let put = |role, fd: Option<BorrowedFd<'_>>| match fd {
            Some(fd) => line.hold(instance.netns, role, fd),
            None => line.release(instance.netns, role),
        };
        let speakers = instance.speakers.as_ref();
        put(
            Role::Namespace,
            instance.namespace.as_ref().map(|it| it.as_fd()),
        );
        put(Role::Reply, speakers.map(Speakers::reply));
        put(Role::Event, speakers.map(Speakers::event));
    }

    /// What a process had set before the daemon was killed.
    pub(super) fn adopt(&mut self, pid: i32) -> Option<Orphan> {
        let at = self.orphans.iter().position(|orphan| orphan.pid == pid)?;
        Some(self.orphans.swap_remove(at))
    }

    /// Takes away what belongs to processes that are no more; whether some are left.
    pub(super) fn bury_orphans(&mut self) -> bool {
        let is_gone = |orphan: &Orphan| {
            // 0 is a process that we do not see.
            orphan.pid > 0 && kill(Pid::from_raw(orphan.pid), None) == Err(Errno::ESRCH)
        };
        while let Some(at) = self.orphans.iter().position(is_gone) {
            let orphan = self.orphans.swap_remove(at);
            self.end_belongings(orphan.connection, &orphan.policies);
        }
        !self.orphans.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let image = Image {
            cookie: 77,
            belongings: vec![
                (3, 4242, Belonging::Policies { cookie: u64::MAX }),
                (4, 1, Belonging::Encap { port: 4500, key: 9 }),
                (
                    4,
                    1,
                    Belonging::Own {
                        mark: 0x0800_0001,
                        user_mark: 7,
                        key: 9,
                    },
                ),
            ],
        };
        let bytes = image.encode();
        assert_eq!(Image::decode(&bytes), Some(image));
        assert_eq!(Image::decode(&bytes[1..]), None);
        assert_eq!(Image::decode(&[]), None);
    }
}
