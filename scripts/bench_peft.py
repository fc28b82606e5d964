"""The work of `bayesteach bench`, done with transformers + PEFT.

    python scripts/bench_peft.py --shape small --seq 512 --batch 4 --json

Tuned as well as these libraries allow: SDPA attention, fused AdamW, and the output head only at the answers.
`--plain` is what their Trainer does: logits at every token, then the answers' rows. Prints the same JSON fields.
"""

import argparse
import json
import resource
import statistics
import time

import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, get_peft_model

# layers, hidden, intermediate, heads, key-value heads, head size, vocabulary, tied head
SHAPES = {
    "small": ("llama", 8, 512, 1536, 8, 4, 64, 32_000, True),
    "qwen2.5-0.5b": ("qwen2", 24, 896, 4864, 14, 2, 64, 151_936, True),
    "llama-3.2-1b": ("llama", 16, 2048, 8192, 32, 8, 64, 128_256, True),
    "llama-3.2-3b": ("llama", 28, 3072, 8192, 24, 8, 128, 128_256, True),
    "llama-3.1-8b": ("llama", 32, 4096, 14_336, 32, 8, 128, 128_256, False),
}
OPTIONS = 5


def config(name):
    family, layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary, tied = SHAPES[name]
    return transformers.AutoConfig.for_model(
        family,
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        max_position_embeddings=32_768,
    )


def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="small", choices=SHAPES)
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--answers", type=int, default=50)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--checkpointing", default="none", choices=["none", "block"])
    parser.add_argument("--adapter-in-dtype", action="store_true", help="the adapter in --dtype, which PEFT keeps in f32 otherwise")
    parser.add_argument("--plain", action="store_true", help="logits at every token")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]

    torch.set_default_dtype(dtype)
    with device:
        base = transformers.AutoModelForCausalLM.from_config(config(args.shape), attn_implementation="sdpa")
    torch.set_default_dtype(torch.float32)
    base.config.use_cache = False
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora, autocast_adapter_dtype=not args.adapter_in_dtype)
    model.train()
    if args.checkpointing == "block":
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        base.enable_input_require_grads()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    vocabulary = base.config.vocab_size
    ids = torch.randint(vocabulary, (args.batch, args.seq), device=device)
    positions = torch.tensor(
        [(answer + 1) * (args.seq - 1) // (args.answers + 1) for answer in range(args.answers)], device=device
    )
    options = torch.arange(args.answers * OPTIONS, device=device).reshape(args.answers, OPTIONS) % vocabulary
    options = options.repeat(args.batch, 1)  # (M, options)
    probs = torch.tensor([0.1, 0.4, 0.2, 0.25, 0.05], device=device).expand(len(options), OPTIONS)

    def step():
        if args.plain:
            logits = model(input_ids=ids).logits[:, positions]  # (B, answers, vocabulary)
        else:
            hidden = base.model(input_ids=ids).last_hidden_state[:, positions]
            logits = base.lm_head(hidden)
        log_probs = F.log_softmax(logits.flatten(0, 1).float(), dim=-1).gather(1, options)
        loss = (probs * (probs.log() - log_probs)).sum(-1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def synchronise():
        if device.type == "cuda":
            torch.cuda.synchronize()

    before = torch.cuda.memory_allocated() if device.type == "cuda" else resident()
    seconds, cpu = [], []
    for number in range(args.steps + 1):
        synchronise()
        started, cpu_started = time.perf_counter(), cpu_seconds()
        step()
        synchronise()
        if number:
            seconds.append(time.perf_counter() - started)
            cpu.append(cpu_seconds() - cpu_started)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    report = {
        "shape": args.shape,
        "program": f"transformers {transformers.__version__} + PEFT, torch {torch.__version__}"
        + (", adapter in --dtype" if args.adapter_in_dtype else "")
        + (", logits at every token" if args.plain else ""),
        "device": args.device,
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
        "checkpointing": args.checkpointing,
        "step_seconds": statistics.median(seconds),
        "tokens_per_second": args.batch * args.seq / statistics.median(seconds),
        "cpu_seconds_per_step": statistics.median(cpu),
        "weights_bytes": sum(p.numel() * p.element_size() for p in base.parameters()),
        "peak_memory_bytes": peak,
        "memory_before_bytes": before,
    }
    if args.json:
        print(json.dumps(report))
    else:
        for key, value in report.items():
            print(f"{key:22} {value}")


if __name__ == "__main__":
    main()
