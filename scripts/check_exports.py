#!/usr/bin/env python3
"""Exports tiny models of every family in every format and compares their logits, computed by the programs that the
formats are for, with those that PEFT computed in float64 (tests/data/reference, scripts/make_reference.py).

    python scripts/check_exports.py target/release/bayesteach [--family NAME]… [--work DIR]

One line is printed for each check, then a table; the exit code is 0 if all hold, 1 if one does not. A stage whose
package is not installed is reported as not run; numpy and safetensors are needed in any case.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unicodedata
import warnings
from functools import partial
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
from safetensors.numpy import load_file as load_arrays

try:
    import torch
    import transformers
    from peft import LoraConfig, PeftModel, get_peft_model
    from safetensors.torch import load_file, save_file
except ImportError:
    torch = None

from llama_cpp_logits import library

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "tests/data/reference"
TOKENIZERS = ROOT / "tests/data/tokenizers"
FAMILIES = ["llama", "llama3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gemma3", "qwen3_moe"]
# Logits have a standard deviation of about 1. Correct f32 implementations differ by less than 1e-4; llama.cpp looks
# Gemma's GELU up in a table of f16.
EXACT, GGML_GELU = 1e-4, 5e-3
FAILED, NOT_RUN, TABLE = [], set(), {}


def check(holds, text):
    print(("ok      " if holds else "FAILED  ") + text, flush=True)
    if not holds:
        FAILED.append(text)
    return holds


def not_run(stage, why):
    if stage not in NOT_RUN:
        print(f"not run {stage}: {why}", flush=True)
    NOT_RUN.add(stage)


def has(package):
    return importlib.util.find_spec(package) is not None


def compare(family, stage, got, want, tolerance):
    """Notes and checks the largest difference of a logit."""
    difference = max(float(np.abs(np.asarray(g, np.float64) - np.asarray(w, np.float64)).max())
                     if np.shape(g) == np.shape(w) else float("inf") for g, w in zip(got, want, strict=True))
    difference = difference if difference == difference else float("inf")
    TABLE.setdefault(family, {})[stage] = difference
    return check(difference <= tolerance, f"{family} {stage}: logits differ by up to {difference:.2g}; allowed {tolerance:g}")


class Case:
    """A base, an adapter, sequences, and the logits that base and adapter should give."""

    def __init__(self, name, base, adapter, work, binary):
        self.name, self.base, self.adapter, self.binary = name, base, adapter, binary
        self.work = work / name
        self.work.mkdir(parents=True)
        self.gemma = name.startswith("gemma")
        self.config = json.loads((base / "config.json").read_text(encoding="utf-8"))

    def read_reference(self):
        reference = load_arrays(self.base / "reference.safetensors")
        count = sum(key.startswith("adapter_logits_") for key in reference)
        self.sequences = [reference[f"input_ids_{i}"].tolist() for i in range(count)]
        self.want = [reference[f"adapter_logits_{i}"].astype(np.float64) for i in range(count)]
        self.want_base = [reference[f"logits_{i}"].astype(np.float64) for i in range(len(self.sequences))
                          if f"logits_{i}" in reference]
        return self

    def export(self, kind, *options, source=None):
        out = self.work / "-".join([kind, *(o.strip("-").lower() for o in options)]).replace(" ", "")
        if source is not None:
            out = out.with_name(out.name + "-base")
        model = [] if source is not None else ["--model", self.base]
        command = [self.binary, "export", source or self.adapter, *model, "--format", kind, "--without-tokenizer",
                   *options, "--out", out]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        if out.exists() and "exists already" in done.stderr:
            return out
        if done.returncode:
            raise RuntimeError(f"{kind} {' '.join(options)}: {done.stderr.strip().splitlines()[-1]}")
        return out

    def load(self, folder):
        cls = getattr(transformers, self.config["architectures"][0])
        model, info = cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                               output_loading_info=True)
        missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
        missing.discard("lm_head.weight" if model.config.get_text_config().tie_word_embeddings else "")
        check(not missing and not unexpected and not info["mismatched_keys"],
              f"{self.name} {Path(folder).name}: {cls.__name__} misses {len(missing)} tensors, does not know "
              f"{len(unexpected)}")
        return model.eval()

    def logits(self, model):
        with torch.no_grad():
            return [model(input_ids=torch.tensor([s])).logits[0].double().numpy() for s in self.sequences]


def check_peft(case):
    for dtype, tolerance in [("f32", EXACT), ("bf16", 0.05)]:
        folder = case.export("peft", "--dtype", dtype)
        model = case.load(case.base)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            model = PeftModel.from_pretrained(model, str(folder)).eval()
        said = [str(w.message) for w in seen if not issubclass(w.category, (FutureWarning, DeprecationWarning))]
        check(not said, f"{case.name} peft {dtype}: PEFT's warnings: {' | '.join(said)[:200] or 'none'}")
        compare(case.name, f"PEFT {dtype}", case.logits(model), case.want, tolerance)


def merged_by_torch(case):
    """The tensors that a merged snapshot should hold: f32 sums, in the dtype of the base."""
    config = json.loads((case.adapter / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    tensors = {}
    for file in sorted(case.base.glob("model*.safetensors")):
        tensors |= load_file(file)
    halves = load_file(case.adapter / "adapter_model.safetensors")
    touched = 0
    for name in [n for n in halves if n.endswith(".lora_A.weight")]:
        path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        path = path.replace("model.language_model.", "language_model.model.")
        a, b = halves[name].float(), halves[name.replace("lora_A", "lora_B")].float()
        weight = tensors[path + ".weight"]
        tensors[path + ".weight"] = (weight.float() + scale * (b @ a)).to(weight.dtype)
        touched += 1
    return tensors, touched


def check_merged(case):
    expected, touched = merged_by_torch(case)
    for options in [(), ("--max-shard-size", "20KB")]:
        folder = case.export("merged", *options)
        found = {}
        for file in sorted(folder.glob("*.safetensors")):
            found |= load_file(file)
        check(found.keys() == expected.keys() and all(found[n].dtype == expected[n].dtype for n in found),
              f"{case.name} {folder.name}: the base's {len(expected)} tensors and dtypes, "
              f"{len(list(folder.glob('*.safetensors')))} files")
        # Sums may round differently by one step of the dtype.
        step = {torch.float32: 2e-6, torch.bfloat16: 2 ** -7, torch.float16: 2 ** -9}
        worst = max(((found[n].float() - expected[n].float()).abs()
                     / (step[found[n].dtype] * expected[n].float().abs() + 1e-6)).max().item() for n in found)
        exact = sum(torch.equal(found[n], expected[n]) for n in found)
        check(worst <= 1, f"{case.name} {folder.name}: {touched} tensors merged, {exact} of {len(found)} bit for bit as torch")
        tolerance = {torch.float32: EXACT, torch.float16: 0.03, torch.bfloat16: 0.3}[load_dtype(case)]
        stage = "merged, sharded" if options else "merged"
        compare(case.name, stage, case.logits(case.load(folder)), case.want, tolerance)


def llama_cpp(model, ids, out, lora=None):
    command = [sys.executable, ROOT / "scripts/llama_cpp_logits.py", model, "--ids", ids, "--out", out]
    command += ["--lora", lora] if lora else []
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError("llama.cpp: " + " | ".join(done.stderr.strip().splitlines()[-3:]))
    with np.load(out) as arrays:
        return [arrays[name] for name in arrays.files]


def check_gguf(case):
    exact = GGML_GELU if case.gemma else EXACT
    ids = case.work / "ids.jsonl"
    ids.write_text("".join(json.dumps({"input_ids": s}) + "\n" for s in case.sequences))
    tolerances = {"f32": exact, "f16": 0.05, "bf16": 0.25, "q8_0": 0.5, "q4_k": 4.0}
    # Rows of 256 are needed for q4_k.
    wanted = [q for q in tolerances if q != "q4_k" or case.name == "wide"]
    for quantization in wanted:
        folder = case.export("gguf", "--quantization", quantization)
        if torch and has("gguf"):
            check_gguf_reader(case, folder / "model.gguf", quantization)
        else:
            not_run("gguf", "the packages gguf and torch are not both installed")
        if library() is None:
            not_run("llama.cpp", "neither xllamacpp nor llama-cpp-python is installed")
            continue
        got = llama_cpp(folder / "model.gguf", ids, case.work / "logits.npz")
        compare(case.name, f"llama.cpp {quantization}", got, case.want, tolerances[quantization])
    if library() is None:
        return
    try:
        folder = case.export("gguf-lora")
    except RuntimeError as error:
        check("query_pre_attn_scalar" in str(error), f"{case.name} gguf-lora is refused: {error}")
        return
    base = case.export("gguf", "--quantization", "f32", source=case.base) / "model.gguf"
    if case.want_base:
        got = llama_cpp(base, ids, case.work / "logits.npz")
        compare(case.name, "llama.cpp base", got[:len(case.want_base)], case.want_base, exact)
    got = llama_cpp(base, ids, case.work / "logits.npz", folder / "adapter.gguf")
    compare(case.name, "llama.cpp base + LoRA", got, case.want, exact)


def check_gguf_reader(case, path, quantization):
    """Dequantises by the package gguf and compares with what torch merges, for tensors that are stored as they are."""
    import gguf

    expected, _ = merged_by_torch(case)
    expected = {name.replace("language_model.", ""): t.float().numpy() for name, t in expected.items()}
    names = {"token_embd.weight": "model.embed_tokens.weight", "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
             "blk.1.attn_v.weight": "model.layers.1.self_attn.v_proj.weight"}
    if "num_experts" in case.config:
        del names["blk.0.ffn_down.weight"]
        names["blk.0.ffn_down_exps.weight"] = "experts"
        experts = [expected[f"model.layers.0.mlp.experts.{e}.down_proj.weight"] for e in range(case.config["num_experts"])]
        expected["experts"] = np.stack(experts)
    # Relative root mean square; torch's sums are rounded to the base's dtype, the file's are not.
    allowed = {"f32": 1e-6, "f16": 1e-3, "bf16": 3e-3, "q8_0": 0.02, "q4_k": 0.1}
    rounded = {torch.float32: 0, torch.float16: 1e-3, torch.bfloat16: 3e-3}[load_dtype(case)]
    worst, seen = 0.0, set()
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name in names:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(-1)
            want = expected[names[tensor.name]].reshape(-1)
            worst = max(worst, float(np.linalg.norm(values - want) / np.linalg.norm(want)))
            seen.add(tensor.name)
    allowance = max(allowed[quantization], rounded)
    check(seen == names.keys() and worst <= allowance,
          f"{case.name} gguf {quantization}: read by gguf {worst:.2g} (relative rms); allowed {allowance:g}")


def load_dtype(case):
    """What the base's tensors are stored as."""
    file = sorted(case.base.glob("model*.safetensors"))[0]
    return next(iter(load_file(file).values())).dtype


