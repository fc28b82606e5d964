//! The token pipeline against transformers' renderings and ids, and against the plain but slow way to find
//! supervised tokens.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::path::{Path, PathBuf};

use bayesteach::episode::{Answer, Episode, Message, Role};
use bayesteach::rng;
use bayesteach::tokens::{
    Batch, Bos, ChatTemplate, Line, ModelLimits, Pipeline, Policy, Renderer, Sampler, SpecialTokens,
    TargetKind, TemplateChoice, Tokenizer, TokensConfig, Variant, inspect, micro_batches, read_lines,
};
use serde_json::{Value, json};

const FAMILIES: [&str; 5] = ["gemma", "llama2", "llama3", "qwen2", "qwen3"];
const DATE: &str = "26 Jul 2024";
const LIMITS: ModelLimits = ModelLimits { max_position_embeddings: 8192, vocab_size: 100_000 };

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizers")
}

fn json_of(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn load(family: &str, config: &TokensConfig) -> anyhow::Result<Pipeline> {
    Pipeline::load(&data().join(family), config, LIMITS)
}

fn pipeline(family: &str) -> Pipeline {
    load(family, &TokensConfig::default()).unwrap()
}

fn say(role: Role, content: &str) -> Message {
    Message { role, content: content.to_owned(), answer: None }
}

fn user(content: &str) -> Message {
    say(Role::User, content)
}

/// An assistant message with the label of option `said` where `{}` stands.
fn answer(pattern: &str, options: &[&str], said: usize) -> Message {
    let n = options.len();
    let answer = Answer {
        start: pattern.find("{}").unwrap(),
        options: options.iter().map(|o| (*o).to_owned()).collect(),
        probs: vec![1.0 / n as f64; n],
        said,
        truth: Some(0),
        weight: 1.0,
        observations: None,
        predictive: None,
        belief: None,
    };
    Message { role: Role::Assistant, content: pattern.replacen("{}", options[said], 1), answer: Some(answer) }
}

fn episode(messages: Vec<Message>) -> Episode {
    let episode = Episode {
        format_version: 1,
        id: "test-1".into(),
        world: String::new(),
        user: String::new(),
        messages,
    };
    episode.validate().unwrap();
    episode
}

fn error_of<T: std::fmt::Debug>(result: anyhow::Result<T>) -> String {
    format!("{:#}", result.unwrap_err())
}

fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

fn messages_of(case: &Value) -> Option<Vec<(Role, String)>> {
    case["messages"]
        .as_array()?
        .iter()
        .map(|m| {
            // No reasoning fields, no tools.
            let plain = m.as_object()?.len() == 2;
            let role: Role = serde_json::from_value(m["role"].clone()).ok()?;
            plain.then_some((role, m["content"].as_str()?.to_owned()))
        })
        .collect()
}

/// Renders a reference case; `None` where it has messages or settings that this program never passes.
fn render(template: &ChatTemplate, case: &Value) -> Option<anyhow::Result<String>> {
    let messages = messages_of(case)?;
    let messages: Vec<(Role, &str)> = messages.iter().map(|(role, text)| (*role, text.as_str())).collect();
    Some(template.render(&messages, case["kwargs"]["add_generation_prompt"].as_bool().unwrap_or(false)))
}

#[test]
fn templates_render_as_transformers_renders_them() {
    for family in FAMILIES {
        let folder = data().join(family);
        let tokenizer = Tokenizer::load(&folder).unwrap();
        let template = ChatTemplate::load(&folder, None, DATE).unwrap();
        let thinks = template.source().contains("enable_thinking");
        let mut compared = 0;
        for case in json_of(&folder.join("expected.json")).as_array().unwrap() {
            let kwargs = &case["kwargs"];
            let other_date = [&kwargs["date_string"], &case["strftime_now"]]
                .into_iter()
                .any(|date| date.as_str().is_some_and(|date| date != DATE));
            if other_date
                || (thinks
                    && kwargs["enable_thinking"] != json!(false)
                    && kwargs["add_generation_prompt"] == json!(true))
            {
                continue;
            }
            let Some(rendered) = render(&template, case) else {
                continue;
            };
            if case["error"] == json!(true) {
                assert!(rendered.is_err(), "{family}, {}", case["name"]);
            } else {
                let text = rendered.unwrap();
                assert_eq!(text, case["text"].as_str().unwrap(), "{family}, {}", case["name"]);
                assert_eq!(
                    json!(tokenizer.encode(&text).unwrap().ids),
                    case["ids"],
                    "{family}, {}",
                    case["name"]
                );
            }
            compared += 1;
        }
        assert!(compared >= 10, "{family}: only {compared} cases");
    }
}

#[test]
fn named_templates_render_as_transformers_renders_them() {
    for entry in json_of(&data().join("templates.json")).as_array().unwrap() {
        let tokens: SpecialTokens = ["bos_token", "eos_token"]
            .into_iter()
            .filter_map(|key| Some((key.to_owned(), entry[key].as_str()?.to_owned())))
            .collect();
        let mut compared = 0;
        for case in entry["cases"].as_array().unwrap() {
            // This program passes no extra arguments, so they are set in the template (JSON is a Jinja literal).
            let extra = case["kwargs"].get("extra").map(|extra| format!("{{% set extra = {extra} %}}"));
            let source = extra.unwrap_or_default() + entry["template"].as_str().unwrap();
            let template = ChatTemplate::new(&source, &tokens, DATE).unwrap();
            let Some(rendered) = render(&template, case) else {
                continue;
            };
            if case.get("error").is_some() {
                assert!(rendered.is_err(), "{}: {case}", entry["name"]);
            } else {
                assert_eq!(rendered.unwrap(), case["text"].as_str().unwrap(), "{}", entry["name"]);
            }
            compared += 1;
        }
        assert!(compared > 0, "{}", entry["name"]);
    }
}

#[test]
fn texts_encode_as_in_python_with_offsets_that_tile_them() {
    for family in FAMILIES {
        let folder = data().join(family);
        let tokenizer = Tokenizer::load(&folder).unwrap();
        for case in json_of(&folder.join("encodings.json")).as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let encoded = tokenizer.encode(text).unwrap();
            assert_eq!(json!(encoded.ids), case["ids"], "{family}: {text:?}");
            if text.contains('\u{301}') {
                continue; // a normaliser that composes characters leaves their second half to no token
            }
            let mut end = 0;
            for &(start, stop) in &encoded.offsets {
                assert!(
                    start <= end && stop >= start,
                    "{family}: {text:?} has a gap in {:?}",
                    encoded.offsets
                );
                end = end.max(stop);
            }
            assert_eq!(end, if encoded.ids.is_empty() { 0 } else { text.len() }, "{family}: {text:?}");
        }
    }
}

