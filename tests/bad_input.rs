//! Bad input through the binary: one clear error that says what and where, exit code 1 or 2, no panic, and
//! nothing half-written.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;

use common::{Done, Place, repository};
use serde_json::{Value, json};

/// Commands that load a model, each with what it would write.
const EVAL: &str = "eval --model bad --episodes episodes/test.jsonl --out out/e.json";
const TRAIN: &str = "train c.toml --set model.source=bad";

/// A place with episodes.
fn place() -> Place {
    let place = Place::new();
    place.ok("teach c.toml --out episodes");
    std::fs::create_dir(place.path("out")).unwrap();
    place
}

/// A copy of the base that a case may damage.
fn bad_model(place: &Place) {
    let bad = place.path("bad");
    let _ = std::fs::remove_dir_all(&bad);
    std::fs::create_dir(&bad).unwrap();
    for (name, bytes) in place.files("base") {
        std::fs::write(bad.join(name), bytes).unwrap();
    }
}

/// Before anything is read, so that no system swaps itself to death.
#[cfg(target_os = "linux")]
#[test]
fn weights_for_which_there_is_no_room() {
    let place = place();
    bad_model(&place);
    let (vocabulary, hidden) = (1u64 << 31, 256u64);
    edit_json(&place.path("bad/config.json"), |json| {
        json["vocab_size"] = json!(vocabulary);
        json["hidden_size"] = json!(hidden);
    });
    // Two terabytes of nothing.
    let bytes = vocabulary * hidden * 4;
    let header = json!({"model.embed_tokens.weight": {
        "dtype": "F32", "shape": [vocabulary, hidden], "data_offsets": [0, bytes],
    }});
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = std::fs::File::create(place.path("bad/model.safetensors")).unwrap();
    std::io::Write::write_all(&mut file, &(header.len() as u64).to_le_bytes()).unwrap();
    std::io::Write::write_all(&mut file, &header).unwrap();
    file.set_len(8 + header.len() as u64 + bytes).unwrap();
    for command in [EVAL, "chat --model bad"] {
        place.fails(
            command,
            1,
            &["cannot load bad", "GB, and", "are free on cpu", "memory already", "smaller"],
        );
    }
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut json: Value = bayesteach::files::read_json(path).unwrap();
    edit(&mut json);
    bayesteach::files::write_json(path, &json).unwrap();
}

/// Nothing is written by a command that loads `bad`, whichever it is.
fn model_is_refused(place: &Place, what: &str, parts: &[&str]) {
    for command in [EVAL, TRAIN] {
        let done = place.run(command);
        let code = done.code.unwrap_or(-1);
        assert!(code == 1 || code == 2, "{what}: {command}: {code} {}", done.stderr);
        done.is_error(&format!("{what}: {command}"), code, parts);
    }
    assert_eq!(place.names("out"), [""; 0], "{what}");
    // The teacher may have been there before the weights were opened; its episodes are whole.
    let whole = |name: &String| name == "a/lock" || name.starts_with("a/episodes/") && !name.contains(".tmp");
    assert!(place.names("runs").iter().all(whole), "{what}: {:?}", place.names("runs"));
}

