//! `bayesteach push`: uploads an adapter with its model card to the hub.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::export::adapter_with_card;
use super::model::adapter_folder;
use super::{Context, Done, note, print};
use crate::error::usage;
use crate::export::card;
use crate::files::TemporaryFolder;
use crate::hub::push::{Destination, check, push};
use crate::model::peft;

#[derive(Args)]
pub(super) struct PushArgs {
    /// A run directory, a checkpoint, or a folder that `export` wrote
    source: PathBuf,
    /// The repository, such as your-name/your-adapter; created where it is not there yet
    repository: String,
    /// Create it for its owner alone
    #[arg(long)]
    private: bool,
    /// The commit's message
    #[arg(long, default_value = "Upload with bayesteach")]
    message: String,
}

/// What lies in a checkpoint beside the adapter.
const TRAINING_STATE: [&str; 2] = ["optimizer.safetensors", "state.json"];

pub(super) fn command(args: &PushArgs, context: &Context) -> Result<Done> {
    let folder = adapter_folder(&args.source);
    let has_model = [peft::CONFIG_FILE, "config.json"].iter().any(|name| folder.join(name).is_file())
        || std::fs::read_dir(&folder).is_ok_and(|mut all| {
            all.any(|entry| entry.is_ok_and(|entry| entry.path().extension().is_some_and(|e| e == "gguf")))
        });
    if !has_model {
        return Err(usage(format!("{} holds neither an adapter nor a model", args.source.display())));
    }
    let to =
        Destination { id: args.repository.clone(), private: args.private, message: args.message.clone() };
    // Said before anything is written.
    check(&to, &context.hub)?;
    let made = if folder.join(card::FILE).is_file() {
        None
    } else {
        note("there is no model card: exporting the adapter with one");
        let place = TemporaryFolder::new()?;
        adapter_with_card(&folder, &place.path().join("adapter"), context)?;
        Some(place)
    };
    let folder = made.as_ref().map_or(folder, |place| place.path().join("adapter"));
    let commit = push(&folder, &TRAINING_STATE, &to, &context.hub, &note)?;
    print(&commit);
    Ok(Done::Finished)
}