/// The definition, word by word: every option in place, the whole text encoded again.
fn naive(pipeline: &Pipeline, episode: &Episode) -> Vec<(u32, Vec<u32>)> {
    let encoded = pipeline.encode(episode).unwrap();
    let text = &encoded.rendered.text;
    let shift = u32::from(matches!(encoded.bos, Bos::Tokenizer(_)));
    let turns =
        encoded.rendered.turns.iter().filter_map(|t| Some((&episode.messages[t.message], t.label.clone()?)));
    turns
        .map(|(message, label)| {
            let answer = message.answer.as_ref().unwrap();
            assert_eq!(&text[label.clone()], answer.options[answer.said]);
            let variants: Vec<Vec<u32>> = answer
                .options
                .iter()
                .map(|option| format!("{}{option}{}", &text[..label.start], &text[label.end..]))
                .map(|text| pipeline.tokenizer().encode(&text).unwrap().ids)
                .collect();
            let at = (0..).find(|&i| variants.iter().any(|ids| ids[i] != variants[0][i])).unwrap();
            (at as u32 + shift - 1, variants.iter().map(|ids| ids[at]).collect())
        })
        .collect()
}

#[test]
fn supervised_tokens_are_those_of_the_definition() {
    let patterns = [
        "{}",
        "The best option is Flight {}.",
        "My answer is {}",
        "  {} it is \n",
        "I say:\n{}\n\nOr not {x}",
    ];
    let option_sets: [&[&str]; 5] = [
        &["1", "2", "3"],
        &["A", "B", "C", "D", "E"],
        &["yes", "no"],
        &["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
        &[" A", " B"],
    ];
    for family in FAMILIES {
        let pipeline = pipeline(family);
        let mut compared = 0;
        for trial in 0..60 {
            let mut draw = rng::stream(1, family, trial);
            let mut messages = Vec::new();
            for turn in 0..1 + draw.below(6) {
                let options = option_sets[draw.below(5)];
                messages.push(user(&format!("Item {turn}: ü😀 A, 1. The best option is Flight 1.")));
                let pattern = patterns[draw.below(5)];
                if options[0].starts_with(' ') && pattern.trim_start().starts_with('{') {
                    messages.push(say(Role::Assistant, "A"));
                } else {
                    messages.push(answer(pattern, options, draw.below(options.len())));
                }
            }
            if draw.below(2) == 0 {
                messages.push(user("I answered 2."));
            }
            let episode = episode(messages);
            if episode.answers().count() == 0 {
                continue;
            }
            let sequence = match pipeline.encode(&episode) {
                Ok(encoded) => encoded.sequence,
                // " A" after a space, or "yes" and "no", may share a first token in a tiny vocabulary.
                Err(error) => {
                    assert_says(&format!("{error:#}"), &["cannot be told apart"]);
                    continue;
                }
            };
            let fast: Vec<_> = sequence.targets.iter().map(|t| (t.position, t.token_ids.clone())).collect();
            assert_eq!(fast, naive(&pipeline, &episode), "{family}, trial {trial}");
            for target in &sequence.targets {
                let said = target.token_ids[target.answer.unwrap().said];
                assert_eq!(sequence.input_ids[target.position as usize + 1], said);
            }
            compared += 1;
        }
        assert!(compared > 30, "{family}: only {compared} of 60 were comparable");
    }
}

/// Token texts by hand, from `encodings.json`'s tokens for such texts.
#[test]
fn letters_take_the_space_and_digits_do_not() {
    for family in ["llama3", "qwen2", "gemma"] {
        let pipeline = pipeline(family);
        let targets = |message: Message| {
            let sequence = pipeline.encode(&episode(vec![user("U"), message])).unwrap().sequence;
            let target = sequence.targets[0].clone();
            let texts: Vec<String> =
                target.token_ids.iter().map(|&id| pipeline.tokenizer().text(id)).collect();
            (pipeline.tokenizer().text(sequence.input_ids[target.position as usize]), texts)
        };
        let (before, texts) = targets(answer("My answer is {}", &["A", "B"], 1));
        assert_eq!((before.as_str(), texts), (" is", vec![" A".to_owned(), " B".to_owned()]), "{family}");
        let (before, texts) = targets(answer("The best option is Flight {}.", &["1", "2", "3"], 2));
        assert_eq!((before.as_str(), texts), (" ", vec!["1".to_owned(), "2".into(), "3".into()]), "{family}");
    }
}

#[test]
fn one_and_ten_part_only_where_ten_is_one_token() {
    let episode = episode(vec![user("U"), answer("Item {}", &["1", "10", "2"], 0)]);
    assert_eq!(pipeline("llama3").encode(&episode).unwrap().sequence.targets[0].token_ids.len(), 3);
    for family in ["qwen2", "gemma"] {
        // The text goes on differently after "1" and "10", but that is no token of the label "1".
        let two = self::episode(vec![user("U"), answer("Item {}.", &["1", "10"], 0)]);
        assert_says(
            &error_of(pipeline(family).encode(&two)),
            &["test-1", "\"1\"", "\"10\"", "cannot be told apart"],
        );
        let message = error_of(pipeline(family).encode(&episode));
        assert_says(&message, &["test-1", "message 1", "\"1\"", "\"10\"", "cannot be told apart", "letters"]);
    }
}

#[test]
fn the_label_is_found_by_rendering_not_by_searching() {
    // The same sentence stands in the user's words before and after, and in an earlier answer.
    let sentence = "The best option is Flight 2.";
    for family in FAMILIES {
        let pipeline = pipeline(family);
        let episode = episode(vec![
            user(sentence),
            answer("\n The best option is Flight {}. \n", &["1", "2"], 1),
            user(sentence),
            answer("The best option is Flight {}.", &["1", "2"], 1),
            user(sentence),
        ]);
        let encoded = pipeline.encode(&episode).unwrap();
        let text = &encoded.rendered.text;
        let places: Vec<usize> = text.match_indices(sentence).map(|(at, _)| at + 26).collect();
        assert_eq!(places.len(), 5, "{family}");
        let labels: Vec<usize> =
            encoded.rendered.turns.iter().map(|t| t.label.clone().unwrap().start).collect();
        assert_eq!(labels, [places[1], places[3]], "{family}");
    }
}

#[test]
fn a_template_may_repeat_and_trim_a_content() {
    let source = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n\
                  {% if m.role == 'assistant' %}(said: {{ m.content | trim }}){% endif %}{% endfor %}\
                  {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let template = ChatTemplate::new(source, &SpecialTokens::new(), DATE).unwrap();
    let renderer = Renderer::new(template, true).unwrap();
    let rendered = renderer.render(&[user("2"), answer("  say {} ", &["1", "2"], 1), user("3")]).unwrap();
    assert_eq!(
        rendered.text,
        "<|im_start|>user\n2<|im_end|>\n<|im_start|>assistant\nsay 2<|im_end|>\n(said: say 2)<|im_start|>user\n3<|im_end|>\n"
    );
    let label = rendered.turns[0].label.clone().unwrap();
    assert_eq!(label.start, rendered.text.find("say 2").unwrap() + 4);
    assert_eq!(&rendered.text[label], "2");
    // A label that the template takes a part of cannot be supervised.
    let message = error_of(renderer.render(&[user("U"), answer("{}", &[" A", " B"], 0)]));
    assert_says(&message, &["trims the label", "message 1"]);
}

#[test]
fn what_other_dialogues_said_changes_nothing() {
    // Writes turns by what is said in them; a question with `forget` makes it leave out what was said before.
    let source = "{% set ns = namespace(all=true) %}\
                  {% for m in messages %}{% if 'forget' in m.content %}{% set ns.all = loop.last %}{% endif %}{% endfor %}\
                  {% for m in messages if ns.all or loop.index0 > 1 %}<|im_start|>{{ m.role }}\n\
                  {% if m.role == 'user' and '?' in m.content %}(asks) {{ m.content | upper }}\
                  {% else %}{{ m.content | trim }}{% endif %}<|im_end|>\n{% endfor %}\
                  {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let template = ChatTemplate::new(source, &SpecialTokens::new(), DATE).unwrap();
    let renderer = || Renderer::new(template.clone(), true).unwrap();
    let said = |first: &str, second: &str| {
        vec![user(first), answer("say {}", &["A", "B"], 1), user(second), answer(" {}", &["1", "2"], 0)]
    };
    let dialogues = [
        said("U", "V"),
        said(" U ", "V\n"),
        said("U?", "V"),
        said("U", "say B?"),
        said("\u{e000}1\u{e000}", "V"),
    ];
    let warm = renderer();
    for dialogue in dialogues.iter().chain(dialogues.iter().rev()) {
        let rendered = warm.render(dialogue).unwrap();
        assert_eq!(rendered, renderer().render(dialogue).unwrap());
        let labels: Vec<&str> =
            rendered.turns.iter().map(|turn| &rendered.text[turn.label.clone().unwrap()]).collect();
        assert_eq!(labels, ["B", "1"]);
        for turn in &rendered.turns {
            let messages: Vec<(Role, &str)> =
                dialogue[..turn.message].iter().map(|m| (m.role, m.content.as_str())).collect();
            assert!(rendered.text[..turn.content.start].starts_with(&warm.prompt(&messages).unwrap()));
        }
    }
    // The last prompt has the question at its end, so all stands in it; the text as a whole leaves the beginning out.
    let message = error_of(warm.render(&said("U", "forget")));
    assert_eq!(message, error_of(renderer().render(&said("U", "forget"))));
    assert_says(&message, &["chat template"]);
}

#[test]
fn prompts_that_depend_on_what_is_said_are_noticed() {
    let source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                  {% if add_generation_prompt %}<|im_start|>assistant\n\
                  {% if 'think' in messages[-1].content %}<think>\n{% endif %}{% endif %}";
    let template = ChatTemplate::new(source, &SpecialTokens::new(), DATE).unwrap();
    let renderer = Renderer::new(template, true).unwrap();
    let ask = |questions: &[&str]| {
        let turns = questions.iter().flat_map(|question| [user(question), answer("{}", &["A", "B"], 0)]);
        renderer.render(&turns.collect::<Vec<_>>())
    };
    ask(&["U", "V", "W"]).unwrap();
    for dialogue in [["think", "V", "W"], ["U", "think", "W"], ["U", "V", "think"]] {
        assert_says(&error_of(ask(&dialogue)), &["differently", "tokens.template"]);
    }
}

#[test]
fn contents_stand_where_the_template_puts_them_whatever_space_is_around() {
    // A line feed before the answer is trimmed, one behind the question is not.
    let source = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% else %}{{ m.content | trim }}{% endif %}\
                  {{ '\n' }}{% endfor %}";
    let template = ChatTemplate::new(source, &SpecialTokens::new(), DATE).unwrap();
    let renderer = Renderer::new(template, true).unwrap();
    for (question, said) in [("Q", "{}"), ("Q\n", "\n{}"), ("\nQ", "{}\n"), (" Q ", " {} ")] {
        let dialogue = [user(question), answer(said, &["A", "B"], 0), user(question)];
        // Without what follows, the same text could also be read the other way round.
        for dialogue in [&dialogue[..], &dialogue[..2]] {
            let rendered = renderer.render(dialogue).unwrap();
            let turn = &rendered.turns[0];
            assert_eq!(turn.content, question.len() + 1..question.len() + 2, "{question:?}, {said:?}");
            assert_eq!(turn.label, Some(turn.content.clone()));
        }
    }
}

#[test]
fn exactly_one_bos() {
    for (family, expected) in [("gemma", "<bos>"), ("llama2", "<s>"), ("llama3", "<|begin_of_text|>")] {
        let pipeline = pipeline(family);
        let encoded = pipeline.encode(&episode(vec![user("U"), answer("{}", &["1", "2"], 0)])).unwrap();
        let bos = pipeline.tokenizer().id(expected).unwrap();
        assert_eq!(encoded.bos, Bos::Template(bos), "{family}");
        assert_eq!(encoded.sequence.input_ids.iter().filter(|&&id| id == bos).count(), 1, "{family}");
    }
    let none = pipeline("qwen2").encode(&episode(vec![user("U"), answer("{}", &["1", "2"], 0)])).unwrap();
    assert_eq!(none.bos, Bos::None);

    // A template that leaves it to the tokenizer: from `add_bos_token`, and from the post-processor.
    let folder = tempfile::tempdir().unwrap();
    let template = folder.path().join("plain.jinja");
    let source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
    std::fs::write(&template, source).unwrap();
    let config = TokensConfig { template: TemplateChoice::Path(template.clone()), ..TokensConfig::default() };
    for (family, token) in [("gemma", "<bos>"), ("llama3", "<|begin_of_text|>")] {
        let plain = load(family, &config).unwrap();
        let encoded =
            plain.encode(&episode(vec![user("U"), answer("x {} y", &["1", "2"], 1), user("V")])).unwrap();
        let bos = plain.tokenizer().id(token).unwrap();
        assert_eq!(encoded.bos, Bos::Tokenizer(bos), "{family}");
        assert_eq!(encoded.sequence.input_ids.iter().filter(|&&id| id == bos).count(), 1, "{family}");
        assert_eq!(encoded.sequence.input_ids[0], bos, "{family}");
        assert_eq!(encoded.offsets.len(), encoded.sequence.len());
        let target = &encoded.sequence.targets[0];
        assert_eq!(encoded.sequence.input_ids[target.position as usize + 1], target.token_ids[1], "{family}");
        assert_eq!(plain.prompt(&[(Role::User, "U")]).unwrap()[0], bos);
    }
    // The plain one of this program's own.
    let own = TokensConfig { template: TemplateChoice::Plain, ..TokensConfig::default() };
    let plain = load("gemma", &own).unwrap();
    let encoded = plain.encode(&episode(vec![user("U"), answer("{}", &["1", "2"], 1), user("V")])).unwrap();
    let rendered = ChatTemplate::plain(&data().join("gemma"), "26 Jul 2024").unwrap();
    let messages = [(Role::User, "U"), (Role::Assistant, "2"), (Role::User, "V")];
    let text = rendered.render(&messages, true).unwrap();
    assert_eq!(text, "User: U\nAssistant: 2<eos>\nUser: V\nAssistant: ");
    let target = &encoded.sequence.targets[0];
    assert_eq!(encoded.sequence.input_ids[target.position as usize + 1], target.token_ids[1]);
    std::fs::write(&template, format!("{{{{ bos_token }}}}{{{{ bos_token }}}}{source}")).unwrap();
    let twice = load("gemma", &config).unwrap();
    assert_says(
        &error_of(twice.encode(&episode(vec![user("U"), answer("{}", &["1", "2"], 0)]))),
        &["two <bos>"],
    );
}

#[test]
fn several_answers_in_one_sequence_and_their_format_tokens() {
    let pipeline = pipeline("qwen2");
    let encoded = pipeline
        .encode(&episode(vec![
            user("U"),
            answer("My answer is {}", &["A", "B"], 1),
            user("V"),
            say(Role::Assistant, "Yes"),
            user("W"),
            answer("{}", &["1", "2", "3"], 0),
            user("X"),
        ]))
        .unwrap();
    let sequence = &encoded.sequence;
    let shown = |p: u32| pipeline.tokenizer().text(sequence.input_ids[p as usize + 1]);
    let said: Vec<String> = sequence.targets.iter().map(|t| shown(t.position)).collect();
    assert_eq!(said, [" B", "1"]);
    let observations: Vec<usize> = sequence.targets.iter().map(|t| t.answer.unwrap().observations).collect();
    assert_eq!(observations, [0, 1]);
    let format: String = sequence.format_positions.iter().map(|&p| shown(p)).collect();
    assert_eq!(format, "My answer is<|im_end|>Yes<|im_end|><|im_end|>");

    // Llama 2 has a space between the content and its end of turn.
    let llama = self::pipeline("llama2");
    let encoded = llama.encode(&episode(vec![user("U"), answer("{}", &["1", "2"], 0), user("V")])).unwrap();
    let ids = &encoded.sequence.input_ids;
    let last = *encoded.sequence.format_positions.last().unwrap() as usize;
    assert_eq!(llama.tokenizer().text(ids[last + 1]), "</s>");
}

#[test]
fn qwen3_is_rendered_per_turn_or_refused() {
    let strict = TokensConfig { template: TemplateChoice::Strict, ..TokensConfig::default() };
    for family in FAMILIES {
        let expected = if family == "qwen3" { Variant::PerTurn } else { Variant::Native };
        assert_eq!(pipeline(family).variant(), expected, "{family}");
        match load(family, &strict) {
            Ok(pipeline) => assert_eq!(pipeline.variant(), Variant::Native),
            Err(error) => {
                assert_eq!(family, "qwen3");
                assert_says(&format!("{error:#}"), &["changes earlier turns", "strict", "auto"]);
            }
        }
    }

    let pipeline = pipeline("qwen3");
    let messages = vec![
        say(Role::System, "S 'q'"),
        user(" U1 "),
        answer("A {}", &["1", "2"], 0),
        user("U2"),
        answer("A {}", &["1", "2"], 1),
        user("U3"),
    ];
    // Written by hand from the rule: generation prompt + content + end of turn.
    let open = "<|im_start|>assistant\n<think>\n\n</think>\n\n";
    let expected = format!(
        "<|im_start|>system\nS 'q'<|im_end|>\n<|im_start|>user\n U1 <|im_end|>\n{open}A 1<|im_end|>\n\
         <|im_start|>user\nU2<|im_end|>\n{open}A 2<|im_end|>\n<|im_start|>user\nU3<|im_end|>\n"
    );
    let encoded = pipeline.encode(&episode(messages.clone())).unwrap();
    assert_eq!(encoded.rendered.text, expected);

    // What is saved renders to the same, for a program that knows nothing of enable_thinking.
    let folder = tempfile::tempdir().unwrap();
    pipeline.save_beside(&data().join("qwen3"), folder.path()).unwrap();
    let saved = Pipeline::load(folder.path(), &strict, LIMITS).unwrap();
    assert_eq!(saved.variant(), Variant::Native);
    assert_eq!(saved.encode(&episode(messages)).unwrap().sequence, encoded.sequence);
    let config = json_of(&folder.path().join("tokenizer_config.json"));
    let file = std::fs::read_to_string(folder.path().join("chat_template.jinja")).unwrap();
    assert_eq!(config["chat_template"].as_str().unwrap(), file);
    assert!(!file.contains("enable_thinking"));

    // Both prompt alike, as the model's own template does.
    let native = ChatTemplate::load(&data().join("qwen3"), None, DATE).unwrap();
    let prompt = [(Role::User, "U1")];
    assert_eq!(saved.renderer().prompt(&prompt).unwrap(), native.render(&prompt, true).unwrap());
    // What it does not know, it refuses.
    let refused = saved.renderer().prompt(&[(Role::User, "U"), (Role::System, "S")]);
    assert_says(&error_of(refused), &["A system message must come first"]);
}

#[test]
fn a_saved_template_keeps_the_date_of_the_training() {
    let config = TokensConfig { date: "05 Mar 2025".into(), ..TokensConfig::default() };
    let pipeline = load("llama3", &config).unwrap();
    let prompt = [(Role::User, "U1")];
    let text = pipeline.renderer().prompt(&prompt).unwrap();
    assert!(text.contains("Today Date: 05 Mar 2025"), "{text}");
    let folder = tempfile::tempdir().unwrap();
    pipeline.save_beside(&data().join("llama3"), folder.path()).unwrap();
    let saved = Pipeline::load(folder.path(), &TokensConfig::default(), LIMITS).unwrap();
    assert_eq!(saved.renderer().prompt(&prompt).unwrap(), text);
    let bad = TokensConfig { date: "yesterday".into(), ..TokensConfig::default() };
    assert_says(&error_of(load("llama3", &bad)), &["tokens.date", "yesterday", "26 Jul 2024"]);
}

#[test]
fn missing_and_named_templates() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    assert_says(&error_of(Pipeline::load(path, &TokensConfig::default(), LIMITS)), &["no tokenizer.json"]);
    std::fs::copy(data().join("qwen2/tokenizer.json"), path.join("tokenizer.json")).unwrap();
    let load = || Pipeline::load(path, &TokensConfig::default(), LIMITS);
    assert_says(&error_of(load()), &["no chat template", "--template plain", "tokens.template"]);
    let write =
        |config: Value| std::fs::write(path.join("tokenizer_config.json"), config.to_string()).unwrap();
    let source = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
    write(
        json!({"chat_template": [{"name": "rag", "template": "no"}, {"name": "default", "template": source}]}),
    );
    assert_eq!(load().unwrap().renderer().template().source(), source);
    write(json!({"chat_template": [{"name": "rag", "template": "no"}]}));
    assert_says(&error_of(load()), &["default"]);
    write(json!({"chat_template": "{% for %}"}));
    assert_says(&error_of(load()), &["not valid Jinja"]);
    write(json!({"chat_template": "{{ messages[0].content.frobnicate() }}"}));
    assert_says(&error_of(load()), &["fails"]);
    std::fs::write(path.join("tokenizer_config.json"), "{").unwrap();
    assert_says(&error_of(load()), &["tokenizer_config.json", "not valid JSON"]);
    std::fs::write(path.join("tokenizer.json"), "{}").unwrap();
    assert_says(&error_of(load()), &["not a valid tokenizer"]);
}