#[test]
fn configs() {
    let place = Place::new();
    place.fails("train nowhere.toml", 2, &["cannot read nowhere.toml"]);
    place.fails("run nowhere.toml", 2, &["cannot read nowhere.toml"]);
    place.fails("train base", 2, &["cannot read base"]);
    let cases: [(&str, &[&str]); 12] = [
        ("", &["missing field `run`"]),
        ("[run\nname = 3", &["bad.toml", "line 1"]),
        ("[run]\nname = 3", &["bad.toml", "line 2", "string"]),
        ("[run]\nname = \"..\"", &["run.name"]),
        ("[run]\nname = \"a\"\nsed = 3", &["unknown field `sed`", "did you mean `seed`?", "line 3"]),
        ("[run]\nname = \"a\"\n[teecher]\nworld = \"flights\"", &["teecher", "did you mean `teacher`?"]),
        ("[run]\nname = \"a\"\n[lora]\nalhpa = 3.0", &["did you mean `alpha`?"]),
        ("[run]\nname = \"a\"\n[teacher]\nworld = \"flihts\"", &["did you mean `flights`?"]),
        ("[run]\nname = \"a\"\n[loss]\nkind = \"kll\"", &["did you mean `kl`?"]),
        ("[run]\nname = \"a\"\n[train]\nbatch_size = -1", &["batch_size", "line 4"]),
        ("[run]\nname = \"a\"\n[teacher]\nworld = \"flights\"\n[data]\ntrain = \"x\"", &["keep one"]),
        ("[run]\nname = \"a\"\n[optimizer]\nlr = nan", &["optimizer.lr"]),
    ];
    for (text, parts) in cases {
        place.write("bad.toml", text);
        for command in ["train bad.toml", "run bad.toml", "teach bad.toml"] {
            place.fails(command, 2, parts);
        }
    }
    place.write("bad.toml", b"[run]\nname = \"\xff\"");
    place.fails("train bad.toml", 2, &["bad.toml", "UTF-8"]);

    place.write("run.toml", "[run]\nname = \"a\"");
    place.fails("teach run.toml", 2, &["[teacher] is missing"]);
    place.fails("teach run.toml --out elsewhere", 2, &["[teacher] is missing"]);
    place.fails("train run.toml", 2, &["[model] is missing"]);
    place.fails("run run.toml", 2, &["[model] is missing"]);
    place.write("model.toml", "[run]\nname = \"a\"\n[model]\nsource = \"base\"");
    place.fails("train model.toml", 2, &["[teacher] is missing"]);
    place.fails("train c.toml --set train.weights=all --set model.dtype=bf16", 2, &["model.dtype"]);
    place.fails("run c.toml --set train.weights=all", 2, &["train, then eval"]);
    place.fails("train c.toml --set run.device=tpu", 2, &["unknown device \"tpu\""]);
    place.fails("train c.toml --set lora.target_modules=[\"lm_head\"]", 2, &["lm_head"]);
    place.fails("train c.toml --set model.revision=main", 2, &["model.revision"]);
    place.fails("train c.toml --set train.max_steps", 2, &["key=value"]);
    place.fails("train c.toml --set split.train=0.9", 2, &["split"]);
    place.fails("train", 2, &["CONFIG"]);
    place.fails("trian c.toml", 2, &["trian"]);
    assert!(!place.path("runs").join("elsewhere").exists());
    let left: Vec<String> = place.names("runs").into_iter().filter(|n| !n.contains("episodes/")).collect();
    assert!(left.iter().all(|n| n == "a/lock"), "{left:?}");
}

#[test]
fn model_folders() {
    let place = place();
    let _ = std::fs::remove_dir_all(place.path("bad"));
    model_is_refused(&place, "no folder", &["\"bad\" is neither an existing folder nor a hub id"]);
    place.fails(&TRAIN.replace("=bad", "=no/where"), 1, &["no/where", "HF_HUB_OFFLINE"]);
    place.fails(&TRAIN.replace("=bad", "=/no/where"), 2, &["/no/where", "neither an existing folder"]);

    type Damage = fn(&Path);
    let cases: Vec<(&str, Damage, &[&str])> = vec![
        ("no config", |d| std::fs::remove_file(d.join("config.json")).unwrap(), &["bad has no config.json"]),
        ("empty config", |d| std::fs::write(d.join("config.json"), "").unwrap(), &["bad/config.json", "EOF"]),
        (
            "config of garbage",
            |d| std::fs::write(d.join("config.json"), [0xff, 0xfe, 0]).unwrap(),
            &["bad/config.json"],
        ),
        (
            "config cut short",
            |d| {
                let text = std::fs::read(d.join("config.json")).unwrap();
                std::fs::write(d.join("config.json"), &text[..text.len() / 2]).unwrap();
            },
            &["bad/config.json", "line"],
        ),
        ("config of a list", |d| std::fs::write(d.join("config.json"), "[1]").unwrap(), &["bad/config.json"]),
        (
            "no tokenizer",
            |d| std::fs::remove_file(d.join("tokenizer.json")).unwrap(),
            &["bad has no tokenizer.json"],
        ),
        (
            "empty tokenizer",
            |d| std::fs::write(d.join("tokenizer.json"), "").unwrap(),
            &["bad/tokenizer.json is not a valid tokenizer"],
        ),
        (
            "tokenizer of nothing",
            |d| std::fs::write(d.join("tokenizer.json"), "{}").unwrap(),
            &["bad/tokenizer.json is not a valid tokenizer"],
        ),
        (
            "tokenizer cut short",
            |d| {
                let text = std::fs::read(d.join("tokenizer.json")).unwrap();
                std::fs::write(d.join("tokenizer.json"), &text[..text.len() / 2]).unwrap();
            },
            &["bad/tokenizer.json is not a valid tokenizer"],
        ),
        (
            "tokenizer config of garbage",
            |d| std::fs::write(d.join("tokenizer_config.json"), "{").unwrap(),
            &["bad/tokenizer_config.json"],
        ),
        (
            "no template",
            |d| std::fs::remove_file(d.join("tokenizer_config.json")).unwrap(),
            &["has no chat template", "tokens.template"],
        ),
        (
            "broken template",
            |d| edit_json(&d.join("tokenizer_config.json"), |j| j["chat_template"] = json!("{% for x %}")),
            &["chat template of bad"],
        ),
        (
            "template that refuses",
            |d| {
                edit_json(&d.join("tokenizer_config.json"), |j| {
                    j["chat_template"] = json!("{{ raise_exception('never') }}");
                });
            },
            &["never"],
        ),
        (
            "template that says nothing",
            |d| edit_json(&d.join("tokenizer_config.json"), |j| j["chat_template"] = json!("")),
            &["chat template"],
        ),
        (
            "a tokenizer with more tokens than the model",
            |d| edit_json(&d.join("config.json"), |j| j["vocab_size"] = json!(100)),
            &["100"],
        ),
    ];
    for (what, damage, parts) in cases {
        bad_model(&place);
        damage(&place.path("bad"));
        model_is_refused(&place, what, parts);
    }
}

