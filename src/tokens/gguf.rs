//! The tokenizer of a GGUF file as the hub's files: `tokenizer.json` and `tokenizer_config.json`.
//!
//! llama.cpp has two ways that matter here. Byte-level BPE ("gpt2") has merges, and the rule that cuts text into words
//! by name. SentencePiece ("llama") has a score for each token: every pair of tokens whose union is a token can be
//! merged, the best score first, which as a list of merges is the same.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Map, Value, json};

/// Llama 3's rule for cutting text into words.
pub(crate) const LLAMA3_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's.
pub(crate) const QWEN2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// llama.cpp's types of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Type {
    /// Of the text.
    Normal = 1,
    /// What stands for text without a token.
    Unknown = 2,
    /// Special: it does not come from text.
    Control = 3,
    /// Looked for in the text as it stands.
    UserDefined = 4,
    /// Nothing stands for it.
    Unused = 5,
    /// A byte of text without a token.
    Byte = 6,
}

impl Type {
    fn parse(code: i64) -> Option<Self> {
        [Self::Normal, Self::Unknown, Self::Control, Self::UserDefined, Self::Unused, Self::Byte]
            .into_iter()
            .find(|kind| *kind as i64 == code)
    }
}

/// What the hub's files would say.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizerFiles {
    /// `tokenizer.json`
    pub tokenizer: Value,
    /// `tokenizer_config.json`, with the chat template where the file has one.
    pub config: Value,
}

/// The tokenizer that a GGUF file's metadata describe.
///
/// # Errors
/// If there is none, or it is of a kind that this program cannot reproduce.
pub fn tokenizer_files(metadata: &Map<String, Value>) -> Result<TokenizerFiles> {
    let keys = Keys(metadata);
    let model = keys.text("ggml.model").unwrap_or("no_vocab");
    let table = match model {
        "gpt2" | "llama" => Table::read(&keys)?,
        "no_vocab" | "none" => bail!(
            "the file has no tokenizer: convert the model again with its tokenizer, or use the model's own folder as base"
        ),
        other => bail!(
            "the file's tokenizer is of the kind {other:?}; byte-level BPE (\"gpt2\") and SentencePiece (\"llama\") are \
             read. The model's own folder has it in full"
        ),
    };
    let words = keys.text("ggml.pre").unwrap_or("default");
    let tokenizer =
        if model == "gpt2" { byte_level(&keys, &table, words)? } else { sentence_piece(&keys, &table)? };
    let config = config(&keys, &table, model == "llama" || words_of_llama3(words))?;
    Ok(TokenizerFiles { tokenizer, config })
}

struct Keys<'a>(&'a Map<String, Value>);

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(&format!("tokenizer.{key}"))
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        self.get(key).and_then(Value::as_str)
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.get(key).and_then(Value::as_bool)
    }

    fn list(&self, key: &str) -> Result<&'a [Value]> {
        let list = self.get(key).and_then(Value::as_array).map(Vec::as_slice);
        list.with_context(|| format!("the metadata have no list tokenizer.{key}"))
    }
}

/// Tokens by id.
struct Table<'a> {
    tokens: Vec<&'a str>,
    types: Vec<Type>,
}

impl<'a> Table<'a> {
    fn read(keys: &Keys<'a>) -> Result<Self> {
        let text = |(id, token): (usize, &'a Value)| {
            token.as_str().with_context(|| format!("token {id} is {token}, no text"))
        };
        let tokens: Vec<&str> =
            keys.list("ggml.tokens")?.iter().enumerate().map(text).collect::<Result<_>>()?;
        let types = match keys.get("ggml.token_type") {
            None => vec![Type::Normal; tokens.len()],
            Some(_) => {
                let kind = |code: &Value| {
                    let kind = code.as_i64().and_then(Type::parse);
                    kind.with_context(|| format!("there is no type of tokens {code}"))
                };
                keys.list("ggml.token_type")?.iter().map(kind).collect::<Result<Vec<_>>>()?
            }
        };
        ensure!(types.len() == tokens.len(), "{} tokens but {} token types", tokens.len(), types.len());
        Ok(Self { tokens, types })
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &'a str, Type)> {
        self.tokens.iter().zip(&self.types).enumerate().map(|(id, (token, kind))| (id, *token, *kind))
    }

    /// The tokens that text is made of, by what `tokenizer.json` calls them.
    fn vocabulary(&self) -> Map<String, Value> {
        let mut vocabulary = Map::new();
        for (id, token, kind) in self.iter() {
            // Rows of the embedding beyond the vocabulary.
            let filler = kind == Type::Unused && token == format!("[PAD{id}]");
            if !filler {
                vocabulary.entry(of_text(token, kind)).or_insert(id.into());
            }
        }
        vocabulary
    }

