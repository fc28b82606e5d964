//! What a run leaves to look at: the page, the plots, TensorBoard's events, and runs side by side.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;

use common::Place;
use serde_json::{Value, json};

/// What would make a page ask the network, run a script or leave its own markup.
const FORBIDDEN: [&str; 10] = [
    "<script",
    "<img",
    "<iframe",
    "<object",
    "<link rel=\"stylesheet",
    "src=",
    "@import",
    "url(",
    "http:",
    "https:",
];

fn page(place: &Place, run: &str) -> String {
    std::fs::read_to_string(place.path(run).join("report.html")).unwrap()
}

fn assert_harmless(page: &str) {
    for forbidden in FORBIDDEN {
        assert!(!page.to_lowercase().contains(forbidden), "{forbidden} is in the page");
    }
}

#[test]
fn a_run_ends_in_a_page_and_plots() {
    let place = Place::new();
    let told = place.ok("run c.toml");
    assert!(told.contains("report: runs/a/report.html"), "{told}");
    let page = page(&place, "runs/a");
    assert_harmless(&page);
    for part in
        ["Learning from answers", "Training", "Calibration", "Choices", "Episodes", "config.toml", "Item 1"]
    {
        assert!(page.contains(part), "{part} is not in the page");
    }
    // The numbers are those of the result file.
    let eval = place.json("runs/a/eval.json");
    let accuracy = eval["fine_tuned"]["accuracy"].as_f64().unwrap();
    assert!(page.contains(&format!("{accuracy:.3}")));
    for fingerprint in [&eval["adapter"], &eval["episodes_fingerprint"]] {
        assert!(page.contains(fingerprint.as_str().unwrap()));
    }
    let plots = place.names("runs/a/plots");
    for name in
        ["accuracy", "kl", "entropy", "reliability", "agreement-by-margin", "training-kl", "fine-tuned-truth"]
    {
        assert!(plots.contains(&format!("{name}.svg")), "{name} is not in {plots:?}");
    }
    for (name, bytes) in place.files("runs/a/plots") {
        let svg = String::from_utf8(bytes).unwrap();
        assert!(svg.starts_with("<svg xmlns=") && svg.ends_with("</svg>\n"), "{name}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{name}");
    }
    // Made again from the same files it is the same.
    let before = place.files("runs/a");
    place.ok("report runs/a");
    assert!(before == place.files("runs/a"));
}

#[test]
fn reported_beliefs_have_plots_of_their_own() {
    let place = Place::new();
    place.ok("run c.toml --set train.max_steps=2 --set teacher.beliefs.every=2");
    let page = page(&place, "runs/a");
    assert_harmless(&page);
    for part in ["Reported beliefs: accuracy", "Reported beliefs: KL from the teacher", "emotional stability"]
    {
        assert!(page.contains(part), "{part} is not in the page");
    }
    let plots = place.names("runs/a/plots");
    for name in ["beliefs-accuracy.svg", "beliefs-kl.svg"] {
        assert!(plots.contains(&name.to_owned()), "{plots:?}");
    }
}

/// Everything that is shown comes from files that anyone may have written.
#[test]
fn hostile_text_stays_text() {
    let place = Place::new();
    place.ok("run c.toml --set train.max_steps=1");
    let hostile =
        "</pre></svg><script>alert(1)</script><img src=x onerror='alert(1)'>{{ 7 * 7 }}{% raw %}\"&\u{0}";
    let run = "runs/<img src=x onerror=alert(1)>\"&'{{7}}";
    std::fs::rename(place.path("runs/a"), place.path(run)).unwrap();
    let at = |name: &str| format!("{run}/{name}");

    let lines = std::fs::read_to_string(place.path(&at("predictions.jsonl"))).unwrap();
    let mut episode: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    for key in ["id", "world", "user"] {
        episode[key] = json!(hostile);
    }
    for message in episode["messages"].as_array_mut().unwrap() {
        message["content"] = json!(hostile);
        if let Some(options) = message.get_mut("answer").and_then(|a| a.get_mut("options")) {
            options[0] = json!(hostile);
        }
    }
    place.write(&at("predictions.jsonl"), format!("{episode}\n"));
    let mut eval = place.json(&at("eval.json"));
    eval["options"][0] = json!(hostile);
    eval["adapter"] = json!(hostile);
    place.write(&at("eval.json"), eval.to_string());
    let mut about = place.json(&at("run.json"));
    about["model"] = json!(hostile);
    about[hostile] = json!({hostile: hostile});
    place.write(&at("run.json"), about.to_string());
    let config = std::fs::read_to_string(place.path(&at("config.toml"))).unwrap();
    place.write(&at("config.toml"), format!("# {hostile}\n{config}"));

    let done = place.command_of(&["report", run]).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    let page = page(&place, run);
    for raw in ["<script", "<img", "onerror='", "onerror=alert(1)>\"", "{{ 49 }}"] {
        assert!(!page.contains(raw), "{raw} is in the page");
    }
    assert!(page.contains("&lt;script&gt;") && page.contains("{{ 7 * 7 }}"), "what is there is shown");
    for (name, svg) in place.files(&at("plots")) {
        let svg = String::from_utf8(svg).unwrap();
        assert!(!svg.contains("<script") && !svg.contains("<img"), "{name}");
    }
}

