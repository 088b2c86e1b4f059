//! What `--record` costs: daemons at both ends record, or do not.

use std::fs::File;
use std::path::PathBuf;

use anyhow::Result;

use super::carriers::Carrier;
use super::{ROUNDS, TIME, load};
use crate::figure::{Figure, Target};
use crate::stopwatch::median;

/// Recordings of a carrier's two ends, in a folder of their own.
struct Files {
    folder: PathBuf,
    files: [PathBuf; 2],
}

impl Files {
    fn new(name: &str) -> Result<Self> {
        let folder = format!("xfrmd-recorded-{}-{name}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        std::fs::create_dir_all(&folder)?;
        let files = ["a", "b"].map(|end| folder.join(end));
        Ok(Self { folder, files })
    }

    fn options(&self, keys: bool) -> [Vec<String>; 2] {
        self.files.each_ref().map(|file| {
            let keys = keys.then(|| "--record-keys".to_owned());
            let record = ["--record".to_owned(), file.to_string_lossy().into_owned()];
            record.into_iter().chain(keys).collect()
        })
    }

    /// Makes room; daemons go on behind what was there.
    fn forget(&self) -> Result<()> {
        for file in &self.files {
            File::options().write(true).open(file)?.set_len(0)?;
        }
        Ok(())
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The figures.
pub(crate) fn run() -> Result<Vec<Figure>> {
    if !nix::unistd::geteuid().is_root() || File::open("/dev/net/tun").is_err() {
        anyhow::bail!("recording needs root and /dev/net/tun");
    }
    let (plain, whole) = (Files::new("plain")?, Files::new("whole")?);
    let not = "not recorded";
    let recorded = [
        ("recorded", Some((&plain, false))),
        ("recorded with keys and payloads", Some((&whole, true))),
    ];
    let mut carriers = Vec::new();
    for (name, files) in [(not, None)].into_iter().chain(recorded) {
        let options = files.map(|(files, keys)| files.options(keys));
        let options = options.unwrap_or_default();
        let carrier = Carrier::ours_with(name, true, 1, &options)?;
        carriers.push((carrier, files.map(|(files, _)| files)));
    }
    // One Vec a carrier of TCP and UDP each.
    let mut rates: Vec<[Vec<f64>; 2]> = carriers.iter().map(|_| Default::default()).collect();
    for round in 1..=ROUNDS {
        for ((carrier, files), [all_tcp, all_udp]) in carriers.iter().zip(&mut rates) {
            let Carrier { name, pair, to, .. } = carrier;
            let tcp = load::tcp(pair, *to, TIME)?.rate;
            let udp = load::udp(pair, *to, TIME)?;
            if let Some(files) = files {
                files.forget()?;
            }
            eprintln!("{round}/{ROUNDS} {name:<34} TCP {tcp:>6.3} UDP {udp:>6.3} Gbit/s");
            all_tcp.push(tcp);
            all_udp.push(udp);
        }
    }
    let mut medians = rates.iter_mut();
    let mut medians = medians
        .by_ref()
        .map(|it| it.each_mut().map(|it| median(it)));
    let yardsticks = medians.next().unwrap_or_default();
    let mut figures = Vec::new();
    for ((name, _), ours) in recorded.iter().zip(medians) {
        for (at, load) in ["TCP", "UDP 1,400 bytes"].into_iter().enumerate() {
            figures.push(Figure {
                name: format!("{load}, {name}"),
                ours: ours[at],
                yardstick: yardsticks[at],
                unit: "Gb/s",
                against: not,
                target: Target::AtLeast(0.9),
            });
        }
    }
    Ok(figures)
}
