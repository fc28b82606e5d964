//! Who is drawn how. Colours are those of Okabe and Ito, which colour-blind readers tell apart; each comes with a kind
//! of line and a marker of its own, so that the plots read in grey too.

/// What a line or bar is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// The base model: vermillion, dotted, triangles.
    Baseline,
    /// The base with the adapter: blue, solid, circles.
    FineTuned,
    /// The teacher: ink, dashed, squares.
    Teacher,
    /// The batches of the training: bluish green, thin, no markers.
    Training,
    /// One of several runs: a colour, a kind of line and a marker each.
    Run(usize),
}

/// How many runs can be told apart.
pub(super) const RUNS: usize = 6;

const RUN_CLASSES: [&str; RUNS] = ["run0", "run1", "run2", "run3", "run4", "run5"];
/// Blue, vermillion, bluish green, reddish purple, orange, sky blue.
const RUN_LIGHT: [&str; RUNS] = ["#0072b2", "#d55e00", "#009e73", "#b8578c", "#b87f00", "#56b4e9"];
const RUN_DARK: [&str; RUNS] = ["#56b4e9", "#e69f00", "#2fc79a", "#cc79a7", "#f0e442", "#ff8f52"];
const RUN_DASHES: [&str; RUNS] = ["none", "7 4", "2 4", "10 3 2 3", "4 2", "1 3"];

impl Who {
    /// The class of its marks in the style sheet.
    pub(super) fn class(self) -> &'static str {
        match self {
            Who::Baseline => "base",
            Who::FineTuned => "tuned",
            Who::Teacher => "teach",
            Who::Training => "train",
            Who::Run(number) => RUN_CLASSES[number % RUNS],
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Who::Baseline => "baseline",
            Who::FineTuned => "fine-tuned",
            Who::Teacher => "teacher",
            Who::Training => "training batches",
            Who::Run(_) => "run",
        }
    }
}

/// The colours of a theme.
struct Colours {
    ink: &'static str,
    soft: &'static str,
    grid: &'static str,
    ground: &'static str,
    base: &'static str,
    tuned: &'static str,
    train: &'static str,
    /// Text on a shade that is nearly `tuned`.
    on_tuned: &'static str,
}

const LIGHT: Colours = Colours {
    ink: "#1b1b1f",
    soft: "#5b5e66",
    grid: "#dcdee3",
    ground: "#ffffff",
    base: "#d55e00",
    tuned: "#0072b2",
    train: "#009e73",
    on_tuned: "#ffffff",
};

const DARK: Colours = Colours {
    ink: "#ececf1",
    soft: "#a9adb8",
    grid: "#383c46",
    ground: "#1a1c22",
    base: "#e69f00",
    tuned: "#56b4e9",
    train: "#2fc79a",
    on_tuned: "#101216",
};

/// The plots' style sheet on a light ground.
pub(super) fn light() -> String {
    sheet(&LIGHT) + &run_sheet(&RUN_LIGHT)
}

/// The same on a dark one.
pub(super) fn dark() -> String {
    sheet(&DARK) + &run_sheet(&RUN_DARK)
}

/// What does not depend on the theme.
pub(super) const SHAPES: &str = "
text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;font-size:11px;stroke:none}
.title{font-size:13px;font-weight:600}.small{font-size:9.5px}.strong{font-weight:700}
.axis,.grid,.whisker,.curve,.guide{fill:none}.axis{stroke-width:1}.grid{stroke-width:1}
.guide{stroke-width:1.2;stroke-dasharray:1 3;stroke-linecap:round}
.curve{stroke-width:2;stroke-linejoin:round;stroke-linecap:round}.whisker{stroke-width:1.3}
.base .curve{stroke-dasharray:.5 4.5;stroke-width:2.6}.teach .curve{stroke-dasharray:7 4}.train .curve{stroke-width:1.2}
.area{fill-opacity:.16;stroke:none}.mark{stroke-width:1}.teach .bar{fill-opacity:.25}.bar{stroke:none}
.base .bar{fill-opacity:.75}.target{stroke-width:2.2;fill:none}
";

fn sheet(c: &Colours) -> String {
    let Colours { ink, soft, grid, ground, base, tuned, train, on_tuned } = c;
    format!(
        "text{{fill:{ink}}}.soft{{fill:{soft}}}.axis,.guide{{stroke:{soft}}}.grid{{stroke:{grid}}}\
         .base .curve,.base .whisker{{stroke:{base}}}.base .area,.base .bar,.base .mark{{fill:{base}}}\
         .tuned .curve,.tuned .whisker{{stroke:{tuned}}}.tuned .area,.tuned .bar,.tuned .mark{{fill:{tuned}}}\
         .teach .curve,.teach .whisker,.target{{stroke:{ink}}}.teach .area,.teach .bar,.teach .mark{{fill:{ink}}}\
         .train .curve,.train .whisker{{stroke:{train}}}.train .area,.train .bar,.train .mark{{fill:{train}}}\
         .mark{{stroke:{ground}}}.cell{{fill:{tuned}}}.frame{{fill:none;stroke:{grid}}}text.on{{fill:{on_tuned}}}"
    )
}

fn run_sheet(colours: &[&str; RUNS]) -> String {
    let rule = |((class, colour), dashes): ((&str, &&str), &str)| {
        format!(
            ".{class} .curve,.{class} .whisker{{stroke:{colour}}}.{class} .curve{{stroke-dasharray:{dashes};stroke-width:1.6}}\
             .{class} .area,.{class} .mark{{fill:{colour}}}"
        )
    };
    RUN_CLASSES.into_iter().zip(colours).zip(RUN_DASHES).map(rule).collect()
}
