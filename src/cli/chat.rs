//! `bayesteach chat`: talks to a model, with or without an adapter, in the terminal.

use std::fs::File;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::Value;

use super::model::{ComputeArgs, ModelArgs, Source, TemplateArgs, adapter_folder, tokens_of};
use super::train::train_file_of;
use super::{Context, Done, note, print};
use crate::config::storage;
use crate::episode::{Episode, Role};
use crate::error::usage;
use crate::eval::Tails;
use crate::hub::Files;
use crate::metrics::log_sum_exp;
use crate::model::decoder::Decoder;
use crate::rng::{self, Stream};
use crate::tokens::{Pipeline, TokensConfig};

#[derive(Args)]
pub(super) struct ChatArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// A PEFT adapter
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// 0 takes the most probable token, 1 samples from the model's own distribution
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// The longest reply, in tokens
    #[arg(long, default_value_t = 256)]
    max_tokens: usize,
    /// What the sampling is a function of
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Labels, such as 1,2,3: where a reply says one of them, the probabilities of all are shown; if not given, those that the
    /// adapter's run trained on
    #[arg(long, value_delimiter = ',', value_name = "LABELS")]
    options: Vec<String>,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    compute: ComputeArgs,
}

pub(super) fn command(args: &ChatArgs, context: &Context) -> Result<Done> {
    if !(args.temperature.is_finite() && args.temperature >= 0.0) {
        return Err(usage(format!("--temperature is {}, it must be 0 or more", args.temperature)));
    }
    let source = Source::find(&args.model.source, None, Files::All, context)?;
    let tokens = match &args.adapter {
        Some(dir) => tokens_of(&adapter_folder(dir))?,
        None => TokensConfig::default(),
    };
    let pipeline = source.pipeline(&args.template.over(tokens))?;
    let (device, dtype) = args.compute.open("auto", "auto")?;
    let storage = storage(&args.compute.quantization)?;
    let decoder = source.load_adapted(args.adapter.as_deref(), dtype, storage, &device)?;
    let ends = end_tokens(source.dir(), &pipeline)?;
    let mut options: Vec<String> = args.options.iter().map(|option| option.trim().to_string()).collect();
    if let (Some(dir), true) = (&args.adapter, options.is_empty()) {
        options = trained_options(&adapter_folder(dir)).unwrap_or_default();
        if !options.is_empty() {
            let labels = options.join(",");
            note(&format!(
                "where a reply says one of {labels}, the probabilities of all follow (--options for others)"
            ));
        }
    }
    let mut chat = Chat {
        args,
        options,
        pipeline: &pipeline,
        decoder: &decoder,
        ends,
        draws: rng::stream(args.seed, "chat", 0),
        // Nothing is asked aside: one token follows the other.
        tails: Tails::new(1),
    };
    let interactive = std::io::stdin().is_terminal();
    if interactive {
        note(
            "one message a line, a \\ at its end continues it on the next; /new begins a new dialogue, /quit or Ctrl-D ends",
        );
    }
    let mut messages: Vec<(Role, String)> = Vec::new();
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if interactive {
            let _ = write!(std::io::stderr(), "> ");
        }
        let Some(line) = lines.next() else { break };
        let mut line = line.context("cannot read standard input")?;
        while line.ends_with('\\') {
            line.pop();
            line.push('\n');
            let Some(more) = lines.next() else { break };
            line.push_str(&more.context("cannot read standard input")?);
        }
        match line.trim() {
            "" => continue,
            "/quit" => break,
            "/new" => {
                messages.clear();
                continue;
            }
            _ => messages.push((Role::User, line)),
        }
        let reply = chat.reply(&messages)?;
        messages.push((Role::Assistant, reply));
    }
    Ok(Done::Finished)
}

/// The labels that an adapter was trained on, where its run is there and its first dialogue has the same at every answer.
/// For convenience only: whatever is wrong with them, one can chat.
fn trained_options(adapter: &Path) -> Option<Vec<String>> {
    let file = File::open(train_file_of(adapter).ok()??).ok()?;
    let mut line = String::new();
    std::io::BufReader::new(file).read_line(&mut line).ok()?;
    let episode: Episode = serde_json::from_str(&line).ok()?;
    let mut answers = episode.answers().map(|(answer, _)| answer).filter(|answer| answer.belief.is_none());
    let first = answers.next()?;
    let labels = first.options.iter().map(|label| label.trim().to_string());
    answers.all(|answer| answer.options == first.options).then(|| labels.collect())
}

