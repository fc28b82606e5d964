//! Live dialogues in the terminal, and the choice of evidence.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::Write as _;
use std::process::Stdio;

use bayesteach::episode;
use bayesteach::session::{Look, Predictor, Probes};
use bayesteach::teacher::{Evidence, Sessions, TeacherConfig, WorldName};
use bayesteach::tokens::{ModelLimits, Pipeline, TokensConfig};
use bayesteach::{eval, metrics};
use common::{Done, Place};
use serde_json::{Value, json};

/// Runs a command with these lines typed.
fn typed(place: &Place, words: &str, lines: &str) -> Done {
    let mut command = place.command(words);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Who is refused before reading closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(lines.as_bytes());
    child.wait_with_output().unwrap().into()
}

/// The numbers are those of `teaching.md` B.4: the teacher gives a first 5 .289, and after one extreme answer the item's
/// trait is known to (.857 .459 .107 .019 .003)/1.445 from the answered end.
#[test]
fn a_person_is_asked_and_believed() {
    let place = Place::new();
    let done = typed(&place, "ask c.toml --save people.jsonl --user Ada", "5\nperhaps\n\n1\nq\n3\n");
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    let told = &done.stdout;
    for part in [
        "from 1 (very inaccurate)",
        "[1/4]",
        "the teacher gave 5 0.29",
        "after 2 answer(s)",
        "[3/4]",
        "saved",
    ] {
        assert!(told.contains(part), "{part} is not in {told}");
    }
    assert!(!told.contains("[4/4]") && done.stderr.contains("\"perhaps\" is no answer"));
    let surest = told.lines().filter(|line| line.contains("(59 % sure)")).count();
    assert_eq!(surest, 2, "{told}");
    let people = episode::read(&place.path("people.jsonl")).unwrap();
    let truths: Vec<_> = people[0].answers().map(|(answer, _)| answer.truth).collect();
    assert!(people.len() == 1 && people[0].user == "Ada" && truths == [Some(4), Some(0)]);
    // The end of the input ends it too, and without an answer there is nothing to save.
    let done = typed(&place, "ask c.toml --save people.jsonl", "");
    assert!(done.code == Some(0) && done.stderr.contains("nothing is saved"));
    assert_eq!(episode::read(&place.path("people.jsonl")).unwrap().len(), 1);
    place.write("flights.toml", "[run]\nname = \"f\"\n[teacher]\nworld = \"flights\"\ncandidates = 20\n");
    let done = typed(&place, "ask flights.toml --save people.jsonl", "1\n2\n3\n1\n2\n");
    done.is_error("another world", 2, &["people.jsonl", "another world"]);
    let done = typed(&place, "ask flights.toml", "1\n2\n3\n1\n2\n");
    assert!(
        done.code == Some(0) && done.stdout.contains("after 5 answer(s)") && done.stdout.contains("price:")
    );
    assert!(place.run("ask nowhere.toml").code == Some(2));
    place.write("coins.toml", "[run]\nname = \"f\"\n[teacher]\nworld = \"coins\"\n");
    place.fails("ask coins.toml", 2, &["drawn sources"]);
    place.fails("ask flights.toml --evidence fisher", 2, &["fisher"]);
    place.fails("ask c.toml --who teacher --model base", 2, &["--who teacher"]);
    place.fails("ask c.toml --save nowhere/people.jsonl", 1, &["nowhere"]);
}

#[test]
fn a_model_takes_part() {
    let place = Place::new();
    place.ok("train c.toml --set train.max_steps=2");
    let both = typed(&place, "ask runs/a --probes 1", "5\n");
    assert_eq!(both.code, Some(0), "{}", both.stderr);
    for part in
        ["the model gave it", "model  ", "…says", "the model acts as if it believed", "the teacher believes"]
    {
        assert!(both.stdout.contains(part), "{part} is not in {}", both.stdout);
    }
    let model = typed(&place, "ask c.toml --who model --model base --adapter runs/a --probes 0", "5\n");
    assert!(model.code == Some(0) && !model.stdout.contains("teacher"), "{}", model.stdout);
    assert!(!model.stdout.contains("acts as if") && model.stdout.contains("the model says"));
    let teacher = typed(&place, "ask runs/a --who teacher", "5\n");
    assert!(teacher.code == Some(0) && !teacher.stdout.contains("model"), "{}", teacher.stdout);
}

