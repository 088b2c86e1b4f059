//! Clients' datagrams: what is sent to the kernel, and chunks of dumps that are fetched.
//!
//! This is the only place of the driver where a request gets to the emulator and what it causes
//! into the receivers' sockets.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use xfrm_proto::control::{Answer, Socket};
use xfrm_proto::extack::AckOptions;
use xfrmd::emulator::{Inputs, NetnsId, Peer};

use super::Daemon;
use super::connection::{Connection, Entered};
use super::reply::Reply;

/// The largest datagram that comes as a file.
const LARGEST_DATAGRAM: u64 = 64 << 20;

impl Daemon {
    fn peer(&self, entered: Entered, socket: &Socket) -> Peer {
        Peer {
            netns: entered.id,
            port: socket.port,
            options: AckOptions {
                cap_ack: socket.cap_ack,
                ext_ack: socket.ext_ack,
            },
            privileged: entered.privileged,
            recv_bytes: usize::try_from(socket.recv_bytes).unwrap_or(0),
        }
    }

    pub(super) fn send(
        &mut self,
        connection: &mut Connection,
        socket: Socket,
        (to_port, to_groups): (u32, u32),
        payload: &[u8],
        [file, _]: [Option<OwnedFd>; 2],
    ) -> Reply {
        let Some(entered) = self.enter(connection, socket.netns) else {
            return Reply::unknown_netns();
        };
        if socket.port == 0 {
            return Reply::HangUp;
        }
        if !connection.may_use(entered, &socket) {
            return Reply::wants_proof();
        }
        if to_port | to_groups != 0 && !entered.privileged {
            return Reply::error(libc::EPERM);
        }
        if to_port != 0 {
            return Reply::error(libc::ECONNREFUSED);
        }
        let large;
        let datagram = match file {
            Some(file) if payload.is_empty() => match read_whole(&file.into()) {
                Ok(content) => {
                    large = content;
                    &large
                }
                Err(_) => return Reply::error(libc::ENOBUFS),
            },
            _ => payload,
        };
        if datagram.is_empty() {
            return Reply::Answer(Answer {
                wants_file: true,
                ..Answer::default()
            });
        }
        self.read_writers();
        if let Some(instance) = self.instances.get_mut(&entered.id)
            && instance.stale_reader(socket.port, socket.cookie)
        {
            self.emulator.close_socket(entered.id, socket.port);
        }
        let peer = self.peer(entered, &socket);
        let struck = if self.mischief.strikes_requests() {
            self.handle_struck(peer, datagram)
        } else {
            self.execute(peer, datagram);
            false
        };
        self.follow_policies(entered.id);
        let overrun = struck | self.deliver(Some((entered.id, socket.port)), false);
        self.arm();
        Reply::Answer(Answer {
            dumping: self.note_reader(entered.id, &socket),
            overrun,
            ..Answer::default()
        })
    }

    /// Has the emulator handle a datagram.
    pub(super) fn execute(&mut self, peer: Peer, datagram: &[u8]) {
        let inputs = Inputs {
            now: self.clock.now(),
            entropy: &mut self.entropy,
        };
        self.emulator.handle_datagram(inputs, peer, datagram);
    }

    fn note_reader(&mut self, id: NetnsId, socket: &Socket) -> bool {
        let dumping = self.emulator.is_dumping(id, socket.port);
        self.instances
            .get_mut(&id)
            .is_some_and(|instance| instance.set_reader(socket.port, socket.cookie, dumping))
    }

    pub(super) fn pull(&mut self, connection: &mut Connection, socket: Socket) -> Reply {
        let Some(entered) = self.enter(connection, socket.netns) else {
            return Reply::unknown_netns();
        };
        if !connection.may_use(entered, &socket) {
            return Reply::wants_proof();
        }
        let Some(instance) = self.instances.get_mut(&entered.id) else {
            return Reply::unknown_netns();
        };
        if instance.stale_reader(socket.port, socket.cookie) {
            self.emulator.close_socket(entered.id, socket.port);
        }
        if !instance.is_reader(socket.port) {
            return Reply::error(libc::ENOENT);
        }
        if instance.holds(socket.port) {
            instance.flush_reader(socket.port);
        } else {
            let peer = self.peer(entered, &socket);
            self.emulator.handle_recv(peer);
            self.deliver(Some((entered.id, socket.port)), true);
        }
        Reply::Answer(Answer {
            dumping: self.note_reader(entered.id, &socket),
            ..Answer::default()
        })
    }
}

fn read_whole(file: &File) -> io::Result<Vec<u8>> {
    let len = file.metadata()?.len();
    if len > LARGEST_DATAGRAM {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    let mut content = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut content, 0)?;
    Ok(content)
}
