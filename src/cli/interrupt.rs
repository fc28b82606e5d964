//! Ctrl-C: while training, the first finishes the step and writes a checkpoint; otherwise, and the second time,
//! the process ends at once. Nothing half-written stays either way: what was being written is removed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};

/// Whether the user asked to stop.
#[derive(Clone)]
pub(super) struct Interrupt {
    stop: Arc<AtomicBool>,
    graceful: Arc<AtomicBool>,
}

impl Interrupt {
    /// Takes over Ctrl-C (and termination requests) for this process.
    pub(super) fn install() -> Result<Self> {
        let this = Self { stop: Arc::default(), graceful: Arc::default() };
        let handler = this.clone();
        ctrlc::set_handler(move || {
            let again = handler.stop.swap(true, Ordering::SeqCst);
            if again || !handler.graceful.load(Ordering::SeqCst) {
                crate::files::abandon();
                std::process::exit(130);
            }
            super::note(
                "\ninterrupted: finishing this step and writing a checkpoint (again to stop at once)",
            );
        })
        .context("cannot take over Ctrl-C")?;
        Ok(this)
    }

    /// Runs `f`, which watches the flag and ends in order by itself.
    pub(super) fn gracefully<R>(&self, f: impl FnOnce(&AtomicBool) -> R) -> R {
        self.graceful.store(true, Ordering::SeqCst);
        let result = f(&self.stop);
        self.graceful.store(false, Ordering::SeqCst);
        result
    }
}
