//! An independent reader of GGUF files: by candle, with llama.cpp's changes undone in plain loops.

use std::collections::BTreeMap;
use std::path::Path;

use bayesteach::model::config::ModelConfig;
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{DType, Device, Tensor};

pub fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

pub fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

/// A GGUF file as candle reads it: metadata, and all tensors dequantised. Of a stack of experts' matrices each is one:
/// `blk.0.ffn_up_exps.5.weight`.
pub fn read_gguf(path: &Path) -> (BTreeMap<String, Value>, BTreeMap<String, Tensor>) {
    let mut file = std::fs::File::open(path).unwrap();
    let content = Content::read(&mut file).unwrap();
    let names: Vec<String> = content.tensor_infos.keys().cloned().collect();
    let mut tensors = BTreeMap::new();
    for name in names {
        let tensor = content.tensor(&mut file, &name, &Device::Cpu).unwrap();
        let tensor = tensor.dequantize(&Device::Cpu).unwrap();
        match name.split_once("_exps.") {
            Some((before, after)) => (0..tensor.dim(0).unwrap()).for_each(|e| {
                tensors.insert(format!("{before}_exps.{e}.{after}"), tensor.get(e).unwrap());
            }),
            None => _ = tensors.insert(name, tensor),
        }
    }
    (content.metadata.into_iter().collect(), tensors)
}

/// Row i of the first half of a head stands in row 2i of the file, row i of the second half in 2i + 1; here back.
pub fn unpermute(values: &[f32], heads: usize, columns: usize) -> Vec<f32> {
    let head_dim = values.len() / columns / heads;
    let mut back = vec![0.0; values.len()];
    for head in 0..heads {
        for i in 0..head_dim {
            let (pair, half) = (i / 2, i % 2);
            let (from, to) = (head * head_dim + i, head * head_dim + half * head_dim / 2 + pair);
            back[to * columns..][..columns].copy_from_slice(&values[from * columns..][..columns]);
        }
    }
    back
}

/// What a tensor of a GGUF file is called on the hub, below the root.
pub fn hub_name(name: &str, model: &ModelConfig) -> String {
    match name {
        "token_embd.weight" => return "embed_tokens.weight".into(),
        "output_norm.weight" => return "norm.weight".into(),
        "output.weight" => return "lm_head.weight".into(),
        _ => {}
    }
    let mut parts = name.split('.');
    let (_, layer, part, kind) =
        (parts.next(), parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
    if let Some(linear) = part.strip_prefix("ffn_").and_then(|part| part.strip_suffix("_exps")) {
        return format!("layers.{layer}.mlp.experts.{kind}.{linear}_proj.weight");
    }
    let within = match part {
        "ffn_gate_inp" => "mlp.gate",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        "attn_norm" => "input_layernorm",
        "post_attention_norm" => "post_attention_layernorm",
        "post_ffw_norm" => "post_feedforward_layernorm",
        "ffn_norm" if model.post_norms => "pre_feedforward_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        other => panic!("{other}"),
    };
    format!("layers.{layer}.{within}.{kind}")
}
