//! Whole runs through the binary: stopped and resumed equals uninterrupted byte for byte, micro-batches and
//! torch's AdamW, refusals by name, and the way from a config to a table and an exported adapter.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use bayesteach::model::adapter::Adapter;
use bayesteach::model::config::ModelConfig;
use bayesteach::model::decoder::{Decoder, Keep};
use bayesteach::model::gradients::Trainable;
use bayesteach::model::lora::{Lora, LoraConfig};
use bayesteach::model::peft::{self, PeftConfig, PeftLora};
use bayesteach::model::tensors;
use bayesteach::rng;
use bayesteach::tokens::{Sequence, SoftTarget, read_lines};
use bayesteach::train::checkpoint::{self, Best, State, Trained};
use bayesteach::train::config::{LossConfig, LossKind, OptimizerConfig, Support};
use bayesteach::train::loss::{LossSettings, StepSums, step_sums};
use bayesteach::train::optimizer::{AdamW, global_norm};
use candle_core::{DType, Device, Tensor};
use common::{Place, repository};
use serde_json::Value;

const ALL: &str = "--set train.weights=all --set optimizer.lr=1e-3";

/// The last checkpoint and the result of two runs are the same bytes.
fn assert_same(place: &Place, a: &str, b: &str) {
    let last = place.checkpoints(a).last().copied();
    assert_eq!(last, place.checkpoints(b).last().copied(), "the last checkpoints of {a} and {b}");
    let checkpoint = format!("checkpoints/step-{:08}", last.unwrap());
    let result = if place.path(&format!("runs/{a}/adapter")).exists() { "adapter" } else { "model" };
    for folder in [checkpoint.as_str(), result] {
        let (x, y) = (place.files(&format!("runs/{a}/{folder}")), place.files(&format!("runs/{b}/{folder}")));
        assert!(x.keys().eq(y.keys()), "{folder}: {:?} and {:?}", x.keys(), y.keys());
        assert!(x.len() >= 3, "{folder}: {:?}", x.keys());
        for (name, bytes) in &x {
            assert!(*bytes == y[name], "{folder}/{name} differs between {a} and {b}");
        }
    }
    // Losses and norms too, but not speed and memory.
    assert_eq!(losses(place, a), losses(place, b));
}

fn losses(place: &Place, run: &str) -> Vec<(u64, String)> {
    let text = std::fs::read_to_string(place.path(&format!("runs/{run}/metrics.jsonl"))).unwrap();
    let keep = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        let rest = ["loss", "kl", "lr", "grad_norm", "validation_kl"].map(|k| line[k].to_string());
        (line["step"].as_u64().unwrap(), rest.join(" "))
    };
    text.lines().map(keep).collect()
}

/// `best.json` names a checkpoint that is there, and nothing unfinished is left.
fn assert_tidy(place: &Place, run: &str) {
    let best = place.json(&format!("runs/{run}/best.json"));
    let named = format!("runs/{run}/{}", best["checkpoint"].as_str().unwrap());
    assert!(place.path(&named).join("state.json").is_file(), "{named} is not there");
    for name in place.names(&format!("runs/{run}")) {
        assert!(!name.contains(".tmp"), "{name} is left");
    }
}

#[test]
fn resumed_equals_uninterrupted() {
    for extra in ["", ALL] {
        let place = Place::new();
        // 14 steps are more than an epoch.
        let steps = "--set train.max_steps=14";
        place.ok(&format!("train c.toml {steps} {extra}"));
        // Fewer steps first, then more; in the middle of an epoch.
        let b = format!("{extra} --set run.name=b");
        place.ok(&format!("train c.toml {b} --set train.max_steps=4"));
        place.ok(&format!("train c.toml {b} {steps} --resume"));
        assert_same(&place, "a", "b");
        // From an earlier checkpoint; the later ones are made again.
        place.ok(&format!("train c.toml {steps} {b} --resume 6"));
        assert_same(&place, "a", "b");
        assert_eq!(place.checkpoints("a"), place.checkpoints("b"));
        // Resuming a finished run changes nothing.
        place.ok(&format!("train c.toml {steps} {b} --resume"));
        assert_same(&place, "a", "b");
        assert_tidy(&place, "b");
    }
}

#[test]
fn runs_are_equal_on_any_number_of_threads() {
    for extra in ["", ALL] {
        let place = Place::new();
        place.ok(&format!("train c.toml {extra}"));
        for (name, threads) in [("again", "2"), ("alone", "1")] {
            let mut command = place.command(&format!("train c.toml {extra} --set run.name={name}"));
            let done = command.env("RAYON_NUM_THREADS", threads).output().unwrap();
            assert!(done.status.success(), "{done:?}");
            assert_same(&place, "a", name);
        }
        // One thread before, two after.
        let command = format!("train c.toml {extra} --set run.name=mixed");
        let mut first = place.command(&format!("{command} --set train.max_steps=2"));
        assert!(first.env("RAYON_NUM_THREADS", "1").output().unwrap().status.success());
        place.ok(&format!("{command} --resume"));
        assert_same(&place, "a", "mixed");
    }
}

