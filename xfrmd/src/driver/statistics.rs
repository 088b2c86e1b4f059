//! What `xfrmd stat` prints, and what `xfrmd check` looks at.

use serde_json::{Value, json};
use xfrmd::emulator::NetnsId;

use super::Daemon;
use super::connection::{Connection, Reply};
use super::instance::Instance;

impl Daemon {
    /// Counters and table sizes of every instance. Nothing in it is a key or an address.
    pub(super) fn statistics(&mut self) -> Value {
        let ids: Vec<NetnsId> = self.instances.keys().copied().collect();
        for id in ids {
            self.count_dropped(id);
        }
        let mut instances: Vec<&Instance> = self.instances.values().collect();
        instances.sort_by_key(|instance| instance.id);
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "kernel": self.settings.profile.name,
            "shim": self.settings.shim,
            "clients": self.clients(),
            "namespaces": instances
                .iter()
                .map(|instance| self.statistics_of(instance.id, instance))
                .collect::<Vec<_>>(),
        })
    }

    /// The SAs and policies of the namespace with that cookie.
    ///
    /// Made at once, while nothing else is answered: what belongs together is there together.
    pub(super) fn snapshot(&self, connection: &Connection, netns: u64) -> Reply {
        if !self.shows_all_to(connection) {
            return Reply::error(libc::EPERM);
        }
        let id = self.by_cookie.get(&netns);
        let Some(messages) = id.and_then(|&id| self.emulator.snapshot(id)) else {
            return Reply::error(libc::ENOENT);
        };
        let now = self.clock.now().real.0.to_ne_bytes();
        Reply::document([&now[..], &messages].concat())
    }

    /// Connections of client processes, but for the one that asks.
    fn clients(&self) -> usize {
        let own = i32::try_from(std::process::id()).ok();
        let connections = self.connections.iter().flatten();
        connections.filter(|it| Some(it.peer.pid) != own).count()
    }

    fn statistics_of(&self, id: NetnsId, instance: &Instance) -> Value {
        let Some(netns) = self.emulator.netns(id) else {
            return Value::Null;
        };
        let spd = netns.spd.counts();
        let counters: serde_json::Map<String, Value> = netns
            .mib
            .rows(netns.profile)
            .map(|(name, value)| (name, value.into()))
            .collect();
        json!({
            "cookie": instance.netns,
            "own": instance.netns == self.home.cookie,
            "users": instance.users.len(),
            "states": netns.sad.len(),
            "policies": {
                "in": spd.incnt,
                "out": spd.outcnt,
                "fwd": spd.fwdcnt,
                "socket_in": spd.inscnt,
                "socket_out": spd.outscnt,
                "socket_fwd": spd.fwdscnt,
            },
            "carried": self.carried(id),
            "counters": counters,
        })
    }
}
