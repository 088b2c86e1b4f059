//! What is installed: documents made of the program, and a Debian package.
//!
//! A package is made of what `cargo build` has made, with nothing but dpkg's own tools, by whoever
//! builds it: no root is needed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where a profile's programs are.
#[expect(
    clippy::disallowed_methods,
    reason = "cargo is told so where to put them"
)]
fn built(profile: &str) -> PathBuf {
    let directory = match profile {
        "dev" => "debug",
        other => other,
    };
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    target.join(directory)
}

fn run(command: &mut Command) -> io::Result<()> {
    match command.status()? {
        status if status.success() => Ok(()),
        status => Err(io::Error::other(format!("{command:?}: {status}"))),
    }
}

fn printed(command: &mut Command) -> io::Result<String> {
    let output = command.stderr(std::process::Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("{command:?}: {}", output.status)));
    }
    String::from_utf8(output.stdout).map_err(io::Error::other)
}

fn build(profile: &str) -> io::Result<PathBuf> {
    run(Command::new("cargo").args([
        "build",
        "--locked",
        "--package",
        "xfrmd",
        "--profile",
        profile,
    ]))?;
    Ok(built(profile).join("xfrmd"))
}

/// What is made of which program, and where.
struct Wanted {
    program: PathBuf,
    out: PathBuf,
}

/// `[--profile NAME | --program PATH] [--out DIRECTORY]`.
fn wanted(arguments: &[String], out: &str) -> io::Result<Wanted> {
    let mut profile = "release";
    let mut program = None;
    let mut out = PathBuf::from(out);
    for pair in arguments.chunks(2) {
        match pair {
            [flag, value] if flag == "--profile" => profile = value,
            [flag, value] if flag == "--program" => program = Some(PathBuf::from(value)),
            [flag, value] if flag == "--out" => out = value.into(),
            _ => return Err(io::Error::other(format!("what is {pair:?}?"))),
        }
    }
    let program = program.map_or_else(|| build(profile), Ok)?;
    Ok(Wanted { program, out })
}

/// Man pages and completions.
pub(crate) fn documents(arguments: &[String]) -> io::Result<()> {
    let Wanted { program, out } = wanted(arguments, "target/doc-files")?;
    write_documents(&program, &out.join("man"), &out.join("completions"))?;
    println!("{}", out.display());
    Ok(())
}

/// The files of completions, where each shell looks for them below `/usr/share`.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "bash-completion/completions/xfrmd"),
    ("zsh", "zsh/vendor-completions/_xfrmd"),
    ("fish", "fish/vendor_completions.d/xfrmd.fish"),
];

fn write_documents(program: &Path, man: &Path, completions: &Path) -> io::Result<()> {
    run(Command::new(program).arg("man").arg(man))?;
    for (shell, path) in COMPLETIONS {
        let script = printed(Command::new(program).args(["completions", shell]))?;
        put(&completions.join(path), script.as_bytes(), false)?;
    }
    Ok(())
}

fn put(path: &Path, content: &[u8], executable: bool) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, content)?;
    let mode = if executable { 0o755 } else { 0o644 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// A Debian package.
pub(crate) fn deb(arguments: &[String]) -> io::Result<()> {
    let Wanted { program, out } = wanted(arguments, "target/package")?;
    let version = printed(Command::new(&program).arg("--version"))?;
    let version = version.trim().rsplit(' ').next().unwrap_or("0").to_owned();
    let architecture = printed(Command::new("dpkg").arg("--print-architecture"))?;
    let architecture = architecture.trim();
    let root = out.join("debian/xfrmd");
    let man = out.join("debian/man");
    let _ = fs::remove_dir_all(out.join("debian"));
    let binary = root.join("usr/bin/xfrmd");
    put(&binary, &fs::read(&program)?, true)?;
    run(Command::new("strip").arg(&binary))?;
    for unit in ["xfrmd.service", "xfrmd.socket"] {
        let text = fs::read(Path::new("packaging/systemd").join(unit))?;
        put(
            &root.join("usr/lib/systemd/system").join(unit),
            &text,
            false,
        )?;
    }
    // With every key commented out it says what would be without it.
    let configuration = printed(Command::new(&program).args(["config", "--config", "/dev/null"]))?;
    put(
        &root.join("etc/xfrmd/xfrmd.toml"),
        configuration.as_bytes(),
        false,
    )?;
    write_documents(&program, &man, &root.join("usr/share"))?;
    for page in fs::read_dir(&man)? {
        let page = page?.path();
        run(Command::new("gzip").args(["-9n"]).arg(&page))?;
        let name = format!(
            "{}.gz",
            page.file_name().unwrap_or_default().to_string_lossy()
        );
        let section = if name.contains(".5.") { "man5" } else { "man8" };
        let content = fs::read(man.join(&name))?;
        put(
            &root.join("usr/share/man").join(section).join(name),
            &content,
            false,
        )?;
    }
    let documents = root.join("usr/share/doc/xfrmd");
    put(&documents.join("README.md"), &fs::read("README.md")?, false)?;
    for page in fs::read_dir("docs")? {
        let page = page?;
        put(
            &documents.join(page.file_name()),
            &fs::read(page.path())?,
            false,
        )?;
    }
    put(
        &documents.join("copyright"),
        &fs::read("packaging/debian/copyright")?,
        false,
    )?;
    control(&out, &root, &version, architecture)?;
    let package = out.join(format!("xfrmd_{version}_{architecture}.deb"));
    run(Command::new("dpkg-deb")
        .args(["--root-owner-group", "--build"])
        .arg(&root)
        .arg(&package))?;
    println!("{}", package.display());
    Ok(())
}

/// What dpkg reads.
fn control(out: &Path, root: &Path, version: &str, architecture: &str) -> io::Result<()> {
    let text = fs::read_to_string("packaging/debian/control")?;
    // dpkg-shlibdeps wants a source package around it.
    put(&out.join("debian/control"), text.as_bytes(), false)?;
    let needed = printed(
        Command::new("dpkg-shlibdeps")
            .args(["-O", "debian/xfrmd/usr/bin/xfrmd"])
            .current_dir(out),
    )?;
    let needed = needed
        .trim()
        .strip_prefix("shlibs:Depends=")
        .unwrap_or_default()
        .to_owned();
    let binary = text.split("\n\n").nth(1).unwrap_or_default();
    let binary = binary.replace("${shlibs:Depends}", &needed).replace(
        "Architecture: any",
        &format!("Architecture: {architecture}\nVersion: {version}"),
    );
    let directory = root.join("DEBIAN");
    put(
        &directory.join("control"),
        format!("{}\n", binary.trim_end()).as_bytes(),
        false,
    )?;
    put(
        &directory.join("conffiles"),
        b"/etc/xfrmd/xfrmd.toml\n",
        false,
    )?;
    for script in ["postinst", "prerm", "postrm"] {
        let text = fs::read(Path::new("packaging/debian").join(script))?;
        put(&directory.join(script), &text, true)?;
    }
    Ok(())
}
