#!/usr/bin/env python3
"""Writes the tiny tokenizers of tests/data/tokenizers and what transformers makes of dialogues with them.

    python scripts/make_tokenizers.py [--out tests/data/tokenizers]

Each folder has a tokenizer of one family's kind (byte-level BPE of Llama 3 and Qwen, metaspace BPE with byte
fallback of Llama 2 and Gemma), trained here on a few sentences, and a chat template written for this project that
renders what shared facts say about that family.  The expectations come from transformers' Jinja2 rendering and its
tokenizer, so the Rust side (minijinja, the tokenizers crate) is checked against another implementation.

    <family>/tokenizer.json, tokenizer_config.json [, chat_template.jinja]
    <family>/expected.json    [{name, messages, kwargs, text, ids} or {…, error: true}]
    <family>/encodings.json   [{text, ids, ids_with_special, tokens, decoded}]
    templates.json            [{name, template, bos_token, eos_token, cases: [{messages, kwargs, text} | {…, error}]}]

Nothing is random: the same library versions (scripts/requirements.txt) give the same bytes.
"""

import argparse
import datetime
import json
import os
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

import transformers.utils.chat_template_utils as chat_utils
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# --------------------------------------------------------------------------- corpus

SENTENCES = [
    "Help me select the best flight for my trip.",
    "Which flight is the best option for me?",
    "The best option is Flight 1.",
    "The best option is Flight 2.",
    "The best option is Flight 3.",
    "Your option Flight 3 is incorrect. I prefer Flight 1.",
    "Your option Flight 2 is correct.",
    "Flight 1: departure time: 10:30 AM, duration: 2 hr 30 min, number of stops: 0, price: $100",
    "Flight 2: departure time: 02:48 PM, duration: 4 hr 12 min, number of stops: 1, price: $370",
    "Flight 3: departure time: 08:00 PM, duration: 10 hr 0 min, number of stops: 2, price: $1000",
    "My answer is A", "My answer is B", "My answer is C", "My answer is D", "My answer is E",
    "Option A, Option B, Option C, Option D or Option E?",
    "I answered 2. Item 2: I feel little concern for others.",
    "I answered 10. Item 10: I have a vivid imagination.",
    "Item 1: I am the life of the party.",
    "Item 12: I am relaxed most of the time.",
    "Rate how well the statement describes you, from 1 (very inaccurate) to 5 (very accurate).",
    "You are a helpful assistant who learns what the user likes.",
    "What the user has said before tells what the user will say next.",
    "The number is 10, then 11, then 12, then 100, then 101, then 250.",
    "10 10 10 100 100 100 11 12 20 30 50 128 2023 2024",
]
CORPUS = [s for s in SENTENCES for _ in range(4)] + ["\n\n".join(SENTENCES), "\n".join(SENTENCES)]

# --------------------------------------------------------------------------- tokenizers

