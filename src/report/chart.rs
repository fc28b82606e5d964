//! The kinds of plot: lines with intervals, a reliability diagram, a table of shades.

use super::scale::{Axis, Tick};
use super::style::Who;
use super::svg::{Anchor, Svg};

const WIDTH: f64 = 460.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 54.0;

/// A plot with a name for its file.
pub(super) struct Plot {
    /// Whether it takes the whole width of the page.
    pub wide: bool,
    /// The name of its file, without ending.
    pub name: &'static str,
    /// What it shows, in words.
    pub title: String,
    pub svg: Svg,
}

/// A value with its interval.
#[derive(Clone, Debug)]
pub(super) struct Point {
    pub x: f64,
    pub y: f64,
    /// The lower and the upper end of the interval.
    pub interval: Option<(f64, f64)>,
    /// What is said about it under the mouse, besides its value.
    pub tip: String,
}

/// Standard errors on either side of a 95 % interval.
pub(super) const HALF_WIDTH: f64 = 1.96;

impl Point {
    /// A mean with its standard error.
    pub(super) fn mean(x: f64, y: f64, standard_error: Option<f64>, tip: String) -> Self {
        let interval = standard_error.map(|e| (y - HALF_WIDTH * e, y + HALF_WIDTH * e));
        Self { x, y, interval, tip }
    }
}

/// One line of a plot.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub who: Who,
    /// What the legend says.
    pub name: String,
    pub points: Vec<Point>,
    /// How its intervals and points are drawn.
    pub look: Look,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// A line with markers in a band.
    Band,
    /// A line in a band, without markers.
    Course,
    /// Markers with whiskers, joined by a line.
    Whiskers,
    /// A line alone.
    Plain,
}

/// Lines over a common range.
pub(super) struct LineChart<'a> {
    pub name: &'static str,
    pub title: &'a str,
    pub x_label: &'a str,
    pub y_label: &'a str,
    /// Labels of the places 0, 1, …, where x is no number.
    pub x_names: Option<&'a [String]>,
    pub y: Axis,
    pub lines: Vec<Line>,
    /// Whether it takes the whole width of the page.
    pub wide: bool,
}

/// The rectangle that values are drawn in, and its axes.
struct Frame {
    x: Axis,
    y: Axis,
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

impl Frame {
    fn place(&self, x: f64, y: f64) -> (f64, f64) {
        (self.left + self.x.place(x) * self.width, self.top + (1.0 - self.y.place(y)) * self.height)
    }

    fn bottom(&self) -> f64 {
        self.top + self.height
    }

    fn draw(&self, svg: &mut Svg, x_ticks: &[Tick], y_ticks: &[Tick]) {
        for tick in y_ticks {
            let (_, y) = self.place(0.0, tick.value);
            svg.line("grid", (self.left, y), (self.left + self.width, y));
            svg.text("soft", (self.left - 7.0, y + 3.8), Anchor::End, &tick.label);
        }
        svg.line("axis", (self.left, self.bottom()), (self.left + self.width, self.bottom()));
        for tick in x_ticks {
            let (x, _) = self.place(tick.value, 0.0);
            svg.line("axis", (x, self.bottom()), (x, self.bottom() + 4.0));
            svg.text("soft", (x, self.bottom() + 16.0), Anchor::Middle, &tick.label);
        }
    }
}

impl LineChart<'_> {
    pub(super) fn draw(mut self) -> Plot {
        let height = 290.0;
        let width = if self.wide { 2.0 * WIDTH + 40.0 } else { WIDTH };
        let mut svg = Svg::new(width, height);
        self.lines.iter_mut().for_each(|line| line.points.retain(|p| p.x.is_finite() && p.y.is_finite()));
        let xs = || self.lines.iter().flat_map(|line| line.points.iter().map(|p| p.x));
        let range = xs().map(|x| (x, x)).reduce(|(l, h), (x, _)| (l.min(x), h.max(x)));
        let (low, high) = range.unwrap_or((0.0, 1.0));
        let whole = xs().all(|x| x.fract() == 0.0);
        // Room for the first and the last marker.
        let room = if high > low { 12.0 / width * (high - low) } else { 0.5 };
        let x = Axis::fixed(low - room, high + room);
        let frame = Frame {
            x,
            y: self.y,
            left: LEFT,
            top: TOP,
            width: width - LEFT - RIGHT,
            height: height - TOP - 44.0,
        };
        let x_ticks = match self.x_names {
            Some(names) => {
                let named = names.iter().enumerate();
                named.map(|(i, name)| Tick { value: i as f64, label: name.clone() }).collect()
            }
            None if whole && high - low <= 12.0 => {
                let all = (low as i64..=high as i64).map(|v| Tick { value: v as f64, label: v.to_string() });
                all.collect()
            }
            None => {
                let mut ticks = x.ticks();
                ticks.retain(|tick| tick.value >= low && tick.value <= high);
                ticks
            }
        };
        svg.text("title", (8.0, 17.0), Anchor::Start, self.title);
        frame.draw(&mut svg, &x_ticks, &self.y.ticks());
        svg.text("soft", (LEFT + frame.width / 2.0, height - 8.0), Anchor::Middle, self.x_label);
        svg.upward_text("soft", (13.0, TOP + frame.height / 2.0), self.y_label);
        legend(&mut svg, &self.lines);
        for line in &self.lines {
            svg.group(line.who.class(), "", |svg| line.draw(svg, &frame));
        }
        Plot { name: self.name, title: self.title.to_string(), svg, wide: self.wide }
    }
}

