//! Calls that are put aside, and the descriptors that they wait for: ours for the same files.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libc::{c_int, c_short, epoll_event, pollfd};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::super::supervisor::Call;
use super::super::target::Process;
use super::{MOST_DESCRIPTORS, to_timespec, to_timeval};
use crate::driver::client::Alarm;

/// Words of the largest set of `select`.
const WORD_BITS: u64 = 64;
/// What `select` takes for readable, writable and exceptional.
const READABLE: c_short =
    libc::POLLIN | libc::POLLRDNORM | libc::POLLRDBAND | libc::POLLHUP | libc::POLLERR;
const WRITABLE: c_short = libc::POLLOUT | libc::POLLWRNORM | libc::POLLWRBAND | libc::POLLERR;
const EXCEPTIONAL: c_short = libc::POLLPRI;

/// A call that waits.
pub(super) struct Held {
    pub(super) call: Call,
    pub(super) process: u32,
    /// Until then, as boot time in nanoseconds.
    pub(super) due: u64,
    /// Which tells of it.
    pub(super) alarm: Alarm,
    pub(super) what: What,
}

/// What for.
pub(super) enum What {
    /// The time alone. Where the caller wants what is left of it, if a signal comes.
    Sleep { left: u64 },
    /// Descriptors too.
    Descriptors(Descriptors),
}

/// Descriptors that a call waits for.
pub(super) enum Descriptors {
    /// `poll` and `select`: readable when one of them may be ready.
    Each {
        waits: Epoll,
        polled: Vec<Polled>,
        form: Form,
    },
    /// `epoll_wait`.
    Epoll { epoll: OwnedFd, most: usize },
}

/// One of them.
pub(super) struct Polled {
    /// The caller's.
    number: c_int,
    events: c_short,
    /// Ours; none for one that is not open, and for one that is not looked at.
    own: Option<OwnedFd>,
}

/// How the caller gives them.
pub(super) enum Form {
    /// An array of `pollfd`.
    Array,
    /// Three sets with so many bits, and where what is left of the time goes.
    Sets { count: u64, left: Left },
}

/// Where `select` says what is left of its time, in microseconds, and `pselect6`, in nanoseconds.
#[derive(Clone, Copy)]
pub(super) enum Left {
    Micros(u64),
    Nanos(u64),
}

impl Left {
    fn tell(self, call: &Call, left: u64) -> Result<(), c_int> {
        match self {
            Self::Micros(place) => call.thread.put(place, &to_timeval(left)),
            Self::Nanos(place) => call.thread.put(place, &to_timespec(left)),
        }
    }
}

/// A descriptor of ours for one of the caller's: none inside if it is not open, none at all if the host does not let us.
fn own(process: &Process, number: c_int) -> Option<Option<OwnedFd>> {
    match process.descriptor(number) {
        Ok(own) => Some(Some(own)),
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => Some(None),
        Err(_) => None,
    }
}

/// Where a set has a descriptor: word and bit.
fn place(number: u64) -> (usize, u64) {
    let word = usize::try_from(number / WORD_BITS).unwrap_or(usize::MAX);
    (word, 1 << (number % WORD_BITS))
}

impl Descriptors {
    /// Those of `poll` and `ppoll`. None if the host does not let us have them.
    ///
    /// # Errors
    /// The call's.
    pub(super) fn polled(call: &Call, process: &Process) -> Result<Option<Self>, c_int> {
        let count = call.long(1);
        if count > MOST_DESCRIPTORS {
            return Ok(None);
        }
        let count = usize::try_from(count).map_err(|_| libc::EINVAL)?;
        let given: Vec<pollfd> = call.thread.array(call.long(0), count)?;
        let mut polled = Vec::with_capacity(count);
        for one in given {
            let own = match one.fd {
                ..0 => None,
                number => match own(process, number) {
                    Some(own) => own,
                    None => return Ok(None),
                },
            };
            polled.push(Polled {
                number: one.fd,
                events: one.events,
                own,
            });
        }
        Ok(Self::each(polled, Form::Array))
    }