#[test]
fn unusable_episodes_are_named_or_dropped() {
    let good = episode(vec![user("U"), answer("{}", &["A", "B"], 0)]);
    let named = |id: &str, messages: Vec<Message>| Episode { id: id.into(), ..episode(messages) };
    let long = named("long-1", vec![user(&"word ".repeat(100)), answer("{}", &["A", "B"], 0)]);
    let mute = named("mute-1", vec![user("U"), say(Role::Assistant, "A")]);
    let mut weightless = named("mute-2", vec![user("U"), answer("{}", &["A", "B"], 0)]);
    weightless.messages[1].answer.as_mut().unwrap().weight = 0.0;
    let alike = named("alike-1", vec![user("U"), answer("{}", &["1", "10"], 0)]);
    let lines: Vec<Line> = [&good, &long, &mute, &weightless, &alike, &good]
        .into_iter()
        .map(|e| Line::Episode(e.clone()))
        .collect();

    let short = TokensConfig { max_length: Some(80), ..TokensConfig::default() };
    let strict = load("qwen2", &short).unwrap();
    assert_says(&error_of(strict.encode_all(&lines)), &["long-1", "more than 80", "on_too_long"]);
    assert_says(&error_of(strict.encode_all(&lines[2..])), &["mute-1", "nothing to train on"]);
    assert_says(&error_of(strict.encode_all(&lines[3..])), &["mute-2", "nothing to train on"]);
    assert_says(&error_of(strict.encode_all(&lines[4..])), &["alike-1", "cannot be told apart"]);

    let lenient = TokensConfig { on_too_long: Policy::Drop, on_untrainable: Policy::Drop, ..short };
    let lenient = load("qwen2", &lenient).unwrap();
    let set = lenient.encode_all(&lines).unwrap();
    assert_eq!(set.sequences.len(), 2);
    assert_eq!(set.dropped.too_long, ["long-1"]);
    assert_eq!(set.dropped.untrainable, ["mute-1", "mute-2", "alike-1"]);
    assert_says(&error_of(lenient.encode_all(&lines[1..5])), &["nothing is left of 4"]);

    let too_much = TokensConfig { max_length: Some(9000), ..TokensConfig::default() };
    assert_says(&error_of(load("qwen2", &too_much)), &["9000", "8192"]);
    // A tokenizer that is not the model's.
    let small = ModelLimits { vocab_size: 300, ..LIMITS };
    let foreign = Pipeline::load(&data().join("qwen2"), &TokensConfig::default(), small);
    assert_says(&error_of(foreign), &["<|im_end|>", "300 tokens", "another model's"]);
    // Gemma refuses system messages, and roles that do not alternate.
    let system = named("system-1", vec![say(Role::System, "S"), user("U"), answer("{}", &["A", "B"], 0)]);
    assert_says(&error_of(pipeline("gemma").encode(&system)), &["system-1", "refuses"]);
}

