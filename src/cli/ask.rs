//! `bayesteach ask`: a live dialogue in the terminal, with a person as the user.

use std::fmt::Write as _;
use std::io::{BufRead, IsTerminal as _, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use super::live::{PartnerArgs, Place, append_episode};
use super::{Context, Done, Settings, note, print, warn};
use crate::error::usage;
use crate::metrics::argmax;
use crate::session::{Asked, Look, Probes};
use crate::teacher::{Evidence, Session, Sessions};

#[derive(Args)]
pub(super) struct AskArgs {
    /// A run directory, or a config file whose [teacher] names the world
    #[arg(value_name = "RUN_OR_CONFIG")]
    place: PathBuf,
    /// Who says what they believe; both if there is a model, else the teacher
    #[arg(long, value_enum)]
    who: Option<Who>,
    #[command(flatten)]
    partner: PartnerArgs,
    /// What is asked next: what is expected to tell most (of teacher.candidates option sets, or of fewer where there are
    /// very many hypotheses), or what the world asks
    #[arg(long, value_enum, default_value = "eig")]
    evidence: Choice,
    /// What the drawn questions are a function of
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Questions a trait by which the model's beliefs are found out after every answer; 0 spares their time
    #[arg(long, default_value_t = 4)]
    probes: usize,
    /// Append the answers to this file as an episode of a person
    #[arg(long, value_name = "FILE.jsonl")]
    save: Option<PathBuf>,
    /// Who is saved
    #[arg(long, default_value = "person")]
    user: String,
    #[command(flatten)]
    set: Settings,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Who {
    Teacher,
    Model,
    Both,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// By the highest expected information gain
    Eig,
    /// By the highest Fisher information (questionnaires)
    Fisher,
    /// As the world draws them
    Random,
}

impl From<Choice> for Evidence {
    fn from(choice: Choice) -> Self {
        match choice {
            Choice::Eig => Evidence::Eig,
            Choice::Fisher => Evidence::Fisher,
            Choice::Random => Evidence::Random,
        }
    }
}

pub(super) fn command(args: &AskArgs, context: &Context) -> Result<Done> {
    if let Some(save) = &args.save {
        crate::files::check_writable(save)?;
    }
    let place = Place::read(&args.place, &args.set.values)?;
    let sessions = Sessions::new(place.config.teacher()?, args.evidence.into())?;
    let wanted = place.config.teacher()?.candidates;
    if args.evidence == Choice::Eig && sessions.candidates() < wanted {
        note(&format!(
            "the most telling of {} option sets is asked, not of {wanted}: the hypotheses are too many for a person to wait",
            sessions.candidates()
        ));
    }
    let named = args.partner.source.is_some() || args.partner.adapter.is_some();
    let who = args.who.unwrap_or(if place.has_model() || named { Who::Both } else { Who::Teacher });
    let mut predictor = match who {
        Who::Teacher if named => {
            return Err(usage("--model and --adapter name a model, but --who teacher leaves it out"));
        }
        Who::Teacher => None,
        Who::Model | Who::Both => Some(place.predictor(&args.partner, context)?),
    };
    let probes = Probes::new(&sessions, args.probes);
    let mut session = sessions.begin(args.seed);
    let mut talk = Talk { who, interactive: std::io::stdin().is_terminal(), lines: std::io::stdin().lock() };
    let mut look = Look::at(&sessions, &session, predictor.as_mut().map(|p| (p, &probes)))?;
    if !look.task.is_empty() {
        print(&format!("what they are told: {}", look.task));
    }
    while let Some(asked) = &look.question {
        print(&talk.question(&look, asked));
        let Some(option) = talk.answer(asked)? else { break };
        print(&talk.surprise(asked, option));
        if !session.answer(option)? {
            warn("nobody in this world could have answered that: it teaches nothing");
        }
        look = Look::at(&sessions, &session, predictor.as_mut().map(|p| (p, &probes)))?;
        print(&talk.beliefs(&look));
    }
    print(&talk.conclusion(&look));
    if let Some(save) = &args.save {
        keep(save, &sessions, &session, &args.user)?;
    }
    Ok(Done::Finished)
}

fn keep(save: &std::path::Path, sessions: &Sessions, session: &Session, user: &str) -> Result<()> {
    if session.interview().asked().is_empty() {
        note("nothing was answered, so nothing is saved");
        return Ok(());
    }
    let name = sessions.world().name();
    let episodes = append_episode(save, |n| session.interview().episode(&format!("{name}-live-{n}"), user))?;
    print(&format!("saved: {} has {episodes} episode(s) now", save.display()));
    Ok(())
}

struct Talk<I> {
    who: Who,
    interactive: bool,
    lines: I,
}

impl<I: BufRead> Talk<I> {
    fn question(&self, look: &Look, asked: &Asked) -> String {
        format!("\n[{}/{}] {}", look.answers + 1, look.rounds, asked.text)
    }

    /// The index of the option that is typed; none at the end.
    fn answer(&mut self, asked: &Asked) -> Result<Option<usize>> {
        let choices = asked.labels.join(", ");
        loop {
            if self.interactive {
                let _ = write!(std::io::stderr(), "your answer ({choices}; q ends): ");
            }
            let mut line = String::new();
            if self.lines.read_line(&mut line).context("cannot read standard input")? == 0 {
                return Ok(None);
            }
            let typed = line.trim();
            if let Some(option) = option_of(typed, &asked.labels) {
                return Ok(Some(option));
            }
            match typed {
                "" => {}
                "q" | "quit" | "exit" => return Ok(None),
                _ => warn(&format!("{typed:?} is no answer to this: {choices}, or q to end")),
            }
        }
    }

    /// What both had thought of the answer that came.
    fn surprise(&self, asked: &Asked, option: usize) -> String {
        let label = &asked.labels[option];
        let mut told: Vec<String> = Vec::new();
        if self.who != Who::Model {
            told.push(format!("the teacher gave {label} {:.2}", asked.teacher[option]));
        }
        told.extend(asked.model.as_ref().map(|probs| format!("the model gave it {:.2}", probs[option])));
        format!("  {}", told.join(", "))
    }

    /// A row a belief and party, a bar a level.
    fn beliefs(&self, look: &Look) -> String {
        let width = look.beliefs.iter().map(|b| b.name.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        for belief in &look.beliefs {
            let mut name = belief.name.replace('_', " ");
            let mut row = |who: &str, probs: &[f64]| {
                let bars = bars(&belief.values, probs);
                let _ = writeln!(text, "  {name:width$}  {who:<7}  {bars}");
                name.clear();
            };
            if self.who != Who::Model {
                row("teacher", &belief.teacher);
            }
            if let Some(implied) = &belief.implied {
                row("model", implied);
            }
            if let Some(stated) = &belief.stated {
                row("…says", stated);
            }
        }
        text.trim_end().to_owned()
    }

    /// What both believe in the end, in words.
    fn conclusion(&self, look: &Look) -> String {
        let mut text = format!("\nafter {} answer(s)", look.answers);
        for belief in &look.beliefs {
            let name = belief.name.replace('_', " ");
            let best = |probs: &[f64]| {
                let level = argmax(probs);
                let is_scale =
                    belief.values.iter().enumerate().all(|(i, value)| *value == (i + 1).to_string());
                let scale = if is_scale { format!(" of {}", probs.len()) } else { String::new() };
                format!("{}{scale} ({:.0} % sure)", belief.values[level], 100.0 * probs[level])
            };
            let mut told: Vec<String> = Vec::new();
            if self.who != Who::Model {
                told.push(format!("the teacher believes {}", best(&belief.teacher)));
            }
            told.extend(
                belief.implied.as_ref().map(|p| format!("the model acts as if it believed {}", best(p))),
            );
            told.extend(belief.stated.as_ref().map(|p| format!("the model says {}", best(p))));
            let _ = write!(text, "\n  {name}: {}", told.join("; "));
        }
        if self.who != Who::Model {
            let _ = write!(text, "\n  {:.2} nats are left to be learnt of you", look.entropy);
        }
        text
    }
}

/// An option by its label, whatever its case.
fn option_of(typed: &str, labels: &[String]) -> Option<usize> {
    let same = labels.iter().position(|label| label == typed);
    same.or_else(|| labels.iter().position(|label| label.to_lowercase() == typed.to_lowercase()))
}

/// Levels with their probabilities, or the bars alone where there are many.
fn bars(values: &[String], probs: &[f64]) -> String {
    if probs.len() > 9 {
        return probs.iter().map(|&p| bar(p)).collect();
    }
    let level = |(value, &p): (&String, &f64)| format!("{value} {} {p:.2}", bar(p));
    values.iter().zip(probs).map(level).collect::<Vec<_>>().join("  ")
}

/// A probability as eight steps of height.
fn bar(p: f64) -> char {
    const STEPS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    STEPS[((p * 8.0).round() as usize).min(8)]
}
