//! Rival teachers, chosen evidence, changing users and reported beliefs in every world: against brute force, and
//! refused where they have no meaning.
//!
//! The brute-force teachers enumerate users with code of their own; of the library they use the random numbers alone.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "common/witness.rs"]
mod witness;

use std::path::Path;

use bayesteach::episode::{Answer, Episode};
use bayesteach::rng;
use bayesteach::teacher::{DriftTo, Evidence, Kind, SplitConfig, TeacherConfig, WorldName, simulate, teach};
use bayesteach::world::choice::{ChoiceRule, SupposedRule};
use witness::{assert_same, flight_users, parse_flight};

fn episode(config: &TeacherConfig, seed: u64, user: usize) -> Episode {
    config.validate().unwrap();
    let world = config.build_world().unwrap();
    let simulation = simulate(config, &world, seed, user, 0, |_| {});
    simulation.episode.validate().unwrap();
    simulation.episode
}

/// What the user says before each answer, with the answer.
fn turns(episode: &Episode) -> Vec<(&str, &Answer)> {
    let pairs = episode.messages.chunks(2);
    pairs.map(|pair| (pair[0].content.as_str(), pair[1].answer.as_ref().unwrap())).collect()
}

/// Σ_x P(x) Σ_u P(u | x) ln(P(u | x) / P(u)): how far an answer is expected to move the posterior.
fn expected_gain(posterior: &[f64], likelihood: &[Vec<f64>]) -> f64 {
    let mut gain = 0.0;
    for answer in 0..likelihood[0].len() {
        let joint: Vec<f64> = posterior.iter().zip(likelihood).map(|(p, row)| p * row[answer]).collect();
        let marginal: f64 = joint.iter().sum();
        for (j, p) in joint.iter().zip(posterior) {
            if *j > 0.0 {
                gain += j * (j / marginal / p).ln();
            }
        }
    }
    gain
}

fn predict(posterior: &[f64], likelihood: &[Vec<f64>]) -> Vec<f64> {
    let options = likelihood[0].len();
    (0..options).map(|x| posterior.iter().zip(likelihood).map(|(p, row)| p * row[x]).sum()).collect()
}

/// Multiplies by a power of the likelihood of an answer.
fn update(posterior: &mut [f64], likelihood: &[Vec<f64>], answer: usize, power: f64) {
    posterior.iter_mut().zip(likelihood).for_each(|(p, row)| *p *= row[answer].powf(power));
    let sum: f64 = posterior.iter().sum();
    posterior.iter_mut().for_each(|p| *p /= sum);
}

/// The first of the highest, where what rounds to the same billionth is equal.
fn first_highest(values: &[f64]) -> usize {
    let rounded = |v: &f64| (v * 1e9).round();
    let highest = values.iter().map(rounded).fold(f64::NEG_INFINITY, f64::max);
    values.iter().position(|v| rounded(v) == highest).unwrap()
}

// ------------------------------------------------------------------------------------------------------------- hotels

/// Who takes the option of highest weighted sum (features in fortieths, exactly), or any with the probability `lapse`.
fn choices(users: &[[i64; 4]], options: &[[i64; 4]], lapse: f64) -> Vec<Vec<f64>> {
    let of_user = |user: &[i64; 4]| {
        let rewards: Vec<i64> =
            options.iter().map(|o| o.iter().zip(user).map(|(x, w)| x * w).sum()).collect();
        let best = rewards.iter().position(|r| r == rewards.iter().max().unwrap()).unwrap();
        let other = lapse / options.len() as f64;
        (0..options.len()).map(|i| if i == best { 1.0 - lapse + other } else { other }).collect()
    };
    users.iter().map(of_user).collect()
}

/// Levels of distance, price, rating and amenities.
const HOTEL_LEVELS: [usize; 4] = [11, 11, 5, 5];

fn hotel_text(levels: &[usize; 4]) -> String {
    let amenities = [
        "none",
        "free parking",
        "free parking and free breakfast",
        "free parking, free breakfast, and pool",
        "free parking, free breakfast, pool, and fitness center",
    ];
    format!(
        "distance to downtown: {} miles, price: ${}, rating: {} stars, amenities: {}",
        levels[0],
        100 + 90 * levels[1],
        levels[2] + 1,
        amenities[levels[3]]
    )
}

