//! Moving a virtual clock: from one timer to the next, whenever everything is idle.
//!
//! Time moves when somebody has asked for it ([`Order`]) or when it moves by itself. Then, whenever nothing has
//! come for the daemon to do, [`Looks`] tell whether everything sleeps; if so, time jumps to the
//! next timer, the engine's or a program's, and that one timer runs. Everything that it sets
//! going comes to rest before the next one runs, so the order of events is that of real time.
//! The engine's timers run before those of programs that are due at the same time.
//!
//! While a program is busy time stands. It is told to go on all the same, if somebody has asked for it, after
//! [`PATIENCE`] of the host's time: real time does not wait for programs either.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use dataplane::BootNanos;
use dataplane::sad::SaHandle;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::EpollTimeout;
use nix::sys::time::TimeSpec;
use serde_json::{Value, json};
use xfrm_proto::consts::{XFRM_INF, group};
use xfrm_proto::uapi::LifetimeCfg;
use xfrmd::emulator::NetnsId;

use super::looks::Looks;
use super::order::{Event, Order};
use super::uptime;
use super::waits::{Waiter, Waits};
use crate::driver::Daemon;

/// Between two looks: what the host's kernel does on its own account, such as handing on a packet, is done
/// within.
const GAP: Duration = Duration::from_micros(500);
/// The same where no packets are carried.
const SMALL_GAP: Duration = Duration::from_micros(50);
/// How long a busy program holds a clock up that somebody moves, in nanoseconds.
const PATIENCE: u64 = 10_000_000_000;
/// Milliseconds between looks when the first has found somebody busy, and at most while there is nothing to wait
/// for.
const PAUSE: u16 = 1;
const LONGEST_PAUSE: u16 = 16;
/// Where an expiry has its SPI: `nlmsghdr`, then selector and destination of `xfrm_usersa_info`.
const SPI_AT: usize = 16 + 56 + 16;

/// What somebody has asked for and waits for.
struct Goal {
    /// The connection that gets the answer.
    connection: u64,
    wish: Wish,
    /// It has happened; what follows from it has to come to rest.
    reached: bool,
    /// The host's time of the last step.
    since: u64,
    steps: u64,
}

enum Wish {
    /// This time.
    Time(BootNanos),
    /// An expiry, and whose.
    Expire {
        spi: u32,
        sa: (NetnsId, SaHandle),
    },
    Acquire,
    /// More packets than there were.
    Packet(u64),
    Idle,
}

/// What moves a clock.
pub(in crate::driver) struct Motion {
    looks: Looks,
    pub(super) waits: Waits,
    goal: Option<Goal>,
    /// Looks find nothing to wait for; how long to wait until the next.
    pause: u16,
}

impl Motion {
    /// Of a run whose first process is `root`.
    pub(in crate::driver) fn new(root: u32) -> io::Result<Self> {
        Ok(Self {
            looks: Looks::new(root)?,
            waits: Waits::default(),
            goal: None,
            pause: PAUSE,
        })
    }

    /// Forgets what a connection has waited for.
    pub(in crate::driver) fn forget(&mut self, connection: u64) {
        self.waits.unwait(connection);
        self.goal.take_if(|goal| goal.connection == connection);
    }

    /// Sees what is multicast.
    pub(in crate::driver) fn see(&mut self, multicast: u32, bytes: &[u8]) {
        let Some(goal) = &mut self.goal else { return };
        goal.reached |= match goal.wish {
            Wish::Expire { spi, .. } => {
                let seen = bytes.get(SPI_AT..SPI_AT + 4);
                multicast == group::EXPIRE && seen == Some(&spi.to_be_bytes())
            }
            Wish::Acquire => multicast == group::ACQUIRE,
            _ => false,
        };
    }
}

/// What is to be done with a clock that could move.
enum Next {
    /// Nothing: it stands.
    Stand,
    /// Somebody's wish has come true, or cannot.
    Answer(Result<(), String>),
    /// It jumps, and the engine's timers run.
    Engine(BootNanos),
    /// It jumps, and one program is told.
    Program(BootNanos),
}

