//! A tokenizer as llama.cpp wants it: tokens with types, merges or scores, the name of the rule that cuts text into
//! words, special ids, chat template.
//!
//! llama.cpp has two ways that matter here. Byte-level BPE ("gpt2") has merges, and the rule by name, out of a list
//! compiled into the program. SentencePiece ("llama") has a score for each token and no merges: the pair whose union
//! scores best is merged. A BPE tokenizer with byte fallback becomes the latter by ranking tokens as their merges are
//! ranked; where that is not exactly the same, a note says so.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use candle_core::quantized::gguf_file::Value;
use serde_json::Value as Json;

use crate::error::usage;
use crate::files;
use crate::model::gguf::layout::Metadata;
use crate::tokens::gguf::{LLAMA3_WORDS, QWEN2_WORDS, Type};
use crate::tokens::{Bos, Pipeline};

/// What a file says about its tokenizer.
#[derive(Debug, Default)]
pub(super) struct Vocabulary {
    pub metadata: Metadata,
    pub notes: Vec<String>,
}

/// The vocabulary of the tokenizer in `folder` for a model with `rows` embeddings. `pre_tokenizer` names llama.cpp's
/// rule where the tokenizer's own is unknown.
pub(super) fn vocabulary(
    folder: &Path,
    pipeline: &Pipeline,
    rows: usize,
    pre_tokenizer: Option<&str>,
) -> Result<Vocabulary> {
    let path = folder.join("tokenizer.json");
    let json: Json = files::read_json(&path)?;
    let mut vocabulary = Vocabulary::default();
    tokens(&json, rows, pre_tokenizer, &mut vocabulary).with_context(|| path.display().to_string())?;
    special_tokens(folder, pipeline, rows, &mut vocabulary)?;
    vocabulary.add("chat_template", Value::String(pipeline.renderer().portable_template()));
    Ok(vocabulary)
}

/// Says that there is no tokenizer: programs pass token ids then.
pub(super) fn without() -> Vocabulary {
    let mut vocabulary = Vocabulary::default();
    vocabulary.add("ggml.model", Value::String("no_vocab".into()));
    vocabulary
}

impl Vocabulary {
    fn add(&mut self, key: &str, value: Value) {
        self.metadata.push((format!("tokenizer.{key}"), value));
    }
}

fn tokens(json: &Json, rows: usize, pre_tokenizer: Option<&str>, out: &mut Vocabulary) -> Result<()> {
    let model = json.get("model").context("there is no model")?;
    let kind = model.get("type").and_then(Json::as_str).unwrap_or("BPE");
    ensure!(kind == "BPE", "llama.cpp's files hold BPE tokenizers; this is {kind}");
    let table = Table::read(json, model, rows, out)?;
    let merges = merges(model)?;
    if has_type(json.get("normalizer"), "NFC") {
        out.notes.push(
            "llama.cpp does not compose characters as this tokenizer does (NFC): a letter and its accent that are written \
             as two characters are cut into other tokens"
                .into(),
        );
    }
    let byte_fallback = model.get("byte_fallback").and_then(Json::as_bool).unwrap_or(false);
    if has_type(json.get("pre_tokenizer"), "ByteLevel") {
        let rule = word_rule(json, pre_tokenizer)?;
        let ignores = model.get("ignore_merges").and_then(Json::as_bool).unwrap_or(false);
        if ignores != (rule == "llama-bpe") {
            out.notes.push(format!(
                "llama.cpp's rule {rule:?} takes whole words from the vocabulary before it merges, or does not, where this \
                 tokenizer does otherwise: some texts may be cut into other tokens"
            ));
        }
        out.add("ggml.model", Value::String("gpt2".into()));
        out.add("ggml.pre", Value::String(rule));
        ensure!(!merges.is_empty(), "there are no merges");
        let merges = merges.iter().map(|(a, b)| Value::String(format!("{a} {b}")));
        let merges = merges.collect();
        table.write(out);
        out.add("ggml.merges", Value::Array(merges));
    } else if byte_fallback {
        ensure!(
            pre_tokenizer.is_none(),
            usage(
                "--pre-tokenizer is for byte-level tokenizers; this one becomes a SentencePiece vocabulary"
            )
        );
        out.add("ggml.model", Value::String("llama".into()));
        out.add("ggml.pre", Value::String("default".into()));
        let prefix = has_type(json.get("normalizer"), "Prepend")
            || metaspace(json).is_some_and(|scheme| scheme != "never");
        out.add("ggml.add_space_prefix", Value::Bool(prefix));
        let scores = scores(&table, &merges, out);
        table.write(out);
        out.add("ggml.scores", Value::Array(scores.into_iter().map(Value::F32).collect()));
    } else {
        bail!(
            "llama.cpp's files hold BPE over bytes, or with byte fallback; this tokenizer is neither. --without-tokenizer \
             leaves it out, for programs that pass token ids"
        );
    }
    Ok(())
}

