//! The teacher against what was published and against independent computations.
//!
//! The expected numbers are those of other people's simulations and of exact enumerations made outside this
//! program; the brute-force teachers below read the episodes' *text* and share no code with the library.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and says what it measured")]

#[path = "common/witness.rs"]
mod witness;

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use bayesteach::episode::{self, Episode, Role};
use bayesteach::metrics::{Calibration, argmax, entropy};
use bayesteach::rng;
use bayesteach::teacher::{
    Decision, Kind, Posterior, SplitBy, SplitConfig, TEACHER_FILE, Targets, TeacherAt, TeacherConfig,
    TeacherSummary, WorldName, expected_rewards, simulate, teach,
};
use bayesteach::world::flights::Feature;
use bayesteach::world::personality::Order;
use bayesteach::world::{World, ipip};
use witness::{
    all_episodes, assert_near, flight_choice, flight_reward, flight_users, parse_flight, published_item,
};

fn run(config: &TeacherConfig, seed: u64, dir: &Path) -> TeacherSummary {
    teach(config, &SplitConfig::default(), seed, dir, &|_, _| {}).unwrap()
}

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

// ---------------------------------------------------------------------------------------------- published curves

/// The mean over seeds of one number at each number of observations.
fn mean_curve(summaries: &[TeacherSummary], value: impl Fn(&TeacherAt) -> f64) -> Vec<f64> {
    let curves: Vec<Vec<f64>> = (summaries.iter())
        .map(|s| s.held_out.as_ref().unwrap().by_observations.iter().map(&value).collect())
        .collect();
    (0..curves[0].len()).map(|i| curves.iter().map(|c| c[i]).sum::<f64>() / curves.len() as f64).collect()
}

/// teaching.md, A.2. A set of 100 held-out option sets moves the numbers by about .01 (its own sampling error); eight seeds by a third
/// of that, and the published table averages three.
#[test]
fn flights_curve_as_published() {
    let config = TeacherConfig { episodes_per_user: 1, ..TeacherConfig::new(WorldName::Flights) };
    let summaries: Vec<TeacherSummary> = (0..8).map(|seed| run(&config, seed, temporary().path())).collect();
    let expected = [
        // most probable choice, highest expected reward, entropy
        (0.407, 0.350, 1.066),
        (0.580, 0.573, 0.864),
        (0.668, 0.662, 0.700),
        (0.732, 0.726, 0.573),
        (0.780, 0.773, 0.473),
        (0.816, 0.810, 0.392),
    ];
    let most_probable = mean_curve(&summaries, |at| at.accuracy);
    let expected_reward = mean_curve(&summaries, |at| at.accuracy_expected_reward);
    let entropies = mean_curve(&summaries, |at| at.entropy);
    println!("{most_probable:.3?}\n{expected_reward:.3?}\n{entropies:.3?}");
    for (i, (by_choice, by_reward, entropy)) in expected.into_iter().enumerate() {
        assert_near(&format!("most probable, {i} observed"), most_probable[i], by_choice, 0.015);
        assert_near(&format!("expected reward, {i} observed"), expected_reward[i], by_reward, 0.015);
        assert_near(&format!("entropy, {i} observed"), entropies[i], entropy, 0.02);
    }
    for summary in &summaries {
        assert_eq!((summary.episodes, summary.answers, summary.ignored_answers), (624, 3120, 0));
        let held_out = summary.held_out.as_ref().unwrap();
        assert_eq!(held_out.sets, 100);
        assert!(held_out.by_observations.iter().enumerate().all(|(i, at)| at.observations == i));
        assert!(held_out.by_observations.iter().all(|at| at.answers == 62_400));
        // The answer of round i has i - 1 observations.
        let observations: Vec<usize> = summary.by_observations.iter().map(|at| at.observations).collect();
        assert_eq!(observations, [0, 1, 2, 3, 4]);
    }
}

