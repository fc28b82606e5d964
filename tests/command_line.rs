//! What the command line says and where, and what it says of itself.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::Place;
use serde_json::Value;

/// Results for programs alone on standard output, and no progress where it is not wanted.
#[test]
fn json_and_quiet() {
    let place = Place::new();
    let object = |words: &str| -> Value {
        let done = place.run(words);
        assert_eq!(done.code, Some(0), "{words}: {}", done.stderr);
        assert_eq!(done.stdout.lines().count(), 1, "{words}: {}", done.stdout);
        serde_json::from_str(&done.stdout).unwrap()
    };
    let taught = object("teach c.toml --json --out e");
    assert_eq!(taught["teacher"], place.json("e/teacher.json"));
    assert_eq!(taught["episodes_dir"], "e");
    let trained = object("train c.toml --json --quiet");
    assert_eq!(
        (trained["outcome"].as_str(), trained["run_dir"].as_str()),
        (Some("finished"), Some("runs/a"))
    );
    assert_eq!(trained["result_dir"], "runs/a/adapter");
    let ran = object("--json run c.toml");
    assert_eq!(ran["eval"], place.json("runs/a/eval.json"));
    let measured = object("eval --model base --episodes e/test.jsonl --out eval.json --json");
    assert_eq!(measured, place.json("eval.json"));

    let done = place.run("run c.toml --set run.name=b --quiet");
    assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""));
    assert!(done.stdout.contains("fine-tuned"), "{}", done.stdout);
    place.fails("doctor --json", 2, &["--json is for run"]);
    let compared = place.ok("compare runs/a runs/b --json");
    assert!(serde_json::from_str::<Value>(&compared).unwrap().is_object());
}

#[test]
fn completions_and_man_pages() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = place.ok(&format!("completions {shell}"));
        for word in ["validate", "import", "skip-bad", "quantization"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    place.fails("completions tcsh", 2, &["tcsh", "zsh"]);
    place.ok("man --out man");
    let names = place.names("man");
    assert!(
        names.contains(&"bayesteach.1".into()) && names.contains(&"bayesteach-import.1".into()),
        "{names:?}"
    );
    let page = std::fs::read_to_string(place.path("man/bayesteach-import.1")).unwrap();
    assert!(page.contains(".TH") && page.contains("skip\\-bad"), "{page}");
    assert!(!names.iter().any(|name| name.contains("help")), "{names:?}");
}