/// Tokens by id.
struct Table {
    tokens: Vec<String>,
    types: Vec<Type>,
}

impl Table {
    fn read(json: &Json, model: &Json, rows: usize, out: &mut Vocabulary) -> Result<Self> {
        let vocab = model.get("vocab").and_then(Json::as_object).context("there is no vocabulary")?;
        let unknown = model.get("unk_token").and_then(Json::as_str);
        let byte_fallback = model.get("byte_fallback").and_then(Json::as_bool).unwrap_or(false);
        let mut table = Self {
            tokens: (0..rows).map(|id| format!("[PAD{id}]")).collect(),
            types: vec![Type::Unused; rows],
        };
        let mut beyond = 0;
        for (token, id) in vocab {
            let id = id.as_u64().with_context(|| format!("the id of {token:?} is {id}"))? as usize;
            let kind = match token.as_str() {
                t if Some(t) == unknown => Type::Unknown,
                t if byte_fallback && is_byte(t) => Type::Byte,
                _ => Type::Normal,
            };
            beyond += usize::from(!table.set(id, token, kind));
        }
        for added in json.get("added_tokens").and_then(Json::as_array).into_iter().flatten() {
            let id = added.get("id").and_then(Json::as_u64).context("an added token has no id")? as usize;
            let content = added.get("content").and_then(Json::as_str);
            let content = content.with_context(|| format!("the added token {id} has no content"))?;
            let flag = |key: &str| added.get(key).and_then(Json::as_bool).unwrap_or(false);
            let kind = match flag("special") {
                true if Some(content) == unknown => Type::Unknown,
                true => Type::Control,
                false => Type::UserDefined,
            };
            if flag("lstrip") || flag("rstrip") || flag("single_word") {
                out.notes.push(format!(
                    "the tokenizer treats the white space or the words around {content:?} specially, llama.cpp does not"
                ));
            }
            // llama.cpp looks for these in the text as it stands.
            let content =
                if kind == Type::UserDefined { content.replace('▁', " ") } else { content.to_owned() };
            beyond += usize::from(!table.set(id, &content, kind));
        }
        if beyond > 0 {
            out.notes.push(format!("{beyond} tokens have no row in the embedding and are left out"));
        }
        Ok(table)
    }

    fn set(&mut self, id: usize, token: &str, kind: Type) -> bool {
        let there = id < self.tokens.len();
        if there {
            self.tokens[id] = token.to_owned();
            self.types[id] = kind;
        }
        there
    }

    fn write(self, out: &mut Vocabulary) {
        out.add("ggml.tokens", Value::Array(self.tokens.into_iter().map(Value::String).collect()));
        out.add("ggml.token_type", Value::Array(self.types.iter().map(|&t| Value::I32(t as i32)).collect()));
    }
}

/// `<0x0A>`
fn is_byte(token: &str) -> bool {
    let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && hex.chars().all(|c| c.is_ascii_hexdigit()))
}

