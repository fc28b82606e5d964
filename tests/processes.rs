//! Worlds whose users are drawn sources, against closed forms, brute force and published figures.
//!
//! The teachers below read the episodes' *text* where they can, and share no code with the library's inference:
//! coins by counting, mixtures by products of probabilities, hidden Markov models by enumerating hidden paths and by
//! the textbook forward recursion, Gaussian posteriors by explicit matrix inverses.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and says what it measured")]

#[path = "common/witness.rs"]
mod witness;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bayesteach::episode::{self, Episode};
use bayesteach::metrics::argmax;
use bayesteach::rng::{self, Stream};
use bayesteach::teacher::{
    Belief, Between, Counts, Decision, Domain, Forward, Gaussian, Hypothesis, Kind, Mixture, SplitConfig,
    TeacherConfig, TeacherSummary, Weighing, WorldName, simulate_process, teach,
};
use bayesteach::world::chain::{Family, Rows};
use bayesteach::world::hidden_markov::HiddenMarkov;
use bayesteach::world::hmm::{Format, Hmm, HmmConfig, Inference};
use bayesteach::world::process::{Outcome, Process, Query, Source};
use bayesteach::world::regression::{FunctionPrior, Regression, RegressionConfig};
use witness::assert_near;

const WORLDS: [WorldName; 4] = [WorldName::Coins, WorldName::Markov, WorldName::Hmm, WorldName::Regression];

fn process(config: &TeacherConfig) -> Process {
    match config.build().unwrap() {
        Domain::Process(process) => process,
        Domain::Grid(_) => panic!("a process"),
    }
}

fn configured(world: WorldName, toml: &str) -> TeacherConfig {
    let name = format!("{world:?}").to_lowercase();
    let text = format!("world = \"{name}\"\n{toml}");
    let config: TeacherConfig = toml::from_str(&text).unwrap();
    config.validate().unwrap();
    config
}

fn run(config: &TeacherConfig, seed: u64, dir: &Path) -> TeacherSummary {
    teach(config, &SplitConfig::default(), seed, dir, &|_, _| {}).unwrap()
}

fn assert_all_near(what: &str, computed: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(computed.len(), expected.len(), "{what}");
    for (i, (c, e)) in computed.iter().zip(expected).enumerate() {
        assert_near(&format!("{what}, option {i}"), *c, *e, tolerance);
    }
}

fn sums_to_one(probs: &[f64]) -> bool {
    probs.iter().all(|p| p.is_finite() && *p >= 0.0) && (probs.iter().sum::<f64>() - 1.0).abs() < 1e-9
}

// ------------------------------------------------------------------------- coins: the published regrets, exactly

fn coin_belief(prior: &Family<Vec<f64>>) -> Belief {
    let mut config = TeacherConfig::new(WorldName::Coins);
    config.coins.prior = prior.clone();
    Belief::prior(&process(&config))
}

/// Flips by their number of heads, after `prefix`: the predictor of heads depends on nothing else.
fn head_probability(prior: &Family<Vec<f64>>, prefix: [usize; 2], heads: usize, tails: usize) -> f64 {
    let mut belief = coin_belief(prior);
    for (symbol, count) in [(0, prefix[0] + heads), (1, prefix[1] + tails)] {
        for _ in 0..count {
            belief.observe(&Query::Next, &Outcome::symbol(symbol));
        }
    }
    belief.predictive(&Query::Next)[0]
}

/// Expected cumulative regret over `steps` flips of a coin with this bias to heads, by the binomial distribution.
fn regret_on_coin(prior: &Family<Vec<f64>>, prefix: [usize; 2], bias: f64, steps: usize) -> f64 {
    let mut total = 0.0;
    for step in 0..steps {
        let mut probability = (1.0 - bias).powi(step as i32);
        for heads in 0..=step {
            let p = head_probability(prior, prefix, heads, step - heads);
            total += probability * (bias * (bias / p).ln() + (1.0 - bias) * ((1.0 - bias) / (1.0 - p)).ln());
            probability *= (step - heads) as f64 / (heads + 1) as f64 * bias / (1.0 - bias);
        }
    }
    total
}

fn uniform() -> Family<Vec<f64>> {
    Family::Dirichlet(vec![1.0, 1.0])
}

fn two_coins() -> Family<Vec<f64>> {
    Family::Mixture { components: vec![vec![0.2, 0.8], vec![0.8, 0.2]], weights: None }
}

/// Genewein et al.'s setting in exact numbers: Bayes regret of uniform biases 1.568 nats over 50 flips, 1.900 over 100
/// and 1.147 over 20. A uniform bias makes every number of heads equally likely and has a mean entropy of half a nat.
#[test]
fn regret_of_uniform_biases_as_published() {
    for (steps, expected) in [(20, 1.147), (50, 1.568), (100, 1.900)] {
        let mut regret = 0.0;
        for step in 0..steps {
            for heads in 0..=step {
                let next = (heads as f64 + 1.0) / (step as f64 + 2.0);
                let p = head_probability(&uniform(), [0, 0], heads, step - heads);
                regret -= (next * p.ln() + (1.0 - next) * (1.0 - p).ln()) / (step as f64 + 1.0);
            }
        }
        assert_near(&format!("{steps} flips"), regret - 0.5 * steps as f64, expected, 0.0005);
    }
}

/// The limits of prompts, as exact numbers: a hard prefix helps on one coin, and hurts on a mixture of two.
#[test]
fn regrets_of_hard_prefixes_as_published() {
    let untuned = regret_on_coin(&uniform(), [0, 0], 0.8, 50);
    assert_near("untuned on coin .8", untuned, 1.477, 0.0005);
    let best = |length: usize, regret: &dyn Fn([usize; 2]) -> f64| {
        (0..=length)
            .map(|heads| (regret([heads, length - heads]), heads))
            .fold((f64::INFINITY, 0), |a, b| if b.0 < a.0 { b } else { a })
    };
    let on_one = |prefix: [usize; 2]| regret_on_coin(&uniform(), prefix, 0.8, 50);
    for (length, expected) in [(3, 0.796), (6, 0.571), (10, 0.447), (20, 0.259)] {
        let (regret, heads) = best(length, &on_one);
        assert_near(&format!("best prefix of {length}"), regret, expected, 0.0005);
        assert!(length != 6 || heads == 5);
    }
    let on_two = |prior: &Family<Vec<f64>>, prefix: [usize; 2]| {
        0.5 * (regret_on_coin(prior, prefix, 0.8, 50) + regret_on_coin(prior, prefix, 0.2, 50))
    };
    assert_near("uniform on two coins", on_two(&uniform(), [0, 0]), 1.477, 0.0005);
    assert_near("exact on two coins", on_two(&two_coins(), [0, 0]), 2.0_f64.ln(), 0.0005);
    let (regret, _) = best(6, &|prefix| on_two(&uniform(), prefix));
    assert_near("best prefix of 6 on two coins", regret, 1.958, 0.0005);
    // One who knows the coin has none.
    assert_near("fixed", regret_on_coin(&Family::Fixed(vec![0.8, 0.2]), [0, 0], 0.8, 50), 0.0, 1e-12);
}

/// What teaching reports is the same, up to the noise of the draws.
#[test]
fn teaching_reports_the_published_regret() {
    let cases = [
        // The regret of one episode has a standard deviation of about 1.2.
        (uniform(), None, 1.568, 0.06),
        (two_coins(), None, 2.0_f64.ln(), 0.06),
        (uniform(), Some(two_coins()), 1.477, 0.08),
        (uniform(), Some(Family::Fixed(vec![0.8, 0.2])), 1.477, 0.08),
    ];
    for (prior, source, expected, tolerance) in cases {
        let mut config =
            TeacherConfig { users: Some(8000), episodes_per_user: 1, ..TeacherConfig::new(WorldName::Coins) };
        config.coins.prior = prior;
        config.coins.source = source;
        let dir = tempfile::tempdir().unwrap();
        let started = Instant::now();
        let summary = run(&config, 3, dir.path());
        println!("{:.1?}: {:?} nats, expected {expected}", started.elapsed(), summary.regret);
        assert_near("regret", summary.regret.unwrap(), expected, tolerance);
        assert_eq!((summary.episodes, summary.answers, summary.ignored_answers), (8000, 400_000, 0));
        assert!(summary.by_observations.iter().enumerate().all(|(i, at)| at.observations == i));
        if config.coins.source.is_none() {
            assert_near("ece", summary.ece, summary.ece_expected, 1.5 * summary.ece_expected);
        }
    }
}