impl Daemon {
    /// Moves time if it is to move and everything is idle; to be called after every turn of the loop, with the number
    /// of events that it had. How long the loop may wait.
    pub(in crate::driver) fn move_clock(&mut self, events: usize) -> EpollTimeout {
        let Some(page) = self.clock.page() else {
            return EpollTimeout::NONE;
        };
        let by_itself = page.moves_by_itself();
        let Some(motion) = &mut self.motion else {
            return EpollTimeout::NONE;
        };
        if !by_itself && motion.goal.is_none() {
            return EpollTimeout::NONE;
        }
        if events > 0 {
            motion.pause = PAUSE;
            return EpollTimeout::ZERO;
        }
        let gap = if self.inquiries.is_some() {
            GAP
        } else {
            SMALL_GAP
        };
        let clients = self.connections.iter().flatten();
        let clients = clients.filter_map(|it| u32::try_from(it.peer.pid).ok());
        let idle = motion.looks.all_sleep(clients.filter(|&pid| pid != 0)) && {
            let mut fds = [PollFd::new(self.epoll.0.as_fd(), PollFlags::POLLIN)];
            let nothing = ppoll(&mut fds, Some(TimeSpec::from_duration(gap)), None);
            if nothing != Ok(0) {
                return EpollTimeout::ZERO;
            }
            motion.looks.still_sleep()
        };
        let tired = motion
            .goal
            .as_ref()
            .is_some_and(|goal| uptime().0.saturating_sub(goal.since) > PATIENCE);
        if !idle && !tired {
            return PAUSE.into();
        }
        match self.next_step() {
            Next::Stand => {
                let Some(motion) = &mut self.motion else {
                    return EpollTimeout::NONE;
                };
                let pause = motion.pause;
                motion.pause = (2 * pause).min(LONGEST_PAUSE);
                return pause.into();
            }
            Next::Answer(outcome) => self.answer_goal(outcome),
            Next::Engine(at) => {
                self.jump(at);
                self.run_engine_timers();
            }
            Next::Program(at) => {
                self.jump(at);
                self.tell_one();
            }
        }
        EpollTimeout::ZERO
    }

    fn next_step(&self) -> Next {
        let Some(motion) = &self.motion else {
            return Next::Stand;
        };
        let now = self.clock.now().boot;
        let engine = self.next_timer().map(|at| at.max(now));
        let program = motion.waits.next().map(|at| at.max(now));
        let next = match (engine, program) {
            (Some(engine), Some(program)) if program < engine => Some(Next::Program(program)),
            (Some(engine), _) => Some(Next::Engine(engine)),
            (None, Some(program)) => Some(Next::Program(program)),
            (None, None) => None,
        };
        let at = engine.into_iter().chain(program).min();
        let Some(goal) = &motion.goal else {
            return next.unwrap_or(Next::Stand);
        };
        if goal.reached {
            return Next::Answer(Ok(()));
        }
        match goal.wish {
            Wish::Time(until) => {
                if at.is_none_or(|at| at > until) {
                    return Next::Answer(Ok(()));
                }
            }
            Wish::Idle => return Next::Answer(Ok(())),
            Wish::Packet(before) if self.packets_so_far() > before => return Next::Answer(Ok(())),
            Wish::Expire { spi, sa: (id, sa) } => {
                let netns = self.emulator.netns(id);
                if netns.is_none_or(|netns| netns.sad.by_handle(sa).is_none()) {
                    return Next::Answer(Err(format!(
                        "the SA {spi:#x} was deleted before it expired"
                    )));
                }
            }
            Wish::Acquire | Wish::Packet(_) => {}
        }
        next.unwrap_or_else(|| {
            Next::Answer(Err(
                "nothing is left to wait for: no timer of an SA, a policy or a program".to_owned(),
            ))
        })
    }

    fn jump(&mut self, at: BootNanos) {
        if let Some(page) = self.clock.page() {
            page.advance_to(at);
        }
        if let Some(motion) = &mut self.motion {
            motion.pause = PAUSE;
            if let Some(goal) = &mut motion.goal {
                goal.since = uptime().0;
                goal.steps += 1;
            }
        }
    }

    /// Tells the first program whose time has come.
    fn tell_one(&mut self) {
        let now = self.clock.now().boot;
        let told = self.motion.as_mut().and_then(|it| it.waits.take_due(now));
        let Some(Waiter::Connection(id)) = told else {
            return;
        };
        let of_number = |it: &Option<_>| Self::is_connection(it, id);
        if let Some(index) = self.connections.iter().position(of_number) {
            if let Some(page) = self.clock.page() {
                page.wake(index);
            }
            self.say(index, &[]);
        }
    }

    fn packets_so_far(&self) -> u64 {
        self.following.values().map(|it| it.packets()).sum()
    }