/// teaching.md, A.2: how many users are still possible after each round, what was learnt in it (bits), and how often the most
/// probable choice and the highest expected reward name the same of random options.
#[test]
fn flights_beliefs_as_published() {
    let world = TeacherConfig::new(WorldName::Flights).build_world().unwrap();
    let draws = &mut rng::stream(8, "test", 0);
    let (mut possible, mut information, mut agree) = ([0.0; 6], [0.0; 6], [0.0; 6]);
    let (repeats, sets) = (3, 10);
    let episodes = (world.users() * repeats) as f64;
    for index in 0..world.users() * repeats {
        let user = world.user(index % world.users());
        let mut posterior = Posterior::prior(world.factors());
        let mut before = posterior.entropy();
        for round in 0..=5 {
            let marginal = posterior.marginal(0);
            possible[round] += marginal.iter().filter(|p| **p > 0.0).count() as f64 / episodes;
            information[round] += (before - posterior.entropy()) / std::f64::consts::LN_2 / episodes;
            before = posterior.entropy();
            for question in world.option_sets(1, sets, draws) {
                let predictive = posterior.predictive(&question);
                let rewards = expected_rewards(&posterior, &question, &predictive);
                // Equal up to rounding is equal: the lowest index counts.
                let rounded: Vec<f64> = rewards.iter().map(|r| (r * 1e9).round()).collect();
                let same = argmax(&rounded) == argmax(&predictive);
                agree[round] += f64::from(u8::from(same)) / (episodes * sets as f64);
            }
            let question = world.option_sets(1, 1, draws).remove(0);
            let answer = world.answer(&user, &question, draws);
            posterior.observe(&question, answer);
        }
    }
    println!("{possible:.1?}\n{information:.3?}\n{agree:.3?}");
    let published = [
        (624.0, 0.0, 0.38),
        (219.0, 1.54, 0.90),
        (104.0, 1.23, 0.93),
        (58.0, 1.00, 0.94),
        (36.0, 0.82, 0.95),
        (24.0, 0.70, 0.95),
    ];
    for (round, (count, bits, share)) in published.into_iter().enumerate() {
        // 1,872 episodes: the standard error of the counts is about 2, of the bits about .01.
        assert_near(&format!("possible after {round}"), possible[round], count, 6.0);
        assert_near(&format!("bits of round {round}"), information[round], bits, 0.04);
        // At the start the rules depend on the option set alone, of which the source has 300: a standard error of .028.
        let within = if round == 0 { 0.06 } else { 0.015 };
        assert_near(&format!("the rules agree after {round}"), agree[round], share, within);
    }
}

/// teaching.md, A.2: after 10, 20 and 30 rounds about .92, .98 and .985. The last two are off, and a plain simulation in
/// Python of this very process (24 draws of 100 option sets × 50 users) gives .904, .977 and .995, another one .906, .976
/// and .994, which is what is held to.
#[test]
fn flights_curve_of_thirty_rounds() {
    let config = TeacherConfig {
        episodes_per_user: 1,
        rounds: Some(30),
        users: Some(100),
        ..TeacherConfig::new(WorldName::Flights)
    };
    let summaries: Vec<TeacherSummary> = (0..8).map(|seed| run(&config, seed, temporary().path())).collect();
    let curve = mean_curve(&summaries, |at| at.accuracy_expected_reward);
    println!("{:.4} {:.4} {:.4}", curve[10], curve[20], curve[30]);
    for (rounds, expected, tolerance) in [(10, 0.906, 0.015), (20, 0.976, 0.008), (30, 0.994, 0.004)] {
        assert_near(&format!("after {rounds} rounds"), curve[rounds], expected, tolerance);
    }
}

/// teaching.md, A.1: 5^k − 1 users of k features, for two to eight of them.
#[test]
fn users_of_so_many_features() {
    let all = [
        Feature::DepartureTime,
        Feature::Duration,
        Feature::NumberOfStops,
        Feature::Price,
        Feature::ArrivalTime,
        Feature::LayoverDuration,
        Feature::Flexibility,
        Feature::Bags,
    ];
    for (features, users) in [(2, 24), (3, 124), (4, 624), (5, 3_124), (6, 15_624), (7, 78_124), (8, 390_624)]
    {
        let mut config = TeacherConfig::new(WorldName::Flights);
        config.flights.features = all[..features].to_vec();
        let world = config.build_world().unwrap();
        assert_eq!((world.users(), world.factors()[0].prior.len()), (users, users));
    }
}

/// teaching.md, A.2, highest expected reward. Two and three features: the reference simulations. Five: a plain simulation in Python,
/// 20 draws of 100 option sets × 60 users, because the reference's .64 after 2 observations is one draw's luck.
#[test]
fn flights_curves_with_fewer_and_more_features() {
    use Feature::{Bags, DepartureTime, Duration, NumberOfStops, Price};
    let (two, three) = (vec![Duration, Price], vec![Price, DepartureTime, Duration]);
    let five = vec![Price, DepartureTime, Bags, NumberOfStops, Duration];
    let cases = [
        (two, 25, None, [0.365, 0.73, 0.826, 0.883, 0.91, 0.93]),
        (three, 5, None, [0.36, 0.62, 0.72, 0.79, 0.83, 0.86]),
        (five, 1, Some(150), [0.346, 0.538, 0.621, 0.679, 0.722, 0.761]),
    ];
    for (features, episodes_per_user, users, expected) in cases {
        let mut config = TeacherConfig { episodes_per_user, users, ..TeacherConfig::new(WorldName::Flights) };
        config.flights.features = features.clone();
        let summaries: Vec<TeacherSummary> =
            (0..8).map(|seed| run(&config, seed, temporary().path())).collect();
        let curve = mean_curve(&summaries, |at| at.accuracy_expected_reward);
        println!("{} features: {curve:.3?}", features.len());
        for (i, expected) in expected.into_iter().enumerate() {
            assert_near(&format!("{} features, {i} observed", features.len()), curve[i], expected, 0.02);
        }
    }
}