/// The pairs, in order, written as `["a", "b"]` or `"a b"`.
fn merges(model: &Json) -> Result<Vec<(String, String)>> {
    let list = model.get("merges").and_then(Json::as_array).context("there are no merges")?;
    let pair = |merge: &Json| {
        let (a, b) = match merge {
            Json::String(text) => text.split_once(' ')?,
            Json::Array(parts) => match parts.as_slice() {
                [a, b] => (a.as_str()?, b.as_str()?),
                _ => return None,
            },
            _ => return None,
        };
        Some((a.to_owned(), b.to_owned()))
    };
    list.iter().map(|merge| pair(merge).with_context(|| format!("{merge} is not a merge"))).collect()
}

/// Scores that make llama.cpp merge in the order of `merges`.
fn scores(table: &Table, merges: &[(String, String)], out: &mut Vocabulary) -> Vec<f32> {
    let normal: HashSet<&str> = table
        .tokens
        .iter()
        .zip(&table.types)
        .filter(|(_, t)| **t == Type::Normal)
        .map(|(t, _)| t.as_str())
        .collect();
    let mut first_rank: HashMap<String, usize> = HashMap::new();
    let mut pairs: HashSet<(&str, &str)> = HashSet::new();
    let mut last = String::new();
    let mut scattered = 0;
    for (rank, (a, b)) in merges.iter().enumerate() {
        pairs.insert((a, b));
        let union = format!("{a}{b}");
        if union != last && first_rank.contains_key(&union) && normal.contains(union.as_str()) {
            scattered += 1;
        }
        first_rank.entry(union.clone()).or_insert(rank);
        last = union;
    }
    let cuts = |token: &str| token.char_indices().skip(1).map(|(i, _)| i).collect::<Vec<_>>();
    let extra = |token: &&str| {
        cuts(token).into_iter().any(|i| {
            let (a, b) = token.split_at(i);
            normal.contains(a) && normal.contains(b) && !pairs.contains(&(a, b))
        })
    };
    let more = normal.iter().filter(|token| extra(token)).count();
    if scattered + more > 0 {
        out.notes.push(format!(
            "llama.cpp merges by the score of the result, and {} of this tokenizer's merges cannot be said so exactly: \
             some texts may be cut into other tokens",
            scattered + more
        ));
    }
    let none = merges.len();
    let score = |(token, kind): (&String, &Type)| match kind {
        Type::Normal => -(first_rank.get(token).copied().unwrap_or(none) as f32),
        Type::Byte | Type::Unknown => 0.0,
        Type::Control | Type::UserDefined | Type::Unused => -1000.0,
    };
    table.tokens.iter().zip(&table.types).map(score).collect()
}

/// Whether a normalizer or pre-tokenizer, or one of a sequence of them, is of that type.
fn has_type(json: Option<&Json>, kind: &str) -> bool {
    parts(json).iter().any(|part| part.get("type").and_then(Json::as_str) == Some(kind))
}

/// The parts of a sequence, or the one thing itself.
fn parts(json: Option<&Json>) -> Vec<&Json> {
    let Some(json) = json.filter(|json| json.is_object()) else { return Vec::new() };
    let list = json.get("pretokenizers").or_else(|| json.get("normalizers")).and_then(Json::as_array);
    list.map_or_else(|| vec![json], |list| list.iter().flat_map(|part| parts(Some(part))).collect())
}

fn metaspace(json: &Json) -> Option<String> {
    let parts = parts(json.get("pre_tokenizer"));
    let part = parts.into_iter().find(|part| part.get("type").and_then(Json::as_str) == Some("Metaspace"))?;
    Some(part.get("prepend_scheme").and_then(Json::as_str).unwrap_or("always").to_owned())
}