impl Line {
    fn draw(&self, svg: &mut Svg, frame: &Frame) {
        let band: Vec<(f64, f64, f64)> =
            self.points.iter().filter_map(|p| p.interval.map(|(low, high)| (p.x, low, high))).collect();
        match self.look {
            Look::Band | Look::Course if band.len() > 1 => {
                let lower = band.iter().map(|&(x, low, _)| frame.place(x, low));
                let upper = band.iter().rev().map(|&(x, _, high)| frame.place(x, high));
                svg.polygon("area", &lower.chain(upper).collect::<Vec<_>>());
            }
            Look::Plain | Look::Course => {}
            Look::Whiskers | Look::Band => {
                for &(x, low, high) in &band {
                    svg.line("whisker", frame.place(x, low), frame.place(x, high));
                }
            }
        }
        let places: Vec<(f64, f64)> = self.points.iter().map(|p| frame.place(p.x, p.y)).collect();
        if places.len() > 1 {
            svg.polyline("curve", &places);
        }
        if matches!(self.look, Look::Band | Look::Whiskers) || places.len() == 1 {
            for (point, place) in self.points.iter().zip(places) {
                let interval = point.interval.map_or(String::new(), |(low, high)| {
                    format!(", 95 % interval {} to {}", value(low), value(high))
                });
                let tip = format!("{}: {}{interval}{}", self.name, value(point.y), point.tip);
                svg.group("", &tip, |svg| marker(svg, self.who, place));
            }
        }
    }
}

/// A number with three digits that say something.
pub(super) fn value(value: f64) -> String {
    let text = match value.abs() {
        a if a == 0.0 || a >= 0.1 => format!("{value:.3}"),
        a if a >= 0.0001 => format!("{value:.*}", (2 - a.log10().floor() as i32) as usize),
        _ => format!("{value:.1e}"),
    };
    text.replace('-', "−")
}

fn marker(svg: &mut Svg, who: Who, (x, y): (f64, f64)) {
    match who {
        Who::Baseline => {
            svg.polygon("mark", &[(x, y - 4.6), (x + 4.4, y + 3.4), (x - 4.4, y + 3.4)]);
        }
        Who::Teacher => svg.rect("mark", (x - 3.4, y - 3.4), (6.8, 6.8)),
        Who::FineTuned | Who::Training => svg.circle("mark", (x, y), 4.0),
        Who::Run(number) => match number % 3 {
            0 => svg.circle("mark", (x, y), 4.0),
            1 => svg.rect("mark", (x - 3.4, y - 3.4), (6.8, 6.8)),
            _ => svg.polygon("mark", &[(x, y - 4.6), (x + 4.4, y + 3.4), (x - 4.4, y + 3.4)]),
        },
    }
}

/// What each line is, in a row below the title.
fn legend(svg: &mut Svg, lines: &[Line]) {
    let mut x = 8.0;
    for line in lines {
        svg.group(line.who.class(), "", |svg| {
            svg.polyline("curve", &[(x, 34.0), (x + 26.0, 34.0)]);
            if matches!(line.look, Look::Band | Look::Whiskers) {
                marker(svg, line.who, (x + 13.0, 34.0));
            }
        });
        svg.text("", (x + 32.0, 38.0), Anchor::Start, &line.name);
        x += 50.0 + 6.2 * line.name.chars().count() as f64;
    }
}