def check_mlx(case):
    if not (has("mlx") and has("mlx_lm")):
        return not_run("mlx-lm", "the packages mlx[cpu] and mlx-lm are not installed")
    import mlx.core as mx
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model

    mx.set_default_device(mx.cpu)
    folder = case.export("mlx")

    def logits(base, adapter=None):
        # A multimodal Gemma 3 needs the vocabulary's size in a place where only mlx-lm looks for it.
        config = json.loads((base / "config.json").read_text())
        if "text_config" in config and "vocab_size" not in config:
            copy = case.work / f"mlx-{base.name}"
            shutil.copytree(base, copy, dirs_exist_ok=True)
            config["vocab_size"] = config["text_config"]["vocab_size"]
            (copy / "config.json").write_text(json.dumps(config))
            base = copy
        model, _ = load_model(base, lazy=True)
        model.set_dtype(mx.float32)
        model = load_adapters(model, str(adapter)) if adapter else model
        model.eval()
        return [np.array(model(mx.array([s]))[0].astype(mx.float32)) for s in case.sequences]

    try:
        got, own = logits(case.base, folder), logits(case.base)
        moved = max(float(np.abs(g - o).max()) for g, o in zip(got, own))
        check(moved > 0.1, f"{case.name} mlx: the adapter moves logits by up to {moved:.2g}")
        # mlx-lm computes Gemma's norms and RoPE by fused functions of its own.
        tolerance = 5e-3 if case.gemma else 1e-3
        wrong = max(float(np.abs(o - w).max()) for o, w in zip(own, case.want_base))
        if wrong <= tolerance:
            compare(case.name, "mlx-lm", got, case.want, tolerance)
            return
        # Then the format is checked by mlx-lm itself: adapter on base against merged.
        print(f"        {case.name}: mlx-lm computes the base itself otherwise, by up to {wrong:.2g}", flush=True)
        compare(case.name, "mlx-lm (against merged)", got, logits(case.export("merged")), tolerance)
    except Exception as error:
        check(False, f"{case.name} mlx: {type(error).__name__}: {error}")


