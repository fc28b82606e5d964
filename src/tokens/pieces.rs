//! A text encoded piece by piece.
//!
//! Added tokens cut a text: what stands between two of them is encoded without regard to anything else. Dialogues repeat many
//! such pieces (questions, answers, what opens a turn), and to find one takes a small part of the time to encode it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use daachorse::{DoubleArrayAhoCorasick, DoubleArrayAhoCorasickBuilder, MatchKind};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use tokenizers::AddedToken;

use super::tokenizer::Encoded;

/// Bytes that the pieces in memory may take.
const CAPACITY: u64 = 6 << 20;

/// The pieces of the texts of one tokenizer, those that came up lately in memory.
pub(super) struct Pieces {
    /// The ids of added tokens by their text, matched as [`tokenizers`] matches them.
    added: DoubleArrayAhoCorasick<u32>,
    /// The text of one of them. It stands before a piece that is encoded, since a tokenizer may encode the beginning of a text
    /// in another way.
    cut: String,
    cache: Cache<String, Arc<[Token]>, Bytes>,
}

/// A token and the bytes of its piece that it stands for.
#[derive(Clone, Copy)]
struct Token {
    id: u32,
    start: u32,
    end: u32,
}

#[derive(Clone)]
struct Bytes;

impl Weighter<String, Arc<[Token]>> for Bytes {
    fn weight(&self, piece: &String, tokens: &Arc<[Token]>) -> u64 {
        // With what the map and the counts take.
        (piece.len() + size_of_val(tokens.as_ref()) + 100) as u64
    }
}

impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pieces").field("cut", &self.cut).field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl Pieces {
    /// None where pieces are not independent of each other: an added token takes part of the text beside it, or is matched
    /// only after the text was normalized.
    pub(super) fn new(tokenizer: &tokenizers::Tokenizer) -> Option<Self> {
        let added = tokenizer.get_added_tokens_decoder();
        let depends =
            |token: &AddedToken| token.single_word || token.lstrip || token.rstrip || token.normalized;
        if added.values().any(depends) {
            return None;
        }
        let texts = added.iter().map(|(id, token)| (token.content.as_str(), *id));
        // With what comes behind it, it must not become another.
        let goes_on = |text: &str| added.values().any(|t| t.content != text && t.content.starts_with(text));
        let cut = added.values().map(|token| token.content.as_str()).filter(|text| !goes_on(text)).min()?;
        let builder = DoubleArrayAhoCorasickBuilder::new().match_kind(MatchKind::LeftmostLongest);
        Some(Self {
            added: builder.build_with_values(texts).ok()?,
            cut: cut.to_owned(),
            cache: Cache::with_weighter(20_000, CAPACITY, Bytes),
        })
    }

    /// Encodes a text as `encode` does.
    ///
    /// # Errors
    /// As `encode`.
    pub(super) fn encode(&self, text: &str, encode: impl Fn(&str) -> Result<Encoded>) -> Result<Encoded> {
        // Tokens have some 4 bytes.
        let mut all =
            Encoded { ids: Vec::with_capacity(text.len() / 3), offsets: Vec::with_capacity(text.len() / 3) };
        let mut at = 0;
        for found in self.added.leftmost_find_iter(text) {
            self.put(&mut all, text, at..found.start(), &encode)?;
            all.ids.push(found.value());
            all.offsets.push((found.start(), found.end()));
            at = found.end();
        }
        self.put(&mut all, text, at..text.len(), &encode)?;
        Ok(all)
    }

    fn put(
        &self,
        all: &mut Encoded,
        text: &str,
        bytes: Range<usize>,
        encode: impl Fn(&str) -> Result<Encoded>,
    ) -> Result<()> {
        let piece = &text[bytes.clone()];
        if piece.is_empty() {
            return Ok(());
        }
        if bytes.start == 0 {
            let Encoded { ids, offsets } = encode(piece)?;
            all.ids.extend(ids);
            all.offsets.extend(offsets);
            return Ok(());
        }
        let tokens = match self.cache.get(piece) {
            Some(tokens) => tokens,
            None => {
                let Encoded { ids, offsets } = encode(&[self.cut.as_str(), piece].concat())?;
                let within = |at: usize| Some(at.checked_sub(self.cut.len())? as u32);
                let of = |(id, (start, end))| Some(Token { id, start: within(start)?, end: within(end)? });
                let tokens: Option<Arc<[Token]>> = ids.into_iter().zip(offsets).skip(1).map(of).collect();
                let tokens = tokens.context("the tokenizer gives a token the place of the one before it")?;
                self.cache.insert(piece.to_owned(), Arc::clone(&tokens));
                tokens
            }
        };
        all.ids.extend(tokens.iter().map(|token| token.id));
        let offset = |token: &Token| (bytes.start + token.start as usize, bytes.start + token.end as usize);
        all.offsets.extend(tokens.iter().map(offset));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::rng;

    fn tokenizer(folder: &str) -> tokenizers::Tokenizer {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join("tokenizer.json");
        let mut tokenizer = tokenizers::Tokenizer::from_file(path).expect("a tokenizer");
        tokenizer.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        tokenizer
    }

    fn whole(tokenizer: &tokenizers::Tokenizer, text: &str) -> Encoded {
        let encoding = tokenizer.encode(text, false).expect("the text can be encoded");
        Encoded { ids: encoding.get_ids().to_vec(), offsets: encoding.get_offsets().to_vec() }
    }

    /// Random texts of added tokens, parts of them, spaces, and words are encoded as the tokenizer encodes them in one go,
    /// whether their pieces are new or known.
    #[test]
    fn pieces_make_the_whole() {
        let families = ["gemma", "llama2", "llama3", "qwen2", "qwen3"];
        let folders = families.map(|family| format!("tests/data/tokenizers/{family}"));
        for folder in folders.iter().map(String::as_str).chain(["data/base"]) {
            let tokenizer = tokenizer(folder);
            let pieces = Pieces::new(&tokenizer).expect("pieces are independent");
            let mut added: Vec<String> =
                tokenizer.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
            added.sort();
            let others = [
                " ", "\n", "\n\n", "▁", "1", " 10", "A", "word", " word's", "é", "e\u{301}", "日本", "<|",
                "<", "|>",
            ];
            let draws = &mut rng::stream(0, "test/pieces", 0);
            for _ in 0..400 {
                let mut text = String::new();
                for _ in 0..1 + draws.below(12) {
                    let token = &added[draws.below(added.len())];
                    match draws.below(4) {
                        0 => text += token,
                        // Half of one may be completed by what follows.
                        1 => text.extend(token.chars().take(1 + draws.below(4))),
                        _ => text += others[draws.below(others.len())],
                    }
                }
                let expected = whole(&tokenizer, &text);
                for _ in 0..2 {
                    let found = pieces.encode(&text, |text| Ok(whole(&tokenizer, text))).expect("a text");
                    assert_eq!(found, expected, "{folder}: {text:?}");
                }
            }
        }
    }

    #[test]
    fn tokens_that_take_from_their_surroundings_are_left_to_the_tokenizer() {
        let mut tokenizer = tokenizer("tests/data/tokenizers/qwen2");
        let token = AddedToken::from("<new>", true);
        for token in [token.clone().lstrip(true), token.clone().rstrip(true), token.single_word(true)] {
            let mut tokenizer = tokenizer.clone();
            tokenizer.add_special_tokens([token]).expect("a token can be added");
            assert!(Pieces::new(&tokenizer).is_none());
        }
        tokenizer
            .add_tokens([AddedToken::from("new", false).normalized(true)])
            .expect("a token can be added");
        assert!(Pieces::new(&tokenizer).is_none());
    }
}