    fn added(&self) -> Vec<Value> {
        let wanted = self
            .iter()
            .filter(|(.., kind)| matches!(kind, Type::Control | Type::UserDefined | Type::Unknown));
        let added = |(id, token, kind): (usize, &str, Type)| {
            json!({
                "id": id, "content": of_text(token, kind), "special": kind != Type::UserDefined,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        };
        wanted.map(added).collect()
    }
}

/// A token as `tokenizer.json` has it: runs of spaces that llama.cpp looks for in the text as it stands are `▁` there.
fn of_text(token: &str, kind: Type) -> String {
    let spaces = kind == Type::UserDefined && !token.is_empty() && token.chars().all(|c| c == ' ');
    if spaces { token.replace(' ', "▁") } else { token.to_owned() }
}

fn words_of_llama3(words: &str) -> bool {
    ["llama-bpe", "llama3", "llama-v3"].contains(&words)
}

fn byte_level(keys: &Keys, table: &Table, words: &str) -> Result<Value> {
    let split = |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let (parts, composed) = match words {
        _ if words_of_llama3(words) => (vec![split(LLAMA3_WORDS), bytes(false)], false),
        // transformers composes characters for these, and so did the training of the models.
        "qwen2" | "deepseek-r1-qwen" => (vec![split(QWEN2_WORDS), bytes(false)], true),
        "gpt-2" => (vec![bytes(true)], false),
        "smollm" => (vec![json!({"type": "Digits", "individual_digits": true}), bytes(true)], false),
        other => bail!(
            "the file's tokenizer cuts text into words by the rule {other:?}; llama-bpe, qwen2, gpt-2 and smollm are known. \
             The model's own folder has it in full"
        ),
    };
    let pair = |merge: &Value| {
        let text = merge.as_str().with_context(|| format!("{merge} is no merge"))?;
        // The first character may be a space itself.
        let cut = text.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        let cut = cut.with_context(|| format!("{text:?} is no merge"))?;
        Ok(json!([text[..cut], text[cut + 1..]]))
    };
    let merges: Vec<Value> = keys.list("ggml.merges")?.iter().map(pair).collect::<Result<_>>()?;
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": table.added(),
        "normalizer": if composed { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": words_of_llama3(words), "vocab": table.vocabulary(), "merges": merges,
        },
    }))
}

fn sentence_piece(keys: &Keys, table: &Table) -> Result<Value> {
    let scores: Vec<f64> = (keys.list("ggml.scores")?.iter())
        .map(|score| score.as_f64().with_context(|| format!("{score} is no score")))
        .collect::<Result<_>>()?;
    ensure!(scores.len() == table.tokens.len(), "{} tokens but {} scores", table.tokens.len(), scores.len());
    let unknown = table.iter().find(|(.., kind)| *kind == Type::Unknown).map(|(_, token, _)| token);
    // As llama.cpp has it where the file does not say.
    let prefix = keys.flag("ggml.add_space_prefix").unwrap_or(true);
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let normalizer = match prefix {
        true => json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}),
        false => replace,
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": table.added(),
        "normalizer": normalizer,
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": table.vocabulary(), "merges": merges_by_score(table, &scores),
        },
    }))
}

/// Every pair of tokens whose union is a token, the best score first, in the order of the ids among equals.
fn merges_by_score(table: &Table, scores: &[f64]) -> Vec<Value> {
    let mut ids: HashMap<String, usize> = HashMap::new();
    for (id, token, kind) in table.iter() {
        if matches!(kind, Type::Normal | Type::UserDefined) {
            ids.entry(of_text(token, kind)).or_insert(id);
        }
    }
    let mut merges = Vec::new();
    for (token, &id) in &ids {
        // What is looked for in the text as it stands comes before all merging.
        let score = if table.types[id] == Type::UserDefined { f64::INFINITY } else { scores[id] };
        for (cut, _) in token.char_indices().skip(1) {
            let (a, b) = token.split_at(cut);
            if let (Some(&left), Some(&right)) = (ids.get(a), ids.get(b)) {
                merges.push((score, id, left, right, json!([a, b])));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| (a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
    merges.into_iter().map(|(.., merge)| merge).collect()
}

fn config(keys: &Keys, table: &Table, usually_bos: bool) -> Result<Value> {
    let mut config = Map::new();
    config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
    config.insert("clean_up_tokenization_spaces".into(), false.into());
    for (key, name) in
        [("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token"), ("padding", "pad_token")]
    {
        let Some(id) = keys.get(&format!("ggml.{key}_token_id")) else { continue };
        let token = id.as_u64().and_then(|id| table.tokens.get(usize::try_from(id).ok()?));
        let token =
            token.with_context(|| format!("the {key} token has id {id}, of {}", table.tokens.len()))?;
        config.insert(name.into(), (*token).into());
    }
    let has_bos = config.contains_key("bos_token");
    let adds = keys.flag("ggml.add_bos_token").unwrap_or(usually_bos) && has_bos;
    config.insert("add_bos_token".into(), adds.into());
    if let Some(template) = keys.text("chat_template") {
        config.insert("chat_template".into(), template.into());
    }
    Ok(Value::Object(config))
}