/// llama.cpp's name for how a byte-level tokenizer cuts text into words.
fn word_rule(json: &Json, chosen: Option<&str>) -> Result<String> {
    let mut known = None;
    let mut described = Vec::new();
    for part in parts(json.get("pre_tokenizer")) {
        let pattern = part.pointer("/pattern/Regex").and_then(Json::as_str);
        match part.get("type").and_then(Json::as_str) {
            Some("Split") if pattern == Some(LLAMA3_WORDS) => described.push("llama-bpe"),
            Some("Split") if pattern == Some(QWEN2_WORDS) => described.push("qwen2"),
            Some("Digits") if part.get("individual_digits") == Some(&Json::Bool(true)) => {
                described.push("digits")
            }
            Some("ByteLevel") => {
                if part.get("use_regex") != Some(&Json::Bool(false)) {
                    described.push("gpt-2");
                }
            }
            _ => described.push("unknown"),
        }
    }
    for (parts, rule) in [
        (&["llama-bpe"][..], "llama-bpe"),
        (&["qwen2"], "qwen2"),
        (&["gpt-2"], "gpt-2"),
        (&["digits", "gpt-2"], "smollm"),
    ] {
        if described == parts {
            known = Some(rule);
        }
    }
    match (known, chosen) {
        (_, Some(chosen)) => Ok(chosen.to_owned()),
        (Some(known), None) => Ok(known.to_owned()),
        (None, None) => Err(usage(format!(
            "this tokenizer cuts text into words by a rule that llama.cpp does not know: {}. --pre-tokenizer NAME takes one \
             of llama.cpp's that cuts your texts alike (\"gpt-2\", \"qwen2\", \"llama-bpe\", \"smollm\" …); --without-tokenizer \
             leaves the tokenizer out, for programs that pass token ids",
            json.get("pre_tokenizer").map(Json::to_string).unwrap_or_default()
        ))),
    }
}

/// The ids of special tokens, and whether one goes before a text.
fn special_tokens(folder: &Path, pipeline: &Pipeline, rows: usize, out: &mut Vocabulary) -> Result<()> {
    let tokenizer = pipeline.tokenizer();
    let configs: Vec<Json> = ["generation_config.json", "config.json"]
        .iter()
        .map(|name| folder.join(name))
        .filter(|path| path.is_file())
        .map(|path| files::read_json(&path))
        .collect::<Result<_>>()?;
    let configured = |key: &str| -> Vec<u32> {
        let lists = configs
            .iter()
            .flat_map(|config| [config.get(key), config.pointer(&format!("/text_config/{key}"))]);
        let value = lists.flatten().find(|value| !value.is_null());
        match value {
            Some(Json::Array(ids)) => ids.iter().filter_map(Json::as_u64).map(|id| id as u32).collect(),
            Some(id) => id.as_u64().map(|id| id as u32).into_iter().collect(),
            None => Vec::new(),
        }
    };
    let mut ids = BTreeMap::new();
    for (key, token, config_key) in [
        ("bos", "bos_token", "bos_token_id"),
        ("eos", "eos_token", "eos_token_id"),
        ("unknown", "unk_token", ""),
        ("padding", "pad_token", "pad_token_id"),
    ] {
        let named = tokenizer.special_tokens().get(token).and_then(|token| tokenizer.id(token));
        if let Some(id) = named.or_else(|| configured(config_key).first().copied()) {
            ids.insert(key, id);
        }
    }
    let others: Vec<u32> =
        configured("eos_token_id").into_iter().filter(|id| ids.get("eos") != Some(id)).collect();
    if let [eot] = others[..] {
        ids.insert("eot", eot);
    }
    for (key, id) in ids {
        ensure!((id as usize) < rows, "the {key} token has id {id}, but the embedding {rows} rows");
        out.add(&format!("ggml.{key}_token_id"), Value::U32(id));
    }
    let adds_bos = matches!(tokenizer.bos(&[])?, Bos::Tokenizer(_));
    out.add("ggml.add_bos_token", Value::Bool(adds_bos));
    out.add("ggml.add_eos_token", Value::Bool(false));
    Ok(())
}