/// The tokens that end a reply: those of `generation_config.json`, else of `config.json`, and the tokenizer's own.
fn end_tokens(folder: &Path, pipeline: &Pipeline) -> Result<Vec<u32>> {
    let mut ends = Vec::new();
    for name in ["generation_config.json", "config.json"] {
        let Ok(text) = std::fs::read_to_string(folder.join(name)) else { continue };
        let json: Value =
            serde_json::from_str(&text).with_context(|| folder.join(name).display().to_string())?;
        match &json["eos_token_id"] {
            Value::Number(id) => ends.extend(id.as_u64()),
            Value::Array(ids) => ends.extend(ids.iter().filter_map(Value::as_u64)),
            _ => {}
        }
    }
    let mut ends: Vec<u32> = ends.into_iter().filter_map(|id| u32::try_from(id).ok()).collect();
    let tokenizer = pipeline.tokenizer();
    ends.extend(tokenizer.special_tokens().get("eos_token").and_then(|token| tokenizer.id(token)));
    for turn_end in ["<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>"] {
        ends.extend(tokenizer.id(turn_end));
    }
    ensure!(!ends.is_empty(), "neither the model's configs nor its tokenizer say which token ends a reply");
    Ok(ends)
}

struct Chat<'a> {
    args: &'a ChatArgs,
    options: Vec<String>,
    pipeline: &'a Pipeline,
    decoder: &'a Decoder,
    ends: Vec<u32>,
    draws: Stream,
    tails: Tails,
}

impl Chat<'_> {
    /// Prints the assistant's next message as it comes, and returns it.
    fn reply(&mut self, messages: &[(Role, String)]) -> Result<String> {
        let dialogue: Vec<(Role, &str)> =
            messages.iter().map(|(role, text)| (*role, text.as_str())).collect();
        let prompt = self.pipeline.prompt(&dialogue)?;
        let limit = self.decoder.max_tokens();
        ensure!(
            prompt.len() < limit,
            "the dialogue has {} tokens and the model takes {limit}: begin a new one with /new",
            prompt.len()
        );
        let mut log_probs = self.read(&prompt)?;
        let (mut reply, mut printed, mut shown) = (Vec::new(), 0, Vec::new());
        for _ in 0..self.args.max_tokens.min(limit - prompt.len()) {
            let next = self.choose(&log_probs);
            if self.ends.contains(&next) {
                break;
            }
            shown.extend(self.options(next, &log_probs)?);
            reply.push(next);
            let text = self.pipeline.tokenizer().decode(&reply)?;
            // A character may need more tokens; what is printed is never taken back.
            if !text.ends_with('\u{fffd}') && text.is_char_boundary(printed) {
                write_now(&text[printed..]);
                printed = text.len();
            }
            log_probs = self.read(&[prompt.as_slice(), &reply].concat())?;
        }
        let text = self.pipeline.tokenizer().decode(&reply)?;
        if text.is_char_boundary(printed) {
            write_now(&text[printed..]);
        }
        print("");
        shown.iter().for_each(|line| note(line));
        Ok(text)
    }

    /// The log-probabilities of what follows `ids`; what went through the model before is not computed again.
    fn read(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        let logits = self.tails.logits_after(self.decoder, ids)?;
        let wide: Vec<f64> = logits.into_iter().map(f64::from).collect();
        let log_z = log_sum_exp(&wide);
        Ok(wide.into_iter().map(|l| (l - log_z) as f32).collect())
    }

    fn choose(&mut self, log_probs: &[f32]) -> u32 {
        let best =
            || (0..log_probs.len()).max_by(|&a, &b| log_probs[a].total_cmp(&log_probs[b])).unwrap_or(0);
        if self.args.temperature == 0.0 {
            return best() as u32;
        }
        let max = f64::from(log_probs[best()]);
        let weights: Vec<f64> =
            log_probs.iter().map(|&l| ((f64::from(l) - max) / self.args.temperature).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let probs: Vec<f64> = weights.into_iter().map(|w| w / sum).collect();
        self.draws.categorical(&probs) as u32
    }

    /// Where `next` says one of the options: the probability of each, and of all together.
    fn options(&self, next: u32, log_probs: &[f32]) -> Result<Option<String>> {
        let tokenizer = self.pipeline.tokenizer();
        let said = tokenizer.decode(&[next])?;
        if !self.options.iter().any(|option| option == said.trim() && !option.is_empty()) {
            return Ok(None);
        }
        // The label as this reply spells it, with or without a space before it.
        let lead = &said[..said.len() - said.trim_start().len()];
        let mut shown = Vec::new();
        for option in &self.options {
            let text = format!("{lead}{option}");
            let ids = tokenizer.encode(&text)?.ids;
            let token =
                ids.iter().copied().find(|&id| tokenizer.decode(&[id]).is_ok_and(|t| t.trim() == option));
            if let Some(token) = token {
                shown.push((option, f64::from(log_probs[token as usize]).exp()));
            }
        }
        let mass: f64 = shown.iter().map(|(_, p)| p).sum();
        let bars: Vec<String> = (shown.iter())
            .map(|(option, p)| {
                let share = p / mass;
                format!("  {option:>8}  {:<30} {share:.3}", "█".repeat((share * 30.0).round() as usize))
            })
            .collect();
        Ok(Some(format!("{}\n  (options together: {mass:.3} of the whole vocabulary)", bars.join("\n"))))
    }
}

fn write_now(text: &str) {
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
