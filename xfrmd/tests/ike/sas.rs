//! The SAs of a host, as `ip -s xfrm state` tells them.

use std::collections::BTreeMap;

use crate::host::{Host, eventually};

/// Of one SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) bytes: u64,
    pub(crate) packets: u64,
}

/// By destination, protocol and SPI.
pub(crate) type Sas = BTreeMap<String, Traffic>;

impl Host {
    pub(crate) fn sas(&mut self) -> Sas {
        let text = self.shell.sh("ip -s xfrm state");
        let mut sas = Sas::new();
        let (mut destination, mut name, mut current) = ("", String::new(), false);
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["src", _, "dst", address] => destination = address,
                ["proto", protocol, "spi", spi, ..] => {
                    name = format!("{destination} {protocol} {}", &spi[..10]);
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
#[track_caller]
pub(crate) fn agreed(a: &mut Host, b: &mut Host) -> Sas {
    let mut seen = None;
    eventually("both ends count the same", || {
        let both = (a.sas(), b.sas());
        let same = both.0 == both.1;
        if !same && seen.as_ref() != Some(&both) {
            eprintln!("not the same yet: {both:?}");
            seen = Some(both);
            return None;
        }
        same.then_some(both.0)
    })
}
