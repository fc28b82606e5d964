#!/usr/bin/env python3
"""Writes tests/data/reference: tiny random models of each family, PEFT adapters, and what they must compute.

    python scripts/make_reference.py [--out tests/data/reference] [NAME …]

Models and adapters are written first, then read back from disk by transformers and PEFT, and everything below is
computed with eager attention in float64 (norms, softmax and rotary angles too, see `Float64`; the rotary
frequencies stay rounded to float32), stored as float32.  The same is computed in plain float32, and the script fails
where the two differ by more than two correct float32 implementations may (TOLERANCE).  It also fails where a typical
mistake (SENSITIVITY) would not show.  A model that is made again loses its prompt/: make_prompt_reference.py makes it.

    <name>/config.json                 what the hub's checkpoints of the family look like, or transformers 5's style
    <name>/config.transformers5.json   the other style of the same (or config.hub.json); loads to the same logits
    <name>/*.safetensors               the weights, as stored on the hub
    <name>/adapter/                    saved by PEFT; lora_B is not zero
    <name>/ids.jsonl                   {"input_ids"} a line
    <name>/sequences.jsonl             {"format_version", "input_ids", "targets": [{position, token_ids, probs}]} a line
    <name>/reference.json              targets, losses, versions, precision seen
    <name>/reference.safetensors       input_ids_I, logits_I, adapter_logits_I, grad_vocabulary/T, grad_options/T,
                                       grad_base/P, trajectory_step1/T, trajectory_final/T
"""

import argparse
import copy
import json
import logging
import math
import os
import random
import shutil
import tempfile
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import peft
import safetensors
import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
warnings.filterwarnings("ignore", category=FutureWarning)       # between the libraries' own parts
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

SEED = 20240726
LENGTHS = (5, 13, 24)
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TOLERANCE = {"logits_max_abs": 1e-4, "gradient_relative_l2": 1e-4, "loss_abs": 1e-5}
OPTIMIZER = {"steps": 10, "lr": 1e-2, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01, "max_grad_norm": 1.0}

# --------------------------------------------------------------------------- the models

BASIC = {"vocab_size": 112, "max_position_embeddings": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
         "bos_token_id": 1, "eos_token_id": 2, "use_cache": True, "torch_dtype": "float32",
         "initializer_range": 0.02, "transformers_version": "4.44.0"}
LLAMA3_SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                  "original_max_position_embeddings": 128, "rope_type": "llama3"}

