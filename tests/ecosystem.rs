//! At home among other programs: what comes in from them, what goes out to them, and what is told where that cannot be.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use bayesteach::files;
use bayesteach::model::config::ModelConfig;
use bayesteach::model::decoder::Decoder;
use bayesteach::model::tensors;
use bayesteach::report::live;
use candle_core::{DType, Device, Tensor};
use common::{Done, Place};
use serde_json::{Value, json};

const ANSWER: &str = r#"{"format_version": 1, "id": "one", "messages": [{"role": "user", "content": "Item 1: I am the life of the party."}, {"role": "assistant", "content": "4", "answer": {"start": 0, "options": ["1", "2", "3", "4"], "probs": [0.1, 0.2, 0.3, 0.4], "said": 3}}]}"#;

/// A copy of the tiny base.
fn copy_base(place: &Place, to: &str) {
    for (name, bytes) in place.files("base") {
        place.write(&format!("{to}/{name}"), bytes);
    }
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut json: Value = files::read_json(path).unwrap();
    edit(&mut json);
    files::write_json(path, &json).unwrap();
}

/// Runs words that may have spaces in them.
fn run(place: &Place, words: &[&str]) -> Done {
    place.command_of(words).output().unwrap().into()
}

#[test]
fn outputs_never_take_the_place_of_inputs() {
    let place = Place::new();
    place.write("q.csv", "user,E1,E2\nann,4,2\n");
    place.write("e.jsonl", format!("{ANSWER}\n"));
    place.write("ids.jsonl", "{\"input_ids\": [1, 3, 60]}\n");
    std::fs::hard_link(place.path("q.csv"), place.path("hard.csv")).unwrap();
    std::fs::create_dir(place.path("sub")).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("e.jsonl", place.path("link.jsonl")).unwrap();
    let before = place.files("");
    for words in [
        "import q.csv --out q.csv --skip-bad",
        "import q.csv --out sub/../q.csv",
        "import q.csv --out hard.csv",
        "eval --model base --episodes e.jsonl --out e.jsonl",
        "eval --model base --episodes e.jsonl --predictions ./e.jsonl",
        "eval --model base --episodes e.jsonl --config c.toml --out c.toml",
        "eval --model base --episodes e.jsonl --out base/config.json",
        "logits --model base --input ids.jsonl --out ids.jsonl",
        "logits --model base --input ids.jsonl --out base/model.safetensors",
        "transfer c.toml --model base --out c.toml",
        "schedule c.toml --user 0 --pool e.jsonl --out e.jsonl",
        #[cfg(unix)]
        "eval --model base --episodes link.jsonl --out e.jsonl",
        #[cfg(unix)]
        "eval --model base --episodes e.jsonl --out link.jsonl",
    ] {
        place.fails(words, 2, &["which is read", "name another file"]);
    }
    place.fails(
        "eval --model base --episodes e.jsonl --out o.json --predictions o.json",
        2,
        &["two outputs"],
    );
    assert_eq!(place.files(""), before);
    place.ok("import q.csv --out q.jsonl");
    place.ok("eval --model base --episodes e.jsonl --out base/eval.json");
    // A second time, over its own result.
    place.ok("eval --model base --episodes e.jsonl --out base/eval.json");
}

