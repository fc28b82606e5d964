//! `bayesteach completions` and `bayesteach man`: files for shells and for man, from the command line's own definitions.

use std::path::Path;

use anyhow::{Context as _, Result};
use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Done, print};
use crate::files;

/// Prints what a shell reads to complete commands and options.
pub(super) fn completions(shell: Shell, mut command: Command) -> Result<Done> {
    let name = command.get_name().to_string();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    print(String::from_utf8(script)?.trim_end());
    Ok(Done::Finished)
}

/// Writes a page for the program and one for each of its commands.
pub(super) fn man(out: &Path, mut command: Command) -> Result<Done> {
    std::fs::create_dir_all(out).with_context(|| format!("cannot make the folder {}", out.display()))?;
    command.build();
    let program = command.get_name().to_string();
    let commands: Vec<Command> =
        command.get_subcommands().filter(|c| c.get_name() != "help").cloned().collect();
    let mut pages = vec![(program.clone(), command)];
    for command in commands {
        let name = format!("{program}-{}", command.get_name());
        pages.push((name.clone(), command.display_name(name)));
    }
    let count = pages.len();
    for (name, command) in pages {
        let mut page = Vec::new();
        Man::new(command).title(name.to_uppercase()).render(&mut page)?;
        files::write(&out.join(format!("{name}.1")), &page)?;
    }
    print(&format!("{count} pages are in {}", out.display()));
    Ok(Done::Finished)
}