// ------------------------------------------------------------------------------- coins and chains, from the text

/// What the user said, message by message, after the opening.
fn told(episode: &Episode) -> Vec<String> {
    episode.messages.iter().step_by(2).skip(1).map(|m| m.content.clone()).collect()
}

fn checked_episode(config: &TeacherConfig, world: &Process, seed: u64, user: usize) -> Episode {
    let taught = simulate_process(config, world, seed, user, 0);
    taught.simulation.episode.validate().unwrap();
    assert!(taught.regret.is_finite());
    taught.simulation.episode
}

fn random_distribution(size: usize, draws: &mut Stream) -> Vec<f64> {
    draws.dirichlet(&vec![0.7; size])
}

/// Random numbers of symbols, priors and components: predictions from the text, by counting and by direct Bayes.
#[test]
fn coins_dice_and_chains_by_direct_bayes() {
    for seed in 0..60 {
        let draws = &mut rng::stream(seed, "test.direct", 0);
        let symbols = 2 + draws.below(if seed % 9 == 0 { 12 } else { 5 });
        let contexts = if seed % 2 == 0 { 1 } else { symbols };
        let table = |draws: &mut Stream| (0..contexts).map(|_| random_distribution(symbols, draws)).collect();
        let components: Vec<Vec<Vec<f64>>> = (0..1 + draws.below(4)).map(|_| table(draws)).collect();
        let weights = random_distribution(components.len(), draws);
        let alpha: Vec<Vec<f64>> =
            (0..contexts).map(|_| (0..symbols).map(|_| 0.2 + 3.0 * draws.uniform()).collect()).collect();
        let is_mixture = seed % 4 < 2;
        let mut config = TeacherConfig::new(if contexts == 1 { WorldName::Coins } else { WorldName::Markov });
        if contexts == 1 {
            config.coins.prior = if is_mixture {
                let components = components.iter().map(|rows| rows[0].clone()).collect();
                Family::Mixture { components, weights: Some(weights.clone()) }
            } else {
                Family::Dirichlet(alpha[0].clone())
            };
        } else {
            config.markov.prior = if is_mixture {
                Family::Mixture { components: components.clone(), weights: Some(weights.clone()) }
            } else {
                Family::Dirichlet(alpha.clone())
            };
        }
        let world = process(&config);
        let episode = checked_episode(&config, &world, seed, 5);
        let labels = &episode.messages[1].answer.as_ref().unwrap().options;
        assert_eq!(labels.len(), symbols);
        let mut counts = vec![vec![0.0; symbols]; contexts];
        let mut joint = weights.clone();
        let mut previous: Option<usize> = None;
        let said: Vec<usize> = told(&episode)
            .iter()
            .map(|text| labels.iter().position(|label| label == text).expect("a bare label"))
            .collect();
        for (round, (answer, observations)) in episode.answers().enumerate() {
            let context = if contexts == 1 { Some(0) } else { previous };
            let expected: Vec<f64> = match context {
                None => vec![1.0 / symbols as f64; symbols],
                Some(context) if is_mixture => {
                    let sum: f64 = joint.iter().sum();
                    let of =
                        |k: usize| joint.iter().zip(&components).map(|(j, c)| j * c[context][k]).sum::<f64>();
                    (0..symbols).map(|k| of(k) / sum).collect()
                }
                Some(context) => {
                    let (n, a) = (&counts[context], &alpha[context]);
                    let total = n.iter().sum::<f64>() + a.iter().sum::<f64>();
                    (0..symbols).map(|k| (n[k] + a[k]) / total).collect()
                }
            };
            assert_all_near(&format!("seed {seed} round {round}"), &answer.probs, &expected, 1e-9);
            assert_eq!(observations, round);
            assert_eq!(answer.said, argmax(&expected));
            if let Some(&symbol) = said.get(round) {
                assert_eq!(answer.truth, Some(symbol));
                if let Some(context) = context {
                    counts[context][symbol] += 1.0;
                    joint.iter_mut().zip(&components).for_each(|(j, c)| *j *= c[context][symbol]);
                }
                previous = Some(symbol);
            }
        }
    }
}

/// The evidence of a sequence of flips does not depend on their order, and with a Beta prior is a ratio of factorials:
/// heads! tails! / (n + 1)! for uniform biases.
#[test]
fn flips_are_exchangeable() {
    for seed in 0..20 {
        let draws = &mut rng::stream(seed, "test.exchangeable", 0);
        let mut flips: Vec<usize> = (0..12).map(|_| draws.below(2)).collect();
        let evidence = |belief: &Belief, flips: &[usize]| -> f64 {
            let mut belief = belief.clone();
            let step = |&flip: &usize| {
                let p = belief.predictive(&Query::Next)[flip];
                belief.observe(&Query::Next, &Outcome::symbol(flip));
                p.ln()
            };
            flips.iter().map(step).sum()
        };
        let beliefs = [coin_belief(&uniform()), coin_belief(&two_coins())];
        let before = beliefs.each_ref().map(|belief| evidence(belief, &flips));
        draws.shuffle(&mut flips);
        let after = beliefs.each_ref().map(|belief| evidence(belief, &flips));
        assert_all_near("evidence", &after, &before, 1e-9);
        let factorial = |n: usize| (1..=n).map(|i| (i as f64).ln()).sum::<f64>();
        let heads = flips.iter().filter(|flip| **flip == 0).count();
        assert_near("Beta", after[0], factorial(heads) + factorial(12 - heads) - factorial(13), 1e-9);
    }
}

#[test]
fn what_no_component_explains_is_ignored_and_counted() {
    let config = configured(
        WorldName::Coins,
        "rounds = 4\n[coins]\nprior = { fixed = [1.0, 0.0] }\nsource = { fixed = [0.0, 1.0] }",
    );
    let taught = simulate_process(&config, &process(&config), 1, 0, 0);
    assert_eq!(taught.simulation.ignored, 4);
    taught.simulation.episode.validate().unwrap();
    assert!(taught.simulation.episode.answers().all(|(answer, _)| answer.probs == [1.0, 0.0]));
    assert!(taught.regret.is_finite());
}

// ----------------------------------------------------------------------------------------- hidden Markov models

/// A random model with some impossible transitions and emissions.
struct Plain {
    start: Vec<f64>,
    transition: Vec<Vec<f64>>,
    emission: Vec<Vec<f64>>,
}

impl Plain {
    fn random(states: usize, symbols: usize, draws: &mut Stream) -> Plain {
        let sparse = |size: usize, draws: &mut Stream| {
            let mut row = random_distribution(size, draws);
            if size > 2 && draws.uniform() < 0.4 {
                row[draws.below(size)] = 0.0;
            }
            let sum: f64 = row.iter().sum();
            row.iter().map(|p| p / sum).collect::<Vec<f64>>()
        };
        Plain {
            start: sparse(states, draws),
            transition: (0..states).map(|_| sparse(states, draws)).collect(),
            emission: (0..states).map(|_| sparse(symbols, draws)).collect(),
        }
    }

    fn model(&self) -> Arc<HiddenMarkov> {
        Arc::new(HiddenMarkov::new(self.start.clone(), &self.transition, &self.emission))
    }

    /// The probability of the symbols, summed over every path of hidden states.
    fn probability(&self, start: &[f64], symbols: &[usize]) -> f64 {
        let n = self.start.len();
        (0..n.pow(symbols.len() as u32))
            .map(|code| {
                let state = |t: usize| code / n.pow(t as u32) % n;
                (0..symbols.len())
                    .map(|t| {
                        let move_ =
                            if t == 0 { start[state(0)] } else { self.transition[state(t - 1)][state(t)] };
                        move_ * self.emission[state(t)][symbols[t]]
                    })
                    .product::<f64>()
            })
            .sum()
    }
}

