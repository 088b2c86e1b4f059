//! Clients entering namespaces: which instance a connection may use, with what
//! rights, and how an instance gets its sockets when the first client comes.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use xfrm_proto::control::{Answer, EVENT_TAIL_BYTES};

use super::connection::{Connection, Entered, Reply};
use super::instance::{Instance, Speakers};
use super::privilege::{self, Credentials};
use super::{Daemon, Owner, clock, host, namespace};

/// How long what we know of a process's capabilities is good for, in nanoseconds.
const PRIVILEGE_AGE: u64 = 20_000_000;

impl Daemon {
    /// Use of a namespace by a connection: `None` if it must first be introduced.
    pub(super) fn enter(&mut self, connection: &mut Connection, netns: u64) -> Option<Entered> {
        let known = connection
            .entered
            .iter_mut()
            .find(|entered| entered.netns == netns);
        if let Some(entered) = known {
            // The owner of a private instance is always privileged.
            if !self.is_owner(connection.peer) {
                let now = clock::uptime().0;
                if now.saturating_sub(entered.checked_at) > PRIVILEGE_AGE {
                    let instance = self.instances.get(&entered.id)?;
                    entered.privileged = self.is_privileged(connection.peer, instance);
                    entered.checked_at = now;
                }
            }
            return Some(*entered);
        }
        let id = *self.by_cookie.get(&netns)?;
        let instance = self.instances.get_mut(&id)?;
        instance.speakers.as_ref()?;
        instance.users.push(connection.id);
        let instance = self.instances.get(&id)?;
        let entered = Entered {
            netns,
            id,
            privileged: self.is_privileged(connection.peer, instance),
            checked_at: clock::uptime().0,
        };
        connection.entered.push(entered);
        Some(entered)
    }

    fn is_owner(&self, peer: Credentials) -> bool {
        matches!(self.settings.owner, Owner::Private { uid, .. } if uid == peer.uid)
    }

    /// What is behind events, so that instances in one namespace do not hear each other.
    pub(super) fn event_tail(&self) -> Option<[u8; EVENT_TAIL_BYTES]> {
        match &self.settings.owner {
            Owner::System => None,
            Owner::Private { secret, .. } => Some(secret.event_tail()),
        }
    }

    fn is_privileged(&self, peer: Credentials, instance: &Instance) -> bool {
        if self.is_owner(peer) {
            return true;
        }
        if instance.netns == self.home.cookie {
            return privilege::has_net_admin(peer, self.home.namespace.as_fd());
        }
        instance
            .namespace
            .as_ref()
            .is_some_and(|namespace| privilege::has_net_admin(peer, namespace.as_fd()))
    }

    pub(super) fn netns(
        &mut self,
        connection: &mut Connection,
        netns: u64,
        fds: [Option<OwnedFd>; 2],
    ) -> Reply {
        let open = self
            .by_cookie
            .get(&netns)
            .and_then(|id| self.instances.get(id))
            .is_some_and(|instance| instance.speakers.is_some());
        if !open {
            match self.open_speakers(netns, fds) {
                // While we asked about this namespace, another may have ended.
                Ok(None) => self.end_namespaces(),
                Ok(Some(wish)) => return Reply::Answer(wish),
                Err(error) => {
                    tracing::warn!(%error, netns, "no sockets in a namespace");
                    return Reply::error(error.raw_os_error().unwrap_or(libc::EIO));
                }
            }
        }
        let Some(entered) = self.enter(connection, netns) else {
            return Reply::error(libc::EIO);
        };
        let ports = self
            .instances
            .get(&entered.id)
            .and_then(|instance| instance.speakers.as_ref());
        Reply::Answer(Answer {
            first: ports.map_or(0, |speakers| speakers.reply_port),
            second: ports.map_or(0, |speakers| speakers.event_port),
            ..Answer::default()
        })
    }

    /// Opens our sockets in a namespace; `Some` is what we need from the client for that.
    fn open_speakers(
        &mut self,
        netns: u64,
        fds: [Option<OwnedFd>; 2],
    ) -> io::Result<Option<Answer>> {
        let private = matches!(self.settings.owner, Owner::Private { .. });
        let entropy = &mut self.entropy;
        let mut random = || dataplane::Entropy::u32(entropy);
        let mut make = || -> io::Result<_> {
            let reply = host::speaker(&mut random)?;
            let event = host::speaker(&mut random)?;
            Ok((reply, event, namespace::listeners().unwrap_or_default()))
        };
        let mut kept = None;
        let (reply, event, found) = match fds {
            _ if netns == self.home.cookie => make()?,
            [Some(reply), Some(event)] if private => (reply, event, Vec::new()),
            [Some(namespace), None] => match self.home.inside(namespace.as_fd(), make) {
                Ok(made) => {
                    kept = Some(namespace);
                    made
                }
                Err(_) if private => {
                    return Ok(Some(Answer {
                        wants_sockets: true,
                        ..Answer::default()
                    }));
                }
                Err(error) => return Err(error),
            },
            _ => {
                return Ok(Some(Answer {
                    wants_netns: true,
                    ..Answer::default()
                }));
            }
        };
        let speakers = Speakers::new(netns, reply, event)?;
        if let (Some(watch), Some(namespace)) = (&mut self.watch, &kept)
            && let Err(error) = watch.add(netns, namespace.as_fd())
        {
            tracing::debug!(%error, netns, "the namespace's end will go unnoticed");
        }
        let id = match self.by_cookie.get(&netns) {
            Some(&id) => id,
            None => {
                let id = self.emulator.create_netns();
                tracing::info!(netns, "namespace");
                self.by_cookie.insert(netns, id);
                self.instances
                    .insert(id, Instance::new(id, netns, self.event_tail()));
                for (group, &count) in (1..).zip(&self.group_members) {
                    self.emulator.set_listeners(id, group, count);
                }
                id
            }
        };
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.speakers = Some(speakers);
            instance.namespace = kept;
            instance.find_members(&found);
        }
        self.hold_instance(id);
        self.keep_driver(id);
        self.count_listeners();
        self.follow_policies(id);
        Ok(None)
    }
}
