//! Recordings, as whoever debugs a key manager meets them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::service::*;

const KEY: &str = "0xfeedfacecafebeef0123456789abcdeffeedface";

/// Keys, a dump, an error, a larval SA with an SPI at random.
fn session() -> String {
    format!(
        "ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x100 mode tunnel \
           aead 'rfc4106(gcm(aes))' {KEY} 128
         ip xfrm state allocspi src 10.0.0.2 dst 10.0.0.1 proto esp
         ip xfrm policy add src 10.1.0.0/24 dst 10.2.0.0/24 dir out \
           tmpl src 10.0.0.1 dst 10.0.0.2 proto esp mode tunnel
         ip xfrm state
         ip xfrm policy
         ip xfrm state delete dst 10.0.0.2 proto esp spi 0x101 || true
         sysctl -qw net.core.xfrm_acq_expires=5 || true
         ip xfrm state flush"
    )
}

fn record(file: &Path, options: &[&str], script: &str) {
    let mut run = xfrmd();
    run.args(["run", "--record"]).arg(file).args(options);
    succeeds(run.args(["--", "sh", "-ec", script]));
}

/// Exit code, and both outputs.
fn tells(command: &mut Command) -> (i32, String) {
    let output = outcome(command);
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.code().unwrap(),
        String::from_utf8(said).unwrap(),
    )
}

fn replay(file: &Path, options: &[&str]) -> (i32, String) {
    tells(xfrmd().arg("replay").arg(file).args(options))
}

pub(crate) fn replayed() {
    let scratch = Scratch::new("recordings");
    let [file, with_keys, other] = ["a", "b", "c"].map(|name| scratch.path(name));
    record(&file, &[], &session());
    record(
        &with_keys,
        &["--record-keys", "--kernel", "6.12"],
        &session(),
    );
    record(&other, &[], "ip xfrm state");

    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let key = [0xfe, 0xed, 0xfa, 0xce];
    let holds = |file: &Path| {
        let bytes = std::fs::read(file).unwrap();
        bytes.windows(4).any(|it| it == key)
    };
    assert!(!holds(&file));
    assert!(holds(&with_keys));

    for file in [&file, &with_keys] {
        let (code, said) = replay(file, &[]);
        assert_eq!(code, 0, "{said}");
        assert!(said.contains(": 0 differ\n"), "{said}");
    }
    // What it is not told: that an SA was not found.
    let (code, said) = replay(&with_keys, &["--kernel", "6.1", "-j"]);
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    let differences = report["differences"].as_array().unwrap();
    assert_eq!(code, i32::from(!differences.is_empty()), "{said}");
    assert_eq!(report["kernel"], "6.1");

    let diff = |a: &Path, b: &Path| tells(xfrmd().arg("diff").args([a, b]));
    assert_eq!(diff(&file, &file), (0, String::new()));
    let (code, said) = diff(&file, &other);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("\n-> socket 1 NEWSA "), "{said}");

    let bytes = std::fs::read(&file).unwrap();
    let cut = scratch.path("cut");
    std::fs::write(&cut, &bytes[..bytes.len() - 2]).unwrap();
    let (code, said) = replay(&cut, &[]);
    assert_eq!(code, 2, "{said}");
    assert!(
        said.contains("at byte ") && said.contains("cut short"),
        "{said}"
    );
    assert_eq!(replay(&cut, &["--partial"]).0, 0);
    let text = scratch.write("text", "no recording at all");
    let (code, said) = replay(&text, &[]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("at byte 0: this is no pcapng file"), "{said}");
}

pub(crate) fn opens() {
    let scratch = Scratch::new("wireshark");
    let file = scratch.path("a");
    record(&file, &[], &session());
    let mut tshark = Command::new("tshark");
    let shown = succeeds(tshark.arg("-Vr").arg(&file));
    // XFRM_MSG_NEWSA: to the kernel, and in a dump.
    assert!(shown.contains("Family: IPsec (0x0006)"), "{shown}");
    let messages = shown.matches("Message type: Protocol-specific (0x0010)");
    assert!(messages.count() >= 2, "{shown}");
    assert!(shown.contains("keys left out"), "{shown}");
    assert!(!shown.contains("Malformed"), "{shown}");
}

/// Kills the daemon of the `xfrmd run` whose shell this is.
const KILL: &str = "
    for pid in $(cat /proc/$PPID/task/$PPID/children); do
      if [ $(cat /proc/$pid/comm) = xfrmd ]; then daemon=$(cat /proc/$pid/task/$pid/children); fi
    done
    kill -9 $daemon
    for try in $(seq 300); do
      if [ ! -e /proc/${daemon% } ] && ip xfrm state > /dev/null 2>&1; then break; fi
      sleep 0.1
    done";

