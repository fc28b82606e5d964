#!/usr/bin/env python3
"""Logits and token ids out of llama.cpp, by its C interface in the shared library of a PyPI package.

    python scripts/llama_cpp_logits.py MODEL.gguf [--lora ADAPTER.gguf] --ids IDS.jsonl --out LOGITS.npz
    python scripts/llama_cpp_logits.py MODEL.gguf --texts TEXTS.json --out IDS.json

The library is that of xllamacpp (wheels) or of llama-cpp-python (built from source).  A process of its own, since
llama.cpp aborts on files that it does not like.
"""

import argparse
import ctypes
import importlib.util
import json
from pathlib import Path

import numpy as np


def library():
    """The path of a shared library with llama.cpp's C functions, or None."""
    for package, pattern in [("xllamacpp", "xllamacpp*.so"), ("llama_cpp", "lib/libllama.so")]:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin:
            found = sorted(Path(spec.origin).parent.glob(pattern))
            if found:
                return found[0]
    return None


class Parameters(ctypes.Structure):
    """A struct passed by value of which only some words are touched; larger than llama.cpp's own, which does no harm
    where it is the last thing on the stack."""
    _fields_ = [("words", ctypes.c_int32 * 256)]


class Batch(ctypes.Structure):
    _fields_ = [("n_tokens", ctypes.c_int32), ("token", ctypes.POINTER(ctypes.c_int32)), ("embd", ctypes.c_void_p),
                ("pos", ctypes.POINTER(ctypes.c_int32)), ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
                ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))), ("logits", ctypes.POINTER(ctypes.c_int8))]


# Words of llama_context_params, found by their defaults, so that another version's layout is noticed.
CONTEXT, BATCH, MICRO_BATCH, FLASH_ATTENTION, TYPE_K, TYPE_V = 0, 1, 2, 13, 26, 27
DEFAULTS = {CONTEXT: 512, BATCH: 2048, MICRO_BATCH: 512, FLASH_ATTENTION: -1, TYPE_K: 1, TYPE_V: 1}


def declare(lib):
    pointer = ctypes.c_void_p
    for name, result, arguments in [
        ("llama_model_default_params", Parameters, []),
        ("llama_context_default_params", Parameters, []),
        ("llama_model_load_from_file", pointer, [ctypes.c_char_p, Parameters]),
        ("llama_init_from_model", pointer, [pointer, Parameters]),
        ("llama_model_get_vocab", pointer, [pointer]),
        ("llama_vocab_n_tokens", ctypes.c_int32, [pointer]),
        ("llama_adapter_lora_init", pointer, [pointer, ctypes.c_char_p]),
        ("llama_set_adapters_lora", ctypes.c_int32,
         [pointer, ctypes.POINTER(pointer), ctypes.c_size_t, ctypes.POINTER(ctypes.c_float)]),
        ("llama_batch_init", Batch, [ctypes.c_int32] * 3),
        ("llama_decode", ctypes.c_int32, [pointer, Batch]),
        ("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), [pointer, ctypes.c_int32]),
        ("llama_tokenize", ctypes.c_int32, [pointer, ctypes.c_char_p, ctypes.c_int32, ctypes.POINTER(ctypes.c_int32),
                                            ctypes.c_int32, ctypes.c_bool, ctypes.c_bool]),
    ]:
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments


def load(lib, path):
    model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp does not load {path}")
    return model


def logits(lib, model, sequence, lora):
    """All positions' logits, without flash attention and with a cache in f32, so that nothing is rounded."""
    parameters = lib.llama_context_default_params()
    found = {word: parameters.words[word] for word in DEFAULTS}
    if found != DEFAULTS:
        raise SystemExit(f"this llama.cpp's llama_context_params is laid out differently: {found}")
    for word, value in {FLASH_ATTENTION: 0, TYPE_K: 0, TYPE_V: 0}.items():
        parameters.words[word] = value
    context = lib.llama_init_from_model(model, parameters)
    if lora:
        adapter = lib.llama_adapter_lora_init(model, str(lora).encode())
        if not adapter:
            raise SystemExit(f"llama.cpp does not load {lora}")
        if lib.llama_set_adapters_lora(context, (ctypes.c_void_p * 1)(adapter), 1, (ctypes.c_float * 1)(1.0)):
            raise SystemExit(f"llama.cpp does not take {lora}")
    batch = lib.llama_batch_init(len(sequence), 0, 1)
    batch.n_tokens = len(sequence)
    for i, token in enumerate(sequence):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
        batch.seq_id[i][0] = 0
    if lib.llama_decode(context, batch):
        raise SystemExit("llama_decode failed")
    size = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    return np.stack([np.ctypeslib.as_array(lib.llama_get_logits_ith(context, i), (size,)).copy()
                     for i in range(len(sequence))])


def tokenize(lib, model, text, add_special):
    data = text.encode()
    ids = (ctypes.c_int32 * (len(data) + 16))()
    count = lib.llama_tokenize(lib.llama_model_get_vocab(model), data, len(data), ids, len(ids), add_special, True)
    return list(ids[:count])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--lora", type=Path)
    parser.add_argument("--ids", type=Path)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    lib = ctypes.CDLL(str(library()))
    declare(lib)
    lib.llama_backend_init()
    model = load(lib, args.model)
    if args.texts:
        texts = json.loads(args.texts.read_text(encoding="utf-8"))
        args.out.write_text(json.dumps([tokenize(lib, model, text, False) for text in texts]), encoding="utf-8")
        return
    lines = args.ids.read_text(encoding="utf-8").splitlines()
    sequences = [json.loads(line)["input_ids"] for line in lines if line.strip()]
    np.savez(args.out, *[logits(lib, model, sequence, args.lora) for sequence in sequences])


if __name__ == "__main__":
    main()
