//! The 50-item set of IPIP Big-Five Factor Markers (public domain; ipip.ori.org; markers after Goldberg, 1992).
//!
//! In the official order of administration, which cycles through the five traits. Rated from 1 (very inaccurate)
//! to 5 (very accurate); a rating x of a negatively keyed item counts as 6 - x.

use serde::{Deserialize, Serialize};

use Key::{Negative, Positive};
use Trait::{Agreeableness, Conscientiousness, EmotionalStability, Extraversion, Intellect};

/// What an item measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trait {
    /// Outgoing or reserved.
    Extraversion,
    /// Warm or cool to others.
    Agreeableness,
    /// Orderly or careless.
    Conscientiousness,
    /// Calm or easily upset: the opposite of neuroticism.
    EmotionalStability,
    /// Openness to ideas, also called imagination.
    Intellect,
}

impl Trait {
    /// In the order in which the items cycle.
    pub const ALL: [Trait; 5] =
        [Extraversion, Agreeableness, Conscientiousness, EmotionalStability, Intellect];

    /// In lower case with underscores.
    pub fn name(self) -> &'static str {
        match self {
            Extraversion => "extraversion",
            Agreeableness => "agreeableness",
            Conscientiousness => "conscientiousness",
            EmotionalStability => "emotional_stability",
            Intellect => "intellect",
        }
    }
}

/// Whether agreeing speaks for the trait or against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// For it.
    Positive,
    /// Against it.
    Negative,
}

/// One statement.
#[derive(Clone, Copy, Debug)]
pub struct Item {
    /// As a sentence.
    pub text: &'static str,
    /// What it measures.
    pub measures: Trait,
    /// In which direction.
    pub key: Key,
}

/// All items, in the official order.
#[rustfmt::skip]
pub const ITEMS: [Item; 50] = [
    Item { text: "I am the life of the party.", measures: Extraversion, key: Positive },
    Item { text: "I feel little concern for others.", measures: Agreeableness, key: Negative },
    Item { text: "I am always prepared.", measures: Conscientiousness, key: Positive },
    Item { text: "I get stressed out easily.", measures: EmotionalStability, key: Negative },
    Item { text: "I have a rich vocabulary.", measures: Intellect, key: Positive },
    Item { text: "I don't talk a lot.", measures: Extraversion, key: Negative },
    Item { text: "I am interested in people.", measures: Agreeableness, key: Positive },
    Item { text: "I leave my belongings around.", measures: Conscientiousness, key: Negative },
    Item { text: "I am relaxed most of the time.", measures: EmotionalStability, key: Positive },
    Item { text: "I have difficulty understanding abstract ideas.", measures: Intellect, key: Negative },
    Item { text: "I feel comfortable around people.", measures: Extraversion, key: Positive },
    Item { text: "I insult people.", measures: Agreeableness, key: Negative },
    Item { text: "I pay attention to details.", measures: Conscientiousness, key: Positive },
    Item { text: "I worry about things.", measures: EmotionalStability, key: Negative },
    Item { text: "I have a vivid imagination.", measures: Intellect, key: Positive },
    Item { text: "I keep in the background.", measures: Extraversion, key: Negative },
    Item { text: "I sympathize with others' feelings.", measures: Agreeableness, key: Positive },
    Item { text: "I make a mess of things.", measures: Conscientiousness, key: Negative },
    Item { text: "I seldom feel blue.", measures: EmotionalStability, key: Positive },
    Item { text: "I am not interested in abstract ideas.", measures: Intellect, key: Negative },
    Item { text: "I start conversations.", measures: Extraversion, key: Positive },
    Item { text: "I am not interested in other people's problems.", measures: Agreeableness, key: Negative },
    Item { text: "I get chores done right away.", measures: Conscientiousness, key: Positive },
    Item { text: "I am easily disturbed.", measures: EmotionalStability, key: Negative },
    Item { text: "I have excellent ideas.", measures: Intellect, key: Positive },
    Item { text: "I have little to say.", measures: Extraversion, key: Negative },
    Item { text: "I have a soft heart.", measures: Agreeableness, key: Positive },
    Item { text: "I often forget to put things back in their proper place.", measures: Conscientiousness, key: Negative },
    Item { text: "I get upset easily.", measures: EmotionalStability, key: Negative },
    Item { text: "I do not have a good imagination.", measures: Intellect, key: Negative },
    Item { text: "I talk to a lot of different people at parties.", measures: Extraversion, key: Positive },
    Item { text: "I am not really interested in others.", measures: Agreeableness, key: Negative },
    Item { text: "I like order.", measures: Conscientiousness, key: Positive },
    Item { text: "I change my mood a lot.", measures: EmotionalStability, key: Negative },
    Item { text: "I am quick to understand things.", measures: Intellect, key: Positive },
    Item { text: "I don't like to draw attention to myself.", measures: Extraversion, key: Negative },
    Item { text: "I take time out for others.", measures: Agreeableness, key: Positive },
    Item { text: "I shirk my duties.", measures: Conscientiousness, key: Negative },
    Item { text: "I have frequent mood swings.", measures: EmotionalStability, key: Negative },
    Item { text: "I use difficult words.", measures: Intellect, key: Positive },
    Item { text: "I don't mind being the center of attention.", measures: Extraversion, key: Positive },
    Item { text: "I feel others' emotions.", measures: Agreeableness, key: Positive },
    Item { text: "I follow a schedule.", measures: Conscientiousness, key: Positive },
    Item { text: "I get irritated easily.", measures: EmotionalStability, key: Negative },
    Item { text: "I spend time reflecting on things.", measures: Intellect, key: Positive },
    Item { text: "I am quiet around strangers.", measures: Extraversion, key: Negative },
    Item { text: "I make people feel at ease.", measures: Agreeableness, key: Positive },
    Item { text: "I am exacting in my work.", measures: Conscientiousness, key: Positive },
    Item { text: "I often feel blue.", measures: EmotionalStability, key: Negative },
    Item { text: "I am full of ideas.", measures: Intellect, key: Positive },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_items_a_trait_in_turn_with_the_published_balance_of_keys() {
        for (i, item) in ITEMS.iter().enumerate() {
            assert_eq!(item.measures, Trait::ALL[i % 5], "{}", item.text);
            assert!(item.text.starts_with("I ") && item.text.ends_with('.'), "{}", item.text);
        }
        let positive = |t: Trait| ITEMS.iter().filter(|i| i.measures == t && i.key == Positive).count();
        assert_eq!(Trait::ALL.map(positive), [5, 6, 6, 2, 7]);
    }

    #[test]
    fn texts_differ() {
        let mut texts: Vec<&str> = ITEMS.iter().map(|i| i.text).collect();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), 50);
    }
}