#[test]
fn model_configs() {
    let place = place();
    let cases: Vec<(&str, Value, &[&str])> = vec![
        (
            "architectures",
            json!(["MambaForCausalLM"]),
            &["unknown architecture MambaForCausalLM", "LlamaForCausalLM"],
        ),
        (
            "rope_scaling",
            json!({"rope_type": "yarn", "factor": 4.0}),
            &["rope scaling \"yarn\" is not supported"],
        ),
        ("rope_scaling", json!({"rope_type": "llama3", "factor": 4.0}), &["low_freq_factor"]),
        ("rope_scaling", json!({"rope_type": "linear", "factor": -1.0}), &["factor"]),
        ("rope_scaling", json!("linear"), &["rope"]),
        ("hidden_act", json!("relu"), &["hidden_act = \"relu\" is not supported"]),
        ("hidden_size", json!(null), &["hidden_size is missing"]),
        ("hidden_size", json!(-32), &["hidden_size = -32"]),
        ("hidden_size", json!("32"), &["hidden_size = \"32\""]),
        ("hidden_size", json!(40), &["has shape", "config.json implies"]),
        ("hidden_size", json!(0), &["hidden_size = 0"]),
        ("head_dim", json!(7), &["head_dim = 7 is odd"]),
        ("head_dim", json!(4_000_000_000_u32), &["head_dim = 4000000000"]),
        ("intermediate_size", json!(4_000_000_000_u32), &["config.json implies"]),
        ("num_hidden_layers", json!(4_000_000_000_u32), &["num_hidden_layers"]),
        ("vocab_size", json!(4_000_000_000_u32), &["config.json implies"]),
        ("num_key_value_heads", json!(3), &["do not group"]),
        ("num_hidden_layers", json!(3), &["no tensor model.layers.2."]),
        ("vocab_size", json!(651), &["embed_tokens.weight has shape", "config.json implies"]),
        ("tie_word_embeddings", json!(false), &["lm_head.weight"]),
        ("attention_bias", json!(true), &["no tensor", "bias"]),
        ("attention_bias", json!("yes"), &["attention_bias = \"yes\""]),
        ("rms_norm_eps", json!(0), &["rms_norm_eps = 0"]),
        ("rope_theta", json!("big"), &["rope_theta"]),
    ];
    for (key, value, parts) in cases {
        bad_model(&place);
        edit_json(&place.path("bad/config.json"), |json| json[key] = value.clone());
        model_is_refused(&place, &format!("{key} = {value}"), parts);
    }
}