/// Token by token: what the shipped base's files name (`<|end|>` as end of text, `<|user|>` as mark of a turn).
#[test]
fn a_tokenizer_must_have_the_tokens_that_its_model_names() {
    let place = Place::new();
    place.write("e.jsonl", format!("{ANSWER}\n"));
    let commands =
        ["eval --model bad --episodes e.jsonl", "validate e.jsonl --model bad", "chat --model bad"];
    let without = |token: &str| {
        copy_base(&place, "bad");
        edit_json(&place.path("bad/tokenizer.json"), |json| {
            json["added_tokens"].as_array_mut().unwrap().retain(|added| added["content"] != token);
            json["model"]["vocab"].as_object_mut().unwrap().remove(token);
        });
    };
    for (token, key) in
        [("<|end|>", "eos_token"), ("<s>", "bos_token"), ("<|user|>", "additional_special_tokens")]
    {
        without(token);
        for command in commands {
            place.fails(command, 1, &[&format!("{token:?}"), key, "tokenizer.json", "--template"]);
        }
    }
    // In the vocabulary, but not looked for in the text as it stands: it would be cut into pieces.
    copy_base(&place, "bad");
    edit_json(&place.path("bad/tokenizer.json"), |json| {
        json["added_tokens"].as_array_mut().unwrap().retain(|added| added["content"] != "<|end|>");
    });
    place.fails(commands[0], 1, &["\"<|end|>\"", "no token"]);
    // A row beyond the embedding.
    copy_base(&place, "bad");
    edit_json(&place.path("bad/config.json"), |json| json["vocab_size"] = json!(2));
    place.fails(commands[0], 1, &["\"<|end|>\" has the id 2", "of 2 tokens", "resize_token_embeddings"]);
    // Never written and never wanted: no reason to complain.
    copy_base(&place, "bad");
    edit_json(&place.path("bad/tokenizer_config.json"), |json| {
        json["pad_token"] = json!("<padding>");
        json["image_token"] = json!("<image>");
        json["additional_special_tokens"].as_array_mut().unwrap().push(json!("<|tool|>"));
    });
    place.ok(commands[0]);
}

#[test]
fn a_plain_template_can_be_chosen_wherever_one_is_wanted() {
    let place = Place::new();
    place.write("e.jsonl", format!("{ANSWER}\n"));
    copy_base(&place, "bare");
    edit_json(&place.path("bare/tokenizer_config.json"), |json| {
        json.as_object_mut().unwrap().remove("chat_template");
    });
    let parts = ["no chat template", "--template plain", "tokens.template"];
    for words in [
        "eval --model bare --episodes e.jsonl",
        "chat --model bare",
        "transfer c.toml --model bare --episodes 2",
        "export bare --format gguf --pre-tokenizer gpt-2 --out out",
        "validate e.jsonl --model bare",
        "inspect e.jsonl --model bare",
        "ask c.toml --who model --model bare",
    ] {
        place.fails(words, 1, &parts);
    }
    place.write("t.jinja", "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}");
    for template in ["plain", "t.jinja"] {
        place.ok(&format!("eval --model bare --episodes e.jsonl --set tokens.template={template}"));
        place.ok(&format!("chat --model bare --template {template}"));
        place.ok(&format!("validate e.jsonl --model bare --template {template}"));
        place.ok(&format!("transfer c.toml --model bare --episodes 2 --template {template}"));
        place.ok(&format!("ask c.toml --who model --model bare --set tokens.template={template} --probes 0"));
        let out = format!(
            "export bare --format gguf --pre-tokenizer gpt-2 --template {template} --out g-{template}"
        );
        place.ok(&out);
    }
    place.write("d.toml", "[run]\nname = \"d\"\n[tokens]\ntemplate = \"plain\"\nmax_length = 100");
    place.ok("eval --model bare --episodes e.jsonl --config d.toml");
    place.fails(
        "eval --model base --episodes e.jsonl --set tokens.max_length=3",
        1,
        &["more than 3", "tokens.max_length"],
    );
}

