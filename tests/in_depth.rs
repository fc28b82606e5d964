//! Episodes looked into: questions asked aside, stated beliefs, interactive dialogues, fitted reasoners.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;

use bayesteach::episode::{Answer, Episode, Message, Role};
use bayesteach::eval::{Chosen, EvalConfig, Looking, Tails, interact, look_into, predictions};
use bayesteach::metrics::{Prediction, argmax};
use bayesteach::model::config::ModelConfig;
use bayesteach::model::decoder::Decoder;
use bayesteach::rng;
use bayesteach::teacher::{
    About, Asides, Explained, Posterior, Replayer, TeacherConfig, fit_reasoner, simulate,
};
use bayesteach::tokens::{Line, ModelLimits, Pipeline, Sequence, TokensConfig};
use bayesteach::world::World;
use candle_core::{DType, Device};
use common::Place;

fn pipeline(base: &Path) -> Pipeline {
    let config = ModelConfig::load(base).unwrap();
    let limits = ModelLimits {
        max_position_embeddings: config.max_position_embeddings,
        vocab_size: config.vocab_size,
    };
    Pipeline::load(base, &TokensConfig::default(), limits).unwrap()
}

fn decoder(base: &Path) -> Decoder {
    let config = ModelConfig::load(base).unwrap();
    Decoder::load(base, &config, DType::F32, &Device::Cpu).unwrap()
}

fn teacher(toml: &str) -> (TeacherConfig, World) {
    let config: TeacherConfig = toml::from_str(toml).unwrap();
    config.validate().unwrap();
    let world = config.build_world().unwrap();
    (config, world)
}

const FLIGHTS: &str = "world = \"flights\"\nrounds = 3\n[flights]\nfeatures = [\"duration\", \"price\"]";
const TRAITS: &str = "world = \"personality\"\nrounds = 6\n[personality]\norder = \"blocked\"";
const MIXED: &str = "world = \"trait_flights\"\nrounds = 4\n[trait_flights]\nitems = 2\n[beliefs]\nevery = 2";

fn episodes(config: &TeacherConfig, world: &World, users: usize) -> Vec<Episode> {
    (0..users).map(|user| simulate(config, world, 7, user, 1, |_| {}).episode).collect()
}

/// A report of a belief between the items and the flights does not swallow what the flights begin with; what is asked aside
/// there begins with it too.
#[test]
fn the_second_stage_is_introduced_after_a_report() {
    let (config, world) = teacher(MIXED);
    let replayer = Replayer::new(&config, &world, 7);
    for episode in episodes(&config, &world, 3) {
        let introduced = |message: &Message| message.content.contains("Help me select the best flights");
        let asked: Vec<&Message> = episode.messages.iter().step_by(2).collect();
        let reports =
            asked.iter().position(|message| message.content.contains("How high do you think")).unwrap();
        let first: Vec<usize> = (0..asked.len()).filter(|&i| introduced(asked[i])).collect();
        assert_eq!(first.len(), 1, "{asked:#?}");
        assert!(reports < first[0] && asked[first[0]].content.starts_with("Help me select"), "{asked:#?}");
        let replay = replayer.replay(&episode).unwrap();
        let moment = &replay.moments[2];
        let sets = replayer.held_out_sets(&replay, 2, 1);
        let aside = replayer.ask(&replay, moment, &sets[0], 0, None, &mut rng::stream(0, "test", 0));
        assert!(introduced(&aside.messages[aside.messages.len() - 2]), "{:#?}", aside.messages);
    }
}

fn looking<'a>(
    config: &'a EvalConfig,
    decoder: &'a Decoder,
    pipeline: &'a Pipeline,
    replayer: &'a Replayer<'a>,
) -> Looking<'a> {
    Looking { config, decoder, pipeline, replayer, tokens_at_once: 300 }
}

fn chosen<'a>(episodes: &'a [Episode], sequences: &'a [Sequence]) -> Vec<Chosen<'a>> {
    let pairs = episodes.iter().zip(sequences).enumerate();
    pairs.map(|(user, (episode, sequence))| Chosen { user, episode, sequence }).collect()
}

fn assert_same(a: &Prediction, b: &Prediction) {
    for (p, q) in a.probs().iter().zip(b.probs()) {
        assert!((p - q).abs() < 2e-5, "{:?} is not {:?}", a.probs(), b.probs());
    }
    assert!((a.option_mass() - b.option_mass()).abs() < 1e-5 && a.teacher() == b.teacher());
}

