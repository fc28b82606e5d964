//! The supervised token of an answer: the first one that differs when each option is put in the label's place
//! and the text is encoded again. It may begin before the label, as ` A` does.

use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

use anyhow::{Result, bail, ensure};

use super::tokenizer::{Encoded, Tokenizer};

/// Finds supervised tokens in one encoded text.
///
/// An added token cuts a text: what stands on one side is encoded without regard to the other. So the options
/// are put into the stretch between the nearest two, and only that is encoded again; stretches that recur are
/// encoded once.
pub(super) struct LabelFinder<'a> {
    tokenizer: &'a Tokenizer,
    text: &'a str,
    encoded: &'a Encoded,
    /// Indices of the tokens that cut the text.
    cuts: Vec<usize>,
    cache: HashMap<String, Rc<Encoded>>,
}

/// A supervised token.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Supervised {
    /// Index of the token within the text.
    pub(super) index: usize,
    /// The token that stands there for each option.
    pub(super) token_ids: Vec<u32>,
}

/// A stretch of the text that can be encoded by itself.
struct Stretch {
    bytes: Range<usize>,
    tokens: Range<usize>,
    cut_before: bool,
    cut_after: bool,
}

impl<'a> LabelFinder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, text: &'a str, encoded: &'a Encoded) -> Self {
        let cuts = (0..encoded.ids.len()).filter(|&i| tokenizer.is_cut(encoded.ids[i])).collect();
        Self { tokenizer, text, encoded, cuts, cache: HashMap::new() }
    }

    /// The supervised token where the label `options[said]` takes the bytes `label` of the text.
    pub(super) fn find(
        &mut self,
        label: &Range<usize>,
        options: &[String],
        said: usize,
    ) -> Result<Supervised> {
        let stretch = self.stretch(label);
        if let Some(variants) = self.encode_within(&stretch, label, options, said)? {
            return self.part(&variants, options, stretch.tokens.start);
        }
        let whole = Stretch {
            bytes: 0..self.text.len(),
            tokens: 0..self.encoded.ids.len(),
            cut_before: false,
            cut_after: false,
        };
        match self.encode_within(&whole, label, options, said)? {
            Some(variants) => self.part(&variants, options, 0),
            None => bail!("the tokenizer does not encode the same text in the same way twice"),
        }
    }

    /// From the last cut before the label to the first one after it, both included.
    fn stretch(&self, label: &Range<usize>) -> Stretch {
        let offsets = &self.encoded.offsets;
        let after = self.cuts.partition_point(|&i| offsets[i].0 < label.end);
        let before = self.cuts.partition_point(|&i| offsets[i].1 <= label.start);
        let before = before.checked_sub(1).map(|i| self.cuts[i]);
        let after = self.cuts.get(after).copied();
        Stretch {
            bytes: before.map_or(0, |i| offsets[i].0)..after.map_or(self.text.len(), |i| offsets[i].1),
            tokens: before.unwrap_or(0)..after.map_or(self.encoded.ids.len(), |i| i + 1),
            cut_before: before.is_some(),
            cut_after: after.is_some(),
        }
    }

    /// The stretch with each option in place, or nothing if the stretch turns out to depend on what is around
    /// it: a label may complete an added token, so that a cut moves.
    fn encode_within(
        &mut self,
        stretch: &Stretch,
        label: &Range<usize>,
        options: &[String],
        said: usize,
    ) -> Result<Option<Vec<Variant>>> {
        let original = &self.encoded.ids[stretch.tokens.clone()];
        let cut_length = |i: usize| self.encoded.offsets[i].1 - self.encoded.offsets[i].0;
        let first = stretch.cut_before.then(|| (original[0], cut_length(stretch.tokens.start)));
        let last =
            stretch.cut_after.then(|| (original[original.len() - 1], cut_length(stretch.tokens.end - 1)));
        let (before, after) = (stretch.bytes.start..label.start, label.end..stretch.bytes.end);

        let mut variants = Vec::with_capacity(options.len());
        for (i, option) in options.iter().enumerate() {
            let text = [&self.text[before.clone()], option, &self.text[after.clone()]].concat();
            let bytes = text.len();
            let encoded = match self.cache.get(&text) {
                Some(encoded) => Rc::clone(encoded),
                None => {
                    let encoded = Rc::new(self.tokenizer.encode(&text)?);
                    self.cache.insert(text, Rc::clone(&encoded));
                    encoded
                }
            };
            let Encoded { ids, offsets } = encoded.as_ref();
            let begins =
                first.is_none_or(|(id, length)| ids.first() == Some(&id) && offsets[0] == (0, length));
            let ends = last.is_none_or(|(id, length)| {
                ids.last() == Some(&id) && offsets.last() == Some(&(bytes - length, bytes))
            });
            if !begins || !ends || (i == said && ids != original) {
                return Ok(None);
            }
            variants.push(Variant { label_end: before.len() + option.len(), encoded });
        }
        Ok(Some(variants))
    }

    /// Where the variants part; `first` is the index of their first token within the text.
    fn part(&self, variants: &[Variant], options: &[String], first: usize) -> Result<Supervised> {
        let parts = |i: &usize| variants.iter().any(|v| v.id(*i) != variants[0].id(*i));
        let longest = variants.iter().map(|v| v.encoded.ids.len()).max().unwrap_or(0);
        let Some(at) = (0..longest).find(parts) else {
            bail!("the tokenizer does not tell the options {options:?} apart: use other labels");
        };
        let token_ids: Vec<Option<u32>> = variants.iter().map(|v| v.id_of_label(at)).collect();
        if let Some(i) = token_ids.iter().position(Option::is_none) {
            bail!(
                "option {:?} cannot be told apart from others by its own tokens: it is the beginning of theirs ({}). {}",
                options[i],
                self.shown(variants, options, at),
                ADVICE
            );
        }
        let token_ids: Vec<u32> = token_ids.into_iter().flatten().collect();
        for (i, id) in token_ids.iter().enumerate() {
            if let Some(j) = token_ids[..i].iter().position(|other| other == id) {
                bail!(
                    "options {:?} and {:?} cannot be told apart: both have the token {:?} (id {id}) where the options \
                     part ({}). {}",
                    options[j],
                    options[i],
                    self.tokenizer.text(*id),
                    self.shown(variants, options, at),
                    ADVICE
                );
            }
        }
        ensure!(first + at < self.encoded.ids.len(), "the options part beyond the end of the text");
        Ok(Supervised { index: first + at, token_ids })
    }

    /// The options with the token that stands for each where they part.
    fn shown(&self, variants: &[Variant], options: &[String], at: usize) -> String {
        let token = |v: &Variant| {
            v.id(at).map_or("the end".to_owned(), |id| format!("{:?}", self.tokenizer.text(id)))
        };
        let pairs = options.iter().zip(variants).map(|(option, v)| format!("{option:?} → {}", token(v)));
        pairs.collect::<Vec<_>>().join(", ")
    }
}

const ADVICE: &str = "Use labels that differ in their first token, such as letters or single digits";

/// A stretch with one option in place.
struct Variant {
    encoded: Rc<Encoded>,
    /// Where the option ends in its text.
    label_end: usize,
}

impl Variant {
    fn id(&self, index: usize) -> Option<u32> {
        self.encoded.ids.get(index).copied()
    }

    /// The id, if the token has any of the label. A token after it would say what follows the label, not which
    /// label it is: `10` goes on where `1` has ended.
    fn id_of_label(&self, index: usize) -> Option<u32> {
        let (start, _) = *self.encoded.offsets.get(index)?;
        self.id(index).filter(|_| start < self.label_end)
    }
}