#[cfg(unix)]
#[test]
fn interrupted_runs_write_a_checkpoint() {
    for extra in ["", ALL] {
        let place = Place::new();
        let b = format!("{extra} --set run.name=b --set train.save_every=0 --set train.eval_every=0");
        let mut child = place.command(&format!("train c.toml {b} --set train.max_steps=100000"));
        child.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut child = child.spawn().unwrap();
        let metrics = place.path("runs/b/metrics.jsonl");
        let begun = Instant::now();
        while std::fs::read_to_string(&metrics).unwrap_or_default().lines().count() < 3 {
            assert!(begun.elapsed() < Duration::from_secs(60), "no steps after a minute");
            std::thread::sleep(Duration::from_millis(2));
        }
        let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        assert_eq!(child.wait().unwrap().code(), Some(130));
        let done = place.checkpoints("b");
        assert_eq!(done.len(), 1, "{done:?}");
        let steps = format!("--set train.max_steps={}", done[0] + 3);
        place.ok(&format!("train c.toml {b} {steps} --resume"));
        let a = b.replace("run.name=b", "run.name=a");
        place.ok(&format!("train c.toml {a} {steps}"));
        assert_same(&place, "a", "b");
    }
}

#[test]
fn killed_runs_go_on_as_if_nothing_had_been() {
    for (extra, seed) in [("", 0), (ALL, 1)] {
        let place = Place::new();
        let extra =
            format!("{extra} --set train.max_steps=40 --set train.save_every=1 --set train.keep_last=2");
        let begun = Instant::now();
        place.ok(&format!("train c.toml {extra}"));
        let whole = begun.elapsed().as_secs_f64();
        let mut stream = rng::stream(seed, "kill", 0);
        let latest = || place.checkpoints("b").last().copied();
        // No longer than until another checkpoint is there: the machine may be much faster now than it was above.
        let nap = |seconds: f64| {
            let (before, begun) = (latest(), Instant::now());
            while latest() == before && begun.elapsed().as_secs_f64() < seconds {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let mut kills = 0;
        loop {
            let mut child = place.command(&format!("train c.toml {extra} --set run.name=b --resume"));
            child.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
            let mut child = child.spawn().unwrap();
            match kills {
                // Before there is any.
                0 => nap(stream.uniform() * whole * 0.1),
                // Within a step after the next.
                1..=3 => {
                    let before = latest();
                    while latest() == before && child.try_wait().unwrap().is_none() {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    nap(stream.uniform() * whole / 40.0);
                }
                // Later kills come later, so that every stage gets its share and the run does end.
                _ => {
                    let most = whole * (0.1 + 0.1 * f64::from(kills));
                    std::thread::sleep(Duration::from_secs_f64(stream.uniform() * most));
                }
            }
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            match output.status.code() {
                Some(0) => break,
                None => kills += 1,
                Some(code) => panic!("exit code {code}: {}", String::from_utf8_lossy(&output.stderr)),
            }
            assert!(kills < 100, "it never ends");
        }
        assert!(kills >= 3, "only {kills} kills");
        assert_same(&place, "a", "b");
        assert_eq!(place.json("runs/a/best.json"), place.json("runs/b/best.json"));
        assert_eq!(place.files("runs/a/episodes"), place.files("runs/b/episodes"));
        assert_tidy(&place, "b");
    }
}

/// Every file that a new run writes before its first checkpoint may be the last one.
#[test]
fn a_run_killed_at_its_start_can_be_started_again() {
    let place = Place::new();
    place.ok("train c.toml");
    place.ok("train c.toml --set run.name=b --set train.max_steps=2");
    let written =
        |name: &str| std::fs::metadata(place.path(&format!("runs/b/{name}"))).unwrap().modified().unwrap();
    for missing in ["checkpoints", "metrics.jsonl", "config.toml", "run.json"] {
        assert!(written("run.json") <= written("config.toml"), "config.toml says that there is a run.json");
        std::fs::remove_dir_all(place.path("runs/b/checkpoints")).unwrap();
        place.write("runs/b/.tmp-left/x", "");
        place.write("runs/b/checkpoints/.tmp-left/old/x", "");
        place.write("runs/b/episodes/.tmp-left", "");
        if missing != "checkpoints" {
            std::fs::remove_file(place.path(&format!("runs/b/{missing}"))).unwrap();
        }
        let new = if missing == "run.json" {
            std::fs::remove_file(place.path("runs/b/config.toml")).unwrap();
            ""
        } else {
            "--resume"
        };
        place.ok(&format!("train c.toml --set run.name=b {new}"));
        assert_same(&place, "a", "b");
        assert_tidy(&place, "b");
    }
}

#[test]
fn what_may_not_change_is_refused_by_name() {
    let place = Place::new();
    place.ok("train c.toml --set train.max_steps=2");
    let before = place.files("runs/a");
    place.fails("train c.toml", 2, &["runs/a", "exists already", "--resume"]);
    place.fails("train c.toml --resume 3", 2, &["no such checkpoint", "[2]"]);
    for (key, value) in [
        ("lora.r", "4"),
        ("lora.alpha", "8.0"),
        ("lora.target_modules", "[\"q_proj\"]"),
        ("run.seed", "6"),
        ("loss.kind", "ce"),
        ("loss.support", "options"),
        ("optimizer.lr", "0.1"),
        ("schedule.kind", "linear"),
        ("train.batch_size", "5"),
        ("train.weights", "all"),
        ("teacher.rounds", "5"),
        ("split.train", "0.5"),
        ("tokens.date", "27 Jul 2024"),
    ] {
        let setting = format!("{key}={value}");
        let mut split = vec!["train", "c.toml", "--resume", "--set", setting.as_str()];
        if key == "split.train" {
            split.extend(["--set", "split.test=0.42"]);
        }
        let done: common::Done = place.command_of(&split).output().unwrap().into();
        done.is_error(&setting, 2, &[key, value.trim_matches(['[', ']', '"']), "may not change"]);
        assert!(before == place.files("runs/a"), "{setting} was refused, but changed the run");
    }

    // The model's weights are others, the episodes are others.
    let weights = std::fs::read(place.path("base/model.safetensors")).unwrap();
    let mut changed = weights.clone();
    *changed.last_mut().unwrap() ^= 1;
    place.write("base/model.safetensors", changed);
    place.fails("train c.toml --resume", 2, &["model is not what this run began with"]);
    place.write("base/model.safetensors", weights);
    place.write("own.toml", OWN_DATA);
    let episodes = std::fs::read_to_string(place.path("runs/a/episodes/train.jsonl")).unwrap();
    place.write("own.jsonl", &episodes);
    place.ok("train own.toml");
    place.write("own.jsonl", &episodes[..=episodes.rfind("{\"format_version").unwrap() - 1]);
    place.fails("train own.toml --resume", 2, &["data is not what this run began with"]);

    // What may change.
    place.ok(
        "train c.toml --resume --set train.save_every=1 --set train.keep_last=1 --set train.eval_every=3",
    );
    std::fs::rename(place.path("runs"), place.path("elsewhere")).unwrap();
    place.ok("train c.toml --resume --set run.dir=elsewhere --set train.max_steps=8");
}

const OWN_DATA: &str = r#"
[run]
name = "own"
[model]
source = "base"
[data]
train = "own.jsonl"
[train]
max_steps = 2
"#;

#[test]
fn more_steps_on_a_falling_schedule_need_a_word() {
    let place = Place::new();
    place.ok("train c.toml --set schedule.kind=cosine --set train.max_steps=2");
    let more = "train c.toml --set schedule.kind=cosine --set train.max_steps=4 --resume";
    place.fails(more, 2, &["train.max_steps is 4 and was 2", "--extend"]);
    place.ok(&format!("{more} --extend"));
    assert_eq!(place.checkpoints("a"), [2, 4]);
}

#[cfg(unix)]
#[test]
fn a_second_writer_is_kept_out() {
    let place = Place::new();
    let mut first = place.command("train c.toml --set train.max_steps=100000");
    let mut first = first.stderr(std::process::Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while !place.path("runs/a/config.toml").exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "no run after a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
    for command in ["train c.toml --resume", "run c.toml --resume", "teach c.toml"] {
        place.fails(command, 1, &["another process is writing to runs/a"]);
    }
    // A dead owner's lock is no lock.
    first.kill().unwrap();
    first.wait().unwrap();
    let done = place.run("train c.toml --set train.max_steps=100001 --resume 0");
    done.is_error("a checkpoint that is not there", 2, &["--resume 0"]);
}

#[test]
fn an_adapter_made_elsewhere_is_a_start() {
    let place = Place::new();
    place.ok("train c.toml");
    let b = "train c.toml --set run.name=b --init-adapter runs/a/adapter";
    place.fails(&format!("{b} --set lora.r=3"), 1, &["r = 2", "lora.r is 3"]);
    place.fails(&format!("{b} --set lora.alpha=3.0"), 1, &["lora.alpha"]);
    place.fails(&format!("{b} --set lora.target_modules=[\"q_proj\"]"), 1, &["lora.target_modules"]);
    place.fails(&format!("{b} {ALL}"), 1, &["--init-adapter"]);
    // What fails before its first step is no run.
    assert!(!place.path("runs/b/config.toml").exists());
    // Without a learning rate the values stay what they were.
    place.ok(&format!("{b} --set optimizer.lr=1e-30"));
    let read = |run: &str| tensors::read(&place.path(run).join("adapter_model.safetensors")).unwrap();
    let (a, b_tensors) = (read("runs/a/adapter"), read("runs/b/adapter"));
    assert!(a.keys().eq(b_tensors.keys()));
    for (name, tensor) in &a {
        assert_eq!(relative_l2(&b_tensors[name], tensor), 0.0, "{name}");
    }
    place.fails(&format!("{b} --set optimizer.lr=1e-30 --resume"), 2, &["--init-adapter"]);

    // Killed before its first checkpoint, it must not silently go on from elsewhere.
    std::fs::remove_dir_all(place.path("runs/b/checkpoints")).unwrap();
    let plain = "train c.toml --set run.name=b --set optimizer.lr=1e-30 --resume";
    place.fails(plain, 2, &["--init-adapter"]);
    place.ok(&format!("{plain} --init-adapter runs/a/adapter"));
    assert_eq!(
        relative_l2(&read("runs/b/adapter")[a.keys().next().unwrap()], a.values().next().unwrap()),
        0.0
    );
}

#[test]
fn keep_last_keeps_the_best_too() {
    let place = Place::new();
    // The learning rate ruins what the first steps have learned.
    let settings = "--set train.max_steps=20 --set train.save_every=1 --set train.keep_last=2 \
                    --set optimizer.lr=0.3 --set train.eval_every=1";
    place.ok(&format!("train c.toml {settings}"));
    let best = place.json("runs/a/best.json")["step"].as_u64().unwrap() as usize;
    let mut expected = vec![best, 19, 20];
    expected.sort_unstable();
    expected.dedup();
    assert_eq!(place.checkpoints("a"), expected);
    assert_tidy(&place, "a");
    let kl = |line: Value| Some((line["validation_kl"].as_f64()?, line["step"].as_u64()?));
    let text = std::fs::read_to_string(place.path("runs/a/metrics.jsonl")).unwrap();
    let all: Vec<(f64, u64)> = text.lines().filter_map(|l| kl(serde_json::from_str(l).unwrap())).collect();
    let lowest = all.iter().fold((f64::INFINITY, 0), |low, &this| if this.0 < low.0 { this } else { low });
    assert_eq!(lowest.1 as usize, best);

    // Wherever a run is taken up again, best.json names what is there.
    for step in [19, best] {
        place.ok(&format!("train c.toml {settings} --resume {step} --set train.max_steps={step}"));
        assert_tidy(&place, "a");
    }
    assert_eq!(place.checkpoints("a"), [best]);
}

/// A checkpoint remembers the best one before it; where it is kept, so is that one.
#[test]
fn the_best_before_a_kept_checkpoint_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let trained = Trained::All(BTreeMap::new());
    let state = |step: usize, best: usize| State {
        format_version: 1,
        step,
        best: Some(Best {
            step: best,
            kl: 1.0,
            checkpoint: format!("checkpoints/{}", checkpoint::name(best)),
        }),
        evaluations_without_improvement: 0,
    };
    let mut kept = Vec::new();
    for (step, best) in [(1, 1), (2, 1), (3, 1), (4, 4), (5, 4), (6, 6), (7, 7)] {
        let state = state(step, best);
        checkpoint::write(dir.path(), &trained, &AdamW::new(&OptimizerConfig::default()), &state).unwrap();
        checkpoint::prune(dir.path(), 2, state.best.as_ref()).unwrap();
        kept = checkpoint::list(dir.path()).unwrap();
        for &step in &kept {
            let state = checkpoint::read_state(&checkpoint::path(dir.path(), step)).unwrap();
            assert!(kept.contains(&state.best.unwrap().step), "{kept:?}");
        }
        if step == 4 {
            assert_eq!(kept, [1, 3, 4]);
        }
    }
    assert_eq!(kept, [6, 7]);
    // Going back, best.json goes back as well.
    checkpoint::remove_after(dir.path(), &state(6, 6)).unwrap();
    let best: Best = bayesteach::files::read_json(&dir.path().join(checkpoint::BEST_FILE)).unwrap();
    assert_eq!((best.step, checkpoint::list(dir.path()).unwrap()), (6, vec![6]));
}

#[test]
fn early_stopping_stops() {
    let place = Place::new();
    let settings = "--set optimizer.lr=1e-30 --set train.eval_every=1 --set train.early_stopping_patience=2 \
                    --set train.max_steps=50 --set train.save_every=10";
    let told = place.ok(&format!("train c.toml {settings}"));
    assert!(told.contains("stopped early"), "{told}");
    assert_eq!(place.checkpoints("a"), [1, 3]);
    assert_tidy(&place, "a");
    // It stays stopped, unless it is given more patience.
    let told = place.ok(&format!("train c.toml {settings} --resume"));
    assert!(told.contains("stopped early"), "{told}");
    assert_eq!(place.checkpoints("a"), [1, 3]);
    place.ok(&format!("train c.toml {settings} --resume --set train.early_stopping_patience=3"));
    assert_eq!(place.checkpoints("a"), [1, 3, 4]);
    // A run that stopped early is a finished run.
    place.ok(&format!("run c.toml {settings} --set run.name=r"));
    place.ok(&format!("run c.toml {settings} --set run.name=r"));
    assert_eq!(place.checkpoints("r"), [1, 3]);
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run() {
    let place = Place::new();
    // The first step of a warm-up has no learning rate: its checkpoint is good.
    let settings = "--set train.save_every=1 --set train.eval_every=0 --set schedule.warmup_steps=1 \
                    --set optimizer.max_grad_norm=0.0 --set train.max_steps=20";
    for (lr, name) in [("1e18", "a"), ("1e30", "b"), ("1e39", "c")] {
        let command = format!("train c.toml {settings} --set optimizer.lr={lr} --set run.name={name}");
        place.fails(&command, 1, &["not finite", "episodes: personality-"]);
        assert!(place.checkpoints(name).contains(&1), "lr {lr}");
        assert!(!place.path(&format!("runs/{name}/adapter")).exists());
        let test = format!("runs/{name}/episodes/test.jsonl");
        place.ok(&format!(
            "eval --model base --adapter runs/{name}/checkpoints/step-00000001 --episodes {test}"
        ));
        for step in place.checkpoints(name) {
            let at = place.path(&format!("runs/{name}/checkpoints/step-{step:08}"));
            for (tensor, values) in tensors::read(&at.join("adapter_model.safetensors")).unwrap() {
                assert!(to_f64(&values).iter().all(|v| v.is_finite()), "step {step}: {tensor}");
            }
        }
    }
}

#[test]
fn every_loss_learns() {
    let place = Place::new();
    place.ok("teach c.toml --out episodes");
    for (name, settings) in [
        ("kl", ""),
        ("options", "--set loss.support=options"),
        ("ce", "--set loss.kind=ce"),
        ("format", "--set loss.format_weight=0.1"),
        ("block", "--set train.checkpointing=block"),
        ("all", ALL),
    ] {
        let command = format!(
            "train c.toml --set run.name={name} --set train.max_steps=40 --set train.micro_batch_tokens=1000 {settings}"
        );
        place.ok(&command);
        let lines = std::fs::read_to_string(place.path(&format!("runs/{name}/metrics.jsonl"))).unwrap();
        let lines: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let column = |key: &str| lines.iter().filter_map(|l| l[key].as_f64()).collect::<Vec<f64>>();
        let falls = |values: &[f64]| {
            let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
            mean(&values[values.len() - 4..]) < 0.9 * mean(&values[..2])
        };
        assert_eq!(column("loss").len(), 40);
        assert!(name == "options" || falls(&column("loss")), "{name}: {:?}", column("loss"));
        if name == "kl" {
            let kl = column("validation_kl_vocabulary");
            assert!(kl[19] < 0.95 * kl[0], "{kl:?}");
            assert_eq!(column("kl").len(), 40);
        }
        if name == "options" {
            let loss = column("loss");
            assert!(loss[30..].iter().sum::<f64>() < loss[..10].iter().sum::<f64>(), "{loss:?}");
        }
        let needed = ["step", "loss", "lr", "grad_norm", "tokens_per_second"];
        assert!(needed.iter().all(|key| lines[0].get(key).is_some()), "{}", lines[0]);
    }
    // Recomputing blocks changes nothing.
    assert_eq!(losses(&place, "kl"), losses(&place, "block"));
}

#[test]
fn a_model_trained_from_nothing_is_a_base() {
    let place = Place::new();
    let base = repository("data/base");
    let source = format!("--set model.source={}", base.display());
    place.ok(&format!("train c.toml {source} --set model.init=random {ALL} --set run.name=base"));
    let names = place.names("runs/base/model");
    for name in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        assert!(names.iter().any(|n| n == name), "{name} is missing: {names:?}");
    }
    place.ok("train c.toml --set model.source=runs/base/model --set train.max_steps=2");
    place.ok("eval --model runs/base/model --adapter runs/a --episodes runs/a/episodes/test.jsonl");
    place.ok("inspect runs/a/episodes/test.jsonl --model runs/base/model --episode 3");
}

#[test]
fn a_whole_run_ends_in_a_table_and_an_adapter() {
    let place = Place::new();
    let told = place.ok("run c.toml");
    for word in ["baseline", "fine-tuned", "teacher", "accuracy", "agreement", "KL", "entropy", "top"] {
        assert!(told.contains(word), "{word} is not in {told}");
    }
    assert!(told.contains("runs/a/adapter") && told.contains("next:"), "{told}");

    let eval = place.json("runs/a/eval.json");
    let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    for key in ["format_version", "episodes", "answers", "baseline", "fine_tuned", "teacher"] {
        assert!(eval.get(key).is_some(), "{key} is not in {:?}", keys(&eval));
    }
    for who in ["baseline", "fine_tuned"] {
        for key in [
            "accuracy",
            "agreement",
            "kl",
            "kl_vocabulary",
            "entropy",
            "top_probability",
            "option_mass",
            "ece",
            "ece_expected",
            "brier",
            "by_observations",
        ] {
            assert!(eval[who].get(key).is_some(), "{who}.{key} is not in {:?}", keys(&eval[who]));
        }
    }
    let test = std::fs::read_to_string(place.path("runs/a/episodes/test.jsonl")).unwrap();
    assert_eq!(eval["episodes"].as_u64().unwrap() as usize, test.lines().count());
    assert_eq!(eval["answers"], 4 * test.lines().count());
    for file in ["config.toml", "run.json", "metrics.jsonl", "best.json", "episodes/teacher.json"] {
        assert!(place.path(&format!("runs/a/{file}")).is_file(), "{file}");
    }

    // A second time, every stage is there already.
    let before = place.files("runs/a");
    let again = place.run("run c.toml");
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    for stage in ["teach: ", "baseline: already measured", "train: already done", "measure: already measured"]
    {
        assert!(again.stderr.contains(stage), "{stage:?} is not in {}", again.stderr);
    }
    for (name, bytes) in place.files("runs/a") {
        assert!(before[&name] == bytes, "{name} changed");
    }
    // Other settings are another run.
    place.fails("run c.toml --set lora.r=3", 2, &["lora.r is 3 and was 2"]);
    assert!(before == place.files("runs/a"), "a refused command changed the run");

    // A run directory, a checkpoint and an adapter can all be measured and exported.
    let episodes = "--episodes runs/a/episodes/test.jsonl";
    place.ok(&format!("eval --model base --adapter runs/a/adapter {episodes} --out e.json"));
    let alone = place.json("e.json");
    assert_eq!(alone["fine_tuned"], eval["fine_tuned"]);
    place.ok(&format!("eval --model base {episodes} --out e.json"));
    assert_eq!(place.json("e.json")["baseline"], eval["baseline"]);
    for (i, source) in ["runs/a", "runs/a/checkpoints/step-00000002", "runs/a/adapter"].iter().enumerate() {
        place.ok(&format!("export {source} --format peft --out out/{i}"));
        assert_follows_vllm(&place, &format!("out/{i}"));
    }
    place.fails("export runs/a --format peft --out out/0", 2, &["out/0 exists already"]);
    let sames = ["adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"];
    let (here, there) = (place.files("runs/a/adapter"), place.files("out/0"));
    assert!(sames.iter().all(|name| here[*name] == there[*name]));

    place.write("ids.jsonl", "{\"input_ids\": [1, 87, 5, 99]}\n{\"input_ids\": [7]}\n");
    place.ok("logits --model base --input ids.jsonl --out base.safetensors");
    place.ok("logits --model base --adapter runs/a --input ids.jsonl --out tuned.safetensors");
    let read = |name: &str| tensors::read(&place.path(name)).unwrap();
    let (base, tuned) = (read("base.safetensors"), read("tuned.safetensors"));
    assert_eq!((base["0"].dims(), base["1"].dims()), (&[4, 650][..], &[1, 650][..]));
    assert!(relative_l2(&tuned["0"], &base["0"]) > 1e-4);
    let shown = place.ok("inspect runs/a/episodes/test.jsonl --model base");
    assert!(shown.contains("Item 1"), "{shown}");
}

/// The rules of vLLM's adapter loader (`parse_fine_tuned_lora_name`, `PEFTHelper`), for a model whose linears are
/// named as Llama's.
fn assert_follows_vllm(place: &Place, folder: &str) {
    let config = place.json(&format!("{folder}/adapter_config.json"));
    assert_eq!(config["peft_type"], "LORA");
    assert!(config["r"].as_u64().is_some_and(|r| r > 0));
    assert!(config["lora_alpha"].as_f64().is_some_and(|a| a > 0.0));
    assert_eq!(config["bias"], "none");
    assert_eq!(config["modules_to_save"], Value::Null);
    assert_eq!(config["use_dora"], false);
    assert_eq!(config["task_type"], "CAUSAL_LM");
    let targets = config["target_modules"].as_array().expect("a list of names");
    let targets: Vec<&str> = targets.iter().map(|t| t.as_str().unwrap()).collect();
    assert!(!targets.is_empty() && !targets.contains(&"lm_head"));
    let tensors =
        tensors::read(&place.path(&format!("{folder}/adapter_model.safetensors"))).expect("readable tensors");
    let mut modules: BTreeMap<String, usize> = BTreeMap::new();
    for (name, tensor) in &tensors {
        let rest = name.strip_prefix("base_model.model.").unwrap_or_else(|| panic!("{name}"));
        let parts: Vec<&str> = rest.split('.').collect();
        assert_eq!(parts[parts.len() - 1], "weight", "{name}");
        let half = parts[parts.len() - 2];
        assert!(["lora_A", "lora_B"].contains(&half), "{name}");
        assert!(!name.contains(".default.") && !name.contains("base_layer"), "{name}");
        let module = parts[..parts.len() - 2].join(".");
        let known = |t: &&str| module == **t || module.ends_with(&format!(".{t}"));
        assert!(targets.iter().any(known), "{module} is not in target_modules");
        let r = if half == "lora_A" { tensor.dims()[0] } else { tensor.dims()[1] };
        assert_eq!(r as u64, config["r"].as_u64().unwrap(), "{name}");
        *modules.entry(module).or_default() += 1;
    }
    assert!(modules.values().all(|&halves| halves == 2), "{modules:?}");
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        assert!(place.path(&format!("{folder}/{name}")).is_file(), "{folder} has no {name}");
    }
    let tokenizer = place.json(&format!("{folder}/tokenizer_config.json"));
    let template = std::fs::read_to_string(place.path(&format!("{folder}/chat_template.jinja"))).unwrap();
    assert_eq!(tokenizer["chat_template"], template.as_str());
}

#[test]
fn a_multimodal_adapter_names_whole_paths() {
    let place = Place::new();
    let reference = repository("tests/data/reference/gemma3");
    let model = ModelConfig::load(&reference).unwrap();
    let lora = LoraConfig { r: 2, alpha: 4.0, ..LoraConfig::default() };
    let config = PeftConfig::Lora(PeftLora::new(&lora, &model, "google/gemma-3-4b-it", None));
    let adapter = Adapter::Lora(Lora::new(&lora, &model, 0, &Device::Cpu).unwrap());
    // The tokenizer of another model, to have one.
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        place.write(&format!("gemma/{name}"), std::fs::read(place.path("base").join(name)).unwrap());
    }
    for name in ["config.json", "model.safetensors"] {
        place.write(&format!("gemma/{name}"), std::fs::read(reference.join(name)).unwrap());
    }
    std::fs::create_dir(place.path("adapter")).unwrap();
    peft::write(&place.path("adapter"), &config, &adapter).unwrap();
    place.ok("export adapter --model gemma --format peft --out out");
    assert_follows_vllm(&place, "out");
    let targets = &place.json("out/adapter_config.json")["target_modules"];
    let targets: Vec<&str> = targets.as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    assert_eq!(targets.len(), 7 * model.num_layers());
    assert!(targets.iter().all(|t| t.starts_with("model.language_model.layers.")), "{targets:?}");
    assert!(targets.contains(&"model.language_model.layers.6.mlp.down_proj"));

    // One made by PEFT, whose target_modules is a regular expression.
    let made = reference.join("adapter");
    place.ok(&format!("export {} --model gemma --format peft --out theirs", made.display()));
    let read = |dir: &std::path::Path| tensors::read(&dir.join("adapter_model.safetensors")).unwrap();
    let (before, after) = (read(&made), read(&place.path("theirs")));
    assert!(before.keys().eq(after.keys()));
    assert!(before.iter().all(|(name, t)| relative_l2(&after[name], t) == 0.0));
}

fn to_f64(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// 0 where both are all zero.
fn relative_l2(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (to_f64(a), to_f64(b));
    let difference: f64 = a.iter().zip(&b).map(|(x, y)| (x - y) * (x - y)).sum();
    let norm: f64 = b.iter().map(|y| y * y).sum();
    if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() }
}

/// Ragged sequences with none to four answers of two to five options.
fn ragged(vocabulary: usize) -> Vec<Sequence> {
    let mut stream = rng::stream(3, "ragged", 0);
    let lengths = [5, 31, 12, 2, 40, 23, 7, 18];
    let answers = [1, 4, 2, 1, 3, 1, 2, 4];
    let sequence = |(i, (&length, &count)): (usize, (&usize, &usize))| {
        let input_ids = (0..length).map(|_| stream.below(vocabulary) as u32).collect();
        let targets = (0..count).map(|k| {
            let options = 2 + (i + k) % 4;
            let weights: Vec<f64> =
                (0..options).map(|o| 1.0 + ((i * 7 + k * 3 + o * 5) % 11) as f64).collect();
            let sum: f64 = weights.iter().sum();
            SoftTarget {
                position: ((k + 1) * length / (count + 1)) as u32,
                token_ids: (0..options).map(|o| ((i * 13 + k * 29 + o * 17) % vocabulary) as u32).collect(),
                probs: weights.iter().map(|w| w / sum).collect(),
                predictive: None,
                weight: 0.25 * (1 + (i + k) % 5) as f32,
                answer: None,
                belief: None,
            }
        });
        let targets: Vec<SoftTarget> = targets.collect();
        let format_positions =
            (0..length as u32 - 1).step_by(3).filter(|p| targets.iter().all(|t| t.position != *p)).collect();
        Sequence { id: format!("ragged-{i}"), user: String::new(), input_ids, targets, format_positions }
    };
    let sequences: Vec<Sequence> = lengths.iter().zip(&answers).enumerate().map(sequence).collect();
    sequences.iter().for_each(|s| s.validate(Some(vocabulary)).unwrap());
    sequences
}

/// One step of every config that ships, on the base that ships: nothing in it is refused, and there is something to learn.
#[test]
fn every_shipped_config_trains() {
    let place = Place::new();
    let base = repository("data/base");
    let mut configs = Vec::new();
    for folder in ["configs", "configs/papers"] {
        for entry in std::fs::read_dir(repository(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            // Without an exact teacher, on text that a script makes, and on a model that a script makes.
            let apart = ["reference", "shop", "base"].contains(&name.as_str());
            if path.extension().is_some_and(|e| e == "toml") && !apart {
                configs.push((name, path));
            }
        }
    }
    assert!(configs.len() >= 15, "{configs:?}");
    for (name, path) in configs {
        let steps = match std::fs::read_to_string(&path).unwrap().contains("epochs =") {
            true => ["train.epochs=1", "train.batch_size=99"],
            false => ["train.max_steps=1", "train.batch_size=1"],
        };
        let (path, base) = (path.display().to_string(), format!("model.source={}", base.display()));
        let run = format!("run.name={name}");
        let mut words = vec!["train", &path];
        for set in [&run, &base, "teacher.users=6", "teacher.episodes_per_user=1", steps[0], steps[1]] {
            words.extend(["--set", set]);
        }
        let mut command = place.command_of(&words);
        // Declared worlds are named from here.
        command
            .args(["--set", &format!("run.dir={}", place.path("runs").display())])
            .current_dir(repository("."));
        let done = command.output().unwrap();
        assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
        assert!(place.path(&format!("runs/{name}/metrics.jsonl")).is_file(), "{name}");
    }
}

#[test]
fn micro_batches_change_nothing() {
    let reference = repository("tests/data/reference/llama");
    let config = ModelConfig::load(&reference).unwrap();
    let sequences = ragged(config.vocab_size);
    let batch = [3, 0, 6, 1, 7, 4, 2, 5];
    let losses = [
        LossConfig::default(),
        LossConfig { kind: LossKind::Ce, ..LossConfig::default() },
        LossConfig { support: Support::Options, ..LossConfig::default() },
        LossConfig { format_weight: 0.3, ..LossConfig::default() },
    ];
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F64, 1e-10)] {
        let mut model = Decoder::load(&reference, &config, dtype, &Device::Cpu).unwrap();
        let read = |folder: &str| peft::read(&reference.join(folder), &config).unwrap().1;
        let (lora, prompt) = (read("adapter"), read("prompt"));
        let trained =
            [(Trainable::Lora, Some(&lora)), (Trainable::Prefix, Some(&prompt)), (Trainable::All, None)];
        for ((trainable, adapter), loss) in trained.iter().flat_map(|t| losses.iter().map(move |l| (*t, l))) {
            model.set_adapter(adapter).unwrap();
            let sums = |micro_batch_tokens: usize, keep: Keep| -> StepSums {
                let settings =
                    LossSettings { loss, trainable, micro_batch_tokens, keep, dropout: 0.2, seed: 9 };
                step_sums(&model, &sequences, &batch, &settings, 17).unwrap()
            };
            // 1 × 8; some together; one after the other.
            let whole = sums(100_000, Keep::Everything);
            for (tokens, keep) in [(60, Keep::Everything), (1, Keep::Everything), (30, Keep::BlockInputs)] {
                let parts = sums(tokens, keep);
                assert_eq!((parts.weight, parts.tokens), (whole.weight, whole.tokens));
                assert!(((parts.loss - whole.loss) / whole.loss).abs() < tolerance);
                assert!(parts.gradients.keys().eq(whole.gradients.keys()));
                for (name, gradient) in &whole.gradients {
                    let difference = relative_l2(&parts.gradients[name], gradient);
                    assert!(difference < tolerance, "{dtype:?} {loss:?} {name}: {difference:e}");
                }
            }
        }
    }
}