#[test]
fn weights() {
    let place = place();
    let good = std::fs::read(place.path("base/model.safetensors")).unwrap();
    let header_end = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let with_length = |length: u64| [&length.to_le_bytes()[..], &good[8..]].concat();
    let with_header = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let header = std::str::from_utf8(&good[8..header_end]).unwrap();
        assert!(header.contains(from), "{from}: {header}");
        [&good[..8], header.replacen(from, to, 1).as_bytes(), &good[header_end..]].concat()
    };
    let damaged: &[&str] = &["bad/model.safetensors is damaged"];
    let mut cases: Vec<(String, Vec<u8>, &[&str])> = Vec::new();
    for length in
        [0, 1, 7, 8, 9, 100, header_end - 1, header_end, header_end + 100, good.len() / 2, good.len() - 1]
    {
        cases.push((format!("cut to {length}"), good[..length].to_vec(), damaged));
    }
    for length in [0, 1, header_end as u64 - 9, header_end as u64, good.len() as u64, 1 << 40, u64::MAX] {
        cases.push((format!("header length {length}"), with_length(length), damaged));
    }
    cases.push(("one byte more".into(), [&good[..], &[0]].concat(), damaged));
    cases.push(("garbage".into(), (0..5000).map(|i| (i * 31 % 251) as u8).collect(), damaged));
    cases.push(("HTML".into(), b"<!DOCTYPE html><html><body>404 Not Found</body></html>".repeat(9), damaged));
    cases.push((
        "a git lfs pointer".into(),
        b"version https://git-lfs.github.com/spec/v1\n".to_vec(),
        damaged,
    ));
    cases.push((
        "a tensor is missing".into(),
        with_header("model.norm.weight", "model.nOrm.weight"),
        &["no tensor model.norm.weight"],
    ));
    cases.push((
        "another model's".into(),
        with_header("model.embed_tokens.weight", "modex.embed_tokens.weight"),
        &["bad", "model.embed_tokens.weight", "another model's"],
    ));
    let quantised = with_header("\"F32\"", "\"I32\"");
    cases.push(("integers".into(), quantised, &["stored as I32", "f32, f16 and bf16"]));
    cases.push(("an unknown dtype".into(), with_header("\"F32\"", "\"Q32\""), damaged));
    cases.push(("shapes that do not fit the bytes".into(), with_header("[650,32]", "[651,32]"), damaged));
    let mut nan = good.clone();
    nan[header_end..].chunks_exact_mut(4).for_each(|c| c.copy_from_slice(&f32::NAN.to_le_bytes()));
    cases.push(("no numbers".into(), nan, &["episode \"personality-", "broken"]));
    for (what, bytes, parts) in cases {
        bad_model(&place);
        place.write("bad/model.safetensors", bytes);
        model_is_refused(&place, &what, parts);
    }

    bad_model(&place);
    std::fs::remove_file(place.path("bad/model.safetensors")).unwrap();
    model_is_refused(&place, "no weights", &["bad has neither model.safetensors nor"]);
    let indices: [(&str, &[&str]); 6] = [
        (
            "{\"weight_map\": {\"model.norm.weight\": \"model-1.safetensors\"}}",
            &["bad has no model-1.safetensors"],
        ),
        ("{\"weight_map\": {\"a\": \"../base/model.safetensors\"}}", &["outside its folder"]),
        ("{\"weight_map\": {\"a\": 3}}", &["weight_map"]),
        ("{\"weight_map\": {}}", &["weight_map is empty"]),
        ("{}", &["no weight_map"]),
        ("{\"weight_map\"", &["model.safetensors.index.json is not valid JSON"]),
    ];
    for (index, parts) in indices {
        place.write("bad/model.safetensors.index.json", index);
        model_is_refused(&place, index, parts);
    }
    // Two shards that do not hold all of it.
    place.write(
        "bad/model.safetensors.index.json",
        "{\"weight_map\": {\"model.norm.weight\": \"m.safetensors\"}}",
    );
    place.write("bad/m.safetensors", with_header("model.norm.weight", "model.nOrm.weight"));
    model_is_refused(&place, "an incomplete shard", &["no tensor model.norm.weight"]);
}

/// One well-formed episode, to be spoiled.
fn episode() -> Value {
    json!({"format_version": 1, "id": "mine-1", "world": "own", "user": "u", "messages": [
        {"role": "user", "content": "Item 1: I am the life of the party."},
        {"role": "assistant", "content": "4", "answer":
            {"start": 0, "options": ["1", "2", "3", "4", "5"], "probs": [0.1, 0.2, 0.2, 0.4, 0.1], "said": 3, "truth": 1}},
        {"role": "user", "content": "I answered 2. Item 2: I worry about things."},
        {"role": "assistant", "content": "2", "answer":
            {"start": 0, "options": ["1", "2", "3", "4", "5"], "probs": [0.1, 0.4, 0.2, 0.2, 0.1], "said": 1, "truth": null}}]})
}

