//! Cases with daemons of their own, which are started, asked, and killed.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket,
};
use nix::unistd::Pid;
use std::os::fd::AsRawFd;

use crate::process::{Agent, NOBODY, as_nobody, me, outcome, succeeds, xfrmd};
use crate::{Case, Need};

/// Every case.
pub(crate) static CASES: &[Case] = &[
    ("exit_codes_pass_through", Need::Nothing, exit_codes),
    ("signals_pass_through", Need::Nothing, signals),
    (
        "programs_without_a_dynamic_linker_are_refused",
        Need::Nothing,
        refused_programs,
    ),
    ("setuid_programs_are_refused", Need::Root, setuid_programs),
    ("private_instances_are_apart", Need::Nothing, runs_are_apart),
    ("nothing_is_left_behind", Need::Nothing, nothing_left),
    (
        "what_a_killed_instance_left_goes_with_the_next",
        Need::Nothing,
        left_by_the_killed,
    ),
    (
        "programs_without_the_shim_do_not_reach_the_host",
        Need::Nothing,
        bypassing_programs,
    ),
    (
        "a_command_ends_with_its_killed_run",
        Need::Nothing,
        killed_run,
    ),
    (
        "static_programs_are_served",
        Need::Compiler,
        static_programs,
    ),
    (
        "static_programs_have_threads_in_namespaces",
        Need::RootAndCompiler,
        static_threads,
    ),
    ("stat_and_env", Need::Nothing, stat_and_env),
    ("wrong_faults_start_nothing", Need::Nothing, wrong_faults),
    ("explained_packets", Need::Ip, explained_packets),
    ("readiness_and_sigterm", Need::Root, readiness_and_sigterm),
    (
        "a_killed_daemon_refuses_at_once_and_comes_back",
        Need::Root,
        killed_daemon,
    ),
    ("a_daemon_that_is_killed_goes_on", Need::Root, || {
        alone(killed_and_started_again)
    }),
    ("keys_of_sas_that_are_gone_are_nowhere", Need::Ip, || {
        alone(wiped_keys)
    }),
    ("damaged_state_is_refused", Need::Root, || {
        alone(damaged_state)
    }),
    ("killed_clients_leave_nothing", Need::Root, killed_clients),
    (
        "senseless_frames_end_their_connection_only",
        Need::Root,
        senseless_frames,
    ),
    (
        "others_have_no_rights_at_a_shared_daemon",
        Need::Root,
        others_at_a_shared_daemon,
    ),
    ("ip_in_namespaces", Need::Ip, ip_in_namespaces),
    (
        "events_of_other_namespaces",
        Need::Ip,
        events_of_other_namespaces,
    ),
    (
        "an_instance_ends_with_its_namespace",
        Need::Ip,
        instance_ends,
    ),
];

/// A shared daemon in a directory of its own.
struct Shared {
    directory: PathBuf,
    daemon: Child,
}

