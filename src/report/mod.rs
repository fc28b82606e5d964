//! A page and plots of a run, and runs side by side, from the files of its directory and [`metrics`](crate::metrics) alone.
//!
//! A run's page is one file without scripts that asks the network for nothing; plots are SVG, in the page and as files.
//! The pages of `view` have a script that asks the server that gave them.
//! Everything that comes from the run is escaped: by the template, or by the drawing.

mod belief;
mod chart;
mod compare;
mod depth;
mod live;
mod page;
mod plots;
mod run;
mod scale;
mod style;
mod svg;

pub use belief::belief_page;
pub use compare::{Compared, ComparedAt, Comparison, Difference, Estimate};
pub use live::{LIVE_RUNS, live, live_page};
pub use page::{PLOTS_FOLDER, REPORT_FILE, write};
