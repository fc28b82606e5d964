//! Which episodes train, validate and test.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::error::usage;
use crate::rng;

/// `[split]`: the fractions sum to 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SplitConfig {
    /// What is kept together.
    pub by: SplitBy,
    /// Fraction to train on.
    pub train: f64,
    /// Fraction to choose checkpoints by.
    pub validation: f64,
    /// Fraction to measure on at the end.
    pub test: f64,
}

impl Default for SplitConfig {
    fn default() -> SplitConfig {
        SplitConfig { by: SplitBy::User, train: 0.72, validation: 0.08, test: 0.20 }
    }
}

/// What is kept together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SplitBy {
    /// All episodes of a user are in one part: no user of the test was trained on.
    User,
    /// Every episode goes its own way.
    Episode,
}

/// One of the three parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Trained on.
    Train,
    /// Checkpoints are chosen by it.
    Validation,
    /// Measured at the end.
    Test,
}

impl Part {
    /// In the order of the fractions.
    pub const ALL: [Part; 3] = [Part::Train, Part::Validation, Part::Test];

    /// The name of its file.
    pub fn file_name(self) -> &'static str {
        match self {
            Part::Train => "train.jsonl",
            Part::Validation => "validation.jsonl",
            Part::Test => "test.jsonl",
        }
    }
}

impl SplitConfig {
    /// Checks the fractions.
    ///
    /// # Errors
    /// If one is negative or they do not sum to 1.
    pub fn validate(&self) -> Result<()> {
        let fractions = [self.train, self.validation, self.test];
        let sum: f64 = fractions.iter().sum();
        // Written so that NaN fails too.
        if !fractions.iter().all(|f| (0.0..=1.0).contains(f)) || (sum - 1.0).abs() > 1e-9 {
            return Err(usage(format!(
                "split.train {}, split.validation {} and split.test {} must be fractions that sum to 1, not to {sum}",
                self.train, self.validation, self.test
            )));
        }
        Ok(())
    }

    /// The part of every episode, where episode `i` is one of user `i / episodes_per_user`.
    ///
    /// # Errors
    /// If there are too few users (or episodes) to give every part with a fraction at least one.
    pub(super) fn assign(&self, users: usize, episodes_per_user: usize, seed: u64) -> Result<Vec<Part>> {
        self.validate()?;
        let (units, episodes_per_unit, what) = match self.by {
            SplitBy::User => (users, episodes_per_user, "users"),
            SplitBy::Episode => (users * episodes_per_user, 1, "episodes"),
        };
        let [train, validation, test] = self.counts(units, what)?;
        let mut parts =
            [vec![Part::Train; train], vec![Part::Validation; validation], vec![Part::Test; test]].concat();
        rng::stream(seed, "teacher.split", 0).shuffle(&mut parts);
        Ok(parts.into_iter().flat_map(|part| std::iter::repeat_n(part, episodes_per_unit)).collect())
    }

    /// How many of `units` each part gets: rounded, but at least one where the fraction is not 0.
    fn counts(&self, units: usize, what: &str) -> Result<[usize; 3]> {
        let at_least_one = |fraction: f64| usize::from(fraction > 0.0);
        let count = |fraction: f64| {
            let rounded = (fraction * units as f64).round() as usize;
            rounded.max(at_least_one(fraction))
        };
        let (validation, test) = (count(self.validation), count(self.test));
        if self.train == 0.0 {
            // Two roundings may differ from the whole by one.
            let validation = validation.min(units);
            return Ok([0, validation, units - validation]);
        }
        if validation + test + 1 > units {
            return Err(usage(format!(
                "{units} {what} are too few to split into train, validation and test: draw more, or set a fraction of \
                 [split] to 0"
            )));
        }
        Ok([units - validation - test, validation, test])
    }
}

/// Counts the users of the episodes actually written, by part.
#[derive(Default)]
pub(super) struct LeakageCheck {
    parts_of_user: BTreeMap<String, [bool; 3]>,
}

impl LeakageCheck {
    pub(super) fn add(&mut self, user: &str, part: Part) {
        if !self.parts_of_user.contains_key(user) {
            self.parts_of_user.insert(user.to_owned(), [false; 3]);
        }
        if let Some(parts) = self.parts_of_user.get_mut(user) {
            parts[part as usize] = true;
        }
    }

    /// How many users have episodes in more than one part.
    pub(super) fn shared_users(&self) -> usize {
        self.parts_of_user.values().filter(|parts| parts.iter().filter(|p| **p).count() > 1).count()
    }

    /// Fails if users were to be kept together and one is in two parts.
    pub(super) fn check(&self, by: SplitBy) -> Result<()> {
        let shared = self.shared_users();
        if by == SplitBy::User && shared > 0 {
            bail!(
                "{shared} users have episodes in more than one part although the split is by user: this is a bug"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn sizes(split: &SplitConfig, users: usize, per_user: usize) -> [usize; 3] {
        let parts = split.assign(users, per_user, 1).unwrap();
        assert_eq!(parts.len(), users * per_user);
        Part::ALL.map(|part| parts.iter().filter(|p| **p == part).count())
    }

    #[test]
    fn published_sizes() {
        let by_user = SplitConfig::default();
        let by_episode = SplitConfig { by: SplitBy::Episode, ..by_user.clone() };
        assert_eq!(sizes(&by_user, 3125, 5), [11_250, 1_250, 3_125]);
        assert_eq!(sizes(&by_episode, 3125, 5), [11_250, 1_250, 3_125]);
        assert_eq!(sizes(&by_user, 624, 10).iter().sum::<usize>(), 6_240);
    }

    #[test]
    fn users_stay_together() {
        let parts = SplitConfig::default().assign(100, 7, 3).unwrap();
        assert!(parts.chunks(7).all(|user| user.iter().all(|p| *p == user[0])));
        // Not simply the first users.
        assert!(parts[..72 * 7].contains(&Part::Test));
    }

    #[test]
    fn small_and_partial_splits() {
        assert_eq!(sizes(&SplitConfig::default(), 3, 1), [1, 1, 1]);
        let error = SplitConfig::default().assign(2, 1, 0).unwrap_err();
        assert!(error.downcast_ref::<crate::error::UsageError>().is_some());
        let fractions =
            |train, validation, test| SplitConfig { train, validation, test, ..Default::default() };
        assert_eq!(sizes(&fractions(1.0, 0.0, 0.0), 2, 2), [4, 0, 0]);
        assert_eq!(sizes(&fractions(0.0, 0.0, 1.0), 2, 2), [0, 0, 4]);
        assert_eq!(sizes(&fractions(0.0, 0.5, 0.5), 3, 1), [0, 2, 1]);
        for bad in [fractions(0.7, 0.1, 0.1), fractions(1.2, -0.2, 0.0), fractions(f64::NAN, 0.5, 0.5)] {
            assert!(bad.validate().unwrap_err().to_string().contains("sum to 1"));
        }
    }

    #[test]
    fn leakage_is_seen() {
        let mut check = LeakageCheck::default();
        for (user, part) in [("1", Part::Train), ("1", Part::Train), ("2", Part::Test)] {
            check.add(user, part);
        }
        check.check(SplitBy::User).unwrap();
        check.add("2", Part::Validation);
        assert_eq!(check.shared_users(), 1);
        assert!(check.check(SplitBy::User).is_err());
        check.check(SplitBy::Episode).unwrap();
    }
}
