//! Worlds of items: a fixed list of questions, each with its own options and its own likelihood of every option
//! under every hypothesis. The personality questionnaire is one of them; a declared world may be another.

use std::collections::BTreeMap;
use std::sync::Arc;

use minijinja::context;
use serde::{Deserialize, Serialize};

use super::graded::GradedItem;
use super::text::{Template, TextMistake, TextTemplates, Texts};
use super::{Attribute, Factor, Likelihood, PLACE, Question, Reward};
use crate::rng::Stream;

/// In which order questions are asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// A random subset in random order.
    #[default]
    Shuffled,
    /// The traits take turns; a random subset of each trait's questions, in the order of the list.
    Interleaved,
    /// One trait after the other; a random subset of each trait's questions, in the order of the list.
    Blocked,
    /// Each drawn anew: the only order in which a question may come again.
    Independent,
}

/// One question of the list.
pub(super) struct ItemParts {
    pub(super) text: String,
    pub(super) labels: Arc<[String]>,
    /// Which questions take turns or are asked together: those of one group.
    pub(super) group: usize,
    /// Index of the factor that it bears on.
    pub(super) factor: usize,
    /// What the teacher supposes.
    pub(super) likelihood: Arc<Likelihood>,
    /// How users answer.
    pub(super) behaviour: Arc<Likelihood>,
    pub(super) reward: Reward,
    /// Where the answers, as the teacher supposes them, depend on one level.
    pub(super) graded: Option<GradedItem>,
}

/// All that makes up a world of items.
pub(super) struct ItemWorldParts<'a> {
    pub(super) name: String,
    /// All items where absent.
    pub(super) rounds: Option<usize>,
    /// As many people, drawn from the prior; every combination of hypotheses once where absent.
    pub(super) population: Option<usize>,
    pub(super) order: Order,
    pub(super) factors: Vec<Factor>,
    pub(super) items: Vec<ItemParts>,
    pub(super) attributes: Vec<Attribute>,
    /// `place`, the item's `text`, and its `options`.
    pub(super) question: &'a str,
    pub(super) text: TextTemplates<'a>,
}

/// A world of items; see the module's documentation.
#[derive(Clone, Debug)]
pub struct ItemWorld {
    name: String,
    rounds: usize,
    population: Option<usize>,
    order: Order,
    factors: Vec<Factor>,
    items: Vec<Item>,
    attributes: Vec<Attribute>,
    texts: Texts,
}

#[derive(Clone, Debug)]
struct Item {
    text: Template,
    /// See [`Question::placed`]: the same wherever the item is asked.
    placed: Option<Arc<str>>,
    labels: Arc<[String]>,
    group: usize,
    factor: usize,
    likelihood: Arc<Likelihood>,
    behaviour: Arc<Likelihood>,
    reward: Reward,
    graded: Option<GradedItem>,
}

