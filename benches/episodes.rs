//! From an episode file to sequences, on questionnaires of 50 items and one core: `cargo bench --bench episodes`.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark may panic")]

use std::path::Path;

use bayesteach::config::RunConfig;
use bayesteach::teacher::{self, Part};
use bayesteach::tokens::{Line, ModelLimits, Pipeline, TokensConfig, read_lines};
use criterion::{Criterion, criterion_group, criterion_main};

#[global_allocator]
static ALLOCATOR: bayesteach::cli::Allocator = bayesteach::cli::Allocator;

fn of_questionnaires(c: &mut Criterion) {
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global().unwrap();
    let set = ["teacher.episodes_per_user=1".into(), "teacher.users=200".into()];
    let config = RunConfig::load(Path::new("configs/personality-50.toml"), &set).unwrap();
    let folder = tempfile::tempdir().unwrap();
    teacher::teach(config.teacher().unwrap(), &config.split, 0, folder.path(), &|_, _| ()).unwrap();
    let file = folder.path().join(Part::Train.file_name());
    let lines = read_lines(&file).unwrap();
    let limits = ModelLimits { max_position_embeddings: 32_768, vocab_size: 1 << 20 };
    let pipeline = Pipeline::load(Path::new("data/base"), &TokensConfig::default(), limits).unwrap();
    let episodes: Vec<_> = lines
        .iter()
        .map(|line| match line {
            Line::Episode(episode) => episode,
            Line::Tokenised(_) => unreachable!("the teacher writes dialogues"),
        })
        .collect();
    let texts: Vec<String> =
        episodes.iter().map(|e| pipeline.renderer().render(&e.messages).unwrap().text).collect();

    let mut group = c.benchmark_group(format!("{} questionnaires", lines.len()));
    group.sample_size(10);
    group.bench_function("read", |t| t.iter(|| read_lines(&file).unwrap()));
    group.bench_function("render", |t| {
        t.iter(|| episodes.iter().for_each(|e| drop(pipeline.renderer().render(&e.messages).unwrap())));
    });
    group.bench_function("tokenize", |t| {
        t.iter(|| texts.iter().for_each(|text| drop(pipeline.tokenizer().encode(text).unwrap())));
    });
    group.bench_function("encode", |t| t.iter(|| pipeline.encode_all(&lines).unwrap()));
    group.bench_function("read and encode", |t| t.iter(|| pipeline.encode_file(&file).unwrap()));
}

criterion_group!(benches, of_questionnaires);
criterion_main!(benches);
