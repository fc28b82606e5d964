//! Rival teachers, users that change, evidence chosen by its information and reported beliefs, against brute force and
//! against what was published.
//!
//! The brute-force teachers share no code with the library: they enumerate joint hypotheses, or read the episodes'
//! text.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and says what it measured")]

mod common;

#[path = "common/witness.rs"]
mod witness;

use std::collections::HashMap;
use std::sync::Arc;

use bayesteach::episode::{self, Answer, Episode};
use bayesteach::metrics::{argmax, entropy};
use bayesteach::rng::{self, Stream};
use bayesteach::teacher::{
    Decision, DriftTo, Evidence, Kind, Posterior, SplitConfig, Targets, TeacherConfig, TeacherSummary,
    Transition, WorldName, simulate, teach,
};
use bayesteach::world::personality::Order;
use bayesteach::world::{Factor, Likelihood, Question, Reward, ipip};
use witness::{
    all_episodes, assert_near, assert_same, flight_choice, flight_users, parse_flight, published_item,
};

fn run(config: &TeacherConfig, seed: u64) -> (TeacherSummary, Vec<Episode>) {
    let dir = tempfile::tempdir().unwrap();
    let summary = teach(config, &SplitConfig::default(), seed, dir.path(), &|_, _| {}).unwrap();
    (summary, all_episodes(dir.path()))
}

// ------------------------------------------------------------------------------------------- random small worlds

/// Random factors and questions; a probability in four is 0 where `zeros`.
struct SmallWorld {
    factors: Vec<Factor>,
    /// (factor, rows of probabilities)
    tables: Vec<(usize, Vec<Vec<f64>>)>,
    questions: Vec<Question>,
}

fn distribution(n: usize, zeros: bool, draws: &mut Stream) -> Vec<f64> {
    let mut weights: Vec<f64> =
        (0..n).map(|_| if zeros && draws.below(4) == 0 { 0.0 } else { 0.05 + draws.uniform() }).collect();
    weights[draws.below(n)] += 0.1;
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| w / sum).collect()
}

impl SmallWorld {
    fn new(index: u64, zeros: bool) -> SmallWorld {
        let draws = &mut rng::stream(17, "small world", index);
        let factors: Vec<Factor> = (0..1 + draws.below(3))
            .map(|f| Factor { name: format!("f{f}"), prior: distribution(2 + draws.below(2), false, draws) })
            .collect();
        let tables: Vec<(usize, Vec<Vec<f64>>)> = (0..6)
            .map(|_| {
                let factor = draws.below(factors.len());
                let options = 2 + draws.below(3);
                let rows =
                    factors[factor].prior.iter().map(|_| distribution(options, zeros, draws)).collect();
                (factor, rows)
            })
            .collect();
        let questions = tables.iter().map(|(factor, rows)| question(*factor, rows)).collect();
        SmallWorld { factors, tables, questions }
    }

    /// Every combination of hypotheses, with its prior probability.
    fn joint(&self) -> Vec<(Vec<usize>, f64)> {
        let mut all = vec![(Vec::new(), 1.0)];
        for factor in &self.factors {
            all = (all.iter())
                .flat_map(|(user, p): &(Vec<usize>, f64)| {
                    factor
                        .prior
                        .iter()
                        .enumerate()
                        .map(move |(h, q)| ([user.as_slice(), &[h]].concat(), p * q))
                })
                .collect();
        }
        all
    }

    fn probability(&self, question: usize, user: &[usize], answer: usize) -> f64 {
        let (factor, rows) = &self.tables[question];
        rows[user[*factor]][answer]
    }

    fn options(&self, question: usize) -> usize {
        self.tables[question].1[0].len()
    }

    /// What a random user answers, so that no answer is impossible.
    fn answers(&self, index: u64) -> Vec<(usize, usize)> {
        let draws = &mut rng::stream(18, "answers", index);
        let user: Vec<usize> = self.factors.iter().map(|f| draws.categorical(&f.prior)).collect();
        let one = |_| {
            let q = draws.below(self.questions.len());
            let (factor, rows) = &self.tables[q];
            (q, draws.categorical(&rows[user[*factor]]))
        };
        (0..5).map(one).collect()
    }

    fn check(&self, what: &str, posterior: &Posterior, weight: impl Fn(&[usize]) -> f64) {
        let joint: Vec<(Vec<usize>, f64)> =
            self.joint().into_iter().map(|(user, _)| (user.clone(), weight(&user))).collect();
        let sum: f64 = joint.iter().map(|(_, p)| p).sum();
        for (f, factor) in self.factors.iter().enumerate() {
            let marginal: Vec<f64> = (0..factor.prior.len())
                .map(|h| joint.iter().filter(|(user, _)| user[f] == h).map(|(_, p)| p / sum).sum())
                .collect();
            assert_same(&format!("{what}, factor {f}"), posterior.marginal(f), &marginal);
        }
        let entropy_of = |joint: &[(Vec<usize>, f64)]| -> f64 {
            let sum: f64 = joint.iter().map(|(_, p)| p).sum();
            joint.iter().filter(|(_, p)| *p > 0.0).map(|(_, p)| -(p / sum) * (p / sum).ln()).sum()
        };
        assert_near(&format!("{what}, entropy"), posterior.entropy(), entropy_of(&joint), 1e-9);
        for (q, question) in self.questions.iter().enumerate() {
            let after = |answer: usize| -> Vec<(Vec<usize>, f64)> {
                let p = |user: &[usize], p: f64| p / sum * self.probability(q, user, answer);
                joint.iter().map(|(user, prob)| (user.clone(), p(user, *prob))).collect()
            };
            let predictive: Vec<f64> =
                (0..self.options(q)).map(|a| after(a).iter().map(|(_, p)| p).sum()).collect();
            assert_same(&format!("{what}, predictive"), &posterior.predictive(question), &predictive);
            // Expected information gain by its definition: entropy before less expected entropy after.
            let expected_after: f64 = (0..self.options(q))
                .filter(|&a| predictive[a] > 0.0)
                .map(|a| predictive[a] * entropy_of(&after(a)))
                .sum();
            let gain = posterior.expected_gain(question);
            assert!(gain >= 0.0);
            assert_near(&format!("{what}, gain"), gain, entropy_of(&joint) - expected_after, 1e-9);
        }
    }
}

fn question(factor: usize, rows: &[Vec<f64>]) -> Question {
    let options = rows[0].len();
    of_likelihood(factor, Likelihood::from_log_probs(options, rows.concat().iter().map(|p| p.ln()).collect()))
}

fn of_likelihood(factor: usize, likelihood: Likelihood) -> Question {
    let likelihood = Arc::new(likelihood);
    Question {
        text: String::new(),
        placed: None,
        labels: (0..likelihood.options()).map(|i| i.to_string()).collect(),
        factor,
        behaviour: Arc::clone(&likelihood),
        likelihood,
        reward: Reward::Nearness,
        levels: Arc::default(),
    }
}

