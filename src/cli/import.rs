//! `bayesteach import`: other people's data as episodes.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use clap::Args;

use super::output::print_problems;
use super::{Done, note, print};
use crate::config::RunConfig;
use crate::episode;
use crate::error::usage;
use crate::files;
use crate::import::{self, Format, HeldOutOptions, Imported, MessagesOptions};
use crate::teacher::TeacherConfig;

#[derive(Args)]
pub(super) struct ImportArgs {
    /// The file to import
    file: PathBuf,
    /// The episode file to write
    #[arg(long, value_name = "EPISODES.jsonl")]
    out: PathBuf,
    /// auto, interactions, held-out, questionnaire or messages
    #[arg(long, default_value = "auto")]
    format: String,
    /// The teacher that goes through people's answers: the [teacher] of this config; else the exact one
    #[arg(long, value_name = "CONFIG")]
    teacher: Option<PathBuf>,
    /// Change a value of the teacher's config, such as teacher.flights.teacher_likelihood={lapse=0.2}
    #[arg(long = "set", value_name = "KEY=VALUE")]
    values: Vec<String>,
    /// Of held-out sets: the users' interactions, which go before each set
    #[arg(long, value_name = "FILE")]
    interactions: Option<PathBuf>,
    /// Of held-out sets: so many rounds of the interaction go before each set; all if not given
    #[arg(long, value_name = "N")]
    after: Option<usize>,
    /// Of held-out sets: only so many of each user
    #[arg(long, value_name = "N")]
    sets: Option<usize>,
    /// Of messages: the labels of the options, parted by commas
    #[arg(long, value_delimiter = ',', value_name = "A,B,…")]
    options: Vec<String>,
    /// Of messages: the words around the label, such as "The best option is Flight {}."
    #[arg(long, value_name = "WORDS")]
    answer: Option<String>,
    /// Leave out what could not be understood, instead of writing nothing
    #[arg(long)]
    skip_bad: bool,
}

pub(super) fn command(args: &ImportArgs) -> Result<Done> {
    let inputs = [Some(&args.file), args.interactions.as_ref(), args.teacher.as_ref()];
    let inputs: Vec<&Path> = inputs.into_iter().flatten().map(PathBuf::as_path).collect();
    files::check_apart(&[&args.out], &inputs)?;
    files::check_writable(&args.out)?;
    let format = match Format::NAMES.into_iter().find(|(name, _)| *name == args.format) {
        Some((_, format)) => format,
        None if args.format == "auto" => Format::detect(&args.file)?,
        None => {
            let names = Format::NAMES.map(|(name, _)| name).join(", ");
            return Err(usage(format!("unknown format {:?}: there are auto, {names}", args.format)));
        }
    };
    args.check(format)?;
    let imported = read(args, format)?;
    print_problems(&args.file, &imported.problems);
    imported.notes.iter().for_each(|text| note(text));
    let (good, bad) = (imported.episodes.len(), imported.problems.len());
    if bad > 0 && !args.skip_bad {
        bail!(
            "{bad} problems in {}, listed above; nothing was written: mend them, or leave such rows out with --skip-bad",
            args.file.display()
        );
    }
    ensure!(good > 0, "{}: nothing in it could be imported", args.file.display());
    tell_ignored(&imported);
    let mut text = Vec::new();
    for episode in &imported.episodes {
        episode.validate()?;
        episode::write_line(&mut text, episode)?;
    }
    files::write(&args.out, &text)?;
    let answers: usize = imported.episodes.iter().map(|episode| episode.answers().count()).sum();
    let skipped = if bad > 0 { format!("; {bad} problems, such rows were left out") } else { String::new() };
    print(&format!("{good} episodes with {answers} answers are in {}{skipped}", args.out.display()));
    Ok(Done::Finished)
}

impl ImportArgs {
    /// Refuses options that another kind of file would want.
    fn check(&self, format: Format) -> Result<()> {
        let held_out = self.interactions.is_some() || self.after.is_some() || self.sets.is_some();
        let messages = !self.options.is_empty() || self.answer.is_some();
        let teacher = self.teacher.is_some() || !self.values.is_empty();
        for (given, wanted, what) in [
            (held_out, format == Format::HeldOut, "--interactions, --after and --sets are for held-out sets"),
            (messages, format == Format::Messages, "--options and --answer are for messages"),
            (teacher, format != Format::Messages, "--teacher and --set: no teacher goes through messages"),
        ] {
            ensure!(!given || wanted, usage(what));
        }
        Ok(())
    }

    /// The teacher, and the seed of what is drawn.
    fn teacher(&self, world: &str) -> Result<(TeacherConfig, u64)> {
        let config = match &self.teacher {
            Some(path) => RunConfig::load(path, &self.values)?,
            None => {
                let text = format!("[run]\nname = \"import\"\n[teacher]\nworld = \"{world}\"\n");
                RunConfig::parse(&text, "import", &self.values)?
            }
        };
        Ok((config.teacher()?.clone(), config.run.seed))
    }
}

fn read(args: &ImportArgs, format: Format) -> Result<Imported> {
    let file: &Path = &args.file;
    match format {
        Format::Interactions => {
            let (config, seed) = args.teacher("flights")?;
            import::interactions(file, &config, seed)
        }
        Format::HeldOut => {
            let (config, seed) = args.teacher("flights")?;
            let options = HeldOutOptions {
                interactions: args.interactions.as_deref(),
                after: args.after,
                sets: args.sets,
            };
            import::held_out(file, options, &config, seed)
        }
        Format::Questionnaire => {
            let (config, seed) = args.teacher("personality")?;
            import::questionnaire(file, &config, seed)
        }
        Format::Messages => {
            let options = MessagesOptions { options: args.options.clone(), answer: args.answer.clone() };
            import::messages(file, &options)
        }
    }
}

fn tell_ignored(imported: &Imported) {
    if imported.ignored > 0 {
        note(&format!(
            "{} answers were impossible to the teacher, who supposes that nobody errs, and were ignored: a teacher who \
             allows for errors is had by --set teacher.flights.teacher_likelihood={{lapse=0.2}} (or hotels)",
            imported.ignored
        ));
    }
}