/// What is asked on the keys and values of the dialogue is what the whole dialogue would give, run from the start; in
/// worlds with option sets, questionnaires, and both with reported beliefs between.
#[test]
fn asides_are_whole_dialogues() {
    let place = Place::new();
    let base = place.path("base");
    let (pipeline, decoder) = (pipeline(&base), decoder(&base));
    for (toml, tails) in [(FLIGHTS, 4 * (5 + 2)), (TRAITS, 6 * (5 + 1) + 5), (MIXED, 5 * (5 + 5))] {
        let (config, world) = teacher(toml);
        let replayer = Replayer::new(&config, &world, 7);
        let episode = &episodes(&config, &world, 3)[2];
        let replay = replayer.replay(episode).unwrap();
        let dialogue = pipeline.encode(episode).unwrap().sequence;
        let mut asides = Asides::new(&replayer, 5);
        let mut shared = Tails::new(300);
        shared.take_up(&decoder, &dialogue.input_ids).unwrap();
        let mut compared = 0;
        for moment in &replay.moments {
            let asked = asides.ask(0, &replay, moment, true);
            let sequences: Vec<Sequence> =
                asked.iter().map(|aside| pipeline.encode(&aside.episode).unwrap().sequence).collect();
            let answers = shared.last_answers(&decoder, &sequences).unwrap();
            for ((aside, sequence), answer) in asked.iter().zip(&sequences).zip(answers) {
                aside.episode.validate().unwrap();
                let whole = predictions(&decoder, std::slice::from_ref(sequence), 4096, &|_| {}).unwrap();
                assert_eq!(whole.len(), 1);
                assert_same(&whole[0].predicting(&answer).unwrap(), &whole[0]);
                compared += 1;
            }
            // The dialogue goes on as if nothing had been asked: what it asks next begins as the asides do.
            let next = asked.iter().find(|aside| aside.about == About::Next);
            if let Some(next) = next {
                let own = &episode.messages[2 * moment.asked..][..2];
                let of_aside = &next.episode.messages[2 * moment.asked..];
                assert_eq!((&own[0], &own[1].content), (&of_aside[0], &of_aside[1].content));
            }
        }
        assert_eq!(compared, tails, "{toml}");
    }
}

/// An episode of other settings is refused, and says which.
#[test]
fn episodes_of_other_settings_are_refused() {
    let (config, world) = teacher(FLIGHTS);
    let other = episodes(&config, &world, 1).remove(0);
    let message = |replayer: &Replayer, episode: &Episode| {
        let error = replayer.replay(episode).unwrap_err();
        assert!(error.chain().any(|cause| cause.is::<bayesteach::error::UsageError>()));
        format!("{error:#}")
    };
    let seed = Replayer::new(&config, &world, 8);
    assert!(message(&seed, &other).contains("from message 0 on"));
    let right = Replayer::new(&config, &world, 7);
    right.replay(&other).unwrap();
    let mut longer = other.clone();
    longer.messages.extend(other.messages[..2].to_vec());
    assert!(message(&right, &longer).contains("from message 6 on"));
    let stranger = Episode { user: "900".into(), ..other.clone() };
    assert!(message(&right, &stranger).contains("\"900\""));
    assert!(message(&right, &Episode { id: "mine".into(), ..other }).contains("\"mine\""));
}

/// In the questionnaire each trait is a factor of its own: whoever states the teacher's marginals acts as the teacher.
/// And a user's held-out truths, teacher's measures and observations are the teacher's own.
#[test]
fn the_teacher_acts_on_what_it_states() {
    let place = Place::new();
    let base = place.path("base");
    let (pipeline, decoder) = (pipeline(&base), decoder(&base));
    let (config, world) = teacher(TRAITS);
    let replayer = Replayer::new(&config, &world, 7);
    let episodes = episodes(&config, &world, 3);
    let sequences: Vec<Sequence> = episodes.iter().map(|e| pipeline.encode(e).unwrap().sequence).collect();
    let settings = EvalConfig { probes: 2, ..EvalConfig::default() };
    let looking = looking(&settings, &decoder, &pipeline, &replayer);
    let found = look_into(looking, &chosen(&episodes, &sequences), &|_| {}).unwrap();
    assert!(found.held_out.is_empty() && found.too_long == 0);
    // After 0, 2, 4 and 6 rounds, about five traits; and there is no question after the last.
    assert_eq!((found.reports.len(), found.acted.len(), found.teacher_acted.len()), (60, 9, 9));
    for acted in &found.teacher_acted {
        for (p, q) in acted.stated.probs().iter().zip(acted.direct.probs()) {
            assert!((p - q).abs() < 1e-9);
        }
    }
    // What the model does there, it does in the dialogue.
    let whole = predictions(&decoder, &sequences, 4096, &|_| {}).unwrap();
    for (i, acted) in found.acted.iter().enumerate() {
        assert_same(&acted.direct, &whole[i / 3 * 6 + i % 3 * 2]);
    }
}

