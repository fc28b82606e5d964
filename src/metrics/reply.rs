//! Replies that a model wrote out freely, read as a user would.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::cluster::ClusteredMean;
use super::probe::Estimate;

/// What a user takes a reply to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// An option, in the words of the dialogue.
    AsAsked(usize),
    /// An option, in other words.
    Otherwise(usize),
    /// No option, or several.
    Unclear,
}

/// One reply with what it is compared with.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Any number that is the same for the replies to one user.
    pub user: usize,
    /// What it says.
    pub reading: Reading,
    /// Whether it ended by itself.
    pub ended: bool,
    /// What is true of the user, where known.
    pub truth: Option<usize>,
    /// The teacher's most probable option.
    pub teacher: usize,
    /// The model's own most probable option, among the labels alone.
    pub scored: usize,
}

/// Measures of replies; what is unclear counts as wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Replies {
    /// How many.
    pub replies: usize,
    /// To how many users.
    pub users: usize,
    /// How many say no option, or several.
    pub parse_failures: usize,
    /// The part that is in the words of the dialogue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_asked: Option<Estimate>,
    /// The part that says an option otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otherwise: Option<Estimate>,
    /// The part that says no option, or several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unclear: Option<Estimate>,
    /// The part that did not end by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unended: Option<Estimate>,
    /// How often the option said is the truth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<Estimate>,
    /// How often it is the teacher's most probable one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Estimate>,
    /// How often it is what the labels' probabilities alone say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_scored: Option<Estimate>,
}

impl Reading {
    /// Reads a reply where `before` stands before the label in the words of the dialogue.
    ///
    /// In order: the reply begins with these words and a label; the last of these words and then a label stand
    /// somewhere in it (`Flight 2`); a label stands somewhere by itself. Where one of these finds different labels, it is
    /// unclear which is meant.
    pub fn of(reply: &str, before: &str, labels: &[String]) -> Reading {
        let reply = reply.trim();
        if let Some(rest) = reply.strip_prefix(before.trim_start())
            && let Some(option) = label_at(rest, labels)
        {
            return Reading::AsAsked(option);
        }
        let last_word = before.split_whitespace().next_back().unwrap_or("");
        if !last_word.is_empty() {
            let follows = |rest: &str| {
                let rest = rest.strip_prefix(last_word)?;
                label_at(rest.strip_prefix(char::is_whitespace)?.trim_start(), labels)
            };
            match only(reply, follows) {
                Some(Some(option)) => return Reading::Otherwise(option),
                Some(None) => return Reading::Unclear,
                None => {}
            }
        }
        match only(reply, |rest| label_at(rest, labels)) {
            Some(Some(option)) => Reading::Otherwise(option),
            _ => Reading::Unclear,
        }
    }

    /// The option said.
    pub fn option(self) -> Option<usize> {
        match self {
            Reading::AsAsked(option) | Reading::Otherwise(option) => Some(option),
            Reading::Unclear => None,
        }
    }
}

/// The label that a text begins with as a word of its own, in any case where no two labels differ in that alone: the
/// longest, where one begins another.
fn label_at(text: &str, labels: &[String]) -> Option<usize> {
    let alone = |label: &str| labels.iter().filter(|other| other.eq_ignore_ascii_case(label)).count() == 1;
    let is_word = |label: &str| {
        let begin = text.get(..label.len())?;
        // A word may begin a sentence (Yes for yes); one letter could be another word (A for a).
        let same = begin == label || (label.len() > 1 && begin.eq_ignore_ascii_case(label) && alone(label));
        let rest = same.then(|| &text[label.len()..])?;
        let mut after = rest.chars();
        let first = after.next();
        // Not the beginning of a longer word, nor of 2.5 or 1:30.
        let goes_on = first.is_some_and(char::is_alphanumeric)
            || (matches!(first, Some('.' | ',' | ':')) && after.next().is_some_and(|c| c.is_ascii_digit()));
        (!goes_on).then_some(label.len())
    };
    let found = labels.iter().enumerate().filter_map(|(i, label)| Some((is_word(label)?, i)));
    found.max_by_key(|(length, i)| (*length, std::cmp::Reverse(*i))).map(|(_, i)| i)
}

/// What is found at the beginnings of a text's words: the one option, or that there are several; none where nothing is.
fn only(text: &str, find: impl Fn(&str) -> Option<usize>) -> Option<Option<usize>> {
    let mut found: Option<Option<usize>> = None;
    let mut before: Option<char> = None;
    for (at, character) in text.char_indices() {
        let begins = before.is_none_or(|c| !c.is_alphanumeric() && !matches!(c, '$' | '.' | ':' | '-'))
            || (before == Some('.') && !character.is_ascii_digit());
        if begins && let Some(option) = find(&text[at..]) {
            found = match found {
                None => Some(Some(option)),
                Some(Some(other)) if other == option => found,
                _ => Some(None),
            };
        }
        before = Some(character);
    }
    found
}

