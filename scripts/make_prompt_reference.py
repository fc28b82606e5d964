#!/usr/bin/env python3
"""Writes tests/data/reference/NAME/prompt: a soft prompt saved by PEFT for each tiny model, and what it must compute.

    python scripts/make_prompt_reference.py [--out tests/data/reference] [NAME …]

The models are those of make_reference.py, which stay as they are; the sequences and the precision are the same too.

    <name>/prompt/adapter_config.json, adapter_model.safetensors    saved by PEFT (PROMPT_TUNING)
    <name>/prompt/reference.json                                    losses, versions, precision seen
    <name>/prompt/reference.safetensors                             logits_I, grad_vocabulary, grad_options
"""

import json
import warnings

import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from make_reference import MODELS, SEED, TOLERANCE, Float64, Plain, dump, gradients, load_base, losses, main, numbers
from make_reference import peft, transformers

LENGTH = 4


def write_prompt(folder, spec, seed):
    model = load_base(folder, spec["config"])
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=LENGTH)
    prompt = get_peft_model(model, config)
    g = torch.Generator().manual_seed(seed)
    width = model.get_input_embeddings()(torch.tensor([5])).std().item()
    with torch.no_grad():
        for _, p in prompt.named_parameters():
            if p.requires_grad:
                p.copy_(torch.randn(p.shape, generator=g) * width)
    prompt.peft_config["default"].base_model_name_or_path = f"tiny-random/{folder.name}"
    out = folder / "prompt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                   # there is no such base to look up
        prompt.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    dump(out / "adapter_config.json", json.loads((out / "adapter_config.json").read_text()))
    return out


def compute(folder, spec, seqs, double):
    base = load_base(folder, spec["config"])
    model = PeftModel.from_pretrained(base, str(folder / "prompt")).eval()
    model = model.double() if double else model
    for name, p in model.named_parameters():              # PEFT gives out what it has read for inference only
        p.requires_grad_("prompt_encoder" in name)
    with (Float64 if double else Plain)():
        logits = [model(input_ids=torch.tensor([s["input_ids"]])).logits[0, LENGTH:] for s in seqs]
        table = losses(logits, seqs)
        tensors = {f"logits_{i}": t.detach() for i, t in enumerate(logits)}
        for kind in ("vocabulary", "options"):
            (grad,) = gradients(model, table[f"kl_{kind}"]["mean"], lambda n: n).values()
            tensors[f"grad_{kind}"] = grad
    return tensors, numbers(table)


def make(name, out):
    spec, folder = MODELS[name], out / name
    record = json.loads((folder / "reference.json").read_text())
    place = write_prompt(folder, spec, SEED + 3000 + list(MODELS).index(name))
    seqs = record["sequences"]
    (tensors, table), (single, _) = compute(folder, spec, seqs, True), compute(folder, spec, seqs, False)
    seen = max((tensors[k] - single[k].double()).norm().item() / tensors[k].norm().item() for k in tensors)
    assert seen < TOLERANCE["gradient_relative_l2"], seen
    plain = load_file(folder / "reference.safetensors")
    moved = max((plain[f"logits_{i}"] - tensors[f"logits_{i}"]).abs().max().item() for i in range(len(seqs)))
    assert moved > 0.1, moved
    save_file({n: t.to(torch.float32).contiguous() for n, t in tensors.items()}, place / "reference.safetensors",
              metadata={"format": "pt"})
    dump(place / "reference.json", {
        "losses": table, "moves_logits_by": round(moved, 3), "f32_against_f64": float(f"{seen:.1e}"),
        "made_by": {"command": f"python scripts/make_prompt_reference.py {name}", "torch": torch.__version__,
                    "transformers": transformers.__version__, "peft": peft.__version__}})
    for f in place.rglob("*.safetensors"):                # safetensors makes them private
        f.chmod(0o644)
    print(f"{name}: moved by {moved:.2f}, f32 against f64 {seen:.1e}")


if __name__ == "__main__":
    main(make, __doc__)
