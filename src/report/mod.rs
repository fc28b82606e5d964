//! A page and plots of a run, and runs side by side, from the files of its directory and [`metrics`](crate::metrics) alone.
//!
//! The page is one file without scripts that asks the network for nothing; plots are SVG, in the page and as files.
//! Everything that comes from the run is escaped: by the template, or by the drawing.

mod chart;
mod compare;
mod page;
mod plots;
mod run;
mod scale;
mod style;
mod svg;

pub use compare::{Compared, ComparedAt, Comparison, Estimate};
pub use page::{PLOTS_FOLDER, REPORT_FILE, write};