/// The words of flights with another option in the assistant's mouth.
fn with_said(episode: &Episode, said: &[usize]) -> Episode {
    let mut changed = episode.clone();
    for (i, option) in said.iter().enumerate() {
        let answer = changed.messages[2 * i + 1].answer.clone().unwrap();
        changed.messages[2 * i + 1] = Message {
            role: Role::Assistant,
            content: format!("The best option is Flight {}.", option + 1),
            answer: Some(Answer { said: *option, ..answer.clone() }),
        };
        if let Some(next) = changed.messages.get_mut(2 * i + 2) {
            let question = next.content.split_once("\n\n").unwrap().1.to_owned();
            let truth = answer.truth.unwrap();
            let verdict = match truth == *option {
                true => "correct.".to_owned(),
                false => format!("incorrect. I prefer Flight {}.", truth + 1),
            };
            next.content = format!("Your option Flight {} is {verdict}\n\n{question}", option + 1);
        }
    }
    changed
}

/// The model's own recommendations, written into the dialogues by hand, get it to the same predictions.
#[test]
fn interactive_dialogues_are_those_with_the_own_recommendations() {
    let place = Place::new();
    let base = place.path("base");
    let (pipeline, decoder) = (pipeline(&base), decoder(&base));
    let (config, world) = teacher(FLIGHTS);
    let replayer = Replayer::new(&config, &world, 7);
    let episodes = episodes(&config, &world, 4);
    let sequences: Vec<Sequence> = episodes.iter().map(|e| pipeline.encode(e).unwrap().sequence).collect();
    let settings = EvalConfig::default();
    let looking = looking(&settings, &decoder, &pipeline, &replayer);
    let own = interact(looking, &chosen(&episodes, &sequences), &|_| {}).unwrap();
    let taught = predictions(&decoder, &sequences, 4096, &|_| {}).unwrap();
    let mut others = 0;
    for (i, episode) in episodes.iter().enumerate() {
        let own = &own[3 * i..][..3];
        let said: Vec<usize> = own.iter().map(|p| argmax(&p.probs())).collect();
        others += (episode.answers()).zip(&said).filter(|((answer, _), said)| answer.said != **said).count();
        let by_hand = with_said(episode, &said);
        by_hand.validate().unwrap();
        let sequence = pipeline.encode_line(&Line::Episode(by_hand)).unwrap();
        for (a, b) in own.iter().zip(predictions(&decoder, &[sequence], 4096, &|_| {}).unwrap()) {
            assert_same(a, &b);
        }
        assert_same(&own[0], &taught[3 * i]);
    }
    assert!(others > 3, "the model says what the teacher says: this shows nothing");
}

/// The answers of reasoners of known discount and weight, made by the posterior's own operations, give these back; also
/// sharpened, and where answers only rule out.
#[test]
fn known_reasoners_are_found() {
    for (discount, weight, temperature) in [(1.0, 1.0, 1.0), (0.7, 1.6, 1.0), (0.9, 0.5, 0.6)] {
        let (config, world) = teacher("world = \"personality\"\nrounds = 30");
        let replayer = Replayer::new(&config, &world, 7);
        let replays: Vec<_> =
            episodes(&config, &world, 25).iter().map(|e| replayer.replay(e).unwrap()).collect();
        let predicted: Vec<Vec<Prediction>> = (replays.iter())
            .map(|replay| {
                let mut posterior = Posterior::prior(world.factors());
                let predict = |asked: &bayesteach::teacher::Asked| {
                    let probs = posterior.predictive(&asked.question);
                    posterior.forget(discount, world.factors());
                    posterior.observe_to_the_power(&asked.question, asked.truth, weight);
                    let logs: Vec<f64> = probs.iter().map(|p| p.ln() / temperature).collect();
                    Prediction::new(&logs, &probs, Some(asked.truth), 0).unwrap()
                };
                replay.asked.iter().map(predict).collect()
            })
            .collect();
        let explained: Vec<Explained> = (replays.iter().zip(&predicted).enumerate())
            .map(|(user, (replay, predictions))| Explained { user, replay, predictions })
            .collect();
        let found = fit_reasoner(&world, None, &explained).unwrap();
        assert_eq!((found.answers, found.users), (25 * 30, 25));
        let weights = (found.evidence_weight.unwrap(), found.prior_weight.unwrap());
        for (fitted, expected) in [
            (found.discount, discount),
            (weights.0, weight),
            (weights.1, 1.0 / weight),
            (found.temperature, temperature),
        ] {
            assert!((fitted.value - expected).abs() < 1e-3, "{found:?}");
            assert!(!fitted.at_limit && fitted.high.unwrap() - fitted.low.unwrap() < 1e-2);
        }
        assert!(found.kl.value < 1e-6 && found.lapse.is_none());
        assert_eq!(found.kl_exact.value > 1e-3, (discount, weight, temperature) != (1.0, 1.0, 1.0));
    }
}