/// Random mixtures of up to four models of two to four states, symbol by symbol.
#[test]
fn mixtures_of_hidden_markov_models_by_enumerating_paths() {
    let mut died = 0;
    for seed in 0..40 {
        let draws = &mut rng::stream(seed, "test.paths", 0);
        let (states, symbols) = (2 + draws.below(3), 2 + draws.below(3));
        let models: Vec<Plain> =
            (0..1 + draws.below(4)).map(|_| Plain::random(states, symbols, draws)).collect();
        let prior = random_distribution(models.len(), draws);
        let hypothesis = |(plain, &prior): (&Plain, &f64)| Hypothesis {
            model: plain.model(),
            start: plain.start.clone(),
            prior,
        };
        let mut belief = Forward::new(models.iter().zip(&prior).map(hypothesis).collect(), Between::Symbol);
        // A sequence of the first model.
        let model = models[0].model();
        let mut state = model.draw_start(draws);
        let mut seen = Vec::new();
        for t in 0..6 {
            let joint = |seen: &[usize]| -> Vec<f64> {
                models.iter().zip(&prior).map(|(m, p)| p * m.probability(&m.start, seen)).collect()
            };
            let evidence: f64 = joint(&seen).iter().sum();
            let posterior: Vec<f64> = joint(&seen).iter().map(|j| j / evidence).collect();
            assert_all_near(
                &format!("seed {seed}: posterior at {t}"),
                &belief.hypotheses(),
                &posterior,
                1e-10,
            );
            died += posterior.iter().filter(|p| **p == 0.0).count();
            let next = |k: usize| joint(&[seen.as_slice(), &[k]].concat()).iter().sum::<f64>() / evidence;
            let expected: Vec<f64> = (0..symbols).map(next).collect();
            assert_all_near(
                &format!("seed {seed}: predictive at {t}"),
                &belief.predictive(),
                &expected,
                1e-10,
            );
            let symbol = model.draw_symbol(state, draws);
            state = model.draw_next(state, draws);
            belief.observe(symbol);
            seen.push(symbol);
        }
        assert_eq!(belief.ignored(), 0);
    }
    assert!(died > 0, "some models should have been ruled out");
}

/// Prompt-aware inference: examples are independent given the model, so their probabilities multiply.
#[test]
fn examples_start_again_by_enumerating_paths() {
    for seed in 0..20 {
        let draws = &mut rng::stream(seed, "test.restart", 0);
        let models: Vec<Plain> = (0..3).map(|_| Plain::random(3, 3, draws)).collect();
        let starts: Vec<Vec<f64>> = (0..3).map(|_| random_distribution(3, draws)).collect();
        let hypothesis = |(plain, start): (&Plain, &Vec<f64>)| Hypothesis {
            model: plain.model(),
            start: start.clone(),
            prior: 1.0 / 3.0,
        };
        let mut belief = Forward::new(models.iter().zip(&starts).map(hypothesis).collect(), Between::Restart);
        let model = models[1].model();
        let mut before = [1.0 / 3.0; 3];
        for _ in 0..4 {
            belief.begin_example(Weighing::EXACT);
            let mut state = draws.categorical(&starts[1]);
            let mut example = Vec::new();
            for _ in 0..4 {
                let joint = |example: &[usize]| -> Vec<f64> {
                    let of = |i: usize| before[i] * models[i].probability(&starts[i], example);
                    (0..3).map(of).collect()
                };
                let evidence: f64 = joint(&example).iter().sum();
                let next =
                    |k: usize| joint(&[example.as_slice(), &[k]].concat()).iter().sum::<f64>() / evidence;
                let expected: Vec<f64> = (0..3).map(next).collect();
                assert_all_near(&format!("seed {seed}"), &belief.predictive(), &expected, 1e-10);
                let symbol = model.draw_symbol(state, draws);
                state = model.draw_next(state, draws);
                belief.observe(symbol);
                example.push(symbol);
            }
            (0..3).for_each(|i| before[i] *= models[i].probability(&starts[i], &example));
        }
        let sum: f64 = before.iter().sum();
        let posterior: Vec<f64> = before.iter().map(|b| b / sum).collect();
        assert_all_near("posterior", &belief.hypotheses(), &posterior, 1e-10);
    }
}

/// The textbook recursion α_t = (α_{t-1} A) ∘ B[:, x_t], dense, unnormalised, with the probability of the symbols as
/// its sum; symbols that are impossible are left out by the caller.
struct Alpha {
    model: Arc<HiddenMarkov>,
    emission: Vec<Vec<f64>>,
    alpha: Vec<f64>,
    begun: bool,
}

impl Alpha {
    fn new(model: &Arc<HiddenMarkov>, start: &[f64], weight: f64) -> Alpha {
        let mut emission = vec![vec![0.0; model.symbols()]; model.states()];
        let symbols = model.symbols();
        (0..symbols).for_each(|k| model.emitters(k).iter().for_each(|&(state, p)| emission[state][k] = p));
        Alpha {
            model: Arc::clone(model),
            emission,
            alpha: start.iter().map(|p| p * weight).collect(),
            begun: false,
        }
    }

    fn moved(&self) -> Vec<f64> {
        if !self.begun {
            return self.alpha.clone();
        }
        let n = self.alpha.len();
        (0..n).map(|to| (0..n).map(|from| self.alpha[from] * self.model.transition(from)[to]).sum()).collect()
    }

    fn restart(&mut self, start: &[f64]) {
        let weight: f64 = self.alpha.iter().sum();
        self.alpha = start.iter().map(|p| p * weight).collect();
        self.begun = false;
    }

    /// For each symbol, the joint probability of everything so far and it.
    fn next(&self) -> Vec<f64> {
        let moved = self.moved();
        let of = |k: usize| moved.iter().zip(&self.emission).map(|(a, e)| a * e[k]).sum();
        (0..self.model.symbols()).map(of).collect()
    }

    fn observe(&mut self, symbol: usize, scale: f64) {
        let moved = self.moved();
        self.alpha = moved.iter().zip(&self.emission).map(|(a, e)| a * e[symbol] / scale).collect();
        self.begun = true;
    }
}

fn predict(alphas: &[Alpha]) -> Vec<f64> {
    let joint: Vec<Vec<f64>> = alphas.iter().map(Alpha::next).collect();
    let total: f64 = joint.iter().flatten().sum();
    (0..joint[0].len()).map(|k| joint.iter().map(|j| j[k]).sum::<f64>() / total).collect()
}

/// Divides by the evidence each time, the same for all models, so that their weights stay comparable.
fn observe(alphas: &mut [Alpha], symbol: usize) {
    let evidence: f64 = alphas.iter().map(|alpha| alpha.next()[symbol]).sum();
    alphas.iter_mut().for_each(|alpha| alpha.observe(symbol, evidence));
}

fn hmm(config: &TeacherConfig) -> Hmm {
    match process(config) {
        Process::Hmm(world) => world,
        _ => panic!("hidden Markov models"),
    }
}

fn symbol(labels: &[String], text: &str) -> usize {
    labels.iter().position(|label| label == text).unwrap()
}

/// GINC documents and prompts, from their text, with both teachers.
#[test]
fn ginc_by_the_textbook_recursion() {
    for user in 0..3 {
        let documents = configured(WorldName::Hmm, "rounds = 60");
        let world = hmm(&documents);
        let episode = checked_episode(&documents, &process(&documents), 2, user);
        let mut alphas: Vec<Alpha> =
            world.mixture().iter().map(|model| Alpha::new(model, model.start(), 0.2)).collect();
        let told = told(&episode);
        for (round, (answer, _)) in episode.answers().enumerate() {
            assert_all_near(&format!("document, {round}"), &answer.probs, &predict(&alphas), 1e-9);
            if let Some(text) = told.get(round) {
                observe(&mut alphas, symbol(&answer.options, text));
            }
        }
    }

    for inference in ["pretraining-mixture", "prompt-aware"] {
        let toml = format!(
            "rounds = 8\n[hmm]\nformat = \"prompts\"\nexample_length = 4\ninference = \"{inference}\""
        );
        let config = configured(WorldName::Hmm, &toml);
        let world = hmm(&config);
        for user in 0..4 {
            let taught = simulate_process(&config, &process(&config), 5, user, 0);
            if taught.simulation.ignored > 0 {
                // The mixture finds delimiters impossible; what it does then is its policy, not Bayes' rule.
                assert_eq!(inference, "pretraining-mixture");
                continue;
            }
            let aware = inference == "prompt-aware";
            let (mut alphas, mut starts) = (Vec::new(), Vec::new());
            for model in world.mixture() {
                let slots = if aware { 1..10 } else { 0..1 };
                for slot in slots {
                    let value = |state: usize| if state % 10 == slot { 0.1 } else { 0.0 };
                    let start = if aware { (0..100).map(value).collect() } else { model.start().to_vec() };
                    alphas.push(Alpha::new(model, &start, if aware { 1.0 / 45.0 } else { 0.2 }));
                    starts.push(start);
                }
            }
            let episode = taught.simulation.episode;
            let labels = episode.messages[1].answer.as_ref().unwrap().options.clone();
            for (round, pair) in episode.messages.chunks(2).enumerate() {
                let (before, line) = pair[0].content.rsplit_once('\n').unwrap();
                if round > 0 {
                    let (truth, delimiter) = before.split_once(' ').unwrap();
                    observe(&mut alphas, symbol(&labels, truth));
                    assert_eq!(delimiter, "/");
                    if aware {
                        alphas.iter_mut().zip(&starts).for_each(|(alpha, start)| alpha.restart(start));
                    } else {
                        observe(&mut alphas, 0);
                    }
                }
                let given: Vec<&str> = line.split(' ').collect();
                assert_eq!(given.len(), 3);
                given.iter().for_each(|text| observe(&mut alphas, symbol(&labels, text)));
                let answer = pair[1].answer.as_ref().unwrap();
                assert_all_near(&format!("{inference}, {round}"), &answer.probs, &predict(&alphas), 1e-9);
            }
        }
    }
}

