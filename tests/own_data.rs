//! People's own data: all problems of a file at once, and other people's files as episodes.
//!
//! Expected distributions come from enumeration in these tests: weights over options, levels of the graded response
//! model.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use bayesteach::episode::{self, Episode};
use common::Place;
use serde_json::{Value, json};

fn lines(place: &Place, path: &str) -> Vec<Episode> {
    episode::read(&place.path(path)).unwrap()
}

fn close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9), "{found:?} is not {expected:?}");
}

fn good(id: &str) -> Value {
    json!({"format_version": 1, "id": id, "messages": [
        {"role": "user", "content": "Item 1: I am the life of the party."},
        {"role": "assistant", "content": "4", "answer":
            {"start": 0, "options": ["1", "2", "3", "4"], "probs": [0.1, 0.2, 0.3, 0.4], "said": 3, "truth": 1}}]})
}

#[test]
fn all_problems_are_told_at_once() {
    let place = Place::new();
    let mut two = good("two");
    two["messages"][1]["answer"]["said"] = json!(0);
    two["messages"][1]["answer"]["probs"] = json!([0.1, 0.2, 0.3, 0.5]);
    let target = |position: u32, probs: Value| {
        json!({"format_version": 1, "id": "t", "input_ids": [1, 2, 3], "targets":
            [{"position": position, "token_ids": [5, 6], "probs": probs}]})
    };
    let text = format!(
        "{}\n\n{two}\n{{\"id\": 3,\n{}\n{}\n{}\r\n",
        good("one"),
        good("one"),
        target(3, json!([0.5, 0.6])),
        target(2, json!([0.5, 0.5]))
    );
    let mut bytes = text.into_bytes();
    bytes.extend(b"{\"id\": \"\xff\"}\n");
    bytes.extend(br#"{"format_version": 1, "id": "x", "mesages": []}"#);
    place.write("bad.jsonl", bytes);
    place.write("good.jsonl", format!("{}\n{}\n", good("a"), good("b")));
    let done = place.run("validate good.jsonl bad.jsonl");
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    let told: Vec<&str> = done.stdout.lines().collect();
    for (line, part) in told.iter().zip([
        "bad.jsonl:3: episode \"two\": answer of message 1: probs sum to 1.1",
        "bad.jsonl:3: episode \"two\": answer of message 1: the label \"1\" (said) is not at byte 0",
        "bad.jsonl:4: ",
        "bad.jsonl:5: the id \"one\" is that of line 1 too",
        "bad.jsonl:6: sequence \"t\": target 0: position 3",
        "bad.jsonl:6: sequence \"t\": target 0: probs sum to 1.1",
        "bad.jsonl:8: not UTF-8",
        "bad.jsonl:9: unknown field `mesages`",
        "4 sound episodes in 2 files, 4 answers; 8 problems on 6 lines of 1 file",
    ]) {
        assert!(line.starts_with(part), "{line:?} is not {part:?}: {}", done.stdout);
    }
    assert!(told[7].ends_with("did you mean `messages`?"), "{}", told[7]);
    assert_eq!(told.len(), 9, "{}", done.stdout);
    assert!(done.stderr.contains("8 problems in 1 file"), "{}", done.stderr);
    // Other commands stop at such a file, with its first problem and how many more there are.
    let parts = ["bad.jsonl, line 3", "sum to 1.1", "7 more"];
    place.fails("eval --model base --episodes bad.jsonl", 1, &parts);

    assert_eq!(place.ok("validate good.jsonl"), "2 sound episodes in 1 file, 2 answers\n");
    place.ok("validate good.jsonl --model base");
    // To the model, options must begin differently.
    let mut alike = good("alike");
    alike["messages"][1]["answer"]["options"] = json!(["4 a", "4 b", "3", "4"]);
    place.write("alike.jsonl", format!("{}\n{alike}\n", good("a")));
    place.ok("validate alike.jsonl");
    let done = place.run("validate alike.jsonl --model base");
    assert_eq!(done.code, Some(1));
    assert!(done.stdout.starts_with("alike.jsonl:2: episode \"alike\""), "{}", done.stdout);
    let done = place.run("validate nowhere.jsonl good.jsonl");
    assert_eq!(done.code, Some(1));
    assert!(done.stdout.contains("cannot open nowhere.jsonl"), "{}", done.stdout);
    place.fails("validate", 2, &["FILE"]);
    place.fails("validate good.jsonl --model nowhere", 2, &["nowhere"]);
}

const DURATIONS: [&str; 11] = [
    "30 min",
    "2 hr 27 min",
    "4 hr 24 min",
    "6 hr 21 min",
    "8 hr 18 min",
    "10 hr 15 min",
    "12 hr 12 min",
    "14 hr 9 min",
    "16 hr 6 min",
    "18 hr 3 min",
    "20 hr",
];

/// (duration, price) levels of three options.
type Set = [(usize, usize); 3];

fn option_text(set: &Set) -> Vec<String> {
    let text = |(i, (duration, price)): (usize, &(usize, usize))| {
        format!("Flight {}: duration: {}, price: ${}", i + 1, DURATIONS[*duration], 100 + 90 * price)
    };
    set.iter().enumerate().map(text).collect()
}

/// In halves and tenths, so that ties are exact; the first of equals.
fn best(weights: (i64, i64), set: &Set) -> usize {
    let rewards: Vec<i64> = set.iter().map(|(d, p)| weights.0 * *d as i64 + weights.1 * *p as i64).collect();
    let highest = *rewards.iter().max().unwrap();
    rewards.iter().position(|r| *r == highest).unwrap()
}

/// The predictive of the last set after the others, over the weights that explain the choices; a choice that nothing
/// explains changes nothing. With a lapse, every option is as likely as lapse / 3 more.
fn predictive(sets: &[Set], chosen: &[usize], lapse: f64) -> Vec<f64> {
    let mut weights: Vec<((i64, i64), f64)> = Vec::new();
    for a in -2..=2 {
        for b in -2..=2 {
            if (a, b) != (0, 0) {
                weights.push(((a, b), 1.0));
            }
        }
    }
    let prob = |w: (i64, i64), set: &Set, option: usize| {
        lapse / 3.0 + if best(w, set) == option { 1.0 - lapse } else { 0.0 }
    };
    for (set, &choice) in sets.iter().zip(chosen) {
        let updated: Vec<_> = weights.iter().map(|(w, p)| (*w, p * prob(*w, set, choice))).collect();
        if updated.iter().any(|(_, p)| *p > 0.0) {
            weights = updated;
        }
    }
    let total: f64 = weights.iter().map(|(_, p)| p).sum();
    let last = &sets[chosen.len()];
    (0..3).map(|o| weights.iter().map(|(w, p)| p * prob(*w, last, o)).sum::<f64>() / total).collect()
}

const SETS: [Set; 4] = [
    [(0, 10), (5, 5), (10, 0)],
    [(3, 4), (9, 1), (2, 8)],
    [(1, 1), (7, 3), (4, 9)],
    [(6, 2), (2, 6), (8, 8)],
];

fn interaction(chosen: [usize; 4]) -> Value {
    let rounds: Vec<Value> = (SETS.iter().zip(chosen))
        .map(|(set, user_idx)| json!({"options": option_text(set), "user_idx": user_idx}))
        .collect();
    json!({"idx": 0, "reward_fn": [-1, 0.5], "rounds": rounds, "seed": 1, "features": ["duration", "price"]})
}

#[test]
fn published_interactions_get_the_exact_predictive() {
    let place = Place::new();
    // The third person's choices contradict each other: the dearest of all, then the cheapest.
    let people = [[0, 2, 0, 1], [2, 1, 1, 0], [0, 1, 2, 2]];
    let text: String = people.iter().map(|chosen| format!("{}\n", interaction(*chosen))).collect();
    place.write("flight_2features.jsonl", &text);
    let said = place.ok("import flight_2features.jsonl --out e.jsonl");
    assert_eq!(said, "3 episodes with 12 answers are in e.jsonl\n");
    for lapse in [0.0, 0.3] {
        if lapse > 0.0 {
            let set = ["import", "flight_2features.jsonl", "--out", "e.jsonl", "--set"];
            let value = format!("teacher.flights.teacher_likelihood={{lapse={lapse}}}");
            let done = place.command_of(&[&set[..], &[value.as_str()]].concat()).output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        }
        let episodes = lines(&place, "e.jsonl");
        for (episode, chosen) in episodes.iter().zip(people) {
            for (round, (answer, observations)) in episode.answers().enumerate() {
                assert_eq!((answer.truth, observations), (Some(chosen[round]), round));
                close(&answer.probs, &predictive(&SETS, &chosen[..round], lapse));
            }
        }
        assert_eq!(episodes[0].world, "flights");
        let users: Vec<&str> = episodes.iter().map(|e| e.user.as_str()).collect();
        assert_eq!(users, ["0-1", "0-2", "0-3"]);
        let feedback = &episodes[0].messages[2].content;
        assert!(feedback.contains("Flight 1") && feedback.contains("duration: 6 hr 21 min, price: $460"));
    }
    place.ok("validate e.jsonl");

    let mut wrong = interaction([0, 0, 0, 0]);
    wrong["rounds"][1]["user_idx"] = json!(3);
    let mut level = interaction([0, 0, 0, 0]);
    level["rounds"][2]["options"][0] = json!("Flight 1: duration: 31 min, price: $100");
    place.write("bad.jsonl", format!("{text}{wrong}\n{level}\n{{\"rounds\": []}}\n"));
    let done = place.run("import bad.jsonl --out bad-e.jsonl");
    assert_eq!(done.code, Some(1));
    for part in
        ["bad.jsonl:4: round 1", "bad.jsonl:5: round 2", "\"31 min\"", "bad.jsonl:6: there are no rounds"]
    {
        assert!(done.stdout.contains(part), "{part}: {}", done.stdout);
    }
    assert!(done.stderr.contains("nothing was written") && !place.path("bad-e.jsonl").exists());
    place.ok("import bad.jsonl --out bad-e.jsonl --skip-bad");
    assert_eq!(lines(&place, "bad-e.jsonl").len(), 3);
    place.fails("import flight_2features.jsonl --out e.jsonl --options 1,2", 2, &["--options"]);
    place.fails("import flight_2features.jsonl --out e.jsonl --set teacher.beliefs.every=1", 2, &["beliefs"]);
    place.fails("import flight_2features.jsonl --out nowhere/e.jsonl", 1, &["nowhere"]);
    place.fails("import nowhere.jsonl --out e.jsonl", 1, &["cannot open nowhere.jsonl"]);
    place.fails("import c.toml --out e.jsonl", 1, &["--format", "held-out"]);
}

#[test]
fn held_out_sets_follow_the_interaction() {
    let place = Place::new();
    place.write("flight.jsonl", format!("{}\n", interaction([0, 2, 0, 1])));
    let sets: Vec<Vec<String>> = SETS[2..].iter().map(option_text).collect();
    let held_out = json!({"features": ["duration", "price"], "all_options": sets,
        "user_idxs": [{"reward_fn": [-1.0, 0.5], "idxs": [0, 1]}]});
    place.write("held.json", serde_json::to_string_pretty(&held_out).unwrap());
    place.ok("import held.json --interactions flight.jsonl --after 2 --out e.jsonl");
    let episodes = lines(&place, "e.jsonl");
    assert_eq!(episodes.len(), 2);
    for (i, episode) in episodes.iter().enumerate() {
        let answers: Vec<_> = episode.answers().map(|(answer, _)| answer).collect();
        let weights: Vec<f64> = answers.iter().map(|answer| answer.weight).collect();
        assert_eq!(weights, [0.0, 0.0, 1.0]);
        close(&answers[2].probs, &predictive(&[SETS[0], SETS[1], SETS[2 + i]], &[0, 2], 0.0));
        assert_eq!(answers[2].truth, Some(i));
    }
    place.ok("import held.json --sets 1 --out none.jsonl");
    let episodes = lines(&place, "none.jsonl");
    assert_eq!(episodes.len(), 1);
    close(&episodes[0].answers().next().unwrap().0.probs, &predictive(&[SETS[2]], &[], 0.0));
    place.fails("import held.json --after 2 --out e.jsonl", 2, &["--interactions"]);
    let mut wrong = held_out.clone();
    wrong["user_idxs"][0]["idxs"] = json!([0]);
    place.write("held.json", wrong.to_string());
    let done = place.run("import held.json --format held-out --out e.jsonl");
    assert!(
        done.code == Some(1) && done.stdout.contains("1 choices for 2 sets"),
        "{}{}",
        done.stdout,
        done.stderr
    );
}

#[test]
fn the_web_shop_has_no_teacher() {
    let place = Place::new();
    let options: Vec<String> =
        (1..=3).map(|i| format!("Product {i}: A rug\nColor: red\nSize: {i} ft")).collect();
    let round = json!({"options": options, "user_idx": 1, "score": [0.0, 0.5, 0.25]});
    let line =
        json!({"idx": 0, "goal_attrs": ["soft"], "goal_options": {"color": "red"}, "rounds": [round, round]});
    place.write("rugs.jsonl", format!("{line}\n"));
    let done = place.run("import rugs.jsonl --out e.jsonl");
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(done.stderr.contains("no exact teacher"), "{}", done.stderr);
    let episodes = lines(&place, "e.jsonl");
    close(&episodes[0].answers().nth(1).unwrap().0.probs, &[1.0 / 3.0; 3]);
    assert!(episodes[0].messages[0].content.contains("Product 2: A rug\nColor: red\nSize: 2 ft"));
    let own = json!({"all_options": [round, round]});
    place.write("held.jsonl", format!("{own}\n"));
    place.ok("import held.jsonl --interactions rugs.jsonl --out h.jsonl");
    assert_eq!(lines(&place, "h.jsonl").len(), 2);
}

/// Samejima's model by hand, at the program's published parameters: P(x ≥ k) = 1 / (1 + exp(−a (θ − b))).
fn graded(level: f64, negative: bool) -> Vec<f64> {
    let reach = |b: f64| 1.0 / (1.0 + (-1.955 * (level - b)).exp());
    let above = [1.0, reach(-1.084), reach(-0.361), reach(0.361), reach(1.084), 0.0];
    let mut probs: Vec<f64> = above.windows(2).map(|pair| pair[0] - pair[1]).collect();
    if negative {
        probs.reverse();
    }
    probs
}

#[test]
fn questionnaires_get_the_exact_predictive() {
    let place = Place::new();
    // Extraversion: item 1 (+), item 2 (−); openness: item 1 (+). As the openpsychometrics files name them.
    let text = "age\tE1\tE2\tO1\tid\n30\t5\t1\t3\tanna\n31\t2\tNA\t0\t\n";
    place.write("data.csv", text);
    let order = "--set teacher.personality.order=interleaved";
    let done = place.run(&format!("import data.csv --out e.jsonl {order}"));
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(done.stderr.contains("3 of the 50 items"), "{}", done.stderr);
    let episodes = lines(&place, "e.jsonl");
    assert_eq!(episodes.len(), 2);
    assert_eq!((episodes[0].user.as_str(), episodes[1].user.as_str()), ("anna", "row 2"));
    let levels = [-2.0, -1.0, 0.0, 1.0, 2.0];
    let at_prior: Vec<f64> =
        (0..5).map(|x| levels.iter().map(|&l| graded(l, false)[x]).sum::<f64>() / 5.0).collect();
    let posterior: Vec<f64> = levels.iter().map(|&l| graded(l, false)[4]).collect();
    let total: f64 = posterior.iter().sum();
    let second: Vec<f64> = (0..5)
        .map(|x| levels.iter().zip(&posterior).map(|(&l, p)| graded(l, true)[x] * p).sum::<f64>() / total)
        .collect();
    let answers: Vec<_> = episodes[0].answers().collect();
    // The official order: item 1 of extraversion, item 1 of openness, item 2 of extraversion.
    assert_eq!(
        answers.iter().map(|(a, n)| (a.truth, *n)).collect::<Vec<_>>(),
        [(Some(4), 0), (Some(2), 0), (Some(0), 1)]
    );
    close(&answers[0].0.probs, &at_prior);
    close(&answers[1].0.probs, &at_prior);
    close(&answers[2].0.probs, &second);
    assert!(episodes[0].messages[0].content.ends_with("Item 1: I am the life of the party."));
    assert!(episodes[0].messages[2].content.starts_with("I answered 5."));
    assert_eq!(episodes[1].answers().count(), 1);
    place.ok("eval --model base --episodes e.jsonl --out eval.json");
    assert_eq!(place.json("eval.json")["answers"], 4);

    place.write("bad.csv", "Q1;Q2;I have a rich vocabulary.\n1;2;3\n1;6;x\n1;2\n;;\n2;2;2\n");
    let done = place.run("import bad.csv --out bad.jsonl");
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    for part in [
        "bad.csv:3: column \"Q2\" is \"6\"",
        "bad.csv:3: column \"I have a rich vocabulary.\" is \"x\"",
        "bad.csv:4: 2 fields",
        "bad.csv:5: nothing was answered",
    ] {
        assert!(done.stdout.contains(part), "{part}: {}", done.stdout);
    }
    assert!(!place.path("bad.jsonl").exists());
    assert_eq!(
        place.ok("import bad.csv --skip-bad --out bad.jsonl").lines().last().unwrap(),
        "2 episodes with 6 answers are in bad.jsonl; 4 problems, such rows were left out"
    );
    for (header, parts) in [
        ("a,b\n1,2\n", &["no items", "EXT1"][..]),
        ("E1,EXT1,A1\n1,2,3\n", &["\"E1\" and \"EXT1\"", "same item"]),
        ("E1,E2\n", &["nobody"]),
    ] {
        place.write("bad.csv", header);
        place.fails("import bad.csv --out x.jsonl", 1, parts);
    }
}

#[test]
fn messages_with_soft_labels_and_without() {
    let place = Place::new();
    let soft = json!({"id": "d1", "user": "u7", "messages": [
        {"role": "system", "content": "Predict."},
        {"role": "user", "content": "Heads or tails?"},
        {"role": "assistant", "content": "I say tails.", "probs": {"heads": 0.333, "tails": 0.666}, "truth": "heads"},
        {"role": "user", "content": "Heads. Again?"},
        {"role": "assistant", "content": "10 or 1: 10", "probs": {"1": 0.5, "10": 0.5}, "said": "10", "start": 9,
         "weight": 2.0}]});
    place.write("soft.jsonl", format!("{soft}\n"));
    place.ok("import soft.jsonl --out e.jsonl");
    let episode = &lines(&place, "e.jsonl")[0];
    assert_eq!(episode.user, "u7");
    let answers: Vec<_> = episode.answers().map(|(answer, _)| answer).collect();
    assert_eq!((answers[0].start, answers[0].said, answers[0].truth), (6, 1, Some(0)));
    close(&answers[0].probs, &[1.0 / 3.0, 2.0 / 3.0]);
    assert_eq!((answers[1].start, answers[1].said, answers[1].weight), (9, 1, 2.0));

    // The published training files: a dialogue once for each of its turns, with what was said as the target.
    let flight = |n: usize| {
        let mut messages = Vec::new();
        for said in [3, 1, 2].iter().take(n) {
            messages.push(json!({"role": "user", "content": format!("Which flight? ({said})")}));
            messages
                .push(json!({"role": "assistant", "content": format!("The best option is Flight {said}.")}));
        }
        json!({"idx": 4, "messages": messages})
    };
    let text: String = (1..=3).map(|n| format!("{}\n", flight(n))).collect();
    place.write("bayesian.jsonl", &text);
    let import = ["import", "bayesian.jsonl", "--out", "b.jsonl", "--options", "1,2,3", "--answer"];
    let run = |answer: &str| place.command_of(&[&import[..], &[answer]].concat()).output().unwrap();
    let done = run("The best option is Flight {}.");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(String::from_utf8_lossy(&done.stderr).contains("2 lines are only the beginning"));
    let episodes = lines(&place, "b.jsonl");
    assert_eq!(episodes.len(), 1);
    let said: Vec<usize> = episodes[0].answers().map(|(answer, _)| answer.said).collect();
    assert_eq!(said, [2, 0, 1]);
    let (first, _) = episodes[0].answers().next().unwrap();
    close(&first.probs, &[0.0, 0.0, 1.0]);
    assert_eq!((first.start, first.truth), (26, None));

    let done = run("I choose {}.");
    assert_eq!(done.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&done.stdout).contains("bayesian.jsonl:3: no assistant message"));
    assert_eq!(run("no place").status.code(), Some(2));
    place.write("bad.jsonl", "{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\", \"probs\": {\"a\": 0.5, \"b\": 0.1}}]}\n{\"messages\": 3}\n");
    let done = place.run("import bad.jsonl --out x.jsonl");
    assert_eq!(done.code, Some(1));
    assert!(done.stdout.contains("bad.jsonl:1: message 0: the probabilities sum to 0.6"), "{}", done.stdout);
    assert!(done.stdout.contains("bad.jsonl:2: "), "{}", done.stdout);
}