const OWN: &str = r#"
[run]
name = "own"
[model]
source = "base"
[data]
train = "bad.jsonl"
test = "bad.jsonl"
[lora]
r = 2
[train]
max_steps = 1
batch_size = 2
"#;

#[test]
fn episodes() {
    let place = place();
    place.write("own.toml", OWN);
    place.write("bad.jsonl", format!("{}\n", episode()));
    place.ok("train own.toml");
    std::fs::remove_dir_all(place.path("runs")).unwrap();

    let spoil = |pointer: &str, value: Value| {
        let mut episode = episode();
        *episode.pointer_mut(pointer).unwrap() = value;
        episode.to_string()
    };
    let answer = "/messages/1/answer";
    let at = |key: &str, value: Value| spoil(&format!("{answer}/{key}"), value);
    let mut unknown = episode();
    unknown["extra"] = json!(1);
    let mut no_id = episode();
    no_id.as_object_mut().unwrap().remove("id");
    let tokenised = |ids: Value, targets: Value| {
        json!({"format_version": 1, "id": "t-1", "input_ids": ids, "targets": targets}).to_string()
    };
    let target = |position: i64, ids: Value, probs: Value| {
        tokenised(json!([1, 87, 5, 99]), json!([{"position": position, "token_ids": ids, "probs": probs}]))
    };
    let cases: Vec<(String, &[&str])> = vec![
        (at("probs", json!([0.1, 0.2, 0.2, 0.4, 0.2])), &["mine-1", "answer of message 1", "sum to 1.1"]),
        (at("probs", json!([1.1, -0.1, 0.0, 0.0, 0.0])), &["mine-1", "not negative"]),
        (at("probs", json!([0.5, 0.5])), &["5 options but 2 probs"]),
        (at("probs", json!([null, 0.2, 0.2, 0.4, 0.2])), &["bad.jsonl, line 2", "null"]),
        (at("start", json!(1)), &["mine-1", "\"4\"", "not at byte 1"]),
        (at("start", json!(100)), &["not at byte 100"]),
        (at("start", json!(-1)), &["bad.jsonl, line 2", "-1"]),
        (at("said", json!(5)), &["said is 5"]),
        (at("said", json!(0)), &["\"1\"", "not at byte 0"]),
        (at("truth", json!(5)), &["truth is 5"]),
        (at("options", json!(["1", "2", "4", "4", "5"])), &["are both \"4\""]),
        (at("options", json!(["1", "2", "", "4", "5"])), &["option 2 is empty"]),
        (at("options", json!(["4 ", "2", "3", "4", "5"])), &["mine-1", "message 1", "\"4 \"", "\"4\""]),
        (spoil("/messages", json!([])), &["mine-1", "the dialogue is empty"]),
        (spoil("/messages/1/role", json!("user")), &["mine-1", "not the assistant's"]),
        (spoil("/messages/1/role", json!("robot")), &["bad.jsonl, line 2", "robot"]),
        (spoil("/messages/1/content", json!("")), &["mine-1", "not at byte 0"]),
        (spoil("/format_version", json!(2)), &["mine-1", "format_version is 2"]),
        (unknown.to_string(), &["bad.jsonl, line 2", "unknown field `extra`"]),
        (no_id.to_string(), &["bad.jsonl, line 2", "missing field `id`"]),
        ("{\"format_version\": 1".into(), &["bad.jsonl, line 2", "EOF"]),
        ("not JSON".into(), &["bad.jsonl, line 2"]),
        ("[]".into(), &["bad.jsonl, line 2"]),
        ("\u{0}".into(), &["bad.jsonl, line 2"]),
        (tokenised(json!([]), json!([])), &["t-1", "input_ids is empty"]),
        (tokenised(json!([1, 2]), json!([])), &["t-1", "targets is empty"]),
        (tokenised(json!([1, 650]), json!([])), &["t-1"]),
        (target(4, json!([1, 2]), json!([0.5, 0.5])), &["t-1", "position 4"]),
        (target(-1, json!([1, 2]), json!([0.5, 0.5])), &["bad.jsonl, line 2", "-1"]),
        (target(2, json!([1, 1]), json!([0.5, 0.5])), &["t-1", "token id 1 appears twice"]),
        (target(2, json!([1, 650]), json!([0.5, 0.5])), &["t-1", "token id 650", "650"]),
        (target(2, json!([1, 2]), json!([0.5, 0.6])), &["t-1", "sum to"]),
        (target(2, json!([1, 2]), json!([1.0])), &["t-1", "2 token_ids but 1 probs"]),
        (target(2, json!([]), json!([])), &["t-1", "token_ids is empty"]),
    ];
    let mut good = episode();
    good["id"] = json!("good-1");
    for (line, parts) in cases {
        place.write("bad.jsonl", format!("{good}\n{line}\n"));
        for command in ["train own.toml", "eval --model base --episodes bad.jsonl --out out/e.json"] {
            place.run(command).is_error(&line, 1, parts);
        }
        let inspected = place.run("inspect bad.jsonl --model base --episode 1");
        inspected.is_error(&line, 1, parts);
        assert_eq!(place.names("out"), [""; 0], "{line}");
        assert!(!place.path("runs/own").exists(), "{line}: {:?}", place.names("runs"));
    }
    for empty in ["", "\n", " \n\n"] {
        place.write("bad.jsonl", empty);
        place.fails("train own.toml", 1, &["bad.jsonl", "no episodes in it"]);
        place.fails("eval --model base --episodes bad.jsonl", 1, &["bad.jsonl", "no episodes in it"]);
        place.fails("inspect bad.jsonl --model base", 1, &["bad.jsonl", "no episodes in it"]);
    }
    place.write("bad.jsonl", b"{\"id\": \"\xff\"}\n");
    place.fails("train own.toml", 1, &["bad.jsonl", "line 1", "UTF-8"]);
    std::fs::remove_file(place.path("bad.jsonl")).unwrap();
    for command in [
        "train own.toml",
        "run own.toml",
        "eval --model base --episodes bad.jsonl",
        "inspect bad.jsonl --model base",
    ] {
        place.fails(command, 1, &["cannot open bad.jsonl"]);
    }
    place.fails("eval --model base --episodes base", 1, &["base"]);
    place.fails("inspect episodes/test.jsonl --model base --episode 99", 2, &["--episode 99", "episodes"]);
    place.fails("inspect episodes/test.jsonl --model base --template nowhere.jinja", 2, &["nowhere.jinja"]);
    assert!(!place.path("runs/own").exists(), "{:?}", place.names("runs"));
}