#[test]
fn exact_tempered_and_forgetful_posteriors_by_enumeration() {
    for index in 0..60 {
        let world = SmallWorld::new(index, index % 2 == 0);
        let answers = world.answers(index);
        let (power, discount) = (0.3 + (index % 7) as f64 * 0.4, 0.2 + (index % 5) as f64 * 0.2);
        let mut exact = Posterior::prior(&world.factors);
        let mut tempered = exact.clone();
        let mut forgetful = exact.clone();
        for (n, &(q, answer)) in answers.iter().enumerate() {
            let question = &world.questions[q];
            exact.observe(question, answer);
            tempered.observe_to_the_power(question, answer, power);
            forgetful.forget(discount, &world.factors);
            forgetful.observe(question, answer);
            let prior: HashMap<Vec<usize>, f64> = world.joint().into_iter().collect();
            let likelihood = |user: &[usize], exponent: &dyn Fn(usize) -> f64| -> f64 {
                let terms = answers[..=n].iter().enumerate();
                let power = |(i, &(q, a)): (usize, &(usize, usize))| {
                    world.probability(q, user, a).powf(exponent(n - i))
                };
                prior[user] * terms.map(power).product::<f64>()
            };
            world.check("exact", &exact, |user| likelihood(user, &|_| 1.0));
            world.check("tempered", &tempered, |user| likelihood(user, &|_| power));
            world.check("forgetful", &forgetful, |user| likelihood(user, &|ago| discount.powi(ago as i32)));
        }
    }
}

/// Sums over every path that a user can have taken through the hypotheses.
#[test]
fn filters_of_changing_users_by_enumeration_of_paths() {
    for index in 0..30 {
        let world = SmallWorld::new(1000 + index, index % 2 == 0);
        let hazard = [0.05, 0.3, 1.0][index as usize % 3];
        let to_prior = index % 2 == 0;
        // Neighbours in a row; the last hypothesis of the first factor has none and stays.
        let lists: Vec<Vec<Vec<usize>>> = (world.factors.iter().enumerate())
            .map(|(f, factor)| {
                let n = factor.prior.len();
                let list = |h: usize| match (f, h + 1 == n) {
                    (0, true) => vec![],
                    _ => [h.checked_sub(1), Some(h + 1).filter(|h| *h < n)].into_iter().flatten().collect(),
                };
                (0..n).map(list).collect()
            })
            .collect();
        let transition = match to_prior {
            true => Transition::to_prior(hazard, &world.factors),
            false => Transition::to_neighbours(hazard, lists.clone()),
        };
        let step = |from: &[usize], to: &[usize]| -> f64 {
            let of_factor = |f: usize| {
                let stays = if from[f] == to[f] { 1.0 } else { 0.0 };
                let list = &lists[f][from[f]];
                let goes = match (to_prior, list.is_empty()) {
                    (true, _) => world.factors[f].prior[to[f]],
                    (false, true) => stays,
                    (false, false) if list.contains(&to[f]) => 1.0 / list.len() as f64,
                    (false, false) => 0.0,
                };
                (1.0 - hazard) * stays + hazard * goes
            };
            (0..from.len()).map(of_factor).product()
        };
        // (path, probability with all answers so far); the last of a path is the present.
        let mut paths: Vec<(Vec<Vec<usize>>, f64)> =
            world.joint().into_iter().map(|(user, p)| (vec![user], p)).collect();
        let users: Vec<Vec<usize>> = world.joint().into_iter().map(|(user, _)| user).collect();
        let mut posterior = Posterior::prior(&world.factors);
        for &(q, answer) in &world.answers(index)[..if users.len() > 12 { 2 } else { 3 }] {
            let supported =
                paths.iter().any(|(p, w)| w * world.probability(q, &p[p.len() - 1], answer) > 0.0);
            assert_eq!(posterior.observe(&world.questions[q], answer), supported);
            if supported {
                paths.iter_mut().for_each(|(p, w)| *w *= world.probability(q, &p[p.len() - 1], answer));
            }
            posterior.advance(&transition);
            let mut longer = Vec::new();
            for (path, w) in &paths {
                for user in &users {
                    let w = w * step(&path[path.len() - 1], user);
                    if w > 0.0 {
                        longer.push(([path.as_slice(), std::slice::from_ref(user)].concat(), w));
                    }
                }
            }
            paths = longer;
            let mut present: HashMap<&[usize], f64> = HashMap::new();
            for (path, w) in &paths {
                *present.entry(&path[path.len() - 1]).or_default() += w;
            }
            world.check("changing", &posterior, |user| present.get(user).copied().unwrap_or(0.0));
        }
    }
}

#[test]
fn users_change_as_often_as_said() {
    let factors: Vec<Factor> =
        (0..2).map(|i| Factor { name: i.to_string(), prior: vec![0.25, 0.25, 0.5] }).collect();
    let transition = Transition::to_prior(0.2, &factors);
    let draws = &mut rng::stream(3, "test", 0);
    let (mut changed, mut user) = (0.0, vec![0, 0]);
    let mut visits = [0.0; 3];
    for _ in 0..20_000 {
        let before = user.clone();
        transition.change(&mut user, draws);
        changed += f64::from(u8::from(before[0] != user[0]));
        visits[user[1]] += 1.0;
    }
    // From h, another with probability .2 (1 - prior h): .2 (1 - Σ prior²) = .125 in the long run.
    assert_near("changes", changed / 20_000.0, 0.125, 0.012);
    assert_near("visits", visits[2] / 20_000.0, 0.5, 0.04);
}

/// Talts et al. (2018): where users are drawn from the prior, the true hypothesis has a uniform rank in the posterior
/// (randomised here, since hypotheses are discrete). A tempered teacher fails the same test.
#[test]
fn simulation_based_calibration() {
    const BINS: usize = 20;
    let chi_square = |power: f64| {
        let mut counts = [0.0; BINS];
        let draws = &mut rng::stream(9, "sbc", 0);
        for index in 0..4000 {
            let world = SmallWorld::new(5000 + index, false);
            let user: Vec<usize> = world.factors.iter().map(|f| draws.categorical(&f.prior)).collect();
            let mut posterior = Posterior::prior(&world.factors);
            for (factor, rows) in &world.tables {
                let question = question(*factor, rows);
                posterior.observe_to_the_power(&question, draws.categorical(&rows[user[*factor]]), power);
            }
            let marginal = posterior.marginal(0);
            let below: f64 = marginal[..user[0]].iter().sum();
            let rank = below + draws.uniform() * marginal[user[0]];
            counts[((rank * BINS as f64) as usize).min(BINS - 1)] += 1.0;
        }
        let expected = 4000.0 / BINS as f64;
        counts.iter().map(|c: &f64| (c - expected).powi(2) / expected).sum::<f64>()
    };
    let (exact, tempered) = (chi_square(1.0), chi_square(3.0));
    println!("chi-square of 19 degrees of freedom: exact {exact:.1}, tempered {tempered:.1}");
    // The .999 quantile is 43.8.
    assert!(exact < 43.8, "{exact}");
    assert!(tempered > 43.8, "{tempered}");
}

