//! The text of a recording.

use std::collections::BTreeMap;
use std::path::PathBuf;

use dataplane::Profile;

/// A frame, of which a recording may have only the beginning.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    /// Length of all of it.
    pub(crate) bytes: usize,
    /// What was recorded.
    pub(crate) start: Vec<u8>,
}

impl Frame {
    fn read(text: &str) -> Self {
        let (bytes, hex) = text.split_once(':').unwrap_or(("", text));
        let start = unhex(hex);
        Self {
            bytes: bytes.parse().unwrap_or(start.len()),
            start,
        }
    }

    pub(crate) fn matches(&self, packet: &[u8]) -> bool {
        packet.len() == self.bytes && packet.starts_with(&self.start)
    }

    /// All of it; inner packets go on as the recorder makes them, with a to z.
    pub(crate) fn whole(&self) -> Vec<u8> {
        let mut whole = self.start.clone();
        while whole.len() < self.bytes {
            let next = match whole[whole.len() - 1] {
                b'z' => b'a',
                letter => letter + 1,
            };
            whole.push(next);
        }
        whole
    }
}

/// What came out at the other end.
#[derive(Clone, Debug)]
pub(crate) enum Got {
    Same,
    Packet(Frame),
    Payload(Frame),
}

/// One inner packet and what became of it.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    pub(crate) inner: Frame,
    pub(crate) out: Vec<Frame>,
    pub(crate) error: Option<String>,
    pub(crate) wire: Vec<Frame>,
    pub(crate) got: Vec<Got>,
    pub(crate) counter: Option<String>,
}

impl Exchange {
    /// What was put on the wire to the receiver.
    pub(crate) fn wires(&self) -> &[Frame] {
        if self.wire.is_empty() {
            &self.out
        } else {
            &self.wire
        }
    }

    /// The receiving host itself let nothing through, and nothing of XFRM's counted.
    pub(crate) fn nothing_recorded(&self) -> bool {
        self.got.is_empty() && self.counter.is_none()
    }

    pub(crate) fn v6_fragment_ident(&self) -> u32 {
        let start = &self.out[0].start;
        match start[0] >> 4 {
            6 => u32::from_be_bytes(start[44..48].try_into().unwrap()),
            _ => 0,
        }
    }
}

pub(crate) type Params = BTreeMap<String, String>;

pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) profile: &'static Profile,
    /// Innermost first.
    pub(crate) sas: Vec<Params>,
    pub(crate) exchanges: Vec<Exchange>,
}

impl Case {
    /// Whether frames have only their beginning in the recording.
    pub(crate) fn is_brief(&self) -> bool {
        self.name.starts_with("mtu-")
    }
}

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let digit = |c: u8| char::from(c).to_digit(16).unwrap();
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::try_from(digit(pair[0]) * 16 + digit(pair[1])).unwrap())
        .collect()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn read(kernel: &str) -> Vec<Case> {
    let file: PathBuf = [
        env!("CARGO_MANIFEST_DIR"),
        "../compat-tests/packets",
        kernel,
    ]
    .iter()
    .collect();
    let text = std::fs::read_to_string(file.with_file_name(format!("{kernel}.txt"))).unwrap();
    let profile = Profile::by_name(kernel).unwrap();
    let mut cases: Vec<Case> = Vec::new();
    for line in text.lines() {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if word == "case" {
            cases.push(Case {
                name: rest.to_owned(),
                profile,
                sas: Vec::new(),
                exchanges: Vec::new(),
            });
            continue;
        }
        let Some(case) = cases.last_mut() else {
            continue;
        };
        match word {
            "sa" => {
                let pairs = rest.split(' ').filter_map(|pair| pair.split_once('='));
                case.sas
                    .push(pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect());
                continue;
            }
            "in" => {
                case.exchanges.push(Exchange {
                    inner: Frame::read(rest),
                    out: Vec::new(),
                    error: None,
                    wire: Vec::new(),
                    got: Vec::new(),
                    counter: None,
                });
                continue;
            }
            _ => {}
        }
        let Some(exchange) = case.exchanges.last_mut() else {
            continue;
        };
        match word {
            "out" => exchange.out.push(Frame::read(rest)),
            "err" => exchange.error = Some(rest.to_owned()),
            "wire" => exchange.wire.push(Frame::read(rest)),
            "got" if rest == "=" => exchange.got.push(Got::Same),
            "got" => exchange.got.push(Got::Packet(Frame::read(rest))),
            "got-payload" => exchange.got.push(Got::Payload(Frame::read(rest))),
            "mib" => exchange.counter = Some(rest.to_owned()),
            "" | "#" => {}
            _ => panic!("{line}"),
        }
    }
    cases
}