/// A concept that the teacher does not know costs it dearly, and knowing how prompts are made is worth something.
#[test]
fn mismatch_costs() {
    let regret = |toml: &str| {
        let config = configured(WorldName::Hmm, &format!("episodes_per_user = 1\nusers = 60\n{toml}"));
        let dir = tempfile::tempdir().unwrap();
        run(&config, 4, dir.path()).regret.unwrap()
    };
    let prompts = "rounds = 10\n[hmm]\nformat = \"prompts\"\n";
    let aware = regret(&format!("{prompts}inference = \"prompt-aware\""));
    let mixture = regret(&format!("{prompts}inference = \"pretraining-mixture\""));
    let documents = regret("rounds = 60");
    let unseen = regret("rounds = 60\n[hmm]\nunseen = true");
    println!("aware {aware:.3}, mixture {mixture:.3}; documents {documents:.3}, unseen {unseen:.3}");
    // In expectation, smoothing bounds what the delimiters of a prompt cost by what a uniform state would.
    let smooth = regret(&format!("{prompts}smoothing = 0.05"));
    println!("smoothed mixture {smooth:.3}");
    assert!(aware < smooth && smooth < mixture && documents < unseen);
    // Five concepts cost at most ln 5 in expectation; 60 episodes leave a standard error far below the slack.
    assert!(documents < 5.0_f64.ln() + 0.2);
}

// ------------------------------------------------------------------------------------------------- regression

/// Gauss-Jordan with partial pivoting.
fn inverse(matrix: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let n = matrix.len();
    let unit = |i: usize| (0..n).map(move |j| if i == j { 1.0 } else { 0.0 });
    let mut rows: Vec<Vec<f64>> =
        matrix.iter().enumerate().map(|(i, row)| row.iter().copied().chain(unit(i)).collect()).collect();
    for column in 0..n {
        let pivot =
            (column..n).max_by(|&a, &b| rows[a][column].abs().total_cmp(&rows[b][column].abs())).unwrap();
        rows.swap(column, pivot);
        let scale = rows[column][column];
        rows[column].iter_mut().for_each(|x| *x /= scale);
        let pivot_row = rows[column].clone();
        for (i, row) in rows.iter_mut().enumerate() {
            let factor = row[column];
            if i != column {
                row.iter_mut().zip(&pivot_row).for_each(|(x, p)| *x -= factor * p);
            }
        }
    }
    rows.into_iter().map(|row| row[n..].to_vec()).collect()
}

/// Simpson's rule over the density.
fn normal_mass(mean: f64, sd: f64, low: f64, high: f64) -> f64 {
    let (low, high) = (low.max(mean - 12.0 * sd), high.min(mean + 12.0 * sd));
    if low >= high {
        return 0.0;
    }
    let n = 4000;
    let h = (high - low) / f64::from(n);
    let density = |x: f64| (-0.5 * ((x - mean) / sd).powi(2)).exp() / (sd * std::f64::consts::TAU.sqrt());
    let weight = |i: i32| {
        if i == 0 || i == n {
            1.0
        } else if i % 2 == 1 {
            4.0
        } else {
            2.0
        }
    };
    (0..=n).map(|i| weight(i) * density(low + f64::from(i) * h)).sum::<f64>() * h / 3.0
}

/// The first told value of every bin but the first, as the opening says.
fn edges_in(opening: &str) -> Vec<f64> {
    let (_, rest) = opening.split_once(" below ").unwrap();
    let (list, _) = rest.split_once(". Reply").unwrap();
    // The first is named twice: bin 0 ends where bin 1 begins.
    list.split(", ").skip(1).map(|part| part.rsplit(' ').next().unwrap().parse().unwrap()).collect()
}

fn numbers(text: &str) -> Vec<f64> {
    text.split(", ").map(|x| x.parse().unwrap()).collect()
}

/// Both families are Gaussian processes: a linear function's kernel is τ² a·b. Mean and variance from the explicit
/// inverse of the covariance of what was told, in the text.
#[test]
fn regression_by_explicit_inverses() {
    let functions = [
        FunctionPrior::Linear { features: 1, weight_sd: 1.0 },
        FunctionPrior::Linear { features: 4, weight_sd: 0.7 },
        // As published: ridge.py.
        FunctionPrior::Linear { features: 2, weight_sd: 0.1 },
        FunctionPrior::GaussianProcess { features: 1, lengthscale: 0.1, output_sd: 0.1_f64.sqrt() },
        FunctionPrior::GaussianProcess { features: 2, lengthscale: 0.4, output_sd: 1.2 },
    ];
    for (case, function) in functions.into_iter().enumerate() {
        for (decision, kind) in [
            (Decision::MostProbable, Kind::Bayes),
            (Decision::ExpectedReward, Kind::Bayes),
            (Decision::MostProbable, Kind::Tempered),
            (Decision::MostProbable, Kind::Forgetful),
        ] {
            let mut config = TeacherConfig {
                rounds: Some(25),
                decision,
                kind,
                ..TeacherConfig::new(WorldName::Regression)
            };
            let weighing = weighing(&mut config);
            config.regression = RegressionConfig {
                function: function.clone(),
                noise_sd: [0.1, 0.3][case % 2],
                bins: [10, 7, 12, 2, 26][case],
                low: -1.5,
                high: 1.3,
            };
            config.validate().unwrap();
            let kernel = |a: &[f64], b: &[f64]| -> f64 {
                let pairs = a.iter().zip(b);
                match function {
                    FunctionPrior::Linear { weight_sd, .. } => {
                        weight_sd * weight_sd * pairs.map(|(a, b)| a * b).sum::<f64>()
                    }
                    FunctionPrior::GaussianProcess { lengthscale, output_sd, .. } => {
                        let squared: f64 = pairs.map(|(a, b)| (a - b) * (a - b)).sum();
                        output_sd * output_sd * (-squared / (2.0 * lengthscale * lengthscale)).exp()
                    }
                }
            };
            let noise = config.regression.noise_sd.powi(2);
            let episode = checked_episode(&config, &process(&config), 1, case);
            let edges = edges_in(&episode.messages[0].content);
            let (mut inputs, mut values): (Vec<Vec<f64>>, Vec<f64>) = (Vec::new(), Vec::new());
            let mut half_step = 0.0;
            for (round, pair) in episode.messages.chunks(2).enumerate() {
                let (before, x) = pair[0].content.rsplit_once("\nx = ").unwrap();
                let answer = pair[1].answer.as_ref().unwrap();
                if round > 0 {
                    let (y, bin) = before.strip_prefix("y = ").unwrap().split_once(", bin ").unwrap();
                    let (_, decimals) = y.split_once('.').unwrap();
                    half_step = 0.5 * 0.1_f64.powi(decimals.len() as i32);
                    let y: f64 = y.parse().unwrap();
                    values.push(y);
                    let label = bin.strip_suffix('.').unwrap();
                    let at_or_above = edges.iter().filter(|edge| **edge <= y + 1e-12).count();
                    assert_eq!(answer.options[at_or_above], label, "{y} {edges:?}");
                }
                let x = numbers(x);
                let k: Vec<f64> = inputs.iter().map(|input| kernel(input, &x)).collect();
                let covariance: Vec<Vec<f64>> = (inputs.iter().enumerate())
                    .map(|(i, a)| {
                        // Evidence to a power is that of a value with so much less noise.
                        let own = noise / to_the(weighing, inputs.len() - 1 - i);
                        let noise_at = |j: usize| if i == j { own } else { 0.0 };
                        inputs.iter().enumerate().map(|(j, b)| kernel(a, b) + noise_at(j)).collect()
                    })
                    .collect();
                let inverse = inverse(&covariance);
                let bilinear = |right: &[f64]| -> f64 {
                    let row = |row: &Vec<f64>| row.iter().zip(right).map(|(a, b)| a * b).sum::<f64>();
                    k.iter().zip(&inverse).map(|(k, r)| k * row(r)).sum()
                };
                let (mean, variance) = (bilinear(&values), kernel(&x, &x) - bilinear(&k) + noise);
                // The half step is known once a value was told; before that the check would need it too.
                if round > 0 {
                    let cuts: Vec<f64> = edges.iter().map(|edge| edge - half_step).collect();
                    let lows = [f64::NEG_INFINITY].into_iter().chain(cuts.iter().copied());
                    let highs = cuts.iter().copied().chain([f64::INFINITY]);
                    let expected: Vec<f64> = lows
                        .zip(highs)
                        .map(|(low, high)| normal_mass(mean, variance.sqrt(), low, high))
                        .collect();
                    assert_all_near(&format!("case {case} round {round}"), &answer.probs, &expected, 1e-8);
                    let steps = |i: &usize| *i as f64 * expected[*i];
                    let centre: f64 = (0..expected.len()).map(|i| steps(&i)).sum();
                    let nearest = (centre.fract() - 0.5).abs() > 1e-6;
                    match decision {
                        Decision::MostProbable => assert_eq!(answer.said, argmax(&expected)),
                        Decision::ExpectedReward if nearest => {
                            assert_eq!(answer.said, centre.round() as usize)
                        }
                        Decision::ExpectedReward => {}
                    }
                }
                inputs.push(x);
            }
        }
    }
}