def wide_case(work, binary):
    """A Llama with rows of 256 for the k-quants, rank-stabilised, made here."""
    torch.manual_seed(0)
    base, adapter = work / "wide-base", work / "wide-adapter"
    config = transformers.LlamaConfig(vocab_size=320, hidden_size=256, intermediate_size=512, num_hidden_layers=2,
                                      num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
                                      tie_word_embeddings=False, initializer_range=0.08)
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(base)
    lora = LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    model.save_pretrained(adapter)
    case = Case("wide", base, adapter, work, binary)
    case.sequences = [torch.randint(0, 320, (n,)).tolist() for n in (5, 40)]
    case.want = case.logits(model.double())
    with torch.no_grad(), model.disable_adapter():
        case.want_base = case.logits(model)
    return case


def plain_scale_case(family, work, binary):
    """A reference whose attention is scaled by the size of the heads, as llama.cpp has it for adapters of this family."""
    base = work / f"{family}-plain-base"
    shutil.copytree(REFERENCE / family, base, ignore=shutil.ignore_patterns("adapter", "config.*.json"))
    config = json.loads((base / "config.json").read_text())
    text = config.get("text_config", config)
    text["query_pre_attn_scalar"] = text["head_dim"]
    (base / "config.json").write_text(json.dumps(config))
    case = Case(f"{family}-plain", base, REFERENCE / family / "adapter", work, binary).read_reference()
    model = PeftModel.from_pretrained(case.load(base), str(case.adapter)).eval().double()
    case.want = case.logits(model)
    with torch.no_grad(), model.disable_adapter():
        case.want_base = case.logits(model)
    return case