/// What the model is heard to predict in a live dialogue, on a past that is kept, is what `eval` measures on the whole
/// dialogue afterwards.
#[test]
fn a_live_prediction_is_that_of_the_whole_dialogue() {
    use bayesteach::model::config::ModelConfig;
    use bayesteach::model::decoder::Decoder;
    use candle_core::{DType, Device};
    let place = Place::new();
    let base = place.path("base");
    let config = ModelConfig::load(&base).unwrap();
    let limits = ModelLimits {
        max_position_embeddings: config.max_position_embeddings,
        vocab_size: config.vocab_size,
    };
    let open = || {
        let pipeline = Pipeline::load(&base, &TokensConfig::default(), limits).unwrap();
        (pipeline, Decoder::load(&base, &config, DType::F32, &Device::Cpu).unwrap())
    };
    let teacher = TeacherConfig { rounds: Some(6), ..TeacherConfig::new(WorldName::Personality) };
    let sessions = Sessions::new(&teacher, Evidence::Eig).unwrap();
    let mut session = sessions.begin(3);
    let (pipeline, decoder) = open();
    let mut predictor = Predictor::new(pipeline, decoder);
    let probes = Probes::new(&sessions, 2);
    let mut heard: Vec<Vec<f64>> = Vec::new();
    for answer in [4, 0, 2, 1, 3, 0] {
        let look = Look::at(&sessions, &session, Some((&mut predictor, &probes))).unwrap();
        heard.push(look.question.unwrap().model.unwrap());
        session.answer(answer).unwrap();
    }
    let (pipeline, decoder) = open();
    let episode = session.interview().episode("live", "me").unwrap();
    let sequences = [pipeline.encode(&episode).unwrap().sequence];
    let measured: Vec<metrics::Prediction> = eval::predictions(&decoder, &sequences, 4096, &|_| {}).unwrap();
    assert_eq!(measured.len(), 6);
    for (live, whole) in heard.iter().zip(&measured) {
        for (p, q) in live.iter().zip(whole.probs()) {
            assert!((p - q).abs() < 1e-5, "{live:?} {:?}", whole.probs());
        }
    }
}

/// Three kinds of user, and how probable each says yes. Question 0 is the best alone; 1 and 2 together rule out both
/// others.
const YES: [[f64; 3]; 5] =
    [[0.8, 0.3, 0.3], [0.8, 0.01, 0.8], [0.8, 0.8, 0.012], [0.5, 0.5, 0.5], [0.4, 0.5, 0.6]];

fn tiny_world(place: &Place) {
    let mut world = String::from(
        "format_version = 1\nname = \"tiny\"\n[text]\nopening = \"Guess.\\n{{ question }}\"\nquestion = \"{{ text }}\"\n\
         reply = \"{{ label }}\"\nfeedback = \"It was {{ truth }}.\\n{{ question }}\"\n[questionnaire]\n\
         options = [\"no\", \"yes\"]\n[[factors]]\nname = \"kind\"\nvalues = [\"a\", \"b\", \"c\"]\n",
    );
    let mut messages = Vec::new();
    for (i, [a, b, c]) in YES.into_iter().enumerate() {
        world += &format!(
            "[[questions]]\ntext = \"Question {i}?\"\non = \"kind\"\ntable = {{ a = [{}, {a}], b = [{}, {b}], c = [{}, {c}] }}\n",
            1.0 - a,
            1.0 - b,
            1.0 - c
        );
        let before = if i == 0 { "Guess.\n" } else { "It was yes.\n" };
        messages.push(json!({"role": "user", "content": format!("{before}Question {i}?")}));
        let answer =
            json!({"start": 0, "options": ["no", "yes"], "probs": [0.5, 0.5], "said": 1, "truth": 1});
        messages.push(json!({"role": "assistant", "content": "yes", "answer": answer}));
    }
    place.write("tiny.toml", world);
    place.write("tiny-run.toml", "[run]\nname = \"t\"\n[teacher]\nworld = \"tiny.toml\"\n");
    let episode = json!({"format_version": 1, "id": "p", "world": "tiny", "user": "p", "messages": messages});
    place.write("pool.jsonl", format!("{episode}\n"));
}

/// The posterior of kind a after these examples, by multiplication.
fn posterior(shown: &[usize]) -> f64 {
    let weight = |kind: usize| shown.iter().map(|&i| YES[i][kind]).product::<f64>();
    weight(0) / (weight(0) + weight(1) + weight(2))
}

