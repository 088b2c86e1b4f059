//! What `xfrmd clock` asks, between the command line and the daemon.

use serde_json::{Value, json};

/// What is to become of a virtual clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Nothing: it is only shown.
    Show,
    /// It moves on by so many nanoseconds, from one timer to the next.
    Advance(u64),
    /// It moves on until something happens.
    Until(Event),
    /// It moves by itself, whenever everything is idle.
    Auto,
    /// It stands again.
    Stop,
}

/// What a clock can be moved up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// An SA with this SPI has expired, softly or hard.
    Expire(u32),
    /// A key manager is asked for an SA.
    Acquire,
    /// A protected packet has come or gone.
    Packet,
    /// Everything is idle: time does not move.
    Idle,
}

impl Order {
    /// As a request has it.
    pub(crate) fn to_json(self) -> Value {
        match self {
            Self::Show => json!({"do": "show"}),
            Self::Advance(nanos) => json!({"do": "advance", "nanos": nanos}),
            Self::Until(Event::Expire(spi)) => json!({"do": "expire", "spi": spi}),
            Self::Until(Event::Acquire) => json!({"do": "acquire"}),
            Self::Until(Event::Packet) => json!({"do": "packet"}),
            Self::Until(Event::Idle) => json!({"do": "idle"}),
            Self::Auto => json!({"do": "auto"}),
            Self::Stop => json!({"do": "stop"}),
        }
    }

    /// Reads it.
    pub(crate) fn from_json(text: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(text).ok()?;
        Some(match value.get("do")?.as_str()? {
            "show" => Self::Show,
            "advance" => Self::Advance(value.get("nanos")?.as_u64()?),
            "expire" => {
                let spi = value.get("spi")?.as_u64()?;
                Self::Until(Event::Expire(u32::try_from(spi).ok()?))
            }
            "acquire" => Self::Until(Event::Acquire),
            "packet" => Self::Until(Event::Packet),
            "idle" => Self::Until(Event::Idle),
            "auto" => Self::Auto,
            "stop" => Self::Stop,
            _ => return None,
        })
    }
}

/// Nanoseconds of `1h`, `90s`, `1h30m`, `250ms`; a bare number is seconds.
pub(crate) fn parse_duration(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 7] = [
        ("ns", 1),
        ("us", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
        ("d", 86_400_000_000_000),
    ];
    let wrong = || format!("{text:?} is no duration: 1h, 90s, 1h30m, 250ms");
    if let Ok(secs) = text.parse::<u64>() {
        return secs.checked_mul(1_000_000_000).ok_or_else(wrong);
    }
    let (mut sum, mut rest) = (0_u64, text);
    while !rest.is_empty() {
        let digits = rest
            .find(|it: char| !it.is_ascii_digit())
            .ok_or_else(wrong)?;
        let (number, behind) = rest.split_at(digits);
        let letters = behind
            .find(|it: char| it.is_ascii_digit())
            .unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(letters);
        let unit = UNITS.iter().find(|it| it.0 == unit).ok_or_else(wrong)?.1;
        let number: u64 = number.parse().map_err(|_| wrong())?;
        sum = number
            .checked_mul(unit)
            .and_then(|more| sum.checked_add(more))
            .ok_or_else(wrong)?;
        rest = behind;
    }
    match sum {
        0 if text.is_empty() => Err(wrong()),
        sum => Ok(sum),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let second = 1_000_000_000;
        assert_eq!(parse_duration("90s"), Ok(90 * second));
        assert_eq!(parse_duration("1h30m"), Ok(5400 * second));
        assert_eq!(parse_duration("250ms"), Ok(second / 4));
        assert_eq!(parse_duration("7"), Ok(7 * second));
        assert_eq!(parse_duration("2d"), Ok(172_800 * second));
        for wrong in ["", "s", "1", "1x", "h1", "-1s", "1.5s", "99999999999d"] {
            assert_eq!(parse_duration(wrong).is_err(), wrong != "1", "{wrong}");
        }
    }

    #[test]
    fn orders_survive_the_wire() {
        for order in [
            Order::Show,
            Order::Advance(7),
            Order::Until(Event::Expire(0xdead_beef)),
            Order::Until(Event::Acquire),
            Order::Until(Event::Packet),
            Order::Until(Event::Idle),
            Order::Auto,
            Order::Stop,
        ] {
            let text = order.to_json().to_string();
            assert_eq!(Order::from_json(text.as_bytes()), Some(order));
        }
        assert_eq!(Order::from_json(b"{\"do\":\"run\"}"), None);
        assert_eq!(Order::from_json(b"{\"do\":\"advance\"}"), None);
    }
}