#[test]
fn files_may_mix_episodes_and_tokenised_lines() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mixed.jsonl");
    let read = |lines: &[String]| {
        std::fs::write(&path, lines.join("\n")).unwrap();
        read_lines(&path)
    };
    let dialogue = serde_json::to_string(&episode(vec![user("U"), answer("{}", &["A", "B"], 0)])).unwrap();
    let tokenised = json!({"format_version": 1, "input_ids": [1, 87, 5, 99],
        "targets": [{"position": 3, "token_ids": [7], "probs": [1.0]},
                    {"position": 2, "token_ids": [99, 41], "probs": [0.7, 0.3], "weight": 0.5}]});
    let lines = read(&[dialogue.clone(), String::new(), tokenised.to_string()]).unwrap();
    assert_eq!(lines.len(), 2);
    let Line::Tokenised(sequence) = &lines[1] else { panic!("{:?}", lines[1]) };
    assert_eq!(sequence.input_ids, [1, 87, 5, 99]);
    assert_eq!((sequence.targets[0].position, sequence.targets[0].weight), (2, 0.5));
    assert_eq!(sequence.targets[1].position, 3);
    let set = pipeline("qwen2").encode_all(&lines).unwrap();
    assert_eq!(set.sequences[1], *sequence);

    let defect = |change: &dyn Fn(&mut Value), expected: &str| {
        let mut line = tokenised.clone();
        change(&mut line);
        let message = error_of(read(&[dialogue.clone(), line.to_string()]));
        assert_says(&message, &["mixed.jsonl, line 2", expected]);
    };
    defect(&|l| l["format_version"] = json!(2), "format_version is 2");
    defect(&|l| l["input_ids"] = json!([]), "input_ids is empty");
    defect(&|l| l["input_ids"] = json!([-1]), "invalid value");
    defect(&|l| l["targets"] = json!([]), "nothing to train on");
    defect(&|l| l["targets"][0]["position"] = json!(4), "position 4");
    defect(&|l| l["targets"][0]["position"] = json!(2), "two targets");
    defect(&|l| l["targets"][1]["token_ids"] = json!([99, 99]), "appears twice");
    defect(&|l| l["targets"][1]["token_ids"] = json!([99]), "1 token_ids but 2 probs");
    defect(&|l| l["targets"][1]["probs"] = json!([0.7, 0.7]), "sum to");
    defect(&|l| l["targets"][1]["probs"] = json!([1.7, -0.7]), "not negative");
    defect(&|l| l["targets"][1]["weight"] = json!(-1), "weight");
    defect(&|l| l["targets"][1]["wait"] = json!(1), "unknown field");
    assert_says(&error_of(read(&["{}".into()])), &["line 1"]);
    assert_says(&error_of(read(&["nonsense".into()])), &["line 1"]);
    assert_says(&error_of(read(&[])), &["no episodes"]);
    assert_says(&error_of(read_lines(&folder.path().join("absent"))), &["cannot open"]);
    // Beyond the model's vocabulary: only the pipeline can know.
    let mut line = tokenised.clone();
    line["input_ids"][0] = json!(100_000);
    let lines = read(&[line.to_string()]).unwrap();
    assert_says(&error_of(pipeline("qwen2").encode_all(&lines)), &["tokenised-1", "100000"]);
}