// --------------------------------------------------------------------------------------- evidence, as published

fn random_level(feature: usize, draws: &mut Stream) -> i64 {
    if feature == 2 { 5 * draws.below(3) as i64 } else { draws.below(11) as i64 }
}

fn flight_question(users: &[[i64; 4]], options: &[[i64; 4]]) -> Question {
    let choices = users.iter().map(|user| flight_choice(user, options) as u8).collect();
    of_likelihood(0, Likelihood::Choice { options: 3, choices })
}

/// teaching.md, A.9: the expected gain of a random set is 1.07 nats on average, .69 to 1.10 over 5,000; of sets that
/// differ in one feature .78, less.
#[test]
fn gains_of_random_sets_and_of_sets_that_differ_in_one_feature() {
    let users = flight_users();
    let prior = Posterior::prior(&[Factor { name: "all".into(), prior: vec![1.0 / 624.0; 624] }]);
    let draws = &mut rng::stream(4, "sets", 0);
    let (mut random, mut single, mut distinct) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..5000 {
        let options: Vec<[i64; 4]> = (0..3).map(|_| [0, 1, 2, 3].map(|f| random_level(f, draws))).collect();
        random.push(prior.expected_gain(&flight_question(&users, &options)));
        let feature = i % 4;
        let mut levels = [0; 3].map(|_| random_level(feature, draws));
        let options = levels.map(|level| {
            let mut option = options[0];
            option[feature] = level;
            option
        });
        levels.sort_unstable();
        if levels[0] != levels[2] {
            single.push(prior.expected_gain(&flight_question(&users, &options)));
        }
        if levels[0] != levels[1] && levels[1] != levels[2] {
            distinct.push(prior.expected_gain(&flight_question(&users, &options)));
        }
    }
    let mean = |gains: &[f64]| gains.iter().sum::<f64>() / gains.len() as f64;
    let (least, most) = random.iter().fold((9.0, 0.0), |(a, b), g| (f64::min(a, *g), f64::max(b, *g)));
    println!("random {:.4} ({least:.3} to {most:.4})", mean(&random));
    println!("one feature {:.4}, of three different levels {:.4}", mean(&single), mean(&distinct));
    assert_near("random sets", mean(&random), 1.07, 0.01);
    assert!((0.6..0.75).contains(&least) && most > 1.095 && most <= 3.0_f64.ln() + 1e-12);
    // The source does not say whether two of the three levels may be equal: its .78 lies between the two ways.
    assert!((0.74..0.78).contains(&mean(&single)) && (0.78..0.82).contains(&mean(&distinct)));
    // Of three different levels, two tell 250 users from 374; or, where the first is between the others, 250, 124 and
    // 250 apart.
    let entropy = |counts: &[f64]| counts.iter().map(|n| -n / 624.0 * (n / 624.0).ln()).sum::<f64>();
    let exact = (2.0 * entropy(&[250.0, 374.0]) + entropy(&[250.0, 124.0, 250.0])) / 3.0;
    assert_near("one feature, three levels", mean(&distinct), exact, 0.015);
}

/// teaching.md, A.9: each round's set chosen by expected gain among 500 lifts the assistant from .80 to .91 after 5
/// rounds, on random held-out sets; on the chosen sets it stays at .33 to .42. The most probable choice is a little
/// better than the published rule.
#[test]
fn chosen_sets_lift_the_assistant_as_published() {
    let config = TeacherConfig {
        episodes_per_user: 1,
        evidence: Evidence::Eig,
        decision: Decision::ExpectedReward,
        ..TeacherConfig::new(WorldName::Flights)
    };
    let started = std::time::Instant::now();
    let summaries: Vec<TeacherSummary> = (0..3).map(|seed| run(&config, seed).0).collect();
    println!("{:.1?} for 3 × 624 users × 5 rounds × 500 candidates", started.elapsed());
    let mean = |value: &dyn Fn(&TeacherSummary) -> f64| summaries.iter().map(value).sum::<f64>() / 3.0;
    let after_five =
        |s: &TeacherSummary| s.held_out.as_ref().unwrap().by_observations[5].accuracy_expected_reward;
    println!("held out after 5: {:.4}", mean(&after_five));
    assert_near("held out after 5", mean(&after_five), 0.91, 0.015);
    for round in 0..5 {
        let chosen = mean(&|s| s.by_observations[round].accuracy_expected_reward);
        assert!((0.29..0.43).contains(&chosen), "round {round}: {chosen}");
    }
}

/// Share of traits whose most probable level is the user's, after each number of questions.
fn traits_found(config: &TeacherConfig, users: usize, at: &[usize]) -> Vec<f64> {
    let world = config.build_world().unwrap();
    let mut found = vec![0.0; at.len()];
    for i in 0..users {
        let user = i * world.users() / users;
        let levels = world.user(user);
        let mut asked = 0;
        simulate(config, &world, 12, user, 0, |posterior| {
            if let Some(place) = at.iter().position(|n| *n == asked) {
                let right = (0..5).filter(|&f| argmax(posterior.marginal(f)) == levels[f]).count();
                found[place] += right as f64 / (5 * users) as f64;
            }
            asked += 1;
        });
    }
    found
}

/// teaching.md, B.4 and B.5, items all alike: per-trait accuracy of the most probable level after 10, 20 and 30
/// questions.
#[test]
fn adaptive_questionnaires_as_published_for_items_alike() {
    let config = |evidence, order| {
        let mut config =
            TeacherConfig { evidence, rounds: Some(50), ..TeacherConfig::new(WorldName::Personality) };
        config.personality.order = order;
        config
    };
    for (name, config, expected) in [
        ("interleaved", config(Evidence::Random, Order::Interleaved), [0.63, 0.75, 0.82]),
        ("blocked", config(Evidence::Random, Order::Blocked), [0.34, 0.48, 0.62]),
        ("eig", config(Evidence::Eig, Order::Shuffled), [0.63, 0.78, 0.86]),
    ] {
        let found = traits_found(&config, 3125, &[10, 20, 30]);
        println!("{name}: {found:.3?}");
        for (found, expected) in found.iter().zip(expected) {
            assert_near(name, *found, expected, 0.015);
        }
    }
    // The baseline asks where a point estimate says that answers depend most on the level, so it knows less.
    let fisher = traits_found(&config(Evidence::Fisher, Order::Shuffled), 3125, &[10, 20, 30]);
    println!("fisher: {fisher:.3?}");
    for (fisher, eig) in fisher.iter().zip([0.63, 0.78, 0.86]) {
        assert!(*fisher < eig + 0.01);
    }
}