    /// Those of `select` and `pselect6`.
    ///
    /// # Errors
    /// The call's.
    pub(super) fn selected(
        call: &Call,
        process: &Process,
        left: Left,
    ) -> Result<Option<Self>, c_int> {
        let count = u64::try_from(call.int(0)).map_err(|_| libc::EINVAL)?;
        if count > MOST_DESCRIPTORS {
            return Ok(None);
        }
        let sets = sets(call, count)?;
        let wanted = [libc::POLLIN, libc::POLLOUT, libc::POLLPRI];
        let mut polled = Vec::new();
        for number in 0..count {
            let (word, bit) = place(number);
            let is_in = |set: &&Vec<u64>| set.get(word).is_some_and(|it| it & bit != 0);
            let all = sets.iter().zip(wanted).filter(|(set, _)| is_in(set));
            let events = all.fold(0, |all, (_, events)| all | events);
            if events == 0 {
                continue;
            }
            let number = c_int::try_from(number).map_err(|_| libc::EINVAL)?;
            match own(process, number) {
                None => return Ok(None),
                Some(None) => return Err(libc::EBADF),
                Some(own) => polled.push(Polled {
                    number,
                    events,
                    own,
                }),
            }
        }
        Ok(Self::each(polled, Form::Sets { count, left }))
    }

    fn each(polled: Vec<Polled>, form: Form) -> Option<Self> {
        let waits = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).ok()?;
        for one in &polled {
            let Some(own) = &one.own else { continue };
            let events = EpollFlags::from_bits_truncate(i32::from(one.events));
            match waits.add(own, EpollEvent::new(events, 0)) {
                // A file, which is ready at once.
                Ok(()) | Err(Errno::EPERM) => {}
                Err(_) => return None,
            }
        }
        Some(Self::Each {
            waits,
            polled,
            form,
        })
    }

    /// That of `epoll_wait`.
    ///
    /// # Errors
    /// The call's.
    pub(super) fn of_epoll(call: &Call, process: &Process) -> Result<Option<Self>, c_int> {
        let most = u64::try_from(call.int(2)).map_err(|_| libc::EINVAL)?;
        let most = usize::try_from(most.min(MOST_DESCRIPTORS)).unwrap_or(0);
        Ok(match own(process, call.int(0)) {
            None => None,
            Some(None) => return Err(libc::EBADF),
            Some(Some(epoll)) => Some(Self::Epoll { epoll, most }),
        })
    }

    /// What becomes readable when something may be ready.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Each { waits, .. } => waits.0.as_fd(),
            Self::Epoll { epoll, .. } => epoll.as_fd(),
        }
    }

    /// How many are ready, and which are, in the caller's memory; none if it has to wait. `left` of its time.
    ///
    /// # Errors
    /// The call's.
    pub(super) fn look(&self, call: &Call, left: u64) -> Result<Option<i64>, c_int> {
        match self {
            Self::Epoll { epoll, most } => look_at_epoll(call, epoll, *most),
            Self::Each { polled, form, .. } => {
                let mut looked: Vec<pollfd> = polled
                    .iter()
                    .map(|one| pollfd {
                        fd: one.own.as_ref().map_or(-1, AsRawFd::as_raw_fd),
                        events: one.events,
                        revents: 0,
                    })
                    .collect();
                // SAFETY: as many as there are.
                let ready =
                    unsafe { libc::poll(looked.as_mut_ptr(), looked.len() as libc::nfds_t, 0) };
                if ready < 0 {
                    return Err(Errno::last_raw());
                }
                for (one, looked) in polled.iter().zip(&mut looked) {
                    if one.own.is_none() && one.number >= 0 {
                        looked.revents = libc::POLLNVAL;
                    }
                    looked.fd = one.number;
                }
                match *form {
                    Form::Array => tell_array(call, &looked),
                    Form::Sets { count, left: told } => {
                        tell_sets(call, &looked, count, (told, left))
                    }
                }
            }
        }
    }

    /// What the caller finds when its time is over.
    ///
    /// # Errors
    /// The call's.
    pub(super) fn give_up(&self, call: &Call) -> Result<(), c_int> {
        match self {
            Self::Epoll { .. } => Ok(()),
            Self::Each { polled, form, .. } => match *form {
                Form::Array => {
                    let none = |one: &Polled| pollfd {
                        fd: one.number,
                        events: one.events,
                        revents: 0,
                    };
                    let all: Vec<pollfd> = polled.iter().map(none).collect();
                    call.thread.put_array(call.long(0), &all)
                }
                Form::Sets { count, left } => {
                    put_sets(
                        call,
                        count,
                        &sets(call, count)?.map(|set| vec![0; set.len()]),
                    )?;
                    left.tell(call, 0)
                }
            },
        }
    }
}