/// The sets that are asked are the best of as many drawn ones by a full enumeration, for users who never err and for
/// users who do.
#[test]
fn chosen_hotels_by_brute_force() {
    let users = flight_users();
    for lapse in [0.0, 0.25] {
        let mut config = TeacherConfig::new(WorldName::Hotels);
        config.evidence = Evidence::Eig;
        config.candidates = 12;
        config.hotels.choice = ChoiceRule::Lapse(lapse);
        for user in [3, 200, 611] {
            let episode = episode(&config, 7, user);
            let mut draws = rng::stream(7, "teacher.questions", (user as u64) << 32);
            let mut posterior = vec![1.0 / 624.0; 624];
            for (text, answer) in turns(&episode) {
                let mut sets = Vec::new();
                for _ in 0..12 {
                    sets.push([(); 3].map(|()| HOTEL_LEVELS.map(|levels| draws.below(levels))));
                }
                let likelihood = |set: &[[usize; 4]; 3]| {
                    let features =
                        |o: &[usize; 4]| [0, 1, 2, 3].map(|f| (40 * o[f] / (HOTEL_LEVELS[f] - 1)) as i64);
                    choices(&users, &set.each_ref().map(features), lapse)
                };
                let gains: Vec<f64> =
                    sets.iter().map(|set| expected_gain(&posterior, &likelihood(set))).collect();
                let best = &sets[first_highest(&gains)];
                let mut rest = text;
                for option in best {
                    let line = hotel_text(option);
                    rest = rest.split_once(&line).unwrap_or_else(|| panic!("{line} is not in {rest}")).1;
                }
                let likelihood = likelihood(best);
                assert_same("predictive", &answer.probs, &predict(&posterior, &likelihood));
                update(&mut posterior, &likelihood, answer.truth.unwrap(), 1.0);
            }
            assert_eq!(turns(&episode).len(), 5);
        }
    }
}

// ------------------------------------------------------------------------------------------------- noisy flights

#[test]
fn a_tempered_teacher_of_noisy_flights_by_brute_force() {
    let users = flight_users();
    let mut config = TeacherConfig::new(WorldName::Flights);
    config.kind = Kind::Tempered;
    config.tempered.power = 2.5;
    config.flights.choice = ChoiceRule::Lapse(0.3);
    config.flights.teacher_likelihood = SupposedRule::Lapse(0.15);
    for user in [0, 100, 400, 623] {
        let episode = episode(&config, 3, user);
        let mut posterior = vec![1.0 / 624.0; 624];
        for (text, answer) in turns(&episode) {
            let options: Vec<[i64; 4]> =
                text.lines().filter(|line| line.starts_with("departure time")).map(parse_flight).collect();
            let likelihood = choices(&users, &options, 0.15);
            assert_same("predictive", &answer.probs, &predict(&posterior, &likelihood));
            update(&mut posterior, &likelihood, answer.truth.unwrap(), 2.5);
        }
    }
}

// ------------------------------------------------------------------------------------------------ declared worlds

/// Two factors, joined by one question that bears on both; a table of random probabilities for each question.
struct Declared {
    /// (questions, users, options); users are (size, color), the color varying fastest.
    tables: Vec<Vec<Vec<f64>>>,
    dir: tempfile::TempDir,
}

const SIZES: [&str; 3] = ["small", "middle", "large"];
const COLORS: [&str; 2] = ["red", "blue"];