const PER_QUESTION: [(f64, f64); 10] = [
    (0.289, 1.546),
    (0.520, 1.231),
    (0.542, 1.151),
    (0.557, 1.112),
    (0.565, 1.089),
    (0.570, 1.073),
    (0.575, 1.062),
    (0.578, 1.053),
    (0.581, 1.045),
    (0.583, 1.039),
];

/// teaching.md, B.4, items (1). Goes through every possible count of earlier answers on a trait, with its exact probability.
#[test]
fn personality_curve_by_exact_enumeration() {
    let world = World::personality(&Default::default()).unwrap();
    let questions = world.questions(50, &mut rng::stream(1, "test", 0));
    let positive = ipip::ITEMS.iter().find(|item| item.key == ipip::Key::Positive).unwrap();
    let question = questions.iter().find(|q| q.text.ends_with(positive.text)).unwrap();

    let mut means = (0.0, 0.0);
    for (n, (accuracy, entropy_expected)) in PER_QUESTION.into_iter().enumerate() {
        let (mut correct, mut entropy_sum, mut total) = (0.0, 0.0, 0.0);
        for counts in counts_of(n) {
            let mut posterior = Posterior::prior(world.factors());
            for (answer, &count) in counts.iter().enumerate() {
                for _ in 0..count {
                    posterior.observe(question, answer);
                }
            }
            assert_eq!(posterior.observations(question.factor), n);
            let mut orders = factorial(n);
            counts.iter().for_each(|&count| orders /= factorial(count));
            let of_level = |level: f64| -> f64 {
                let probs = published_item(level);
                0.2 * counts.iter().zip(probs).map(|(&c, p)| p.powi(c as i32)).product::<f64>()
            };
            let probability = orders * (-2..=2).map(|level| of_level(f64::from(level))).sum::<f64>();
            let predictive = posterior.predictive(question);
            total += probability;
            correct += probability * predictive[argmax(&predictive)];
            entropy_sum += probability * entropy(&predictive);
        }
        assert_near("probabilities of all counts", total, 1.0, 1e-9);
        assert_near(&format!("accuracy after {n}"), correct, accuracy, 0.0006);
        assert_near(&format!("entropy after {n}"), entropy_sum, entropy_expected, 0.0006);
        means = (means.0 + correct / 10.0, means.1 + entropy_sum / 10.0);
    }
    println!("exact: accuracy {:.4}, entropy {:.4}", means.0, means.1);
    assert_near("mean accuracy", means.0, 0.536, 0.0006);
    assert_near("mean entropy", means.1, 1.140, 0.0006);
}

