//! The cases.

use std::os::fd::AsRawFd;
use std::process::Command;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};

use crate::service::*;
use crate::{Case, Need};

const IP: Need = Need::Program("ip", "iproute2");

pub(crate) const CASES: &[Case] = &[
    (
        "what_is_in_the_way_of_a_socket_stays",
        Need::Root,
        in_the_way,
    ),
    (
        "captures_open_in_tcpdump",
        Need::Program("tcpdump", "tcpdump"),
        captures_open,
    ),
    (
        "a_package_is_whole",
        Need::Program("dpkg-shlibdeps", "dpkg-dev"),
        crate::package::whole,
    ),
    ("a_recording_happens_again", IP, crate::recordings::replayed),
    (
        "a_recording_goes_on_after_kills",
        IP,
        crate::recordings::through_kills,
    ),
    (
        "recordings_of_linux_happen_again",
        Need::Kernels(&["6.1", "6.12", "7.2"], &["tshark"]),
        crate::recordings::of_linux,
    ),
    (
        "what_is_wrong_with_a_recording_is_told",
        IP,
        crate::recordings::damaged,
    ),
    (
        "recordings_open_in_wireshark",
        Need::Program("tshark", "tshark"),
        crate::recordings::opens,
    ),
    ("doctor_says_what_is_there", Need::Nothing, doctor),
    (
        "doctor_names_what_is_missing",
        Need::Program("setpriv", "util-linux"),
        doctor_without_rights,
    ),
    (
        "a_configuration_is_written_and_read_again",
        Need::Nothing,
        configuration,
    ),
    (
        "a_mistake_in_the_configuration_is_named",
        Need::Nothing,
        mistakes,
    ),
    ("the_command_line_comes_first", Need::Root, precedence),
    ("sighup_takes_up_what_can_change", Need::Root, reload),
    ("a_socket_that_is_handed_over", Need::Root, activation),
    (
        "a_service_manager_keeps_what_a_killed_keeper_had",
        IP,
        crate::store::killed,
    ),
    ("logs_are_json_and_have_no_keys", IP, logs),
    ("metrics_are_served", IP, metrics),
    ("slow_scrapes_hold_up_nobody", Need::Root, slow_scrapes),
    (
        "man_pages_are_whole",
        Need::Program("man", "man-db"),
        man_pages,
    ),
    ("completions_are_scripts", Need::Nothing, completions),
    (
        "units_are_valid",
        Need::Program("systemd-analyze", "systemd"),
        units,
    ),
];

fn doctor() {
    let output = outcome(xfrmd().args(["doctor", "-j"]));
    let report = String::from_utf8(output.stdout).unwrap();
    let code = output.status.code().unwrap();
    assert!(report.contains("\"requests\": true"), "{report}");
    assert!(code < 2, "{report}");
    assert_eq!(report.contains("\"packets\": true"), code == 0, "{report}");
    for name in [
        "netlink sockets",
        "/dev/net/tun",
        "nf_tables",
        "seccomp",
        "the kernel's own XFRM",
    ] {
        assert!(report.contains(name), "{name}: {report}");
    }
    let output = outcome(xfrmd().arg("doctor"));
    assert_eq!(output.status.code(), Some(code));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("Requests can be answered"), "{text}");
    assert_eq!(text.contains("no packets carried"), code == 1, "{text}");
}

fn doctor_without_rights() {
    // Without rights, and without a way to get some: user namespaces count as such.
    let script = "exec setpriv --bounding-set -all --inh-caps -all --no-new-privs \"$0\" doctor";
    let output = outcome(Command::new("sh").args(["-c", script, env!("CARGO_BIN_EXE_xfrmd")]));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("NO   raw sockets with marks"), "{text}");
    assert!(text.contains("raw sockets with marks: sudo"), "{text}");
    assert!(text.contains("no   CAP_SYS_ADMIN"), "{text}");
}

fn configuration() {
    let scratch = Scratch::new("configuration");
    let default = succeeds(xfrmd().args(["config", "--config", "/dev/null"]));
    assert!(default.contains("#packets = false"));
    let file = scratch.write("a.toml", "packets = true\nlimits.clients = 5\n");
    let text = succeeds(xfrmd().args(["config", "--config"]).arg(file));
    assert!(text.contains("\npackets = true\n"), "{text}");
    assert!(
        text.contains("\n[limits]\n") && text.contains("\nclients = 5\n"),
        "{text}"
    );
    assert!(text.contains("\n#kernel = \"7.2\"\n"), "{text}");
    let again = scratch.write("b.toml", &text);
    assert_eq!(
        succeeds(xfrmd().args(["config", "--config"]).arg(again)),
        text
    );
}