impl Declared {
    fn new(index: u64, order: &str) -> Declared {
        let mut draws = rng::stream(index, "declared", 0);
        let mut row = || {
            let cells: Vec<f64> = (0..3).map(|_| 0.05 + draws.uniform()).collect();
            let sum: f64 = cells.iter().sum();
            cells.iter().map(|c| c / sum).collect::<Vec<f64>>()
        };
        let list = |row: &[f64]| format!("{row:?}");
        let mut text = format!(
            "format_version = 1\nname = \"things\"\nrounds = 5\n[text]\nopening = \"Guess.\\n{{{{ question }}}}\"\n\
             feedback = \"It is {{{{ truth }}}}.\\n{{{{ question }}}}\"\n[questionnaire]\norder = \"{order}\"\noptions = \
             [\"a\", \"b\", \"c\"]\n[[factors]]\nname = \"size\"\nvalues = [\"small\", \"middle\", \"large\"]\n\
             [[factors]]\nname = \"color\"\nvalues = [\"red\", \"blue\"]\n"
        );
        let mut tables = Vec::new();
        for question in 0..6 {
            let mut rows: Vec<Vec<f64>> = (0..6).map(|_| row()).collect();
            let (on, table) = match question % 3 {
                0 => {
                    for user in 0..6 {
                        rows[user] = rows[user / 2 * 2].clone();
                    }
                    let of = |(i, size): (usize, &&str)| format!("{size} = {}", list(&rows[2 * i]));
                    ("\"size\"", SIZES.iter().enumerate().map(of).collect::<Vec<_>>().join(", "))
                }
                1 => {
                    for user in 0..6 {
                        rows[user] = rows[user % 2].clone();
                    }
                    let of = |(i, color): (usize, &&str)| format!("{color} = {}", list(&rows[i]));
                    ("\"color\"", COLORS.iter().enumerate().map(of).collect::<Vec<_>>().join(", "))
                }
                _ => {
                    let of = |(i, size): (usize, &&str)| {
                        let (red, blue) = (list(&rows[2 * i]), list(&rows[2 * i + 1]));
                        format!("{size} = {{ red = {red}, blue = {blue} }}")
                    };
                    ("[\"size\", \"color\"]", SIZES.iter().enumerate().map(of).collect::<Vec<_>>().join(", "))
                }
            };
            text += &format!(
                "[[questions]]\ntext = \"Question {question}?\"\non = {on}\ntable = {{ {table} }}\n"
            );
            tables.push(rows);
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("things.toml"), text).unwrap();
        Declared { tables, dir }
    }

    fn config(&self) -> TeacherConfig {
        TeacherConfig::new(WorldName::Declared(self.dir.path().join("things.toml")))
    }
}

/// Chosen questions, the rival's predictions and the marginals that are reported, by enumeration of the six users.
#[test]
fn a_declared_world_by_brute_force() {
    for index in 0..40 {
        let order = ["shuffled", "blocked", "independent"][index as usize % 3];
        let world = Declared::new(index, order);
        let mut config = world.config();
        config.evidence = Evidence::Eig;
        config.beliefs.every = 1;
        config.beliefs.attributes = 2;
        config.kind = if index % 2 == 0 { Kind::Bayes } else { Kind::Tempered };
        config.tempered.power = 1.7;
        let power = if index % 2 == 0 { 1.0 } else { 1.7 };
        let episode = episode(&config, index, index as usize % 6);
        let mut posterior = vec![1.0 / 6.0; 6];
        let mut left = [true; 6];
        let mut reports = 0;
        for (text, answer) in turns(&episode) {
            if let Some(belief) = &answer.belief {
                reports += 1;
                let expected = match belief.as_str() {
                    "size" => [0, 2, 4].map(|u| posterior[u] + posterior[u + 1]).to_vec(),
                    "color" => [0, 1].map(|u| posterior[u] + posterior[u + 2] + posterior[u + 4]).to_vec(),
                    other => panic!("{other}"),
                };
                assert_same(belief, &answer.probs, &expected);
                let value = if belief == "size" { "2 means middle" } else { "2 means blue" };
                assert!(text.contains(value), "{text}");
                let truth = index as usize % 6;
                assert_eq!(answer.truth, Some(if belief == "size" { truth / 2 } else { truth % 2 }));
                continue;
            }
            let gain = |q: usize| {
                if left[q] { expected_gain(&posterior, &world.tables[q]) } else { f64::NEG_INFINITY }
            };
            let best = first_highest(&(0..6).map(gain).collect::<Vec<_>>());
            assert!(text.ends_with(&format!("Question {best}?")), "{index}: {best} is better than {text}");
            left[best] = order == "independent";
            assert_same("predictive", &answer.probs, &predict(&posterior, &world.tables[best]));
            update(&mut posterior, &world.tables[best], answer.truth.unwrap(), power);
        }
        assert_eq!(reports, 10);
    }
}

