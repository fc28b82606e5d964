//! Which examples, in which order, lead a predictor to believe something fastest.

use anyhow::{Context as _, Result, ensure};

use super::posterior::Posterior;
use crate::episode::Episode;
use crate::error::usage;
use crate::rng::Stream;
use crate::world::{Attribute, Question, World};

/// A question with what a user answered.
#[derive(Clone, Debug)]
pub struct Example {
    /// The question.
    pub question: Question,
    /// The index of an option.
    pub answer: usize,
}

impl Example {
    /// The answered questions of an episode of the world. Reports of beliefs and answers without a truth are left out.
    ///
    /// # Errors
    /// If a question is none of the world's as it is configured.
    pub fn of_episode(world: &World, episode: &Episode) -> Result<Vec<Example>> {
        let mut examples = Vec::new();
        let mut place = 0;
        for pair in episode.messages.windows(2) {
            let Some(answer) = pair[1].answer.as_ref().filter(|answer| answer.belief.is_none()) else {
                continue;
            };
            place += 1;
            let Some(truth) = answer.truth else { continue };
            let question = world.read_question(&pair[0].content, place).with_context(|| {
                format!(
                    "episode {:?}, question {place}: this is none of the {} world's questions as configured",
                    episode.id,
                    world.name()
                )
            })?;
            ensure!(
                question.labels[..] == answer.options[..],
                "episode {:?}, question {place}: the options are {:?}, not {:?}",
                episode.id,
                answer.options,
                question.labels
            );
            examples.push(Example { question, answer: truth });
        }
        Ok(examples)
    }

    /// Questions as the world draws them, with the answers of one who is like the target.
    pub fn draw(
        world: &World,
        target: &Target,
        count: usize,
        questions: &mut Stream,
        answers: &mut Stream,
    ) -> Vec<Example> {
        let user: Vec<usize> = (0..world.factors().len())
            .map(|factor| answers.categorical(&target.within(world, factor)))
            .collect();
        let drawn = world.questions(count, questions).into_iter();
        drawn.map(|question| Example { answer: world.answer(&user, &question, answers), question }).collect()
    }
}

/// What is to be believed of the user: which hypotheses of some factors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// For each factor, whether each hypothesis belongs to the target; none where it says nothing of the factor.
    members: Vec<Option<Vec<bool>>>,
}

impl Target {
    /// All about the user of this index.
    ///
    /// # Errors
    /// If there is no such user.
    pub fn user(world: &World, index: usize) -> Result<Target> {
        ensure!(
            index < world.users(),
            usage(format!("user {index}: the {} world has users 0 to {}", world.name(), world.users() - 1))
        );
        let is = |(hypothesis, factor): (usize, &crate::world::Factor)| {
            Some((0..factor.prior.len()).map(|h| h == hypothesis).collect())
        };
        Ok(Target { members: world.user(index).into_iter().zip(world.factors()).map(is).collect() })
    }

    /// Levels of attributes, each by its name or its number from 1.
    ///
    /// # Errors
    /// If an attribute or a level is not there, or nobody has all these levels.
    pub fn levels(world: &World, levels: &[(String, String)]) -> Result<Target> {
        let attributes = world.attributes();
        let mut members: Vec<Option<Vec<bool>>> = vec![None; world.factors().len()];
        for (name, level) in levels {
            let attribute = find(&attributes, name, world)?;
            let Some(wanted) = attribute.level(level) else {
                let known = attribute.values.join(", ");
                return Err(usage(format!("{name}={level}: its levels are {known}")));
            };
            let factor = &world.factors()[attribute.factor];
            let of = members[attribute.factor].get_or_insert_with(|| vec![true; factor.prior.len()]);
            for (is, has) in of.iter_mut().zip(&attribute.level_of) {
                *is &= usize::from(*has) == wanted;
            }
        }
        for (factor, of) in world.factors().iter().zip(&members) {
            let possible = |of: &Vec<bool>| of.iter().zip(&factor.prior).any(|(is, p)| *is && *p > 0.0);
            ensure!(
                of.as_ref().is_none_or(possible),
                usage(format!("nobody in the {} world is all of this: {levels:?}", world.name()))
            );
        }
        Ok(Target { members })
    }

    /// Whether it says anything of a factor.
    pub fn is_about(&self, factor: usize) -> bool {
        self.members[factor].is_some()
    }

