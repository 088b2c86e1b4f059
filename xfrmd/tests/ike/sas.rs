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

impl Host {
    pub(crate) fn sas(&mut self) -> Sas {
        let text = self.shell.sh("ip -s xfrm state");
        let mut sas = Sas::new();
        let (mut name, mut current) = (String::new(), false);
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["proto", protocol, "spi", spi, ..] => {
                    name = format!("{protocol} {}", &spi[..10]);
                }
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
}

/// Both ends have the same SAs and counted the same; those.
///
/// With IPComp, what does not get shorter is counted by the sender's SA for IPComp and the receiver's for
/// IP in IP, so only those for ESP and AH are told.
#[track_caller]
pub(crate) fn agreed(a: &mut Host, b: &mut Host) -> Sas {
    let mut seen = None;
    eventually("both ends count the same", || {
        let sealed = |host: &mut Host| {
            let mut sas = host.sas();
            sas.retain(|name, _| name.starts_with("esp") || name.starts_with("ah"));
            sas
        };
        let both = (sealed(a), sealed(b));
        let same = both.0 == both.1;
        if !same && seen.as_ref() != Some(&both) {
            eprintln!("not the same yet: {both:?}");
            seen = Some(both);
            return None;
        }
        same.then_some(both.0)
    })
}