/// teaching.md, B.4: what can be known of a trait after n of its items, from every possible count of answers with its exact
/// probability; for items (1) without and (2) with a lapse. Of the correlation after 10 items (1), where the reference has
/// .983, an enumeration in Python gives .982.
#[test]
fn personality_ceilings_by_exact_enumeration() {
    /// Of the items with and without the lapse: slope, thresholds, lapse.
    const ITEMS: [(f64, [f64; 4], f64); 2] =
        [(1.955, [-1.084, -0.361, 0.361, 1.084], 0.0), (2.806, [-1.5, -0.5, 0.5, 1.5], 0.084)];
    let of = |(slope, thresholds, lapse): (f64, [f64; 4], f64)| -> Vec<Ceiling> {
        let mut config = TeacherConfig::new(WorldName::Personality);
        (config.personality.slope, config.personality.thresholds, config.personality.lapse) =
            (slope, thresholds, lapse);
        let world = config.build_world().unwrap();
        let questions = world.questions(50, &mut rng::stream(1, "test", 0));
        let positive = ipip::ITEMS.iter().find(|item| item.key == ipip::Key::Positive).unwrap();
        let question = questions.iter().find(|q| q.text.ends_with(positive.text)).unwrap();
        // The probabilities of an answer at each level, written out once more.
        let row = |level: f64| -> [f64; 5] {
            let reached = thresholds.map(|t| 1.0 / (1.0 + (-slope * (level - t)).exp()));
            let [a, b, c, d] = reached;
            [1.0 - a, a - b, b - c, c - d, d].map(|p| (1.0 - lapse) * p + lapse / 5.0)
        };
        (0..=10).map(|n| ceiling(&world, question, n, &row)).collect()
    };
    let (plain, lapsing) = (of(ITEMS[0]), of(ITEMS[1]));
    let most_probable = [0.200, 0.538, 0.636, 0.685, 0.749, 0.793, 0.821, 0.850, 0.873, 0.890, 0.906];
    let entropies = [1.609, 1.066, 0.838, 0.690, 0.582, 0.496, 0.425, 0.367, 0.317, 0.275, 0.238];
    for (n, at) in plain.iter().enumerate() {
        assert_near(&format!("most probable level after {n}"), at.most_probable, most_probable[n], 0.0006);
        assert_near(&format!("entropy of the posterior after {n}"), at.entropy, entropies[n], 0.0006);
    }
    for (what, found, expected, digits) in [
        ("(1) after 1", plain[1].correlation, 0.84, 0.006),
        ("(1) after 3", plain[3].correlation, 0.94, 0.006),
        ("(1) after 10", plain[10].correlation, 0.982, 0.0006),
        ("(2) after 10", lapsing[10].correlation, 0.993, 0.0006),
    ] {
        assert_near(&format!("correlation {what}"), found, expected, digits);
    }
    for (i, expected) in [0.137, 0.188, 0.29].into_iter().enumerate() {
        let mean = plain[..10].iter().map(|at| at.near_ties[i]).sum::<f64>() / 10.0;
        assert_near(&format!("near-ties {i}"), mean, expected, if i == 2 { 0.006 } else { 0.0006 });
    }
}

/// teaching.md, B.4: what knows nothing but the most frequent answer, or repeats the last one of the trait, from closed
/// forms; and that every first item of a trait is a tie.
#[test]
fn personality_baselines() {
    let world = World::personality(&Default::default()).unwrap();
    let questions = world.questions(50, &mut rng::stream(1, "test", 0));
    let prior = Posterior::prior(world.factors());
    let mut ties = 0;
    for question in &questions {
        let mut predictive = prior.predictive(question);
        assert_near("the most frequent answer", predictive.iter().copied().fold(0.0, f64::max), 0.288, 0.001);
        predictive.sort_by(f64::total_cmp);
        ties += usize::from((predictive[4] - predictive[3]).abs() < 1e-12);
    }
    let squares = |level: usize| -> f64 {
        (0..5).map(|answer| (2.0 * questions[0].likelihood.log_prob(level, answer)).exp()).sum()
    };
    let repeated = (0..5).map(squares).sum::<f64>() / 5.0;
    println!("repeating the last answer: {repeated:.4}");
    assert!(repeated < 0.52 && repeated > 0.45, "{repeated}");
    // Every question as the first of its trait.
    assert_eq!(ties, 50);
}

/// What the exact teacher knows after a number of items of one trait.
struct Ceiling {
    most_probable: f64,
    entropy: f64,
    /// Of the posterior mean with the true level.
    correlation: f64,
    /// How often the two most probable answers are less than .02, .05 and .10 apart.
    near_ties: [f64; 3],
}

fn ceiling(
    world: &World,
    question: &bayesteach::world::Question,
    n: usize,
    row: &dyn Fn(f64) -> [f64; 5],
) -> Ceiling {
    let levels = [-2.0, -1.0, 0.0, 1.0, 2.0];
    let (mut most_probable, mut entropy_sum, mut near_ties) = (0.0, 0.0, [0.0; 3]);
    let (mut squares, mut products) = (0.0, 0.0);
    for counts in counts_of(n) {
        let mut posterior = Posterior::prior(world.factors());
        for (answer, &count) in counts.iter().enumerate() {
            for _ in 0..count {
                posterior.observe(question, answer);
            }
        }
        let mut orders = factorial(n);
        counts.iter().for_each(|&count| orders /= factorial(count));
        let joint = levels.map(|level| {
            let probs = row(level);
            0.2 * orders * counts.iter().zip(probs).map(|(&c, p)| p.powi(c as i32)).product::<f64>()
        });
        let probability: f64 = joint.iter().sum();
        let believed = posterior.marginal(question.factor);
        let mean: f64 = believed.iter().zip(levels).map(|(p, level)| p * level).sum();
        most_probable += joint[argmax(believed)];
        entropy_sum += probability * entropy(believed);
        squares += probability * mean * mean;
        products += mean * joint.iter().zip(levels).map(|(p, level)| p * level).sum::<f64>();
        let mut predictive = posterior.predictive(question);
        predictive.sort_by(|a, b| b.total_cmp(a));
        for (sum, margin) in near_ties.iter_mut().zip([0.02, 0.05, 0.10]) {
            *sum += if predictive[0] - predictive[1] < margin { probability } else { 0.0 };
        }
    }
    // The levels have a variance of 2, and both means are 0.
    let correlation = products / (2.0 * squares).sqrt();
    Ceiling { most_probable, entropy: entropy_sum, correlation, near_ties }
}