/// One predictor's bins in a reliability diagram.
pub(super) struct Reliability {
    pub line: Line,
    /// From, to and answers of each bin.
    pub counts: Vec<(f64, f64, usize)>,
}

/// Confidence against accuracy, and below it how often which confidence is met.
pub(super) fn reliability(title: &str, series: Vec<Reliability>) -> Plot {
    let (size, strip) = (300.0, 64.0);
    let height = TOP + size + 24.0 + strip + 40.0;
    let mut svg = Svg::new(WIDTH, height);
    let unit = Axis::fixed(0.0, 1.0);
    let width = WIDTH - LEFT - RIGHT;
    let frame = Frame { x: unit, y: unit, left: LEFT, top: TOP, width, height: size };
    svg.text("title", (8.0, 17.0), Anchor::Start, title);
    frame.draw(&mut svg, &[], &unit.ticks());
    svg.line("guide", frame.place(0.0, 0.0), frame.place(1.0, 1.0));
    svg.upward_text("soft", (13.0, TOP + size / 2.0), "how often it was the truth");
    let lines: Vec<Line> = series.iter().map(|s| s.line.clone()).collect();
    legend(&mut svg, &lines);
    for line in &lines {
        svg.group(line.who.class(), "", |svg| line.draw(svg, &frame));
    }

    let most = series.iter().flat_map(|s| s.counts.iter().map(|c| c.2)).max().unwrap_or(1);
    let y = Axis::fixed(0.0, most as f64);
    let below = Frame { x: unit, y, left: LEFT, top: TOP + size + 24.0, width, height: strip };
    below.draw(&mut svg, &unit.ticks(), &[]);
    for (i, s) in series.iter().enumerate() {
        svg.group(s.line.who.class(), "", |svg| {
            for &(from, to, answers) in &s.counts {
                let part = (to - from) * 0.9 / series.len() as f64;
                let from_x = from + (to - from) * 0.05 + part * i as f64;
                let (left, top) = below.place(from_x, answers as f64);
                let (right, bottom) = below.place(from_x + part, 0.0);
                let tip = format!("{}: {answers} answers from {from:.2} to {to:.2}", s.line.name);
                svg.group("", &tip, |svg| svg.rect("bar", (left, top), (right - left, bottom - top)));
            }
        });
    }
    svg.upward_text("soft", (13.0, below.top + strip / 2.0), "answers");
    svg.text("soft", (LEFT + width / 2.0, height - 6.0), Anchor::Middle, "mass on the top option");
    Plot { name: "reliability", title: title.to_string(), svg, wide: false }
}

/// Counts by row and column, each row in shades of its sum.
pub(super) struct Shades<'a> {
    pub name: &'static str,
    pub title: &'a str,
    pub row_label: &'a str,
    pub column_label: &'a str,
    pub labels: &'a [String],
    pub counts: &'a [Vec<usize>],
}

impl Shades<'_> {
    pub(super) fn draw(self) -> Plot {
        let n = self.counts.len().max(1) as f64;
        let (left, top, size) = (64.0, 60.0, 210.0);
        let cell = size / n;
        let (width, height) = (left + size + 56.0, top + size + 12.0);
        let mut svg = Svg::new(width, height);
        svg.text("title", (8.0, 17.0), Anchor::Start, self.title);
        svg.text("soft", (left + size / 2.0, 36.0), Anchor::Middle, self.column_label);
        svg.upward_text("soft", (13.0, top + size / 2.0), self.row_label);
        svg.text("soft small", (left + size + 6.0, top - 7.0), Anchor::Start, "answers");
        let readable = cell >= 24.0;
        let short = |label: &str| label.chars().take(7).collect::<String>();
        for (i, row) in self.counts.iter().enumerate() {
            let label = self.labels.get(i).map_or_else(|| format!("#{}", i + 1), |label| short(label));
            let y = top + cell * i as f64;
            let middle = y + cell / 2.0 + 3.8;
            let total: usize = row.iter().sum();
            if readable || self.counts.len() <= 20 {
                svg.text("soft", (left - 7.0, middle), Anchor::End, &label);
                svg.text("soft", (left + cell * (i as f64 + 0.5), top - 7.0), Anchor::Middle, &label);
                svg.text("soft small", (left + size + 6.0, middle), Anchor::Start, &total.to_string());
            }
            for (j, &count) in row.iter().enumerate() {
                let part = if total == 0 { 0.0 } else { count as f64 / total as f64 };
                let x = left + cell * j as f64;
                let column = self.labels.get(j).map_or_else(|| format!("#{}", j + 1), |label| short(label));
                let tip = format!("{label} taken for {column}: {count} of {total}");
                svg.group("", &tip, |svg| {
                    svg.shade("cell", (x + 0.5, y + 0.5), (cell - 1.0, cell - 1.0), 0.92 * part);
                    svg.rect("frame", (x, y), (cell, cell));
                    if readable && total > 0 {
                        let class = if part > 0.55 { "on" } else { "" };
                        let percent = format!("{:.0}", 100.0 * part);
                        svg.text(class, (x + cell / 2.0, middle), Anchor::Middle, &percent);
                    }
                });
            }
        }
        Plot { name: self.name, title: self.title.to_string(), svg, wide: false }
    }
}

