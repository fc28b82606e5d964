//! What the independent witnesses of several tests share: they read the episodes' text, and compute with nothing of the
//! library's.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    reason = "each test uses a part of it"
)]

use std::path::Path;

use bayesteach::episode::{self, Episode};

pub fn assert_near(what: &str, computed: f64, expected: f64, tolerance: f64) {
    assert!(
        (computed - expected).abs() <= tolerance,
        "{what}: {computed}, expected {expected} ± {tolerance}"
    );
}

pub fn assert_same(what: &str, computed: &[f64], expected: &[f64]) {
    assert_eq!(computed.len(), expected.len(), "{what}");
    for (a, b) in computed.iter().zip(expected) {
        assert!((a - b).abs() < 1e-9, "{what}: {computed:?}, expected {expected:?}");
    }
}

/// The episodes of all parts, as `teach` wrote them.
pub fn all_episodes(dir: &Path) -> Vec<Episode> {
    let files = ["train.jsonl", "validation.jsonl", "test.jsonl"];
    files.iter().flat_map(|file| episode::read(&dir.join(file)).unwrap()).collect()
}

/// The 624 preferences in halves.
pub fn flight_users() -> Vec<[i64; 4]> {
    let user = |code: i64| [code / 125 - 2, code / 25 % 5 - 2, code / 5 % 5 - 2, code % 5 - 2];
    (0..625).map(user).filter(|user| *user != [0; 4]).collect()
}

pub fn flight_reward(user: &[i64; 4], option: &[i64; 4]) -> i64 {
    user.iter().zip(option).map(|(w, x)| w * x).sum()
}

/// The first of the options of highest reward.
pub fn flight_choice(user: &[i64; 4], options: &[[i64; 4]]) -> usize {
    let best = options.iter().map(|o| flight_reward(user, o)).max().unwrap();
    options.iter().position(|o| flight_reward(user, o) == best).unwrap()
}

/// Departure, duration, stops and price in tenths, from an option's line.
pub fn parse_flight(line: &str) -> [i64; 4] {
    let values: Vec<&str> = line.split(", ").map(|part| part.split_once(": ").unwrap().1).collect();
    let number = |text: &str| text.parse::<i64>().unwrap();
    let (clock, half) = values[0].split_once(' ').unwrap();
    let (hour, minute) = clock.split_once(':').unwrap();
    let hour = number(hour) % 12 + if half == "PM" { 12 } else { 0 };
    let mut duration = 0;
    let words: Vec<&str> = values[1].split(' ').collect();
    for pair in words.chunks(2) {
        duration += number(pair[0]) * if pair[1] == "hr" { 60 } else { 1 };
    }
    let tenths = [
        (hour * 60 + number(minute) - 360) as f64 / 96.0,
        (duration - 30) as f64 / 117.0,
        number(values[2]) as f64 * 5.0,
        (number(values[3].trim_start_matches('$')) - 100) as f64 / 90.0,
    ];
    tenths.map(|t| {
        assert!(t.fract() == 0.0 && (0.0..=10.0).contains(&t), "{line}");
        t as i64
    })
}

/// P(answer) at a level, as differences of logistic functions, without the care that the library takes.
pub fn graded(slope: f64, thresholds: [f64; 4], level: f64) -> [f64; 5] {
    let p = thresholds.map(|t| 1.0 / (1.0 + (-slope * (level - t)).exp()));
    [1.0 - p[0], p[0] - p[1], p[1] - p[2], p[2] - p[3], p[3]]
}

/// [`graded`] of the published questionnaire's items.
pub fn published_item(level: f64) -> [f64; 5] {
    graded(1.955, [-1.084, -0.361, 0.361, 1.084], level)
}