impl Replies {
    /// Measures replies.
    ///
    /// # Errors
    /// If there are none.
    pub fn new(replies: &[Reply]) -> Result<Replies> {
        ensure!(!replies.is_empty(), "there are no replies to measure");
        let mean = |of: &dyn Fn(&Reply) -> Option<bool>| {
            let mut mean = ClusteredMean::default();
            for reply in replies {
                if let Some(holds) = of(reply) {
                    mean.add(reply.user, f64::from(u8::from(holds)));
                }
            }
            Estimate::of_mean(&mean)
        };
        let users: std::collections::BTreeSet<usize> = replies.iter().map(|reply| reply.user).collect();
        let says = |reply: &Reply, option| reply.reading.option() == Some(option);
        Ok(Replies {
            replies: replies.len(),
            users: users.len(),
            parse_failures: replies.iter().filter(|reply| reply.reading == Reading::Unclear).count(),
            as_asked: mean(&|reply| Some(matches!(reply.reading, Reading::AsAsked(_)))),
            otherwise: mean(&|reply| Some(matches!(reply.reading, Reading::Otherwise(_)))),
            unclear: mean(&|reply| Some(reply.reading == Reading::Unclear)),
            unended: mean(&|reply| Some(!reply.ended)),
            accuracy: mean(&|reply| Some(says(reply, reply.truth?))),
            agreement: mean(&|reply| Some(says(reply, reply.teacher))),
            as_scored: mean(&|reply| Some(says(reply, reply.scored))),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn replies_are_read_as_a_user_would() {
        let labels: Vec<String> = ["1", "2", "3", "10"].map(String::from).into();
        let read = |reply: &str| Reading::of(reply, "The best option is Flight ", &labels);
        use Reading::{AsAsked, Otherwise, Unclear};
        for (reply, expected) in [
            ("The best option is Flight 3.", AsAsked(2)),
            (" The best option is Flight 10, since it has 2 stops.", AsAsked(3)),
            ("I would take Flight 2: it costs $100 and has 1 stop.", Otherwise(1)),
            ("Flight 2. Yes, Flight 2!", Otherwise(1)),
            ("Flight 1 or Flight 2", Unclear),
            ("Flight 4", Unclear),
            ("2", Otherwise(1)),
            ("**3**", Otherwise(2)),
            ("Option 3 has 1 stop", Unclear),
            ("It takes 2 hr, 3 min", Unclear),
            ("2.5 hours, $1, 1:30 and 12", Unclear),
            ("The best option is Flight 33.", Unclear),
            ("", Unclear),
        ] {
            assert_eq!(read(reply), expected, "{reply:?}");
        }
        let letters: Vec<String> = ["H", "T"].map(String::from).into();
        assert_eq!(Reading::of("T", "", &letters), AsAsked(1));
        assert_eq!(Reading::of("It is T", "", &letters), Otherwise(1));
        assert_eq!(Reading::of("The", "", &letters), Unclear);
        let words: Vec<String> = ["no", "yes", "a", "US", "us"].map(String::from).into();
        let read = |reply: &str| Reading::of(reply, "", &words);
        assert_eq!(read("Yes."), AsAsked(1));
        assert_eq!(read("I would say: NO"), Otherwise(0));
        // The article is not the option, and two labels differ in case alone.
        assert_eq!(read("A difficult question"), Unclear);
        assert_eq!([read("US"), read("us"), read("Us")], [AsAsked(3), AsAsked(4), Unclear]);
    }

    /// Two replies to each of two users: right, unclear; wrong, wrong but as scored.
    #[test]
    fn measures_by_hand() {
        let reply = |user, reading, scored| Reply {
            user,
            reading,
            ended: reading != Reading::Unclear,
            truth: Some(0),
            teacher: 1,
            scored,
        };
        let replies = [
            reply(0, Reading::AsAsked(0), 1),
            reply(0, Reading::Unclear, 0),
            reply(1, Reading::AsAsked(1), 0),
            reply(1, Reading::Otherwise(2), 2),
        ];
        let measured = Replies::new(&replies).unwrap();
        assert_eq!((measured.replies, measured.users, measured.parse_failures), (4, 2, 1));
        let quarter = Some(Estimate { value: 0.25, standard_error: Some(0.25) });
        for estimate in [
            measured.otherwise,
            measured.unclear,
            measured.unended,
            measured.accuracy,
            measured.agreement,
            measured.as_scored,
        ] {
            assert_eq!(estimate, quarter);
        }
        assert_eq!(measured.as_asked, Some(Estimate { value: 0.5, standard_error: Some(0.0) }));
        assert!(Replies::new(&[]).is_err());
    }
}