#[test]
fn a_report_shows_what_there_is() {
    let place = Place::new();
    // Trained, but not measured; and the last line of its log is half written.
    place.ok("train c.toml --set train.max_steps=3");
    let log = std::fs::read_to_string(place.path("runs/a/metrics.jsonl")).unwrap();
    place.write("runs/a/metrics.jsonl", log + "{\"step\":4,\"lo");
    place.ok("report runs/a");
    let page = page(&place, "runs/a");
    assert!(page.contains("Nothing has been measured yet") && page.contains("Learning rate"));
    assert!(!page.contains("Calibration</h2>"));
    // No run, or a damaged file: an error, and the page stays as it was.
    place.fails("report base", 2, &["base", "config.toml"]);
    place.fails("report nowhere", 2, &["nowhere"]);
    for (name, text) in
        [("eval.json", "{\"format_version\": 1"), ("predictions.jsonl", "{}\n"), ("run.json", "[")]
    {
        place.write(&format!("runs/a/{name}"), text);
        place.fails("report runs/a", 1, &[name]);
        std::fs::remove_file(place.path(&format!("runs/a/{name}"))).unwrap();
    }
    assert_eq!(page, self::page(&place, "runs/a"));
}

/// (tag, step) → value, from the bytes of an event file; a plain reading of TFRecord and protobuf.
fn events(bytes: &[u8]) -> BTreeMap<(String, u64), f32> {
    let mut found = BTreeMap::new();
    let mut at = 0;
    while at < bytes.len() {
        let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        let event = fields(&bytes[at + 12..at + 12 + length]);
        at += 16 + length;
        let Some((_, summary)) = event.iter().find(|(field, _)| *field == 5) else { continue };
        let step = event.iter().find(|(field, _)| *field == 2).map_or(0, |(_, v)| varint(v).0);
        for (_, value) in fields(summary) {
            let value = fields(value);
            let tag = String::from_utf8(value[0].1.to_vec()).unwrap();
            let number = f32::from_le_bytes(value[1].1.try_into().unwrap());
            assert!(found.insert((tag.clone(), step), number).is_none(), "{tag} stands twice at step {step}");
        }
    }
    found
}

fn varint(bytes: &[u8]) -> (u64, usize) {
    let mut value = 0;
    for (i, byte) in bytes.iter().enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return (value, i + 1);
        }
    }
    panic!("a number without an end")
}

/// (field, its bytes) of a protobuf message.
fn fields(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let mut found = Vec::new();
    while let Some((&key, rest)) = bytes.split_first() {
        let (skip, length) = match key & 7 {
            0 => (0, varint(rest).1),
            1 => (0, 8),
            2 => (varint(rest).1, varint(rest).0 as usize),
            5 => (0, 4),
            other => panic!("wire type {other}"),
        };
        found.push((key >> 3, &rest[skip..skip + length]));
        bytes = &rest[skip + length..];
    }
    found
}

#[test]
fn tensorboard_has_every_step_once() {
    let place = Place::new();
    place.ok("train c.toml --set train.max_steps=4");
    // A step that no checkpoint has, half a line and half a record, as a killed process leaves them.
    let log = std::fs::read_to_string(place.path("runs/a/metrics.jsonl")).unwrap();
    let ahead = json!({"step": 5, "loss": 7.0, "time": 0.0});
    place.write("runs/a/metrics.jsonl", format!("{log}{ahead}\n{{\"step\":"));
    let file = "runs/a/events.out.tfevents.0.bayesteach";
    let mut bytes = std::fs::read(place.path(file)).unwrap();
    bytes.truncate(bytes.len() - 7);
    place.write(file, bytes);
    place.ok("train c.toml --set train.max_steps=6 --resume");

    let told = events(&std::fs::read(place.path(file)).unwrap());
    let mut expected = BTreeMap::new();
    for line in std::fs::read_to_string(place.path("runs/a/metrics.jsonl")).unwrap().lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        assert!(record["time"].as_f64().unwrap() > 1.7e9, "{line}");
        for (name, tag) in [
            ("loss", "train/loss"),
            ("kl", "train/kl"),
            ("lr", "train/learning_rate"),
            ("validation_kl", "eval/kl"),
            ("validation_entropy", "eval/entropy"),
        ] {
            if let Some(value) = record[name].as_f64() {
                expected.insert((tag.to_string(), record["step"].as_u64().unwrap()), value as f32);
            }
        }
    }
    let steps: Vec<u64> =
        expected.keys().filter(|(tag, _)| tag == "train/loss").map(|(_, step)| *step).collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6]);
    for (key, value) in expected {
        assert_eq!(told.get(&key), Some(&value), "{key:?}");
    }
}

