//! How llama.cpp sees a model: its architecture's name, hyper-parameters, tensor names, and how tensors differ from
//! the hub's.
//!
//! llama.cpp rotates neighbouring pairs in Llama, so the rows of its q and k are permuted; Gemma's norms are stored
//! with the 1 added. What llama.cpp cannot compute is an error.

use anyhow::{Result, bail, ensure};
use candle_core::Tensor;
use candle_core::quantized::gguf_file::Value;

use super::super::config::{Activation, Family, Gain, ModelConfig};
use super::super::lora;

/// Metadata in the order in which it is written.
pub(crate) type Metadata = Vec<(String, Value)>;

/// What GGUF files call an architecture, and what it is.
pub(crate) struct Architecture {
    pub name: &'static str,
    pub family: Family,
    /// Its MLPs are experts.
    pub is_mixture: bool,
}

/// All that this program reads and writes.
pub(crate) const ARCHITECTURES: [Architecture; 7] = [
    Architecture { name: "llama", family: Family::Llama, is_mixture: false },
    Architecture { name: "qwen2", family: Family::Qwen2, is_mixture: false },
    Architecture { name: "qwen3", family: Family::Qwen3, is_mixture: false },
    Architecture { name: "qwen3moe", family: Family::Qwen3, is_mixture: true },
    Architecture { name: "gemma", family: Family::Gemma, is_mixture: false },
    Architecture { name: "gemma2", family: Family::Gemma2, is_mixture: false },
    Architecture { name: "gemma3", family: Family::Gemma3, is_mixture: false },
];

/// The name of the model's architecture in GGUF files.
pub(crate) fn architecture(model: &ModelConfig) -> &'static str {
    let is_mixture = model.routing.is_some();
    let known = ARCHITECTURES.iter().find(|a| a.family == model.family && a.is_mixture == is_mixture);
    known.map_or("unknown", |a| a.name)
}

/// One tensor of the file, and where it comes from.
pub(crate) struct Entry {
    /// In the file.
    pub name: String,
    pub origin: Origin,
    pub shape: Vec<usize>,
    pub change: Change,
}

pub(crate) enum Origin {
    /// A tensor by its name below the model's root.
    Below(String),
    /// One tensor of each expert by its name below the model's root, stacked.
    Experts(Vec<String>),
    /// The output head.
    Head,
    /// These values, which the snapshot holds in another form.
    Values(Vec<f32>),
}

/// What is done to a tensor on its way into the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Change {
    Nothing,
    /// The rows of each of so many heads are permuted for a rotation of neighbouring pairs.
    PermuteHeads(usize),
    /// (1 + w) · factor
    OnePlus(f64),
    /// w · factor
    Scale(f64),
}

impl Change {
    pub(crate) fn apply(self, t: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Nothing => t.clone(),
            Self::PermuteHeads(heads) => permute_heads(t, heads)?,
            Self::OnePlus(factor) => ((t + 1.0)? * factor)?,
            Self::Scale(factor) => (t * factor)?,
        })
    }

    /// The tensor as the hub has it, from the file's.
    pub(crate) fn undo(self, t: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Nothing => t.clone(),
            Self::PermuteHeads(heads) => {
                let order = unpermuted_rows(t.dim(0)?, heads);
                let rows = order.len();
                t.index_select(&Tensor::from_vec(order, rows, t.device())?, 0)?
            }
            Self::OnePlus(factor) => ((t / factor)? - 1.0)?,
            Self::Scale(factor) => (t / factor)?,
        })
    }
}

/// For each of a tensor's rows as the hub has them, the row of the file that holds it.
pub(crate) fn unpermuted_rows(rows: usize, heads: usize) -> Vec<u32> {
    let size = rows / heads;
    let of = |row: usize| {
        let (head, within) = (row / size, row % size);
        // The first half of a head lies at the even places, the second at the odd ones.
        let (half, i) = (within / (size / 2), within % (size / 2));
        (head * size + 2 * i + half) as u32
    };
    (0..rows).map(of).collect()
}

/// Rows (heads · D, …) from halves to neighbouring pairs: row i of the first half of each head goes to 2i, row i of
/// the second half to 2i + 1.
fn permute_heads(t: &Tensor, heads: usize) -> Result<Tensor> {
    let shape = t.dims();
    let columns: usize = shape[1..].iter().product();
    let halves = t.reshape((heads, 2, shape[0] / heads / 2, columns))?; // (heads, 2, D / 2, columns)
    Ok(halves.transpose(1, 2)?.contiguous()?.reshape(shape)?)
}