impl Shared {
    fn start(name: &str) -> Self {
        let directory =
            std::env::temp_dir().join(format!("shared-xfrmd-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o755)).unwrap();
        let daemon = launch(&directory);
        Self { directory, daemon }
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("control")
    }

    /// Kills keeper and daemon as nothing can prevent.
    fn kill(&mut self) {
        let daemon = self.child();
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
        ends(daemon);
    }

    /// The daemon that the keeper has started.
    fn child(&self) -> u32 {
        let keeper = self.daemon.id();
        let path = format!("/proc/{keeper}/task/{keeper}/children");
        let children = std::fs::read_to_string(path).unwrap();
        children.trim().parse().unwrap()
    }

    /// Kills the daemon, of which the keeper starts another.
    fn kill_child(&self) {
        let child = self.child();
        kill(Pid::from_raw(child as i32), Signal::SIGKILL).unwrap();
        ends(child);
    }

    /// The file that the keeper holds state in.
    fn state(&self) -> std::fs::File {
        let directory = format!("/proc/{}/fd", self.daemon.id());
        let is_state = |path: &PathBuf| {
            std::fs::read_link(path)
                .is_ok_and(|to| to.to_string_lossy().contains("memfd:xfrmd-state"))
        };
        let entries = std::fs::read_dir(directory).unwrap();
        let mut paths = entries.map(|entry| entry.unwrap().path());
        let path = paths.find(is_state).unwrap();
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(true).open(path).unwrap()
    }

    fn restart(&mut self) {
        self.daemon = launch(&self.directory);
    }

    /// A command that uses it, as `xfrmd env` says.
    fn client(&self, mut command: Command) -> Command {
        let script = succeeds(xfrmd().args(["env", "--socket"]).arg(self.socket()));
        for line in script.lines() {
            let (name, value) = line
                .strip_prefix("export ")
                .unwrap()
                .split_once('=')
                .unwrap();
            command.env(name, value.trim_matches('\''));
        }
        command
    }

    fn stat(&self) -> String {
        succeeds(xfrmd().args(["stat", "-j", "--socket"]).arg(self.socket()))
    }

    /// Waits until what `stat` prints fits.
    #[track_caller]
    fn until(&self, fits: impl Fn(&str) -> bool) {
        for _ in 0..200 {
            if fits(&self.stat()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("{}", self.stat());
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Waits until a process is no more.
#[track_caller]
fn ends(pid: u32) {
    let path = format!("/proc/{pid}");
    for _ in 0..3000 {
        if !std::path::Path::new(&path).exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("process {pid} does not end");
}

/// Starts a daemon and waits until it is ready.
fn launch(directory: &std::path::Path) -> Child {
    let notify = directory.join("notify");
    let _ = std::fs::remove_file(&notify);
    let notified = UnixDatagram::bind(&notify).unwrap();
    let child = xfrmd()
        .arg("--socket")
        .arg(directory.join("control"))
        .env("NOTIFY_SOCKET", &notify)
        .env("XFRMD_LOG", "error")
        .spawn()
        .unwrap();
    let mut message = [0; 64];
    let mut len = notified.recv(&mut message).unwrap();
    // Before that it gives its state into safekeeping.
    while message[..len].starts_with(b"FDSTORE") {
        len = notified.recv(&mut message).unwrap();
    }
    assert_eq!(&message[..len], b"READY=1");
    child
}

fn exit_codes() {
    let code = |script: &str| {
        let output = outcome(xfrmd().args(["run", "--", "sh", "-c", script]));
        output.status.code().unwrap()
    };
    assert_eq!(code("exit 0"), 0);
    assert_eq!(code("exit 42"), 42);
    assert_eq!(code("kill -9 $$"), 137);
    assert_eq!(code("kill -TERM $$"), 143);
    let missing = outcome(xfrmd().args(["run", "--", "no-such-command"]));
    assert_eq!(missing.status.code(), Some(127));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("command not found"));
    let directory = outcome(xfrmd().args(["run", "--", "/"]));
    assert_eq!(directory.status.code(), Some(126));
    let output = succeeds(xfrmd().args(["run", "sh", "-c", "echo $0 $1", "--", "-x"]));
    assert_eq!(output, "-- -x\n");
}

fn signals() {
    let script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done";
    let mut child = xfrmd()
        .args(["run", "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut ready)
        .unwrap();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(7));
}

fn scratch(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("xfrmd-{name}-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    path
}

fn refused_programs() {
    // The head of a program of this machine that has no segments at all, hence no linker.
    let mut head = vec![0; 64];
    std::fs::File::open(std::env::current_exe().unwrap())
        .unwrap()
        .read_exact(&mut head)
        .unwrap();
    head[56..58].fill(0);
    let path = scratch("static");
    let mut file = std::fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o755)
        .open(&path)
        .unwrap();
    file.write_all(&head).unwrap();
    drop(file);
    let output = outcome(xfrmd().args(["run", "--front", "preload", "--"]).arg(&path));
    assert_eq!(output.status.code(), Some(126));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("statically linked") && text.contains("host's kernel"),
        "{text}"
    );
    std::fs::remove_file(&path).unwrap();
}

fn setuid_programs() {
    let path = scratch("setuid");
    std::fs::copy("/bin/true", &path).unwrap();
    nix::unistd::chown(&path, Some(NOBODY.into()), None).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o4755)).unwrap();
    let output = outcome(xfrmd().args(["run", "--"]).arg(&path));
    assert_eq!(output.status.code(), Some(126));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("setuid"), "{text}");
    std::fs::remove_file(&path).unwrap();
}

fn runs_are_apart() {
    let run = |agent: &str| {
        let mut command = xfrmd();
        command.args(["run", "--"]).arg(me().get_program());
        let _ = agent;
        Agent::start(&mut command)
    };
    let (mut first, mut second) = (run("a"), run("b"));
    assert_eq!(first.does("bind 8"), "ok");
    assert_eq!(second.does("bind 8"), "ok");
    assert_eq!(first.does("policy 1"), "ok");
    assert_eq!(first.does("recv 64"), "type 0x13");
    assert_eq!(second.does("recv 64"), "errno 11");
    // One inside the other.
    let inner = format!(
        "{} run -- {} client memberships",
        xfrmd().get_program().to_string_lossy(),
        me().get_program().to_string_lossy()
    );
    succeeds(xfrmd().args(["run", "--", "sh", "-c", &inner]));
}

fn nothing_left() {
    let directory = scratch("tmpdir");
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir(&directory).unwrap();
    let script = "ls -A $TMPDIR | wc -l; case $LD_PRELOAD in *xfrm_shim*) echo preloaded;; esac";
    let text = succeeds(
        xfrmd()
            .args(["run", "--", "sh", "-c", script])
            .env("TMPDIR", &directory),
    );
    assert_eq!(text, "1\npreloaded\n");
    std::fs::remove_dir(&directory).unwrap();
}

fn left_by_the_killed() {
    let directory = scratch("killed");
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir(&directory).unwrap();
    let count = || std::fs::read_dir(&directory).unwrap().count();
    let mut run = xfrmd();
    run.args(["run", "--"])
        .arg(me().get_program())
        .env("TMPDIR", &directory);
    let mut agent = Agent::start(&mut run);
    assert_eq!(agent.does("bind 0"), "ok");
    succeeds(xfrmd().args(["run", "true"]).env("TMPDIR", &directory));
    assert_eq!(count(), 1, "a living instance has lost its directory");
    agent.kill();
    assert_eq!(count(), 1);
    // Keeper and daemon end soon after.
    let mut tries = 0;
    while count() > 0 {
        assert!(tries < 200, "what was left stays");
        tries += 1;
        succeeds(xfrmd().args(["run", "true"]).env("TMPDIR", &directory));
    }
    std::fs::remove_dir(&directory).unwrap();
}

fn bypassing_programs() {
    let me = me();
    let script = format!(
        "for n in 1 2; do env -u LD_PRELOAD {me} process unshimmed; done; {me} process unshimmed",
        me = me.get_program().to_string_lossy()
    );
    let run = |command: &mut Command, front| {
        let output = outcome(command.args(["run", "--front", front, "--", "sh", "-c", &script]));
        let why = String::from_utf8(output.stderr).unwrap();
        (String::from_utf8(output.stdout).unwrap(), why)
    };
    let refused = |(said, why): (String, String)| {
        assert_eq!(said, "errno 93\nerrno 93\nok\n");
        assert_eq!(why.matches("the shim is not in it").count(), 2, "{why}");
    };
    refused(run(&mut xfrmd(), "preload"));
    refused(run(as_nobody(&mut xfrmd()), "preload"));
    // Inside another instance it is the outer one that notices.
    let mut outer = xfrmd();
    outer.args(["run", "--front", "preload", "--"]);
    refused(run(outer.arg(xfrmd().get_program()), "auto"));
    let served = ("ok\nok\nok\n".to_owned(), String::new());
    assert_eq!(run(&mut xfrmd(), "auto"), served);
    assert_eq!(run(as_nobody(&mut xfrmd()), "auto"), served);
}

/// static.c, built.
fn static_client(name: &str) -> PathBuf {
    let program = scratch(name);
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/socket/static.c");
    let mut build = Command::new("cc");
    build.args(["-static", "-pthread", "-o"]);
    succeeds(build.arg(&program).arg(source));
    program
}

fn static_programs() {
    let program = static_client("static-client");
    let run = |command: &mut Command, front| {
        command.args(["run", "--front", front, "--"]);
        succeeds(command.arg(&program))
    };
    assert_eq!(run(&mut xfrmd(), "auto"), "type 0x22\n");
    assert_eq!(run(as_nobody(&mut xfrmd()), "seccomp"), "type 0x22\n");
    // By a shell that has the shim.
    let text = succeeds(xfrmd().args(["run", "--", "sh", "-c"]).arg(&program));
    assert_eq!(text, "type 0x22\n");
    let cases = ["numbers", "passed", "ports", "rings", "borrowed"];
    for case in cases {
        succeeds(as_nobody(xfrmd().args(["run", "--"]).arg(&program)).arg(case));
    }
    std::fs::remove_file(&program).unwrap();
}

fn static_threads() {
    let program = static_client("static-threads");
    succeeds(xfrmd().args(["run", "--"]).arg(&program).arg("threads"));
    std::fs::remove_file(&program).unwrap();
}

/// `xfrmd run` is killed: its command would talk to nobody any more, and is killed too.
fn killed_run() {
    let mut run = xfrmd()
        .args(["run", "--", "sh", "-c", "echo $$; exec sleep 1000"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(run.stdout.take().unwrap()).lines().next();
    let status = format!("/proc/{}/status", said.unwrap().unwrap());
    let lives = || {
        let status = std::fs::read_to_string(&status).unwrap_or_default();
        status.contains("State:") && !status.contains("State:\tZ")
    };
    assert!(lives());
    run.kill().unwrap();
    run.wait().unwrap();
    let start = Instant::now();
    while lives() {
        assert!(start.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn stat_and_env() {
    let program = xfrmd();
    let program = program.get_program().to_string_lossy().into_owned();
    let me = me();
    let me = me.get_program().to_string_lossy();
    let script =
        format!("{me} client events_come_before_the_ack && {program} stat -j && {program} stat");
    let text = succeeds(xfrmd().args(["run", "--kernel", "6.12", "--", "sh", "-c", &script]));
    let (json, plain) = text.split_once("\n}\n").unwrap();
    let value: serde_json::Value = serde_json::from_str(&format!("{json}\n}}")).unwrap();
    assert_eq!(value["kernel"], "6.12");
    assert_eq!(value["namespaces"][0]["policies"]["out"], 2);
    assert_eq!(value["namespaces"][0]["states"], 0);
    assert_eq!(value["namespaces"][0]["counters"]["XfrmInNoStates"], 0);
    assert!(plain.contains("as Linux 6.12"), "{plain}");
    let nobody = outcome(xfrmd().args(["stat", "--socket", "/nowhere"]));
    assert_eq!(nobody.status.code(), Some(1));
}

fn wrong_faults() {
    let file = scratch("faults");
    std::fs::write(&file, "seed = 1\n[[fault]]\nkind = \"packet.lots\"\n").unwrap();
    let ran = scratch("faults-ran");
    let wrong = outcome(
        xfrmd()
            .args(["run", "--fault", "netlink.error", "--faults"])
            .arg(&file)
            .args(["--", "touch"])
            .arg(&ran),
    );
    assert_eq!(wrong.status.code(), Some(2));
    let said = String::from_utf8(wrong.stderr).unwrap();
    let place = format!("{}:3: ", file.display());
    assert!(
        said.contains(&place) && said.contains("`packet.lost`"),
        "{said}"
    );
    assert!(said.contains("netlink.error needs `errno`"), "{said}");
    assert!(!ran.exists());
    let daemon = outcome(xfrmd().arg("--faults").arg(&file));
    assert_eq!(daemon.status.code(), Some(2));
    std::fs::remove_file(&file).unwrap();
    let struck = outcome(
        xfrmd()
            .args([
                "run",
                "--fault",
                "netlink.reply-late delay=0s",
                "--seed",
                "5",
                "--",
            ])
            .arg(me().get_program())
            .args(["client", "a_reply_is_queued_when_send_returns"]),
    );
    let said = String::from_utf8_lossy(&struck.stderr);
    assert!(
        said.contains("a fault strikes") && said.contains("GETSADINFO"),
        "{said}"
    );
}

fn explained_packets() {
    let program = xfrmd();
    let program = program.get_program().to_string_lossy().into_owned();
    let script = format!(
        "ip xfrm policy add src 10.1.0.0/16 dst 10.2.0.0/16 dir out priority 5 \\
           tmpl src 10.0.0.1 dst 10.0.0.2 proto esp reqid 1 mode tunnel
         ip xfrm policy add src 10.1.0.0/16 dst 10.2.0.0/16 proto tcp dport 22 dir out action block
         {program} explain -j out 10.1.0.5:4000 10.2.0.7:80 tcp; echo ,
         {program} explain -j out 10.1.0.5:4000 10.2.0.7:22 tcp; echo ,
         ip link set lo up
         ip xfrm policy add dst 127.0.0.1 dir in tmpl src 10.0.0.2 proto esp reqid 9 mode tunnel
         {program} explain -j in 10.2.0.7:80 127.0.0.1:4000 tcp; echo ,
         {program} explain out 10.1.0.5 10.2.0.7 >&2
         {program} explain in 10.2.0.7 127.0.0.1 >&2
         {program} stat -j"
    );
    let output = outcome(xfrmd().args(["run", "--", "unshare", "-n", "sh", "-c", &script]));
    let said = String::from_utf8(output.stdout).unwrap();
    let answers: serde_json::Value = serde_json::from_str(&format!("[{said}]")).unwrap();
    let [missing, blocked, bare, stat] = &answers.as_array().unwrap()[..] else {
        panic!("{said}")
    };
    assert_eq!(missing["counter"], "XfrmOutNoStates");
    assert_eq!(
        missing["policies"][0]["mismatch"],
        "another destination port"
    );
    assert_eq!(missing["policies"][1]["chosen"], true);
    assert_eq!(missing["templates"][0]["found"], "nothing");
    assert_eq!(blocked["outcome"]["errno"], 1);
    assert_eq!(blocked["counter"], "XfrmOutPolBlock");
    assert_eq!(blocked["policies"][0]["action"], "block");
    assert_eq!(bare["counter"], "XfrmInTmplMismatch");
    let check = &bare["checks"][0];
    assert_eq!(check["direction"], "in");
    assert_eq!(check["templates"][0]["reqid"], 9);
    assert_eq!(check["templates"][0]["sa"], serde_json::Value::Null);
    assert_eq!(check["refusal"], bare["outcome"]["reason"]);
    let plain = String::from_utf8(output.stderr).unwrap();
    assert!(
        plain.contains("verdict: dropped, there is no SA"),
        "{plain}"
    );
    assert!(plain.contains("    no SA serves it\n"), "{plain}");
    let counters = stat["namespaces"][0]["counters"].as_object().unwrap();
    assert!(counters.values().all(|count| count == 0), "{said}");
}

fn readiness_and_sigterm() {
    let mut shared = Shared::start("ready");
    kill(Pid::from_raw(shared.daemon.id() as i32), Signal::SIGTERM).unwrap();
    let status = shared.daemon.wait().unwrap();
    assert_eq!((status.code(), status.signal()), (Some(0), None));
    assert!(!shared.socket().exists());
    shared.restart();
    // Two cannot listen at one address.
    let second = outcome(xfrmd().arg("--socket").arg(shared.socket()));
    assert_eq!(second.status.code(), Some(1));
    Agent::start(&mut shared.client(me())).does("ask 1");
}

fn killed_daemon() {
    let refused = format!("errno {}", libc::ECONNREFUSED);
    let mut shared = Shared::start("killed");
    let mut member = Agent::start(&mut shared.client(me()));
    let mut reader = Agent::start(&mut shared.client(me()));
    let mut waiter = Agent::start(&mut shared.client(me()));
    assert_eq!(member.does("bind 8"), "ok");
    for number in 0..200 {
        assert_eq!(reader.does(&format!("policy {number}")), "ok");
        assert_eq!(member.does("recv 0"), "type 0x13");
    }
    for agent in [&mut reader, &mut waiter] {
        assert_eq!(agent.does("dump 7"), "ok");
    }
    shared.kill();
    // What was queued is read; then the missing rest is an error, once, and nothing hangs.
    assert_eq!(reader.does("recv 0"), "type 0x13");
    assert_eq!(reader.does("poll 5000"), "ready 1");
    assert_eq!(reader.does("recv 0"), refused);
    assert_eq!(reader.does("poll 0"), "ready 0");
    assert_eq!(reader.does("ask 1"), refused);
    // Other cases' daemons tell events in this namespace too: strangers, which are dropped.
    let nothing = format!("errno {}", libc::EAGAIN);
    assert_eq!(
        member.does(&format!("recv {}", libc::MSG_DONTWAIT)),
        nothing
    );
    shared.restart();
    assert_eq!(reader.does("ask 2"), "ok");
    assert_eq!(reader.does("recv 0"), "type 0x22");
    // A member that only listens hears the new daemon.
    assert_eq!(reader.does("policy 1"), "ok");
    assert_eq!(member.does("poll 5000"), "ready 1");
    assert_eq!(member.does("recv 0"), "type 0x13");
    // A dump whose chunks the new daemon does not know ends too.
    assert_eq!(waiter.does("recv 0"), "type 0x13");
    assert_eq!(waiter.does("recv 0"), refused);
    assert_eq!(waiter.does("ask 3"), "ok");
    assert_eq!(waiter.does("recv 0"), "type 0x22");
    // The namespace's events go on when the only client that asked is gone.
    drop(reader);
    drop(waiter);
    shared.until(|stat| stat.contains("\"users\": 1"));
    let mut other = Agent::start(&mut shared.client(me()));
    assert_eq!(other.does("policy 2"), "ok");
    assert_eq!(member.does("recv 0"), "type 0x13");
}

/// Runs a case in a network namespace of its own, where nobody else's events are heard.
fn alone(body: fn()) {
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        body();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Clients see nothing of a daemon that is killed between their requests.
fn killed_and_started_again() {
    let shared = Shared::start("again");
    let mut member = Agent::start(&mut shared.client(me()));
    let mut asker = Agent::start(&mut shared.client(me()));
    assert_eq!(member.does("bind 8"), "ok");
    for number in 0..4 {
        assert_eq!(asker.does(&format!("policy {number}")), "ok");
        assert_eq!(member.does("recv 0"), "type 0x13");
        let before = shared.stat();
        shared.kill_child();
        // The daemon is asked by others, who have no connection that has gone.
        shared.until(|stat| stat.contains(&format!("\"out\": {}", 2 * number + 1)));
        let after = shared.stat();
        for name in ["policies", "counters"] {
            assert_eq!(part(&after, name), part(&before, name));
        }
        // Whoever only listens hears the new daemon, from the port that it knows.
        let mut other = Agent::start(&mut shared.client(me()));
        assert_eq!(other.does(&format!("policy {}", 100 + number)), "ok");
        assert_eq!(member.does("poll 5000"), "ready 1");
        assert_eq!(member.does("recv 0"), "type 0x13");
    }
}

/// From a name in what `stat` prints to the end of its value.
fn part<'a>(stat: &'a str, name: &str) -> &'a str {
    let begin = stat.find(&format!("\"{name}\"")).unwrap();
    let rest = &stat[begin..];
    &rest[..rest.find('}').unwrap_or(rest.len())]
}

fn wiped_keys() {
    let shared = Shared::start("keys");
    let key = *b"only-SAs-know-me";
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let lies_there = || {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut shared.state(), &mut bytes).unwrap();
        bytes.windows(key.len()).any(|part| part == key)
    };
    let ip = |arguments: &str| {
        let mut command = Command::new("ip");
        command.arg("xfrm").args(arguments.split(' '));
        succeeds(&mut shared.client(command))
    };
    let add = format!(
        "state add src 10.9.0.1 dst 10.9.0.2 proto esp spi 0x900 mode tunnel enc cbc(aes) 0x{hex} \
         auth hmac(sha1) 0x{hex}"
    );
    assert!(!lies_there());
    ip(&add);
    assert!(lies_there());
    shared.kill_child();
    assert!(ip("state").contains(&hex));
    ip("state delete src 10.9.0.1 dst 10.9.0.2 proto esp spi 0x900");
    assert!(!lies_there());
    ip(&add);
    ip("state flush");
    assert!(!lies_there());
}

/// A daemon that cannot use what its predecessor has left says so and stays down.
fn damaged_state() {
    let mut shared = Shared::start("damaged");
    let mut agent = Agent::start(&mut shared.client(me()));
    assert_eq!(agent.does("policy 1"), "ok");
    let state = shared.state();
    let mut bytes = vec![0; 4096];
    std::os::unix::fs::FileExt::read_exact_at(&state, &mut bytes, 0).unwrap();
    for byte in bytes.iter_mut().skip(64) {
        *byte ^= 0x55;
    }
    std::os::unix::fs::FileExt::write_all_at(&state, &bytes, 0).unwrap();
    kill(Pid::from_raw(shared.child() as i32), Signal::SIGKILL).unwrap();
    assert_eq!(shared.daemon.wait().unwrap().code(), Some(1));
}

fn killed_clients() {
    let shared = Shared::start("clients");
    let before = shared.stat();
    for step in 0..4 {
        let mut agent = Agent::start(&mut shared.client(me()));
        let mut steps = vec!["bind 8", "policy 1", "dump 2", "recv 0"];
        steps.truncate(step + 1);
        for command in steps {
            agent.does(command);
        }
        agent.kill();
    }
    // Killed somewhere in the midst of requests.
    for delay in 0..20 {
        let mut agent = Agent::start(&mut shared.client(me()));
        for number in 0..200 {
            agent.say(&format!("ask {number}"));
        }
        std::thread::sleep(Duration::from_micros(300 * delay));
        agent.kill();
    }
    assert!(before.contains("\"clients\": 0"));
    shared.until(|stat| stat.contains("\"clients\": 0"));
    // The same ports again, and no dump is in the way.
    let mut agent = Agent::start(&mut shared.client(me()));
    assert_eq!(agent.does("dump 3"), "ok");
    assert_eq!(agent.does("recv 0"), "type 0x13");
}

fn senseless_frames() {
    let shared = Shared::start("frames");
    let mut agent = Agent::start(&mut shared.client(me()));
    assert_eq!(agent.does("ask 1"), "ok");
    let frames: [&[u8]; 6] = [&[], &[0], &[0xff; 48], &[0; 47], &[2; 48], &[1; 4096]];
    for frame in frames {
        let fd = socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        connect(fd.as_raw_fd(), &UnixAddr::new(&shared.socket()).unwrap()).unwrap();
        send(fd.as_raw_fd(), frame, MsgFlags::empty()).unwrap();
        let answer = recv(fd.as_raw_fd(), &mut [0; 64], MsgFlags::empty());
        assert!(matches!(answer, Ok(0) | Err(_)), "{frame:?}: {answer:?}");
    }
    assert_eq!(agent.does("recv 0"), "type 0x22");
    assert_eq!(agent.does("ask 2"), "ok");
}

fn others_at_a_shared_daemon() {
    let shared = Shared::start("others");
    let mut root = Agent::start(&mut shared.client(me()));
    assert_eq!(root.does("policy 1"), "ok");
    let mut nobody = Agent::start(as_nobody(&mut shared.client(me())));
    assert_eq!(nobody.does("policy 2"), "ok");
    assert_eq!(nobody.does("recv 0"), "type 0x2");
    assert_eq!(nobody.does("bind 8"), format!("errno {}", libc::EPERM));
    assert!(shared.stat().contains("\"out\": 1"));
    // Root of a user namespace is nobody outside of it.
    let mut command = shared.client(Command::new("unshare"));
    command.arg("-r").arg(me().get_program());
    if crate::process::user_namespaces_work() {
        let mut namesake = Agent::start(as_nobody(&mut command));
        assert_eq!(namesake.does("policy 3"), "ok");
        assert_eq!(namesake.does("recv 0"), "type 0x2");
        assert!(shared.stat().contains("\"out\": 1"));
    }
}

/// A script that may make named namespaces without touching the machine's.
fn in_private_mounts(script: &str) -> Vec<String> {
    let script = format!("set -e; mount -t tmpfs tmpfs /run; {script}");
    vec!["-m".into(), "sh".into(), "-c".into(), script]
}

fn ip_in_namespaces() {
    let script = "
        ip netns add one; ip netns add two
        ip xfrm policy add src 10.0.0.0/8 dst 11.0.0.0/8 dir out
        ip -n one xfrm policy add src 10.1.0.0/16 dst 11.0.0.0/8 dir in
        ip -n one xfrm policy add src 10.1.0.0/16 dst 11.0.0.0/8 dir out
        ip netns exec two ip xfrm policy add src 10.2.0.0/16 dst 11.0.0.0/8 dir fwd
        for name in one two; do ip -n $name xfrm policy count; done
        ip xfrm policy count
        ip -all netns exec ip xfrm policy count
        ip netns del one; ip netns del two";
    let text = succeeds(
        xfrmd()
            .args(["run", "--", "unshare"])
            .args(in_private_mounts(script)),
    );
    let counts: Vec<&str> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("SPD IN "))
        .map(str::trim)
        .collect();
    assert_eq!(counts.len(), 5, "{text}");
    assert_eq!(
        counts[..3],
        ["1 OUT 1 FWD 0", "0 OUT 0 FWD 1", "0 OUT 1 FWD 0"]
    );
}

fn events_of_other_namespaces() {
    // The second socket of the same kind hears its own namespace alone.
    let script = "
        ip netns add one; ip netns add two; ip -n one netns set two 5
        ip netns exec one ip xfrm monitor all-nsid >all & all=$!
        ip netns exec one ip xfrm monitor >own & own=$!
        added() { grep -c 'src 10' all; }
        tries=0
        until [ \"$(added)\" -gt 1 ] || [ $tries -ge 200 ]; do
            ip -n two xfrm policy update src 10.1.0.0/16 dst 11.0.0.0/8 dir in
            tries=$((tries + 1)); sleep 0.02
        done
        ip -n one xfrm policy add src 12.1.0.0/16 dst 11.0.0.0/8 dir in
        until grep -q '^src 12' own && grep -q 'src 12' all || [ $tries -ge 400 ]; do
            tries=$((tries + 1)); sleep 0.02
        done
        kill $all $own; wait
        grep -h 'src 10' all | sort -u; grep -h 'src 12' all own; grep -c 'src 10' own
        ip netns del one; ip netns del two";
    let directory = scratch("nsid");
    std::fs::create_dir(&directory).unwrap();
    let output = outcome(
        xfrmd()
            .args(["run", "--", "unshare"])
            .args(in_private_mounts(script))
            .current_dir(&directory),
    );
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        text,
        "[nsid 5]Updated src 10.1.0.0/16 dst 11.0.0.0/8 \n\
         [nsid current]src 12.1.0.0/16 dst 11.0.0.0/8 \n\
         src 12.1.0.0/16 dst 11.0.0.0/8 \n\
         0\n"
    );
    std::fs::remove_dir_all(&directory).unwrap();
}

fn instance_ends() {
    let shared = Shared::start("ends");
    let script = "
        ip netns add one
        ip -n one xfrm policy add src 10.1.0.0/16 dst 11.0.0.0/8 dir in
        ip -n one xfrm policy count; ip netns del one";
    let mut command = shared.client(Command::new("unshare"));
    succeeds(command.args(in_private_mounts(script)));
    shared.until(|stat| stat.contains("\"namespaces\": []"));
}