// ------------------------------------------------------------------------------------------------------- rivals

/// What a config's teacher makes of evidence; power and discount are set here.
fn weighing(config: &mut TeacherConfig) -> Weighing {
    config.tempered.power = 2.5;
    config.forgetful.discount = 0.7;
    match config.kind {
        Kind::Tempered => Weighing { power: 2.5, discount: 1.0 },
        Kind::Forgetful => Weighing { power: 1.0, discount: 0.7 },
        _ => Weighing::EXACT,
    }
}

/// The power to which evidence of so many answers ago counts.
fn to_the(Weighing { power, discount }: Weighing, ago: usize) -> f64 {
    power * discount.powi(ago as i32)
}

/// The predictive distribution of the next symbol from the likelihood of each symbol in its place, each to its power.
#[test]
fn rivals_weigh_the_evidence_of_sequences() {
    for kind in [Kind::Tempered, Kind::Forgetful] {
        // A coin: pseudo-counts.
        let mut config = TeacherConfig { kind, rounds: Some(12), ..TeacherConfig::new(WorldName::Coins) };
        let weigh = weighing(&mut config);
        let episode = checked_episode(&config, &process(&config), 3, 5);
        let mut seen: Vec<usize> = Vec::new();
        for (answer, _) in episode.answers() {
            let count = |symbol: usize| -> f64 {
                let ago = |t: usize| seen.len() - 1 - t;
                (0..seen.len()).filter(|&t| seen[t] == symbol).map(|t| to_the(weigh, ago(t))).sum()
            };
            let total = 2.0 + count(0) + count(1);
            let expected = [(1.0 + count(0)) / total, (1.0 + count(1)) / total];
            assert_all_near(&format!("{kind:?} coin"), &answer.probs, &expected, 1e-12);
            seen.push(answer.truth.unwrap());
        }
        // Chains of which each is known.
        let components = [vec![vec![0.9, 0.1], vec![0.3, 0.7]], vec![vec![0.2, 0.8], vec![0.6, 0.4]]];
        let mut config = TeacherConfig { kind, rounds: Some(12), ..TeacherConfig::new(WorldName::Markov) };
        config.markov.prior =
            Family::Mixture { components: components.to_vec(), weights: Some(vec![0.3, 0.7]) };
        let weigh = weighing(&mut config);
        let episode = checked_episode(&config, &process(&config), 3, 5);
        let mut seen: Vec<usize> = Vec::new();
        for (answer, _) in episode.answers() {
            if let Some(&last) = seen.last() {
                let weight = |(chain, prior): (&Vec<Vec<f64>>, f64)| -> f64 {
                    let ago = |t: usize| seen.len() - 1 - t;
                    let step = |t: usize| chain[seen[t - 1]][seen[t]].powf(to_the(weigh, ago(t)));
                    prior * (1..seen.len()).map(step).product::<f64>()
                };
                let weights: Vec<f64> = components.iter().zip([0.3, 0.7]).map(weight).collect();
                let next = |k: usize| -> f64 {
                    let terms = weights.iter().zip(&components).map(|(w, chain)| w * chain[last][k]);
                    terms.sum::<f64>() / weights.iter().sum::<f64>()
                };
                assert_all_near(&format!("{kind:?} chain"), &answer.probs, &[next(0), next(1)], 1e-12);
            }
            seen.push(answer.truth.unwrap());
        }
        // Hidden Markov models, by enumerating paths: of each, its prediction of every symbol.
        for seed in 0..10 {
            let draws = &mut rng::stream(seed, "test.rivals", 0);
            let models: Vec<Plain> = (0..3).map(|_| Plain::random(2, 3, draws)).collect();
            let prior = random_distribution(models.len(), draws);
            let hypothesis = |(plain, &prior): (&Plain, &f64)| Hypothesis {
                model: plain.model(),
                start: plain.start.clone(),
                prior,
            };
            let mut belief =
                Forward::new(models.iter().zip(&prior).map(hypothesis).collect(), Between::Symbol);
            let model = models[0].model();
            let mut state = model.draw_start(draws);
            let mut seen: Vec<usize> = Vec::new();
            for _ in 0..6 {
                let of = |m: &Plain, seen: &[usize]| m.probability(&m.start, seen);
                let weight = |(m, prior): (&Plain, &f64)| -> f64 {
                    let step = |t: usize| {
                        let p = of(m, &seen[..=t]) / of(m, &seen[..t]);
                        // What is impossible stays so.
                        if p > 0.0 { p.powf(to_the(weigh, seen.len() - 1 - t)) } else { 0.0 }
                    };
                    prior * (0..seen.len()).map(step).product::<f64>()
                };
                let weights: Vec<f64> = models.iter().zip(&prior).map(weight).collect();
                let next = |k: usize| -> f64 {
                    let possible = models.iter().zip(&weights).filter(|(_, w)| **w > 0.0);
                    let terms = possible.map(|(m, w)| w * of(m, &[&seen[..], &[k]].concat()) / of(m, &seen));
                    terms.sum::<f64>() / weights.iter().sum::<f64>()
                };
                let expected: Vec<f64> = (0..3).map(next).collect();
                assert_all_near(&format!("{kind:?} seed {seed}"), &belief.predictive(), &expected, 1e-10);
                let symbol = model.draw_symbol(state, draws);
                state = model.draw_next(state, draws);
                belief.observe_weighing(symbol, weigh);
                seen.push(symbol);
            }
        }
    }
}

/// An oracle says what comes; a noisy one as often not as it is told.
#[test]
fn oracles_know_what_comes() {
    for world in WORLDS {
        let config = TeacherConfig { kind: Kind::Oracle, rounds: Some(15), ..TeacherConfig::new(world) };
        let episode = checked_episode(&config, &process(&config), 0, 0);
        assert!(episode.answers().all(|(a, _)| Some(a.said) == a.truth && a.probs[a.said] == 1.0));
    }
    let mut config = TeacherConfig { kind: Kind::NoisyOracle, ..TeacherConfig::new(WorldName::Coins) };
    config.noisy_oracle.error_rate = 0.3;
    let world = process(&config);
    let wrong: usize = (0..100)
        .map(|user| {
            let episode = checked_episode(&config, &world, 0, user);
            episode.answers().filter(|(a, _)| Some(a.said) != a.truth).count()
        })
        .sum();
    // 5,000 answers: a standard deviation of .0065.
    assert_near("share of errors", wrong as f64 / 5000.0, 0.3, 0.026);
}

// --------------------------------------------------------------------------------- simulation-based calibration