/// The exact teacher of users that change is the reasoner with nothing amiss that knows of it, and not the one that does not.
#[test]
fn a_reasoner_knows_that_users_change() {
    for to in ["prior", "neighbour"] {
        let (config, world) = teacher(&format!(
            "world = \"personality\"\nrounds = 30\n[personality]\norder = \"interleaved\"\n[drift]\nhazard = 0.2\nto = \"{to}\""
        ));
        let replayer = Replayer::new(&config, &world, 7);
        let taught = episodes(&config, &world, 12);
        let replays: Vec<_> = taught.iter().map(|episode| replayer.replay(episode).unwrap()).collect();
        let own = |(answer, _): (&Answer, usize)| {
            let logs: Vec<f64> = answer.probs.iter().map(|p| p.ln()).collect();
            Prediction::new(&logs, &answer.probs, answer.truth, 0).unwrap()
        };
        let predicted: Vec<Vec<Prediction>> = taught.iter().map(|e| e.answers().map(own).collect()).collect();
        let explained: Vec<Explained> = (replays.iter().zip(&predicted).enumerate())
            .map(|(user, (replay, predictions))| Explained { user, replay, predictions })
            .collect();
        let found = fit_reasoner(&world, replayer.expected_change(), &explained).unwrap();
        assert!(found.kl_exact.value.abs() < 1e-9, "{to}: {found:?}");
        for fitted in [found.discount, found.evidence_weight.unwrap(), found.temperature] {
            assert!((fitted.value - 1.0).abs() < 1e-3, "{to}: {found:?}");
        }
        let unaware = fit_reasoner(&world, None, &explained).unwrap();
        assert!(unaware.kl_exact.value > 1e-3 && unaware.discount.value < 0.9, "{to}: {unaware:?}");
    }
}

/// Flights whose users never err: a reasoner who takes them to lapse, as the teacher of lapsing users does.
#[test]
fn a_known_lapse_is_found() {
    let (config, world) = teacher(FLIGHTS);
    let (_, lapsing) = teacher(&format!("{FLIGHTS}\nteacher_likelihood = {{ lapse = 0.2 }}"));
    let replayer = Replayer::new(&config, &world, 7);
    let replays: Vec<_> = episodes(&config, &world, 24).iter().map(|e| replayer.replay(e).unwrap()).collect();
    let mut predicted = Vec::new();
    for replay in &replays {
        let mut posterior = Posterior::prior(lapsing.factors());
        let mut own = Vec::new();
        for asked in &replay.asked {
            let likelihood = asked.question.likelihood.as_ref().clone().with_lapse(0.2);
            let question =
                bayesteach::world::Question { likelihood: likelihood.into(), ..asked.question.clone() };
            let probs = posterior.predictive(&question);
            posterior.observe(&question, asked.truth);
            let logs: Vec<f64> = probs.iter().map(|p| p.ln()).collect();
            own.push(Prediction::new(&logs, &probs, Some(asked.truth), 0).unwrap());
        }
        predicted.push(own);
    }
    let explained: Vec<Explained> = (replays.iter().zip(&predicted).enumerate())
        .map(|(user, (replay, predictions))| Explained { user, replay, predictions })
        .collect();
    let found = fit_reasoner(&world, None, &explained).unwrap();
    assert!(found.evidence_weight.is_none());
    assert!((found.lapse.unwrap().value - 0.2).abs() < 1e-3, "{found:?}");
    assert!((found.discount.value - 1.0).abs() < 1e-3 && (found.temperature.value - 1.0).abs() < 1e-3);
}

/// Single answers drawn from a reasoner: over many samples about 95 % of the intervals hold what it is.
#[test]
fn intervals_hold_what_is_true() {
    let (config, world) = teacher("world = \"personality\"\nrounds = 20\n[personality]\norder = \"blocked\"");
    let replayer = Replayer::new(&config, &world, 7);
    let replays: Vec<_> = episodes(&config, &world, 40).iter().map(|e| replayer.replay(e).unwrap()).collect();
    let (samples, mut held) = (60, [0, 0]);
    for sample in 0..samples {
        let mut draws = rng::stream(sample, "test", 0);
        let mut predicted = Vec::new();
        for replay in &replays {
            let mut posterior = Posterior::prior(world.factors());
            let mut own = Vec::new();
            for asked in &replay.asked {
                let probs = posterior.predictive(&asked.question);
                posterior.forget(0.6, world.factors());
                posterior.observe(&asked.question, asked.truth);
                let answer = draws.categorical(&probs);
                let logs: Vec<f64> = (0..5).map(|o| f64::from(u8::from(o == answer)).ln()).collect();
                own.push(Prediction::new(&logs, &probs, None, 0).unwrap());
            }
            predicted.push(own);
        }
        let explained: Vec<Explained> = (replays.iter().zip(&predicted).enumerate())
            .map(|(user, (replay, predictions))| Explained { user, replay, predictions })
            .collect();
        let found = fit_reasoner(&world, None, &explained).unwrap();
        for (i, (fitted, truth)) in
            [(found.discount, 0.6), (found.evidence_weight.unwrap(), 1.0)].into_iter().enumerate()
        {
            let (low, high) = (fitted.low.unwrap_or(0.0), fitted.high.unwrap_or(f64::INFINITY));
            held[i] += u32::from(low <= truth && truth <= high);
        }
    }
    assert!(held.iter().all(|held| (51..=60).contains(held)), "{held:?} of {samples}");
}

