//! Shapes of well-known models by name, for benchmarks and plans that need no weights.

use anyhow::Result;
use serde_json::{Value, json};

use super::config::ModelConfig;
use crate::error::usage;

/// One model's shape.
struct Shape {
    name: &'static str,
    architecture: &'static str,
    layers: usize,
    hidden: usize,
    intermediate: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocabulary: usize,
    tied: bool,
}

const fn shape(
    name: &'static str,
    architecture: &'static str,
    [layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary]: [usize; 7],
    tied: bool,
) -> Shape {
    Shape { name, architecture, layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary, tied }
}

const LLAMA: &str = "LlamaForCausalLM";
const QWEN2: &str = "Qwen2ForCausalLM";
const QWEN3: &str = "Qwen3ForCausalLM";
const GEMMA2: &str = "Gemma2ForCausalLM";
const GEMMA3: &str = "Gemma3ForCausalLM";

/// As the models' own `config.json` has them.
const SHAPES: [Shape; 18] = [
    shape("small", LLAMA, [8, 512, 1536, 8, 4, 64, 32_000], true),
    shape("smollm2-135m", LLAMA, [30, 576, 1536, 9, 3, 64, 49_152], true),
    shape("llama-3.2-1b", LLAMA, [16, 2048, 8192, 32, 8, 64, 128_256], true),
    shape("llama-3.2-3b", LLAMA, [28, 3072, 8192, 24, 8, 128, 128_256], true),
    shape("llama-3.1-8b", LLAMA, [32, 4096, 14_336, 32, 8, 128, 128_256], false),
    shape("qwen2.5-0.5b", QWEN2, [24, 896, 4864, 14, 2, 64, 151_936], true),
    shape("qwen2.5-1.5b", QWEN2, [28, 1536, 8960, 12, 2, 128, 151_936], true),
    shape("qwen2.5-3b", QWEN2, [36, 2048, 11_008, 16, 2, 128, 151_936], true),
    shape("qwen2.5-7b", QWEN2, [28, 3584, 18_944, 28, 4, 128, 152_064], false),
    shape("qwen2.5-14b", QWEN2, [48, 5120, 13_824, 40, 8, 128, 152_064], false),
    shape("qwen3-0.6b", QWEN3, [28, 1024, 3072, 16, 8, 128, 151_936], true),
    shape("qwen3-1.7b", QWEN3, [28, 2048, 6144, 16, 8, 128, 151_936], true),
    shape("qwen3-4b", QWEN3, [36, 2560, 9728, 32, 8, 128, 151_936], true),
    shape("qwen3-8b", QWEN3, [36, 4096, 12_288, 32, 8, 128, 151_936], false),
    shape("qwen3-14b", QWEN3, [40, 5120, 17_408, 40, 8, 128, 151_936], false),
    shape("gemma-2-2b", GEMMA2, [26, 2304, 9216, 8, 4, 256, 256_000], true),
    shape("gemma-2-9b", GEMMA2, [42, 3584, 14_336, 16, 8, 256, 256_000], true),
    shape("gemma-3-1b", GEMMA3, [26, 1152, 6912, 4, 1, 256, 262_144], true),
];

/// The names that [`config`] knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|shape| shape.name)
}

/// The config of the model of that name.
///
/// # Errors
/// For an unknown name.
pub fn config(name: &str) -> Result<ModelConfig> {
    let Some(shape) = SHAPES.iter().find(|shape| shape.name == name) else {
        let known: Vec<&str> = names().collect();
        return Err(usage(format!("unknown shape {name:?}; there are {}", known.join(", "))));
    };
    ModelConfig::parse(&shape.config_json())
}

impl Shape {
    fn config_json(&self) -> Value {
        let mut json = json!({
            "architectures": [self.architecture],
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": 32_768,
            "rms_norm_eps": 1e-6,
        });
        let more = match self.architecture {
            QWEN2 => json!({"model_type": "qwen2", "hidden_act": "silu", "rope_theta": 1e6}),
            QWEN3 => json!({"model_type": "qwen3", "hidden_act": "silu", "rope_theta": 1e6}),
            GEMMA2 => json!({
                "model_type": "gemma2", "hidden_activation": "gelu_pytorch_tanh", "rope_theta": 1e4,
                "sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
                "query_pre_attn_scalar": self.head_dim,
            }),
            GEMMA3 => json!({
                "model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh", "rope_theta": 1e6,
                "rope_local_base_freq": 1e4, "sliding_window": 512, "sliding_window_pattern": 6,
                "query_pre_attn_scalar": self.head_dim,
            }),
            _ => json!({"model_type": "llama", "hidden_act": "silu", "rope_theta": 5e5}),
        };
        if let (Value::Object(json), Value::Object(more)) = (&mut json, more) {
            json.extend(more);
        }
        json
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    /// Parameter counts as the model cards give them.
    #[test]
    fn shapes_have_the_published_sizes() {
        for (name, millions) in [
            ("smollm2-135m", 134.5),
            ("llama-3.2-1b", 1235.8),
            ("llama-3.2-3b", 3212.7),
            ("llama-3.1-8b", 8030.3),
            ("qwen2.5-0.5b", 494.0),
            ("qwen2.5-7b", 7615.6),
            ("qwen2.5-14b", 14_770.0),
            ("qwen3-0.6b", 596.0),
            ("qwen3-8b", 8190.7),
            ("gemma-2-2b", 2614.3),
            ("gemma-3-1b", 999.9),
        ] {
            let count = config(name).unwrap().parameter_count() as f64 / 1e6;
            assert!((count - millions).abs() < 0.001 * millions, "{name} has {count} M parameters");
        }
        for name in names() {
            config(name).unwrap();
        }
        assert!(config("gpt-2").unwrap_err().to_string().contains("small"));
    }
}
