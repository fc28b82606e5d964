//! Shop: a buyer with a hidden goal is recommended one of three products, round after round. For transfer only.
//!
//! After the web shopping task of Qiu et al. (arXiv 2503.17523): a goal is two of a category's six attributes and one
//! value for each of its two options; a product scores a quarter for each part that it matches, and the buyer takes the
//! product of highest score, the cheaper one among equals. The text tells title, options and price. The attributes are
//! never named, only paraphrased, so that **no exact teacher** exists: what a text means is not in the world. Its
//! likelihood is uniform, so the teacher's `probs` are uniform too, and the truth of an answer is all there is to measure
//! by. The published task takes its products from WebShop's catalogue; this one is smaller, and ships in
//! `data/shop.json`, made by `scripts/make_shop.py`.
//!
//! Every category has the same number of attributes and of values, so a user is a goal in any category: the first and
//! third attribute, say, the second value of one option and the fourth of the other. An episode stays in one category.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::text::{TextTemplates, Texts};
use super::{Factor, Likelihood, Question, Reward};
use crate::error::usage;
use crate::rng::Stream;

/// Rounds of an episode, as published.
pub(super) const DEFAULT_ROUNDS: usize = 5;

/// Products to choose from in a round.
const OPTIONS: usize = 3;

const CATALOGUE: &str = include_str!("../../data/shop.json");

/// `[teacher.shop]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShopConfig {
    /// The categories that episodes may be about; none: all.
    pub categories: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Category {
    name: String,
    attributes: Vec<String>,
    options: Vec<ProductOption>,
    products: Vec<Product>,
}

/// What a product comes in, such as a color.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProductOption {
    name: String,
    values: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Product {
    title: String,
    cents: u32,
    /// The index of its value for each option.
    options: Vec<usize>,
    /// Indices of the attributes that it has.
    attributes: Vec<usize>,
}

/// What a buyer looks for: two attributes, and a value for each option.
#[derive(Clone, Debug, PartialEq)]
struct Goal {
    attributes: [usize; 2],
    values: Vec<usize>,
}

impl Goal {
    /// Parts of the goal that a product matches, 0 to 4.
    fn score(&self, product: &Product) -> usize {
        let attributes = self.attributes.iter().filter(|a| product.attributes.contains(a)).count();
        attributes + self.values.iter().zip(&product.options).filter(|(a, b)| a == b).count()
    }
}

/// The shop; see the module's documentation.
#[derive(Clone, Debug)]
pub struct Shop {
    categories: Vec<Category>,
    goals: Vec<Goal>,
    factors: [Factor; 1],
    labels: Arc<[String]>,
    likelihood: Arc<Likelihood>,
    texts: Texts,
}

impl Shop {
    /// # Errors
    /// If a category does not exist.
    pub(super) fn new(config: &ShopConfig) -> Result<Shop> {
        let all: Vec<Category> = serde_json::from_str(CATALOGUE).context("data/shop.json is damaged")?;
        let goals = goals(&all[0]);
        let wanted = &config.categories;
        if let Some(unknown) = wanted.iter().find(|name| !all.iter().any(|c| c.name == **name)) {
            let known: Vec<&str> = all.iter().map(|c| c.name.as_str()).collect();
            return Err(usage(format!(
                "teacher.shop.categories has {unknown:?}; there are: {}",
                known.join(", ")
            )));
        }
        let categories = all.into_iter().filter(|c| wanted.is_empty() || wanted.contains(&c.name)).collect();
        let labels: Arc<[String]> = (1..=OPTIONS).map(|i| i.to_string()).collect();
        let text = TextTemplates {
            opening: "Help me select the best products for my shopping. I have specific preferences for what I like \
                      and dislike in a product, and these preferences remain the same. You need to figure out my \
                      preferences and select the best products for me. Use your best judgment if you are unsure. Do \
                      not say you need more information.\n\n{{ question }}",
            reply: "The best option is Product {{ label }}.",
            feedback: "Your option Product {{ said }} is {% if said == truth %}correct.{% else %}incorrect. I prefer \
                       Product {{ truth }}.{% endif %}{{ '\\n\\n' }}{{ question }}",
        };
        let texts = Texts::new(text, std::iter::once(&labels), &[])
            .map_err(|mistake| anyhow::anyhow!("the text of shop, {}: {}", mistake.key, mistake.message))?;
        let prior = vec![1.0 / goals.len() as f64; goals.len()];
        Ok(Shop {
            categories,
            factors: [Factor { name: "goal".into(), prior }],
            goals,
            labels,
            likelihood: Arc::new(Likelihood::Uniform { options: OPTIONS }),
            texts,
        })
    }

