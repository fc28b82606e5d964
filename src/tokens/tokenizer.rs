//! A model's tokenizer: text to ids with byte offsets, the beginning-of-sequence token, names for display.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, anyhow, bail, ensure};

use super::pieces::Pieces;
use super::template::{SpecialTokens, read_tokenizer_config, special_tokens};

/// The tokenizer of a model's folder.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Where texts can be encoded piece by piece.
    pieces: Option<Arc<Pieces>>,
    /// What the model expects before a text that does not begin with it.
    bos: Option<u32>,
    special_tokens: SpecialTokens,
    /// Ids of the added tokens that cut a text: what stands on one side is encoded without regard to the other.
    cuts: Vec<u32>,
    /// Ids of all added tokens.
    added: Vec<u32>,
}

/// Ids and, for each, the bytes of the text that it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The token ids.
    pub ids: Vec<u32>,
    /// Byte ranges of the text.
    pub offsets: Vec<(usize, usize)>,
}

/// Where the beginning-of-sequence token of a text comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bos {
    /// The rendered text begins with it.
    Template(u32),
    /// The tokenizer puts it before the text.
    Tokenizer(u32),
    /// The model has none, or wants none.
    None,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, where there is one, `tokenizer_config.json`.
    ///
    /// # Errors
    /// If a file is missing or damaged.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        ensure!(
            path.exists(),
            "{} has no tokenizer.json: save the tokenizer with a recent version of transformers to get one",
            folder.display()
        );
        let mut inner = tokenizers::Tokenizer::from_file(&path)
            .map_err(|error| anyhow!("{} is not a valid tokenizer: {error}", path.display()))?;
        inner.with_truncation(None).map_err(|error| anyhow!("{}: {error}", path.display()))?;
        inner.with_padding(None);

        let config = read_tokenizer_config(folder)?;
        let special_tokens = special_tokens(&config);
        let bos = wanted_bos(&inner, &config, &special_tokens)?;
        // Its work is done: what remains of it would only trim the white space out of the offsets.
        inner.with_post_processor(None::<tokenizers::PostProcessorWrapper>);

        let cuts = cutting_tokens(&inner);
        let mut added: Vec<u32> = inner.get_added_tokens_decoder().into_keys().collect();
        added.sort_unstable();
        let pieces = Pieces::new(&inner).map(Arc::new);
        Ok(Self { inner, pieces, bos, special_tokens, cuts, added })
    }

    /// Encodes a text as it is: special tokens written in it count as such, none is added.
    ///
    /// # Errors
    /// If the tokenizer fails, as one without an unknown token may.
    pub fn encode(&self, text: &str) -> Result<Encoded> {
        match &self.pieces {
            Some(pieces) => pieces.encode(text, |text| self.encode_whole(text)),
            None => self.encode_whole(text),
        }
    }

    fn encode_whole(&self, text: &str) -> Result<Encoded> {
        let encoding =
            self.inner.encode(text, false).map_err(|error| anyhow!("cannot encode the text: {error}"))?;
        Ok(Encoded { ids: encoding.get_ids().to_vec(), offsets: encoding.get_offsets().to_vec() })
    }

    /// Where the beginning-of-sequence token of an encoded text comes from; there is exactly one, or none where
    /// the model wants none.
    ///
    /// # Errors
    /// If the text begins with two.
    pub fn bos(&self, ids: &[u32]) -> Result<Bos> {
        let known = self.bos.or_else(|| self.inner.token_to_id(self.special_tokens.get("bos_token")?));
        let Some(bos) = known else {
            return Ok(Bos::None);
        };
        if ids.first() == Some(&bos) {
            ensure!(
                ids.get(1) != Some(&bos),
                "the text begins with two {}: the chat template must write one at most",
                self.text(bos)
            );
            return Ok(Bos::Template(bos));
        }
        Ok(self.bos.map_or(Bos::None, Bos::Tokenizer))
    }

    /// One more than the largest token id.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    /// A token as text, for display; a part of a character shows as `\u{fffd}`.
    pub fn text(&self, id: u32) -> String {
        let Some(token) = self.inner.id_to_token(id) else {
            return format!("<unknown id {id}>");
        };
        if self.is_added(id) {
            return token;
        }
        let decoded = self.inner.decode(&[id], false).unwrap_or_default();
        // Decoders drop the space that begins a text; here it is part of the token.
        match token.strip_prefix('▁') {
            Some(_) if !decoded.starts_with(' ') => format!(" {decoded}"),
            _ if decoded.is_empty() => token,
            _ => decoded,
        }
    }

    /// Whether an id is a token added to the vocabulary, as special tokens are.
    pub fn is_added(&self, id: u32) -> bool {
        self.added.binary_search(&id).is_ok()
    }

    pub(super) fn is_cut(&self, id: u32) -> bool {
        self.cuts.binary_search(&id).is_ok()
    }

    /// Decodes ids to text, special tokens left out.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(|error| anyhow!("cannot decode the tokens: {error}"))
    }

    /// The id of a token, such as `</s>`.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The special tokens that `tokenizer_config.json` names, by key (`eos_token`, …).
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special_tokens
    }
}

impl Encoded {
    /// The indices of the tokens that touch `bytes` of the text.
    pub(super) fn touching(&self, bytes: &Range<usize>) -> Range<usize> {
        let first = self.offsets.partition_point(|&(_, end)| end <= bytes.start);
        let last = self.offsets.partition_point(|&(start, _)| start < bytes.end);
        first..last.max(first)
    }
}

/// The id that goes before a text: as `add_bos_token` says, else as the tokenizer's own post-processing does.
fn wanted_bos(
    tokenizer: &tokenizers::Tokenizer,
    config: &serde_json::Value,
    special_tokens: &SpecialTokens,
) -> Result<Option<u32>> {
    if let Some(wanted) = config.get("add_bos_token").and_then(serde_json::Value::as_bool) {
        let Some(token) = special_tokens.get("bos_token").filter(|_| wanted) else {
            return Ok(None);
        };
        let Some(id) = tokenizer.token_to_id(token) else {
            bail!("bos_token {token:?} of tokenizer_config.json is not in tokenizer.json");
        };
        return Ok(Some(id));
    }
    let encode = |add| tokenizer.encode("a", add).map_err(|error| anyhow!("cannot encode a text: {error}"));
    let (with, without) = (encode(true)?, encode(false)?);
    let added = with.len() > without.len() && with.get_ids().first() != without.get_ids().first();
    Ok(with.get_ids().first().copied().filter(|_| added))
}

/// Tokens that are matched in the raw text, wherever they stand, and are no part of longer ones.
fn cutting_tokens(tokenizer: &tokenizers::Tokenizer) -> Vec<u32> {
    let added = tokenizer.get_added_tokens_decoder();
    // A match that depends on its neighbours may swallow text that another match began in.
    if added.values().any(|token| token.single_word) {
        return Vec::new();
    }
    let is_part = |content: &str| added.values().any(|t| t.content != content && t.content.contains(content));
    let mut cuts: Vec<u32> =
        added.iter().filter(|(_, t)| !t.normalized && !is_part(&t.content)).map(|(&id, _)| id).collect();
    cuts.sort_unstable();
    cuts
}
