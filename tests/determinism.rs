//! Gradients of a whole model are the same bytes on any number of threads, and however much is kept.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;

use bayesteach::model::config::ModelConfig;
use bayesteach::model::decoder::{Decoder, Keep, Tokens};
use bayesteach::model::gradients::{Gradients, Trainable};
use bayesteach::model::peft;
use bayesteach::ops::dropout::Dropout;
use bayesteach::ops::kl::Targets;
use bayesteach::rng;
use candle_core::{DType, Device};

const LENGTHS: [usize; 4] = [1, 100, 64, 37];

/// Bytes of the loss and of every gradient.
fn gradients(model: &Decoder, trainable: Trainable, keep: Keep) -> BTreeMap<String, Vec<u32>> {
    let mut s = rng::stream(0, "determinism", 0);
    let vocabulary = model.config().vocab_size;
    let (mut input_ids, mut positions, mut boundaries) = (Vec::new(), Vec::new(), vec![0]);
    for length in LENGTHS {
        input_ids.extend((0..length).map(|_| s.below(vocabulary) as u32));
        positions.extend(0..length as u32);
        boundaries.push(input_ids.len() as u32);
    }
    // Every third token has two options; one in two is over the whole vocabulary.
    let rows: Vec<u32> = (0..input_ids.len() as u32).step_by(3).collect();
    let targets = Targets {
        option_boundaries: &(0..=rows.len() as u32).map(|i| 2 * i).collect::<Vec<_>>(),
        ids: &(0..rows.len() as u32).flat_map(|i| [i % 50, 50 + i % 50]).collect::<Vec<_>>(),
        probs: &rows.iter().flat_map(|_| [0.75, 0.25]).collect::<Vec<_>>(),
        weights: &vec![0.5; rows.len()],
        whole_vocabulary: &(0..rows.len()).map(|i| i % 2 == 0).collect::<Vec<_>>(),
    };
    let dropout = Dropout { p: 0.1, seed: 3, keys: (0..4).map(|place| Dropout::key(2, place)).collect() };
    let tokens = Tokens { input_ids: &input_ids, positions: &positions, boundaries: &boundaries };
    let run = model.run(tokens, Some(&dropout)).unwrap().only(&rows);
    let mut grads = Gradients::new(trainable);
    let (hidden, tape) = model.forward(&run, keep).unwrap();
    let (pending, dhidden) = model.answer_kl(&hidden, targets, Some(&mut grads)).unwrap();
    model.backward(tape, dhidden.unwrap(), &run, &mut grads).unwrap();
    let kl = pending.read(&targets).unwrap();
    let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let mut all: BTreeMap<String, Vec<u32>> = grads
        .into_sums()
        .into_iter()
        .map(|(name, t)| (name, bits(&t.flatten_all().unwrap().to_vec1().unwrap())))
        .collect();
    all.insert(
        "kl".to_string(),
        kl.kl.iter().flat_map(|k| [k.to_bits() as u32, (k.to_bits() >> 32) as u32]).collect(),
    );
    all
}

#[test]
fn gradients_do_not_depend_on_threads_or_on_what_is_kept() {
    for (family, dtype) in [("llama", DType::F32), ("gemma2", DType::F32), ("qwen2", DType::BF16)] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/reference").join(family);
        let config = ModelConfig::load(&dir).unwrap();
        let mut model = Decoder::load(&dir, &config, dtype, &Device::Cpu).unwrap();
        let (_, adapter) = peft::read(&dir.join("adapter"), &config).unwrap();
        for (trainable, adapter) in [(Trainable::Lora, Some(&adapter)), (Trainable::All, None)] {
            model.set_adapter(adapter).unwrap();
            let on = |threads: usize, keep: Keep| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| gradients(&model, trainable, keep))
            };
            let one = on(1, Keep::Everything);
            assert!(one.len() > 10 && one.values().all(|bits| bits.iter().any(|&b| b != 0)));
            for (threads, keep) in
                [(1, Keep::BlockInputs), (2, Keep::Everything), (2, Keep::BlockInputs), (3, Keep::Everything)]
            {
                assert!(one == on(threads, keep), "{family} {dtype:?} {trainable:?} {keep:?} on {threads}");
            }
        }
    }
}