/// How the weights of a block's linear change, and of its bias.
pub(crate) fn linear_change(model: &ModelConfig, linear: &str) -> Change {
    match (model.family, linear) {
        (Family::Llama, "q_proj") => Change::PermuteHeads(model.num_attention_heads),
        (Family::Llama, "k_proj") => Change::PermuteHeads(model.num_key_value_heads),
        _ => Change::Nothing,
    }
}

/// A block's router in the file. What it decides is not to be rounded: it is f32 always.
pub(crate) const ROUTER: &str = "ffn_gate_inp.weight";

/// A block's linear in the file, without `.weight`.
pub(crate) fn linear_name(layer: usize, linear: &str) -> String {
    let name = match linear {
        "q_proj" => "attn_q",
        "k_proj" => "attn_k",
        "v_proj" => "attn_v",
        "o_proj" => "attn_output",
        "gate_proj" => "ffn_gate",
        "up_proj" => "ffn_up",
        _ => "ffn_down",
    };
    format!("blk.{layer}.{name}")
}

/// By how much more llama.cpp scales q · k than it should. It takes the scale from the head's size, or for the
/// models that it knows by their number of layers (27B) from hidden size and heads, whatever the config says.
pub(crate) fn scale_mismatch(model: &ModelConfig) -> f64 {
    let known = match model.family {
        Family::Gemma2 => model.num_layers() == 46,
        Family::Gemma3 => model.num_layers() == 62,
        _ => false,
    };
    let size = if known { model.hidden_size / model.num_attention_heads } else { model.head_dim };
    let factor = model.attention_scale * (size as f64).sqrt();
    if (factor - 1.0).abs() < 1e-9 { 1.0 } else { factor }
}

/// All tensors of the file.
pub(crate) fn entries(model: &ModelConfig) -> Result<Vec<Entry>> {
    let (d, head_dim) = (model.hidden_size, model.head_dim);
    let one_plus = |factor: f64| match model.gain {
        Gain::OnePlusWeight => Change::OnePlus(factor),
        Gain::Weight if factor == 1.0 => Change::Nothing,
        Gain::Weight => Change::Scale(factor),
    };
    let mut entries = Vec::new();
    let mut add = |name: String, below: String, shape: &[usize], change: Change| {
        entries.push(Entry { name, origin: Origin::Below(below), shape: shape.to_vec(), change });
    };
    let vocabulary = [model.vocab_size, d];
    add("token_embd.weight".into(), "embed_tokens.weight".into(), &vocabulary, Change::Nothing);
    add("output_norm.weight".into(), "norm.weight".into(), &[d], one_plus(1.0));
    let scale = scale_mismatch(model);
    for i in 0..model.num_layers() {
        let norms: &[(&str, &str)] = match model.post_norms {
            true => &[
                ("attn_norm", "input_layernorm"),
                ("post_attention_norm", "post_attention_layernorm"),
                ("ffn_norm", "pre_feedforward_layernorm"),
                ("post_ffw_norm", "post_feedforward_layernorm"),
            ],
            false => &[("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")],
        };
        for (name, below) in norms {
            add(format!("blk.{i}.{name}.weight"), format!("layers.{i}.{below}.weight"), &[d], one_plus(1.0));
        }
        if model.qk_norm {
            // What is left of the scale goes into q's norm, or else into q itself; both come before the rotation.
            for (name, below, factor) in [("attn_q_norm", "q_norm", scale), ("attn_k_norm", "k_norm", 1.0)] {
                let below = format!("layers.{i}.self_attn.{below}.weight");
                add(format!("blk.{i}.{name}.weight"), below, &[head_dim], one_plus(factor));
            }
        }
        for &linear in lora::linears(model) {
            let (d_out, d_in) = lora::linear_shape(model, linear);
            let change = match linear {
                "q_proj" if scale != 1.0 && !model.qk_norm => Change::Scale(scale),
                _ => linear_change(model, linear),
            };
            let (name, below) = (linear_name(i, linear), lora::within_block(linear));
            add(format!("{name}.weight"), format!("layers.{i}.{below}.weight"), &[d_out, d_in], change);
            let bias = match linear {
                "q_proj" | "k_proj" | "v_proj" => model.qkv_bias,
                "o_proj" => model.o_bias,
                _ => model.mlp_bias,
            };
            if bias {
                add(format!("{name}.bias"), format!("layers.{i}.{below}.bias"), &[d_out], change);
            }
        }
    }
    if let Some(routing) = model.routing {
        entries.extend((0..model.num_layers()).flat_map(|i| experts(model, routing.experts, i)));
    }
    if !model.tie_word_embeddings {
        let (name, shape) = ("output.weight".into(), vec![model.vocab_size, d]);
        entries.push(Entry { name, origin: Origin::Head, shape, change: Change::Nothing });
    }
    if let Scaling::PerFrequency(factors) = scaling(model, 0) {
        let (name, shape) = ("rope_freqs.weight".into(), vec![factors.len()]);
        entries.push(Entry { name, origin: Origin::Values(factors), shape, change: Change::Nothing });
    }
    Ok(entries)
}