fn mistakes() {
    let scratch = Scratch::new("mistakes");
    let file = scratch.write("a.toml", "packets = true\n\n[limits]\nstats = 5\n");
    for arguments in [&["config"][..], &[]] {
        let output = outcome(xfrmd().args(arguments).arg("--config").arg(&file));
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        let wanted = "a.toml:4: there is no key `limits.stats`; `limits.states` is probably meant";
        assert!(said.contains(wanted), "{said}");
    }
    let absent = outcome(xfrmd().args(["--config", "/nonexistent/xfrmd.toml"]));
    assert_eq!(absent.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&absent.stderr).contains("/nonexistent/xfrmd.toml"));
}

fn precedence() {
    let service = Service::start(
        "precedence",
        Start {
            file: "kernel = \"6.1\"\nlog.level = \"error\"\n",
            options: &["--kernel", "6.12"],
            variables: &[("RUST_LOG", "info")],
            ..Start::default()
        },
    );
    assert!(service.stat("-j").contains("\"kernel\": \"6.12\""));
    assert!(service.stop().contains("serving"));
}

fn reload() {
    let service = Service::start(
        "reload",
        Start {
            file: "log.level = \"info\"\n",
            ..Start::default()
        },
    );
    let metrics = service.scratch.path("metrics").display().to_string();
    let text = format!(
        "kernel = \"6.1\"\nlog.level = \"info\"\nlimits.states = 1\nmetrics.listen = [\"{metrics}\"]\n"
    );
    service.reload(&text);
    assert!(ask(&metrics, SCRAPE).unwrap().contains("kernel=\"7.2\""));
    // A file with a mistake changes nothing.
    service.reload("limits.stats = 5\n");
    assert!(ask(&metrics, SCRAPE).unwrap().starts_with("HTTP/1.1 200"));
    service.reload("log.level = \"warn\"\n");
    assert!(ask(&metrics, SCRAPE).is_err());
    let log = service.stop();
    assert!(log.contains("limits.states, metrics.listen"), "{log}");
    assert!(
        log.contains("need a restart") && log.contains("kernel"),
        "{log}"
    );
    assert!(log.contains("the configuration stays as it was"), "{log}");
    // It was warnings only in the end.
    assert!(!log.contains("ending"), "{log}");
}

fn activation() {
    let scratch = Scratch::new("activation");
    let path = scratch.path("given");
    let fd = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    bind(fd.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    listen(&fd, Backlog::MAXCONN).unwrap();
    let kept = fd.try_clone().unwrap();
    let given = || {
        Some(Start {
            socket: Some(kept.try_clone().unwrap()),
            ..Start::default()
        })
    };
    let service = Service::start("activated", given().unwrap());
    let stat = || {
        let mut command = xfrmd();
        command.args(["stat", "-j", "--socket"]).arg(&path);
        command
    };
    succeeds(&mut stat());
    assert!(
        !service.socket().exists(),
        "it has opened one of its own, too"
    );
    service.stop();
    // The socket has stayed, and who asks now waits for the next daemon.
    let waiting = stat().stdout(std::process::Stdio::piped()).spawn().unwrap();
    let _service = Service::start("activated-again", given().unwrap());
    assert!(waiting.wait_with_output().unwrap().status.success());
}

fn logs() {
    const KEY: &str = "5ec2e7c0ffee5ec2e7c0ffee5ec2e7c0ffee5ec2";
    let service = Service::start(
        "logs",
        Start {
            options: &["--log", "trace", "--log-format", "json"],
            ..Start::default()
        },
    );
    service.sh(&format!(
        "ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x100 mode tunnel \
           aead 'rfc4106(gcm(aes))' 0x{KEY} 128
         ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x101 mode nonsense \
           aead 'rfc4106(gcm(aes))' 0x{KEY} 128 || true
         ip xfrm state | grep -q {KEY}"
    ));
    let log = service.stop();
    assert!(log.lines().count() > 2, "{log}");
    let raw: Vec<u8> = (0..KEY.len() / 2)
        .map(|at| u8::from_str_radix(&KEY[2 * at..2 * at + 2], 16).unwrap())
        .collect();
    for line in log.lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        for name in ["timestamp", "level", "message"] {
            assert!(event[name].is_string(), "{line}");
        }
        // In any form: hexadecimal, decimal bytes, base64 of the beginning.
        let line = line.to_lowercase();
        assert!(!line.contains("5ec2e7c0"), "{line}");
        assert!(
            !line.contains(&format!("{}, {}, {}", raw[0], raw[1], raw[2])),
            "{line}"
        );
    }
}