    pub(super) fn factors(&self) -> &[Factor] {
        &self.factors
    }

    pub(super) fn texts(&self) -> &Texts {
        &self.texts
    }

    /// Questions about products of one category.
    pub(super) fn questions(&self, rounds: usize, draws: &mut Stream) -> Vec<Question> {
        self.option_sets(draws.below(self.categories.len()), rounds, draws)
    }

    /// The index of the category that a question of the shop's is about.
    pub(super) fn category_of(&self, question: &Question) -> usize {
        let asks = |category: &Category| question.text.starts_with(&opening(category));
        self.categories.iter().position(asks).unwrap_or(0)
    }

    /// Questions about products of a category, as an index.
    pub(super) fn option_sets(&self, category: usize, count: usize, draws: &mut Stream) -> Vec<Question> {
        let category = &self.categories[category];
        let mut shelf: Vec<usize> = (0..category.products.len()).collect();
        (0..count)
            .map(|_| {
                draws.shuffle(&mut shelf);
                let products: Vec<&Product> =
                    shelf[..OPTIONS].iter().map(|&p| &category.products[p]).collect();
                self.question(category, &products)
            })
            .collect()
    }

    /// A question about products given as text, each with its heading (`Product 1: …`).
    ///
    /// # Errors
    /// If there are more or fewer than the shop shows.
    pub(super) fn question_of_text(&self, options: &[String]) -> Result<Question> {
        anyhow::ensure!(
            options.len() == OPTIONS,
            "{} products, where the shop shows {OPTIONS}",
            options.len()
        );
        Ok(Question {
            text: format!("Which of these products is the best option?\n{}", options.join("\n")),
            placed: None,
            labels: Arc::clone(&self.labels),
            factor: 0,
            likelihood: Arc::clone(&self.likelihood),
            behaviour: Arc::clone(&self.likelihood),
            reward: Reward::Match,
            levels: Arc::default(),
        })
    }

    fn question(&self, category: &Category, products: &[&Product]) -> Question {
        let choices = self.goals.iter().map(|goal| choice(goal, products) as u8).collect();
        Question {
            text: text(category, products),
            placed: None,
            labels: Arc::clone(&self.labels),
            factor: 0,
            likelihood: Arc::clone(&self.likelihood),
            behaviour: Arc::new(Likelihood::Choice { options: products.len(), choices }),
            reward: Reward::Match,
            levels: Arc::default(),
        }
    }
}

/// All goals that a category allows; they are as many in every category.
fn goals(category: &Category) -> Vec<Goal> {
    let n = category.attributes.len();
    let pairs = (0..n).flat_map(|a| (a + 1..n).map(move |b| [a, b]));
    let mut values: Vec<Vec<usize>> = vec![Vec::new()];
    for option in &category.options {
        let longer = |v: &Vec<usize>| {
            let v = v.clone();
            (0..option.values.len()).map(move |value| [v.clone(), vec![value]].concat())
        };
        values = values.iter().flat_map(longer).collect();
    }
    pairs.flat_map(|attributes| values.iter().map(move |v| Goal { attributes, values: v.clone() })).collect()
}

/// The product of highest score, the cheaper one among equals; no two have the same price.
fn choice(goal: &Goal, products: &[&Product]) -> usize {
    let worth = |&i: &usize| (goal.score(products[i]), std::cmp::Reverse(products[i].cents));
    (0..products.len()).max_by_key(worth).unwrap_or(0)
}

fn opening(category: &Category) -> String {
    format!("Which of these {} is the best option?", category.name)
}