MODELS = {
    # Plain rotary embedding, a head of its own.
    "llama": {
        "config": {**BASIC, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 40,
                   "intermediate_size": 72, "num_hidden_layers": 2, "hidden_act": "silu", "rms_norm_eps": 1e-5,
                   "rope_theta": 10000.0, "rope_scaling": None, "attention_bias": False, "mlp_bias": False,
                   "pretraining_tp": 1, "attention_dropout": 0.0, "tie_word_embeddings": False},
        "sensitivity": {"rms_norm_eps 1e-6": {"rms_norm_eps": 1e-6}, "rope_theta 500000": {"rope_theta": 500000.0}},
        "base_gradients": True, "trajectory": True,
    },
    # Llama 3.1/3.2: scaled rotary embedding, tied head, bf16, two shards.
    "llama3": {
        "config": {**BASIC, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32,
                   "intermediate_size": 64, "num_hidden_layers": 3, "hidden_act": "silu", "rms_norm_eps": 1e-5,
                   "head_dim": 16, "max_position_embeddings": 1024, "rope_theta": 10000.0,
                   "rope_scaling": LLAMA3_SCALING, "attention_bias": False, "mlp_bias": False,
                   "tie_word_embeddings": True, "eos_token_id": [2, 3], "torch_dtype": "bfloat16"},
        "dtype": torch.bfloat16, "shards": 2,
        "sensitivity": {"no rope scaling": {"rope_scaling": None},
                        "linear rope scaling": {"rope_scaling": {"type": "linear", "factor": 8.0}}},
    },
    # Biases on q, k, v; a window that is not to be used; rank-stabilised LoRA.
    "qwen2": {
        "config": {**BASIC, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 32,
                   "intermediate_size": 64, "num_hidden_layers": 3, "hidden_act": "silu", "rms_norm_eps": 1e-6,
                   "rope_theta": 1000000.0, "sliding_window": 4, "max_window_layers": 1, "use_sliding_window": False,
                   "attention_dropout": 0.0, "tie_word_embeddings": False},
        "rslora": True,
        "sensitivity": {"sliding window used": {"use_sliding_window": True, "max_window_layers": 0}},
        "zeroed": "k_proj.bias",
    },
    # Norms of q and k, heads wider than hidden / heads, stored in f16; config as transformers 5 writes it.
    "qwen3": {
        "config": {**BASIC, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 40,
                   "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16, "hidden_act": "silu",
                   "rms_norm_eps": 1e-6, "rope_theta": 1000000, "rope_scaling": None, "sliding_window": None,
                   "max_window_layers": 2, "use_sliding_window": False, "attention_bias": False,
                   "attention_dropout": 0.0, "tie_word_embeddings": True, "torch_dtype": "float16"},
        "dtype": torch.float16, "style": "transformers5",
        "sensitivity": {"rope_theta 10000": {"rope_theta": 10000.0}},
        "zeroed": "q_norm.weight",
    },
    # hidden_act "gelu" means tanh.
    "gemma": {
        "config": {**BASIC, "architectures": ["GemmaForCausalLM"], "model_type": "gemma", "hidden_size": 32,
                   "intermediate_size": 80, "num_hidden_layers": 2, "num_key_value_heads": 1, "head_dim": 12,
                   "hidden_act": "gelu", "hidden_activation": None, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
                   "rope_scaling": None, "attention_bias": False, "attention_dropout": 0.0, "pad_token_id": 0,
                   "bos_token_id": 2, "eos_token_id": 1},
        "sensitivity": {"erf gelu": {"hidden_act": "gelu_python"}},
    },
    # Both softcaps, windows on even layers, query_pre_attn_scalar that is not head_dim.
    "gemma2": {
        "config": {**BASIC, "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "hidden_size": 32,
                   "intermediate_size": 64, "num_hidden_layers": 3, "head_dim": 12, "query_pre_attn_scalar": 7,
                   "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
                   "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": 7, "sliding_window_size": 7,
                   "cache_implementation": "hybrid", "attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.5,
                   "attention_bias": False, "attention_dropout": 0.0, "pad_token_id": 0,
                   "bos_token_id": 2, "eos_token_id": 1},
        "style": "transformers5", "base_gradients": True,
        "sensitivity": {"no attention softcap": {"attn_logit_softcapping": None},
                        "no final softcap": {"final_logit_softcapping": None},
                        "window 6": {"sliding_window": 6}, "window 8": {"sliding_window": 8},
                        "scale from head_dim": {"query_pre_attn_scalar": 12},
                        "windows on odd layers": {"layer_types": ["full_attention", "sliding_attention",
                                                                  "full_attention"]}},
    },
    # The 1B's layout: pattern, local and global rotary embeddings, the global one scaled.
    "gemma3_text": {
        "config": {**BASIC, "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_size": 32,
                   "intermediate_size": 64, "num_hidden_layers": 4, "head_dim": 16, "query_pre_attn_scalar": 9,
                   "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "rope_theta": 200000.0,
                   "rope_local_base_freq": 5000, "rope_scaling": {"factor": 4.0, "rope_type": "linear"},
                   "sliding_window": 6, "sliding_window_pattern": 3, "cache_implementation": "hybrid",
                   "attn_logit_softcapping": None, "final_logit_softcapping": None, "attention_bias": False,
                   "attention_dropout": 0.0, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": [1, 106]},
        "sensitivity": {"no rope scaling": {"rope_scaling": None}, "global theta 5000": {"rope_theta": 5000.0},
                        "local theta 200000": {"rope_local_base_freq": 200000.0},
                        "window 5": {"sliding_window": 5}, "window 7": {"sliding_window": 7},
                        "scale from head_dim": {"query_pre_attn_scalar": 16},
                        "pattern 4": {"sliding_window_pattern": 4}},
        "zeroed": "k_norm.weight",
    },
    # The 4B's and 12B's layout: a vision tower beside, names of the hub, defaults left out of text_config.
    "gemma3": {
        "config": {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
                   "boi_token_index": 107, "eoi_token_index": 108, "image_token_index": 109, "eos_token_id": [1, 106],
                   "initializer_range": 0.02, "mm_tokens_per_image": 4, "torch_dtype": "bfloat16",
                   "transformers_version": "4.50.0",
                   "text_config": {"hidden_size": 32, "intermediate_size": 64, "model_type": "gemma3_text",
                                   "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
                                   "num_hidden_layers": 7, "vocab_size": 112,
                                   "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 6},
                   "vision_config": {"hidden_size": 16, "image_size": 8, "intermediate_size": 24,
                                     "model_type": "siglip_vision_model", "num_attention_heads": 2,
                                     "num_hidden_layers": 1, "patch_size": 4, "vision_use_head": False}},
        "dtype": torch.bfloat16, "multimodal": True,
        "sensitivity": {"no rope scaling": {"text_config.rope_scaling": None},
                        "window 5": {"text_config.sliding_window": 5},
                        "query_pre_attn_scalar of head_dim": {"text_config.query_pre_attn_scalar": 16},
                        "pattern 5": {"text_config.sliding_window_pattern": 5}},
    },
    # A mixture of experts; the hub's files have each expert's matrices apart.
    "qwen3_moe": {
        "config": {**BASIC, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 32,
                   "intermediate_size": 64, "moe_intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 12,
                   "num_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": True, "decoder_sparse_step": 1,
                   "mlp_only_layers": [], "output_router_logits": False, "router_aux_loss_coef": 0.001,
                   "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "rope_scaling": None,
                   "sliding_window": None, "max_window_layers": 2, "use_sliding_window": False,
                   "attention_bias": False, "attention_dropout": 0.0, "tie_word_embeddings": False},
        "base_gradients": True,
        "sensitivity": {"weights not normalised": {"norm_topk_prob": False},
                        "2 experts a token": {"num_experts_per_tok": 2}},
    },
}

# --------------------------------------------------------------------------- float64 throughout


class Float64(TorchFunctionMode):
    """transformers computes norms, softmax and rotary angles in float32 whatever the model's type; not here."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.float:
            return args[0].double()
        if func in (torch.Tensor.to, F.softmax, torch.softmax, torch.Tensor.softmax):
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            if kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


class Plain(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


# --------------------------------------------------------------------------- writing models


def dump(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8", newline="\n")


def model_class(config):
    return getattr(transformers, config["architectures"][0])


def eager(config):
    """The plain loops, which alone compute in float64."""
    experts = {"experts_implementation": "eager"} if "num_experts" in config else {}
    return {"attn_implementation": "eager", **experts}


def build(config):
    cls = model_class(config)
    return cls._from_config(cls.config_class.from_dict(copy.deepcopy(config)), dtype=torch.float32,
                            **eager(config)).eval()


def randomise(model, seed, gemma):
    g = torch.Generator().manual_seed(seed)
    text = getattr(model.config, "text_config", model.config)
    tied = text.tie_word_embeddings
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            if "embed_tokens" in name:
                # Small where the model allows it, so that the norms' epsilon can be seen.
                noise *= 1.2 / math.sqrt(p.shape[1]) if tied else 0.03
            elif "lm_head" in name:
                noise *= 1.2 / math.sqrt(p.shape[1])
            elif "layer_norm" in name or "layernorm" in name and "vision" in name:
                noise = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
            elif "norm" in name:
                noise = 0.3 * noise + (0.0 if gemma else 1.0)
            elif name.endswith("bias"):
                noise *= 0.5
            elif p.dim() == 2:
                noise *= (1.6 if "q_proj" in name or "k_proj" in name else 1.0) / math.sqrt(p.shape[1])
            else:
                noise *= 0.1
            p.copy_(noise)


def on_disk(name, tensor, multimodal):
    """A parameter as the hub's files have it: experts apart, which transformers 5 holds as one."""
    for fused, parts in (("gate_up_proj", ("gate_proj", "up_proj")), ("down_proj", ("down_proj",))):
        if name.endswith("mlp.experts." + fused):
            for e, of_expert in enumerate(tensor):
                for part, matrix in zip(parts, of_expert.chunk(len(parts))):
                    yield name.removesuffix(fused) + f"{e}.{part}.weight", matrix
            return
    yield disk_name(name, multimodal), tensor


def disk_name(name, multimodal):
    """Name of a parameter in the hub's files; only the multimodal checkpoints differ from the modules' paths."""
    if not multimodal:
        return name
    for module, disk in (("model.language_model.", "language_model.model."),
                         ("model.multi_modal_projector.", "multi_modal_projector.")):
        if name.startswith(module):
            return disk + name[len(module):]
    rest = name[len("model.vision_tower."):]
    assert name.startswith("model.vision_tower."), name
    return "vision_tower." + (rest if rest.startswith("vision_model.") else "vision_model." + rest)


def write_model(folder, spec, seed):
    config, dtype = spec["config"], spec.get("dtype", torch.float32)
    dump(folder / "config.json", config)
    model = build(config)
    randomise(model, seed, "gemma" in config["model_type"])
    state = {name: t.to(dtype).contiguous().clone() for n, p in model.named_parameters()
             for name, t in on_disk(n, p.detach(), spec.get("multimodal"))}
    if spec.get("shards"):
        parts, sizes = [{}, {}], [0, 0]
        for i, (n, t) in enumerate(state.items()):
            k = 0 if i < len(state) // 2 else 1
            parts[k][n] = t
            sizes[k] += t.numel() * t.element_size()
        files = [f"model-{k + 1:05}-of-00002.safetensors" for k in range(2)]
        for f, part in zip(files, parts):
            save_file(part, folder / f, metadata={"format": "pt"})
        dump(folder / "model.safetensors.index.json",
             {"metadata": {"total_size": sum(sizes)},
              "weight_map": {n: f for f, part in zip(files, parts) for n in sorted(part)}})
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def load_base(folder, config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, info = model_class(config).from_pretrained(folder, dtype=torch.float32,
                                                          output_loading_info=True, **eager(config))
    wrong = {k: v for k, v in info.items() if v}
    tied = {"lm_head.weight"}
    assert not wrong or set(wrong) == {"missing_keys"} and set(wrong["missing_keys"]) <= tied, wrong
    return model.eval()


def write_other_style(folder, spec):
    """config.json becomes the style asked for; the other one stands beside it, and loads to the same model."""
    with tempfile.TemporaryDirectory() as tmp:
        model = load_base(folder, spec["config"])
        model.config.dtype = spec.get("dtype", torch.float32)
        for part in ("text_config", "vision_config"):
            if hasattr(model.config, part):
                getattr(model.config, part).dtype = model.config.dtype
        model.config.save_pretrained(tmp)
        new = json.loads((Path(tmp) / "config.json").read_text())
    hub = json.loads((folder / "config.json").read_text())
    new["architectures"] = hub["architectures"]
    first, second = (new, hub) if spec.get("style") == "transformers5" else (hub, new)
    dump(folder / "config.json", first)
    dump(folder / ("config.hub.json" if first is new else "config.transformers5.json"), second)
    ids = torch.arange(20)[None] + 5
    want = model(input_ids=ids).logits
    for config in (first, second):
        with tempfile.TemporaryDirectory() as tmp:
            for f in folder.glob("model*"):
                shutil.copy(f, tmp)
            dump(Path(tmp) / "config.json", config)
            got = load_base(Path(tmp), spec["config"])(input_ids=ids).logits
        assert torch.equal(want, got), folder.name
    return want.std().item()


def write_adapter(folder, spec, seed):
    model = load_base(folder, spec["config"])
    names = "|".join(LINEARS)
    linears = LINEARS[:4] if "num_experts" in spec["config"] else LINEARS    # experts are no linears there
    target = rf".*language_model.*\.({names})" if spec.get("multimodal") else list(linears)
    torch.manual_seed(seed)
    lora = get_peft_model(model, LoraConfig(r=3, lora_alpha=5, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM",
                                            target_modules=target, use_rslora=spec.get("rslora", False)))
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in lora.named_parameters():
            if p.requires_grad:
                assert "lora_" in name
                p.copy_(torch.randn(p.shape, generator=g) * (0.12 if "lora_B" in name else 1 / math.sqrt(p.shape[1])))
    lora.peft_config["default"].base_model_name_or_path = f"tiny-random/{folder.name}"
    out = folder / "adapter"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                   # there is no such base to look up
        lora.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    config = json.loads((out / "adapter_config.json").read_text())
    if isinstance(config["target_modules"], list):        # PEFT writes a set, in any order
        config["target_modules"].sort()
    dump(out / "adapter_config.json", config)


def load_adapted(folder, spec):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)       # keys that do not fit are only a warning in PEFT
        model = PeftModel.from_pretrained(load_base(folder, spec["config"]), str(folder / "adapter"),
                                          is_trainable=True)
    return model.eval()


# --------------------------------------------------------------------------- sequences, losses


def distribution(rng, n, zero):
    """n probabilities of four decimals that sum to one, one of them 0 if asked for."""
    raw = [rng.gammavariate(0.8, 1.0) + 0.01 for _ in range(n)]
    if zero:
        raw[rng.randrange(n)] = 0.0
    total = sum(raw)
    units = [round(10000 * r / total) for r in raw]
    units[max(range(n), key=units.__getitem__)] += 10000 - sum(units)
    return [u / 10000 for u in units]


def sequences(seed, vocab):
    rng = random.Random(seed)
    reserved = {0, 107, 108, 109}
    tokens = [t for t in range(vocab) if t not in reserved]
    out, k = [], 0
    for length in LENGTHS:
        ids = [rng.choice(tokens) for _ in range(length)]
        positions = sorted(rng.sample(range(1, length - 1), {5: 1, 13: 2, 24: 4}[length])) + [length - 1]
        targets = []
        for position in positions:
            n = 2 + k % 4
            options = rng.sample(tokens, n)
            said = rng.randrange(n)
            if position + 1 < length:
                options = [t for t in options if t != ids[position + 1]]
                while len(options) < n - 1:
                    options.append(next(t for t in tokens if t not in options and t != ids[position + 1]))
                options = options[:n - 1]
                options.insert(said, ids[position + 1])
            targets.append({"position": position, "token_ids": options, "probs": distribution(rng, n, k % 3 == 1),
                            "said": said, "weight": round(0.25 * (1 + k % 5), 2)})
            k += 1
        out.append({"input_ids": ids, "targets": targets})
    return out


def answer_losses(logits, target):
    """Of one answer, each unweighted: forward KL and cross-entropy to `said`, over the vocabulary and the options."""
    row = logits[target["position"]]
    p = torch.tensor(target["probs"], dtype=row.dtype)
    index = torch.tensor(target["token_ids"])
    full = torch.log_softmax(row, -1)[index]
    among = torch.log_softmax(row[index], -1)
    negentropy = torch.special.xlogy(p, p).sum()
    return {"kl_vocabulary": negentropy - (p * full).sum(), "kl_options": negentropy - (p * among).sum(),
            "ce_vocabulary": -full[target["said"]], "ce_options": -among[target["said"]]}


def losses(all_logits, seqs):
    """Sums over all answers of the batch, with weights of one, and with the targets' weights (`weighted_…`)."""
    kinds = ["kl_vocabulary", "kl_options", "ce_vocabulary", "ce_options"]
    out = {k: {"sum": 0.0, "weight": 0.0} for k in kinds + ["weighted_" + k for k in kinds] + ["language_modelling"]}
    for logits, seq in zip(all_logits, seqs):
        for target in seq["targets"]:
            for kind, value in answer_losses(logits, target).items():
                for name, w in ((kind, 1.0), ("weighted_" + kind, target["weight"])):
                    out[name]["sum"] = out[name]["sum"] + w * value
                    out[name]["weight"] += w
        nxt = torch.tensor(seq["input_ids"][1:])
        lm = out["language_modelling"]
        lm["sum"] = lm["sum"] + F.cross_entropy(logits[:-1], nxt, reduction="sum")
        lm["weight"] += len(nxt)
    for v in out.values():
        v["mean"] = v["sum"] / v["weight"]
    return out


def numbers(table):
    return {k: {n: float(torch.as_tensor(x).detach()) for n, x in v.items()} for k, v in table.items()}


def forward(model, seqs):
    return [model(input_ids=torch.tensor([s["input_ids"]])).logits[0] for s in seqs]


def saved_name(name):
    return name.replace(".default.", ".")


def gradients(model, loss, rename):
    named = [(rename(n), p) for n, p in model.named_parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, [p for _, p in named], retain_graph=True)
    return {n: g.detach() for (n, _), g in zip(named, grads)}


def finite_difference(model, seqs, grads):
    """Relative error of the analytic gradient along a random direction; float32 anywhere inside would show."""
    named = [(saved_name(n), p) for n, p in model.named_parameters() if p.requires_grad]
    g = torch.Generator().manual_seed(SEED)
    direction = [torch.randn(p.shape, generator=g, dtype=torch.float64) for _, p in named]
    analytic = sum((grads["grad_vocabulary/" + n] * d).sum().item() for (n, _), d in zip(named, direction))
    before = [p.detach().clone() for _, p in named]
    h, values = 1e-6, []
    with torch.no_grad():
        for shift in (h, -h):
            for (_, p), b, d in zip(named, before, direction):
                p.copy_(b + shift * d)
            values.append(losses(forward(model, seqs), seqs)["kl_vocabulary"]["mean"].item())
        for (_, p), b in zip(named, before):
            p.copy_(b)
    return abs((values[0] - values[1]) / (2 * h) - analytic) / abs(analytic)


def trajectory(model, seqs):
    o = OPTIMIZER
    named = [(saved_name(n), p) for n, p in model.named_parameters() if p.requires_grad]
    params = [p for _, p in named]
    optimizer = torch.optim.AdamW(params, lr=o["lr"], betas=tuple(o["betas"]), eps=o["eps"],
                                  weight_decay=o["weight_decay"], foreach=False)
    out = {"losses": [], "grad_norms": [], "states": {}}
    for step in range(1, o["steps"] + 1):
        optimizer.zero_grad()
        loss = losses(forward(model, seqs), seqs)["kl_vocabulary"]["mean"]
        loss.backward()
        out["grad_norms"].append(torch.nn.utils.clip_grad_norm_(params, o["max_grad_norm"], foreach=False).item())
        out["losses"].append(loss.item())
        optimizer.step()
        if step in (1, o["steps"]):
            out["states"][step] = {n: p.detach().clone() for n, p in named}
    return out


def compute(folder, spec, seqs, double):
    cast = (lambda m: m.double()) if double else (lambda m: m)
    mode = Float64 if double else Plain
    base = cast(load_base(folder, spec["config"]))        # outside of the mode: rotary frequencies stay float32's
    model = cast(load_adapted(folder, spec))
    tensors, record = {}, {"losses": {}}
    with mode():
        logits = forward(base, seqs)
        table = losses(logits, seqs)
        record["losses"]["base"] = numbers(table)
        if spec.get("base_gradients"):
            grads = gradients(base, table["kl_vocabulary"]["mean"], lambda n: n)
            tensors.update({f"grad_base/{part}": t.contiguous() for n, g in grads.items()
                            for part, t in on_disk(n, g, False)})
        tensors.update({f"logits_{i}": t.detach() for i, t in enumerate(logits)})

        logits = forward(model, seqs)
        table = losses(logits, seqs)
        record["losses"]["adapter"] = numbers(table)
        tensors.update({f"adapter_logits_{i}": t.detach() for i, t in enumerate(logits)})
        for kind in ("vocabulary", "options"):
            grads = gradients(model, table[f"kl_{kind}"]["mean"], saved_name)
            tensors.update({f"grad_{kind}/{n}": g for n, g in grads.items()})
        if double:
            error = finite_difference(model, seqs, tensors)
            assert error < 1e-7, error
            record["finite_difference_relative"] = float(f"{error:.1e}")
        if spec.get("trajectory"):
            run = trajectory(model, seqs)
            record["trajectory"] = {**OPTIMIZER, "losses": run["losses"], "grad_norms": run["grad_norms"]}
            for key, step in (("trajectory_step1", 1), ("trajectory_final", OPTIMIZER["steps"])):
                tensors.update({f"{key}/{n}": t for n, t in run["states"][step].items()})
    kinds = {t.dtype for t in tensors.values()}
    assert kinds == {torch.float64 if double else torch.float32}, kinds
    return tensors, record


# --------------------------------------------------------------------------- checks


def relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def precision(single, double):
    (t1, r1), (t2, r2) = single, double
    out = {"logits_max_abs": 0.0, "gradient_relative_l2": 0.0, "loss_abs": 0.0}
    for name, want in t2.items():
        got = t1[name]
        if "logits_" in name:
            out["logits_max_abs"] = max(out["logits_max_abs"], (got.double() - want).abs().max().item())
        elif name.startswith("grad_"):
            assert want.norm() > 0, name
            out["gradient_relative_l2"] = max(out["gradient_relative_l2"], relative(got, want))
        else:
            key = name.split("/")[0] + "_relative_l2"
            out[key] = max(out.get(key, 0.0), relative(got, want))
    for which, table in r2["losses"].items():
        for kind, value in table.items():
            out["loss_abs"] = max(out["loss_abs"], abs(value["mean"] - r1["losses"][which][kind]["mean"]))
    if "trajectory" in r2:
        for key in ("losses", "grad_norms"):
            out["trajectory_" + key] = max(abs(a - b) for a, b in zip(r1["trajectory"][key], r2["trajectory"][key]))
    for key, limit in TOLERANCE.items():
        assert out[key] <= limit, (key, out)
    return {k: float(f"{v:.2e}") for k, v in out.items()}


def sensitivity(folder, spec, seqs, want):
    """By how much the base's logits move under typical mistakes."""
    base = load_base(folder, spec["config"])
    state, out = base.state_dict(), {}

    def measure(label, config, state):
        model = build(config)
        model.load_state_dict(state)
        with torch.no_grad():
            moved = max((a.double() - b).abs().max().item() for a, b in zip(forward(model, seqs), want))
        out[label] = float(f"{moved:.2e}")
        assert moved > 1e-3, (label, moved)

    for label, changes in spec["sensitivity"].items():
        config = copy.deepcopy(spec["config"])
        for key, value in changes.items():
            *path, last = key.split(".")
            part = config
            for step in path:
                part = part[step]
            part[last] = value
        if label == "erf gelu":                            # the config cannot say it
            model = build(config)
            measure_act = torch.nn.GELU()
            model.load_state_dict(state)
            for layer in model.model.layers:
                layer.mlp.act_fn = measure_act
            with torch.no_grad():
                moved = max((a.double() - b).abs().max().item() for a, b in zip(forward(model, seqs), want))
            out[label] = float(f"{moved:.2e}")
            assert moved > 5e-4, (label, moved)
        else:
            measure(label, config, state)
    if "zeroed" in spec:
        changed = {n: torch.zeros_like(t) if n.endswith(spec["zeroed"]) else t for n, t in state.items()}
        measure(spec["zeroed"] + " zeroed", spec["config"], changed)
    return out


def make(name, out):
    spec = MODELS[name]
    seed = SEED + list(MODELS).index(name)
    folder = out / name
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    write_model(folder, spec, seed)
    write_other_style(folder, spec)
    write_adapter(folder, spec, seed + 1000)

    vocab = spec["config"].get("vocab_size") or spec["config"]["text_config"]["vocab_size"]
    seqs = sequences(seed + 2000, vocab)
    double, single = compute(folder, spec, seqs, True), compute(folder, spec, seqs, False)
    tensors, record = double
    seen = precision(single, double)
    spread = torch.cat([tensors[f"logits_{i}"].flatten() for i in range(len(seqs))]).std().item()
    moved = max((tensors[f"logits_{i}"] - tensors[f"adapter_logits_{i}"]).abs().max().item() for i in range(len(seqs)))
    assert 0.6 < spread < 2.0 and moved > 0.1, (spread, moved)
    if spec["config"]["model_type"] == "gemma":
        act = load_base(folder, spec["config"]).model.layers[0].mlp.act_fn
        x = torch.linspace(-3, 3, 31)
        assert torch.allclose(act(x), F.gelu(x, approximate="tanh"), atol=1e-6)
    adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert {f"grad_options/{n}" for n in adapter} == {n for n in tensors if n.startswith("grad_options/")}
    want = [tensors[f"logits_{i}"] for i in range(len(seqs))]
    ids = {f"input_ids_{i}": torch.tensor(s["input_ids"]) for i, s in enumerate(seqs)}
    stored = {**ids, **{n: t.to(torch.float32).contiguous() for n, t in tensors.items()}}
    save_file(stored, folder / "reference.safetensors", metadata={"format": "pt"})
    with open(folder / "ids.jsonl", "w", encoding="utf-8", newline="\n") as f:
        for s in seqs:
            f.write(json.dumps({"input_ids": s["input_ids"]}) + "\n")
    with open(folder / "sequences.jsonl", "w", encoding="utf-8", newline="\n") as f:
        for s in seqs:
            targets = [{k: t[k] for k in ("position", "token_ids", "probs")} for t in s["targets"]]
            f.write(json.dumps({"format_version": 1, "input_ids": s["input_ids"], "targets": targets}) + "\n")
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    record = {
        "name": name, "architecture": spec["config"]["architectures"][0],
        "stored_dtype": str(spec.get("dtype", torch.float32)).removeprefix("torch."),
        "adapter": {"r": config["r"], "lora_alpha": config["lora_alpha"], "use_rslora": config["use_rslora"],
                    "tensors": len(adapter)},
        "sequences": seqs, **record,
        "logits_std": round(spread, 3), "adapter_moves_logits_by": round(moved, 3),
        "f32_against_f64": seen, "tolerance": TOLERANCE, "sensitivity": sensitivity(folder, spec, seqs, want),
        "made_by": {"command": f"python scripts/make_reference.py {name}", "seed": seed,
                    "torch": torch.__version__, "transformers": transformers.__version__,
                    "peft": peft.__version__, "safetensors": safetensors.__version__,
                    "attention": "eager", "computed_in": "float64"},
    }
    dump(folder / "reference.json", record)
    for f in folder.rglob("*.safetensors"):               # safetensors makes them private
        f.chmod(0o644)
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    print(f"{name}: {size} bytes, logits std {spread:.2f}, adapter {moved:.2f}, f32 against f64 {seen}, "
          f"sensitivity {record['sensitivity']}")
    if "trajectory" in record:
        print("  losses", [round(x, 4) for x in record["trajectory"]["losses"]],
              "norms", [round(x, 3) for x in record["trajectory"]["grad_norms"]])


def main(make=make, doc=__doc__):
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--out", type=Path, default=root / "tests" / "data" / "reference")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MODELS))
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    for name in args.names or MODELS:
        make(name, args.out)


if __name__ == "__main__":
    main()