    fn answer_goal(&mut self, outcome: Result<(), String>) {
        let Some(goal) = self.motion.as_mut().and_then(|it| it.goal.take()) else {
            return;
        };
        if let (Wish::Time(until), Ok(())) = (&goal.wish, &outcome) {
            self.jump(*until);
        }
        let mut shown = self.shown_clock();
        if let Value::Object(fields) = &mut shown {
            fields.insert("steps".to_owned(), goal.steps.into());
            if let Err(text) = outcome {
                fields.insert("error".to_owned(), text.into());
            }
        }
        let of_number = |it: &Option<_>| Self::is_connection(it, goal.connection);
        if let Some(index) = self.connections.iter().position(of_number) {
            self.say(index, shown.to_string().as_bytes());
        }
    }

    /// What `xfrmd clock` shows.
    fn shown_clock(&self) -> Value {
        let now = self.clock.now();
        let (Some(page), Some(motion)) = (self.clock.page(), &self.motion) else {
            return json!({"clock": "real", "boot": now.boot.0, "real": now.real.0});
        };
        json!({
            "clock": "virtual",
            "auto": page.moves_by_itself(),
            "boot": now.boot.0,
            "real": now.real.0,
            "waiting": motion.waits.len(),
            "next": self.next_timer().into_iter().chain(motion.waits.next()).min().map(|it| it.0),
        })
    }

    /// Does what is asked of the clock. None if the answer comes when it has been done.
    pub(in crate::driver) fn order_clock(&mut self, connection: u64, text: &[u8]) -> Option<Value> {
        let wrong = |text: &str| Some(json!({ "error": text }));
        let Some(order) = Order::from_json(text) else {
            return wrong("that is no order for a clock");
        };
        if order == Order::Show {
            return Some(self.shown_clock());
        }
        let Some(page) = self.clock.page() else {
            return wrong(
                "the clock is the host's: only a virtual one can be moved \
                 (xfrmd run --clock virtual -- COMMAND)",
            );
        };
        let now = self.clock.now().boot;
        let wish = match order {
            Order::Auto | Order::Stop => {
                page.set_moves_by_itself(order == Order::Auto);
                return Some(self.shown_clock());
            }
            Order::Show => return None,
            Order::Advance(nanos) => Wish::Time(now.plus_nanos(nanos)),
            Order::Until(Event::Idle) => Wish::Idle,
            Order::Until(Event::Acquire) => Wish::Acquire,
            Order::Until(Event::Packet) if self.inquiries.is_none() => {
                return wrong("no packets are carried (--packets)");
            }
            Order::Until(Event::Packet) => Wish::Packet(self.packets_so_far()),
            Order::Until(Event::Expire(spi)) => match self.expiring(spi) {
                Ok(sa) => Wish::Expire { spi, sa },
                Err(text) => return wrong(&text),
            },
        };
        let motion = self.motion.as_mut()?;
        if motion.goal.is_some() {
            return wrong("another command moves the clock already");
        }
        motion.goal = Some(Goal {
            connection,
            wish,
            reached: false,
            since: uptime().0,
            steps: 0,
        });
        None
    }

    /// The SA with an SPI that some limit will end.
    fn expiring(&self, spi: u32) -> Result<(NetnsId, SaHandle), String> {
        let mut found = Err(format!("there is no SA with the SPI {spi:#x}"));
        for &id in self.instances.keys() {
            let Some(netns) = self.emulator.netns(id) else {
                continue;
            };
            let ids = netns.sad.iter().filter(|(_, sa)| sa.id.spi.get() == spi);
            for (sa_id, sa) in ids {
                if has_limit(&sa.lft) {
                    return Ok((id, sa.handle(sa_id)));
                }
                found = Err(format!(
                    "the SA {spi:#x} has no limit: it will never expire"
                ));
            }
        }
        found
    }
}

/// Whether some limit can end an SA.
fn has_limit(lft: &LifetimeCfg) -> bool {
    let times = [
        lft.soft_add_expires_seconds,
        lft.hard_add_expires_seconds,
        lft.soft_use_expires_seconds,
        lft.hard_use_expires_seconds,
    ];
    let amounts = [
        lft.soft_byte_limit,
        lft.hard_byte_limit,
        lft.soft_packet_limit,
        lft.hard_packet_limit,
    ];
    times.iter().any(|&limit| limit != 0) || amounts.iter().any(|&limit| limit != XFRM_INF)
}