# The order of the alternatives is what decides: contractions, words with at most one leading non-letter, digits,
# punctuation with at most one space before it, line ends, blanks (all but the last one go by themselves).
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def added(token, token_id, special=True):
    return {"id": token_id, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": special}


def bos_template(bos, bos_id):
    return {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                     {"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}}}


def byte_level(digits, size, specials, plain_added=(), normalizer=None, bos=None, ignore_merges=False):
    """Byte-level BPE: `size` ordinary tokens, then the added ones."""
    tok = Tokenizer(models.BPE())
    if normalizer:
        tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS % digits), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=size, min_frequency=2, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    spec = json.loads(tok.to_str())
    spec["model"]["ignore_merges"] = ignore_merges
    spec["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    n = len(spec["model"]["vocab"])
    names = [(t, True) for t in specials] + [(t, False) for t in plain_added]
    spec["added_tokens"] = [added(t, n + i, s) for i, (t, s) in enumerate(names)]
    keep = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    if bos:
        bos_id = next(a["id"] for a in spec["added_tokens"] if a["content"] == bos)
        spec["post_processor"] = {"type": "Sequence", "processors": [keep, bos_template(bos, bos_id)]}
    else:
        spec["post_processor"] = keep
    return spec


def metaspace(size, first, extra, prepend, newline_tokens, bos):
    """BPE over text whose spaces are ▁, with 256 byte tokens to fall back on, as sentencepiece models convert to."""
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.Replace(" ", "▁")
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\n+"), behavior="removed"),
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Split("▁", behavior="merged_with_next")])
    tok.train_from_iterator(["▁" + s if prepend else s for s in CORPUS], trainers.BpeTrainer(
        vocab_size=size, min_frequency=2, show_progress=False,
        initial_alphabet=[chr(c) for c in range(0x21, 0x7F)] + ["▁"]))
    spec = json.loads(tok.to_str())
    learnt = sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].get)
    names = list(first) + [f"<0x{b:02X}>" for b in range(256)] + list(newline_tokens) + learnt
    merges = list(spec["model"]["merges"])
    if newline_tokens:                       # "\n", "\n\n", …: single tokens, as in Gemma
        merges = [[a, "\n"] for a in newline_tokens[:-1]] + merges
    spec["model"].update(vocab={t: i for i, t in enumerate(names)}, merges=merges,
                         unk_token="<unk>", fuse_unk=True, byte_fallback=True, ignore_merges=False)
    spec["added_tokens"] = [added(t, i) for i, t in enumerate(first)]
    spec["added_tokens"] += [added(t, len(names) + i) for i, t in enumerate(extra)]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if prepend:
        spec["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}
        spec["pre_tokenizer"] = None
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    else:
        spec["normalizer"] = replace
        spec["pre_tokenizer"] = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
                                 "invert": False}
    spec["decoder"] = {"type": "Sequence", "decoders": decoders}
    spec["post_processor"] = bos_template(bos, names.index(bos))
    return spec


# --------------------------------------------------------------------------- templates, written for this project

LLAMA3 = r"""
{{- bos_token }}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if tools is not none %}
    {{- raise_exception("This template knows no tools.") }}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}

{#- The first message may be the system's; the block itself is always there. #}
{%- if messages[0]["role"] == "system" %}
    {%- set opening = messages[0]["content"] | trim %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set opening = "" %}
    {%- set turns = messages %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Cutting Knowledge Date: December 2023\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{{- opening }}
{{- "<|eot_id|>" }}

{%- for turn in turns %}
    {%- if turn.role not in ["user", "assistant"] %}
        {{- raise_exception("Unknown role " + turn.role) }}
    {%- endif %}
    {{- "<|start_header_id|>" + turn["role"] + "<|end_header_id|>\n\n" + turn["content"] | trim + "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start_header_id|>assistant<|end_header_id|>\n\n" }}
{%- endif %}
"""

LLAMA3_FIRST = (
    "{% set ns = namespace(text='') %}"
    "{% for m in messages %}"
    "{% set block = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set block = bos_token + block %}{% endif %}"
    "{{ block }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")

LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set rest = messages[1:] %}{% set lead = messages[0]['content'].strip() %}"
    "{% else %}{% set rest = messages %}{% set lead = false %}{% endif %}"
    "{% for m in rest %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Turns must go user, assistant, user, assistant, …') }}{% endif %}"
    "{% if loop.index0 == 0 and lead != false %}"
    "{% set body = '<<SYS>>\n' + lead + '\n<</SYS>>\n\n' + m['content'].strip() %}"
    "{% else %}{% set body = m['content'].strip() %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + body + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + body + ' ' + eos_token }}{% endif %}"
    "{% endfor %}")

