#!/usr/bin/env python3
"""Loads an adapter with PEFT and compares its logits with those that `bayesteach logits` wrote.

    bayesteach logits --model BASE --adapter ADAPTER --input IDS.jsonl --out LOGITS.safetensors
    python scripts/check_peft.py BASE ADAPTER LOGITS.safetensors IDS.jsonl

BASE is a folder laid out like a hub snapshot, ADAPTER a PEFT folder (or `-`: the base alone), IDS.jsonl has
{"input_ids": […]} lines, LOGITS.safetensors a tensor (tokens, vocabulary) named 0, 1, … for each.  One line is
printed for each check; the exit code is 0 if all hold, 1 if one does not.
"""

import argparse
import json
import os
import sys
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
import transformers
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file

FAILED = []


def check(holds, text):
    print(("ok      " if holds else "FAILED  ") + text, flush=True)
    if not holds:
        FAILED.append(text)
    return holds


def few(names):
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"


def load_base(folder):
    config = transformers.AutoConfig.from_pretrained(folder)
    cls = getattr(transformers, config.architectures[0])
    model, info = cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                      output_loading_info=True)
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    missing.discard("lm_head.weight" if model.config.get_text_config().tie_word_embeddings else "")
    check(not missing and not unexpected and not info["mismatched_keys"],
          f"base {cls.__name__}: missing tensors {few(missing)}, unexpected {few(unexpected)}")
    return model.eval()


def load_adapter(model, folder):
    files = load_file(folder / "adapter_model.safetensors")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(model, str(folder)).eval()
    # The libraries deprecate each other's functions; nothing that a file could cause.
    said = [str(w.message) for w in seen if not issubclass(w.category, (FutureWarning, DeprecationWarning))]
    check(not said, f"PEFT's warnings: {' | '.join(said)[:300] or 'none'}")
    inside = get_peft_model_state_dict(model, save_embedding_layers=False)
    missing, unexpected = inside.keys() - files.keys(), files.keys() - inside.keys()
    check(files and not missing and not unexpected,
          f"adapter has {len(files)} tensors: missing {few(missing)}, unexpected {few(unexpected)}")
    wrong = [n for n in files.keys() & inside.keys() if not torch.equal(files[n].float(), inside[n].float())]
    check(not wrong, f"tensors that differ between file and model: {few(wrong)}")
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("adapter")
    parser.add_argument("logits", type=Path)
    parser.add_argument("ids", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference of a logit (default 1e-4)")
    parser.add_argument("--relative-tolerance", type=float, default=None, metavar="R", nargs="?", const=2e-3,
                        help="instead: largest difference as a share of the largest logit (2e-3 if no value is given)")
    args = parser.parse_args()
    torch.set_num_threads(1)

    got = load_file(args.logits)
    ids = [json.loads(line)["input_ids"] for line in args.ids.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not check(bool(ids) and got.keys() == {str(i) for i in range(len(ids))},
                 f"{len(got)} tensors for {len(ids)} sequences, named 0, 1, …"):
        return
    model = load_base(args.base)
    adapted = args.adapter != "-"
    if adapted:
        model = load_adapter(model, Path(args.adapter))

    moved = difference = largest = 0.0
    with torch.no_grad():
        for i, sequence in enumerate(ids):
            batch = torch.tensor([sequence])
            want = model(input_ids=batch).logits[0][-len(sequence):]  # behind a soft prompt, those of tokens
            if adapted:
                with model.disable_adapter():
                    moved = max(moved, (model(input_ids=batch).logits[0][-len(sequence):] - want).abs().max().item())
            mine = got[str(i)]
            if not check(mine.shape == want.shape and mine.dtype == torch.float32,
                         f"sequence {i}: {tuple(mine.shape)} {str(mine.dtype).removeprefix('torch.')}, "
                         f"expected {tuple(want.shape)} float32"):
                return
            step = (mine - want).abs().max().item()
            difference = max(difference, step if step == step else float("inf"))
            largest = max(largest, want.abs().max().item())
    if adapted:
        check(moved > 1e-6, f"the adapter moves logits by up to {moved:.3g}")
    if args.relative_tolerance is None:
        check(difference <= args.tolerance, f"logits differ by up to {difference:.3g}; allowed {args.tolerance:g}")
    else:
        share = difference / largest
        check(share <= args.relative_tolerance,
              f"logits differ by up to {share:.3g} of the largest; allowed {args.relative_tolerance:g}")


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        main()
    except Exception as error:                            # one line, not a traceback
        check(False, " ".join(f"{type(error).__name__}: {error}".split())[:400])
    sys.exit(1 if FAILED else 0)
