//! Virtual time, measured by the host's: `xfrmd run --clock`.
//!
//! * A hundred hours in which a thousand SAs are rekeyed hourly, each at its own time, as an IKE daemon
//!   does it: a soft expiry comes, a new SA is made, the old one deleted.
//! * An hour of one SA: how long after `xfrmd clock advance` has been told `ip xfrm monitor` has
//!   printed the soft and the hard expiry.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use xfrm_proto::consts::*;
use xfrm_proto::reply::messages;
use xfrm_proto::uapi::UserExpire;
use zerocopy::FromBytes as _;

use crate::client::{Client, report};
use crate::figure::{Figure, Target};
use crate::messages as msg;
use crate::sockets::{beside_me, client, value};
use crate::stopwatch::{median, time};

const SAS: u32 = 1000;
const HOURS: u32 = 100;
const HOUR: u64 = 3600;
/// Soft and hard.
const LIFETIME: [u64; 2] = [HOUR, HOUR + HOUR / 10];
/// SAs whose expiries a monitor is asked for.
const MONITORED: u32 = 11;

pub(crate) fn run() -> Result<Vec<Figure>> {
    let mut all = vec![hundred_hours()?];
    all.extend(an_hour()?);
    Ok(all)
}

fn hundred_hours() -> Result<Figure> {
    let mut results = Err(anyhow::anyhow!("it has not run"));
    let nanos = time(|| {
        results = beside_me("xfrmd").and_then(|program| {
            let mut command = Command::new(program);
            command.args(["run", "--clock", "auto", "--"]);
            command.arg(std::env::current_exe()?);
            client(command, &["rekey", &SAS.to_string(), &HOURS.to_string()])
        });
    });
    let results = results?;
    let rekeyings = value(&results, "rekeyings")?;
    let expected = f64::from(SAS * (HOURS - 1));
    if rekeyings < expected || value(&results, "hard")? != 0.0 {
        bail!("rekeyings: {results:?}, at least {expected} are expected");
    }
    Ok(Figure {
        name: "hours: 100 with 1,000 SAs rekeyed hourly".to_owned(),
        ours: nanos / 1e9,
        yardstick: 10.0,
        unit: "s",
        against: "target",
        target: Target::AtMost(1.0),
    })
}

/// The other half: makes `SAS` SAs, spread over an hour, and rekeys what expires until `HOURS` are over.
pub(crate) fn rekey(client: &mut Client, args: &[String]) -> Result<()> {
    let number = |at: usize| -> Result<u32> { Ok(args.get(at).context("a number")?.parse()?) };
    let (sas, hours) = (number(0)?, number(1)?);
    let mut events = Client::open()?;
    events.join(group::EXPIRE)?;
    #[expect(clippy::disallowed_methods, reason = "the virtual clock's")]
    let start = Instant::now();
    let mut request = Vec::new();
    for sa in 0..sas {
        request.clear();
        msg::put_sa_for(&mut request, NLM_F_ACK, sa, LIFETIME);
        client.send(&request)?;
        client.until_answered()?;
        std::thread::sleep(Duration::from_secs(HOUR) / sas);
    }
    let (mut next, mut hard) = (sas, 0);
    while start.elapsed() < Duration::from_secs(HOUR) * hours {
        for (header, message) in messages(events.recv()?) {
            if header.kind != XFRM_MSG_EXPIRE {
                continue;
            }
            let body = message.get(NLMSG_HDRLEN..).unwrap_or_default();
            let Ok((expiry, _)) = UserExpire::read_from_prefix(body) else {
                bail!("an expiry is too short");
            };
            if expiry.hard != 0 {
                hard += 1;
                continue;
            }
            request.clear();
            msg::put_sa_for(&mut request, 0, next, LIFETIME);
            let old = msg::of_spi(expiry.state.id.spi.get());
            msg::put_sa_id(&mut request, XFRM_MSG_DELSA, NLM_F_ACK, old);
            client.send(&request)?;
            client.until_answered()?;
            next += 1;
        }
    }
    report("rekeyings", f64::from(next - sas));
    report("hard", f64::from(hard));
    Ok(())
}

fn an_hour() -> Result<Vec<Figure>> {
    const MONITOR: &str = "ip xfrm monitor expire & trap \"kill $!\" EXIT";
    const MADE: &str = "$X clock run-until idle > /dev/null; \
         ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x1234 mode tunnel \
         aead 'rfc4106(gcm(aes))' 0x0102030405060708090a0b0c0d0e0f1011121314 128 \
         limit time-soft 3500 limit time-hard 3600; $X clock run-until idle > /dev/null; echo made";
    let xfrmd = beside_me("xfrmd")?;
    let mut command = Command::new(&xfrmd);
    command.args(["run", "--clock", "virtual", "--", "sh"]);
    command.env("X", &xfrmd);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut shell = child.stdin.take().context("a pipe")?;
    let mut said = BufReader::new(child.stdout.take().context("a pipe")?).lines();
    let mut until = |what: &str| -> Result<()> {
        for line in &mut said {
            if line?.trim() == what {
                return Ok(());
            }
        }
        bail!("no {what:?}: needs ip (apt-get install iproute2)")
    };
    writeln!(shell, "{MONITOR}")?;
    let mut samples: [Vec<f64>; 2] = Default::default();
    for _ in 0..MONITORED {
        writeln!(shell, "{MADE}")?;
        until("made")?;
        #[expect(clippy::disallowed_methods, reason = "the host's clock")]
        let start = Instant::now();
        writeln!(shell, "$X clock advance 1h > /dev/null")?;
        for (samples, expiry) in samples.iter_mut().zip(["hard 0", "hard 1"]) {
            until(expiry)?;
            samples.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    drop(shell);
    if !child.wait()?.success() {
        bail!("the shell failed");
    }
    let names = ["soft", "hard"].into_iter().zip(samples);
    let figure = |(name, mut samples): (&str, Vec<f64>)| Figure {
        name: format!("hours: ip monitor, {name} expiry of an hour"),
        ours: median(&mut samples),
        yardstick: 100.0,
        unit: "ms",
        against: "target",
        target: Target::AtMost(1.0),
    };
    Ok(names.map(figure).collect())
}