QWEN2 = r"""{%- if tools %}
    {{- raise_exception('This template knows no tools.') }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == "user" or (m.role == "system" and not loop.first) or (m.role == "assistant" and not m.tool_calls) %}
        {{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}
    {%- elif not loop.first and (loop.index0 == 0 or messages[loop.index0 - 1].role != m.role) %}
        {{- raise_exception('Cannot render role ' ~ m.role) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""

QWEN3 = r"""{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{#- Where the last question stands: thinking is kept only after it. #}
{%- set seen = namespace(searching=true, at=messages|length - 1) %}
{%- for m in messages[::-1] %}
    {%- set position = (messages|length - 1) - loop.index0 %}
    {%- if seen.searching and m.role == "user" and m.content is string and not (m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>')) %}
        {%- set seen.searching = false %}
        {%- set seen.at = position %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- if m.content is string %}
        {%- set content = m.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if m.role == "user" or (m.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + m.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif m.role == "assistant" %}
        {%- set thoughts = '' %}
        {%- if m.reasoning_content is defined and m.reasoning_content is not none %}
            {%- set thoughts = m.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thoughts = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > seen.at and (loop.last or thoughts) %}
            {{- '<|im_start|>' + m.role + '\n<think>\n' + thoughts.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>' + m.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""

GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system messages here') }}{% endif %}"
    "{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant/user/assistant/…') }}{% endif %}"
    "{% if m['role'] == 'assistant' %}{% set who = 'model' %}{% else %}{% set who = m['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + who + '\n' + m['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}")

GEMMA3 = r"""{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set lead = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set lead = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set lead = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for m in turns -%}
    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Roles must alternate user/assistant/user/assistant/…") }}
    {%- endif -%}
    {%- set who = 'model' if m['role'] == 'assistant' else m['role'] -%}
    {{ '<start_of_turn>' + who + '\n' + (lead if loop.first else '') }}
    {%- if m['content'] is string -%}
        {{ m['content'] | trim }}
    {%- elif m['content'] is iterable -%}
        {%- for part in m['content'] -%}
            {%- if part['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif part['type'] == 'text' -%}
                {{ part['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Neither text nor parts") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model
' }}
{%- endif -%}
"""

QWEN2_FIRST = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")

# Constructs that real templates use and that the ones above do not.
ODDS = r"""
{%- for m in messages %}
    {%- if m is mapping and m.role is defined %}
        {{- loop.index ~ '/' ~ loop.length ~ ' ' ~ (loop.previtem.role if loop.previtem is defined else 'start') }}
        {{- '>' ~ (loop.nextitem.role if loop.nextitem is defined else 'end') ~ ' ' }}
    {%- endif %}
    {%- if m.role == 'assistant' %}
        {%- generation %}
        {{- m.content.split(' ')[-1] }}
        {%- endgeneration %}
    {%- else %}
        {{- m.content.split('. ')[0].rstrip('?!').lstrip(' I') ~ '|' ~ m.content[:4] ~ '|' ~ m.content[-3:] }}
    {%- endif %}
    {{- '\n' }}
    {%- if m.role == 'stop' %}{% break %}{% endif %}
{%- endfor %}
{%- macro line(a, b='-') %}{{ a | upper }}{{ b }}{{ a | length }}{% endmacro %}
{{- line('ab') ~ line('é', b='=') }}
{{- messages[0] | tojson }}
{{- {"b": [1, 2.5, true, none], "a": "é<&'\""} | tojson(indent=4) }}
{%- if extra is defined %}
    {%- for key, value in extra.items() %}
        {{- key ~ '=' ~ value ~ ';' }}
    {%- endfor %}
    {{- extra.get('n', 0) + 1 }} {{ extra | length }} {{ 'yes' if 'n' in extra and 'q' not in extra else 'no' }}
{%- endif %}
{{- messages | map(attribute='role') | join(',') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{- ' eos ' ~ ('none' if eos_token is none else 'set' if eos_token is defined else 'undefined') }}
{{- ' ' ~ ('no' if missing is undefined else 'yes') ~ (missing | default('-')) ~ ('x' if not missing else 'y') }}
"""

# --------------------------------------------------------------------------- dialogues

U, A, S = "user", "assistant", "system"
FLIGHTS = ("Help me select the best flight for my trip.\nFlight 1: departure time: 10:30 AM, price: $370\n"
           "Flight 2: departure time: 02:48 PM, price: $1000\nFlight 3: departure time: 08:00 PM, price: $100")
BEST = "The best option is Flight 3."


def say(*turns):
    return [{"role": r, "content": c} for r, c in turns]


DIALOGUES = {
    "one question": say((U, "U1")),
    "three turns": say((U, "U1"), (A, "A1"), (U, "U2")),
    "four turns": say((U, "U1"), (A, "A1"), (U, "U2"), (A, "A2")),
    "repeated sentences": say(
        (U, FLIGHTS), (A, BEST),
        (U, "Your option Flight 3 is incorrect. I prefer Flight 1.\n\n" + FLIGHTS), (A, BEST),
        (U, BEST + " " + BEST), (A, BEST)),
    "answer quoted before and after": say(
        (U, "Say: My answer is A"), (A, "My answer is A"), (U, "My answer is A, you said. Or: My answer is B"),
        (A, "My answer is B")),
    "numbers": say((U, "Item 10: from 1 to 10?"), (A, "10"), (U, "I answered 1. Item 11: from 1 to 100?"), (A, "1"),
                   (U, "Item 12"), (A, " 100")),
    "surrounding whitespace": say((U, "  \n Which flight? \t\n"), (A, "\n Flight 2 \n\n"), (U, " and now?  "),
                                  (A, "  Flight 2")),
    "system": say((S, "You are a helpful assistant."), (U, "U1"), (A, "A1"), (U, "U2")),
    "system with whitespace": say((S, "\n Learn what the user likes. \n"), (U, "U1"), (A, "A1")),
    "unicode": say((U, "Zürich → København, 東京 🛫? cafe\u0301 ﬁ Ω ½ ١٢"), (A, "Ōsaka — naïve 👩‍🚀"), (U, "¿Sí?")),
    "empty content": say((U, "U1"), (A, ""), (U, "U2")),
    "markup in the content": say((U, "{{ bos_token }} {% if %} <b>&amp;</b> \\n 'x' \"y\""), (A, "<end> </s> it's")),
    "assistant first": say((A, "A1"), (U, "U1")),
    "two users in a row": say((U, "U1"), (U, "U2")),
    "unknown role": say((U, "U1"), ("critic", "C1")),
}

THINKING = {
    "thought in the last turn": say((U, "U1"), (A, "<think>\nHm, 2 or 3.\n</think>\n\nFlight 2")),
    "thoughts in both turns": say((U, "U1"), (A, "<think>\nFirst.\n</think>\n\nA1"), (U, "U2"),
                                  (A, "<think>\nSecond.\n\n</think>\n\n\nA2")),
    "earlier thought only": say((U, "U1"), (A, "<think>\n\n</think>\n\nA1"), (U, "U2"), (A, "A2")),
    "leading newlines": say((U, "U1"), (A, "\n\nA1"), (U, "U2"), (A, "\n\nA2")),
    "two answers after one question": say((U, "U1"), (A, "A1"), (A, "A2")),
    "reasoning field": [{"role": U, "content": "U1"}, {"role": A, "content": "A1", "reasoning_content": "\nwhy\n"}],
}


class FixedDate(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2031, 1, 9, 12, 0, 0)


def render(tok, messages, kwargs):
    return tok.apply_chat_template(messages, tokenize=False, **kwargs)


def cases(tok, family):
    out = []
    dialogues = dict(DIALOGUES)
    if family == "qwen3":
        dialogues.update(THINKING)
    for name, messages in dialogues.items():
        prompts = [messages[-1]["role"] == U]
        if name in ("three turns", "four turns", "system"):
            prompts.append(not prompts[0])
        for prompt in prompts:
            variants = [{"add_generation_prompt": prompt}]
            if family == "llama3":
                variants = [{"add_generation_prompt": prompt, "date_string": "26 Jul 2024"}]
                if name == "three turns":
                    variants.append({"add_generation_prompt": prompt, "date_string": "01 Jan 2030"})
                    variants.append({"add_generation_prompt": prompt})
            if family == "qwen3" and name in ("three turns", "four turns", "thoughts in both turns"):
                variants += [{"add_generation_prompt": prompt, "enable_thinking": e} for e in (False, True)]
            for kwargs in variants:
                case = {"name": name, "messages": messages, "kwargs": kwargs}
                if family == "llama3" and "date_string" not in kwargs:
                    case["strftime_now"] = FixedDate.now().strftime("%d %b %Y")
                try:
                    case["text"] = render(tok, messages, kwargs)
                    case["ids"] = tok.encode(case["text"], add_special_tokens=False)
                    direct = tok.apply_chat_template(messages, tokenize=True, return_dict=False, **kwargs)
                    assert list(direct) == case["ids"], (family, name)
                except Exception as e:
                    assert type(e).__name__ == "TemplateError", e
                    case["error"] = True
                out.append(case)
    return out


TEXTS = ["", " ", "\n", "Flight 3", " Flight 3", " A", "A", "\nA", "My answer is A", "My answer is E", "1", "10", "100",
         "1000", " 10", "1 10 11", "10:30 AM, $1000", "The best option is Flight 3.", "The best option is Flight 10.",
         "  two  spaces ", "tab\tand\r\nline\n\n\nends \n ", "it's I'LL", "Zürich 東京 🛫 cafe\u0301 ½ ١٢", "▁", "<0x41>",
         "<s></s>", "<bos><eos>", "<|im_end|>\n", "<think>\n\n</think>\n\n", "<|eot_id|>"]


def encodings(tok, raw):
    out = []
    for text in TEXTS:
        ids = tok.encode(text, add_special_tokens=False)
        full = tok.encode(text, add_special_tokens=True)
        assert ids == raw.encode(text, add_special_tokens=False).ids
        assert full == raw.encode(text, add_special_tokens=True).ids
        out.append({"text": text, "ids": ids, "ids_with_special": full, "tokens": [raw.id_to_token(i) for i in ids],
                    "decoded": raw.decode(ids, skip_special_tokens=False)})
    return out


def write(path, value, indent=None):
    text = json.dumps(value, ensure_ascii=False, indent=indent,
                      separators=None if indent else (",", ":"))
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


def lines(path, values):
    """A JSON array, one element a line: small and still good to read in a diff."""
    body = ",\n".join(json.dumps(v, ensure_ascii=False, separators=(",", ":")) for v in values)
    path.write_text("[\n" + body + "\n]\n", encoding="utf-8", newline="\n")


def families():
    llama3 = byte_level(r"\p{N}{1,3}", 480, ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
                                             "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"],
                        bos="<|begin_of_text|>", ignore_merges=True)
    chatml = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    qwen2 = byte_level(r"\p{N}", 460, chatml, normalizer=True)
    qwen3 = byte_level(r"\p{N}", 460, chatml, ["<think>", "</think>"], normalizer=True)
    llama2 = metaspace(300, ["<unk>", "<s>", "</s>"], [], True, [], "<s>")
    gemma = metaspace(300, ["<pad>", "<eos>", "<bos>", "<unk>"], ["<start_of_turn>", "<end_of_turn>"], False,
                      ["\n", "\n\n", "\n\n\n"], "<bos>")
    token = {"__type": "AddedToken", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    common = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
              "model_max_length": 4096}
    named = [{"name": "tool_use", "template": "{{ raise_exception('the tool template was taken') }}"},
             {"name": "default", "template": LLAMA2}]
    return {
        "llama3": (llama3, {**common, "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>",
                            "chat_template": LLAMA3}, None),
        "llama2": (llama2, {**common, "add_bos_token": True, "add_eos_token": False,
                            "bos_token": {**token, "content": "<s>"}, "eos_token": {**token, "content": "</s>"},
                            "unk_token": {**token, "content": "<unk>"}, "pad_token": None,
                            "chat_template": named}, None),
        "qwen2": (qwen2, {**common, "add_bos_token": False, "bos_token": None, "eos_token": "<|im_end|>",
                          "pad_token": "<|endoftext|>", "unk_token": None, "chat_template": QWEN2}, None),
        "qwen3": (qwen3, {**common, "add_bos_token": False, "bos_token": None, "eos_token": "<|im_end|>",
                          "pad_token": "<|endoftext|>", "unk_token": None, "chat_template": QWEN3}, None),
        "gemma": (gemma, {**common, "add_bos_token": True, "bos_token": "<bos>", "eos_token": "<eos>",
                          "pad_token": "<pad>", "unk_token": "<unk>"}, GEMMA),
    }


def loose_templates(tok):
    """Templates by themselves: no ids, any tokenizer would do."""
    parts = [{"role": U, "content": [{"type": "text", "text": " U1 "}, {"type": "image"}, {"type": "text", "text": "more"}]},
             {"role": A, "content": [{"type": "text", "text": "A1"}]}]
    lead = [{"role": S, "content": [{"type": "text", "text": "Be brief."}]}]
    plain = {k: v for k, v in DIALOGUES.items() if k in
             ("one question", "three turns", "four turns", "surrounding whitespace", "system", "unicode", "two users in a row")}
    odd = {"odd": [(plain["four turns"], {"extra": {"n": 3, "m": "x"}}),
                   (say((U, "I like it. And you?"), (A, "So do I"), ("stop", "x. y"), (U, "never")), {})]}
    sets = {
        "llama3 without system block": (LLAMA3_FIRST, "<|begin_of_text|>", "<|eot_id|>",
                                        [(m, {"add_generation_prompt": m[-1]["role"] == U}) for m in plain.values()]),
        "qwen2 without the name": (QWEN2_FIRST, None, "<|im_end|>",
                                   [(m, {"add_generation_prompt": m[-1]["role"] == U}) for m in plain.values()]),
        "gemma3": (GEMMA3, "<bos>", "<eos>",
                   [(m, {"add_generation_prompt": m[-1]["role"] == U}) for m in list(plain.values()) + [parts, lead + parts]]),
        "odds and ends": (ODDS, "<s>", None, odd["odd"]),
    }
    out = []
    for name, (template, bos, eos, todo) in sets.items():
        tok.bos_token, tok.eos_token = bos, eos
        done = []
        for messages, kwargs in todo:
            case = {"messages": messages, "kwargs": kwargs}
            try:
                case["text"] = tok.apply_chat_template(messages, chat_template=template, tokenize=False, **kwargs)
            except Exception as e:
                assert type(e).__name__ == "TemplateError", (name, e)
                case["error"] = True
            done.append(case)
        out.append({"name": name, "template": template, "bos_token": bos, "eos_token": eos, "cases": done})
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--out", type=Path, default=root / "tests" / "data" / "tokenizers")
    args = parser.parse_args()

    class Clock:                                # strftime_now shall not depend on the day
        datetime = FixedDate

        def __getattr__(self, name):
            return getattr(datetime, name)

    assert hasattr(chat_utils, "datetime")
    chat_utils.datetime = FixedDate if chat_utils.datetime is datetime.datetime else Clock()

    tok = None
    for family, (spec, config, jinja) in families().items():
        folder = args.out / family
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "tokenizer.json", spec)
        write(folder / "tokenizer_config.json", config, indent=2)
        if jinja:
            (folder / "chat_template.jinja").write_text(jinja, encoding="utf-8", newline="\n")
        raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tok = PreTrainedTokenizerFast.from_pretrained(str(folder))
        lines(folder / "expected.json", cases(tok, family))
        lines(folder / "encodings.json", encodings(tok, raw))
        print(family, raw.get_vocab_size(), "tokens,", (folder / "tokenizer.json").stat().st_size, "bytes")
    lines(args.out / "templates.json", loose_templates(tok))


if __name__ == "__main__":
    main()
