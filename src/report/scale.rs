//! From numbers to places: linear and logarithmic axes with round ticks.

/// An axis from its lowest to its highest value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Axis {
    /// Equal distances are equal differences.
    Linear { min: f64, max: f64, step: f64 },
    /// Equal distances are equal ratios; both ends are above 0.
    Log { min: f64, max: f64 },
}

/// A labelled place on an axis.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tick {
    pub value: f64,
    pub label: String,
}

impl Axis {
    /// The linear axis that holds all values, with round ends.
    pub(super) fn linear(values: impl Iterator<Item = f64>) -> Axis {
        let Some((low, high)) = range(values) else { return Axis::fixed(0.0, 1.0) };
        // Values that are all equal get some room around them.
        let room = if high > low { 0.0 } else { low.abs().max(1.0) * 0.1 };
        let (low, high) = (low - room, high + room);
        let step = round_step((high - low) / 5.0);
        // An end that is round but for rounding stays.
        let (first, last) = ((low / step + 1e-9).floor(), (high / step - 1e-9).ceil());
        Axis::Linear { min: first * step, max: last * step, step }
    }

    /// The logarithmic axis that holds all values above 0.
    pub(super) fn log(values: impl Iterator<Item = f64>) -> Axis {
        match range(values.filter(|v| *v > 0.0)) {
            Some((low, high)) => {
                let floor = |v: f64| steps_below(v, f64::floor);
                let ceil = |v: f64| steps_below(v, f64::ceil);
                let (min, max) = (floor(low), ceil(high));
                Axis::Log { min, max: if max > min { max } else { min * 10.0 } }
            }
            None => Axis::Log { min: 0.1, max: 1.0 },
        }
    }

    /// A linear axis of exactly this range.
    pub(super) fn fixed(min: f64, max: f64) -> Axis {
        Axis::Linear { min, max, step: round_step((max - min) / 5.0) }
    }

    /// Where a value lies between 0 (the lowest) and 1; values beyond an end lie at that end.
    pub(super) fn place(&self, value: f64) -> f64 {
        let place = match *self {
            Axis::Linear { min, max, .. } => (value - min) / (max - min),
            Axis::Log { min, max } => (value.max(min) / min).ln() / (max / min).ln(),
        };
        place.clamp(0.0, 1.0)
    }

    /// Round values along the axis, few enough to be read.
    pub(super) fn ticks(&self) -> Vec<Tick> {
        match *self {
            Axis::Linear { min, max, step } => {
                let (first, last) = ((min / step - 1e-9).ceil() as i64, (max / step + 1e-9).floor() as i64);
                (first..=last).map(|i| tick(i as f64 * step, step)).collect()
            }
            Axis::Log { min, max } => {
                let decades = (max / min).log10();
                let within: &[f64] = if decades <= 2.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
                let every = if decades > 6.0 { 2 } else { 1 };
                let (first, last) = (min.log10().floor() as i32, max.log10().ceil() as i32);
                let all = (first..=last)
                    .filter(|decade| decade.rem_euclid(every) == 0)
                    .flat_map(|decade| within.iter().map(move |m| m * 10f64.powi(decade)));
                let inside = |v: &f64| *v >= min * 0.999 && *v <= max * 1.001;
                all.filter(inside).map(|v| Tick { value: v, label: plain(v) }).collect()
            }
        }
    }
}

/// The power of ten that a value above 0 begins with; a value just below one by rounding counts as that one.
fn exponent(value: f64) -> i32 {
    (value.log10() + 1e-9).floor() as i32
}

fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let finite = values.filter(|v| v.is_finite());
    finite.fold(None, |range: Option<(f64, f64)>, v| match range {
        Some((low, high)) => Some((low.min(v), high.max(v))),
        None => Some((v, v)),
    })
}

/// The least of 1, 2, 2.5, 5 times a power of ten that is not below `step`.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powi(exponent(step));
    let factor = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|f| f * power >= step * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