#[test]
fn episodes_that_cannot_be_used_are_dropped_on_request() {
    let place = place();
    place.write("own.toml", OWN);
    let mut long = episode();
    long["id"] = json!("long-1");
    long["messages"][2]["content"] = json!("I answered 2. ".repeat(300));
    let mut same = episode();
    same["id"] = json!("same-1");
    same["messages"][1]["answer"]["options"][0] = json!("4 ");
    let mut mute = episode();
    mute["id"] = json!("mute-1");
    for i in [1, 3] {
        mute["messages"][i].as_object_mut().unwrap().remove("answer");
    }
    let mut light = episode();
    light["id"] = json!("light-1");
    for i in [1, 3] {
        light["messages"][i]["answer"]["weight"] = json!(0.0);
    }
    for (bad, reason, setting) in [
        (long, "max_length", "tokens.on_too_long=drop"),
        (same, "options", "tokens.on_untrainable=drop"),
        (mute, "nothing to train on", "tokens.on_untrainable=drop"),
        (light, "nothing to train on", "tokens.on_untrainable=drop"),
    ] {
        let id = bad["id"].as_str().unwrap();
        place.write("bad.jsonl", format!("{}\n{bad}\n", episode()));
        let train = "train own.toml --set tokens.max_length=200";
        place.fails(train, 1, &[id, reason]);
        assert!(!place.path("runs/own").exists());
        let done = place.run(&format!("{train} --set {setting}"));
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        assert!(done.stderr.contains("1 episodes were dropped"), "{}", done.stderr);
        std::fs::remove_dir_all(place.path("runs")).unwrap();
        place.write("bad.jsonl", format!("{bad}\n"));
        place.fails(&format!("{train} --set {setting}"), 1, &["nothing is left of 1 episodes"]);
    }
    place.fails("train own.toml --set tokens.max_length=0", 2, &["tokens.max_length"]);
    place.fails("train own.toml --set tokens.max_length=100000", 2, &["tokens.max_length", "2048"]);
}