fn metrics() {
    let port = free_port();
    let endpoint = format!("127.0.0.1:{port}");
    let service = Service::start(
        "metrics",
        Start {
            options: &["--metrics", &endpoint],
            ..Start::default()
        },
    );
    service.sh(
        "ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x100 mode tunnel \
           enc 'cbc(aes)' 0x000102030405060708090a0b0c0d0e0f auth 'hmac(sha1)' 0x00
         ip xfrm policy add src 10.0.0.0/24 dst 10.1.0.0/24 dir out action block",
    );
    let answer = ask(&endpoint, SCRAPE).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let has = |start: &str, end: &str| {
        let found = body
            .lines()
            .any(|line| line.starts_with(start) && line.ends_with(end));
        assert!(found, "{start} ... {end}\n{body}");
    };
    has("xfrmd_states{netns=\"", "\"} 1");
    has("xfrmd_policies{netns=\"", "dir=\"out\"} 1");
    has("xfrmd_clients", " 0");
    // Each counter of xfrm_stat, by its name.
    let stat = service.sh("cat /proc/net/xfrm_stat");
    assert!(stat.lines().count() > 20);
    for name in stat
        .lines()
        .filter_map(|line| line.split_whitespace().next())
    {
        has(&format!("xfrmd_{name}_total{{"), "} 0");
    }
    let same = service.stat("--prometheus");
    assert_eq!(same.lines().count(), body.lines().count());
    assert!(
        ask(&endpoint, "GET / HTTP/1.1\r\n\r\n")
            .unwrap()
            .starts_with("HTTP/1.1 404")
    );
    // Every sample's name is declared, once.
    let mut declared: Vec<&str> = body
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    let count = declared.len();
    declared.sort_unstable();
    declared.dedup();
    assert_eq!(declared.len(), count);
    for sample in body.lines().filter(|line| !line.starts_with('#')) {
        let name = sample.split(['{', ' ']).next().unwrap();
        assert!(declared.contains(&name), "{sample}");
    }
}

fn slow_scrapes() {
    let scratch = Scratch::new("slow");
    let path = scratch.path("metrics").display().to_string();
    let service = Service::start(
        "slow-scrapes",
        Start {
            options: &["--metrics", &path],
            ..Start::default()
        },
    );
    // They say nothing, and never will.
    let silent: Vec<_> = (0..2)
        .map(|_| std::os::unix::net::UnixStream::connect(&path).unwrap())
        .collect();
    // The daemon answers all the same, and after the silent ones so do metrics.
    assert!(service.stat("-j").contains("\"clients\": 0"));
    assert!(ask(&path, SCRAPE).unwrap().contains("xfrmd_build_info"));
    drop(silent);
    service.stop();
    assert!(!std::path::Path::new(&path).exists());
}

fn man_pages() {
    let scratch = Scratch::new("man");
    succeeds(xfrmd().arg("man").arg(&scratch.0));
    let mut names: Vec<String> = std::fs::read_dir(&scratch.0)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    for name in [
        "xfrmd.8",
        "xfrmd-run.8",
        "xfrmd-doctor.8",
        "xfrmd-capture.8",
        "xfrmd.toml.5",
    ] {
        assert!(names.iter().any(|other| other == name), "{names:?}");
    }
    for name in names {
        let output = outcome(
            Command::new("man")
                .args(["--warnings", "-E", "UTF-8", "-l"])
                .arg(scratch.path(&name))
                .env("LC_ALL", "C.UTF-8"),
        );
        let warnings = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && warnings.is_empty(),
            "{name}: {warnings}"
        );
        assert!(output.stdout.len() > 500, "{name}");
    }
}