/// The probabilities of the answers to an item at each level: its slope, its location, and the distance of its thresholds.
fn item_rows(slope: f64, shift: f64, spacing: f64) -> Vec<Vec<f64>> {
    let reached = |level: f64, threshold: f64| 1.0 / (1.0 + (-slope * (level - shift - threshold)).exp());
    let row = |level: i32| {
        let p = [-1.5, -0.5, 0.5, 1.5].map(|t| reached(f64::from(level), t * spacing));
        vec![1.0 - p[0], p[0] - p[1], p[1] - p[2], p[2] - p[3], p[3]]
    };
    (-2..=2).map(row).collect()
}

/// teaching.md, B.4, (1) and (3): which items make a teacher who is right .536 of the time at 1.14 nats. Ten items of one
/// trait, the answers drawn; of items alike the published point, the ends of the region around it and another point far from
/// it, of items that differ (slopes lognormal, sd .4) the example.
#[test]
fn items_that_make_the_published_teacher() {
    let factors = [Factor { name: "trait".into(), prior: vec![0.2; 5] }];
    let teacher = |slope: f64, spacing: f64, differ: Option<f64>, index: u64| {
        let (banks, users) = (300, 40);
        let draws = &mut rng::stream(22, "bank", index);
        let (mut accuracy, mut entropies) = (0.0, 0.0);
        for _ in 0..banks {
            let items: Vec<Question> = (0..10)
                .map(|_| match differ {
                    None => question(0, &item_rows(slope, 0.0, spacing)),
                    Some(shift) => {
                        let slope = slope * (0.4 * draws.normal() - 0.08).exp();
                        question(0, &item_rows(slope, shift * draws.normal(), spacing))
                    }
                })
                .collect();
            for user in 0..users {
                let mut posterior = Posterior::prior(&factors);
                for item in &items {
                    let predictive = posterior.predictive(item);
                    accuracy += predictive.iter().copied().fold(0.0, f64::max);
                    entropies += entropy(&predictive);
                    posterior.observe(item, item.likelihood.draw(user % 5, draws));
                }
            }
        }
        let answers = f64::from(banks) * users as f64 * 10.0;
        (accuracy / answers, entropies / answers)
    };
    for (i, (slope, spacing, accuracy_within, entropy_within)) in [
        (1.955, 0.7227, 0.003, 0.006),
        // The ends of the region of ± .005 and ± .02.
        (1.84, 0.70, 0.008, 0.026),
        (2.08, 0.76, 0.008, 0.026),
        (0.65, 0.38, 0.008, 0.026),
    ]
    .into_iter()
    .enumerate()
    {
        let (accuracy, entropy) = teacher(slope, spacing, None, i as u64);
        println!("slope {slope}, spacing {spacing}: {accuracy:.4}, {entropy:.4} nats");
        assert_near("accuracy", accuracy, 0.536, accuracy_within);
        assert_near("entropy", entropy, 1.140, entropy_within);
    }
    let (accuracy, entropy) = teacher(1.7, 0.8, Some(1.0), 10);
    println!("items that differ: {accuracy:.4}, {entropy:.4} nats");
    assert_near("accuracy, items that differ", accuracy, 0.541, 0.01);
    assert_near("entropy, items that differ", entropy, 1.139, 0.015);
}

/// teaching.md, B.5, items that differ, the share of traits found and of users of whom all five are: slopes lognormal around
/// 1.9 (sd .4), locations shifted by .5 levels; and how many chosen items find as much as 10, 20, 30 and 40 in turn. Ten items
/// a trait; this bank and its users are the test's own, the posterior and the gain are the library's.
#[test]
fn adaptive_questionnaires_as_published_for_items_that_differ() {
    let factors: Vec<Factor> = (0..5).map(|f| Factor { name: f.to_string(), prior: vec![0.2; 5] }).collect();
    let (mut eig, mut interleaved) = ([(0.0, 0.0); 40], [(0.0, 0.0); 40]);
    let (banks, users) = (20, 60);
    for bank in 0..banks {
        let draws = &mut rng::stream(21, "bank", bank);
        let item = |i: usize, draws: &mut Stream| {
            let slope = 1.9 * (0.4 * draws.normal() - 0.08).exp();
            (i % 5, item_rows(slope, 0.5 * draws.normal(), 0.7227))
        };
        let items: Vec<(usize, Vec<Vec<f64>>)> = (0..50).map(|i| item(i, draws)).collect();
        let questions: Vec<Question> = items.iter().map(|(f, rows)| question(*f, rows)).collect();
        for _ in 0..users {
            let user: Vec<usize> = (0..5).map(|_| draws.below(5)).collect();
            for (adaptive, found) in [(true, &mut eig), (false, &mut interleaved)] {
                let mut posterior = Posterior::prior(&factors);
                let mut left: Vec<usize> = (0..50).collect();
                for (traits, all) in found.iter_mut() {
                    let gains: Vec<f64> =
                        left.iter().map(|&i| posterior.expected_gain(&questions[i])).collect();
                    let i = left.remove(if adaptive { argmax(&gains) } else { 0 });
                    let (factor, rows) = &items[i];
                    posterior.observe(&questions[i], draws.categorical(&rows[user[*factor]]));
                    let right = (0..5).filter(|&f| argmax(posterior.marginal(f)) == user[f]).count();
                    *traits += right as f64 / (5.0 * (banks * users) as f64);
                    *all += f64::from(u8::from(right == 5)) / (banks * users) as f64;
                }
            }
        }
    }
    println!("interleaved {interleaved:.3?}, eig {eig:.3?}");
    for (chosen, in_turn) in [(5, 10), (9, 20), (15, 30), (26, 40)] {
        let needed = 1 + eig.iter().position(|(traits, _)| *traits >= interleaved[in_turn - 1].0).unwrap();
        println!("{needed} chosen items find as much as {in_turn} in turn");
        // An item more or less is .01 of the traits or less, twice the standard error.
        assert_near(
            &format!("items for {in_turn} in turn"),
            needed as f64,
            f64::from(chosen),
            0.3 * f64::from(chosen),
        );
    }
    let tens = |found: [(f64, f64); 40]| [found[9], found[19], found[29]];
    let (interleaved, eig) = (tens(interleaved), tens(eig));
    let published = [(0.61, 0.08), (0.74, 0.22), (0.82, 0.37), (0.78, 0.29), (0.87, 0.50), (0.90, 0.58)];
    for ((traits, all), expected) in interleaved.iter().chain(&eig).zip(published) {
        // 6,000 traits of 20 banks: a standard error of .006, and as much again from the banks; of 1,200 users .014.
        assert_near("items that differ", *traits, expected.0, 0.03);
        assert_near("items that differ, all five", *all, expected.1, 0.05);
    }
}