/// `teach` and `eval` from end to end: the teacher's measures on held-out sets are those that `teacher.json` has of the
/// same episodes, which are computed apart; and what is asked for stands in the file.
#[test]
fn eval_looks_into_episodes_by_what_lies_beside_them() {
    let place = Place::new();
    let world = "[run]\nname = \"f\"\nseed = 3\n[teacher]\nworld = \"flights\"\nrounds = 2\nusers = 8\n\
                 episodes_per_user = 1\n[teacher.flights]\nfeatures = [\"duration\", \"price\"]\n\
                 [split]\ntrain = 0.0\nvalidation = 0.0\ntest = 1.0\n";
    place.write("f.toml", world);
    place.ok("teach f.toml --out f");
    let settings = "--set eval.in_depth=0 --set eval.probes=1 --set eval.interactive=true";
    let told = place.ok(&format!("eval --model base --episodes f/test.jsonl --out e.json {settings}"));
    for part in [
        "held-out option sets",
        "beliefs stated on copies",
        "own recommendations",
        "discount of past answers",
    ] {
        assert!(told.contains(part), "{part} is not in {told}");
    }
    let (teacher, eval) = (place.json("f/teacher.json"), place.json("e.json"));
    let told = teacher["held_out"]["by_observations"].as_array().unwrap();
    let measured = eval["teacher"]["held_out"]["by_observations"].as_array().unwrap();
    assert_eq!((told.len(), measured.len()), (3, 3));
    for (a, b) in told.iter().zip(measured) {
        assert_eq!((&a["observations"], &a["answers"]), (&b["observations"], &b["answers"]));
        for key in ["accuracy", "entropy"] {
            assert!((a[key].as_f64().unwrap() - b[key].as_f64().unwrap()).abs() < 1e-9, "{a} {b}");
        }
    }
    let base = &eval["baseline"];
    assert_eq!(base["held_out"]["answers"], 8 * 3 * 100);
    assert_eq!(base["probe"]["reports"]["answers"], 8 * 3 * 2);
    assert_eq!(base["probe"]["acting"]["direct"]["answers"], 8 * 3 * 100);
    assert_eq!(
        (&base["interactive"]["own"]["answers"], &base["reasoner"]["answers"]),
        (&16.into(), &16.into())
    );
    assert_eq!(base["interactive"]["as_taught"]["kl"], base["kl"]);

    // Elsewhere the config has to say it, and another one is refused.
    std::fs::copy(place.path("f/test.jsonl"), place.path("t.jsonl")).unwrap();
    let alone = place.ok("eval --model base --episodes t.jsonl");
    assert!(!alone.contains("held-out"), "{alone}");
    let told = place
        .ok("eval --model base --episodes t.jsonl --config f.toml --set eval.held_out_sets=7 --out g.json");
    assert!(
        told.contains("held-out") && place.json("g.json")["baseline"]["held_out"]["answers"] == 8 * 3 * 7
    );
    place.fails(
        "eval --model base --episodes t.jsonl --config f.toml --set run.seed=4",
        2,
        &["is not what this config and its seed teach"],
    );
    place.fails("eval --model base --episodes t.jsonl --set eval.probe=1", 2, &["did you mean `probes`?"]);
}

/// The tests of what `eval` prints and writes about sensitivity and free replies.
#[test]
fn eval_measures_sensitivity_and_replies() {
    let place = Place::new();
    let world = "[run]\nname = \"f\"\nseed = 3\n[teacher]\nworld = \"flights\"\nrounds = 2\nusers = 4\n\
                 episodes_per_user = 1\n[teacher.flights]\nfeatures = [\"duration\", \"price\"]\n\
                 [split]\ntrain = 0.0\nvalidation = 0.0\ntest = 1.0\n";
    place.write("f.toml", world);
    place.ok("teach f.toml --out f");
    let settings = "--set eval.held_out_sets=0 --set eval.sensitivity=5 --set eval.generate=2";
    let told = place.ok(&format!("eval --model base --episodes f/test.jsonl --out e.json {settings}"));
    for part in ["what is learnt from option sets", "written out freely"] {
        assert!(told.contains(part), "{part} is not in {told}");
    }
    let eval = place.json("e.json");
    let base = &eval["baseline"];
    let moments = base["sensitivity"]["by_rounds"].as_array().unwrap();
    assert_eq!((moments.len(), &moments[0]["sets"], &moments[1]["rounds"]), (2, &20.into(), &1.into()));
    // A teacher learns more from what tells more; and the bins are in order.
    assert!(moments[1]["teacher_slope"]["value"].as_f64().unwrap() > 0.0, "{}", moments[1]);
    let gains: Vec<f64> =
        moments[1]["bins"].as_array().unwrap().iter().map(|bin| bin["gain"].as_f64().unwrap()).collect();
    assert!(gains.is_sorted() && gains.len() == 5);
    // Random weights write nothing that could be read: every failure is counted.
    let replies = &base["replies"];
    assert_eq!(replies["replies"], 4);
    let unclear = replies["unclear"]["value"].as_f64().unwrap();
    assert_eq!(replies["parse_failures"].as_f64().unwrap(), 4.0 * unclear);
    place.fails(
        "eval --model base --episodes f/test.jsonl --set eval.sensitivity=5000",
        2,
        &["at most 1000"],
    );
}