    /// The logarithm of the posterior probability of the target.
    pub fn log_belief(&self, posterior: &Posterior) -> f64 {
        let of_factor = |(factor, members): (usize, &Option<Vec<bool>>)| {
            let members = members.as_ref()?;
            let marginal = posterior.marginal(factor).iter().zip(members);
            Some(marginal.filter(|(_, is)| **is).map(|(p, _)| p).sum::<f64>().ln())
        };
        self.members.iter().enumerate().filter_map(of_factor).sum()
    }

    /// The prior of a factor's hypotheses, given that the target is true.
    pub fn within(&self, world: &World, factor: usize) -> Vec<f64> {
        let prior = &world.factors()[factor].prior;
        let Some(members) = &self.members[factor] else { return prior.clone() };
        let sum: f64 = prior.iter().zip(members).filter(|(_, is)| **is).map(|(p, _)| p).sum();
        prior.iter().zip(members).map(|(p, is)| if *is { p / sum } else { 0.0 }).collect()
    }

    /// What one predicts who knows that the target is true, and nothing else.
    pub fn predictive(&self, world: &World, question: &Question) -> Vec<f64> {
        let mut total = vec![0.0; question.labels.len()];
        for (h, p) in self.within(world, question.factor).into_iter().enumerate().filter(|(_, p)| *p > 0.0) {
            question.likelihood.add_weighted(h, p, &mut total);
        }
        total
    }
}

fn find<'a>(attributes: &'a [Attribute], name: &str, world: &World) -> Result<&'a Attribute> {
    let found = attributes.iter().find(|attribute| attribute.name == name);
    found.ok_or_else(|| {
        let known: Vec<&str> = attributes.iter().map(|a| a.name.as_str()).collect();
        usage(format!("{name:?}: the {} world as configured has {}", world.name(), known.join(", ")))
    })
}

/// How an order is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// One example after the other, each the best at its place.
    Greedy,
    /// All choices of so many examples, the order of each found greedily: the best final value, as long as the value
    /// does not depend on the order.
    Exhaustive,
}

/// Choosing all ways to take so many is given up beyond this.
const MOST_CHOICES: u128 = 200_000;

/// Which `count` of `pool` examples to show, in order, for the highest `value`; this is told which examples are shown, in
/// order. Equals (after rounding to 9 digits) go to the lowest index.
///
/// # Errors
/// If there are fewer examples, too many ways to go through, or `value` fails.
pub fn schedule(
    pool: usize,
    count: usize,
    search: Search,
    value: &mut dyn FnMut(&[usize]) -> Result<f64>,
) -> Result<Vec<usize>> {
    ensure!(count <= pool, usage(format!("{count} examples are wanted of a pool of {pool}")));
    let all: Vec<usize> = (0..pool).collect();
    if search == Search::Greedy || count == 0 {
        return greedy(&all, count, value);
    }
    let choices = choices(pool as u128, count as u128);
    ensure!(
        choices <= MOST_CHOICES,
        usage(format!(
            "there are {choices} ways to choose {count} of {pool} examples, more than {MOST_CHOICES}: take a smaller pool, \
             fewer examples, or the greedy search"
        ))
    );
    let mut chosen: Vec<usize> = (0..count).collect();
    let mut best = (f64::NEG_INFINITY, chosen.clone());
    loop {
        let found = rounded(value(&chosen)?);
        if found > best.0 {
            best = (found, chosen.clone());
        }
        // The next combination in lexicographic order.
        let Some(i) = (0..count).rev().find(|&i| chosen[i] < pool - count + i) else { break };
        chosen[i] += 1;
        (i + 1..count).for_each(|j| chosen[j] = chosen[j - 1] + 1);
    }
    greedy(&best.1, count, value)
}

fn greedy(
    among: &[usize],
    count: usize,
    value: &mut dyn FnMut(&[usize]) -> Result<f64>,
) -> Result<Vec<usize>> {
    let mut order = Vec::with_capacity(count);
    while order.len() < count {
        let mut best: Option<(f64, usize)> = None;
        for &example in among {
            if order.contains(&example) {
                continue;
            }
            order.push(example);
            let found = rounded(value(&order)?);
            order.pop();
            if best.is_none_or(|(highest, _)| found > highest) {
                best = Some((found, example));
            }
        }
        let Some((_, example)) = best else { break };
        order.push(example);
    }
    Ok(order)
}