#[test]
fn a_file_is_encoded_as_its_lines_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("episodes.jsonl");
    let line = |id: &str, text: &str| {
        let messages = vec![user(text), answer("{}", &["A", "B"], 0)];
        serde_json::to_string(&Episode { id: id.into(), ..episode(messages) }).unwrap()
    };
    let write = |lines: &[String]| std::fs::write(&path, lines.join("\n")).unwrap();
    let long = "word ".repeat(100);
    let tokenised = r#"{"format_version": 1, "input_ids": [1, 87], "targets": [{"position": 1, "token_ids": [7], "probs": [1.0]}]}"#;
    let lines = [line("a", "U"), line("long", &long), tokenised.to_owned(), line("b", "V")];
    let short = TokensConfig { max_length: Some(80), ..TokensConfig::default() };
    let lenient = TokensConfig { on_too_long: Policy::Drop, ..short.clone() };
    let (strict, lenient) = (load("qwen2", &short).unwrap(), load("qwen2", &lenient).unwrap());
    write(&lines);
    let set = lenient.encode_file(&path).unwrap();
    assert_eq!(set, lenient.encode_all(&read_lines(&path).unwrap()).unwrap());
    assert_eq!(set.sequences.iter().map(|s| s.id.as_str()).collect::<Vec<_>>(), ["a", "tokenised-3", "b"]);
    assert_eq!(set.dropped.too_long, ["long"]);

    let refused = |lines: &[String], fragments: &[&str]| {
        write(lines);
        let error = error_of(strict.encode_file(&path));
        assert_says(&error, &["episodes.jsonl"]);
        assert_says(&error, fragments);
    };
    refused(&lines, &["\"long\"", "more than 80"]);
    // What is wrong with a line comes first, even where it stands behind an episode that is too long.
    let with = |line: &str| [lines.as_slice(), &[line.to_owned()]].concat();
    refused(&with("nonsense"), &["line 5"]);
    refused(&with(&lines[0]), &["line 5", "the id \"a\" is that of line 1 too"]);
    refused(&[], &["no episodes"]);
    write(&lines[1..2]);
    assert_says(&error_of(lenient.encode_file(&path)), &["episodes.jsonl", "nothing is left of 1 episodes"]);
    assert_says(&error_of(strict.encode_file(&folder.path().join("absent"))), &["cannot open"]);
}

