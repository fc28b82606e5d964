#!/usr/bin/env python3
"""Makes what a small base model for configs/worlds/flights-small.toml is trained from, as make_base.py does for the one
that ships.

    python3 scripts/make_flights_base.py OUT

The dialogues read like those of that world, but the people in them are others: creatures of habit. How much somebody
likes a flight is the sum over both features of

    (mean over the rounds of the level taken above the list's mean - LEANING) × level of this flight,

levels from -2 (short, cheap) to 2, and the choice is a softmax of SHARPNESS times that. So a model learns to read lists and
what somebody took from them; not that fixed weights are behind it, and not to become surer with what it has seen. Without
the leaning to the short and cheap nothing could be predicted from a list alone, and 600 steps found nothing at all.
"""
import argparse
import math
from pathlib import Path

from make_base import corpus, make_model_folder, message, write_corpus

HOURS = [f"{hours} hours, " for hours in (2, 4, 6, 8, 10)]
PRICES = [f"${price}: " for price in (100, 200, 300, 400, 500)]
LABELS = "ABC"
INTRODUCTION = "Pick a flight for me."

SHARPNESS, LEANING = 2.0, 0.5
SHORTEST, LONGEST = 2, 10  # rounds of a dialogue


def mean(values):
    return sum(values) / max(len(values), 1)


def softmax(scores):
    weights = [math.exp(score - max(scores)) for score in scores]
    return [weight / sum(weights) for weight in weights]


def line(flight, label):
    hours, price = flight
    return HOURS[hours] + PRICES[price] + label


def dialogue(rng, shortest, longest):
    """(world, messages)"""
    messages, head = [], INTRODUCTION
    leanings = []  # of each round, (level of hours taken above the list's mean, the same of the price)
    for _ in range(rng.randint(shortest, longest)):
        flights = [(rng.randrange(5), rng.randrange(5)) for _ in LABELS]
        likes = [mean([leaning[i] for leaning in leanings]) - LEANING for i in range(2)]
        score = lambda flight: SHARPNESS * sum(like * (level - 2) for like, level in zip(likes, flight))
        probs = softmax([score(flight) for flight in flights])
        said, told = rng.choices(range(3), probs, k=2)
        listed = "\n".join(line(flight, label) for flight, label in zip(flights, LABELS))
        messages.append(message("user", f"{head}\n{listed}"))
        answer = {"start": 0, "options": list(LABELS), "probs": probs, "said": said, "truth": told}
        messages.append({**message("assistant", LABELS[said]), "answer": answer})
        leanings.append([flights[told][i] - mean([flight[i] for flight in flights]) for i in range(2)])
        head = f"I took {line(flights[told], LABELS[told])}."
    return "base-flights", messages


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--seed", type=int, default=20261)
    parser.add_argument("--train", type=int, default=48000, help="dialogues for training")
    parser.add_argument("--validation", type=int, default=128, help="dialogues for validation")
    args = parser.parse_args()
    of_any_length = lambda rng: dialogue(rng, SHORTEST, LONGEST)
    text = (m["content"] for episode in corpus(args.seed, "train", 300, of_any_length) for m in episode["messages"])
    # What a feature is is one token, so that a small model need not learn to read numbers.
    make_model_folder(args.out / "model", 290, text, HOURS + PRICES)
    write_corpus(args.out / "text", args.seed, "train", args.train, of_any_length)
    write_corpus(args.out / "text", args.seed, "validation", args.validation, lambda rng: dialogue(rng, 8, 8))


if __name__ == "__main__":
    main()