/// A built-in world written out as a file is the same world to whoever chooses its questions.
#[test]
fn evidence_in_built_in_worlds_as_in_declared_ones() {
    let declared = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("configs/worlds/{name}.toml"));
        WorldName::Declared(path)
    };
    for (built_in, name, evidence) in [
        (WorldName::Flights, "flights", Evidence::Eig),
        (WorldName::Hotels, "hotels", Evidence::Eig),
        (WorldName::Personality, "personality", Evidence::Eig),
        (WorldName::Personality, "personality", Evidence::Fisher),
    ] {
        let messages = |world: WorldName| {
            let mut config = TeacherConfig::new(world);
            config.evidence = evidence;
            config.candidates = 30;
            config.users = Some(100);
            [0, 99, 500].map(|user| episode(&config, 5, user).messages)
        };
        assert_eq!(messages(built_in), messages(declared(name)), "{name}, {evidence:?}");
    }
}

// ------------------------------------------------------------------------------------------------------ all worlds

fn apartments() -> WorldName {
    WorldName::Declared(Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/worlds/apartments.toml"))
}

fn triage() -> WorldName {
    WorldName::Declared(Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/worlds/triage.toml"))
}

/// Every kind of teacher in every world that it makes sense in, with chosen evidence, changing users and reports.
#[test]
fn every_kind_in_every_world() {
    let mut noisy = TeacherConfig::new(WorldName::Hotels);
    noisy.hotels.choice = ChoiceRule::Softmax(8.0);
    let mut trait_flights = TeacherConfig::new(WorldName::TraitFlights);
    trait_flights.trait_flights.items = 3;
    trait_flights.rounds = Some(6);
    let mut loading = TeacherConfig::new(WorldName::Personality);
    loading.rounds = Some(6);
    loading.personality.items = vec![toml::from_str("number = 1\nloadings = { intellect = 0.5 }").unwrap()];
    let worlds =
        [noisy, trait_flights, loading, TeacherConfig::new(apartments()), TeacherConfig::new(triage())];
    let kinds =
        [Kind::Bayes, Kind::Oracle, Kind::NoisyOracle, Kind::WrongPrior, Kind::Tempered, Kind::Forgetful];
    for mut config in worlds {
        config.users = Some(6);
        config.episodes_per_user = 2;
        config.evidence = Evidence::Eig;
        config.candidates = 5;
        config.beliefs.every = 2;
        config.drift.hazard = 0.2;
        for kind in kinds {
            config.kind = kind;
            let dir = tempfile::tempdir().unwrap();
            let summary = match teach(&config, &SplitConfig::default(), 1, dir.path(), &|_, _| {}) {
                Ok(summary) => summary,
                Err(error) => {
                    let message = error.to_string();
                    assert!(message.contains("never err") && message.contains("apartments"), "{message}");
                    continue;
                }
            };
            assert_eq!((summary.kind, summary.episodes), (kind, 12));
            assert!(summary.beliefs.is_some(), "{:?}", config.world);
        }
    }
}

/// Items first, flights then, each chosen; the beliefs about the traits are the questionnaire's.
#[test]
fn flights_from_traits_are_chosen_after_items_are() {
    let mut config = TeacherConfig::new(WorldName::TraitFlights);
    config.users = Some(100);
    config.trait_flights.items = 4;
    config.rounds = Some(7);
    config.evidence = Evidence::Eig;
    config.candidates = 5;
    let world = config.build_world().unwrap();
    let mut entropies = Vec::new();
    let simulation = simulate(&config, &world, 1, 77, 0, |posterior| entropies.push(posterior.entropy()));
    let asked: Vec<bool> =
        turns(&simulation.episode).iter().map(|(text, _)| text.contains("Flight 3")).collect();
    assert_eq!(asked, [false, false, false, false, true, true, true]);
    assert!(entropies[7] < entropies[0]);
}

#[test]
fn beliefs_about_weights_are_asked_for_in_the_words_of_the_world() {
    let mut config = TeacherConfig::new(WorldName::Hotels);
    config.beliefs.every = 5;
    config.beliefs.attributes = 4;
    let episode = episode(&config, 1, 10);
    let asked: Vec<&str> =
        turns(&episode).iter().filter(|(_, a)| a.belief.is_some()).map(|(t, _)| *t).collect();
    assert_eq!(asked.len(), 4);
    let price = asked.iter().find(|text| text.contains("about the price")).unwrap();
    // The first report follows what the user says to the last choice.
    assert!(price.ends_with(
        "How do you think I feel about the price of a hotel, on a scale from 1 to 5? 1 means that I strongly prefer the low \
         end ($100), 3 that I do not mind, and 5 that I strongly prefer the high end ($1000). Reply with the number only."
    ));
}

#[test]
fn combinations_without_meaning_are_refused() {
    let refused = |config: &TeacherConfig, parts: &[&str]| {
        let error = config.validate().unwrap_err();
        assert!(error.downcast_ref::<bayesteach::error::UsageError>().is_some());
        let message = error.to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    };
    let shop = || TeacherConfig::new(WorldName::Shop);
    for evidence in [Evidence::Eig, Evidence::Fisher] {
        refused(&TeacherConfig { evidence, ..shop() }, &["teacher.evidence", "shop", "\"random\""]);
    }
    for kind in [Kind::Tempered, Kind::Forgetful] {
        refused(&TeacherConfig { kind, ..shop() }, &["shop", "tell nothing"]);
    }
    refused(
        &TeacherConfig { kind: Kind::WrongPrior, ..shop() },
        &["\"wrong-prior\"", "shop", "no attributes"],
    );
    let mut beliefs = shop();
    beliefs.beliefs.every = 1;
    refused(&beliefs, &["teacher.beliefs.attributes is 1", "shop", "has 0"]);
    let mut drift = shop();
    drift.drift.hazard = 0.1;
    drift.drift.to = DriftTo::Neighbour;
    refused(&drift, &["neighbour", "goal"]);
    TeacherConfig { kind: Kind::NoisyOracle, ..shop() }.validate().unwrap();

    // What the teacher supposes counts: nobody errs, for all it knows.
    let mut flights = TeacherConfig::new(WorldName::Flights);
    flights.kind = Kind::Tempered;
    flights.flights.choice = ChoiceRule::Lapse(0.2);
    flights.validate().unwrap();
    flights.flights.teacher_likelihood = SupposedRule::Deterministic;
    refused(&flights, &["\"tempered\"", "never err"]);
    flights.flights.choice = ChoiceRule::Deterministic;
    flights.flights.teacher_likelihood = SupposedRule::Softmax(3.0);
    flights.validate().unwrap();

    let mut traits = TeacherConfig::new(WorldName::TraitFlights);
    traits.users = Some(100);
    traits.kind = Kind::Forgetful;
    refused(&traits, &["\"forgetful\"", "trait_flights", "never err"]);
    traits.trait_flights.items = 4;
    traits.validate().unwrap();
    traits.kind = Kind::Bayes;
    traits.evidence = Evidence::Fisher;
    refused(&traits, &["\"fisher\"", "trait_flights"]);

    let mut loading = TeacherConfig::new(WorldName::Personality);
    loading.evidence = Evidence::Fisher;
    loading.validate().unwrap();
    loading.personality.items = vec![toml::from_str("number = 1\nloadings = { intellect = 0.5 }").unwrap()];
    refused(&loading, &["\"fisher\"", "one level", "\"eig\""]);
    refused(
        &TeacherConfig { evidence: Evidence::Fisher, ..TeacherConfig::new(triage()) },
        &["\"fisher\"", "\"eig\""],
    );
    refused(
        &TeacherConfig { evidence: Evidence::Fisher, ..TeacherConfig::new(WorldName::Hotels) },
        &["hotels"],
    );
}
