//! What this process says, and where: results on standard output, progress and warnings on standard error.

use std::io::Write as _;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::Result;
use serde::Serialize;

use crate::episode::Problem;

/// How much is said, settled once by the command line before anything is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Manner {
    /// No progress, only results, warnings and errors.
    pub quiet: bool,
    /// Results as one JSON object, and no other words on standard output.
    pub json: bool,
}

static MANNER: OnceLock<Manner> = OnceLock::new();

/// Settles how this process speaks; only the first call counts.
pub(super) fn settle(manner: Manner) {
    let _ = MANNER.set(manner);
}

/// How this process speaks.
pub(super) fn manner() -> Manner {
    MANNER.get().copied().unwrap_or_default()
}

/// Prints a result for people to read; nothing where it is wanted as JSON.
pub(super) fn print(text: &str) {
    if !manner().json {
        write_out(text);
    }
}

/// Problems of a file that are worth reading; whoever gets more has another mistake to mend first.
const PROBLEMS_SHOWN: usize = 100;

/// Prints what is wrong with a file, line by line.
pub(super) fn print_problems(file: &Path, problems: &[Problem]) {
    for problem in problems.iter().take(PROBLEMS_SHOWN) {
        print(&format!("{}:{}: {}", file.display(), problem.line, problem.message));
    }
    if problems.len() > PROBLEMS_SHOWN {
        print(&format!("{}: and {} more problems", file.display(), problems.len() - PROBLEMS_SHOWN));
    }
}

/// An amount of memory or disk space, for people.
pub(super) fn size(bytes: u64) -> String {
    if bytes < 1_000_000_000 {
        format!("{:.0} MB", bytes as f64 / 1e6)
    } else {
        format!("{:.2} GB", bytes as f64 / 1e9)
    }
}

/// Prints a result for programs.
pub(super) fn print_json(value: &impl Serialize) -> Result<()> {
    write_out(&serde_json::to_string(value)?);
    Ok(())
}

/// A reader who has gone away is no error, but a full disk is.
fn write_out(text: &str) {
    let written = writeln!(std::io::stdout(), "{text}");
    if let Err(e) =
        written.or_else(|e| if e.kind() == std::io::ErrorKind::BrokenPipe { Ok(()) } else { Err(e) })
    {
        warn(&format!("error: cannot write to standard output: {e}"));
        std::process::exit(1);
    }
}

/// Tells what is going on.
pub(super) fn note(text: &str) {
    if !manner().quiet {
        warn(text);
    }
}

/// Tells what the user should know in any case.
pub(super) fn warn(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// How this program was called, for hints on what to type next.
pub(super) fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "bayesteach".into())
}
