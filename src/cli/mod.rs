//! The command line: one file a command. Results go to standard output, progress and errors to standard error.

mod allocator;
mod ask;
mod bench;
mod card;
mod chat;
mod compare;
mod depth;
mod doctor;
mod environment;
mod eval;
mod export;
mod import;
mod inspect;
mod interrupt;
mod live;
mod logits;
mod model;
mod output;
mod pages;
mod plan;
mod progress;
mod push;
mod report;
mod run;
mod schedule;
mod table;
mod teach;
mod train;
mod transfer;
mod validate;
mod view;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::error::UsageError;
use crate::hub::HubSettings;
pub use allocator::Allocator;
use interrupt::Interrupt;
use output::{Manner, note, print, print_json, program, warn};

/// Teaches open-weight language models to update their beliefs.
#[derive(Parser)]
#[command(name = "bayesteach", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// No progress: only results, warnings and errors
    #[arg(long, short, global = true)]
    quiet: bool,
    /// Results as one JSON object on standard output (run, teach, train, eval)
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// All stages of a config: teach, measure the base, train, measure again, export, report
    Run {
        /// The config file
        config: PathBuf,
        /// Continue a run that was stopped
        #[arg(long)]
        resume: bool,
        /// With --resume: allow another number of steps although the schedule depends on it
        #[arg(long)]
        extend: bool,
        #[command(flatten)]
        set: Settings,
    },
    /// Draw users, let the teacher go through every episode, write episode files
    Teach {
        /// The config file
        config: PathBuf,
        /// Where to write; the run's own episodes folder if not given
        #[arg(long)]
        out: Option<PathBuf>,
        #[command(flatten)]
        set: Settings,
    },
    /// Show how an episode becomes text, tokens and supervised positions
    Inspect {
        /// An episode file
        episodes: PathBuf,
        #[command(flatten)]
        model: model::ModelArgs,
        /// Which episode of the file, counted from 0
        #[arg(long, default_value_t = 0)]
        episode: usize,
        /// A chat template to use instead of the model's own: "plain" or a Jinja file; or "strict"
        #[arg(long, default_value = "auto")]
        template: String,
    },
    /// Train, teaching first where the episodes are not there yet
    Train {
        /// The config file
        config: PathBuf,
        /// Continue from the last checkpoint, or from the one after STEP steps
        #[arg(long, value_name = "STEP", num_args = 0..=1, value_parser = step_number)]
        resume: Option<Option<usize>>,
        /// With --resume: allow another number of steps although the schedule depends on it
        #[arg(long)]
        extend: bool,
        /// Start from the values of this PEFT adapter
        #[arg(long, value_name = "DIR")]
        init_adapter: Option<PathBuf>,
        #[command(flatten)]
        set: Settings,
    },
    /// Measure a model, with or without an adapter, against truth and teacher
    Eval {
        #[command(flatten)]
        model: model::ModelArgs,
        /// A PEFT adapter
        #[arg(long, value_name = "DIR")]
        adapter: Option<PathBuf>,
        /// An episode file
        #[arg(long, value_name = "FILE")]
        episodes: PathBuf,
        /// The config that the episodes are from, to look into them; not needed where `teach` has left inputs.json
        /// beside them. Its [eval] says what is measured
        #[arg(long, value_name = "CONFIG")]
        config: Option<PathBuf>,
        /// Write the measures as JSON
        #[arg(long, value_name = "FILE.json")]
        out: Option<PathBuf>,
        /// Write every episode with the predictions of its answers as JSON Lines
        #[arg(long, value_name = "FILE.jsonl")]
        predictions: Option<PathBuf>,
        #[command(flatten)]
        set: Settings,
        #[command(flatten)]
        compute: model::ComputeArgs,
    },
    /// Measure a model with any adapters on any worlds: one table
    Transfer(transfer::TransferArgs),
    /// Tell what training takes, without loading weights: parameters, memory by part, tokens, steps
    Plan {
        /// The config file
        config: PathBuf,
        #[command(flatten)]
        set: Settings,
    },
    /// Tell what this machine has, and what to do about what is missing
    Doctor,
    /// Find the examples that lead a predictor to a belief fastest
    Schedule(schedule::ScheduleArgs),
    /// Talk to a model, with or without an adapter
    Chat(chat::ChatArgs),
    /// Time training steps on random weights of a named shape
    Bench(bench::BenchArgs),
    /// Write what other programs load
    Export(export::ExportArgs),
    /// Upload an adapter with its model card to the hub
    Push(push::PushArgs),
    /// Show runs side by side that were measured on the same episodes, and how much each differs from the first
    Compare {
        /// Run directories, or files that `eval --out` wrote
        #[arg(required = true)]
        runs: Vec<PathBuf>,
        /// Pool runs whose names differ only in a number at the end, their seed
        #[arg(long)]
        pool: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Follow runs in a browser on this machine, and answer a run's questions there
    View(view::ViewArgs),
    /// Answer questions while the teacher, a model, or both say what they believe of you
    Ask(ask::AskArgs),
    /// Write report.html and plots of a run again, from the files in its directory
    Report {
        /// A run directory
        run: PathBuf,
    },
    /// Print what a shell reads to complete commands and options
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
    /// Write man pages, one for each command
    Man {
        /// The folder to write to
        #[arg(long)]
        out: PathBuf,
    },
    /// Turn other people's data into episodes: published evaluation files, questionnaires, chat messages
    Import(import::ImportArgs),
    /// Check episode files, also tokenised ones, and list all problems with their lines
    Validate {
        /// Episode files
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Check too that this model's tokenizer and chat template can take the episodes
        #[arg(long, value_name = "SOURCE")]
        model: Option<String>,
        /// With --model: a chat template to use instead of the model's own: "plain" or a Jinja file; or "strict"
        #[arg(long, default_value = "auto", requires = "model")]
        template: String,
    },
    /// Write a model's logits for given tokens, to check against other programs
    Logits {
        #[command(flatten)]
        model: model::ModelArgs,
        /// A PEFT adapter
        #[arg(long, value_name = "DIR")]
        adapter: Option<PathBuf>,
        /// Lines of {"input_ids": […]}
        #[arg(long, value_name = "IDS.jsonl")]
        input: PathBuf,
        /// Tensors named 0, 1, … of shape (tokens, vocabulary)
        #[arg(long, value_name = "FILE.safetensors")]
        out: PathBuf,
        #[command(flatten)]
        compute: model::ComputeArgs,
    },
}