fn rounded(value: f64) -> f64 {
    (value * 1e9).round() / 1e9
}

/// Ways to choose `k` of `n`, or more than can be gone through.
fn choices(n: u128, k: u128) -> u128 {
    let mut ways: u128 = 1;
    for i in 0..k.min(n - k) {
        ways = ways * (n - i) / (i + 1);
        if ways > 1 << 80 {
            break;
        }
    }
    ways
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::rng;

    #[test]
    fn the_greedy_way_can_be_the_worse_one() {
        // 0 is worth 2 alone; 1 and 2 are worth 1 each, and 5 together.
        let mut value = |shown: &[usize]| {
            let together = shown.contains(&1) && shown.contains(&2);
            let each: f64 = shown.iter().map(|i| [2.0, 1.0, 1.0][*i]).sum();
            Ok(if together { 5.0 } else { each })
        };
        assert_eq!(schedule(3, 2, Search::Greedy, &mut value).unwrap(), [0, 1]);
        assert_eq!(schedule(3, 2, Search::Exhaustive, &mut value).unwrap(), [1, 2]);
        assert_eq!(schedule(3, 0, Search::Exhaustive, &mut value).unwrap(), [0; 0]);
        assert!(schedule(3, 4, Search::Greedy, &mut value).is_err());
        assert!(
            schedule(100, 10, Search::Exhaustive, &mut value)
                .unwrap_err()
                .to_string()
                .contains("17310309456440")
        );
    }

    #[test]
    fn targets_by_user_and_by_levels() {
        let world = World::personality(&Default::default()).unwrap();
        let prior = Posterior::prior(world.factors());
        assert!((Target::user(&world, 7).unwrap().log_belief(&prior) + 3125_f64.ln()).abs() < 1e-12);
        let level =
            |name: &str, level: usize| Target::levels(&world, &[(name.to_owned(), level.to_string())]);
        let target = level("extraversion", 5).unwrap();
        assert!((target.log_belief(&prior) + 5_f64.ln()).abs() < 1e-12);
        assert!(target.is_about(0) && !target.is_about(1));
        let item = (0..50).filter_map(|i| world.item(i, 1)).find(|q| q.factor == 0).unwrap();
        let predictive = target.predictive(&world, &item);
        let expected: Vec<f64> = (0..5).map(|o| item.likelihood.log_prob(4, o).exp()).collect();
        assert!(predictive.iter().zip(expected).all(|(p, e)| (p - e).abs() < 1e-12));
        assert!(level("extraversion", 6).is_err() && level("charm", 1).is_err());
        assert!(Target::user(&world, 3125).is_err());
        let flights = World::flights(&Default::default()).unwrap();
        let all = ["departure_time", "duration", "number_of_stops", "price"];
        // Who is indifferent to everything is no user.
        let nobody: Vec<_> = all.iter().map(|name| ((*name).to_owned(), "3".to_owned())).collect();
        assert!(Target::levels(&flights, &nobody).unwrap_err().to_string().contains("nobody"));
    }

    /// What an episode says is read back: the posterior is that of the teacher who wrote it.
    #[test]
    fn examples_are_read_from_episodes() {
        use crate::teacher::{TeacherConfig, WorldName, simulate};
        for name in [WorldName::Flights, WorldName::Hotels, WorldName::Personality, WorldName::TraitFlights] {
            let mut config = TeacherConfig { rounds: Some(6), ..TeacherConfig::new(name) };
            config.trait_flights.items = 3;
            let world = config.build_world().unwrap();
            let mut last = None;
            let told = simulate(&config, &world, 1, 11, 0, |posterior| last = Some(posterior.clone()));
            let examples = Example::of_episode(&world, &told.episode).unwrap();
            assert_eq!(examples.len(), 6);
            let mut posterior = Posterior::prior(world.factors());
            examples.iter().for_each(|e| {
                posterior.observe(&e.question, e.answer);
            });
            assert!((posterior.entropy() - last.unwrap().entropy()).abs() < 1e-9);
        }
        let flights = World::flights(&Default::default()).unwrap();
        let target = Target::user(&flights, 3).unwrap();
        let (questions, answers) = (&mut rng::stream(1, "q", 0), &mut rng::stream(1, "a", 0));
        let drawn = Example::draw(&flights, &target, 4, questions, answers);
        assert!(drawn.iter().all(|e| e.question.likelihood.log_prob(3, e.answer) == 0.0));
    }
}