def check_tokenizers(work, binary):
    """Token ids of llama.cpp's tokenizer against those of transformers, on models with real chat templates."""
    if torch is None:
        return not_run("tokenizers", "the package torch is not installed")
    if library() is None:
        return not_run("llama.cpp", "neither xllamacpp nor llama-cpp-python is installed")
    families = {"gemma": "gemma", "llama2": "llama", "llama3": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
    for name, family in families.items():
        source, base = TOKENIZERS / name, work / f"tokenizer-{name}"
        base.mkdir()
        for file in source.iterdir():
            if file.name not in ("encodings.json", "expected.json"):
                shutil.copy(file, base)
        small = json.loads((REFERENCE / family / "config.json").read_text())
        tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
        size = max([*tokenizer["model"]["vocab"].values(), *(t["id"] for t in tokenizer["added_tokens"])]) + 5
        small["vocab_size"] = size
        (base / "config.json").write_text(json.dumps(small))
        tensors = {}
        for file in sorted((REFERENCE / family).glob("model*.safetensors")):
            tensors |= load_file(file)
        for key in ("model.embed_tokens.weight", "lm_head.weight"):
            if key in tensors:
                tensors[key] = torch.randn(size, tensors[key].shape[1], dtype=tensors[key].dtype)
        save_file(tensors, base / "model.safetensors", {"format": "pt"})
        out = work / f"tokenizer-{name}-gguf"
        command = [binary, "export", base, "--format", "gguf", "--quantization", "f32", "--out", out]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        if not check(done.returncode == 0, f"tokenizer {name}: exported"):
            print(done.stderr.strip()[-500:])
            continue
        entries = json.loads((source / "encodings.json").read_text(encoding="utf-8"))
        dialogues = json.loads((source / "expected.json").read_text(encoding="utf-8"))
        entries += [d for d in dialogues if d.get("ids")]
        # llama.cpp leaves it to its callers to compose characters, as the export's notes say.
        composes = (tokenizer["normalizer"] or {}).get("type") == "NFC"
        texts = [unicodedata.normalize("NFC", e["text"]) if composes else e["text"] for e in entries]
        (work / "texts.json").write_text(json.dumps(texts))
        command = [sys.executable, ROOT / "scripts/llama_cpp_logits.py", out / "model.gguf", "--texts",
                   work / "texts.json", "--out", work / "ids.json"]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        if not check(done.returncode == 0, f"tokenizer {name}: llama.cpp loads it"):
            print(done.stderr[-500:])
            continue
        got = json.loads((work / "ids.json").read_text())
        wrong = [(e["text"], e["ids"], g) for e, g in zip(entries, got) if e["ids"] != g]
        check(not wrong, f"tokenizer {name}: llama.cpp's ids of {len(entries) - len(wrong)} of {len(entries)} texts are "
                         f"transformers'")
        for text, want, found in wrong[:3]:
            print(f"        {text!r}: {want} in transformers, {found} in llama.cpp")


def print_table():
    stages = list(dict.fromkeys(stage for row in TABLE.values() for stage in row))
    print("\n| largest difference of a logit | " + " | ".join(TABLE) + " |\n|---|" + "---|" * len(TABLE))
    for stage in stages:
        cells = [f"{row[stage]:.1e}" if stage in row else "–" for row in TABLE.values()]
        print(f"| {stage} | " + " | ".join(cells) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary", type=Path)
    parser.add_argument("--family", action="append", help="only this one (several times: these)")
    parser.add_argument("--work", type=Path, help="an empty folder to keep what is made")
    args = parser.parse_args()
    stages, made = [check_gguf, check_mlx], {}
    if torch is None:
        not_run("PEFT, transformers", "the packages of scripts/requirements.txt are not installed")
    else:
        torch.set_num_threads(1)
        stages = [check_peft, check_merged, *stages]
        made = {"wide": wide_case}
        made |= {f"{family}-plain": partial(plain_scale_case, family) for family in ("gemma2", "gemma3_text", "gemma3")}
    unknown = set(args.family or []) - {*FAMILIES, *made}
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: there are {', '.join([*FAMILIES, *made])}")
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        binary = args.binary.resolve()
        cases = [Case(f, REFERENCE / f, REFERENCE / f / "adapter", work, binary).read_reference() for f in FAMILIES
                 if not args.family or f in args.family]
        cases += [make(work, binary) for name, make in made.items() if not args.family or name in args.family]
        for case in cases:
            for stage in stages:
                try:
                    stage(case)
                except Exception as error:                # the other stages still run
                    check(False, f"{case.name} {stage.__name__}: {type(error).__name__}: {error}"[:600])
        check_tokenizers(work, binary)
    print_table()
    print(f"\n{len(FAILED)} failed" + (f"; not run: {', '.join(sorted(NOT_RUN))}" if NOT_RUN else ""))


if __name__ == "__main__":
    if torch:
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
    main()
    sys.exit(1 if FAILED else 0)