/// A block's router and the stacked matrices of its experts.
fn experts(model: &ModelConfig, count: usize, layer: usize) -> Vec<Entry> {
    let router = Entry {
        name: format!("blk.{layer}.{ROUTER}"),
        origin: Origin::Below(format!("layers.{layer}.mlp.gate.weight")),
        shape: vec![count, model.hidden_size],
        change: Change::Nothing,
    };
    let stack = |linear: &str| {
        let (d_out, d_in) = lora::linear_shape(model, linear);
        Entry {
            name: format!("{}_exps.weight", linear_name(layer, linear)),
            origin: Origin::Experts(
                (0..count).map(|e| format!("layers.{layer}.mlp.experts.{e}.{linear}.weight")).collect(),
            ),
            shape: vec![count, d_out, d_in],
            change: Change::Nothing,
        }
    };
    let stacks = ["gate_proj", "up_proj", "down_proj"].map(stack);
    std::iter::once(router).chain(stacks).collect()
}

/// How a rotation's frequencies differ from θ^(−2i/D).
enum Scaling {
    None,
    /// All are divided by this.
    Linear(f64),
    /// Each is divided by its own.
    PerFrequency(Vec<f32>),
}

fn scaling(model: &ModelConfig, rope: usize) -> Scaling {
    let exponent = |i: usize| -2.0 * i as f64 / model.head_dim as f64;
    let plain = |i: usize| model.rope_theta[rope].powf(exponent(i));
    let factors: Vec<f64> =
        model.inv_freq[rope].iter().enumerate().map(|(i, &f)| plain(i) / f64::from(f)).collect();
    let same = |factor: f64| factors.iter().all(|f| (f / factor - 1.0).abs() < 1e-5);
    match factors.first() {
        Some(_) if same(1.0) => Scaling::None,
        // Frequencies are kept in f32, of which the first one is the roundest.
        Some(&first) if same(first) => Scaling::Linear((first * 1e6).round() / 1e6),
        _ => Scaling::PerFrequency(factors.into_iter().map(|f| f as f32).collect()),
    }
}

/// Refuses what llama.cpp cannot compute.
pub(crate) fn check(model: &ModelConfig) -> Result<()> {
    let family = model.family;
    let gemma = matches!(family, Family::Gemma | Family::Gemma2 | Family::Gemma3);
    let name = architecture(model);
    ensure!(
        model.routing.is_none_or(|routing| routing.normalise),
        "llama.cpp's {name} makes the weights of a token's experts sum to 1, but this model does not (norm_topk_prob): \
         only peft, merged and mlx have a place for it"
    );
    let activation = if gemma { Activation::GeluTanh } else { Activation::Silu };
    ensure!(
        model.activation == activation,
        "llama.cpp's {name} computes {activation:?}, but this model {:?}",
        model.activation
    );
    ensure!(
        model.tie_word_embeddings || !matches!(family, Family::Gemma | Family::Gemma2),
        "llama.cpp's {name} takes the embedding as the output head, but this model has a head of its own"
    );
    ensure!(
        !model.o_bias || family == Family::Llama,
        "llama.cpp's {name} has no bias on the attention's output, but this model has one"
    );
    let q = model.num_attention_heads * model.head_dim;
    ensure!(
        family != Family::Qwen2 || q == model.hidden_size,
        "llama.cpp's qwen2 wants heads · head size = hidden size, but this model has {q} and {}",
        model.hidden_size
    );
    ensure!(
        matches!(family, Family::Gemma2 | Family::Gemma3) || model.layers.iter().all(|l| l.window.is_none()),
        "llama.cpp's {name} has no sliding window, but this model uses one (use_sliding_window)"
    );
    ensure!(
        (family == Family::Gemma2) == model.attention_softcap.is_some(),
        "llama.cpp caps the attention scores of gemma2, of all of them and of no other model; this is {name} with a \
         cap of {:?}",
        model.attention_softcap
    );
    ensure!(
        family != Family::Gemma2 || model.final_softcap.is_some(),
        "llama.cpp's gemma2 caps the logits, but this model does not (final_logit_softcapping)"
    );
    for (rope, theta) in model.rope_theta.iter().enumerate() {
        match (scaling(model, rope), rope) {
            (Scaling::None, _) | (Scaling::Linear(_), 0) => {}
            (Scaling::PerFrequency(_), 0) if family == Family::Llama => {}
            _ => bail!(
                "llama.cpp's {name} cannot scale the rotary frequencies (θ = {theta}) as this model does"
            ),
        }
    }
    Ok(())
}