impl Command {
    /// Whether all that the command has to say can be one JSON object.
    fn says_json(&self) -> bool {
        matches!(self, Self::Run { .. } | Self::Teach { .. } | Self::Train { .. } | Self::Eval { .. })
    }

    /// The same, or the command has such an option of its own.
    fn has_json(&self) -> bool {
        self.says_json() || matches!(self, Self::Bench(_) | Self::Compare { .. } | Self::Schedule(_))
    }
}

#[derive(Args)]
struct Settings {
    /// Change a value of the config; the value is TOML, or else a string
    #[arg(long = "set", value_name = "KEY=VALUE")]
    values: Vec<String>,
}

/// The value of `--resume`, which swallows what stands behind it.
fn step_number(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "not a number of steps: the config file stands before --resume".into())
}

/// What commands share.
struct Context {
    hub: HubSettings,
    interrupt: Interrupt,
}

/// Runs the command line of this process.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage or config, 130 interrupted after a checkpoint was written.
pub fn main() -> ExitCode {
    allocator::keep_freed_memory();
    let cli = Cli::parse();
    output::settle(Manner { quiet: cli.quiet, json: cli.json && cli.command.says_json() });
    if cli.json && !cli.command.has_json() {
        warn("error: --json is for run, teach, train, eval, bench, compare and schedule");
        return ExitCode::from(2);
    }
    let threads = if let Command::Bench(args) = &cli.command { args.threads } else { None };
    match in_pool(threads, || execute(cli.command)) {
        Ok(Done::Finished) => ExitCode::SUCCESS,
        Ok(Done::Interrupted) => ExitCode::from(130),
        Err(error) => {
            warn(&format!("error: {}", describe(&error)));
            let usage = error.chain().any(|cause| cause.is::<UsageError>());
            ExitCode::from(if usage { 2 } else { 1 })
        }
    }
}

/// Runs `f` on a worker of rayon's pool: from outside, every operation would wait for a worker to wake up, which
/// costs a small model half its time.
fn in_pool(threads: Option<usize>, f: impl FnOnce() -> Result<Done> + Send) -> Result<Done> {
    // Only the first call can set up the pool; a pool that is there is as good.
    let _ =
        rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).stack_size(16 << 20).build_global();
    rayon::scope(|_| f())
}

/// How a command ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Finished,
    Interrupted,
}

fn execute(command: Command) -> Result<Done> {
    let hub = HubSettings { progress: !output::manner().quiet, ..environment::hub_settings() };
    let context = Context { hub, interrupt: Interrupt::install()? };
    match command {
        Command::Run { config, resume, extend, set } => {
            run::run(&config, resume, extend, &set.values, &context)
        }
        Command::Teach { config, out, set } => teach::command(&config, out, &set.values),
        Command::Inspect { episodes, model, episode, template } => {
            inspect::command(&episodes, &model, episode, &template, &context)
        }
        Command::Train { config, resume, extend, init_adapter, set } => {
            train::command(&config, train::Options { resume, extend, init_adapter }, &set.values, &context)
        }
        Command::Eval { model, adapter, episodes, config, out, predictions, set, compute } => {
            let outputs = eval::Outputs { measures: out, predictions };
            let measured = eval::Measured { episodes, config, set: set.values };
            eval::command(&model, adapter.as_deref(), &measured, &outputs, &compute, &context)
        }
        Command::Transfer(args) => transfer::command(&args, &context),
        Command::Plan { config, set } => plan::command(&config, &set.values, &context),
        Command::Doctor => doctor::command(&context),
        Command::Schedule(args) => schedule::command(&args, &context),
        Command::Chat(args) => chat::command(&args, &context),
        Command::Bench(args) => bench::command(&args),
        Command::Report { run } => report::command(&run),
        Command::Compare { runs, pool, json } => compare::command(&runs, pool, json),
        Command::View(args) => view::command(args, &context),
        Command::Ask(args) => ask::command(&args, &context),
        Command::Export(args) => export::command(&args, &context),
        Command::Completions { shell } => pages::completions(shell, Cli::command()),
        Command::Man { out } => pages::man(&out, Cli::command()),
        Command::Import(args) => import::command(&args),
        Command::Validate { files, model, template } => {
            validate::command(&files, model.as_deref(), &template, &context)
        }
        Command::Push(args) => push::command(&args, &context),
        Command::Logits { model, adapter, input, out, compute } => {
            logits::command(&model, adapter.as_deref(), &input, &out, &compute, &context)
        }
    }
}

/// The error and its causes, outermost first, each said once.
fn describe(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // candle appends a backtrace where one is asked for; and some causes repeat what stands before them.
        if !text.contains(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
    }
    text
}