#[test]
fn runs_are_compared_on_the_same_episodes() {
    let place = Place::new();
    place.ok("run c.toml");
    place.ok("run c.toml --set run.name=b --set train.max_steps=1");
    let table = place.ok("compare runs/a runs/b");
    for part in ["baseline", "| a ", "| b ", "teacher", "accuracy", "KL from the teacher"] {
        assert!(table.contains(part), "{part:?} is not in {table}");
    }
    let told: Value = serde_json::from_str(&place.ok("compare runs/a runs/b --json")).unwrap();
    let (eval, accuracy) = (place.json("runs/b/eval.json"), &told["runs"][1]["measures"][0]);
    assert_eq!(
        (&accuracy["measure"], &accuracy["mean"]),
        (&json!("accuracy"), &eval["fine_tuned"]["accuracy"])
    );
    let error = eval["fine_tuned"]["standard_errors"]["accuracy"].as_f64().unwrap();
    let width = accuracy["interval"][1].as_f64().unwrap() - accuracy["interval"][0].as_f64().unwrap();
    assert!((width - 2.0 * 1.96 * error).abs() < 1e-12);

    // Users' sums as (2 of 2, 0 of 2) and (1 of 2, 0 of 2): their means differ by -½ and 0.
    assert!(table.contains("less a, on the same answers"), "{table}");
    let difference = |told: &Value| told["runs"][1]["differences"][0].clone();
    let by_mean = eval["fine_tuned"]["accuracy"].as_f64().unwrap()
        - place.json("runs/a/eval.json")["fine_tuned"]["accuracy"].as_f64().unwrap();
    assert!((difference(&told)["mean"].as_f64().unwrap() - by_mean).abs() < 1e-12, "{told}");
    let with = |name: &str, sums: Value| {
        let mut file = eval.clone();
        file["fine_tuned"]["by_user"] = json!({ "accuracy": sums });
        place.write(name, file.to_string());
    };
    with("hard-0.json", json!([[2.0, 2], [0.0, 2]]));
    with("soft-0.json", json!([[1.0, 2], [0.0, 2]]));
    let one: Value = serde_json::from_str(&place.ok("compare hard-0.json soft-0.json --json")).unwrap();
    assert_eq!(
        (&difference(&one)["mean"], &difference(&one)["standard_error"]),
        (&json!(-0.25), &json!(0.25))
    );
    // A second seed where both are alike: half the difference, and of two errors .25 and 0 the mean has .125.
    with("hard-1.json", json!([[1.0, 2], [1.0, 2]]));
    with("soft-1.json", json!([[1.0, 2], [1.0, 2]]));
    let words = "compare --pool hard-0.json soft-1.json hard-1.json soft-0.json";
    let pooled: Value = serde_json::from_str(&place.ok(&format!("{words} --json"))).unwrap();
    let names: Vec<&Value> = pooled["runs"].as_array().unwrap().iter().map(|run| &run["name"]).collect();
    assert_eq!((names, &pooled["seeds"]), (vec![&json!("hard"), &json!("soft")], &json!(2)));
    let of = difference(&pooled);
    assert_eq!((&of["mean"], &of["standard_error"]), (&json!(-0.125), &json!(0.125)));
    assert_eq!(of["by_seed"], json!([-0.25, 0.0]));
    assert!(place.ok(words).contains("seed 2"));
    place.fails("compare --pool hard-0.json soft-1.json", 2, &["the same seeds"]);
    place.fails("compare --pool hard-0.json base", 2, &["does not end with a seed"]);

    // A result file stands for a run.
    place.ok("eval --model base --episodes runs/a/episodes/test.jsonl --out base.json --predictions p.jsonl");
    assert!(place.ok("compare runs/a base.json").contains("| base "));
    let predicted = std::fs::read_to_string(place.path("p.jsonl")).unwrap();
    assert_eq!(predicted.lines().count() as u64, eval["episodes"].as_u64().unwrap());

    place.ok("run c.toml --set run.name=c --set run.seed=9 --set train.max_steps=1");
    place.fails("compare runs/a runs/c", 2, &["runs/a", "runs/c", "different episodes"]);
    place.fails("compare runs/a", 2, &["at least two"]);
    place.fails("compare runs/a nowhere", 1, &["nowhere"]);
    place.ok("train c.toml --set run.name=d --set train.max_steps=1");
    place.fails("compare runs/a runs/d", 1, &["runs/d has no measured result"]);
    let mut old = eval.clone();
    old.as_object_mut().unwrap().remove("episodes_fingerprint");
    place.write("old.json", old.to_string());
    place.fails("compare runs/a old.json", 2, &["old.json", "measure it again"]);
}