fn text(category: &Category, products: &[&Product]) -> String {
    let mut text = opening(category);
    for (i, product) in products.iter().enumerate() {
        text += &format!("\nProduct {}:\n{}", i + 1, product.title);
        for (option, &value) in category.options.iter().zip(&product.options) {
            let name = option.name[..1].to_uppercase() + &option.name[1..];
            text += &format!("\n{name}: {}", option.values[value]);
        }
        text += &format!("\nPrice: ${}.{:02}", product.cents / 100, product.cents % 100);
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::rng;

    #[test]
    fn the_catalogue_is_whole() {
        let shop = Shop::new(&ShopConfig::default()).unwrap();
        assert_eq!(shop.categories.len(), 12);
        // Pairs of 6 attributes, 6 values, 4 values.
        assert_eq!(shop.goals.len(), 15 * 6 * 4);
        let mut titles = Vec::new();
        for category in &shop.categories {
            assert_eq!(goals(category), shop.goals, "{}", category.name);
            assert!(category.products.len() >= 20, "{}", category.name);
            let mut prices: Vec<u32> = category.products.iter().map(|p| p.cents).collect();
            prices.sort_unstable();
            assert!(prices.windows(2).all(|pair| pair[0] < pair[1]), "{}", category.name);
            for product in &category.products {
                assert!(product.attributes.iter().all(|&a| a < category.attributes.len()));
                assert_eq!(product.options.len(), category.options.len());
                let values = category.options.iter().zip(&product.options);
                assert!(values.clone().all(|(option, &value)| value < option.values.len()));
                titles.push(&product.title);
                // Latent: the text does not name them.
                for &a in &product.attributes {
                    assert!(!product.title.contains(&category.attributes[a]), "{}", product.title);
                }
            }
        }
        titles.sort_unstable();
        titles.dedup();
        assert_eq!(titles.len(), 360);
    }

    #[test]
    fn buyers_count_what_matches_and_then_the_price() {
        let product = |attributes: &[usize], options: [usize; 2], cents| Product {
            title: String::new(),
            cents,
            options: options.to_vec(),
            attributes: attributes.to_vec(),
        };
        let goal = Goal { attributes: [1, 4], values: vec![2, 0] };
        let (two, three, none) =
            (product(&[1, 4], [0, 1], 500), product(&[0, 4], [2, 0], 900), product(&[0, 2], [1, 1], 100));
        assert_eq!([&two, &three, &none].map(|p| goal.score(p)), [2, 3, 0]);
        assert_eq!(choice(&goal, &[&two, &three, &none]), 1);
        let cheaper = product(&[1], [2, 3], 400);
        assert_eq!(choice(&goal, &[&two, &cheaper, &none]), 1);
        assert_eq!(choice(&goal, &[&none, &two, &cheaper]), 2);
    }

    #[test]
    fn an_episode_stays_in_its_category_and_no_answer_teaches() {
        let config = ShopConfig { categories: vec!["coffee".into(), "backpacks".into()] };
        let shop = Shop::new(&config).unwrap();
        for index in 0..20 {
            let questions = shop.questions(5, &mut rng::stream(1, "test", index));
            let first = questions[0].text.lines().next().unwrap().to_owned();
            assert!(first.contains("coffee") || first.contains("backpacks"));
            assert!(questions.iter().all(|q| q.text.starts_with(&first)));
            assert!(questions.iter().all(|q| matches!(*q.likelihood, Likelihood::Uniform { options: 3 })));
        }
        // What is asked aside is of the episode's category.
        for index in 0..20 {
            let draws = &mut rng::stream(2, "test", index);
            let first = &shop.questions(5, draws)[0];
            let sets = shop.option_sets(shop.category_of(first), 10, draws);
            let name = |question: &Question| question.text.lines().next().unwrap().to_owned();
            assert!(sets.len() == 10 && sets.iter().all(|set| name(set) == name(first)));
        }
        let unknown = Shop::new(&ShopConfig { categories: vec!["cars".into()] }).unwrap_err().to_string();
        assert!(unknown.contains("\"cars\"") && unknown.contains("bed sheets"), "{unknown}");
    }
}