/// Ranks in `0..bins` must be uniform: chi-square against a bound that chance passes once in 10,000.
fn assert_uniform(what: &str, ranks: &[usize], bins: usize) {
    let expected = ranks.len() as f64 / bins as f64;
    let counts = |bin: usize| ranks.iter().filter(|rank| **rank == bin).count() as f64;
    let chi_square: f64 = (0..bins).map(|bin| (counts(bin) - expected).powi(2) / expected).sum();
    // Wilson and Hilferty's cube of a normal quantile: 3.72 is that of 1 - 10⁻⁴.
    let df = (bins - 1) as f64;
    let bound = df * (1.0 - 2.0 / (9.0 * df) + 3.72 * (2.0 / (9.0 * df)).sqrt()).powi(3);
    println!("{what}: chi-square {chi_square:.1} of at most {bound:.1}");
    assert!(chi_square < bound, "{what}: {chi_square:.1} is above {bound:.1}");
}

fn bin_of(p: f64) -> usize {
    ((p * 10.0) as usize).min(9)
}

/// The probability below the truth, plus a random part of the truth's own: uniform if the prediction is calibrated.
fn randomised(probs: &[f64], truth: usize, draws: &mut Stream) -> usize {
    bin_of(probs[..truth].iter().sum::<f64>() + draws.uniform() * probs[truth])
}

/// Goes through an episode and returns the belief before the last answer, with the question and the answer.
fn walk<'w>(
    world: &'w Process,
    seed: u64,
    user: usize,
    rounds: usize,
) -> (Source<'w>, Belief, Query, Outcome) {
    let mut source = world.source(seed, user, 0);
    let mut belief = Belief::prior(world);
    let mut questions = rng::stream(seed, "test.questions", user as u64);
    let mut answers = rng::stream(seed, "test.answers", user as u64);
    for _ in 1..rounds {
        let (query, outcome) = source.step(&mut questions, &mut answers);
        belief.read(&query);
        belief.observe(&query, &outcome);
    }
    let (query, outcome) = source.step(&mut questions, &mut answers);
    belief.read(&query);
    (source, belief, query, outcome)
}

fn calibration_worlds() -> Vec<(&'static str, Process)> {
    let build = |world: WorldName, toml: &str| process(&configured(world, toml));
    let gp = "[regression]\nfunction = { gaussian-process = { features = 1, lengthscale = 0.2, output_sd = 0.8 } }\n";
    vec![
        ("coins", build(WorldName::Coins, "[coins]\nprior = { dirichlet = [0.5, 2.0] }")),
        ("die", build(WorldName::Coins, "[coins]\nprior = { dirichlet = [1.0, 0.3, 2.0, 1.0] }")),
        (
            "mixture",
            build(
                WorldName::Coins,
                "[coins.prior.mixture]\ncomponents = [[0.3, 0.7], [0.5, 0.5], [0.6, 0.4]]\nweights = [0.2, 0.5, 0.3]",
            ),
        ),
        ("chain", build(WorldName::Markov, "")),
        ("documents", build(WorldName::Hmm, "")),
        (
            "prompts",
            build(
                WorldName::Hmm,
                "[hmm]\nformat = \"prompts\"\ninference = \"prompt-aware\"\nexample_length = 3",
            ),
        ),
        (
            "linear",
            build(
                WorldName::Regression,
                "[regression]\nfunction = { linear = { features = 3, weight_sd = 1.0 } }",
            ),
        ),
        ("process", build(WorldName::Regression, gp)),
    ]
}

/// Predictions of every world are calibrated after different numbers of observations.
#[test]
fn predictions_are_calibrated() {
    for (name, world) in calibration_worlds() {
        for rounds in [1, 3, 12] {
            let draws = &mut rng::stream(9, "test.calibration", rounds as u64);
            let rank = |user| {
                let (_, belief, query, outcome) = walk(&world, 21 + rounds as u64, user, rounds);
                randomised(&belief.predictive(&query), outcome.option, draws)
            };
            let ranks: Vec<usize> = (0..1500).map(rank).collect();
            assert_uniform(&format!("{name}, round {rounds}"), &ranks, 10);
        }
    }
}

/// What is true of the source itself ranks uniformly among draws from the posterior (or at its own cumulative
/// probability, where that is in closed form).
#[test]
fn posteriors_are_calibrated() {
    for (name, world) in calibration_worlds() {
        let draws = &mut rng::stream(10, "test.ranks", 0);
        let rank = |user: usize| {
            let (source, belief, _, _) = walk(&world, 33, user, 9);
            match (&source, &belief) {
                (Source::Rows { rows, .. }, Belief::Counts(counts)) => {
                    let truth = rows.row(rows.contexts() - 1)[0];
                    let parameters = counts.parameters(rows.contexts() - 1);
                    (0..9).filter(|_| draws.dirichlet(&parameters)[0] < truth).count()
                }
                (Source::Rows { rows, .. }, Belief::Mixture(mixture)) => {
                    let truth = [0.3, 0.5, 0.6].iter().position(|p| *p == rows.row(0)[0]).unwrap();
                    randomised(mixture.hypotheses(), truth, draws)
                }
                (Source::Hidden { world, at }, Belief::Forward(forward)) => {
                    let hypotheses = forward.hypotheses();
                    let aware = world.config().inference == Inference::PromptAware;
                    let truth = if aware { 9 * at.concept + at.slot - 1 } else { at.concept };
                    randomised(&hypotheses, truth, draws)
                }
                (Source::Function { world, function }, Belief::Gaussian(gaussian)) => {
                    let x: Vec<f64> =
                        (0..world.features()).map(|_| draws.below(101) as f64 / 100.0).collect();
                    let (mean, variance) = gaussian.moments(&x);
                    let sd = (variance - world.config().noise_sd.powi(2)).sqrt();
                    let z = (world.value(function, &x) - mean) / sd;
                    // At the origin a linear function is 0 for certain.
                    if x.iter().all(|x| *x == 0.0) {
                        draws.below(10)
                    } else {
                        bin_of(0.5 * libm::erfc(-z / 2.0_f64.sqrt()))
                    }
                }
                _ => panic!("source and belief of different worlds"),
            }
        };
        let ranks: Vec<usize> = (0..2000).map(rank).collect();
        assert_uniform(name, &ranks, 10);
    }
}

// ----------------------------------------------------------------------------------------------- long sequences

/// 10,000 symbols in every world of symbols: no underflow, and regrets that grow as they should.
#[test]
fn ten_thousand_symbols() {
    let markov =
        "[markov.prior.mixture]\ncomponents = [[[0.99, 0.01], [0.5, 0.5]], [[0.01, 0.99], [0.9, 0.1]]]";
    let cases = [
        (WorldName::Coins, String::new()),
        (WorldName::Coins, "[coins.prior.mixture]\ncomponents = [[0.999, 0.001], [0.001, 0.999]]".to_owned()),
        (WorldName::Markov, String::new()),
        (WorldName::Markov, markov.to_owned()),
        (WorldName::Hmm, String::new()),
        (WorldName::Hmm, "[hmm]\nunseen = true".to_owned()),
    ];
    for (world, toml) in cases {
        let config = configured(world.clone(), &format!("rounds = 10000\n{toml}"));
        let started = Instant::now();
        let taught = simulate_process(&config, &process(&config), 1, 0, 0);
        println!("{world:?} {toml}: regret {:.3} in {:.1?}", taught.regret, started.elapsed());
        assert!(taught.simulation.episode.answers().all(|(answer, _)| sums_to_one(&answer.probs)));
        assert!(taught.regret.is_finite());
        let most = match (&world, toml.as_str()) {
            // One half ln n and a constant for each free parameter.
            (WorldName::Coins, "") => 0.5 * 1e4_f64.ln() + 6.0,
            (WorldName::Markov, "") => 6.0 * (0.5 * 1e4_f64.ln() + 3.0),
            // Never more than -ln of the true component's prior.
            (WorldName::Hmm, "") => 5.0_f64.ln() + 1e-9,
            (_, mixture) if mixture.contains("mixture") => 2.0_f64.ln() + 1e-9,
            _ => f64::INFINITY,
        };
        assert!(taught.regret < most, "{world:?}: {}", taught.regret);
    }
}