#[test]
fn chosen_items_are_those_of_highest_gain_and_none_is_asked_twice() {
    for evidence in [Evidence::Eig, Evidence::Fisher] {
        let config = TeacherConfig {
            users: Some(20),
            episodes_per_user: 1,
            evidence,
            ..TeacherConfig::new(WorldName::Personality)
        };
        for episode in run(&config, 3).1 {
            let mut items: Vec<&str> = asks(&episode).map(|ask| ask.split_once(": ").unwrap().1).collect();
            assert_eq!(items.len(), 50);
            items.sort_unstable();
            items.dedup();
            assert_eq!(items.len(), 50);
            // All traits are equally unknown at first: none is asked about twice before each was once.
            let observations: Vec<usize> =
                answers(&episode).take(5).map(|answer| answer.observations.unwrap()).collect();
            assert!(evidence == Evidence::Fisher || observations == [0; 5], "{observations:?}");
        }
    }
}

#[test]
fn episodes_end_when_enough_is_known() {
    let entropies = |config: &TeacherConfig, user: usize| {
        let world = config.build_world().unwrap();
        let mut entropies = Vec::new();
        let episode =
            simulate(config, &world, 3, user, 0, |posterior| entropies.push(posterior.entropy())).episode;
        assert_eq!(answers(&episode).count() + 1, entropies.len());
        entropies
    };
    let mut config =
        TeacherConfig { rounds: Some(50), stop_entropy: 3.0, ..TeacherConfig::new(WorldName::Personality) };
    let (mut random, mut chosen) = (0, 0);
    for user in (0..3125).step_by(50) {
        config.evidence = Evidence::Random;
        let by_chance = entropies(&config, user);
        config.evidence = Evidence::Eig;
        let by_choice = entropies(&config, user);
        for entropies in [&by_chance, &by_choice] {
            let last = entropies.len() - 1;
            assert!(entropies[last] < 3.0 || last == 50);
            assert!(entropies[..last].iter().all(|entropy| *entropy >= 3.0));
        }
        (random, chosen) = (random + by_chance.len(), chosen + by_choice.len());
    }
    println!("questions until 3 nats are left: {random} at random, {chosen} chosen");
    assert!(chosen < random);

    // One item at a uniform prior is worth .543 nats (teaching.md, B.5): above that nothing is worth asking, but the
    // first question.
    config.stop_entropy = 0.0;
    for (stop_gain, rounds) in [(0.55, 1), (0.54, 5)] {
        config.stop_gain = stop_gain;
        let asked = entropies(&config, 1562).len() - 1;
        assert!(if rounds == 1 { asked == 1 } else { asked >= 5 }, "{asked} asked with {stop_gain}");
    }
}

// ---------------------------------------------------------------------------------- whole episodes from their text

fn answers(episode: &Episode) -> impl Iterator<Item = &Answer> {
    episode.messages.iter().filter_map(|m| m.answer.as_ref())
}

/// The line of each message of the user that asks for an item.
fn asks(episode: &Episode) -> impl Iterator<Item = &str> {
    episode.messages.iter().filter_map(|m| m.content.lines().find(|line| line.starts_with("Item ")))
}

/// What the user chose, from feedback such as `I prefer Flight 1.` or `I answered 2.`; none where nothing is told.
fn told(text: &str, said: &str) -> Option<usize> {
    let first = text.lines().next()?;
    if first.ends_with("is correct.") {
        return Some(said.parse::<usize>().unwrap() - 1);
    }
    let told = first.split_once("I prefer Flight ").or_else(|| first.split_once("I answered "))?.1;
    Some(told.trim_end_matches('.').parse::<usize>().unwrap() - 1)
}

/// Goes through flight episodes with a linear-space filter over the 624 users: a prior, and a step between rounds.
/// Also checks every reported belief against the filter's marginal.
fn check_flights(episodes: &[Episode], prior: &[f64], step: &dyn Fn(&[f64]) -> Vec<f64>) {
    let users = flight_users();
    let names = ["departure_time", "duration", "number_of_stops", "price"];
    for episode in episodes {
        let mut belief = prior.to_vec();
        let mut asked: Option<Vec<[i64; 4]>> = None;
        let mut said = String::new();
        for pair in episode.messages.chunks(2) {
            let (ask, answer) = (&pair[0].content, pair[1].answer.as_ref().unwrap());
            if let Some(options) = asked.take() {
                let chosen = told(ask, &said).unwrap();
                let likely: Vec<f64> = (belief.iter().zip(&users))
                    .map(|(p, user)| if flight_choice(user, &options) == chosen { *p } else { 0.0 })
                    .collect();
                let sum: f64 = likely.iter().sum();
                // An answer that no user can have given teaches nothing.
                belief = if sum > 0.0 { likely.iter().map(|p| p / sum).collect() } else { belief };
                belief = step(&belief);
            }
            let options: Vec<[i64; 4]> =
                ask.lines().filter(|line| line.starts_with("departure time: ")).map(parse_flight).collect();
            let mut expected = vec![0.0; answer.options.len()];
            match &answer.belief {
                Some(name) => {
                    assert!(options.is_empty() && ask.ends_with("Reply with the number only."));
                    let feature = names.iter().position(|n| n == name).unwrap();
                    assert!(ask.contains(&format!("feel about the {} of a flight", name.replace('_', " "))));
                    belief
                        .iter()
                        .zip(&users)
                        .for_each(|(p, user)| expected[(user[feature] + 2) as usize] += p);
                    assert_eq!(pair[1].content, (answer.said + 1).to_string());
                }
                None => {
                    belief
                        .iter()
                        .zip(&users)
                        .for_each(|(p, user)| expected[flight_choice(user, &options)] += p);
                    said = answer.options[answer.said].clone();
                    asked = Some(options);
                }
            }
            assert_same(&episode.id, answer.predictive.as_ref().unwrap_or(&answer.probs), &expected);
        }
    }
}

