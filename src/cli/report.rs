//! `bayesteach report`, and the last stage of `run`.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::{Done, print};
use crate::report;

pub(super) fn command(run: &Path) -> Result<Done> {
    write(run)?;
    Ok(Done::Finished)
}

/// Writes a run's page and plots, and says where they are.
pub(super) fn write(run: &Path) -> Result<()> {
    report::write(run).with_context(|| format!("cannot report on {}", run.display()))?;
    let (page, plots) = (run.join(report::REPORT_FILE), run.join(report::PLOTS_FOLDER));
    print(&format!("report: {} (plots in {})", page.display(), plots.display()));
    Ok(())
}