#[test]
fn adapters() {
    let place = place();
    place.ok("train c.toml --set train.max_steps=1 --set run.dir=made");
    let good = place.files("made/a/adapter");
    let restore = || {
        let _ = std::fs::remove_dir_all(place.path("adapter"));
        for (name, bytes) in &good {
            place.write(&format!("adapter/{name}"), bytes);
        }
    };
    let refused = |what: &str, parts: &[&str]| {
        place.write("ids.jsonl", "{\"input_ids\": [1, 2]}");
        for command in [
            "eval --model base --adapter adapter --episodes episodes/test.jsonl --out out/e.json",
            "logits --model base --adapter adapter --input ids.jsonl --out out/l.safetensors",
            "export adapter --model base --format peft --out out/exported",
            "train c.toml --init-adapter adapter",
        ] {
            place.run(command).is_error(&format!("{what}: {command}"), 1, parts);
            assert_eq!(place.names("out"), [""; 0], "{what}: {command}");
            assert!(!place.path("runs/a/config.toml").exists() && !place.path("runs/a/checkpoints").exists());
        }
    };
    let config = place.path("adapter/adapter_config.json");
    let settings: [(&str, Value, &[&str]); 10] = [
        ("use_dora", json!(true), &["adapter/adapter_config.json", "use_dora = true is not supported"]),
        ("bias", json!("all"), &["bias"]),
        ("modules_to_save", json!(["lm_head"]), &["modules_to_save"]),
        ("layer_replication", json!([[0, 1]]), &["layer_replication"]),
        ("peft_type", json!("IA3"), &["IA3"]),
        ("r", json!("two"), &["adapter_config.json", "two"]),
        ("r", json!(null), &["adapter_config.json"]),
        ("lora_alpha", json!(null), &["adapter_config.json"]),
        ("alpha_pattern", json!({".*q_proj": 3}), &["alpha_pattern", ".*q_proj"]),
        ("fan_in_fan_out", json!(true), &["fan_in_fan_out"]),
    ];
    for (key, value, parts) in settings {
        restore();
        edit_json(&config, |json| json[key] = value.clone());
        refused(&format!("{key} = {value}"), parts);
    }
    let tensors = &good["adapter_model.safetensors"];
    let end = 8 + u64::from_le_bytes(tensors[..8].try_into().unwrap()) as usize;
    let rename = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let header = std::str::from_utf8(&tensors[8..end]).unwrap();
        assert!(header.contains(from), "{from}: {header}");
        [&tensors[..8], header.replacen(from, to, 1).as_bytes(), &tensors[end..]].concat()
    };
    let q = "layers.1.self_attn.q_proj.lora_A.weight";
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        (
            "half of a pair",
            rename(q, "layers.1.self_attn.q_prox.lora_A.weight"),
            &["only one of lora_A and lora_B"],
        ),
        (
            "another layer",
            rename("layers.1.self_attn.q_proj.lora_A", "layers.7.self_attn.q_proj.lora_A"),
            &["layers."],
        ),
        (
            "an extra tensor",
            rename(q, "layers.1.self_attn.q_proj.lora_X.weight"),
            &["lora_X", "not a lora_A.weight"],
        ),
        (
            "no prefix",
            rename("base_model.model.model.layers.0", "base_modex.model.model.layers.0"),
            &["base_modex"],
        ),
        ("swapped shapes", rename("[2,48]", "[48,2]"), &["do not fit"]),
        ("cut short", tensors[..tensors.len() - 3].to_vec(), &["adapter_model.safetensors is damaged"]),
        ("cut to nothing", Vec::new(), &["adapter_model.safetensors is damaged"]),
        ("a huge header", [&[0xff; 8], &tensors[8..]].concat(), &["adapter_model.safetensors is damaged"]),
        ("no tensors", [&2_u64.to_le_bytes()[..], b"{}"].concat(), &["no adapter tensors"]),
        ("integers", rename("\"F32\"", "\"I32\""), &["I32"]),
    ];
    for (what, bytes, parts) in cases {
        restore();
        place.write("adapter/adapter_model.safetensors", bytes);
        refused(what, parts);
    }
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        restore();
        std::fs::remove_file(place.path("adapter").join(name)).unwrap();
        refused(name, &[name]);
    }
    // An adapter of another model.
    let other = repository("tests/data/reference/llama/adapter");
    restore();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(other.join(name), place.path("adapter").join(name)).unwrap();
    }
    refused("another model's", &["do not fit"]);
    place.fails("export nowhere --model base --format peft --out out/x", 1, &["nowhere", "no such folder"]);
    restore();
    place.fails("export adapter --model nowhere --format peft --out out/x", 2, &["\"nowhere\"", "--model"]);
    edit_json(&config, |json| json["base_model_name_or_path"] = json!(null));
    place.fails("export adapter --format peft --out out/x", 2, &["--model"]);
    place.fails("export adapter --model base --format elf --out out/x", 2, &["elf"]);
}