#[test]
fn a_wrong_prior_by_brute_force() {
    let mut config = TeacherConfig {
        kind: Kind::WrongPrior,
        users: Some(150),
        episodes_per_user: 1,
        rounds: Some(12),
        ..TeacherConfig::new(WorldName::Flights)
    };
    config.wrong_prior.tilt = -0.7;
    config.wrong_prior.levels.insert("price".into(), vec![4.0, 2.0, 0.0, 1.0, 1.0]);
    let weight = |user: &[i64; 4]| -> f64 {
        let tilted: f64 = user[..3].iter().map(|w| (-0.7 * (w + 2) as f64).exp()).product();
        tilted * [4.0, 2.0, 0.0, 1.0, 1.0][(user[3] + 2) as usize]
    };
    let weights: Vec<f64> = flight_users().iter().map(weight).collect();
    let sum: f64 = weights.iter().sum();
    let prior: Vec<f64> = weights.iter().map(|w| w / sum).collect();
    let (summary, episodes) = run(&config, 5);
    check_flights(&episodes, &prior, &|belief| belief.to_vec());
    // Users who do not mind the price were declared impossible, and so some answers are.
    assert!(summary.ignored_answers > 0 && summary.kind == Kind::WrongPrior);
}

#[test]
fn changing_users_and_reported_beliefs_by_brute_force() {
    let users = flight_users();
    let index: HashMap<[i64; 4], usize> = users.iter().enumerate().map(|(i, user)| (*user, i)).collect();
    let hazard = 0.15;
    let to_prior =
        |belief: &[f64]| -> Vec<f64> { belief.iter().map(|p| (1.0 - hazard) * p + hazard / 624.0).collect() };
    let to_neighbour = |belief: &[f64]| -> Vec<f64> {
        let mut after = vec![0.0; 624];
        for (user, p) in users.iter().zip(belief) {
            let mut near: Vec<usize> = Vec::new();
            for f in 0..4 {
                for change in [-1, 1] {
                    let mut other = *user;
                    other[f] += change;
                    near.extend(index.get(&other));
                }
            }
            after[index[user]] += (1.0 - hazard) * p;
            near.iter().for_each(|&i| after[i] += hazard * p / near.len() as f64);
        }
        after
    };
    for (to, step) in
        [(DriftTo::Prior, &to_prior as &dyn Fn(&[f64]) -> Vec<f64>), (DriftTo::Neighbour, &to_neighbour)]
    {
        let mut config = TeacherConfig {
            users: Some(40),
            episodes_per_user: 1,
            rounds: Some(7),
            ..TeacherConfig::new(WorldName::Flights)
        };
        (config.drift.hazard, config.drift.to) = (hazard, to);
        (config.beliefs.every, config.beliefs.attributes) = (2, 3);
        let (summary, episodes) = run(&config, 6);
        check_flights(&episodes, &[1.0 / 624.0; 624], step);
        assert_eq!(summary.ignored_answers, 0);
        let beliefs = summary.beliefs.unwrap();
        assert_eq!((summary.answers, beliefs.answers), (40 * 7, 40 * 3 * 3));
        assert_eq!(beliefs.by_belief.iter().map(|b| b.answers).sum::<usize>(), beliefs.answers);
        // A teacher that does not know is surprised.
        config.drift.known = false;
        let (unaware, episodes) = run(&config, 6);
        check_flights(&episodes, &[1.0 / 624.0; 624], &|belief| belief.to_vec());
        assert!(unaware.ignored_answers > 0);
    }
}

/// Users that change from the prior to the prior are as likely anything as ever, so that a teacher who knows stays
/// calibrated, and one who does not is over-confident.
#[test]
fn knowing_that_users_change_is_being_calibrated() {
    let mut config = TeacherConfig { rounds: Some(20), ..TeacherConfig::new(WorldName::Personality) };
    config.episodes_per_user = 1;
    config.drift.hazard = 0.05;
    config.beliefs.every = 5;
    let (aware, _) = run(&config, 2);
    config.drift.known = false;
    let (unaware, _) = run(&config, 2);
    println!("aware {:.4}, unaware {:.4}, expected {:.4}", aware.ece, unaware.ece, aware.ece_expected);
    assert!(aware.ece < 2.5 * aware.ece_expected && unaware.ece > 5.0 * unaware.ece_expected);
    assert!(aware.accuracy > unaware.accuracy);
    let beliefs = aware.beliefs.unwrap();
    assert!(beliefs.ece < 2.5 * beliefs.ece_expected, "{beliefs:?}");
}