pub(crate) fn through_kills() {
    let scratch = Scratch::new("kills");
    let [file, without] = ["a", "b"].map(|name| scratch.path(name));
    let session = session();
    let sa = format!(
        "ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto ah spi 0x300 auth 'hmac(sha1)' {KEY}"
    );
    let after = "ip xfrm state; ip xfrm policy deleteall; ip xfrm state flush";
    let half = [&*session, &sa, KILL, after].join("\n");
    let script = [&*half, &half, &session].join("\n");
    record(&file, &["--record-keys"], &script);
    for kernel in ["7.2", "6.12"] {
        let (code, said) = replay(&file, &["--kernel", kernel]);
        assert_eq!(code, 0, "{said}");
        let end = format!("as Linux {kernel}, 2 kills of the daemon: 0 differ\n");
        assert!(said.ends_with(&end), "{said}");
    }
    // What is kept has keys in it.
    record(&without, &[], &script);
    let (code, said) = replay(&without, &[]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("its daemon was killed"), "{said}");
    let (code, said) = replay(&without, &["--partial"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains(": 0 differ\n"), "{said}");
}

/// What `ip` asks of Linux: with errors, dumps, events, and an SA that ends by itself.
fn asks_linux(file: &Path, keys: &str) -> String {
    let heard = file.with_extension("heard");
    format!(
        "cat > /run/session <<'END'
           until grep -q Flushed {heard}; do
             ip xfrm state allocspi src 10.0.0.3 dst 10.0.0.4 proto esp
             ip xfrm state flush
             sleep 0.1
           done
           {}
           ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x200 mode tunnel \
             aead 'rfc4106(gcm(aes))' {KEY} 128 limit time-hard 2
           ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x200 mode tunnel \
             aead 'rfc4106(gcm(aes))' {KEY} 128 || true
           ip xfrm state get src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x200
           ip xfrm state count
           ip xfrm policy getdefault
           ip xfrm policy deleteall
           until grep -q Expired {heard}; do sleep 0.1; done
           ip xfrm state
END
         modprobe nlmon
         ip xfrm monitor > {heard} &
         $XFRMD record-kernel {} {keys} sh -ec \"$(cat /run/session)\"",
        session(),
        file.display(),
        heard = heard.display(),
    )
}

pub(crate) fn of_linux() {
    let scratch = Scratch::new("of-linux");
    std::thread::scope(|scope| {
        for (release, keys) in [("6.1", ""), ("6.12", "--keys"), ("7.2", "--keys")] {
            let file = scratch.path(release);
            scope.spawn(move || {
                succeeds(&mut inside_linux(release, &asks_linux(&file, keys)));
                let (code, said) = replay(&file, &[]);
                assert_eq!(code, 0, "{said}");
                let head = format!("recording of Linux {release}, ");
                assert!(said.starts_with(&head), "{said}");
                // It is all there.
                let count = said.split(": ").nth(1).and_then(|it| it.split(' ').next());
                assert!(count.unwrap().parse::<u32>().unwrap() > 40, "{said}");
            });
        }
    });
    let mut tshark = Command::new("tshark");
    let shown = succeeds(tshark.arg("-Vr").arg(scratch.path("6.1")));
    assert!(shown.contains("Family: IPsec (0x0006)"), "{shown}");
    assert!(!shown.contains("Malformed"), "{shown}");
}

/// What cannot be read is told with its place, and nothing is done with what there is of it.
pub(crate) fn damaged() {
    let scratch = Scratch::new("damaged");
    let [file, bad] = ["a", "b"].map(|name| scratch.path(name));
    record(&file, &["--record-keys"], &session());
    let bytes = std::fs::read(&file).unwrap();
    // Behind the section and its interfaces.
    let own = 0x8078_6672_u32.to_ne_bytes();
    let head = bytes.windows(4).position(|it| it == own).unwrap();
    let told = |bytes: &[u8], options: &[&str], what: &str| {
        std::fs::write(&bad, bytes).unwrap();
        let other = tells(xfrmd().arg("diff").args([&file, &bad]));
        for (code, said) in [replay(&bad, options), other] {
            assert_eq!(code, 2, "{what}: {said}");
            let name = bad.display().to_string();
            let all = [&*name, "at byte ", what];
            assert!(all.iter().all(|it| said.contains(it)), "{what}: {said}");
            assert_eq!(said.lines().count(), 1, "{what}: {said}");
        }
    };
    let changed = |at: usize, value: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = value;
        bytes
    };
    let none = "this is no recording of xfrmd";
    told(&[], &[], none);
    told(&bytes[..head], &[], none);
    let cut = "the file is cut short within a block";
    told(&bytes[..head + 5], &[], cut);
    told(&bytes[..bytes.len() - 30], &[], cut);
    told(
        &bytes[..bytes.len() - 28],
        &[],
        "the recording has no end: its daemon was killed, or still runs",
    );
    // Behind heads of a block and an option.
    told(
        &changed(head + 12, 9),
        &["--partial"],
        "of format 9; this xfrmd knows 1",
    );
    told(
        &changed(head + 4, 1),
        &["--partial"],
        "a block has an impossible length",
    );
    told(&changed(8, 0), &["--partial"], "this is no pcapng file");
    let mut swapped = bytes.clone();
    swapped[8..12].reverse();
    told(&swapped, &[], "another byte order");
    let twice = [&bytes[..], &bytes].concat();
    told(
        &twice,
        &["--partial"],
        "does not go on with what was before",
    );
    assert_eq!(replay(&scratch.path("nowhere"), &[]).0, 2);
}