fn factorial(n: usize) -> f64 {
    (1..=n).map(|i| i as f64).product()
}

/// All ways to give `n` answers out of 5 categories.
fn counts_of(n: usize) -> Vec<[usize; 5]> {
    let mut all = Vec::new();
    for a in 0..=n {
        for b in 0..=n - a {
            for c in 0..=n - a - b {
                for d in 0..=n - a - b - c {
                    all.push([a, b, c, d, n - a - b - c - d]);
                }
            }
        }
    }
    all
}

/// teaching.md, B.1 and B.4: the published setting as a whole, 3,125 users × 5 traces of 50 items.
#[test]
fn personality_as_published() {
    let dir = temporary();
    let started = Instant::now();
    let summary = run(&TeacherConfig::new(WorldName::Personality), 11, dir.path());
    println!("{:.1?}: {summary:?}", started.elapsed());
    assert_eq!((summary.episodes, summary.answers), (15_625, 781_250));
    // 781,250 answers: a standard error of .0006 in accuracy and about .001 nats.
    assert_near("accuracy", summary.accuracy, 0.536, 0.003);
    assert_near("entropy", summary.entropy, 1.140, 0.005);
    for (at, (accuracy, entropy)) in summary.by_observations.iter().zip(PER_QUESTION) {
        assert_eq!(at.answers, 78_125);
        assert_near(&format!("accuracy after {}", at.observations), at.accuracy, accuracy, 0.0075);
        assert_near(&format!("entropy after {}", at.observations), at.entropy, entropy, 0.008);
    }
    assert_near("ece", summary.ece, summary.ece_expected, 0.8 * summary.ece_expected);
    assert!(summary.held_out.is_none());

    let split = &summary.split;
    assert_eq!((split.train, split.validation, split.test, split.shared_users), (11_250, 1_250, 3_125, 0));
    let mut part_of_user: HashMap<String, usize> = HashMap::new();
    for (part, (file, count)) in
        [("train.jsonl", 11_250), ("validation.jsonl", 1_250), ("test.jsonl", 3_125)].into_iter().enumerate()
    {
        let mut lines = 0;
        episode::for_each_line(&dir.path().join(file), |line| {
            let (_, rest) = line.split_once("\"user\":\"").unwrap();
            let (user, _) = rest.split_once('"').unwrap();
            assert_eq!(*part_of_user.entry(user.to_owned()).or_insert(part), part, "user {user} leaks");
            lines += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(lines, count, "{file}");
    }
    assert_eq!(part_of_user.len(), 3_125);
}

#[test]
fn the_teacher_is_calibrated() {
    for world_name in [WorldName::Flights, WorldName::Hotels, WorldName::Personality] {
        let config = TeacherConfig::new(world_name.clone());
        let world = config.build_world().unwrap();
        let mut calibration = Calibration::default();
        for user in 0..world.users() {
            for answer in simulate(&config, &world, 4, user, 0, |_| {}).answers {
                calibration.add(answer.top_probability, answer.correct);
            }
        }
        let (ece, expected) = (calibration.ece().unwrap(), calibration.expected().unwrap());
        println!("{world_name:?}: ece {ece:.5}, expected {expected:?}");
        assert_near("ece", ece, expected.mean, 4.0 * expected.standard_deviation);
    }
}

/// Talts et al. (2018): where users are drawn from the prior, the true hypothesis has a uniform rank in the posterior after
/// an episode (randomised here, since hypotheses are discrete). A tempered teacher fails the same test.
#[test]
fn posteriors_rank_the_truth_evenly() {
    const BINS: usize = 20;
    let chi_square = |config: &TeacherConfig| {
        let world = config.build_world().unwrap();
        let draws = &mut rng::stream(6, "ranks", 0);
        let mut counts = [0.0; BINS];
        for episode in 0..2000 {
            let user = draws.below(world.users());
            let truth = world.user(user);
            let mut after = Posterior::prior(world.factors());
            simulate(config, &world, 7, user, episode, |posterior| after = posterior.clone());
            let factor = draws.below(truth.len());
            let marginal = after.marginal(factor);
            let below: f64 = marginal[..truth[factor]].iter().sum();
            let rank = below + draws.uniform() * marginal[truth[factor]];
            counts[((rank * BINS as f64) as usize).min(BINS - 1)] += 1.0;
        }
        let expected = 2000.0 / BINS as f64;
        counts.iter().map(|c: &f64| (c - expected).powi(2) / expected).sum::<f64>()
    };
    let worlds = [WorldName::Flights, WorldName::Hotels, WorldName::Personality, WorldName::TraitFlights];
    for world in worlds {
        let found = chi_square(&TeacherConfig::new(world.clone()));
        println!("{world:?}: chi-square of 19 degrees of freedom {found:.1}");
        // The .999 quantile is 43.8.
        assert!(found < 43.8, "{world:?}: {found}");
    }
    let mut tempered = TeacherConfig { kind: Kind::Tempered, ..TeacherConfig::new(WorldName::Personality) };
    tempered.tempered.power = 3.0;
    let found = chi_square(&tempered);
    println!("tempered: {found:.1}");
    assert!(found > 43.8, "{found}");
}

// ------------------------------------------------------------------------------------- brute force from the text

/// Reads options and feedback as text, keeps the users that would have chosen likewise, and counts their choices.
#[test]
fn flights_by_brute_force() {
    for decision in [Decision::MostProbable, Decision::ExpectedReward] {
        let dir = temporary();
        let config = TeacherConfig {
            users: Some(60),
            episodes_per_user: 1,
            decision,
            rounds: Some(8),
            ..TeacherConfig::new(WorldName::Flights)
        };
        run(&config, 2, dir.path());
        for episode in all_episodes(dir.path()) {
            check_flights_episode(&episode, decision);
        }
    }
}

fn check_flights_episode(episode: &Episode, decision: Decision) {
    let mut users = flight_users();
    let mut options_before: Vec<[i64; 4]> = Vec::new();
    let mut said_before = String::new();
    for (round, pair) in episode.messages.chunks(2).enumerate() {
        let (ask, reply) = (&pair[0].content, &pair[1].content);
        assert_eq!((pair[0].role, pair[1].role), (Role::User, Role::Assistant));
        if round > 0 {
            let feedback = ask.lines().next().unwrap();
            let chosen = if feedback.ends_with("is correct.") {
                assert_eq!(feedback, format!("Your option Flight {said_before} is correct."));
                said_before.parse::<usize>().unwrap() - 1
            } else {
                let (_, preferred) = feedback.split_once("I prefer Flight ").unwrap();
                preferred.trim_end_matches('.').parse::<usize>().unwrap() - 1
            };
            users.retain(|user| flight_choice(user, &options_before) == chosen);
        }
        let options: Vec<[i64; 4]> =
            ask.lines().filter(|line| line.starts_with("departure time: ")).map(parse_flight).collect();
        assert_eq!(options.len(), 3);
        let mut probs = [0.0; 3];
        users.iter().for_each(|user| probs[flight_choice(user, &options)] += 1.0 / users.len() as f64);
        let answer = pair[1].answer.as_ref().unwrap();
        for (ours, p) in answer.probs.iter().zip(probs) {
            assert_near(&format!("{} round {round}", episode.id), *ours, p, 1e-9);
        }
        assert_eq!(answer.observations, Some(round));
        let scores: Vec<f64> = match decision {
            Decision::MostProbable => probs.to_vec(),
            Decision::ExpectedReward => {
                let sum = |o: &[i64; 4]| users.iter().map(|u| flight_reward(u, o)).sum::<i64>() as f64;
                options.iter().map(|o| sum(o) / users.len() as f64 / 20.0).collect()
            }
        };
        let best = scores.iter().copied().fold(f64::MIN, f64::max);
        assert_eq!(answer.said, scores.iter().position(|s| best - s < 1e-9).unwrap());
        said_before = answer.options[answer.said].clone();
        assert_eq!(reply, &format!("The best option is Flight {said_before}."));
        options_before = options;
    }
    // The user is still among those that remain, and is the user that the episode names.
    let index: usize = episode.user.parse().unwrap();
    let code = index as i64 + i64::from(index >= 312);
    let user = [code / 125 - 2, code / 25 % 5 - 2, code / 5 % 5 - 2, code % 5 - 2];
    assert!(users.contains(&user));
}

/// Carries the joint posterior over all 3,125 users through the text of whole episodes.
#[test]
fn personality_by_joint_enumeration() {
    let items: HashMap<&str, (usize, bool)> = (ipip::ITEMS.iter().enumerate())
        .map(|(i, item)| (item.text, (i % 5, item.key == ipip::Key::Negative)))
        .collect();
    let levels: Vec<[f64; 5]> = (-2..=2).map(|level| published_item(f64::from(level))).collect();
    for order in [Order::Shuffled, Order::Interleaved, Order::Blocked] {
        let dir = temporary();
        let mut config = TeacherConfig {
            users: Some(5),
            episodes_per_user: 1,
            rounds: Some(if order == Order::Shuffled { 50 } else { 23 }),
            ..TeacherConfig::new(WorldName::Personality)
        };
        config.personality.order = order;
        run(&config, 8, dir.path());
        for episode in all_episodes(dir.path()) {
            let mut joint = vec![1.0 / 3125.0; 3125];
            let mut asked = [0; 5];
            let mut before: Option<(usize, bool)> = None;
            for (round, pair) in episode.messages.chunks(2).enumerate() {
                let ask = &pair[0].content;
                let likelihood = |user: usize, (trait_index, negative): (usize, bool), answer: usize| {
                    let level = user / 5_usize.pow(4 - trait_index as u32) % 5;
                    levels[level][if negative { 4 - answer } else { answer }]
                };
                if let Some(item) = before {
                    let told = ask.strip_prefix("I answered ").unwrap().split_once(".\n").unwrap().0;
                    let told = told.parse::<usize>().unwrap() - 1;
                    joint.iter_mut().enumerate().for_each(|(user, p)| *p *= likelihood(user, item, told));
                    let sum: f64 = joint.iter().sum();
                    joint.iter_mut().for_each(|p| *p /= sum);
                }
                let (_, text) = ask.split_once(&format!("Item {}: ", round + 1)).unwrap();
                let item = items[text];
                let answer = pair[1].answer.as_ref().unwrap();
                for (option, ours) in answer.probs.iter().enumerate() {
                    let p: f64 = joint.iter().enumerate().map(|(u, p)| p * likelihood(u, item, option)).sum();
                    assert_near(&format!("{} item {}", episode.id, round + 1), *ours, p, 1e-9);
                }
                assert_eq!(answer.observations, Some(asked[item.0]));
                assert_eq!(pair[1].content, (answer.said + 1).to_string());
                asked[item.0] += 1;
                before = Some(item);
            }
        }
    }
}

// ------------------------------------------------------------------------------------------------- files and text

fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = (std::fs::read_dir(dir).unwrap())
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn threads_change_nothing_and_the_seed_everything() {
    for world in [WorldName::Flights, WorldName::Hotels, WorldName::Personality] {
        let config = TeacherConfig {
            users: Some(400),
            episodes_per_user: 2,
            rounds: Some(6),
            ..TeacherConfig::new(world.clone())
        };
        let with = |threads: usize, seed: u64| {
            let dir = temporary();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| run(&config, seed, dir.path()));
            contents(dir.path())
        };
        let one = with(1, 3);
        let names: Vec<&str> = one.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, [TEACHER_FILE, "test.jsonl", "train.jsonl", "validation.jsonl"]);
        assert!(one == with(2, 3), "{world:?}: files differ between 1 and 2 threads");
        assert!(one != with(2, 4));
    }
}

