//! Which programs can be run, and how they reach the instance.
//!
//! The dynamic linker loads it. A program without one, or of another C library, is for the
//! supervisor, where the front has one. What neither can serve (another architecture, privileges
//! gained when it starts) would silently talk to the host's kernel; it is refused, with the reason.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access, getegid, geteuid};

use super::seccomp::Front;

/// Interpreters of interpreters: the kernel goes no deeper.
const DEEPEST_SCRIPT: usize = 5;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;

/// Why a program is not run.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// There is none of that name.
    NotFound,
    /// It cannot be executed.
    NotExecutable(io::Error),
    /// It has no dynamic linker.
    Static,
    /// It runs with other privileges than ours.
    Privileged(&'static str),
    /// The shim is for another architecture.
    OtherMachine,
    /// The shim is for another C library.
    OtherLibc,
}

impl Refusal {
    /// The exit code that shells give in such a case.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound => 127,
            _ => 126,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const CONSEQUENCE: &str =
            "the shim cannot be loaded into it, and it would silently reach the host's kernel";
        match self {
            Self::NotFound => f.write_str("command not found"),
            Self::NotExecutable(error) => write!(f, "cannot be executed: {error}"),
            Self::Static => write!(
                f,
                "statically linked: {CONSEQUENCE} (--front auto serves it)"
            ),
            Self::Privileged(how) => write!(f, "{how}: {CONSEQUENCE}"),
            Self::OtherMachine => write!(f, "for another architecture: {CONSEQUENCE}"),
            Self::OtherLibc => {
                write!(
                    f,
                    "not linked with the GNU C library: {CONSEQUENCE} (--front seccomp serves it)"
                )
            }
        }
    }
}

/// Finds a program as a shell does.
pub(crate) fn find(name: &OsStr, search: Option<OsString>) -> Result<PathBuf, Refusal> {
    if name.as_bytes().contains(&b'/') {
        let path = PathBuf::from(name);
        return match path.metadata() {
            Ok(_) => Ok(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Refusal::NotFound),
            Err(error) => Err(Refusal::NotExecutable(error)),
        };
    }
    let search = search.unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let mut unusable = None;
    for directory in std::env::split_paths(&search) {
        let path = directory.join(name);
        if !path.is_file() {
            continue;
        }
        match access(&path, AccessFlags::X_OK) {
            Ok(()) => return Ok(path),
            Err(error) => unusable = Some(Refusal::NotExecutable(error.into())),
        }
    }
    Err(unusable.unwrap_or(Refusal::NotFound))
}

/// How a program reaches the instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The shim is loaded into it.
    Shim,
    /// The supervisor answers its calls; it must not run without the filter.
    Supervisor,
}

/// How it reaches the instance, if it can.
pub(crate) fn check(path: &Path, front: Front) -> Result<Reach, Refusal> {
    let mut path = path.to_path_buf();
    for _ in 0..DEEPEST_SCRIPT {
        let file = File::open(&path).map_err(Refusal::NotExecutable)?;
        check_privileges(&path, &file)?;
        let mut head = Vec::new();
        (&file)
            .take(256)
            .read_to_end(&mut head)
            .map_err(Refusal::NotExecutable)?;
        let Some(line) = head.strip_prefix(b"#!") else {
            return check_elf(&file, &head, front);
        };
        let line = line.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let interpreter = line
            .trim_ascii()
            .split(u8::is_ascii_whitespace)
            .next()
            .unwrap_or_default();
        path = PathBuf::from(OsStr::from_bytes(interpreter));
    }
    Err(Refusal::NotExecutable(io::Error::from_raw_os_error(
        libc::ELOOP,
    )))
}

fn check_privileges(path: &Path, file: &File) -> Result<(), Refusal> {
    let status = file.metadata().map_err(Refusal::NotExecutable)?;
    if status.is_dir() {
        return Err(Refusal::NotExecutable(io::Error::from_raw_os_error(
            libc::EISDIR,
        )));
    }
    if status.mode() & SETUID != 0 && status.uid() != geteuid().as_raw() {
        return Err(Refusal::Privileged("setuid"));
    }
    if status.mode() & SETGID != 0 && status.gid() != getegid().as_raw() {
        return Err(Refusal::Privileged("setgid"));
    }
    if !geteuid().is_root() && super::host::has_capabilities(path) {
        return Err(Refusal::Privileged("it has file capabilities"));
    }
    Ok(())
}

