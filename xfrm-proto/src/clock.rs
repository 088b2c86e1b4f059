//! A virtual clock as programs see it: the page in which they read the time, and what they ask of it.
//!
//! The daemon owns the page and is the only one that writes to it. A program maps it, so that reading a
//! clock costs a load. All clocks differ from boot time by an offset that stays the same.
//! What waits for a time tells the daemon over a control connection of its own ([`Request::Wait`]);
//! when the time has come, the connection becomes readable and the connection's word in the page changes, which
//! is for waits for a futex.
//!
//! [`Request::Wait`]: crate::control::Request::Wait

use core::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};

/// The variable that says which clock a run has, outside as a wish and inside as a fact.
pub const ENV_CLOCK: &str = "XFRMD_CLOCK";
/// Connections that can wait for a futex.
pub const WORDS: usize = 16384;
/// What a page begins with.
pub const LAYOUT: u32 = 0x7866_0001;

/// The page.
#[derive(Debug)]
#[repr(C)]
pub struct Page {
    /// [`LAYOUT`].
    pub layout: AtomicU32,
    /// Not 0 while time moves by itself.
    pub moves: AtomicU32,
    /// The present, as boot time in nanoseconds.
    pub boot_nanos: AtomicU64,
    /// What monotonic time has more than boot time.
    pub monotonic: AtomicI64,
    /// What wall time has more than boot time.
    pub real: AtomicI64,
    /// A word of each connection, which changes when what it waits for has come.
    pub words: [AtomicU32; WORDS],
}

impl Page {
    /// The present, as boot time in nanoseconds.
    #[must_use]
    pub fn boot(&self) -> u64 {
        self.boot_nanos.load(Ordering::Acquire)
    }
}

/// What a clock counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// The start of the machine.
    Boot,
    /// The same, without the time in which it was suspended.
    Monotonic,
    /// 1970.
    Real,
}

impl Base {
    /// Of a clock's number (`linux/time.h`), for those that are virtual: not for those that measure a processor's time or a
    /// device's.
    #[must_use]
    pub fn of(clock: i32) -> Option<Self> {
        Some(match clock {
            // REALTIME, REALTIME_COARSE, REALTIME_ALARM, TAI.
            0 | 5 | 8 | 11 => Self::Real,
            // MONOTONIC, MONOTONIC_RAW, MONOTONIC_COARSE.
            1 | 4 | 6 => Self::Monotonic,
            // BOOTTIME, BOOTTIME_ALARM.
            7 | 9 => Self::Boot,
            _ => return None,
        })
    }

    fn offset(self, page: &Page) -> i64 {
        match self {
            Self::Boot => 0,
            Self::Monotonic => page.monotonic.load(Ordering::Relaxed),
            Self::Real => page.real.load(Ordering::Relaxed),
        }
    }

    /// What a clock shows, in nanoseconds.
    #[must_use]
    pub fn now(self, page: &Page) -> u64 {
        page.boot().saturating_add_signed(self.offset(page))
    }

    /// The boot time at which it shows that.
    #[must_use]
    pub fn boot_at(self, page: &Page, nanos: u64) -> u64 {
        nanos.saturating_add_signed(self.offset(page).saturating_neg())
    }
}

/// A signal or a descriptor that tells of a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TimerKind {
    /// `setitimer(ITIMER_REAL)` and `alarm`: the process's only one.
    Interval = 0,
    /// `timer_create`.
    Posix = 1,
    /// `timerfd_create`.
    Descriptor = 2,
}

impl TimerKind {
    fn from_wire(number: u64) -> Option<Self> {
        [Self::Interval, Self::Posix, Self::Descriptor]
            .into_iter()
            .find(|&kind| kind as u64 == number)
    }
}