/// Carries the joint posterior over all 3,125 users through the text, with every answer's evidence kept apart.
#[test]
fn tempered_and_forgetful_teachers_of_the_questionnaire_by_joint_enumeration() {
    let items: HashMap<&str, (usize, bool)> = (ipip::ITEMS.iter().enumerate())
        .map(|(i, item)| (item.text, (i % 5, item.key == ipip::Key::Negative)))
        .collect();
    let levels: Vec<[f64; 5]> = (-2..=2).map(|level| published_item(f64::from(level))).collect();
    let likelihood = |user: usize, (trait_index, negative): (usize, bool), answer: usize| {
        let level = user / 5_usize.pow(4 - trait_index as u32) % 5;
        levels[level][if negative { 4 - answer } else { answer }]
    };
    for kind in [Kind::Tempered, Kind::Forgetful] {
        let mut config = TeacherConfig {
            kind,
            users: Some(4),
            episodes_per_user: 1,
            rounds: Some(16),
            ..TeacherConfig::new(WorldName::Personality)
        };
        (config.tempered.power, config.forgetful.discount) = (0.4, 0.8);
        config.beliefs.every = 3;
        let weight = |ago: usize| if kind == Kind::Tempered { 0.4 } else { 0.8_f64.powi(ago as i32) };
        for episode in run(&config, 7).1 {
            let mut evidence: Vec<((usize, bool), usize)> = Vec::new();
            let mut before: Option<(usize, bool)> = None;
            for pair in episode.messages.chunks(2) {
                let (ask, answer) = (&pair[0].content, pair[1].answer.as_ref().unwrap());
                if let Some(item) = before.take() {
                    evidence.push((item, told(ask, "").unwrap()));
                }
                let joint: Vec<f64> = (0..3125)
                    .map(|user| {
                        let n = evidence.len();
                        let of = |(i, (item, answer)): (usize, &((usize, bool), usize))| {
                            likelihood(user, *item, *answer).powf(weight(n - 1 - i))
                        };
                        evidence.iter().enumerate().map(of).product()
                    })
                    .collect();
                let sum: f64 = joint.iter().sum();
                let mut expected = vec![0.0; 5];
                match &answer.belief {
                    Some(name) => {
                        let t = ipip::Trait::ALL.iter().position(|t| t.name() == name).unwrap();
                        let level = |user: usize| user / 5_usize.pow(4 - t as u32) % 5;
                        joint.iter().enumerate().for_each(|(user, p)| expected[level(user)] += p / sum);
                    }
                    None => {
                        let text = ask.lines().last().unwrap().split_once(": ").unwrap().1;
                        let item = items[text];
                        for (option, expected) in expected.iter_mut().enumerate() {
                            let of = |(user, p): (usize, &f64)| p / sum * likelihood(user, item, option);
                            *expected = joint.iter().enumerate().map(of).sum();
                        }
                        before = Some(item);
                    }
                }
                assert_same(&episode.id, &answer.probs, &expected);
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------- oracles and targets

#[test]
fn oracles_say_and_predict_what_the_user_answers() {
    for world in [WorldName::Flights, WorldName::Personality] {
        let mut config = TeacherConfig {
            kind: Kind::Oracle,
            rounds: Some(10),
            users: Some(400),
            ..TeacherConfig::new(world)
        };
        config.beliefs.every = 5;
        let (oracle, episodes) = run(&config, 1);
        assert_eq!((oracle.accuracy, oracle.accuracy_expected_reward, oracle.entropy), (1.0, 1.0, 0.0));
        assert!(oracle.held_out.iter().flat_map(|h| &h.by_observations).all(|at| at.accuracy == 1.0));
        assert_eq!(oracle.beliefs.unwrap().accuracy, 1.0);
        assert!(episodes.iter().all(|e| e.messages.iter().all(|m| !m.content.contains("incorrect"))));
        for answer in episodes.iter().flat_map(answers) {
            assert_eq!(Some(answer.said), answer.truth);
            assert_eq!(answer.probs[answer.said], 1.0);
        }

        config.kind = Kind::NoisyOracle;
        let (noisy, noisy_episodes) = run(&config, 1);
        // 20,000 answers: a standard error of .0035.
        assert_near("noisy oracle", noisy.accuracy, 0.6, 0.015);
        for at in noisy.held_out.iter().flat_map(|h| &h.by_observations) {
            assert_near("noisy oracle, held out", at.accuracy, 0.6, 0.01);
        }
        // Its errors are as often this option as that one, and users answer as they would anyone.
        let mut shifts: HashMap<usize, f64> = HashMap::new();
        for (clean, noisy) in episodes.iter().flat_map(answers).zip(noisy_episodes.iter().flat_map(answers)) {
            assert_eq!((clean.truth, clean.belief.as_ref()), (noisy.truth, noisy.belief.as_ref()));
            assert_eq!(noisy.probs[noisy.said], 1.0);
            let options = noisy.options.len();
            if noisy.belief.is_none() && Some(noisy.said) != noisy.truth {
                let shift = (noisy.said + options - noisy.truth.unwrap()) % options;
                *shifts.entry(shift).or_default() += 1.0;
            }
        }
        let mean = shifts.values().sum::<f64>() / shifts.len() as f64;
        assert!(shifts.values().all(|n| (n - mean).abs() < 5.0 * mean.sqrt()), "{shifts:?}");
    }
}

/// The known defect: what a model was measured against used to be what it was trained on.
#[test]
fn other_targets_keep_the_predictive_distribution() {
    for world in [WorldName::Flights, WorldName::Personality] {
        let mut config = TeacherConfig {
            users: Some(60),
            episodes_per_user: 2,
            rounds: Some(8),
            ..TeacherConfig::new(world)
        };
        config.beliefs.every = 4;
        let (summary, plain) = run(&config, 3);
        for targets in [Targets::Argmax, Targets::Sampled] {
            config.targets = targets;
            let (same, episodes) = run(&config, 3);
            assert_eq!(same, summary);
            for (a, b) in plain.iter().flat_map(answers).zip(episodes.iter().flat_map(answers)) {
                assert!(a.predictive.is_none());
                assert_eq!(b.predictive.as_ref(), Some(&a.probs));
                assert_eq!(b.predictive(), a.predictive());
                assert_eq!((a.said, a.truth, &a.belief), (b.said, b.truth, &b.belief));
                assert_eq!(b.probs.iter().filter(|p| **p == 1.0).count(), 1);
                assert!(targets == Targets::Sampled || b.probs[argmax(&a.probs)] == 1.0);
            }
        }
    }
}

// ------------------------------------------------------------------------------------------------------ refusals

#[test]
fn settings_that_make_no_sense_are_refused() {
    let refused = |toml: &str, parts: &[&str]| {
        let config: TeacherConfig = toml::from_str(toml).unwrap();
        let error = config.validate().unwrap_err();
        assert!(error.downcast_ref::<bayesteach::error::UsageError>().is_some());
        let message = error.to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    };
    let flights = |rest: &str| format!("world = \"flights\"\n{rest}");
    let personality = |rest: &str| format!("world = \"personality\"\n{rest}");
    refused(&flights("kind = \"tempered\""), &["\"tempered\"", "never err"]);
    refused(&flights("kind = \"forgetful\""), &["\"forgetful\"", "never err"]);
    refused(&flights("evidence = \"fisher\""), &["\"fisher\"", "\"eig\""]);
    refused(&flights("candidates = 0"), &["candidates is 0", "1 to 1000000"]);
    refused(&flights("stop_entropy = -1.0"), &["stop_entropy is -1"]);
    refused(&flights("stop_entropy = nan"), &["stop_entropy is NaN"]);
    refused(&flights("stop_gain = 0.1"), &["stop_gain", "evidence = \"eig\""]);
    refused(&flights("[noisy-oracle]\nerror_rate = 1.5"), &["noisy-oracle.error_rate is 1.5"]);
    refused(&flights("[tempered]\npower = 0.0"), &["tempered.power is 0"]);
    refused(&flights("[forgetful]\ndiscount = 0.0"), &["forgetful.discount is 0"]);
    refused(&flights("[forgetful]\ndiscount = 1.1"), &["forgetful.discount is 1.1"]);
    refused(&flights("kind = \"wrong-prior\"\n[wrong-prior]\ntilt = 0.0"), &["tilt is 0", "true prior"]);
    refused(&flights("[wrong-prior]\ntilt = inf"), &["tilt is inf"]);
    refused(
        &flights("[wrong-prior.levels]\nbags = [1, 1, 1, 1, 1]"),
        &["levels.bags", "departure_time, duration"],
    );
    refused(
        &flights("[wrong-prior.levels]\nprice = [1, 1, 1]"),
        &["levels.price has 3 weights for 5 levels"],
    );
    refused(&flights("[wrong-prior.levels]\nprice = [1, 1, 1, 1, -1]"), &["levels.price", "negative"]);
    refused(
        &personality("[wrong-prior.levels]\nintellect = [0, 0, 0, 0, 0]"),
        &["leave no intellect possible"],
    );
    refused(&flights("[drift]\nhazard = 1.5"), &["drift.hazard is 1.5"]);
    refused(&flights("[beliefs]\nevery = 6"), &["beliefs.every is 6", "5 rounds"]);
    refused(&flights("[beliefs]\nevery = 1\nattributes = 5"), &["beliefs.attributes is 5", "has 4"]);
    refused(&flights("[beliefs]\nevery = 1\nattributes = 0"), &["beliefs.attributes is 0"]);
    let levels = "[beliefs]\nevery = 1\n[personality]\nlevels = [-5, -4, -3, -2, -1, 0, 1, 2, 3, 4]";
    refused(&personality(&format!("users = 9\n{levels}")), &["extraversion has 10 levels", "2 to 9"]);
    for unknown in
        ["kind = \"bayesian\"", "evidence = \"best\"", "[drift]\nto = \"far\"", "[beliefs]\nweight = 1.0"]
    {
        assert!(toml::from_str::<TeacherConfig>(&flights(unknown)).is_err(), "{unknown}");
    }
}

// ------------------------------------------------------------------------------------------------- text and commands

#[test]
fn reported_beliefs_as_text() {
    let render = |world: WorldName| {
        let mut config = TeacherConfig { rounds: Some(2), ..TeacherConfig::new(world) };
        config.beliefs.every = 1;
        let episode = simulate(&config, &config.build_world().unwrap(), 1, 417, 0, |_| {}).episode;
        episode.validate().unwrap();
        let message = |m: &episode::Message| format!("[{}]\n{}\n", m.role.as_str(), m.content);
        episode.messages[2..].iter().map(message).collect::<String>()
    };
    let flights = render(WorldName::Flights);
    println!("{flights}");
    assert_eq!(flights, FLIGHTS_TEXT);
    let personality = render(WorldName::Personality);
    println!("{personality}");
    let lines: Vec<&str> = personality.lines().collect();
    let (trait_name, rest) =
        lines[2].strip_prefix("How high do you think I am on ").unwrap().split_once(',').unwrap();
    assert!(ipip::Trait::ALL.iter().any(|t| t.name().replace('_', " ") == trait_name), "{personality}");
    assert_eq!(rest, " on a scale from 1 (very low) to 5 (very high)? Reply with the number only.");
    assert_eq!((lines[0], lines[3], lines[5]), ("[user]", "[assistant]", "[user]"));
    assert!(lines[1].starts_with("I answered ") && lines[6].starts_with("Item 2: "), "{personality}");
}

const FLIGHTS_TEXT: &str = "\
[user]
Your option Flight 2 is correct.

How do you think I feel about the price of a flight, on a scale from 1 to 5? 1 means that I strongly prefer the low end ($100), 3 that I do not mind, and 5 that I strongly prefer the high end ($1000). Reply with the number only.
[assistant]
5
[user]
Which flight is the best option?
Flight 1:
departure time: 08:24 PM, duration: 4 hr 24 min, number of stops: 1, price: $190
Flight 2:
departure time: 12:24 PM, duration: 12 hr 12 min, number of stops: 2, price: $370
Flight 3:
departure time: 02:00 PM, duration: 8 hr 18 min, number of stops: 2, price: $280
[assistant]
The best option is Flight 2.
[user]
Your option Flight 2 is incorrect. I prefer Flight 1.

How do you think I feel about the number of stops of a flight, on a scale from 1 to 5? 1 means that I strongly prefer the low end (0), 3 that I do not mind, and 5 that I strongly prefer the high end (2). Reply with the number only.
[assistant]
2
";

/// A whole run on one-hot targets with reports: models are measured against what the teacher believed, and the
/// reports apart.
#[test]
fn a_run_measures_against_the_predictive_and_reports_apart() {
    let place = common::Place::new();
    let settings = "--set teacher.targets=argmax --set teacher.beliefs.every=2 --set eval.episodes=0";
    let table = place.ok(&format!("run c.toml {settings}"));
    assert!(table.contains("reported beliefs") && table.contains("conscientiousness"), "{table}");
    let eval = place.json("runs/a/eval.json");
    // With the answers' one-hot targets these would be 0 and 1.
    assert!(eval["teacher"]["entropy"].as_f64().unwrap() > 1.0);
    assert!(eval["teacher"]["top_probability"].as_f64().unwrap() < 0.7);
    for who in ["baseline", "fine_tuned", "teacher"] {
        let measures = &eval[who];
        let count = |m: &serde_json::Value| m["answers"].as_u64().unwrap();
        // 12 episodes of 4 answers and 2 reports.
        assert_eq!((count(measures), count(&measures["beliefs"])), (48, 24));
        assert_eq!(eval["answers"].as_u64(), Some(72));
        let of: u64 = measures["beliefs"]["by_belief"].as_array().unwrap().iter().map(count).sum();
        assert_eq!(of, 24);
    }
    let metrics = std::fs::read_to_string(place.path("runs/a/metrics.jsonl")).unwrap();
    assert!(metrics.contains("validation_belief_kl"));
    // Acting alone, reporting alone.
    for (name, weights) in [("act", "--set loss.belief_weight=0"), ("report", "--set loss.action_weight=0")] {
        place.ok(&format!("train c.toml {settings} --set run.name={name} {weights}"));
    }
    let first_loss = |run: &str| {
        let log = std::fs::read_to_string(place.path(&format!("runs/{run}/metrics.jsonl"))).unwrap();
        serde_json::from_str::<serde_json::Value>(log.lines().next().unwrap()).unwrap()["loss"]
            .as_f64()
            .unwrap()
    };
    let (both, act, report) = (first_loss("a"), first_loss("act"), first_loss("report"));
    // 4 answers and 2 reports an episode.
    assert_near("loss of both", both, (4.0 * act + 2.0 * report) / 6.0, 1e-5);
    let nothing = "--set loss.action_weight=0 --set loss.belief_weight=0";
    place.fails(&format!("train c.toml --set run.name=none {nothing}"), 2, &["action_weight", "all 0"]);
    let no_reports = "--set loss.action_weight=0 --set run.name=no-reports";
    place.fails(&format!("train c.toml {no_reports}"), 1, &["nothing to train on", "belief_weight"]);
}

#[test]
fn every_kind_teaches() {
    let place = common::Place::new();
    for kind in ["bayes", "oracle", "noisy-oracle", "wrong-prior", "tempered", "forgetful"] {
        for world in ["flights", "personality"] {
            let rest = "--set teacher.evidence=eig --set teacher.candidates=20 --set teacher.beliefs.every=2 --set \
                        teacher.drift.hazard=0.1 --set teacher.stop_entropy=0.1";
            let command = format!(
                "teach c.toml --out {kind}-{world} --set teacher.kind={kind} --set teacher.world={world} {rest}"
            );
            if world == "flights" && ["tempered", "forgetful"].contains(&kind) {
                place.fails(&command, 2, &["never err"]);
                continue;
            }
            place.ok(&command);
            let summary = place.json(&format!("{kind}-{world}/teacher.json"));
            assert_eq!(summary["kind"], kind);
            assert!(summary["beliefs"]["answers"].as_u64().unwrap() > 0);
            all_episodes(&place.path(&format!("{kind}-{world}")));
        }
    }
}