#[test]
fn targets_and_splits_on_request() {
    let read = |targets| {
        let dir = temporary();
        let config = TeacherConfig {
            users: Some(100),
            episodes_per_user: 2,
            rounds: Some(10),
            targets,
            ..TeacherConfig::new(WorldName::Personality)
        };
        let split = SplitConfig { by: SplitBy::Episode, ..SplitConfig::default() };
        let summary = teach(&config, &split, 5, dir.path(), &|_, _| {}).unwrap();
        assert_eq!((summary.split.train, summary.split.validation, summary.split.test), (144, 16, 40));
        assert!(summary.split.shared_users > 0);
        (all_episodes(dir.path()), summary)
    };
    let (predictive, summary) = read(Targets::Predictive);
    let (argmax_targets, summary_of_argmax) = read(Targets::Argmax);
    let (sampled, _) = read(Targets::Sampled);
    // The teacher is measured by what it believes, whatever it gives as targets.
    assert_eq!(summary, summary_of_argmax);
    let mut hits = 0.0;
    let mut expected_hits = 0.0;
    for ((p, a), s) in predictive.iter().zip(&argmax_targets).zip(&sampled) {
        for (((p, _), (a, _)), (s, _)) in p.answers().zip(a.answers()).zip(s.answers()) {
            assert_eq!((p.said, p.truth), (a.said, a.truth));
            assert_eq!(a.probs[argmax(&p.probs)], 1.0);
            assert!(a.probs.iter().chain(&s.probs).all(|p| *p == 0.0 || *p == 1.0));
            hits += s.probs[0];
            expected_hits += p.probs[0];
        }
    }
    // About 2,000 draws of probability .2 to .3: a standard error of about 20.
    assert!(f64::abs(hits - expected_hits) < 80.0, "{hits} sampled, {expected_hits} expected");
}

