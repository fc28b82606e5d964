//! Progress on standard error: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::manner;

/// A stage's progress.
pub(super) struct Progress {
    bar: ProgressBar,
    title: &'static str,
    terminal: bool,
    last_line: std::cell::Cell<Option<Instant>>,
}

/// Time between two lines where there is no terminal.
const BETWEEN_LINES: Duration = Duration::from_secs(15);

impl Progress {
    /// Begins a stage of `total` units, `done` of which are done before.
    pub(super) fn new(title: &'static str, done: u64, total: u64) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = match manner().quiet {
            true => ProgressDrawTarget::hidden(),
            false => ProgressDrawTarget::stderr_with_hz(8),
        };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        let template = "{prefix:>9} {bar:24} {pos}/{len}  {elapsed_precise}  {eta} left  {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(title);
        bar.set_position(done);
        bar.reset_eta();
        Self { bar, title, terminal, last_line: std::cell::Cell::new(None) }
    }

    /// `done` units are done; `message` says what is worth seeing.
    pub(super) fn at(&self, done: u64, message: &str) {
        self.bar.set_position(done);
        self.bar.set_message(message.to_string());
        let total = self.bar.length().unwrap_or(0);
        let due = self.last_line.get().is_none_or(|at| at.elapsed() >= BETWEEN_LINES) || done == total;
        if !self.terminal && due {
            self.last_line.set(Some(Instant::now()));
            let left = self.bar.eta().as_secs();
            let left = if done == 0 { String::new() } else { format!("  {left} s left") };
            super::note(&format!("{} {done}/{total}{left}  {message}", self.title));
        }
    }

    /// [`Self::at`] where the total is known only now.
    pub(super) fn of(&self, done: u64, total: u64, message: &str) {
        self.bar.set_length(total);
        self.at(done, message);
    }

    /// A line above the bar.
    pub(super) fn line(&self, text: &str) {
        self.bar.suspend(|| super::note(text));
    }

    /// The stage is over; the bar goes away.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
