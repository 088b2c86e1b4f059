#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

use super::*;

fn mistakes(text: &str) -> Vec<(usize, String)> {
    Config::default().read(text)
}

#[test]
fn the_documented_file_says_the_defaults() {
    let file = Config::default().to_file();
    let commented = file.lines().filter(|line| line.starts_with('#')).count();
    assert!(commented > KEYS.len());
    let live: String = file
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(key) if !key.starts_with(' ') => format!("{key}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let mut config = Config::default();
    assert_eq!(config.read(&live), []);
    assert_eq!(config.differences(&Config::default()), []);
    for key in KEYS {
        let name = key.name.rsplit('.').next().unwrap();
        assert!(live.contains(&format!("\n{name} = ")), "{name}");
    }
}

#[test]
fn every_key_is_read_and_written() {
    let text = "kernel = \"6.1\"\npackets = true\ncapture = \"routes\"\nsocket = \"/run/other\"\n\
                limits = { states = 7, policies = 0x8, clients = 1_000 }\n\
                [log]\nlevel = \"debug\"\nformat = \"json\"\n\
                [metrics]\nlisten = [\"[::1]:9\", \"/run/m\"]\n";
    let mut config = Config::default();
    assert_eq!(config.read(text), []);
    let differences = config.differences(&Config::default());
    assert_eq!(differences.len(), KEYS.len());
    assert_eq!(config.limits.max_sas, 7);
    assert_eq!(config.limits.max_policies, 8);
    assert_eq!(config.max_clients, 1000);
    let mut again = Config::default();
    assert_eq!(again.read(&config.to_file()), []);
    assert_eq!(again.differences(&config), []);
}

#[test]
fn a_wrong_key_is_named_with_its_line_and_the_nearest() {
    let text = "packets = true\n\n[limits]\nstate = 5\n[lgo]\nlevel = \"info\"\n";
    let found = mistakes(text);
    let [(4, state), (5, log)] = &found[..] else {
        panic!("{found:?}");
    };
    assert!(state.contains("`limits.state`") && state.contains("`limits.states`"));
    assert!(log.contains("`lgo`"));
    assert!(
        mistakes("xyzzy = 1")[0]
            .1
            .contains("keys are kernel, packets")
    );
    assert!(mistakes("metric.listen = []")[0].1.contains("`metric`"));
}

#[test]
fn a_wrong_value_is_named_with_its_line_and_what_it_is() {
    for (text, line, wanted) in [
        (
            "kernel = \"5.10\"",
            1,
            "`kernel` is \"6.1\", \"6.12\" or \"7.2\"",
        ),
        ("\npackets = \"yes\"", 2, "`packets` is true or false"),
        (
            "limits.states = 0",
            1,
            "`limits.states` is a number, 1 or more",
        ),
        (
            "limits.states = -1",
            1,
            "`limits.states` is a number, 1 or more",
        ),
        ("limits = 3", 1, "`limits` is a table"),
        ("socket = \"here\"", 1, "`socket` is an absolute path"),
        ("log.level = \"a=b=c\"", 1, "`log.level` is a level"),
        (
            "metrics.listen = [\"9100\"]",
            1,
            "`metrics.listen` is a list",
        ),
    ] {
        let found = mistakes(text);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert_eq!(found[0].0, line, "{text}");
        assert!(found[0].1.starts_with(wanted), "{text}: {found:?}");
    }
    let found = mistakes("packets = true\nkernel = ");
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].0, 2);
    assert_eq!(mistakes("packets = true\npackets = true")[0].0, 2);
}
