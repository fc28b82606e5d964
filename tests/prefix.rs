//! Soft prompts through the binary: trained, resumed, measured, exported, and refused where they do not fit. What they
//! compute is checked against PEFT in `model_reference.rs`.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use bayesteach::model::tensors;
use common::Place;
use serde_json::json;

/// A place with `p.toml`: its config, with a soft prompt in place of LoRA.
fn place() -> Place {
    let place = Place::new();
    let config = std::fs::read_to_string(place.path("c.toml")).unwrap();
    let (before, rest) = config.split_once("[lora]").unwrap();
    let (_, after) = rest.split_once("[schedule]").unwrap();
    let after = after.replace("lr = 1e-2", "lr = 1e-1");
    place.write("p.toml", format!("{before}[prefix]\nlength = 3\n[schedule]{after}"));
    place
}

#[test]
fn a_soft_prompt_is_trained_resumed_and_measured() {
    let place = place();
    place.ok("run p.toml");
    let config = place.json("runs/a/adapter/adapter_config.json");
    assert_eq!(config["peft_type"], "PROMPT_TUNING");
    assert_eq!(config["num_virtual_tokens"], 3);
    let tensors = tensors::read(&place.path("runs/a/adapter/adapter_model.safetensors")).unwrap();
    assert_eq!(tensors.keys().collect::<Vec<_>>(), ["prompt_embeddings"]);
    // Training lowers the validation KL, with nothing changed but the embeddings in front.
    let eval = place.json("runs/a/eval.json");
    let kl = |of: &str| eval[of]["kl"].as_f64().unwrap();
    assert!(kl("fine_tuned") < kl("baseline"), "{} and {}", kl("fine_tuned"), kl("baseline"));

    // Stopped and resumed is uninterrupted, byte for byte; so is one thread.
    place.ok("train p.toml --set run.name=b --set train.max_steps=4");
    place.ok("train p.toml --set run.name=b --resume");
    let mut alone = place.command("train p.toml --set run.name=c");
    assert!(alone.env("RAYON_NUM_THREADS", "1").status().unwrap().success());
    let all = place.files("runs/a/adapter");
    for other in ["runs/b/adapter", "runs/c/adapter"] {
        for (name, bytes) in place.files(other) {
            assert!(all[&name] == bytes, "{other}/{name} differs");
        }
    }

    // eval measures what run did.
    place.ok("eval --model base --adapter runs/a --episodes runs/a/episodes/test.jsonl --out e.json");
    let again = place.json("e.json");
    let of_adapter = again["fine_tuned"]["kl"].as_f64().unwrap();
    assert!((of_adapter - kl("fine_tuned")).abs() < 1e-9, "{of_adapter} and {}", kl("fine_tuned"));
}

#[test]
fn a_soft_prompt_goes_out_as_peft_only() {
    let place = place();
    place.ok("train p.toml");
    place.ok("export runs/a --format peft --out out");
    assert_eq!(
        place.files("out")["adapter_model.safetensors"],
        place.files("runs/a/adapter")["adapter_model.safetensors"]
    );
    let card = String::from_utf8(place.files("out")["README.md"].clone()).unwrap();
    assert!(
        card.contains("soft prompt") && card.contains("prompt-tuning") && !card.contains("LoRA"),
        "{card}"
    );
    for format in ["merged", "gguf-lora", "gguf", "mlx"] {
        place.fails(&format!("export runs/a --format {format} --out no"), 2, &["soft prompt", "peft"]);
        assert!(!place.path("no").exists());
    }
    // It is a start for another soft prompt of its length, and for nothing else.
    place.ok("train p.toml --set run.name=b --init-adapter runs/a");
    place.fails(
        "train p.toml --set run.name=c --set prefix.length=4 --init-adapter runs/a",
        1,
        &["3 long", "prefix.length is 4"],
    );
    place.fails("train c.toml --set run.name=d --init-adapter runs/a", 1, &["soft prompt", "[prefix]"]);
    place.ok("train c.toml --set run.name=e");
    place.fails("train p.toml --set run.name=f --init-adapter runs/e", 1, &["LoRA", "[lora]"]);
    place.fails("train p.toml --set prefix.length=2 --resume", 2, &["prefix.length is 2 and was 3"]);
}

#[test]
fn what_does_not_go_together_is_refused() {
    let place = place();
    place.fails("train p.toml --set prefix.length=0", 2, &["prefix.length is 0"]);
    place.fails("train p.toml --set prefix.width=3", 2, &["width", "did you mean"]);
    place.fails("train p.toml --set lora.r=2", 2, &["[lora] and [prefix]"]);
    place.fails("train p.toml --set train.weights=all", 2, &["[prefix]", "all"]);
    place.fails("train c.toml --set train.weights=prefix", 2, &["[prefix] with its length"]);
    place.fails("train p.toml --set prefix.length=4096", 2, &["leaves no room"]);
    // Episodes that fit the model but not behind the soft prompt.
    let length = place.json("base/config.json")["max_position_embeddings"].as_u64().unwrap();
    place.fails(&format!("train p.toml --set prefix.length={}", length - 10), 1, &["more than 10"]);
}

#[test]
fn a_file_that_is_not_what_it_says_is_refused() {
    let place = place();
    place.ok("train p.toml");
    let good = place.files("runs/a/adapter");
    let path = "bad/adapter_config.json";
    let eval = "eval --model base --adapter bad --episodes runs/a/episodes/test.jsonl --out e.json";
    let config = || -> serde_json::Value { serde_json::from_slice(&good["adapter_config.json"]).unwrap() };
    for (key, value, parts) in [
        ("num_virtual_tokens", json!(4), ["prompt_embeddings", "[4, "]),
        ("num_virtual_tokens", json!("four"), ["adapter_config.json", "four"]),
        ("token_dim", json!(7), ["prompt_embeddings", "[3, 7]"]),
        ("peft_type", json!("LORA"), ["adapter_config.json", "missing field"]),
        ("peft_type", json!("PREFIX_TUNING"), ["PREFIX_TUNING", "PROMPT_TUNING"]),
    ] {
        for (name, bytes) in &good {
            place.write(&format!("bad/{name}"), bytes);
        }
        let mut changed = config();
        changed[key] = value;
        place.write(path, changed.to_string());
        place.fails(eval, 1, &parts);
        assert!(!place.path("e.json").exists());
    }
}
