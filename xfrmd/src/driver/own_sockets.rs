//! Sockets that have policies of their own: the marks by which the host's packet
//! filter and the packet threads know them.
//!
//! A socket whose policies let everything pass has the bypass mark beside its
//! user's. One whose policies want anything else has a mark of ours in its
//! place; the engine gets the user's back. Its children have the same one.

use std::io;
use std::os::fd::OwnedFd;

use dataplane::spd::{Policy, SocketKey};
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use xfrm_proto::consts::XFRM_POLICY_ALLOW;
use xfrmd::emulator::NetnsId;

use super::Daemon;
use crate::attach::{BYPASS, OWN, OWN_MASK, OwnSocket, STATE_MASK};

/// A socket with policies of its own, and the connection that has shown it.
pub(super) struct Own {
    /// None once its program has closed it.
    pub(super) connection: Option<u64>,
    pub(super) socket: OwnSocket,
}

fn passes(policy: &Policy) -> bool {
    policy.action == XFRM_POLICY_ALLOW && policy.templates.is_empty()
}

impl Daemon {
    /// Gives a socket the mark that its policies come to.
    ///
    /// # Errors
    /// The host's; EOPNOTSUPP where the host cannot send us what a policy wants protected.
    pub(super) fn mark_socket(
        &mut self,
        connection: u64,
        id: NetnsId,
        key: SocketKey,
        fd: &OwnedFd,
    ) -> io::Result<()> {
        let mark = getsockopt(fd, sockopt::Mark)?;
        let known = self.own_socket(id, key);
        let user_mark = known
            .filter(|own| mark & STATE_MASK == OWN && mark & OWN_MASK == own.mark)
            .map_or(mark & !STATE_MASK, |own| own.user_mark);
        let ours = {
            let netns = self.emulator.netns(id);
            let policies = netns
                .as_ref()
                .map_or([None; 2], |netns| netns.spd.socket_policies(key));
            match policies {
                [None, None] => None,
                // For what comes in to such a socket the mark says the same.
                [input, Some(output)] if passes(output) && input.is_none_or(passes) => Some(BYPASS),
                _ => Some(OWN),
            }
        };
        let new = match ours {
            Some(OWN) => self.enlist(connection, id, user_mark, (key, known))?,
            other => {
                self.forget_own_sockets(|own| own.socket.key == key);
                user_mark | other.unwrap_or(0)
            }
        };
        if new != mark {
            setsockopt(fd, sockopt::Mark, &new)?;
        }
        Ok(())
    }

    fn own_socket(&self, id: NetnsId, key: SocketKey) -> Option<OwnSocket> {
        let mut own = self.following.get(&id)?.own.iter();
        own.find(|own| own.socket.key == key).map(|own| own.socket)
    }

    /// Makes host and threads know a socket; its mark.
    fn enlist(
        &mut self,
        connection: u64,
        id: NetnsId,
        user_mark: u32,
        (key, known): (SocketKey, Option<OwnSocket>),
    ) -> io::Result<u32> {
        let followed = self.following.entry(id).or_default();
        let mark = match known {
            Some(own) => own.mark,
            None => {
                let free = |mark: &u32| followed.own.iter().all(|own| own.socket.mark != *mark);
                let mut marks = OWN + 1..=OWN_MASK;
                marks.find(free).ok_or(io::ErrorKind::StorageFull)?
            }
        };
        followed.own.retain(|own| own.socket.key != key);
        let socket = OwnSocket {
            mark,
            user_mark,
            key,
        };
        let connection = Some(connection);
        followed.own.push(Own { connection, socket });
        if let Some(netns) = self.emulator.netns(id) {
            let policies = netns.spd.socket_policies(key);
            followed.attachment.set_own(mark, policies);
        }
        followed.tell_own();
        self.follow_policies(id);
        let attached = self.following.get(&id);
        if attached.is_none_or(|followed| !followed.attachment.knows_sockets()) {
            self.forget_own_sockets(|own| own.socket.key == key);
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        Ok(mark)
    }

    /// Before a socket's policies are taken away: what it has sent goes by them. False if they have
    /// to stay, because its program has closed a connection that lives on.
    pub(super) fn may_forget(&mut self, id: NetnsId, key: SocketKey) -> bool {
        let (Some(own), Some(followed)) = (self.own_socket(id, key), self.following.get(&id))
        else {
            return true;
        };
        followed.drain();
        if followed.attachment.alive(&[own.mark]).is_empty() {
            return true;
        }
        self.closed.push((id, key));
        if let Some(followed) = self.following.get_mut(&id) {
            let own = followed.own.iter_mut().filter(|own| own.socket.key == key);
            own.for_each(|own| own.connection = None);
        }
        false
    }

    /// Takes the policies away of connections that have ended.
    pub(super) fn look_at_closed(&mut self) {
        for (id, key) in std::mem::take(&mut self.closed) {
            if self.may_forget(id, key) {
                // Taking policies away does not fail.
                let now = self.clock.now();
                let _ = self.emulator.set_socket_policy(now, id, key, 0, 0, None);
                self.forget_own_sockets(|own| own.socket.key == key);
            }
        }
    }

    /// Forgets sockets that are gone or have no policies any more.
    pub(super) fn forget_own_sockets(&mut self, is_gone: impl Fn(&Own) -> bool) -> Vec<NetnsId> {
        let mut changed = Vec::new();
        for (&id, followed) in &mut self.following {
            let gone: Vec<u32> = followed
                .own
                .extract_if(.., |own| is_gone(own))
                .map(|own| own.socket.mark)
                .collect();
            if gone.is_empty() {
                continue;
            }
            for mark in gone {
                followed.attachment.set_own(mark, [None; 2]);
            }
            followed.tell_own();
            changed.push(id);
        }
        for &id in &changed {
            self.follow_policies(id);
        }
        changed
    }
}
