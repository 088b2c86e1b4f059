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
