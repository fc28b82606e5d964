//! Progress of a download on standard error: a bar on a terminal, a line now and then elsewhere.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use hf_hub::api::Progress;
use indicatif::{ProgressBar, ProgressStyle};

use super::silence::Pulse;

/// Time between two lines where there is no terminal.
const BETWEEN_LINES: Duration = Duration::from_secs(15);

/// How far one file is.
pub(super) struct Download {
    quiet: bool,
    name: String,
    size: usize,
    done: usize,
    bar: Option<ProgressBar>,
    last_line: Instant,
    pulse: Pulse,
}

impl Download {
    pub(super) fn new(quiet: bool, pulse: Pulse) -> Self {
        Self { quiet, name: String::new(), size: 0, done: 0, bar: None, last_line: Instant::now(), pulse }
    }

    fn line(&self) {
        let megabytes = |bytes: usize| bytes as f64 / 1e6;
        let (done, size) = (megabytes(self.done), megabytes(self.size));
        let _ = writeln!(std::io::stderr(), "download {}: {done:.1} of {size:.1} MB", self.name);
    }
}

impl Progress for Download {
    /// Called again where a download goes on after an interruption.
    fn init(&mut self, size: usize, filename: &str) {
        self.pulse.beat();
        (self.size, self.done, self.name) = (size, 0, filename.to_owned());
        if self.quiet || !std::io::stderr().is_terminal() {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| ProgressBar::new(size as u64));
        let template = "{msg} {bar:24} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(filename.to_owned());
        bar.set_position(0);
    }

    fn update(&mut self, size: usize) {
        self.pulse.beat();
        self.done += size;
        match &self.bar {
            Some(bar) => bar.set_position(self.done as u64),
            None if !self.quiet && self.last_line.elapsed() >= BETWEEN_LINES => {
                self.last_line = Instant::now();
                self.line();
            }
            None => {}
        }
    }

    fn finish(&mut self) {
        match &self.bar {
            Some(bar) => bar.finish_and_clear(),
            // Small files come without a word.
            None if !self.quiet && self.size > 10_000_000 => self.line(),
            None => {}
        }
    }
}