impl ItemWorld {
    /// There must be at least one item. The error names the template that is wrong.
    pub(super) fn new(parts: ItemWorldParts<'_>) -> Result<ItemWorld, TextMistake> {
        let texts = Texts::new(parts.text, parts.items.iter().map(|item| &item.labels), &[])?;
        let items: Vec<Item> = (parts.items.into_iter())
            .map(|item| {
                let (text, options) = (&item.text, item.labels.to_vec());
                let template = Template::new(
                    parts.question,
                    1,
                    |slot| context! { place => slot(0), text => text, options => &options },
                )
                .map_err(|message| TextMistake { key: "question", message })?;
                Ok(Item {
                    placed: (template.count(0) > 0).then(|| template.fill(|_| PLACE).into()),
                    text: template,
                    labels: item.labels,
                    group: item.group,
                    factor: item.factor,
                    likelihood: item.likelihood,
                    behaviour: item.behaviour,
                    reward: item.reward,
                    graded: item.graded,
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(ItemWorld {
            name: parts.name,
            rounds: parts.rounds.unwrap_or(items.len()),
            population: parts.population,
            order: parts.order,
            factors: parts.factors,
            items,
            attributes: parts.attributes,
            texts,
        })
    }

    /// The first two items that read alike although other answers are to be expected to them: nobody could tell which is
    /// asked.
    pub(super) fn confusable(&self) -> Option<(usize, usize)> {
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for (i, item) in self.items.iter().enumerate() {
            // As at one place.
            let first = *seen.entry(item.text.fill(|_| "1")).or_insert(i);
            let other = &self.items[first];
            let is_same = item.factor == other.factor
                && item.labels == other.labels
                && item.likelihood == other.likelihood;
            if !is_same {
                return Some((first, i));
            }
        }
        None
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn default_rounds(&self) -> usize {
        self.rounds
    }

    pub(super) fn max_rounds(&self) -> Option<usize> {
        (self.order != Order::Independent).then_some(self.items.len())
    }

    pub(super) fn population(&self) -> Option<usize> {
        self.population
    }

    pub(super) fn factors(&self) -> &[Factor] {
        &self.factors
    }

    pub(super) fn texts(&self) -> &Texts {
        &self.texts
    }

    pub(super) fn questions(&self, rounds: usize, draws: &mut Stream) -> Vec<Question> {
        let groups: Vec<usize> = self.items.iter().map(|item| item.group).collect();
        let items = choose_items(&groups, self.order, rounds, draws);
        items.iter().enumerate().map(|(i, &item)| self.question(i + 1, item)).collect()
    }

    /// All items, in the configured order; at random where each is drawn anew.
    pub(super) fn bank(&self, draws: &mut Stream) -> Vec<usize> {
        let groups: Vec<usize> = self.items.iter().map(|item| item.group).collect();
        let order = if self.order == Order::Independent { Order::Shuffled } else { self.order };
        choose_items(&groups, order, groups.len(), draws)
    }

    pub(super) fn items_come_again(&self) -> bool {
        self.order == Order::Independent
    }

    pub(super) fn item(&self, item: usize, place: usize) -> Option<Question> {
        (item < self.items.len()).then(|| self.question(place, item))
    }

    /// The question that stands at the end of a message, as that of a place (from 1) of the episode.
    pub(super) fn read_question(&self, message: &str, place: usize) -> Option<Question> {
        let ends = |item: &usize| message.ends_with(self.question(place, *item).text.as_str());
        // Of items of which one ends with another's text, the longer is meant.
        let longest =
            (0..self.items.len()).filter(ends).max_by_key(|&item| self.question(place, item).text.len());
        longest.map(|item| self.question(place, item))
    }

    /// Of an item at the posterior mean of its level, where its answers depend on one level.
    pub(super) fn fisher_information(&self, item: usize, marginal: &[f64]) -> Option<f64> {
        Some(self.items.get(item)?.graded.as_ref()?.fisher_information(marginal))
    }

    /// Whether answers, as the teacher supposes them, can only rule hypotheses out.
    pub(super) fn answers_only_rule_out(&self) -> bool {
        self.items.iter().all(|item| item.likelihood.only_rules_out())
    }

    pub(super) fn attributes(&self) -> &[Attribute] {
        &self.attributes
    }

    /// An item as the question of a place (from 1) of the episode.
    fn question(&self, place: usize, item: usize) -> Question {
        let item = &self.items[item];
        let place = place.to_string();
        Question {
            text: item.text.fill(|_| &place),
            placed: item.placed.clone(),
            labels: Arc::clone(&item.labels),
            factor: item.factor,
            likelihood: Arc::clone(&item.likelihood),
            behaviour: Arc::clone(&item.behaviour),
            reward: item.reward.clone(),
            levels: Arc::default(),
        }
    }
}

/// Indices of the items of an episode, in the order in which they are asked; `groups` is each item's group.
fn choose_items(groups: &[usize], order: Order, rounds: usize, draws: &mut Stream) -> Vec<usize> {
    if order == Order::Independent {
        return (0..rounds).map(|_| draws.below(groups.len())).collect();
    }
    let mut items: Vec<usize> = (0..groups.len()).collect();
    draws.shuffle(&mut items);
    if order == Order::Shuffled {
        items.truncate(rounds);
        return items;
    }
    // Places go to the groups in turn, as long as a group has items left.
    let n_groups = groups.iter().max().map_or(0, |last| last + 1);
    let mut left: Vec<usize> = (0..n_groups).map(|g| groups.iter().filter(|&&of| of == g).count()).collect();
    let mut turns = Vec::with_capacity(rounds);
    while turns.len() < rounds.min(groups.len()) {
        for (group, left) in left.iter_mut().enumerate() {
            if *left > 0 && turns.len() < rounds {
                *left -= 1;
                turns.push(group);
            }
        }
    }
    // Each group's items in the order of the list.
    let mut by_group: Vec<Vec<usize>> = (0..n_groups)
        .map(|g| {
            let count = turns.iter().filter(|&&turn| turn == g).count();
            let mut of_group: Vec<usize> =
                items.iter().copied().filter(|&i| groups[i] == g).take(count).collect();
            of_group.sort_unstable();
            of_group
        })
        .collect();
    if order == Order::Blocked {
        return by_group.concat();
    }
    by_group.iter_mut().for_each(|of_group| of_group.reverse());
    turns.into_iter().filter_map(|group| by_group[group].pop()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    /// As in the questionnaire: 50 items, the five traits in turn.
    fn draw(order: Order, rounds: usize, index: u64) -> Vec<usize> {
        let groups: Vec<usize> = (0..50).map(|i| i % 5).collect();
        choose_items(&groups, order, rounds, &mut rng::stream(5, "test", index))
    }

    fn sorted(mut items: Vec<usize>) -> Vec<usize> {
        items.sort_unstable();
        items.dedup();
        items
    }

    #[test]
    fn no_item_twice_unless_each_is_drawn_anew() {
        for order in [Order::Shuffled, Order::Interleaved, Order::Blocked] {
            for rounds in [1, 7, 20, 50] {
                assert_eq!(sorted(draw(order, rounds, rounds as u64)).len(), rounds, "{order:?}");
            }
        }
        let anew = draw(Order::Independent, 500, 0);
        assert!(anew.len() == 500 && sorted(anew) == (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn orders_are_what_they_are_called() {
        let traits = |items: Vec<usize>| items.iter().map(|i| i % 5).collect::<Vec<_>>();
        assert_eq!(draw(Order::Interleaved, 50, 0), (0..50).collect::<Vec<_>>());
        assert_eq!(traits(draw(Order::Interleaved, 7, 0)), [0, 1, 2, 3, 4, 0, 1]);
        assert_eq!(traits(draw(Order::Blocked, 7, 0)), [0, 0, 1, 1, 2, 3, 4]);
        assert_ne!(draw(Order::Shuffled, 50, 0), (0..50).collect::<Vec<_>>());
        assert_eq!(sorted(draw(Order::Shuffled, 50, 0)), (0..50).collect::<Vec<_>>());
        assert_ne!(draw(Order::Shuffled, 20, 0), draw(Order::Shuffled, 20, 1));
    }

    #[test]
    fn groups_of_different_sizes_are_exhausted() {
        let groups = [0, 1, 1, 1, 2, 2];
        let draw = |order| choose_items(&groups, order, 6, &mut rng::stream(5, "test", 0));
        let of = |items: Vec<usize>| items.iter().map(|&i| groups[i]).collect::<Vec<_>>();
        assert_eq!(of(draw(Order::Interleaved)), [0, 1, 2, 1, 2, 1]);
        assert_eq!(of(draw(Order::Blocked)), [0, 1, 1, 1, 2, 2]);
    }
}
