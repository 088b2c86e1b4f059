//! Namespaces, and programs in them.

use std::fs::File;
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};

/// Of this program, started again: a namespace for as long as its standard input is open.
pub(crate) fn hold() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    println!("ready");
    let _ = std::io::stdin().lines().count();
    Ok(())
}

/// A program that is told lines and says lines. Without standard input it ends by itself.
pub(crate) struct Talk {
    child: Child,
    tell: Option<ChildStdin>,
    said: Lines<BufReader<ChildStdout>>,
}

impl Talk {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{command:?}"))?;
        let said = child.stdout.take().context("its standard output")?;
        Ok(Self {
            tell: child.stdin.take(),
            said: BufReader::new(said).lines(),
            child,
        })
    }

    pub(crate) fn line(&mut self) -> Result<String> {
        Ok(self.said.next().context("it has ended")??)
    }

    /// For a shell: runs a script that must succeed.
    pub(crate) fn sh(&mut self, script: &str) -> Result<()> {
        let tell = self.tell.as_mut().context("its standard input")?;
        writeln!(tell, "( set -e; {script}\n) >&2; echo \"=$?\"")?;
        match self.line()?.as_str() {
            "=0" => Ok(()),
            code => bail!("exit code {code}: {script}"),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.tell.take();
        let _ = self.child.wait();
    }
}

/// A program that runs until it is killed.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A network namespace.
pub(crate) struct Namespace(Talk);

impl Namespace {
    fn new() -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut talk = Talk::start(command.args(["wire", "namespace"]))?;
        talk.line()?;
        let namespace = Self(talk);
        namespace.sh("ip link set lo up")?;
        Ok(namespace)
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.pid())
    }

    /// A program in it.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg(program);
        command
    }

    /// Runs a script that must succeed.
    pub(crate) fn sh(&self, script: &str) -> Result<()> {
        let output = self.command("sh").args(["-ec", script]).output()?;
        if !output.status.success() {
            bail!("{script}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Does something in it, on a thread of its own.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = self.path();
        std::thread::scope(|scope| {
            let entered = scope.spawn(move || {
                setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
                work()
            });
            entered.join().map_err(|_| anyhow::anyhow!("a panic"))?
        })
    }
}

/// Where the ends of a pair are on the wire.
pub(crate) const WIRE: [&str; 2] = ["192.168.77.1", "192.168.77.2"];

/// Two namespaces joined by a veth pair.
pub(crate) struct Pair {
    pub(crate) ends: [Namespace; 2],
}

impl Pair {
    pub(crate) fn new() -> Result<Self> {
        let ends = [Namespace::new()?, Namespace::new()?];
        let [a, b] = &ends;
        a.sh(&format!(
            "ip link add v0 type veth peer name v0 netns {}; ip link set v0 up; \
             ip addr add {}/24 dev v0",
            b.0.pid(),
            WIRE[0]
        ))?;
        b.sh(&format!(
            "ip link set v0 up; ip addr add {}/24 dev v0",
            WIRE[1]
        ))?;
        Ok(Self { ends })
    }
}

/// Processes with their descendants that are xfrmd: what was started keeps the one that works.
pub(crate) fn daemons(pids: &[u32]) -> Result<Vec<u32>> {
    let mut found = pids.to_vec();
    let mut at = 0;
    while let Some(&pid) = found.get(at) {
        at += 1;
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let children = task?.path().join("children");
            for child in std::fs::read_to_string(children)?.split_whitespace() {
                let name = std::fs::read_to_string(format!("/proc/{child}/comm"));
                if name.is_ok_and(|name| name.trim() == "xfrmd") {
                    found.push(child.parse()?);
                }
            }
        }
    }
    Ok(found)
}
