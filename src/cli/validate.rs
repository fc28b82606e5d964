//! `bayesteach validate`: all that is wrong with episode files, at once.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use rayon::prelude::*;

use super::model::Source;
use super::output::print_problems;
use super::{Context, Done, print};
use crate::episode::Problem;
use crate::hub::Files;
use crate::tokens::{CheckedFile, Line, Pipeline, TokensConfig, check_lines};

/// What was seen in all files.
#[derive(Default)]
struct Counts {
    episodes: usize,
    sequences: usize,
    answers: usize,
    problems: usize,
    lines: usize,
    files: usize,
}

/// Prints every problem of every file; with a model, also what stands in the way of its tokens.
pub(super) fn command(
    files: &[PathBuf],
    model: Option<&str>,
    template: &str,
    context: &Context,
) -> Result<Done> {
    let pipeline = match model {
        Some(model) => {
            let source = Source::find(model, None, Files::Tokenizer, context)?;
            let tokens = TokensConfig { template: template.to_string().into(), ..TokensConfig::default() };
            Some(source.pipeline(&tokens)?)
        }
        None => None,
    };
    let mut counts = Counts::default();
    for file in files {
        match check_lines(file) {
            Ok(checked) => tell(file, &checked, pipeline.as_ref(), &mut counts),
            // Another file's problems are worth knowing all the same.
            Err(error) => {
                print(&format!("{error:#}"));
                counts.problems += 1;
                counts.files += 1;
            }
        }
    }
    let Counts { episodes, sequences, answers, problems, lines, files: bad } = counts;
    let seen = format!(
        "{} in {}, {}",
        count(episodes + sequences, "sound episode"),
        count(files.len(), "file"),
        count(answers, "answer")
    );
    if problems > 0 {
        print(&format!(
            "{seen}; {} on {} of {}",
            count(problems, "problem"),
            count(lines, "line"),
            count(bad, "file")
        ));
        bail!("{} in {}, listed above", count(problems, "problem"), count(bad, "file"));
    }
    print(&seen);
    Ok(Done::Finished)
}

fn tell(file: &Path, checked: &CheckedFile, pipeline: Option<&Pipeline>, counts: &mut Counts) {
    let mut problems = checked.problems.clone();
    if let Some(pipeline) = pipeline {
        let of_tokens = |(line, content): &(usize, Line)| {
            let error = pipeline.encode_line(content).err()?;
            Some(Problem { line: *line, message: format!("{error:#}") })
        };
        let found: Vec<Problem> = checked.lines.par_iter().filter_map(of_tokens).collect();
        problems.extend(found);
        problems.sort_by_key(|problem| problem.line);
    }
    print_problems(file, &problems);
    let mut lines: Vec<usize> = problems.iter().map(|problem| problem.line).collect();
    lines.dedup();
    counts.lines += lines.len();
    counts.files += usize::from(!lines.is_empty());
    counts.problems += problems.len();
    for (line, content) in &checked.lines {
        if lines.binary_search(line).is_ok() {
            continue;
        }
        match content {
            Line::Episode(episode) => {
                counts.episodes += 1;
                counts.answers += episode.answers().count();
            }
            Line::Tokenised(sequence) => {
                counts.sequences += 1;
                counts.answers += sequence.targets.len();
            }
        }
    }
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