/// One table of models and worlds; the adapter's own world is measured as `eval` measures it.
#[test]
fn transfer_is_a_table_of_models_and_worlds() {
    let place = Place::new();
    place.ok("run c.toml --set train.max_steps=2");
    let flights = "[run]\nname = \"f\"\n[teacher]\nworld = \"flights\"\nrounds = 2\nusers = 12\nepisodes_per_user = 1\n\
                   [teacher.flights]\nfeatures = [\"duration\", \"price\"]\n";
    place.write("f.toml", flights);
    let told = place.ok(
        "transfer c.toml f.toml f.toml::teacher.rounds=3::teacher.flights.choice={lapse=0.2} --model base \
         --adapter runs/a --episodes 5 --out t.json",
    );
    for part in ["baseline", "| a ", "f rounds=3 choice={lapse=0.2}", "teacher", "KL from the teacher"] {
        assert!(told.contains(part), "{part} is not in {told}");
    }
    let file = place.json("t.json");
    let rows = file["rows"].as_array().unwrap();
    assert_eq!((rows.len(), rows[1]["cells"].as_array().unwrap().len()), (2, 3));
    assert!(rows.iter().all(|row| row["cells"][0]["episodes_of_trained_users"] == 0));
    // A run's test episodes, fewer than are asked for, as the run measured them.
    let whole = place.ok("transfer c.toml --model base --adapter runs/a --episodes 0 --out w.json");
    assert!(whole.contains("accuracy"));
    let (own, eval) = (place.json("w.json"), place.json("runs/a/eval.json"));
    for (row, model) in [(0, "baseline"), (1, "fine_tuned")] {
        let (a, b) = (&own["rows"][row]["cells"][0]["measures"]["kl"], &eval[model]["kl"]);
        assert!((a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-9, "{a} is not {b}");
    }
    place.fails("transfer c.toml c.toml --model base", 2, &["two worlds are called \"a\""]);
    place.fails("transfer missing.toml --model base", 2, &["cannot read missing.toml"]);
}

/// People who were imported are a world of their own, measured as `eval` measures them.
#[test]
fn transfer_takes_files_of_episodes() {
    let place = Place::new();
    place.ok("run c.toml --set train.max_steps=2");
    let row = |user: &str, answers: [u8; 4]| format!("{user},{}\n", answers.map(|a| a.to_string()).join(","));
    // One of them is called as somebody whom the adapter was trained on.
    let trained = std::fs::read_to_string(place.path("runs/a/episodes/train.jsonl")).unwrap();
    let trained: serde_json::Value = serde_json::from_str(trained.lines().next().unwrap()).unwrap();
    let namesake = trained["user"].as_str().unwrap();
    let people = [
        "user,E1,A1,E2,C1\n".into(),
        row(namesake, [1, 5, 4, 2]),
        row("ann", [3, 3, 2, 5]),
        row("bob", [5, 1, 1, 4]),
    ];
    place.write("people.csv", people.concat());
    place.ok("import people.csv --out people.jsonl");
    let done =
        place.run("transfer c.toml people.jsonl --model base --adapter runs/a --episodes 0 --out t.json");
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(done.stdout.contains("| people"), "{}", done.stdout);
    place.ok("eval --model base --adapter runs/a/adapter --episodes people.jsonl --out e.json");
    let (file, eval) = (place.json("t.json"), place.json("e.json"));
    assert_eq!(
        (&file["worlds"][1]["world"], &file["worlds"][1]["episodes"]),
        (&"personality".into(), &3.into())
    );
    let cell = &file["rows"][1]["cells"][1];
    assert_eq!(cell["measures"]["answers"], 12);
    for measure in ["accuracy", "kl"] {
        assert_eq!(cell["measures"][measure], eval["fine_tuned"][measure]);
        assert_eq!(file["worlds"][1]["teacher"][measure], eval["teacher"][measure]);
    }
    // The namesake is somebody else; in the run's own file, wherever it lies, those are known who were trained on.
    assert_eq!(cell["episodes_of_trained_users"], 0);
    std::fs::copy(place.path("runs/a/episodes/train.jsonl"), place.path("test.jsonl")).unwrap();
    let both = "transfer test.jsonl runs/a/episodes/test.jsonl --model base --adapter runs/a --episodes 2 --out t.json";
    let done = place.run(both);
    assert!(
        done.stderr.contains("2 of 2 episodes of test are of users that a was trained on"),
        "{}",
        done.stderr
    );
    let file = place.json("t.json");
    let cells = file["rows"][1]["cells"].as_array().unwrap();
    assert_eq!(
        (&cells[0]["episodes_of_trained_users"], &cells[1]["episodes_of_trained_users"]),
        (&2.into(), &0.into())
    );
    // Two files of one name are called by their paths.
    assert_eq!(file["worlds"][1]["name"], "runs/a/episodes/test.jsonl");
    let done = place.run("transfer people.jsonl --model base --episodes 2 --out two.json");
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert_eq!(place.json("two.json")["worlds"][0]["episodes"], 2);
    // What is taught lies beside a run's own episodes, so they are looked into.
    place.ok(
        "transfer runs/a/episodes/test.jsonl::eval.probes=1::eval.in_depth=2 --model base --out own.json",
    );
    assert!(place.json("own.json")["rows"][0]["cells"][0]["measures"]["probe"].is_object());
    place.fails(
        "transfer people.jsonl::teacher.rounds=3 --model base",
        2,
        &["teacher.rounds=3", "cannot be set"],
    );
    place.fails(
        "transfer people.jsonl people.jsonl people.jsonl --model base",
        2,
        &["two worlds are called \"people.jsonl\""],
    );
    place.fails("transfer nobody.jsonl --model base", 1, &["nobody.jsonl"]);
}

/// Held-out sets, beliefs and the rest as `eval` measures them on the same episodes; and teaching only what is measured
/// changes nothing.
#[test]
fn transfer_looks_into_episodes_as_eval_does() {
    let place = Place::new();
    let world = "[run]\nname = \"f\"\nseed = 3\n[teacher]\nworld = \"flights\"\nrounds = 2\nusers = 20\n\
                 episodes_per_user = 2\n[teacher.flights]\nfeatures = [\"duration\", \"price\"]\n\
                 [eval]\nheld_out_sets = 7\nprobes = 1\nin_depth = 3\n";
    place.write("f.toml", world);
    let told = place.ok("transfer f.toml --model base --episodes 0 --out t.json");
    for part in
        ["held-out sets after the last round", "answers to held-out option sets", "beliefs stated on copies"]
    {
        assert!(told.contains(part), "{part} is not in {told}");
    }
    place.ok("teach f.toml --out f");
    place.ok("eval --model base --episodes f/test.jsonl --config f.toml --out e.json");
    let (ours, theirs) = (place.json("t.json"), place.json("e.json"));
    let cell = &ours["rows"][0]["cells"][0]["measures"];
    assert_eq!(cell["answers"], theirs["baseline"]["answers"]);
    for (part, answers) in [("held_out", 3 * 3 * 7), ("probe", 0)] {
        let (a, b) = (&cell[part], &theirs["baseline"][part]);
        assert!(a.is_object() && b.is_object(), "{part}: {cell}");
        assert!(answers == 0 || a["answers"] == answers, "{a}");
        let kl = |m: &serde_json::Value| {
            m.get("kl").or_else(|| m["reports"].get("kl")).and_then(serde_json::Value::as_f64).unwrap()
        };
        assert!((kl(a) - kl(b)).abs() < 1e-9, "{part}: {} is not {}", kl(a), kl(b));
    }
    assert_eq!(
        ours["worlds"][0]["teacher"]["held_out"]["accuracy"],
        theirs["teacher"]["held_out"]["accuracy"]
    );
}

/// What cannot be measured is left out, is told, and takes nothing else with it.
#[test]
fn transfer_keeps_what_it_measured() {
    let place = Place::new();
    let world = "[run]\nname = \"f\"\n[teacher]\nworld = \"flights\"\nrounds = 2\nusers = 10\nepisodes_per_user = 1\n\
                 [eval]\nheld_out_sets = 0\nreasoner = false\n";
    place.write("f.toml", world);
    let two = |policy: &str| {
        format!("transfer f.toml f.toml::teacher.rounds=60{policy} --model base --episodes 2 --out t.json")
    };
    let done = place.run(&two("::tokens.on_too_long=drop"));
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(
        done.stderr.contains("cannot be measured on") && done.stderr.contains("nothing is left"),
        "{}",
        done.stderr
    );
    let cells = &place.json("t.json")["rows"][0]["cells"];
    assert!(cells[0]["measures"]["accuracy"].is_number() && cells[0].get("not_measured").is_none());
    assert!(cells[1].get("measures").is_none() && cells[1]["not_measured"].is_string(), "{cells}");
    // By default it is an error, which comes after the table and the file.
    std::fs::remove_file(place.path("t.json")).unwrap();
    let done = place.run(&two(""));
    assert_ne!(done.code, Some(0));
    assert!(done.stdout.contains("| baseline"), "{}", done.stdout);
    assert!(done.stderr.contains("tokens.on_too_long=drop"), "{}", done.stderr);
    assert!(place.json("t.json")["rows"][0]["cells"][0]["measures"]["accuracy"].is_number());
}

/// The shop has no exact teacher: what stands in for it is no yardstick, in `transfer` and in `eval`.
#[test]
fn no_teacher_is_made_up_for_the_shop() {
    let place = Place::new();
    let shop = "[run]\nname = \"s\"\n[teacher]\nworld = \"shop\"\nrounds = 2\nusers = 6\nepisodes_per_user = 1\n\
                [split]\ntrain = 0.0\nvalidation = 0.0\ntest = 1.0\n";
    place.write("s.toml", shop);
    place.ok("teach s.toml --out s");
    let told = place.ok("eval --model base --episodes s/test.jsonl --out e.json");
    assert!(!told.contains("| teacher"), "{told}");
    let eval = place.json("e.json");
    place.ok("transfer s.toml --model base --episodes 0 --out t.json");
    let transfer = place.json("t.json");
    assert!(transfer["worlds"][0].get("teacher").is_none(), "{transfer}");
    for measures in [&eval["baseline"], &transfer["rows"][0]["cells"][0]["measures"]] {
        for key in ["kl", "excess_log_loss", "agreement", "entropy_error"] {
            assert!(
                measures.get(key).is_none() && measures["by_observations"][0].get(key).is_none(),
                "{key}"
            );
        }
        assert!(measures["accuracy"].is_number() && measures["option_mass"].is_number());
    }
    for key in ["accuracy", "entropy", "top_probability"] {
        assert!(eval["teacher"].get(key).is_none(), "{key}");
    }
    // Held-out sets are of the episode's category, in eval and after the last answer too.
    place.ok("eval --model base --episodes s/test.jsonl --set eval.held_out_sets=3 --out h.json");
    let held_out = &place.json("h.json")["baseline"]["held_out"];
    assert_eq!(held_out["answers"], 6 * 3 * 3);
    assert!(held_out["accuracy"].is_number() && held_out.get("kl").is_none(), "{held_out}");
    // Where the oracle teaches, there is a teacher.
    place.ok("teach s.toml --out o --set teacher.kind=oracle");
    place.ok("eval --model base --episodes o/test.jsonl --out o.json");
    assert!(place.json("o.json")["baseline"]["kl"].is_number());
}

/// Keys that mean nothing where they are asked for are named, and a wrong config is found out before anything is loaded.
#[test]
fn what_is_not_measured_is_told() {
    let place = Place::new();
    place.write(
        "k.toml",
        "[run]\nname = \"k\"\n[teacher]\nworld = \"coins\"\nrounds = 4\nusers = 10\nepisodes_per_user = 1\n",
    );
    place.ok("teach k.toml --out k");
    let asked = "--set eval.probes=1 --set eval.interactive=true --set eval.sensitivity=4 --set eval.held_out_sets=9 \
                 --set eval.reasoner=true";
    let note = |words: &str| {
        let done = place.run(words);
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        done.stderr.lines().find(|line| line.contains("not measured")).map(str::to_owned)
    };
    let told = note(&format!("eval --model base --episodes k/test.jsonl {asked}")).unwrap();
    for key in ["held_out_sets", "probes", "interactive", "sensitivity", "reasoner"] {
        assert!(told.contains(&format!("eval.{key}")), "{told}");
    }
    assert!(told.contains("coins"), "{told}");
    // What merely is the default is nobody's wish.
    assert_eq!(note("eval --model base --episodes k/test.jsonl"), None);
    place.ok("teach c.toml --out c");
    let told = note(&format!("eval --model base --episodes c/test.jsonl {asked}")).unwrap();
    assert!(told.contains("eval.sensitivity") && told.contains("eval.held_out_sets"), "{told}");
    assert!(!told.contains("eval.probes") && !told.contains("eval.reasoner"), "{told}");
    std::fs::remove_file(place.path("c/inputs.json")).unwrap();
    let told = note("eval --model base --episodes c/test.jsonl --set eval.sensitivity=3").unwrap();
    assert!(told.contains("nothing says who taught"), "{told}");

    let words = "eval --model nowhere --episodes c/test.jsonl --config c.toml --set run.seed=9";
    place.fails(words, 2, &["is not what this config and its seed teach"]);
}
