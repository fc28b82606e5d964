//! The model card that lies in every export: what it is, what it was made from, how it was measured.

use std::path::Path;

use anyhow::{Context as _, Result};

/// What a model card says, whatever the format. What is not known is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Card {
    /// The first heading.
    pub title: String,
    /// The base model: a hub id, or a folder.
    pub base: String,
    /// Whether `base` is a hub id, which the card may link to.
    pub base_on_hub: bool,
    /// The base's commit.
    pub revision: Option<String>,
    /// What there is to say in one line each: (what, value), such as data, teacher and loss.
    pub facts: Vec<(String, String)>,
    /// The measures, as tables in Markdown.
    pub evaluation: Option<String>,
    /// The run's config, as TOML.
    pub config: Option<String>,
}

/// What is in the folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A PEFT adapter.
    Peft,
    /// A soft prompt for PEFT.
    PeftPrompt,
    /// A merged snapshot.
    Merged,
    /// A GGUF file of an adapter.
    GgufLora,
    /// A GGUF file of a whole model.
    Gguf,
    /// An MLX adapter.
    Mlx,
}

impl Kind {
    /// The hub's `library_name` and `base_model_relation`, and the thing in words.
    fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Peft => ("peft", "adapter", "A LoRA adapter in PEFT's format"),
            Self::PeftPrompt => ("peft", "adapter", "A soft prompt in PEFT's format (prompt tuning)"),
            Self::Merged => ("transformers", "finetune", "A LoRA adapter merged into its base model"),
            Self::GgufLora => ("gguf", "adapter", "A LoRA adapter for llama.cpp"),
            Self::Gguf => ("gguf", "quantized", "A model for llama.cpp"),
            Self::Mlx => ("mlx", "adapter", "A LoRA adapter for MLX"),
        }
    }
}

/// The card's file name.
pub const FILE: &str = "README.md";

impl Card {
    /// The card as Markdown, with the hub's metadata above it. `load` is the code or the command that loads the
    /// folder, `notes` what the user should know.
    pub fn render(&self, kind: Kind, load: &str, notes: &[String]) -> String {
        let (library, relation, what) = kind.words();
        let mut text = format!("---\nlibrary_name: {library}\n");
        if self.base_on_hub {
            text += &format!("base_model: {}\nbase_model_relation: {relation}\n", self.base);
        }
        let method = if kind == Kind::PeftPrompt { "prompt-tuning" } else { "lora" };
        text += &format!("tags:\n- bayesteach\n- {method}\n---\n\n");
        text += &format!("# {}\n\n{what}, made with bayesteach.\n\n", one_line(&self.title));
        let revision = self.revision.iter().map(|r| ("revision of the base".to_string(), r.clone()));
        let base = [("base".to_string(), self.base.clone())];
        for (name, value) in base.into_iter().chain(revision).chain(self.facts.iter().cloned()) {
            text += &format!("- {name}: {}\n", one_line(&value));
        }
        text += &format!("\n## Load\n\n{}", fenced(load, ""));
        if !notes.is_empty() {
            text += "\n## Notes\n\n";
            for note in notes {
                text += &format!("- {}\n", one_line(note));
            }
        }
        if let Some(evaluation) = &self.evaluation {
            text += &format!("\n## Evaluation\n\n{}\n", evaluation.trim());
        }
        if let Some(config) = &self.config {
            text += &format!("\n## Config\n\n{}", fenced(config, "toml"));
        }
        text
    }

    pub(super) fn write(&self, dir: &Path, kind: Kind, load: &str, notes: &[String]) -> Result<()> {
        let path = dir.join(FILE);
        std::fs::write(&path, self.render(kind, load, notes))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A code block whose fence is longer than any within.
fn fenced(text: &str, language: &str) -> String {
    let longest = text.lines().map(|line| line.chars().take_while(|&c| c == '`').count()).max();
    let fence = "`".repeat(longest.unwrap_or(0).max(2) + 1);
    format!("{fence}{language}\n{}\n{fence}\n", text.trim_end())
}
