//! What a model sees of an episode, as text for people.

use std::fmt::Write as _;

use anyhow::Result;

use super::line::Line;
use super::pipeline::{EncodedEpisode, Pipeline};
use super::sequence::{Sequence, SoftTarget};
use super::tokenizer::{Bos, Tokenizer};

const WIDTH: usize = 100;
const BAR: usize = 32;

/// Shows the rendered text, the tokens, the supervised positions, and the options with the teacher's
/// distribution.
///
/// # Errors
/// If the line cannot be encoded.
pub fn inspect(pipeline: &Pipeline, line: &Line) -> Result<String> {
    let mut out = String::new();
    match line {
        Line::Episode(episode) => {
            let encoded = pipeline.encode(episode)?;
            heading(&mut out, &format!("episode {}", episode.id));
            summary(&mut out, pipeline, &encoded);
            heading(&mut out, "rendered text");
            for text_line in encoded.rendered.text.split('\n') {
                wrap(&mut out, text_line);
            }
            let answers = episode.messages.iter().filter_map(|message| message.answer.as_ref());
            let options: Vec<&[String]> = answers.map(|answer| answer.options.as_slice()).collect();
            tokens(&mut out, &encoded.sequence, |i| {
                let (start, end) = encoded.offsets[i];
                let text = encoded.rendered.text.get(start..end).filter(|text| !text.is_empty());
                text.map_or_else(|| pipeline.tokenizer().text(encoded.sequence.input_ids[i]), str::to_owned)
            });
            answer_tables(&mut out, pipeline.tokenizer(), &encoded.sequence, &options);
        }
        Line::Tokenised(_) => {
            let sequence = pipeline.encode_line(line)?;
            heading(&mut out, &format!("tokenised sequence {}", sequence.id));
            row(&mut out, "tokens", &format!("{} of at most {}", sequence.len(), pipeline.max_length()));
            row(&mut out, "answers", &sequence.targets.len().to_string());
            tokens(&mut out, &sequence, |i| pipeline.tokenizer().text(sequence.input_ids[i]));
            answer_tables(&mut out, pipeline.tokenizer(), &sequence, &[]);
        }
    }
    Ok(out)
}

fn summary(out: &mut String, pipeline: &Pipeline, encoded: &EncodedEpisode) {
    let tokenizer = pipeline.tokenizer();
    let sequence = &encoded.sequence;
    row(out, "tokens", &format!("{} of at most {}", sequence.len(), pipeline.max_length()));
    row(out, "answers", &sequence.targets.len().to_string());
    row(
        out,
        "format tokens",
        &format!("{} (trained if loss.format_weight > 0)", sequence.format_positions.len()),
    );
    let variant = match pipeline.variant() {
        super::Variant::Native => "native: the model's own template",
        super::Variant::PerTurn => {
            "per-turn: every assistant turn is generation prompt + content + end of turn"
        }
    };
    row(out, "template", variant);
    let bos = match encoded.bos {
        Bos::Template(id) => format!("{} (id {id}), written by the template", tokenizer.text(id)),
        Bos::Tokenizer(id) => format!("{} (id {id}), put before the text", tokenizer.text(id)),
        Bos::None => "none: this model begins without one".to_owned(),
    };
    row(out, "BOS", &bos);
}

fn row(out: &mut String, name: &str, value: &str) {
    let _ = writeln!(out, "{name:<14}{value}");
}

fn heading(out: &mut String, title: &str) {
    if !out.is_empty() {
        out.push('\n');
    }
    let _ = writeln!(out, "── {title} {}", "─".repeat(WIDTH.saturating_sub(title.chars().count() + 4)));
}

/// A line of text, broken where it is too wide.
fn wrap(out: &mut String, line: &str) {
    let chars: Vec<char> = line.chars().collect();
    if chars.is_empty() {
        out.push('\n');
    }
    for chunk in chars.chunks(WIDTH) {
        let _ = writeln!(out, "{}", chunk.iter().collect::<String>());
    }
}

/// One token a line: index, id, text, and a mark where its next token is trained.
fn tokens(out: &mut String, sequence: &Sequence, text: impl Fn(usize) -> String) {
    heading(out, "tokens (► the next token is an answer; · it is another token of the assistant's)");
    let _ = writeln!(out, "{:>7} {:>8}  text", "index", "id");
    for (i, id) in sequence.input_ids.iter().enumerate() {
        let position = i as u32;
        let answer = sequence.targets.binary_search_by_key(&position, |target| target.position);
        let mark = match answer {
            Ok(n) => format!("  ► answer {}", n + 1),
            Err(_) if sequence.format_positions.binary_search(&position).is_ok() => "  ·".to_owned(),
            Err(_) => String::new(),
        };
        let shown = shorten(&format!("{:?}", text(i)), 60);
        let _ = writeln!(out, "{}", format!("{i:>7} {id:>8}  {shown}{mark}").trim_end());
    }
}

fn answer_tables(out: &mut String, tokenizer: &Tokenizer, sequence: &Sequence, options: &[&[String]]) {
    for (n, target) in sequence.targets.iter().enumerate() {
        let mut title = format!("answer {} · position {}", n + 1, target.position);
        if let Some(answer) = target.answer {
            let _ = write!(title, " · observations {}", answer.observations);
        }
        if target.weight != 1.0 {
            let _ = write!(title, " · weight {}", target.weight);
        }
        heading(out, &title);
        answer_table(out, tokenizer, target, options.get(n).copied().unwrap_or_default());
    }
}

fn answer_table(out: &mut String, tokenizer: &Tokenizer, target: &SoftTarget, options: &[String]) {
    let _ = writeln!(out, "{:<16} {:>8}  {:<16} {:>7}", "option", "id", "token", "teacher");
    for (i, (id, prob)) in target.token_ids.iter().zip(&target.probs).enumerate() {
        let option = options.get(i).map_or_else(|| i.to_string(), |label| format!("{label:?}"));
        let token = format!("{:?}", tokenizer.text(*id));
        let bar = "█".repeat((prob * BAR as f64).round() as usize);
        let mut marks = String::new();
        if let Some(answer) = target.answer {
            if answer.said == i {
                marks += " said";
            }
            if answer.truth == Some(i) {
                marks += " truth";
            }
        }
        let (option, token) = (shorten(&option, 16), shorten(&token, 16));
        let line = format!("{option:<16} {id:>8}  {token:<16} {prob:>7.4} {bar:<BAR$}{marks}");
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

fn shorten(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width - 1).chain(['…']).collect()
}