#[test]
fn a_batch_mixes_answers_of_2_and_10_options() {
    let pipeline = pipeline("qwen2");
    let digits = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    let mut first = episode(vec![
        user("U"),
        answer("My answer is {}", &["A", "B"], 1),
        user("V"),
        answer("{}", &digits, 4),
    ]);
    first.messages[1].answer.as_mut().unwrap().probs = vec![0.25, 0.75];
    let mut second =
        episode(vec![user("W"), answer("{}", &["A", "B"], 0), user("V"), answer("{}", &["A", "B"], 0)]);
    second.messages[1].answer.as_mut().unwrap().weight = 0.0;
    second.messages[3].answer.as_mut().unwrap().weight = 2.5;
    let (a, b) = (pipeline.encode(&first).unwrap().sequence, pipeline.encode(&second).unwrap().sequence);

    let batch = Batch::new(&[(7, &a), (3, &b)], TargetKind::default());
    let (n, m) = (a.len() as u32, b.len() as u32);
    assert_eq!(batch.boundaries, [0, n, n + m]);
    assert_eq!(batch.sequences, [7, 3]);
    assert_eq!(batch.positions, (0..n).chain(0..m).collect::<Vec<_>>());
    assert_eq!(batch.input_ids, [a.input_ids.clone(), b.input_ids.clone()].concat());
    assert_eq!(batch.target_rows, [a.targets[0].position, a.targets[1].position, n + b.targets[1].position]);
    assert_eq!(batch.option_boundaries, [0, 2, 12, 14]);
    assert_eq!(batch.weights, [1.0, 1.0, 2.5]);
    assert_eq!(batch.is_answer, [true; 3]);
    assert_eq!(batch.target_probs[..2], [0.25, 0.75]);
    assert_eq!(batch.target_ids[2..12], a.targets[1].token_ids);

    let ce = Batch::new(&[(0, &a)], TargetKind { ce: true, format_weight: 0.5, ..TargetKind::default() });
    assert_eq!(ce.targets(), 2 + a.format_positions.len());
    assert!(ce.target_rows.is_sorted_by(|x, y| x < y));
    for (i, &row) in ce.target_rows.iter().enumerate() {
        let options = ce.option_boundaries[i] as usize..ce.option_boundaries[i + 1] as usize;
        let chosen: Vec<u32> =
            options.clone().filter(|&o| ce.target_probs[o] == 1.0).map(|o| ce.target_ids[o]).collect();
        assert_eq!(ce.target_probs[options.clone()].iter().sum::<f32>(), 1.0);
        // In an episode every one-hot target is the token that comes next, and the other options stay options.
        assert_eq!(chosen, [ce.input_ids[row as usize + 1]]);
        assert_eq!(options.len() > 1, ce.is_answer[i]);
        assert_eq!(ce.weights[i], if ce.is_answer[i] { 1.0 } else { 0.5 });
    }
    assert_eq!(ce.is_answer.iter().filter(|&&is| is).count(), 2);
}