fn look_at_epoll(call: &Call, epoll: &OwnedFd, most: usize) -> Result<Option<i64>, c_int> {
    let mut events = vec![epoll_event { events: 0, u64: 0 }; most];
    // SAFETY: as many as there is room for.
    let ready = unsafe {
        let room = c_int::try_from(events.len()).unwrap_or(c_int::MAX);
        libc::epoll_wait(epoll.as_raw_fd(), events.as_mut_ptr(), room, 0)
    };
    match usize::try_from(ready) {
        Err(_) => Err(Errno::last_raw()),
        Ok(0) => Ok(None),
        Ok(count) => {
            call.thread
                .put_array(call.long(1), events.get(..count).unwrap_or_default())?;
            Ok(Some(i64::from(ready)))
        }
    }
}

fn tell_array(call: &Call, looked: &[pollfd]) -> Result<Option<i64>, c_int> {
    let ready = looked.iter().filter(|one| one.revents != 0).count();
    if ready == 0 {
        return Ok(None);
    }
    call.thread.put_array(call.long(0), looked)?;
    Ok(i64::try_from(ready).ok())
}

/// The three sets of a `select`; those that are not given are empty.
fn sets(call: &Call, count: u64) -> Result<[Vec<u64>; 3], c_int> {
    let words = usize::try_from(count.div_ceil(WORD_BITS)).map_err(|_| libc::EINVAL)?;
    let read = |index| match call.long(index) {
        0 => Ok(Vec::new()),
        address => call.thread.array(address, words),
    };
    Ok([read(1)?, read(2)?, read(3)?])
}

fn put_sets(call: &Call, count: u64, sets: &[Vec<u64>; 3]) -> Result<(), c_int> {
    let words = usize::try_from(count.div_ceil(WORD_BITS)).map_err(|_| libc::EINVAL)?;
    for (index, set) in (1..).zip(sets) {
        if call.long(index) != 0 {
            let all = set.get(..words).unwrap_or_default();
            call.thread.put_array(call.long(index), all)?;
        }
    }
    Ok(())
}

fn tell_sets(
    call: &Call,
    looked: &[pollfd],
    count: u64,
    (told, left): (Left, u64),
) -> Result<Option<i64>, c_int> {
    let given = sets(call, count)?;
    let mut found = given.each_ref().map(|set| vec![0; set.len()]);
    let mut ready = 0;
    for one in looked {
        let (word, bit) = place(u64::from(one.fd.unsigned_abs()));
        let kinds = [READABLE, WRITABLE, EXCEPTIONAL];
        for ((found, given), kind) in found.iter_mut().zip(&given).zip(kinds) {
            let is_wanted = given.get(word).is_some_and(|it| it & bit != 0);
            if let Some(found) = found.get_mut(word)
                && is_wanted
                && one.revents & kind != 0
            {
                *found |= bit;
                ready += 1;
            }
        }
    }
    if ready == 0 {
        return Ok(None);
    }
    put_sets(call, count, &found)?;
    told.tell(call, left)?;
    Ok(Some(ready))
}
