#!/usr/bin/env python3
"""Reads a run's event file with the tensorboard package and compares it with metrics.jsonl.

    pip install tensorboard
    python scripts/check_tensorboard.py RUN…

One line is printed for each run; the exit code is 0 if all agree, 1 if one does not, 2 if tensorboard is not there.
"""

import json
import struct
import sys
from pathlib import Path

try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
except ImportError:
    print("check_tensorboard: not run: there is no tensorboard package (pip install tensorboard)")
    sys.exit(2)


def tag_of(name):
    if name == "lr":
        return "train/learning_rate"
    if name.startswith("validation_"):
        return "eval/" + name.removeprefix("validation_")
    return "train/" + name


def expected(run):
    """{tag: [(step, time, value as f32)]} of metrics.jsonl."""
    series = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name, value in record.items():
            if name not in ("step", "time") and isinstance(value, (int, float)):
                as_f32 = struct.unpack("f", struct.pack("f", value))[0]
                series.setdefault(tag_of(name), []).append((record["step"], record["time"], as_f32))
    return series


def read(run):
    accumulator = EventAccumulator(str(run), size_guidance={"scalars": 0, "tensors": 0})
    accumulator.Reload()
    tags = accumulator.Tags()
    series = {tag: [(e.step, e.wall_time, e.value) for e in accumulator.Scalars(tag)] for tag in tags["scalars"]}
    for tag in tags["tensors"]:
        events = accumulator.Tensors(tag)
        series[tag] = [(e.step, e.wall_time, e.tensor_proto.float_val[0]) for e in events]
    return series


def main():
    failed = False
    for run in map(Path, sys.argv[1:]):
        want, got = expected(run), read(run)
        wrong = sorted(tag for tag in want.keys() | got.keys() if want.get(tag) != got.get(tag))
        points = sum(len(points) for points in got.values())
        failed |= bool(wrong)
        print(f"{run}: {len(got)} tags, {points} points:", f"differ: {wrong}" if wrong else "as in metrics.jsonl")
    return 1 if failed or len(sys.argv) < 2 else 0


if __name__ == "__main__":
    sys.exit(main())