#[test]
fn what_was_trained_on_a_gguf_file_is_merged_into_its_original_or_into_the_file() {
    let place = Place::new();
    place.ok("export base --format gguf --quantization q8_0 --pre-tokenizer gpt-2 --out g");
    // Without the name's ending, as Ollama keeps them.
    std::fs::copy(place.path("g/model.gguf"), place.path("blob")).unwrap();
    place.ok("train c.toml --set model.source=blob --set train.max_steps=2");
    let done = place.run("export runs/a --format merged --out of-blob");
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(
        done.stderr.contains("blob is a GGUF file") && done.stderr.contains("--model"),
        "{}",
        done.stderr
    );
    assert!(place.names("of-blob").contains(&"tokenizer.json".to_string()));
    let done = place.run("export runs/a --format merged --model base --out m");
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(done.stderr.contains("trained on the GGUF file blob"), "{}", done.stderr);
    place.ok("export runs/a --format gguf --pre-tokenizer gpt-2 --model base --out m-gguf");
    // The merged model is base and adapter, as they compute here.
    place.write("ids.jsonl", "{\"input_ids\": [1, 3, 60, 70, 2]}\n");
    place.ok("logits --model base --adapter runs/a --input ids.jsonl --out a.safetensors");
    place.ok("logits --model m --input ids.jsonl --out b.safetensors");
    let read = |name: &str| common::gguf::flat(&tensors::read(&place.path(name)).unwrap()["0"]);
    let difference = common::gguf::largest_difference(&read("a.safetensors"), &read("b.safetensors"));
    assert!(difference < 1e-4, "{difference}");
    // Another model, whose linears the adapter fits but for its depth.
    copy_base(&place, "deeper");
    edit_json(&place.path("deeper/config.json"), |json| json["num_hidden_layers"] = json!(3));
    let config = ModelConfig::load(&place.path("deeper")).unwrap();
    let deeper = Decoder::random(&config, 1, DType::F32, &Device::Cpu).unwrap();
    tensors::write(&place.path("deeper/model.safetensors"), &deeper.parameters()).unwrap();
    place.fails("export runs/a --format merged --model deeper --out n", 2, &["another shape", "blob"]);

    // What loads the adapter elsewhere names a base that can be loaded there.
    let peft = place.ok("export runs/a --format peft --out p");
    assert!(peft.contains(r#"from_pretrained(".", gguf_file="blob")"#), "{peft}");
    let done = place.run("export runs/a --format mlx --out x");
    assert!(done.stdout.contains("--model ORIGINAL") && done.stderr.contains("blob was made of"), "{done:?}");
    let llama = place.ok("export runs/a --format gguf-lora --out l");
    assert!(llama.contains("-m blob --lora l/adapter.gguf"), "{llama}");
}

const FIRST: &str = "1111111111111111111111111111111111111111";
const SECOND: &str = "2222222222222222222222222222222222222222";

/// The cache as `huggingface_hub` lays it out, with a base at some commit as its main branch.
fn cache(place: &Place, commit: &str) {
    let model = "hub/hub/models--org--tiny";
    for (name, bytes) in place.files("base") {
        place.write(&format!("{model}/snapshots/{commit}/{name}"), bytes);
    }
    place.write(&format!("{model}/refs/main"), commit);
}

#[test]
fn exports_name_the_base_that_was_trained_on() {
    let place = Place::new();
    cache(&place, FIRST);
    place.ok("run c.toml --set model.source=org/tiny --set train.max_steps=2");
    // Someone else downloads a newer one.
    cache(&place, SECOND);
    let said = place.ok("export runs/a --format peft --out p");
    assert!(said.contains(&format!("from_pretrained(\"org/tiny\", revision=\"{FIRST}\")")), "{said}");
    let card = |folder: &str| std::fs::read_to_string(place.path(&format!("{folder}/README.md"))).unwrap();
    assert!(card("p").contains(FIRST) && !card("p").contains(SECOND), "{}", card("p"));
    assert_eq!(place.json("p/adapter_config.json")["revision"], FIRST);
    place.ok("export runs/a --format merged --model org/tiny --out m");
    assert!(card("m").contains(FIRST));
    let said = place.run("export runs/a --format peft --model base --out q");
    assert_eq!(place.json("q/adapter_config.json")["base_model_name_or_path"], "base");
    assert!(said.stderr.contains("its place on this machine"), "{}", said.stderr);

    // From elsewhere, to a place that a shell and Python would trip over; the measures come along.
    let elsewhere = place.path("else where");
    std::fs::create_dir(&elsewhere).unwrap();
    let (run_dir, out) = (place.path("runs/a"), "it's \"here\" $HOME");
    for (format, expected) in
        [("mlx", ""), ("gguf-lora", ""), ("merged", r#"from_pretrained("it's \"here\" $HOME/merged")"#)]
    {
        let folder = format!("{out}/{format}");
        let mut command =
            place.command_of(&["export", run_dir.to_str().unwrap(), "--format", format, "--out", &folder]);
        let done: Done = command.current_dir(&elsewhere).output().unwrap().into();
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        assert!(done.stdout.contains(expected), "{}", done.stdout);
        if expected.is_empty() {
            // As the shell reads it.
            let line = done.stdout.lines().rfind(|line| line.contains("--")).unwrap();
            let words = Command::new("sh").args(["-c", &format!("printf '%s\\n' {line}")]).output().unwrap();
            let words = String::from_utf8(words.stdout).unwrap();
            assert!(words.lines().any(|word| word.starts_with(&folder)), "{line} is {words}");
        }
        let card = std::fs::read_to_string(elsewhere.join(&folder).join("README.md")).unwrap();
        assert!(card.contains("## Evaluation") && card.contains("fine-tuned"), "{card}");
    }
}

#[test]
fn ranks_are_those_that_the_config_says() {
    let place = Place::new();
    place.ok("train c.toml --set train.max_steps=1 --set train.eval_every=0");
    let (config, weights) =
        ("runs/a/adapter/adapter_config.json", "runs/a/adapter/adapter_model.safetensors");
    edit_json(&place.path(config), |json| json["r"] = json!(4));
    for words in [
        "export runs/a/adapter --format peft --out p",
        "export runs/a/adapter --format gguf-lora --out p",
        "chat --model base --adapter runs/a/adapter",
    ] {
        place.fails(words, 1, &["has rank 2", "adapter_config.json says 4", "rank_pattern"]);
    }
    assert!(!place.path("p").exists());
    // One linear of another rank, as PEFT says it; its scale is alpha over its own rank.
    let mut tensors: BTreeMap<String, Tensor> = tensors::read(&place.path(weights)).unwrap();
    let name = "base_model.model.model.layers.0.self_attn.q_proj";
    for (half, dim) in [("lora_A", 0), ("lora_B", 1)] {
        let tensor = tensors.get_mut(&format!("{name}.{half}.weight")).unwrap();
        *tensor = tensor.narrow(dim, 0, 1).unwrap().contiguous().unwrap();
    }
    bayesteach::model::tensors::write(&place.path(weights), &tensors).unwrap();
    edit_json(&place.path(config), |json| {
        json["r"] = json!(2);
        json["rank_pattern"] = json!({"layers.0.self_attn.q_proj": 1});
    });
    place.ok("export runs/a/adapter --format peft --out p");
    let model = ModelConfig::load(&place.path("base")).unwrap();
    let (_, adapter) = bayesteach::model::peft::read(&place.path("p"), &model).unwrap();
    let bayesteach::model::adapter::Adapter::Lora(lora) = adapter else { panic!("a soft prompt") };
    let scale = |path: &str| lora.modules[path].scale;
    assert_eq!(scale("model.layers.0.self_attn.q_proj"), 4.0);
    assert_eq!(scale("model.layers.1.self_attn.q_proj"), 2.0);
}

/// Waits until something below a folder begins so.
#[cfg(unix)]
fn appears(folder: &Path, start: &str) -> bool {
    let there = || {
        std::fs::read_dir(folder).is_ok_and(|mut all| {
            all.any(|e| e.is_ok_and(|e| e.file_name().to_string_lossy().starts_with(start)))
        })
    };
    let begun = Instant::now();
    while !there() && begun.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_micros(200));
    }
    there()
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_nothing_unfinished() {
    let place = Place::new();
    place.ok("export base --format gguf --quantization f16 --pre-tokenizer gpt-2 --out g");
    place.ok("train c.toml --set train.max_steps=1 --set train.eval_every=0");
    let interrupt = |child: &std::process::Child| {
        let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(killed.success());
    };
    let names = |folder: &Path| -> Vec<String> {
        let all = std::fs::read_dir(folder).unwrap();
        all.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    };
    // A chat waits for its user for ever.
    let temporary = place.path("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let mut command = place.command("chat --model g/model.gguf");
    let mut child = command.env("TMPDIR", &temporary).stdin(Stdio::piped()).spawn().unwrap();
    let _open = child.stdin.take();
    assert!(appears(&temporary, "bayesteach-"));
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(names(&temporary), [""; 0]);

    // An export in the middle of its work: a tensor a file takes a while.
    let out = place.path("out");
    std::fs::create_dir(&out).unwrap();
    let mut stopped = 0;
    for i in 0..20 {
        let words = format!("export runs/a --format merged --max-shard-size 1B --out out/{i}");
        let mut child = place.command(&words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        if appears(&out, ".tmp-") {
            interrupt(&child);
        }
        let code = child.wait().unwrap().code();
        stopped += usize::from(code == Some(130));
        assert!(names(&out).iter().all(|name| !name.starts_with(".tmp-")), "{:?}", names(&out));
        assert!(code == Some(130) || out.join(i.to_string()).join("README.md").is_file(), "{code:?}");
        if stopped == 3 {
            return;
        }
    }
    assert!(stopped > 0, "no export was still at work when it was interrupted");
}

#[test]
fn files_of_the_wrong_kind_are_told_in_a_line() {
    let place = Place::new();
    place.ok("export base --format gguf --quantization f16 --without-tokenizer --out g");
    place.write("zeros", [b"{\"id\": ".as_slice(), &[0; 100]].concat());
    for (file, kind) in [
        ("base/model.safetensors", "a safetensors file"),
        ("g/model.gguf", "a GGUF file"),
        ("zeros", "a binary file"),
    ] {
        let done = place.run(&format!("validate {file}"));
        done.is_error(file, 1, &[]);
        assert!(done.stdout.lines().count() <= 2 && done.stdout.contains(kind), "{}", done.stdout);
        place.fails(&format!("eval --model base --episodes {file}"), 1, &[file, kind]);
    }
    place.write("text", "not JSON\n".repeat(5000));
    let done = place.run("validate text");
    assert_eq!(done.code, Some(1));
    assert_eq!(done.stdout.lines().count(), 102, "100 problems, how many more, and the sum");
    assert!(done.stdout.contains("and 4900 more problems") && done.stderr.contains("5000 problems"));
}

#[test]
fn files_are_not_taken_for_hub_ids() {
    let place = Place::new();
    place.ok("export base --format gguf --quantization f16 --pre-tokenizer gpt-2 --out g");
    std::fs::copy(place.path("g/model.gguf"), place.path("g/blob")).unwrap();
    place.ok("chat --model g/blob");
    place.fails("chat --model g/nothing.gguf", 2, &["g/nothing.gguf", "no such file"]);
    place.fails("chat --model g/README.md", 2, &["no GGUF file"]);
    place.fails("export g/model.gguf --format gguf --out out", 2, &["is a file", "llama.cpp loads already"]);
    place.fails("export c.toml --format peft --out out", 2, &["c.toml is a file", "the folder of a run"]);
}

#[test]
fn a_live_page_knows_what_is_done() {
    let place = Place::new();
    place.ok("train c.toml --set train.max_steps=2");
    let run = place.path("runs/a");
    let old = SystemTime::now() - Duration::from_secs(600);
    File::options().append(true).open(run.join("metrics.jsonl")).unwrap().set_modified(old).unwrap();
    let page = || live(std::slice::from_ref(&run));
    assert!(page().contains("<td>trained</td>") && !page().contains("/report/0"), "{}", page());
    place.ok("report runs/a");
    assert!(page().contains("/report/0"));
    // Of three steps wanted, two were done.
    let config = std::fs::read_to_string(run.join("config.toml")).unwrap();
    std::fs::write(run.join("config.toml"), config.replace("max_steps = 2", "max_steps = 3")).unwrap();
    assert!(page().contains("<td>stopped</td>"), "{}", page());
    std::fs::remove_dir_all(run.join("adapter")).unwrap();
    assert!(page().contains("no step for a minute"));
    place.fails("view runs/a --port 0 --save nodir/p.jsonl", 1, &["no folder nodir"]);
}

#[test]
fn small_mistakes_are_named() {
    let place = Place::new();
    let online = |words: &str, token: &str| -> Done {
        let mut command = place.command(words);
        command.env("HF_HUB_OFFLINE", "0").env("HF_ENDPOINT", "http://127.0.0.1:9").env("HF_TOKEN", token);
        command.output().unwrap().into()
    };
    place.ok("train c.toml --set train.max_steps=1 --set train.eval_every=0");
    let parts = ["token", "characters that no token has"];
    let done = online("chat --model org/name", "hf_a\nb");
    done.is_error("a token of two lines", 2, &parts);
    assert!(!done.stderr.contains("hf_a"), "{}", done.stderr);
    online("push runs/a me/mine", "hf a").is_error("a token with a space", 2, &parts);
    // Before anything is exported.
    let done = online("push runs/a mine", "hf_a");
    done.is_error("no repository", 2, &["\"mine\""]);
    assert!(!done.stderr.contains("exporting"), "{}", done.stderr);

    place.ok("export base --format gguf --quantization Q4_K --without-tokenizer --out g");
    place.write("ids.jsonl", "{\"input_ids\": [1, 3, 60]}\n");
    place.ok("logits --model base --quantization BF16 --input ids.jsonl --out l.safetensors");
}

#[test]
fn messages_of_other_programs() {
    let place = Place::new();
    let line = json!({"messages": [
        {"role": "user", "content": [{"type": "text", "text": "Which "}, {"type": "text", "text": "flight?"}]},
        {"role": "assistant", "content": "Let me think."},
        {"role": "user", "content": "Well?"},
        {"role": "assistant", "content": "Flight 2."},
    ]});
    place.write("m.jsonl", format!("{line}\n"));
    let mut command = place.command_of(&[
        "import",
        "m.jsonl",
        "--options",
        "1,2,3",
        "--answer",
        "Flight {}.",
        "--out",
        "e.jsonl",
    ]);
    let done: Done = command.output().unwrap().into();
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(
        done.stderr.contains("1 of 2 assistant messages") && done.stderr.contains("--answer"),
        "{}",
        done.stderr
    );
    let episodes = bayesteach::episode::read(&place.path("e.jsonl")).unwrap();
    assert_eq!(episodes[0].messages[0].content, "Which flight?");
    assert_eq!(episodes[0].answers().count(), 1);
    for (message, part) in [
        (json!({"role": "tool", "content": "3"}), "message 0: its role is \"tool\": dialogues with tools"),
        (json!({"role": "human", "content": "3"}), "message 0: its role is \"human\", which is none of"),
        (json!({"role": "user", "content": null}), "message 0: it has no content"),
        (
            json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}),
            "message 0: a part of its content is of the type \"image_url\"",
        ),
    ] {
        place.write("bad.jsonl", format!("{}\n", json!({"messages": [message]})));
        let done = place.run("import bad.jsonl --out b.jsonl");
        assert!(done.code == Some(1) && done.stdout.contains(part), "{part}: {}", done.stdout);
    }
}

#[test]
fn ollama_is_given_what_it_makes_its_model_from() {
    let place = Place::new();
    let said =
        run(&place, &["export", "base", "--format", "gguf", "--pre-tokenizer", "gpt-2", "--out", "my model"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stdout.contains("ollama create base -f 'my model/Modelfile'"), "{}", said.stdout);
    assert!(said.stdout.contains("llama-cli --jinja -m 'my model/model.gguf'"), "{}", said.stdout);
    let modelfile = std::fs::read_to_string(place.path("my model/Modelfile")).unwrap();
    assert!(modelfile.lines().any(|line| line == "FROM ./model.gguf"), "{modelfile}");
    let said = place.ok("export base --format gguf --without-tokenizer --out bare");
    assert!(!said.contains("--jinja") && !said.contains("ollama") && said.contains("token ids"), "{said}");
    assert!(!place.path("bare/Modelfile").exists());
}
