//! Man pages and completions, made of the command line's definition.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;

use super::options::Cli;
use super::write;
use crate::config::Config;

/// Prints a script for a shell.
pub(super) fn completions(shell: Shell) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "xfrmd", &mut script);
    write(&String::from_utf8_lossy(&script))
}

/// Writes `xfrmd.8`, a page for each subcommand, and `xfrmd.toml.5`.
pub(super) fn man(directory: &Path) -> Result<ExitCode> {
    std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let shown = command.get_subcommands().filter(|it| !it.is_hide_set());
    for page in std::iter::once(&command).chain(shown) {
        let name = match page.get_name() {
            "xfrmd" => "xfrmd".to_owned(),
            other => format!("xfrmd-{other}"),
        };
        // Clap's own name of a subcommand has a space in it.
        let page = page
            .clone()
            .name(name.clone())
            .bin_name(name.replacen('-', " ", 1));
        let mut text = Vec::new();
        Man::new(page).section("8").render(&mut text)?;
        let path = directory.join(format!("{name}.8"));
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    let path = directory.join("xfrmd.toml.5");
    std::fs::write(&path, configuration()).with_context(|| path.display().to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// The configuration file's page: the documented file itself.
fn configuration() -> String {
    let file: String = Config::default()
        .to_file()
        .replace('\\', "\\e")
        .replace('-', "\\-")
        .lines()
        .map(|line| format!("\\&{line}\n"))
        .collect();
    format!(
        ".TH xfrmd.toml 5 \"\" \"xfrmd {}\"\n.SH NAME\nxfrmd.toml \\- configuration of xfrmd\n\
         .SH DESCRIPTION\n.B /etc/xfrmd/xfrmd.toml\nis read by the daemon when it starts, and again \
         on SIGHUP. It is TOML; all keys, with their defaults:\n.PP\n.nf\n{file}.fi\n.SH SEE ALSO\n\
         .BR xfrmd (8),\n.BR xfrmd\\-config (8)\n",
        env!("CARGO_PKG_VERSION")
    )
}
