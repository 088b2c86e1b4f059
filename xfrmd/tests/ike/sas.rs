//! The SAs of a host, as `ip -s xfrm state` tells them.

use std::collections::BTreeMap;

use crate::host::{Host, eventually};

/// Of one SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) bytes: u64,
    pub(crate) packets: u64,
}

/// By protocol and SPI.
pub(crate) type Sas = BTreeMap<String, Traffic>;

/// What `ip -s xfrm state` says.
pub(crate) fn parse(text: &str) -> Sas {
    let mut sas = Sas::new();
    let (mut name, mut current) = (String::new(), false);
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["proto", protocol, "spi", spi, ..] => name = format!("{protocol} {}", &spi[..10]),
            ["lifetime", "current:"] => current = true,
            [bytes, packets] if current => {
                let number = |text: &str| text.split('(').next()?.parse().ok();
                let traffic = Traffic {
                    bytes: number(bytes).unwrap(),
                    packets: number(packets).unwrap(),
                };
                sas.insert(name.clone(), traffic);
                current = false;
            }
            _ => {}
        }
    }
    sas
}

/// Without those for IPComp: what does not get shorter is counted by the sender's and by the receiver's
/// for IP in IP. And without larval ones, which last where a trap is for another mode than what is agreed.
pub(crate) fn sealed(mut sas: Sas) -> Sas {
    sas.retain(|name, _| {
        (name.starts_with("esp") || name.starts_with("ah")) && !name.ends_with(" 0x00000000")
    });
    sas
}

impl Host {
    pub(crate) fn sas(&mut self) -> Sas {
        parse(&self.shell.sh("ip -s xfrm state"))
    }
}

/// Both ends have the same SAs and counted the same; those.
#[track_caller]
pub(crate) fn agreed(a: &mut Host, b: &mut Host) -> Sas {
    let mut seen = None;
    eventually("both ends count the same", || {
        let both = (sealed(a.sas()), sealed(b.sas()));
        let same = both.0 == both.1;
        if !same && seen.as_ref() != Some(&both) {
            eprintln!("not the same yet: {both:?}");
            seen = Some(both);
            return None;
        }
        same.then_some(both.0)
    })
}