#[test]
fn ten_steps_of_adamw_are_torchs() {
    let dir = repository("tests/data/reference/llama");
    let json: Value = bayesteach::files::read_json(&dir.join("reference.json")).unwrap();
    let expected = tensors::read(&dir.join("reference.safetensors")).unwrap();
    let trajectory = &json["trajectory"];
    let number = |key: &str| trajectory[key].as_f64().unwrap();
    let config = ModelConfig::load(&dir).unwrap();
    let mut model = Decoder::load(&dir, &config, DType::F32, &Device::Cpu).unwrap();
    let (_, mut adapter) = peft::read(&dir.join("adapter"), &config).unwrap();
    let sequences: Vec<Sequence> = read_lines(&dir.join("sequences.jsonl"))
        .unwrap()
        .into_iter()
        .map(|line| match line {
            bayesteach::tokens::Line::Tokenised(sequence) => sequence,
            bayesteach::tokens::Line::Episode(_) => panic!("an episode"),
        })
        .collect();
    let batch: Vec<usize> = (0..sequences.len()).collect();
    let optimizer = OptimizerConfig {
        lr: number("lr"),
        betas: serde_json::from_value(trajectory["betas"].clone()).unwrap(),
        eps: number("eps"),
        weight_decay: number("weight_decay"),
        max_grad_norm: number("max_grad_norm"),
    };
    let loss = LossConfig::default();
    let settings = LossSettings {
        loss: &loss,
        trainable: Trainable::Lora,
        micro_batch_tokens: 20,
        keep: Keep::Everything,
        dropout: 0.0,
        seed: 0,
    };
    let mut adamw = AdamW::new(&optimizer);
    let mut parameters = adapter.tensors();
    model.set_adapter(Some(&adapter)).unwrap();
    let compare = |prefix: &str, parameters: &BTreeMap<String, Tensor>| {
        for (name, tensor) in parameters {
            let difference = relative_l2(tensor, &expected[&format!("{prefix}/base_model.model.{name}")]);
            assert!(difference < 1e-4, "{prefix} {name}: {difference:e}");
        }
    };
    for step in 0..trajectory["steps"].as_u64().unwrap() as usize {
        let sums = step_sums(&model, &sequences, &batch, &settings, step).unwrap();
        let (mean, norm) = (sums.loss / sums.weight, global_norm(&sums.gradients).unwrap() / sums.weight);
        let (loss, grad_norm) = (&trajectory["losses"][step], &trajectory["grad_norms"][step]);
        let (loss, grad_norm) = (loss.as_f64().unwrap(), grad_norm.as_f64().unwrap());
        assert!((mean - loss).abs() < 1e-5 * loss.max(1.0), "step {step}: loss {mean}, torch has {loss}");
        assert!((norm / grad_norm - 1.0).abs() < 1e-4, "step {step}: norm {norm}, torch has {grad_norm}");
        let clip = (optimizer.max_grad_norm / (norm + 1e-6)).min(1.0);
        adamw.update(&mut parameters, &sums.gradients, clip / sums.weight, optimizer.lr).unwrap();
        adapter.set_tensors(&parameters).unwrap();
        model.set_adapter(Some(&adapter)).unwrap();
        if step == 0 {
            compare("trajectory_step1", &parameters);
        }
    }
    compare("trajectory_final", &parameters);
}

/// A disk that takes no more than so many bytes a file: what a full one does, without having one.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_nothing_half_written() {
    let place = Place::new();
    place.ok("teach c.toml");
    let before = place.names("runs/a");
    // The optimizer's state is the largest file of a checkpoint; 16 blocks of 512 bytes are less.
    let mut command = Command::new("sh");
    let script = "trap '' XFSZ; ulimit -f 16; exec \"$0\" train c.toml --set train.max_steps=2";
    command.args(["-c", script, env!("CARGO_BIN_EXE_bayesteach")]);
    place.at_home(&mut command);
    let done: common::Done = command.output().unwrap().into();
    done.is_error("a full disk", 1, &["cannot write"]);
    assert_eq!(place.checkpoints("a"), [0_usize; 0]);
    for name in place.names("runs/a") {
        let known = ["config.toml", "run.json", "metrics.jsonl", "events.out.tfevents.0.bayesteach", "lock"]
            .contains(&name.as_str());
        assert!(known || before.contains(&name), "{name} is left");
    }
    // With room again, it goes on.
    place.ok("train c.toml --resume");
    place.ok("train c.toml --set run.name=b");
    assert_same(&place, "a", "b");
}