#[test]
fn token_ids() {
    let place = place();
    let cases: [(&str, &[&str]); 9] = [
        ("{\"input_ids\": [1, 650]}", &["line 2", "650"]),
        ("{\"input_ids\": [4294967295]}", &["line 2", "4294967295"]),
        ("{\"input_ids\": []}", &["line 2", "input_ids is empty"]),
        ("{\"input_ids\": [-1]}", &["line 2", "-1"]),
        ("{\"input_ids\": [1.5]}", &["line 2", "1.5"]),
        ("{\"ids\": [1]}", &["line 2", "input_ids"]),
        ("[1, 2]", &["line 2"]),
        ("nonsense", &["line 2"]),
        ("{", &["line 2"]),
    ];
    let command = "logits --model base --input ids.jsonl --out out/l.safetensors";
    for (line, parts) in cases {
        place.write("ids.jsonl", format!("{{\"input_ids\": [1, 2]}}\n{line}\n"));
        place.run(command).is_error(line, 1, parts);
    }
    place.write("ids.jsonl", "");
    place.fails(command, 1, &["ids.jsonl", "no lines"]);
    std::fs::remove_file(place.path("ids.jsonl")).unwrap();
    place.fails(command, 1, &["cannot open ids.jsonl"]);
    place.write("ids.jsonl", "{\"input_ids\": [1, 2]}");
    place.fails(&format!("{command} --device tpu"), 2, &["tpu"]);
    place.fails(&format!("{command} --dtype f16"), 2, &["f16"]);
    assert_eq!(place.names("out"), [""; 0]);
}

/// A folder below a file cannot be made, whoever asks.
#[test]
fn places_that_cannot_be_written_to() {
    let place = place();
    place.ok("train c.toml --set train.max_steps=1 --set run.dir=made");
    place.write("file", "");
    place.write("ids.jsonl", "{\"input_ids\": [1, 2]}");
    for command in [
        "teach c.toml --out file/episodes",
        "teach c.toml --set run.dir=file/runs",
        "train c.toml --set run.dir=file/runs",
        "run c.toml --set run.dir=file/runs",
        "eval --model base --episodes episodes/test.jsonl --out file/e.json",
        "eval --model base --episodes episodes/test.jsonl --out nowhere/e.json",
        "logits --model base --input ids.jsonl --out file/l.safetensors",
        "logits --model base --input ids.jsonl --out nowhere/l.safetensors",
        "export made/a --format peft --out file/out",
    ] {
        let path = if command.contains("nowhere") { "nowhere" } else { "file" };
        place.fails(command, 1, &["cannot", path]);
    }
    assert!(!place.path("nowhere").exists());
    place.fails("eval --model base --episodes episodes/test.jsonl --out out", 1, &["cannot write out"]);
    assert_eq!(std::fs::read(place.path("file")).unwrap(), b"");
}

/// `/dev/full` is what its name says; behind a link, so that a mistake here costs the link only.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk() {
    let place = place();
    let link = place.path("full");
    std::os::unix::fs::symlink("/dev/full", &link).unwrap();
    place.write("ids.jsonl", "{\"input_ids\": [1, 2]}");
    for command in [
        "eval --model base --episodes episodes/test.jsonl --out full",
        "logits --model base --input ids.jsonl --out full",
    ] {
        place.fails(command, 1, &["cannot write full", "No space left"]);
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    }
    // Results on standard output too.
    let mut command = place.command("inspect episodes/test.jsonl --model base");
    command.stdout(std::fs::File::options().write(true).open("/dev/full").unwrap());
    let done: Done = command.output().unwrap().into();
    done.is_error("standard output is full", 1, &["standard output", "No space left"]);
}
