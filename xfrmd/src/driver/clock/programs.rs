//! What programs of a run ask of its virtual clock: the page, times to wait for, timers.

use std::os::fd::{AsRawFd, OwnedFd};

use xfrm_proto::clock::{TimerKind, TimerSetting, encode_remaining};
use xfrm_proto::control::Answer;

use crate::driver::Daemon;
use crate::driver::connection::{Connection, Reply};

impl Daemon {
    /// The page, to be mapped.
    pub(in crate::driver) fn clock_page(&self) -> Reply {
        let file = self
            .clock
            .page()
            .map(|page| page.file().try_clone_to_owned());
        match file {
            Some(Ok(file)) => Reply::Descriptor(file),
            Some(Err(error)) => Reply::error(error.raw_os_error().unwrap_or(libc::EIO)),
            None => Reply::error(libc::ENOENT),
        }
    }

    /// Notes that something waits.
    pub(in crate::driver) fn clock_wait(
        &mut self,
        connection: &Connection,
        due: Option<u64>,
    ) -> Reply {
        match (&mut self.motion, due) {
            (None, _) => return Reply::HangUp,
            (Some(motion), Some(due)) => motion.waits.wait(connection.id, due),
            (Some(motion), None) => motion.waits.unwait(connection.id),
        }
        Reply::Nothing
    }

    /// Sets a timer of a process, or tells what it is set to.
    pub(in crate::driver) fn clock_timer(
        &mut self,
        connection: &Connection,
        set: bool,
        payload: &[u8],
        [descriptor, _]: [Option<OwnedFd>; 2],
    ) -> Reply {
        let (Some(motion), Some(setting)) = (&mut self.motion, TimerSetting::decode(payload))
        else {
            return Reply::HangUp;
        };
        let process = connection.peer.pid;
        if !set {
            let (due, interval) = motion.waits.timer((process, setting.kind, setting.number));
            return Reply::Content(encode_remaining(due, interval).to_vec());
        }
        if setting.kind == TimerKind::Descriptor && setting.due != 0 {
            match &descriptor {
                None => {
                    return Reply::Answer(Answer {
                        wants_file: true,
                        ..Answer::default()
                    });
                }
                Some(descriptor) if !is_timer(descriptor) => return Reply::error(libc::EINVAL),
                Some(_) => {}
            }
        }
        let (due, interval) = motion.waits.set_timer(process, setting, descriptor);
        Reply::Content(encode_remaining(due, interval).to_vec())
    }
}

fn is_timer(descriptor: &OwnedFd) -> bool {
    let path = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    std::fs::read_link(path).is_ok_and(|it| it.as_os_str() == "anon_inode:[timerfd]")
}
