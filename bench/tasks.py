"""What the generators of synthetic tasks give: examples a second on one core, and how many different shapes they have.

    python bench/tasks.py [--data ../shared/data] [--count 10000] [--only told,offered]

A shape (skeleton) is a prompt with names, codes and numbers taken out. Prints a card and one final JSON line.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

from smelt.data.tasks.catalog import LANGUAGES
from smelt.data.tasks.diversity import distinct_skeletons
from smelt.data.tasks.mixture import GENERATORS
from smelt.data.tasks.values import Values
from smelt.data.text import Pools, read_pools

LONG = {"long": 20, "longer": 100}  # their examples are as long as that many others; fewer are measured


def rate(name: str, count: int, pools: Pools) -> float:
    """Examples per second of processor time, values and noise out of running text included."""
    began = time.process_time()
    for i in range(count):
        GENERATORS[name](Values(random.Random(f"rate/{i}"), LANGUAGES[i % 3], "train", pools))
    return count / (time.process_time() - began)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=None, help="folder with running text; own words alone without")
    parser.add_argument("--count", type=int, default=10_000, help="examples to count shapes in")
    parser.add_argument("--only", default="", help="names, comma between them")
    arguments = parser.parse_args()
    pools = read_pools(arguments.data, 400_000)
    found = {}
    for name in arguments.only.split(",") if arguments.only else GENERATORS:
        count = arguments.count // LONG.get(name, 1)
        per_second = rate(name, max(1, count // 5), pools)
        shapes = distinct_skeletons(GENERATORS[name], count)
        found[name] = {"examples_per_s": round(per_second), "count": count, "skeletons": shapes}
        print(f"{name:14} {per_second:8.0f} examples/s   {shapes:6} shapes in {count}", flush=True)
    print(json.dumps({"bench": "tasks", "generators": found}))


if __name__ == "__main__":
    main()