#[test]
fn errors_leave_nothing_half_written() {
    let config = TeacherConfig { users: Some(10), rounds: Some(2), ..TeacherConfig::new(WorldName::Flights) };
    let split = SplitConfig::default();
    let dir = temporary();
    let file = dir.path().join("file");
    std::fs::write(&file, "in the way").unwrap();
    let error = teach(&config, &split, 0, &file, &|_, _| {}).unwrap_err();
    assert!(format!("{error:#}").contains("cannot create"), "{error:#}");

    // A folder stands where teacher.json must go.
    let out = dir.path().join("out");
    std::fs::create_dir_all(out.join(TEACHER_FILE)).unwrap();
    std::fs::write(out.join(".teach-killed.tmp"), "of a run that was killed").unwrap();
    let error = teach(&config, &split, 0, &out, &|_, _| {}).unwrap_err();
    assert!(format!("{error:#}").contains("teacher.json"), "{error:#}");
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 1);

    let bad = SplitConfig { train: 0.5, ..split.clone() };
    let error = teach(&config, &bad, 0, &dir.path().join("never"), &|_, _| {}).unwrap_err();
    assert!(error.downcast_ref::<bayesteach::error::UsageError>().is_some());
    assert!(!dir.path().join("never").exists());
}

#[test]
fn a_users_first_episodes_do_not_depend_on_how_many_follow() {
    let config = TeacherConfig { rounds: Some(3), ..TeacherConfig::new(WorldName::Personality) };
    let more = TeacherConfig { episodes_per_user: 9, ..config.clone() };
    let world = config.build_world().unwrap();
    let one = |config| simulate(config, &world, 6, 77, 1, |_| {}).episode;
    assert_eq!(one(&config), one(&more));
    assert_ne!(one(&config).messages, simulate(&config, &world, 6, 77, 2, |_| {}).episode.messages);
}