fn check_elf(file: &File, head: &[u8], front: Front) -> Result<Reach, Refusal> {
    let not_a_program = || Refusal::NotExecutable(io::Error::from_raw_os_error(libc::ENOEXEC));
    if !head.starts_with(b"\x7fELF") {
        return Err(not_a_program());
    }
    let own = own_machine().ok_or_else(not_a_program)?;
    let (class, machine) = machine(head).ok_or_else(not_a_program)?;
    if (class, machine) != own {
        return Err(Refusal::OtherMachine);
    }
    if !front.preloads() {
        return Ok(Reach::Supervisor);
    }
    match interpreter(file, head) {
        None if front.supervises() => Ok(Reach::Supervisor),
        None => Err(Refusal::Static),
        // musl's linker would try to load the shim and fail.
        Some(linker)
            if cfg!(target_env = "gnu") && linker.windows(7).any(|part| part == b"ld-musl") =>
        {
            Err(Refusal::OtherLibc)
        }
        Some(_) => Ok(Reach::Shim),
    }
}

/// Word size and machine of an ELF header.
fn machine(head: &[u8]) -> Option<(u8, u16)> {
    Some((
        *head.get(4)?,
        u16::from_ne_bytes(head.get(18..20)?.try_into().ok()?),
    ))
}

fn own_machine() -> Option<(u8, u16)> {
    let mut head = [0; 20];
    File::open("/proc/self/exe")
        .and_then(|file| file.read_exact_at(&mut head, 0))
        .ok()?;
    machine(&head)
}

/// The dynamic linker that a 64-bit ELF file names.
fn interpreter(file: &File, head: &[u8]) -> Option<Vec<u8>> {
    segments(file, head, PT_INTERP).next()
}

/// Whether Go's own linker has made it: its runtime asks nobody else for the time and waits in its own way.
pub(crate) fn is_of_go(file: &File) -> bool {
    const OWNER: &[u8] = b"Go\0\0";
    let mut head = [0; 64];
    let read = file.read_exact_at(&mut head, 0).is_ok();
    // Length of the owner's name, of the rest, kind, name.
    let is_go = |note: Vec<u8>| note.get(12..16) == Some(OWNER);
    read && segments(file, &head, PT_NOTE).any(is_go)
}

/// The beginnings of segments of a kind, of a 64-bit ELF file.
fn segments(file: &File, head: &[u8], wanted: u32) -> impl Iterator<Item = Vec<u8>> {
    let long = |bytes: &[u8], at: usize| -> Option<u64> {
        Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
    };
    let half = |at: usize| -> Option<u64> {
        Some(u16::from_ne_bytes(head.get(at..at + 2)?.try_into().ok()?).into())
    };
    let table = long(head, 32).zip(half(54));
    let count = half(56).unwrap_or(0);
    (0..count).filter_map(move |index| {
        let (table, size) = table?;
        let mut segment = [0; 56];
        let at = table.checked_add(index * size)?;
        file.read_exact_at(&mut segment, at).ok()?;
        let kind = u32::from_ne_bytes(*segment.first_chunk()?);
        if kind != wanted {
            return None;
        }
        let len = usize::try_from(long(&segment, 32)?).ok()?.min(4096);
        let mut content = vec![0; len];
        file.read_exact_at(&mut content, long(&segment, 8)?).ok()?;
        Some(content)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_could_be_run() {
        let reach = check(&std::env::current_exe().unwrap(), Front::Auto);
        assert_eq!(reach.unwrap(), Reach::Shim);
    }

    #[test]
    fn a_script_is_judged_by_its_interpreter() {
        let dir = std::env::temp_dir().join(format!("xfrmd-script-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("script");
        std::fs::write(&path, "#!/bin/sh -e\ntrue\n").unwrap();
        check(&path, Front::Preload).unwrap();
        std::fs::write(&path, "no program\n").unwrap();
        assert!(matches!(
            check(&path, Front::Auto),
            Err(Refusal::NotExecutable(_))
        ));
        std::fs::write(&path, format!("#! {}\n", path.display())).unwrap();
        assert!(matches!(
            check(&path, Front::Auto),
            Err(Refusal::NotExecutable(_))
        ));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        let refusal = find(OsStr::new("no-such-program"), None).unwrap_err();
        assert_eq!(refusal.exit_code(), 127);
        let refusal = find(OsStr::new("/no/such/program"), None).unwrap_err();
        assert_eq!(refusal.exit_code(), 127);
        assert!(find(OsStr::new("sh"), Some("/usr/bin:/bin".into())).is_ok());
    }
}