/// The log evidence of 10,000 symbols of a dense random mixture, against the linear recursion with its own scaling.
#[test]
fn ten_thousand_symbols_against_a_scaled_recursion() {
    let draws = &mut rng::stream(8, "test.long", 0);
    let plain: Vec<Plain> = (0..3).map(|_| Plain::random(4, 3, draws)).collect();
    let models: Vec<Arc<HiddenMarkov>> = plain.iter().map(Plain::model).collect();
    let hypothesis = |model: &Arc<HiddenMarkov>| Hypothesis {
        model: Arc::clone(model),
        start: model.start().to_vec(),
        prior: 1.0 / 3.0,
    };
    let mut belief = Forward::new(models.iter().map(hypothesis).collect(), Between::Symbol);
    let mut alpha = Alpha::new(&models[2], models[2].start(), 1.0);
    let mut state = models[2].draw_start(draws);
    for t in 0..10_000 {
        let symbol = models[2].draw_symbol(state, draws);
        state = models[2].draw_next(state, draws);
        belief.observe(symbol);
        let evidence = alpha.next()[symbol];
        alpha.observe(symbol, evidence);
        // By now the true model is all that is left.
        if t > 5_000 && t % 500 == 0 {
            assert_all_near("late", &belief.predictive(), &predict(std::slice::from_ref(&alpha)), 1e-9);
        }
    }
    assert_eq!(belief.ignored(), 0);
}

#[test]
fn extreme_counts_and_values() {
    let mut counts = Counts::new(Rows::new(&[vec![1e-6, 1e-6]]));
    (0..10_000).for_each(|_| counts.observe(1));
    assert!(sums_to_one(&counts.predictive()) && counts.predictive()[0] > 0.0);
    let coins = [Rows::new(&[vec![0.6, 0.4]]), Rows::new(&[vec![0.4, 0.6]])];
    let mut mixture = Mixture::new(&coins, &[0.5, 0.5]);
    for symbol in [0, 1] {
        (0..10_000).for_each(|_| mixture.observe(symbol));
    }
    assert_all_near("back to the prior", &mixture.predictive(), &[0.5, 0.5], 1e-6);

    // Values that the prior finds absurd leave finite predictions, with all mass at an end.
    let world = Regression::new(&RegressionConfig::default()).unwrap();
    let mut gaussian = Gaussian::new(&world);
    (0..1000).for_each(|_| gaussian.observe(&[1.0], 1e6));
    let predictive = gaussian.predictive(&[1.0]);
    assert!(sums_to_one(&predictive) && predictive[9] == 1.0);
    let function = FunctionPrior::GaussianProcess { features: 1, lengthscale: 10.0, output_sd: 50.0 };
    let world = Regression::new(&RegressionConfig { function, ..RegressionConfig::default() }).unwrap();
    let mut gaussian = Gaussian::new(&world);
    // As smooth, as loud and as often at the same places as can be: the covariance is all but singular.
    for i in 0..500 {
        gaussian.observe(&[f64::from(i % 3) / 100.0], 1.0);
        assert!(sums_to_one(&gaussian.predictive(&[0.01])), "{i}");
    }
    let (mean, variance) = gaussian.moments(&[0.01]);
    assert_near("mean", mean, 1.0, 1e-3);
    assert!((0.01..0.0101).contains(&variance), "{variance}");
}

// --------------------------------------------------------------------------------------------- users and files

#[test]
fn users_are_the_same_in_all_their_episodes() {
    for world_name in WORLDS {
        let config = TeacherConfig { rounds: Some(6), ..TeacherConfig::new(world_name.clone()) };
        let world = process(&config);
        let about = |user, number| match world.source(5, user, number) {
            Source::Rows { rows, .. } => format!("{rows:?}"),
            Source::Hidden { at, .. } => at.concept.to_string(),
            Source::Function { function, .. } => format!("{function:?}"),
        };
        assert_eq!(about(3, 0), about(3, 1), "{world_name:?}");
        let users: BTreeSet<String> = (0..50).map(|user| about(user, 0)).collect();
        assert_eq!(users.len(), if world_name == WorldName::Hmm { 5 } else { 50 }, "{world_name:?}");
        let one = |config: &TeacherConfig, number| {
            simulate_process(config, &world, 5, 3, number).simulation.episode
        };
        assert_ne!(one(&config, 0).messages, one(&config, 1).messages);
        // The first rounds do not depend on how many follow, nor the first episodes on how many are asked for.
        let more = TeacherConfig { rounds: Some(9), episodes_per_user: 7, ..config.clone() };
        let (short, long) = (one(&config, 1), one(&more, 1));
        assert_eq!(short.messages, long.messages[..short.messages.len()]);
    }
}

#[test]
fn threads_change_nothing_and_users_stay_in_one_part() {
    for world in WORLDS {
        let config = TeacherConfig {
            users: Some(60),
            episodes_per_user: 3,
            rounds: Some(5),
            ..TeacherConfig::new(world.clone())
        };
        let with = |threads: usize, seed: u64| {
            let dir = tempfile::tempdir().unwrap();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let summary = pool.install(|| run(&config, seed, dir.path()));
            let files = ["train.jsonl", "validation.jsonl", "test.jsonl"];
            let texts = files.map(|file| std::fs::read_to_string(dir.path().join(file)).unwrap());
            let users = files.map(|file| {
                let episodes = episode::read(&dir.path().join(file)).unwrap();
                episodes.iter().map(|e| e.user.clone()).collect::<BTreeSet<String>>()
            });
            assert!(users[0].is_disjoint(&users[1]) && users[0].is_disjoint(&users[2]));
            assert!(users[1].is_disjoint(&users[2]));
            assert_eq!(users.iter().map(BTreeSet::len).sum::<usize>(), 60);
            (texts, summary)
        };
        let (texts, summary) = with(1, 3);
        assert!((texts.clone(), summary.clone()) == with(2, 3), "{world:?}");
        assert!(texts != with(2, 4).0);
        assert_eq!((summary.episodes, summary.answers, summary.split.shared_users), (180, 900, 0));
        assert!(summary.held_out.is_none() && summary.regret.is_some());
    }
}

#[test]
fn thousands_of_episodes_take_seconds() {
    for world in WORLDS {
        let config = TeacherConfig {
            users: Some(2000),
            episodes_per_user: 1,
            rounds: Some(20),
            ..TeacherConfig::new(world.clone())
        };
        let dir = tempfile::tempdir().unwrap();
        let started = Instant::now();
        run(&config, 3, dir.path());
        println!("{world:?}: 2000 episodes of 20 rounds in {:.2?}", started.elapsed());
    }
}

// ------------------------------------------------------------------------------------------------ text and config

/// What a person types: teach by each shipped config, then look at an episode with the base's tokenizer.
#[test]
fn shipped_configs_teach_and_inspect() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = || assert_cmd::Command::cargo_bin("bayesteach").unwrap();
    for (config, options) in [("coins", 2), ("markov", 3), ("hmm", 50), ("regression", 10)] {
        let dir = tempfile::tempdir().unwrap();
        program()
            .arg("teach")
            .arg(root.join(format!("configs/{config}.toml")))
            .arg("--out")
            .arg(dir.path())
            .args(["--set", "teacher.users=20"])
            .assert()
            .success();
        let summary: TeacherSummary =
            serde_json::from_str(&std::fs::read_to_string(dir.path().join("teacher.json")).unwrap()).unwrap();
        assert_eq!((summary.world.as_str(), summary.episodes), (config, 20));
        let shown = program()
            .arg("inspect")
            .arg(dir.path().join("test.jsonl"))
            .arg("--model")
            .arg(root.join("data/base"))
            .output()
            .unwrap();
        assert!(shown.status.success(), "{config}: {}", String::from_utf8_lossy(&shown.stderr));
        let shown = String::from_utf8(shown.stdout).unwrap();
        let (_, first) = shown.split_once("answer 1 · ").unwrap();
        let rows = first.lines().skip(2).take_while(|line| line.starts_with('"')).count();
        assert_eq!(rows, options, "{config}: {first}");
    }
    // Settings on the command line, tables included.
    let dir = tempfile::tempdir().unwrap();
    let run = |setting: &str| {
        let mut command = program();
        command.arg("teach").arg(root.join("configs/coins.toml")).arg("--out").arg(dir.path());
        command.args(["--set", "teacher.users=5", "--set", setting]).assert()
    };
    run("teacher.coins.prior={ mixture = { components = [[0.2, 0.8], [0.8, 0.2]] } }").success();
    let refused = run("teacher.coins.prior={ fixed = [0.2, 0.9] }").code(2);
    let message = String::from_utf8(refused.get_output().stderr.clone()).unwrap();
    assert!(message.contains("teacher.coins.prior.fixed"), "{message}");
}

fn rendered(config: &TeacherConfig, user: usize) -> String {
    let episode = checked_episode(config, &process(config), 1, user);
    let message = |m: &episode::Message| format!("{}: {}\n", m.role.as_str(), m.content);
    episode.messages.iter().map(message).collect()
}