/// The hyper-parameters.
pub(crate) fn hyper_parameters(model: &ModelConfig) -> Metadata {
    let name = architecture(model);
    let mut metadata = Metadata::new();
    let mut add = |key: &str, value: Value| metadata.push((format!("{name}.{key}"), value));
    let size = |n: usize| Value::U32(n as u32);
    let number = |x: f64| Value::F32(x as f32);
    add("vocab_size", size(model.vocab_size));
    add("context_length", size(model.max_position_embeddings));
    add("embedding_length", size(model.hidden_size));
    add("block_count", size(model.num_layers()));
    match model.routing {
        Some(routing) => {
            // Of all experts of a token together, as readers take it that find no length of one expert's.
            add("feed_forward_length", size(routing.per_token * model.intermediate_size));
            add("expert_feed_forward_length", size(model.intermediate_size));
            add("expert_count", size(routing.experts));
            add("expert_used_count", size(routing.per_token));
        }
        None => add("feed_forward_length", size(model.intermediate_size)),
    }
    add("attention.head_count", size(model.num_attention_heads));
    add("attention.head_count_kv", size(model.num_key_value_heads));
    add("attention.key_length", size(model.head_dim));
    add("attention.value_length", size(model.head_dim));
    add("attention.layer_norm_rms_epsilon", number(model.rms_norm_eps));
    add("rope.dimension_count", size(model.head_dim));
    add("rope.freq_base", number(model.rope_theta[0]));
    if let Some(&theta) = model.rope_theta.get(1) {
        add("rope.freq_base_swa", number(theta));
    }
    if let Scaling::Linear(factor) = scaling(model, 0) {
        add("rope.scaling.type", Value::String("linear".into()));
        add("rope.scaling.factor", number(factor));
    }
    if let Some(cap) = model.attention_softcap {
        add("attn_logit_softcapping", number(cap));
    }
    if let Some(cap) = model.final_softcap {
        add("final_logit_softcapping", number(cap));
    }
    if let Some(window) = model.layers.iter().find_map(|layer| layer.window) {
        add("attention.sliding_window", size(window));
        let sliding: Vec<bool> = model.layers.iter().map(|layer| layer.window.is_some()).collect();
        if sliding != usual_pattern(model) {
            let layers = sliding.into_iter().map(Value::Bool).collect();
            add("attention.sliding_window_pattern", Value::Array(layers));
        }
    }
    metadata
}

/// The layers that llama.cpp lets slide where the file does not say.
fn usual_pattern(model: &ModelConfig) -> Vec<bool> {
    sliding_pattern(model.family, model.num_layers())
}

/// The layers of a family that slide where a file does not say; none but Gemma's do.
pub(crate) fn sliding_pattern(family: Family, layers: usize) -> Vec<bool> {
    let period = if family == Family::Gemma2 { 2 } else { 6 };
    (0..layers).map(|i| i % period < period - 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn heads_are_permuted_to_neighbouring_pairs() {
        // Two heads of size 4: halves (0 1 | 2 3) become pairs (0 2) (1 3).
        let rows =
            Tensor::arange(0f32, 8.0, &Device::Cpu).expect("a tensor").reshape((8, 1)).expect("a column");
        let permuted = permute_heads(&rows, 2).expect("it works").flatten_all().expect("flat");
        assert_eq!(permuted.to_vec1::<f32>().expect("values"), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        let back =
            Change::PermuteHeads(2).undo(&permuted.reshape((8, 1)).expect("a column")).expect("it works");
        let back = back.flatten_all().expect("flat").to_vec1::<f32>().expect("values");
        assert_eq!(back, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    }
}