/// A value rounded to 1, 2 or 5 times a power of ten, downwards (`f64::floor`) or upwards (`f64::ceil`).
fn steps_below(value: f64, round: fn(f64) -> f64) -> f64 {
    let power = 10f64.powi(exponent(value));
    let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    if round(0.5) == 0.0 {
        steps.into_iter().rev().find(|s| *s <= value * (1.0 + 1e-9)).unwrap_or(power)
    } else {
        steps.into_iter().find(|s| *s >= value * (1.0 - 1e-9)).unwrap_or(10.0 * power)
    }
}

fn tick(value: f64, step: f64) -> Tick {
    let mut decimals = (-exponent(step)).max(0) as usize;
    // A step of .25 needs one digit more than one of .2.
    let scaled = step * 10f64.powi(decimals as i32);
    decimals += usize::from((scaled - scaled.round()).abs() > 1e-6);
    // Written as a sum, so that zero has no sign.
    Tick { value, label: group(&format!("{:.decimals$}", value + 0.0)) }
}

/// Thousands apart, as in 12 000.
fn group(number: &str) -> String {
    let (sign, digits) = number.strip_prefix('-').map_or(("", number), |rest| ("−", rest));
    let (whole, fraction) = digits.split_at(digits.find('.').unwrap_or(digits.len()));
    let mut grouped = String::from(sign);
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) && whole.len() > 4 {
            grouped.push('\u{2009}');
        }
        grouped.push(digit);
    }
    grouped + fraction
}

/// A round number without needless digits; powers of ten where it is small.
fn plain(value: f64) -> String {
    let exponent = exponent(value);
    match exponent {
        -3..=4 => group(&format!("{value:.*}", (-exponent).max(0) as usize)),
        _ => {
            let factor = (value / 10f64.powi(exponent)).round();
            format!("{factor}e{exponent}").replace('-', "−")
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn labels(axis: Axis) -> Vec<String> {
        axis.ticks().into_iter().map(|tick| tick.label).collect()
    }

    #[test]
    fn linear_axes_have_round_ends_and_ticks() {
        let axis = Axis::linear([0.31, 0.574].into_iter());
        assert_eq!(labels(axis), ["0.3", "0.4", "0.5", "0.6"]);
        assert!(axis.place(0.3) < 1e-9 && axis.place(0.6) > 1.0 - 1e-9);
        assert_eq!(labels(Axis::linear([0.0, 480.0].into_iter())), ["0", "100", "200", "300", "400", "500"]);
        assert_eq!(labels(Axis::linear([1e-13, 0.003].into_iter())), ["0.000", "0.001", "0.002", "0.003"]);
        assert_eq!(labels(Axis::fixed(0.0, 1.0)), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(Axis::linear([-1.0, 1.0].into_iter())), ["−1.0", "−0.5", "0.0", "0.5", "1.0"]);
        assert_eq!(labels(Axis::fixed(0.0, 50_000.0))[1], "10\u{2009}000");
        assert_eq!(labels(Axis::fixed(0.0, 1.25))[1], "0.25");
    }

    #[test]
    fn log_axes() {
        let axis = Axis::log([0.0004, 0.57].into_iter());
        let Axis::Log { min, max } = axis else { panic!("{axis:?} is not logarithmic") };
        assert!((min - 0.0002).abs() < 1e-12 && (max - 1.0).abs() < 1e-12);
        assert_eq!(labels(axis), ["0.001", "0.01", "0.1", "1"]);
        assert_eq!(labels(Axis::log([0.011, 0.19].into_iter())), ["0.01", "0.02", "0.05", "0.1", "0.2"]);
        assert!((axis.place(1.0) - 1.0).abs() < 1e-12 && axis.place(0.0) == 0.0);
        assert_eq!(labels(Axis::log([1e-6, 1e-5].into_iter())), ["1e−6", "2e−6", "5e−6", "1e−5"]);
    }

    #[test]
    fn odd_values_make_an_axis_all_the_same() {
        for values in [vec![], vec![f64::NAN], vec![3.0], vec![0.0, 0.0], vec![f64::INFINITY, 1.0]] {
            for axis in [Axis::linear(values.iter().copied()), Axis::log(values.iter().copied())] {
                assert!((2..=12).contains(&axis.ticks().len()), "{values:?}: {axis:?}: {:?}", axis.ticks());
                assert!(axis.place(0.7).is_finite());
            }
        }
    }
}