/// What a program sets a timer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerSetting {
    /// Which kind.
    pub kind: TimerKind,
    /// The process's number of it, among those of its kind.
    pub number: u64,
    /// When it is due next, as boot time in nanoseconds; 0 for never.
    pub due: u64,
    /// Nanoseconds from then to the next time; 0 for no next time.
    pub interval: u64,
    /// The signal, 0 for none.
    pub signal: u32,
    /// The thread that is to get it, 0 for any.
    pub thread: u32,
    /// What the signal carries.
    pub value: u64,
}

/// Bytes of a [`TimerSetting`].
pub const SETTING_BYTES: usize = 48;

impl TimerSetting {
    /// The wire form.
    #[must_use]
    pub fn encode(&self) -> [u8; SETTING_BYTES] {
        let words = [
            self.kind as u64,
            self.number,
            self.due,
            self.interval,
            u64::from(self.signal) << 32 | u64::from(self.thread),
            self.value,
        ];
        let mut out = [0; SETTING_BYTES];
        for (to, from) in out.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&from.to_ne_bytes());
        }
        out
    }

    /// Reads it.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; SETTING_BYTES] = bytes.try_into().ok()?;
        let word = |index: usize| -> Option<u64> {
            let word = bytes.get(index * 8..index * 8 + 8)?;
            Some(u64::from_ne_bytes(word.try_into().ok()?))
        };
        let both = word(4)?;
        Some(Self {
            kind: TimerKind::from_wire(word(0)?)?,
            number: word(1)?,
            due: word(2)?,
            interval: word(3)?,
            signal: u32::try_from(both >> 32).ok()?,
            thread: u32::try_from(both & u64::from(u32::MAX)).ok()?,
            value: word(5)?,
        })
    }
}

/// What a timer was set to, or is: when it is due and its interval, in nanoseconds. The answer to a
/// setting, and to a question.
#[must_use]
pub fn encode_remaining(due: u64, interval: u64) -> [u8; 16] {
    let mut out = [0; 16];
    for (to, from) in out.chunks_exact_mut(8).zip([due, interval]) {
        to.copy_from_slice(&from.to_ne_bytes());
    }
    out
}

/// Reads it.
#[must_use]
pub fn decode_remaining(bytes: &[u8]) -> Option<(u64, u64)> {
    let (due, interval) = bytes.split_at_checked(8)?;
    Some((
        u64::from_ne_bytes(due.try_into().ok()?),
        u64::from_ne_bytes(interval.try_into().ok()?),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_apart_by_what_the_page_says() {
        let page = Page {
            layout: AtomicU32::new(LAYOUT),
            moves: AtomicU32::new(0),
            boot_nanos: AtomicU64::new(100),
            monotonic: AtomicI64::new(-30),
            real: AtomicI64::new(5000),
            words: [const { AtomicU32::new(0) }; WORDS],
        };
        for (clock, now) in [(0, 5100), (1, 70), (7, 100), (11, 5100)] {
            let base = Base::of(clock).unwrap();
            assert_eq!(base.now(&page), now);
            assert_eq!(base.boot_at(&page, now + 7), 107);
        }
        // A process's and a thread's processor time.
        assert_eq!([2, 3, -1].map(Base::of), [None; 3]);
    }

    #[test]
    fn a_setting_is_read_as_it_was_written() {
        let setting = TimerSetting {
            kind: TimerKind::Posix,
            number: 3,
            due: u64::MAX,
            interval: 5,
            signal: 34,
            thread: 4242,
            value: 1 << 60,
        };
        let bytes = setting.encode();
        assert_eq!(TimerSetting::decode(&bytes), Some(setting));
        assert_eq!(TimerSetting::decode(&bytes[1..]), None);
        let mut unknown = bytes;
        unknown[0] = 9;
        assert_eq!(TimerSetting::decode(&unknown), None);
        assert_eq!(decode_remaining(&encode_remaining(7, 9)), Some((7, 9)));
        assert_eq!(decode_remaining(&[0; 15]), None);
    }
}