#[test]
fn every_world_as_text() {
    let text = |world: WorldName, toml: &str| {
        rendered(&configured(world.clone(), &format!("rounds = 3\n{toml}")), 7)
    };
    let first_line = |text: String| text.lines().next().unwrap().to_owned();
    assert_eq!(text(WorldName::Coins, ""), COINS_TEXT);
    assert_eq!(text(WorldName::Markov, ""), MARKOV_TEXT);
    assert_eq!(text(WorldName::Hmm, ""), DOCUMENT_TEXT);
    assert_eq!(text(WorldName::Hmm, "[hmm]\nformat = \"prompts\""), PROMPT_TEXT);
    assert_eq!(text(WorldName::Regression, ""), REGRESSION_TEXT);
    assert_eq!(
        first_line(text(WorldName::Coins, "[coins]\nprior = { dirichlet = [1, 1, 1, 1, 1, 1] }")),
        "user: I roll one die again and again and tell you each result. Predict every roll: 1 to 6. Reply with the \
         number only."
    );
    let letters = format!("[coins]\nprior = {{ dirichlet = [{}] }}", ["1.0"; 12].join(", "));
    assert!(first_line(text(WorldName::Coins, &letters)).ends_with("A to L. Reply with the letter only."));
    assert!(
        first_line(text(WorldName::Hmm, "[hmm]\nvocabulary = 4"))
            .contains("one character after another: / and A to C.")
    );
    let two = "[regression]\nfunction = { gaussian-process = { features = 2, lengthscale = 0.1, output_sd = 1.0 } }";
    assert!(
        first_line(text(WorldName::Regression, two)).contains("a fixed smooth function of the numbers x")
    );
}

/// A prediction is the bare symbol, and so is what came.
const COINS_TEXT: &str = "\
user: I flip one coin again and again and tell you each result. Predict every flip: H (heads) or T (tails). Reply with the letter only.
assistant: H
user: T
assistant: T
user: T
assistant: T
";

/// The first letter is uniform, and after one B nothing is known of what follows a B: ties go to the first.
const MARKOV_TEXT: &str = "\
user: I write one letter after another. How likely each letter is depends on the letter before it. Predict every letter: A, B or C. Reply with the letter only.
assistant: A
user: B
assistant: A
user: B
assistant: B
";

/// Document tokens are single characters.
const DOCUMENT_TEXT: &str = "\
user: A hidden process writes one character after another: /, A to Z and a to w. Predict every character. Reply with the character only.
assistant: /
user: F
assistant: /
user: N
assistant: F
";

/// All but the last of an example are given; the delimiter follows what came.
const PROMPT_TEXT: &str = "\
user: A hidden process writes lines of 5 characters: /, A to Z and a to w. I show you each line but for its last character. Predict that one. Reply with the character only.
U J Q p
assistant: /
user: g /
Q A T K
assistant: Q
user: Q /
S c R w
assistant: /
";

/// The told value falls into a bin; bin 0 ends where bin 1 begins.
const REGRESSION_TEXT: &str = "\
user: I measure y at one x after another. y is a fixed multiple of x plus noise. Predict the bin of every y: 0 below -1.6, 1 from -1.6, 2 from -1.2, 3 from -0.8, 4 from -0.4, 5 from 0, 6 from 0.4, 7 from 0.8, 8 from 1.2, 9 from 1.6. Reply with the bin only.
x = 0.18
assistant: 5
user: y = -0.084, bin 4.
x = 0.05
assistant: 4
user: y = -0.101, bin 4.
x = 0.65
assistant: 4
";

#[test]
fn bad_configs_are_refused() {
    let message = |toml: &str| {
        let config: TeacherConfig = toml::from_str(toml).unwrap();
        let error = config.validate().unwrap_err();
        assert!(error.downcast_ref::<bayesteach::error::UsageError>().is_some(), "{toml}");
        error.to_string()
    };
    let coins = |prior: &str| message(&format!("world = \"coins\"\n[coins]\nprior = {prior}"));
    assert!(coins("{ dirichlet = [1.0, 0.0] }").contains("dirichlet has 0"));
    assert!(coins("{ dirichlet = [1.0] }").contains("1 symbols"));
    assert!(coins("{ dirichlet = [] }").contains("rows of equal length"));
    assert!(coins("{ fixed = [0.5, 0.6] }").contains("sum to 1"));
    assert!(coins("{ fixed = [nan, 0.6] }").contains("sum to 1"));
    assert!(coins("{ mixture = { components = [] } }").contains("is empty"));
    assert!(
        coins("{ mixture = { components = [[0.5, 0.5]], weights = [0.5, 0.5] } }")
            .contains("1 components but 2")
    );
    assert!(coins("{ mixture = { components = [[0.5, 0.5], [0.2, 0.2, 0.6]] } }").contains("differ"));
    assert!(
        message("world = \"coins\"\n[coins]\nprior = { dirichlet = [1.0, 1.0] }\nsource = { fixed = [0.2, 0.2, 0.6] }")
            .contains("1 × 2 numbers")
    );
    assert!(
        message("world = \"markov\"\n[markov]\nprior = { dirichlet = [[1.0, 1.0]] }")
            .contains("must be square")
    );
    assert!(
        message("world = \"markov\"\n[markov]\nprior = { fixed = [[0.5, 0.5], [1.0]] }")
            .contains("equal length")
    );
    assert!(message("world = \"coins\"\nkind = \"wrong-prior\"").contains("teacher.coins.source"));
    for power in ["0.0", "1001.0", "nan"] {
        let hmm = format!("world = \"hmm\"\nkind = \"tempered\"\n[tempered]\npower = {power}");
        assert!(message(&hmm).contains("above 0 and at most 1000"));
    }
    assert!(message("world = \"hmm\"\nkind = \"wrong-prior\"").contains("use another kind"));
    let slow = "world = \"regression\"\nkind = \"forgetful\"\nrounds = 201\n[regression.function.gaussian-process]\n\
                features = 1\nlengthscale = 0.1\noutput_sd = 0.3";
    assert!(message(slow).contains("200 at most"));
    assert!(
        message("world = \"coins\"\nkind = \"forgetful\"\n[coins]\nprior = { fixed = [0.2, 0.8] }")
            .contains("nothing to learn")
    );
    assert!(message("world = \"markov\"\nevidence = \"eig\"").contains("evidence is not available"));
    assert!(message("world = \"coins\"\nusers = 0").contains("users is 0"));
    assert!(message("world = \"coins\"\nepisodes_per_user = 0").contains("episodes_per_user is 0"));
    assert!(message("world = \"coins\"\nrounds = 10001").contains("1 to 10000"));
    assert!(message("world = \"regression\"\nrounds = 1001").contains("1 to 1000"));
    assert!(message("world = \"coins\"\nusers = 1000000\nepisodes_per_user = 1000").contains("1000000000"));
    for unknown in [
        "world = \"coins\"\n[coins]\nprior = { beta = [1.0, 1.0] }",
        "world = \"coins\"\n[coins]\nprior = { mixture = { components = [[0.5, 0.5]], weight = [1.0] } }",
        "world = \"regression\"\n[regression]\nfunction = { linear = { features = 1 } }",
        "world = \"hmm\"\n[hmm]\nformat = \"prompt\"",
    ] {
        assert!(toml::from_str::<TeacherConfig>(unknown).is_err(), "{unknown}");
    }
}

/// A config survives being written into a run's folder and read again, whatever its family.
#[test]
fn configs_survive_a_round_trip() {
    let mixture = Family::Mixture { components: vec![vec![0.5, 0.5]], weights: Some(vec![1.0]) };
    for prior in [uniform(), two_coins(), mixture, Family::Fixed(vec![0.2, 0.8])] {
        let mut config = TeacherConfig::new(WorldName::Coins);
        config.coins.source = Some(prior.clone());
        config.coins.prior = prior;
        config.hmm =
            HmmConfig { format: Format::Prompts, inference: Inference::PromptAware, ..HmmConfig::default() };
        config.regression.function =
            FunctionPrior::GaussianProcess { features: 2, lengthscale: 0.5, output_sd: 2.0 };
        let text = toml::to_string_pretty(&config).unwrap();
        assert_eq!(toml::from_str::<TeacherConfig>(&text).unwrap(), config, "{text}");
        let value = toml::Value::try_from(&config).unwrap();
        assert_eq!(value.try_into::<TeacherConfig>().unwrap(), config);
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<TeacherConfig>(&json).unwrap(), config);
    }
}