#[test]
fn schedules_are_those_of_brute_force() {
    let place = Place::new();
    tiny_world(&place);
    let run = |more: &str| -> Value {
        let told =
            place.ok(&format!("schedule tiny-run.toml --level kind=a --pool pool.jsonl --json {more}"));
        serde_json::from_str(&told).unwrap()
    };
    let order = |told: &Value| -> Vec<usize> {
        let order = told["schedules"][0]["order"].as_array().unwrap();
        order.iter().map(|i| i.as_u64().unwrap() as usize).collect()
    };
    for count in 1..=5 {
        let told = run(&format!("--count {count} --search exhaustive"));
        let best = (0_u32..32)
            .filter(|set| set.count_ones() as usize == count)
            .map(|set| posterior(&(0..5).filter(|i| set >> i & 1 == 1).collect::<Vec<_>>()))
            .fold(0.0, f64::max);
        let found = order(&told);
        assert!((posterior(&found) - best).abs() < 1e-9, "{count}: {found:?}");

        let mut greedy = Vec::new();
        while greedy.len() < count {
            let left = (0..5).filter(|i| !greedy.contains(i));
            let with = |i: &usize| posterior(&[greedy.as_slice(), &[*i]].concat());
            greedy.push(left.max_by(|a, b| with(a).total_cmp(&with(b))).unwrap());
        }
        let told = run(&format!("--count {count} --search greedy"));
        assert_eq!(order(&told), greedy);
        for (shown, after) in told["schedules"][0]["after"].as_array().unwrap().iter().enumerate() {
            let expected = posterior(&greedy[..shown]).ln();
            assert!((after["log_posterior"].as_f64().unwrap() - expected).abs() < 1e-9);
        }
    }
    // Where the best single example is not among the best two.
    assert_eq!(order(&run("--count 2 --search greedy"))[0], 0);
    assert_eq!(order(&run("--count 2 --search exhaustive")), [1, 2]);
    let told = run("--count 2");
    let names: Vec<&str> =
        told["schedules"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["chosen by the teacher", "random order", "given order"]);

    let table =
        place.ok("schedule tiny-run.toml --level kind=1 --pool pool.jsonl --count 2 --out found.jsonl");
    assert!(
        table.contains("exact posterior of the target") && table.contains("Question 0? → yes"),
        "{table}"
    );
    assert_eq!(episode::read(&place.path("found.jsonl")).unwrap().len(), 2);
    // Questions are asked where the order puts them, whatever their place in the pool.
    place.ok("schedule c.toml --level extraversion=5 --draw 8 --count 3 --probes 0 --out items.jsonl");
    for episode in episode::read(&place.path("items.jsonl")).unwrap() {
        let asked: Vec<&str> = (episode.messages.iter())
            .filter_map(|message| message.content.split("Item ").nth(1)?.split(':').next())
            .collect();
        assert_eq!(asked, ["1", "2", "3"]);
    }
    for (words, part) in [
        ("--level kind=4 --pool pool.jsonl", "levels are a, b, c"),
        ("--level mood=1 --pool pool.jsonl", "has kind"),
        ("--user 3 --pool pool.jsonl", "users 0 to 2"),
        ("--user 0 --draw 9", "1 to 5"),
        ("--user 0 --draw 5 --count 6", "--count is 6"),
        ("--user 0 --draw 5 --count 2 --by-model", "no model is named"),
    ] {
        place.fails(&format!("schedule tiny-run.toml {words}"), 2, &[part]);
    }
    let pool = std::fs::read_to_string(place.path("pool.jsonl")).unwrap();
    place.write("other.jsonl", pool.replace("Question 3?", "Question 7?"));
    place.fails("schedule tiny-run.toml --user 0 --pool other.jsonl", 1, &["other.jsonl", "question 4"]);
}

#[test]
fn a_model_chooses_what_moves_it_most() {
    let place = Place::new();
    place.ok("train c.toml --set train.max_steps=2");
    let told =
        place.ok("schedule runs/a --level extraversion=5 --draw 4 --count 2 --by-model --random 2 --json");
    let told: Value = serde_json::from_str(&told).unwrap();
    let schedules = told["schedules"].as_array().unwrap();
    assert_eq!(schedules.len(), 4);
    let first = |i: usize| schedules[i]["after"][1]["model_distance"].as_f64().unwrap();
    assert_eq!(schedules[1]["name"], "chosen by the model");
    assert!((0..4).all(|i| first(1) <= first(i) + 1e-6), "{told}");
}
