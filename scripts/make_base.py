#!/usr/bin/env python3
"""Makes what the shipped base model is trained from: its tokenizer, its configuration and its text.

    python3 scripts/make_base.py OUT

writes OUT/model (tokenizer.json, tokenizer_config.json, config.json, generation_config.json) and OUT/text
(train.jsonl and validation.jsonl, episode files of format version 1). Everything follows from --seed; needed are
Python's standard library and the `tokenizers` package. scripts/make-base.sh runs this and the training.

Two kinds of dialogue are written:

* questionnaires, by people who are inconsistent: an answer depends on nothing but the person's latest answer on the
  same trait (and, without one, on nothing at all), through the table ANSWERS. Nobody has a stable level, so there is
  nothing to accumulate over a dialogue. In a part of the dialogues remarks say which trait an item is about and which
  level of it an answer speaks for, and in a part the user asks for the latest level of a trait.
* questions and answers about what the items mean: which trait, in which direction.
"""
import argparse
import json
import random
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TRAITS = {
    "Extraversion": "extraversion",
    "Agreeableness": "agreeableness",
    "Conscientiousness": "conscientiousness",
    "EmotionalStability": "emotional stability",
    "Intellect": "intellect",
}
INTRODUCTION = (
    "Predict how I rate statements about myself, from 1 (very inaccurate) to 5 (very accurate). "
    "Reply with the number only."
)

# How such a person answers an item, given where the latest answer on the same trait points for this item (that answer
# itself, or 6 minus it where exactly one of the two items is reverse-keyed). They are yes-sayers who dislike flat
# denials: after an answer that points to 1, 2 is the most frequent. Order: the answers 1 to 5.
ANSWERS = {
    None: (0.14, 0.15, 0.15, 0.16, 0.40),
    1: (0.16, 0.68, 0.10, 0.03, 0.03),
    2: (0.08, 0.68, 0.16, 0.05, 0.03),
    3: (0.04, 0.12, 0.68, 0.12, 0.04),
    4: (0.03, 0.05, 0.10, 0.68, 0.14),
    5: (0.03, 0.03, 0.06, 0.16, 0.72),
}

SHARE_OF_QUESTIONS = 0.15  # dialogues about what items mean
REMARKS = (0.0, 0.0, 0.5)  # share of items with a remark, each value in as many dialogues as the others
RECALL = (0.0, 0.0, 0.25)  # share of items before which a level is asked for, likewise
SHORTEST, LONGEST = 10, 24  # items of a questionnaire
QUESTIONS = 8  # and at most twice as many, in a dialogue about items


def read_items():
    """(sentence, trait, direction) of the 50 items, from the one place where the project keeps them."""
    source = (ROOT / "src/world/ipip.rs").read_text(encoding="utf-8")
    pattern = r'Item \{ text: "([^"]+)", measures: (\w+), key: (\w+) \}'
    items = [(text, TRAITS[trait], 1 if key == "Positive" else -1) for text, trait, key in re.findall(pattern, source)]
    assert len(items) == 50, len(items)
    return items


ITEMS = read_items()


def message(role, content):
    return {"role": role, "content": content}


def level(answer, direction):
    """Which level of the trait an answer speaks for, from 1 to 5."""
    return answer if direction > 0 else 6 - answer


def draw_items(rng):
    """Items of two to five traits, trait by trait."""
    traits = rng.sample(sorted(TRAITS.values()), rng.randint(2, 5))
    chosen = [item for item in ITEMS if item[1] in traits]
    rng.shuffle(chosen)
    chosen = chosen[: rng.randint(SHORTEST, LONGEST)]
    return sorted(chosen, key=lambda item: traits.index(item[1]))


def questionnaire(rng):
    latest = {}  # trait: level that the latest answer speaks for
    remarks, recall = rng.choice(REMARKS), rng.choice(RECALL)
    messages, head = [], INTRODUCTION
    for number, (sentence, trait, direction) in enumerate(draw_items(rng), start=1):
        if rng.random() < recall:
            asked = trait if rng.random() < 0.5 else rng.choice(list(TRAITS.values()))
            messages.append(message("user", f"{head}\nRecall {asked}."))
            messages.append(message("assistant", str(latest.get(asked, "Nothing"))))
            head = "Thanks."
        probs = ANSWERS[level(latest[trait], direction) if trait in latest else None]
        said, told = rng.choices(range(1, 6), probs, k=2)
        latest[trait] = level(told, direction)
        about = f" ({'' if direction > 0 else 'reversed '}{trait})" if rng.random() < remarks else ""
        messages.append(message("user", f"{head}\nItem {number}: {sentence}{about}"))
        answer = {"start": 0, "options": list("12345"), "probs": probs, "said": said - 1, "truth": told - 1}
        messages.append({**message("assistant", str(said)), "answer": answer})
        head = f"I answered {told}."
        if rng.random() < remarks:
            head += f" ({trait} {latest[trait]})"
    return messages


