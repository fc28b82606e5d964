//! `bayesteach inspect`: what a model sees of an episode, and what is trained on it.

use std::path::Path;

use anyhow::Result;

use super::model::{ModelArgs, Source};
use super::{Context, Done, print};
use crate::error::usage;
use crate::hub::Files;
use crate::tokens::{TokensConfig, inspect, read_lines};

pub(super) fn command(
    episodes: &Path,
    model: &ModelArgs,
    episode: usize,
    template: &str,
    context: &Context,
) -> Result<Done> {
    let lines = read_lines(episodes)?;
    let Some(line) = lines.get(episode) else {
        let (path, n) = (episodes.display(), lines.len());
        return Err(usage(format!("--episode {episode}: {path} has {n} episodes, counted from 0")));
    };
    let source = Source::find(&model.source, None, Files::Tokenizer, context)?;
    let tokens = TokensConfig { template: template.to_string().into(), ..TokensConfig::default() };
    print(&inspect(&source.pipeline(&tokens)?, line)?);
    Ok(Done::Finished)
}