/// The distributions at one answer: a target line for the teacher, a column for each model.
pub(super) struct Answer<'a> {
    pub options: &'a [String],
    pub teacher: &'a [f64],
    pub baseline: Option<&'a [f64]>,
    pub fine_tuned: Option<&'a [f64]>,
    pub truth: Option<usize>,
}

impl Answer<'_> {
    pub(super) fn draw(&self) -> Svg {
        let n = self.options.len().max(1);
        let group = (260.0 / n as f64).clamp(12.0, 44.0);
        let (top, tall) = (14.0, 58.0);
        let mut svg = Svg::new(group * n as f64 + 8.0, top + tall + 18.0);
        let ground = top + tall;
        for (i, option) in self.options.iter().enumerate() {
            let x = 4.0 + group * i as f64;
            let of = |probs: Option<&[f64]>| probs.and_then(|p| p.get(i)).copied();
            let (baseline, fine_tuned) = (of(self.baseline), of(self.fine_tuned));
            let teacher = of(Some(self.teacher)).unwrap_or(0.0);
            let told = |name: &str, p: Option<f64>| p.map_or(String::new(), |p| format!(", {name} {p:.3}"));
            let tip = format!(
                "{option}: teacher {teacher:.3}{}{}",
                told("fine-tuned", fine_tuned),
                told("baseline", baseline)
            );
            svg.group("", &tip, |svg| {
                let column = group * 0.36;
                for (who, probability, at) in [("base", baseline, 0.14), ("tuned", fine_tuned, 0.5)] {
                    if let Some(p) = probability {
                        let high = tall * p;
                        svg.group(who, "", |svg| {
                            svg.rect("bar", (x + group * at, ground - high), (column, high));
                        });
                    }
                }
                let y = ground - tall * teacher;
                svg.line("target", (x + group * 0.06, y), (x + group * 0.94, y));
                let class = if self.truth == Some(i) { "strong" } else { "soft" };
                let room = ((group / 6.0) as usize).max(1);
                let label: String = option.chars().take(room).collect();
                svg.text(class, (x + group / 2.0, ground + 13.0), Anchor::Middle, &label);
                if self.truth == Some(i) {
                    let highest = [baseline, fine_tuned].into_iter().flatten().fold(teacher, f64::max);
                    svg.text("small", (x + group / 2.0, ground - tall * highest - 4.0), Anchor::Middle, "●");
                }
            });
        }
        svg.line("axis", (2.0, ground), (6.0 + group * n as f64, ground));
        svg
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_three_digits() {
        let told: Vec<String> = [0.0, 0.5, 1.23456, 0.05912, 0.000411, -0.0123, 1e-7].map(value).into();
        assert_eq!(told, ["0.000", "0.500", "1.235", "0.0591", "0.000411", "−0.0123", "1.0e−7"]);
    }

    #[test]
    fn charts_of_nothing_are_drawn() {
        for points in [vec![], vec![Point::mean(0.0, f64::NAN, None, String::new())]] {
            let line = Line { who: Who::Teacher, name: "teacher".into(), points, look: Look::Band };
            let chart = LineChart {
                name: "n",
                title: "t",
                x_label: "x",
                y_label: "y",
                x_names: None,
                y: Axis::linear(std::iter::empty()),
                lines: vec![line],
                wide: false,
            };
            assert!(!chart.draw().svg.inline("t").contains("NaN\""));
        }
        let none =
            Shades { name: "n", title: "t", row_label: "r", column_label: "c", labels: &[], counts: &[] };
        assert!(!none.draw().svg.inline("t").contains("inf"));
    }
}
