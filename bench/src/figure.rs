//! One line a figure: ours, the yardstick from the same run, the ratio, the target.

use std::fmt;

/// What the ratio of ours to the yardstick must be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
    /// Nothing: the figure is for comparing runs.
    Nothing,
}

/// A figure.
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) ours: f64,
    pub(crate) yardstick: f64,
    pub(crate) unit: &'static str,
    /// What the yardstick is.
    pub(crate) against: &'static str,
    pub(crate) target: Target,
}

impl Figure {
    /// Of one packet, where it was measured of several.
    pub(crate) fn each_of(self, packets: usize) -> Self {
        Self {
            ours: self.ours / packets as f64,
            yardstick: self.yardstick / packets as f64,
            ..self
        }
    }

    fn ratio(&self) -> f64 {
        self.ours / self.yardstick
    }

    pub(crate) fn met(&self) -> bool {
        match self.target {
            Target::AtMost(limit) => self.ratio() <= limit,
            Target::AtLeast(limit) => self.ratio() >= limit,
            Target::Nothing => true,
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, limit) = match self.target {
            Target::AtMost(limit) => ("<=", limit),
            Target::AtLeast(limit) => (">=", limit),
            Target::Nothing => ("", f64::NAN),
        };
        write!(
            f,
            "{:<38} {:>10} {:<3} {:>10} {:<3} ({}) {:>8}x",
            self.name,
            number(self.ours),
            self.unit,
            number(self.yardstick),
            self.unit,
            self.against,
            number(self.ratio()),
        )?;
        if limit.is_nan() {
            return Ok(());
        }
        write!(
            f,
            "  target {sign} {}x  {}",
            number(limit),
            if self.met() { "met" } else { "MISSED" },
        )
    }
}

fn number(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.3}")
    }
}