#[test]
fn acting_and_reporting_are_trained_apart_or_together() {
    let pipeline = pipeline("qwen2");
    let mut episode =
        episode(vec![user("U"), answer("{}", &["A", "B"], 1), user("V"), answer("{}", &["1", "2"], 0)]);
    let report = episode.messages[3].answer.as_mut().unwrap();
    (report.belief, report.weight) = (Some("price".into()), 0.5);
    let sequence = pipeline.encode(&episode).unwrap().sequence;
    let weights = |action_weight, belief_weight| {
        let kind = TargetKind { action_weight, belief_weight, ..TargetKind::default() };
        Batch::new(&[(0, &sequence)], kind).weights
    };
    assert_eq!(weights(1.0, 1.0), [1.0, 0.5]);
    assert_eq!(weights(3.0, 0.0), [3.0]);
    assert_eq!(weights(0.0, 2.0), [1.0]);
    // Where nothing says otherwise, all earlier answers bear on an answer, but no report does.
    episode.messages.extend([user("W"), answer("{}", &["A", "B"], 1)]);
    assert_eq!(episode.answers().map(|(_, observations)| observations).collect::<Vec<_>>(), [0, 1, 1]);
}

#[test]
fn every_epoch_visits_every_example_once() {
    let sampler = Sampler { seed: 3, examples: 23, batch_size: 5 };
    assert_eq!(sampler.steps_per_epoch(), 5);
    let epoch = |n: usize| (5 * n..5 * n + 5).flat_map(|step| sampler.batch(step)).collect::<Vec<_>>();
    let (first, second) = (epoch(0), epoch(1));
    let sorted = |mut order: Vec<usize>| {
        order.sort_unstable();
        order
    };
    assert_eq!(sorted(first.clone()), (0..23).collect::<Vec<_>>());
    assert_eq!(sorted(second.clone()), (0..23).collect::<Vec<_>>());
    assert_ne!(first, second);
    assert_eq!(sampler.batch(4).len(), 3);
    assert_eq!(sampler.batch(7), sampler.batch(7));
    assert_ne!(sampler.batch(0), Sampler { seed: 4, ..sampler }.batch(0));
    assert!(Sampler { examples: 0, ..sampler }.batch(0).is_empty());
}