fn rendered(world: WorldName, user: usize) -> String {
    let config = TeacherConfig { rounds: Some(3), ..TeacherConfig::new(world) };
    let episode = simulate(&config, &config.build_world().unwrap(), 1, user, 0, |_| {}).episode;
    episode.validate().unwrap();
    let messages: Vec<String> =
        episode.messages.iter().map(|m| format!("[{}]\n{}\n", m.role.as_str(), m.content)).collect();
    format!("{}\n{}", episode.id, messages.concat())
}

#[test]
fn flights_as_text() {
    assert_eq!(rendered(WorldName::Flights, 417), FLIGHTS_TEXT);
}

/// User 417 likes late, short, many stops and a high price, each by a half. In tenths that makes 2, 19 and 11 of the
/// first three options, and 13, 11 and 13 of the next: the lower index of the two equals is preferred.
const FLIGHTS_TEXT: &str = "\
flights-000417-0
[user]
Help me select the best flights for my trips. I have specific preferences for what I like and dislike in a flight, and these preferences remain the same. You need to figure out my preferences and select the best flights for me. Use your best judgment if you are unsure. Do not say you need more information.

Which flight is the best option?
Flight 1:
departure time: 07:36 AM, duration: 16 hr 6 min, number of stops: 1, price: $460
Flight 2:
departure time: 10:48 AM, duration: 8 hr 18 min, number of stops: 2, price: $1000
Flight 3:
departure time: 10:48 AM, duration: 12 hr 12 min, number of stops: 2, price: $460
[assistant]
The best option is Flight 2.
[user]
Your option Flight 2 is correct.

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

Which flight is the best option?
Flight 1:
departure time: 10:00 PM, duration: 6 hr 21 min, number of stops: 1, price: $280
Flight 2:
departure time: 02:00 PM, duration: 18 hr 3 min, number of stops: 0, price: $730
Flight 3:
departure time: 12:24 PM, duration: 30 min, number of stops: 1, price: $280
[assistant]
The best option is Flight 1.
";

#[test]
fn personality_as_text() {
    assert_eq!(rendered(WorldName::Personality, 3000), PERSONALITY_TEXT);
}

/// User 3000 is as outgoing and warm, and as careless, easily upset and closed to ideas as can be.
const PERSONALITY_TEXT: &str = "\
personality-003000-0
[user]
Predict how I rate statements about myself, from 1 (very inaccurate) to 5 (very accurate). Reply with the number only.
Item 1: I am full of ideas.
[assistant]
1
[user]
I answered 1.
Item 2: I don't mind being the center of attention.
[assistant]
1
[user]
I answered 5.
Item 3: I seldom feel blue.
[assistant]
1
";