fn completions() {
    for (shell, wanted) in [
        ("bash", "complete "),
        ("zsh", "#compdef xfrmd"),
        ("fish", "complete -c xfrmd"),
    ] {
        let script = succeeds(xfrmd().args(["completions", shell]));
        assert!(script.contains(wanted), "{shell}");
        for name in ["doctor", "capture", "--max-states"] {
            let bare = name.trim_start_matches("--");
            assert!(script.contains(bare), "{shell}: {name}");
        }
    }
    let scratch = Scratch::new("completions");
    let script = succeeds(xfrmd().args(["completions", "bash"]));
    let path = scratch.write("xfrmd", &script);
    let ask = "source \"$0\"; COMP_WORDS=(xfrmd doc); COMP_CWORD=1; _xfrmd xfrmd doc xfrmd; \
               echo \"${COMPREPLY[@]}\"";
    let output = succeeds(Command::new("bash").args(["-c", ask]).arg(path));
    assert_eq!(output, "doctor\n");
}

fn units() {
    let units = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/systemd");
    let scratch = Scratch::new("units");
    // It looks for the program, which is not installed.
    for name in ["xfrmd.service", "xfrmd.socket"] {
        let text = std::fs::read_to_string(format!("{units}/{name}")).unwrap();
        let program = format!("ExecStart={}", env!("CARGO_BIN_EXE_xfrmd"));
        scratch.write(name, &text.replace("ExecStart=/usr/bin/xfrmd", &program));
    }
    let output = outcome(
        Command::new("systemd-analyze")
            .args(["verify", "--man=no", "--recursive-errors=no"])
            .args([scratch.path("xfrmd.service"), scratch.path("xfrmd.socket")]),
    );
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

fn in_the_way() {
    let scratch = Scratch::new("in-the-way");
    let path = scratch.write("precious", "a file");
    let control = scratch.path("control");
    for options in [[&path, &scratch.path("metrics")], [&control, &path]] {
        let mut command = xfrmd();
        command.args(["--config", "/dev/null", "--socket"]);
        command.arg(options[0]).arg("--metrics").arg(options[1]);
        let output = outcome(&mut command);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains("precious") && said.contains("in use"),
            "{said}"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a file");
    }
    // A socket that a killed daemon has left is not in the way.
    drop(std::os::unix::net::UnixListener::bind(scratch.path("left")).unwrap());
    let left = scratch.path("left").display().to_string();
    let service = Service::start(
        "left-behind",
        Start {
            options: &["--metrics", &left],
            ..Start::default()
        },
    );
    assert!(ask(&left, SCRAPE).unwrap().contains("xfrmd_build_info"));
    drop(service);
}

fn captures_open() {
    let scratch = Scratch::new("captures");
    let file = scratch.path("both.pcapng").display().to_string();
    // One way is enough: nobody is there at the other end.
    let script = format!(
        "ip link set lo up
         ip link add d0 type veth peer name d1
         ip link set d1 up
         ip addr add 10.9.0.1/24 dev d0
         ip link set d0 up
         ip neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev d0
         ip xfrm state add src 10.9.0.1 dst 10.9.0.2 proto esp spi 0x77 reqid 1 mode transport \
           aead 'rfc4106(gcm(aes))' 0x0102030405060708090a0b0c0d0e0f1011121314 128
         ip xfrm policy add dir out src 10.9.0.1 dst 10.9.0.2 tmpl proto esp reqid 1 mode transport
         timeout 30 $XFRMD capture -c 2 -w {file} 2>{file}.said &
         for i in $(seq 3000); do if grep -q capturing {file}.said; then break; fi; sleep 0.01; done
         bash -c 'echo something >/dev/udp/10.9.0.2/9'
         wait $!"
    );
    succeeds(
        Command::new("unshare")
            .args(["-n", env!("CARGO_BIN_EXE_xfrmd"), "run", "--packets", "--"])
            .args(["bash", "-ec", &script])
            .env("XFRMD", env!("CARGO_BIN_EXE_xfrmd")),
    );
    let shown = succeeds(Command::new("tcpdump").args(["-nr", &file]));
    assert_eq!(shown.lines().count(), 2, "{shown}");
    assert!(shown.contains("ESP(spi=0x00000077,seq=0x1)"), "{shown}");
    assert!(shown.contains("10.9.0.2.9: UDP, length 10"), "{shown}");
}
