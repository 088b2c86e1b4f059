//! Whole programs as clients: what they print over xfrmd must be what they
//! print over Linux, byte for byte.
//!
//! A client is a shell script in `clients/`, run by `bash` with this crate's
//! directory as its own and a directory in `$CLIENTS`, where the compiled ones
//! are. What it prints on a reference kernel is committed as
//! `golden/KERNEL/clients/NAME.txt`, a line `exit CODE` after each command that
//! failed; dates are renamed, nothing else is.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::kernel::{Kernel, suite_dir};

/// Runs the script that it is given, its exit codes among its output.
const WITH_EXIT_CODES: &str = r#"trap 'echo "exit $?"' ERR; . "$0" 2>&1"#;

/// A client.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Client {
    /// The script's name without `.sh`.
    pub name: String,
    path: PathBuf,
}

/// All clients, by name.
///
/// # Errors
/// When the directory cannot be read.
pub fn all() -> io::Result<Vec<Client>> {
    let mut clients = Vec::new();
    for entry in std::fs::read_dir(suite_dir().join("clients"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "sh") {
            let name = path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            clients.push(Client { name, path });
        }
    }
    clients.sort();
    Ok(clients)
}

/// Where a client's recorded output is kept.
#[must_use]
pub fn golden_path(kernel: Kernel, client: &Client) -> PathBuf {
    let directory = suite_dir().join("golden").join(kernel.name).join("clients");
    directory.join(format!("{}.txt", client.name))
}

/// The version of `ip` that is installed: its output depends on it.
///
/// # Errors
/// What is missing, and how to get it.
pub fn ip_version() -> Result<String, String> {
    let output = Command::new("ip").arg("-V").output();
    let output = output.map_err(|_| "no `ip` here: apt-get install iproute2".to_owned())?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Compiles the clients that are C programs into `directory`.
///
/// # Errors
/// What is missing, and how to get it.
pub fn build(directory: &Path) -> Result<(), String> {
    let fail =
        |what: &str| format!("{what}: apt-get install gcc pkg-config libnl-3-dev libnl-xfrm-3-dev");
    std::fs::create_dir_all(directory).map_err(|e| e.to_string())?;
    let flags = Command::new("pkg-config")
        .args(["--cflags", "--libs", "libnl-xfrm-3.0"])
        .output()
        .map_err(|_| fail("no pkg-config"))?;
    if !flags.status.success() {
        return Err(fail("no libnl-xfrm"));
    }
    let status = Command::new("cc")
        .arg("-o")
        .arg(directory.join("libnl_xfrm"))
        .arg(suite_dir().join("clients/libnl_xfrm.c"))
        .args(String::from_utf8_lossy(&flags.stdout).split_whitespace())
        .status()
        .map_err(|_| fail("no C compiler"))?;
    if !status.success() {
        return Err(fail("libnl_xfrm.c does not compile"));
    }
    let example = std::env::current_exe()
        .map(|me| {
            me.ancestors()
                .nth(2)
                .unwrap_or(&me)
                .join("examples/xfrmnetlink")
        })
        .and_then(|path| std::fs::copy(path, directory.join("xfrmnetlink")));
    match example {
        Ok(_) => Ok(()),
        Err(_) => Err("no xfrmnetlink: cargo build --workspace --examples".to_owned()),
    }
}

fn environment(command: &mut Command, build_dir: &Path) {
    command
        .current_dir(suite_dir())
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .env("CLIENTS", build_dir)
        .stdin(Stdio::null());
}

/// Runs a client over a private instance of `xfrmd` that behaves as `kernel`.
///
/// # Errors
/// When it cannot be started.
pub fn run_over_xfrmd(
    xfrmd: &Path,
    kernel: Kernel,
    client: &Client,
    build_dir: &Path,
) -> io::Result<String> {
    let mut command = Command::new(xfrmd);
    command
        .args([
            "run",
            "--kernel",
            kernel.name,
            "--",
            "bash",
            "-c",
            WITH_EXIT_CODES,
        ])
        .arg(&client.path);
    environment(&mut command, build_dir);
    let output = command.stderr(Stdio::inherit()).output()?;
    Ok(normalize(&String::from_utf8_lossy(&output.stdout)))
}

/// Runs clients inside a reference kernel, each in a namespace of its own,
/// and leaves what they print as files in `out`.
///
/// # Errors
/// When the kernel cannot be started or ends badly.
pub fn run_in_kernel(
    kernel: Kernel,
    clients: &[Client],
    out: &Path,
    build_dir: &Path,
) -> io::Result<()> {
    const EACH: &str = r#"
        cd "$1"; export LC_ALL=C TZ=UTC CLIENTS=$3
        for name in "${@:5}"; do
            unshare -n bash -c "$4" "$PWD/clients/$name.sh" > "$2/$name.txt"
        done
        exit 0"#;
    let _ = std::fs::remove_dir_all(out);
    std::fs::create_dir_all(out)?;
    let paths = [&suite_dir(), out, build_dir].map(|path| path.display().to_string());
    let args: Vec<String> = ["-c", EACH, "each"]
        .map(str::to_owned)
        .into_iter()
        .chain(paths)
        .chain([WITH_EXIT_CODES.to_owned()])
        .chain(clients.iter().map(|client| client.name.clone()))
        .collect();
    let status = kernel.run(600, Path::new("bash"), &args)?;
    if !status.success() {
        return Err(io::Error::other(format!("the kernel ended with {status}")));
    }
    for entry in std::fs::read_dir(out)? {
        let path = entry?.path();
        let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
        std::fs::write(path, normalize(&text))?;
    }
    Ok(())
}

/// Renames dates; everything else must agree.
#[must_use]
pub fn normalize(text: &str) -> String {
    const SHAPE: &[u8] = b"0000-00-00 00:00:00";
    let bytes = text.as_bytes();
    let is_date = |at: usize| {
        let Some(window) = bytes.get(at..at + SHAPE.len()) else {
            return false;
        };
        SHAPE.iter().zip(window).all(|(shape, byte)| match shape {
            b'0' => byte.is_ascii_digit(),
            b':' => matches!(byte, b':' | b'-'),
            other => other == byte,
        })
    };
    let mut out = String::with_capacity(text.len());
    let mut skip_to = 0;
    for (at, character) in text.char_indices() {
        if at < skip_to {
            continue;
        }
        if is_date(at) {
            out += "DATE";
            skip_to = at + SHAPE.len();
        } else {
            out.push(character);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_renamed() {
        let text = "add 2026-11-21 09:02:12 use -\nadd_time: 2026-11-21 09-02-12, x 2026-1";
        assert_eq!(normalize(text), "add DATE use -\nadd_time: DATE, x 2026-1");
    }
}