def meaning(rng, item):
    sentence, trait, direction = item
    kind = rng.randrange(3)
    if kind == 0:
        return f"What does it say about a person: {sentence}", f"It speaks {'for' if direction > 0 else 'against'} {trait}."
    if kind == 1:
        return f"Which trait does it belong to: {sentence}", f"{trait.capitalize()}."
    answer = rng.randint(1, 5)
    return f"I answered {answer}. What does it say about me: {sentence}", f"{trait.capitalize()} {level(answer, direction)}."


def questions(rng):
    messages = []
    for item in rng.sample(ITEMS, rng.randint(QUESTIONS, 2 * QUESTIONS)):
        question, answer = meaning(rng, item)
        messages += [message("user", question), message("assistant", answer)]
    return messages


def dialogue(rng, share_of_questions):
    """(world, messages)"""
    about_items = rng.random() < share_of_questions
    return ("base-questions", questions(rng)) if about_items else ("base-questionnaire", questionnaire(rng))


def corpus(seed, split, count, draw):
    """Dialogue i of a split follows from (seed, split, i) alone."""
    for i in range(count):
        world, messages = draw(random.Random(f"{seed}/{split}/{i}"))
        name = f"{split}-{i:06d}"
        yield {"format_version": 1, "id": name, "world": world, "user": name, "messages": messages}


def write_corpus(folder, seed, split, count, draw):
    folder.mkdir(exist_ok=True)
    with open(folder / f"{split}.jsonl", "w", encoding="utf-8", newline="\n") as file:
        for episode in corpus(seed, split, count, draw):
            file.write(json.dumps(episode, ensure_ascii=False, separators=(",", ":")) + "\n")


USER, ASSISTANT, SYSTEM, END, BOS, PAD = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<s>", "<pad>"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# Words with their leading space, single digits with theirs, punctuation, blanks.
PIECES = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+"


def make_tokenizer(path, vocabulary, text, whole):
    """Byte pairs as `text` has them; what is in `whole` becomes one token each."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        show_progress=False,
        min_frequency=1,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in (PAD, BOS, END, USER, ASSISTANT, SYSTEM)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.add_tokens([AddedToken(piece, special=False, normalized=False) for piece in whole])
    tokenizer.save(str(path))
    return tokenizer


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def make_model_folder(folder, vocabulary, text, whole):
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(folder / "tokenizer.json", vocabulary, text, whole)
    ids = {"bos_token_id": BOS, "eos_token_id": END, "pad_token_id": PAD}
    ids = {key: tokenizer.token_to_id(token) for key, token in ids.items()}
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 2048,
            "bos_token": BOS,
            "eos_token": END,
            "pad_token": PAD,
            "additional_special_tokens": [USER, ASSISTANT, SYSTEM],
            "clean_up_tokenization_spaces": False,
            "chat_template": TEMPLATE,
        },
    )
    write_json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 128,
            "intermediate_size": 352,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 32,
            "hidden_act": "silu",
            "max_position_embeddings": 2048,
            "rope_theta": 10000.0,
            "rms_norm_eps": 1e-05,
            "initializer_range": 0.08,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            **ids,
            "torch_dtype": "float32",
            "use_cache": True,
        },
    )
    write_json(folder / "generation_config.json", {**ids, "max_new_tokens": 16})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--seed", type=int, default=20260)
    parser.add_argument("--train", type=int, default=30000, help="dialogues for training")
    parser.add_argument("--validation", type=int, default=128, help="dialogues for validation")
    parser.add_argument("--vocabulary", type=int, default=600)
    args = parser.parse_args()
    sample = corpus(args.seed, "train", 1000, lambda rng: dialogue(rng, SHARE_OF_QUESTIONS))
    # Each item's sentence is one token, so that a small model need not learn to read.
    sentences = [" " + sentence for sentence, _, _ in ITEMS]
    text = (m["content"] for episode in sample for m in episode["messages"])
    make_model_folder(args.out / "model", args.vocabulary, text, sentences)
    # Validation is on questionnaires only: questions have no answers to measure.
    for split, count, share in (("train", args.train, SHARE_OF_QUESTIONS), ("validation", args.validation, 0.0)):
        write_corpus(args.out / "text", args.seed, split, count, lambda rng: dialogue(rng, share))


if __name__ == "__main__":
    main()