#[test]
fn micro_batches_are_filled_in_order() {
    let lengths = [10, 20, 30, 100, 5, 5];
    assert_eq!(micro_batches(&lengths, &[5, 0, 2, 1, 3, 4], 50), [vec![5, 0, 2], vec![1], vec![3], vec![4]]);
    assert_eq!(micro_batches(&lengths, &[0, 1], 1), [vec![0], vec![1]]);
    assert_eq!(micro_batches(&lengths, &[0, 2, 4], 1000), [vec![0, 2, 4]]);
    assert!(micro_batches(&lengths, &[], 10).is_empty());
}

#[test]
fn inspect_shows_it_all_within_100_columns() {
    let pipeline = pipeline("gemma");
    let mut long = episode(vec![
        user(&"Flight 1: a very long line of text. ".repeat(9)),
        answer("The best option is Flight {}.", &["1", "2", "3"], 2),
    ]);
    long.messages[1].answer.as_mut().unwrap().probs = vec![0.11, 0.27, 0.62];
    let text = inspect(&pipeline, &Line::Episode(long)).unwrap();
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    assert_says(
        &text,
        &["<bos>", "written by the template", "native", "► answer 1", "0.6200", "said", "truth", "\"3\""],
    );
    let tokenised = json!({"format_version": 1, "input_ids": [1, 2, 3], "targets": [{"position": 2, "token_ids": [4, 5], "probs": [0.5, 0.5]}]});
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.jsonl");
    std::fs::write(&path, tokenised.to_string()).unwrap();
    let text = inspect(&pipeline, &read_lines(&path).unwrap()[0]).unwrap();
    assert_says(&text, &["tokenised-1", "position 2", "0.5000"]);
}

#[test]
fn settings_have_defaults_and_unknown_keys_are_errors() {
    let parse = |text: &str| serde_json::from_str::<TokensConfig>(text);
    assert_eq!(parse("{}").unwrap(), TokensConfig::default());
    let config = parse(r#"{"max_length": 512, "on_too_long": "drop", "template": "a/b.jinja"}"#).unwrap();
    assert_eq!((config.max_length, config.on_too_long), (Some(512), Policy::Drop));
    assert_eq!(config.template, TemplateChoice::Path("a/b.jinja".into()));
    assert_eq!(parse(&serde_json::to_string(&config).unwrap()).unwrap(), config);
    assert!(parse(r#"{"max_lenght": 1}"#).is_err());
}
