"""What the layout of convolutions makes of a pipeline's pictures: one pipeline in both, in turn.

    python benchmarks/layout.py [--model icons] [--batch 1] [--steps 20] [--rounds 12] [--threads 2] [--out results/layout.json]

`contiguous` is how diffusers loads it, `channels last` how `load_pipeline` hands it on; seconds of a generation, and the ratio round by round.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
from _timing import interleaved, ratio, store

from efface.t2i.models import load_pipeline


def main() -> None:
    """Command line; see the module's docstring."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", default="icons")
    args.add_argument("--batch", type=int, default=1)
    args.add_argument("--steps", type=int, default=20)
    args.add_argument("--rounds", type=int, default=12)
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--out", type=Path)
    o = args.parse_args()
    torch.set_num_threads(o.threads)
    ours, plain = load_pipeline(o.model), load_pipeline(o.model)
    for part in plain.model.values():
        part.to(memory_format=torch.contiguous_format)
    prompts, seeds = ["a dog, noto style"] * o.batch, list(range(o.batch))
    hosts = {"contiguous": plain, "channels last": ours}
    drawn = {name: host.generate(prompts, seeds=seeds, batch=o.batch, steps=o.steps).int() for name, host in hosts.items()}

    def draws(host):
        return lambda: host.generate(prompts, seeds=seeds, batch=o.batch, steps=o.steps)

    seconds = interleaved({name: draws(host) for name, host in hosts.items()}, o.rounds)
    found = {
        "model": ours.name, "batch": o.batch, "steps": o.steps, "rounds": o.rounds,
        "median seconds": {name: statistics.median(s) for name, s in seconds.items()},
        "ratio to contiguous (quartiles)": ratio(seconds["channels last"], seconds["contiguous"]),
        "largest difference of a pixel, of 255": int((drawn["contiguous"] - drawn["channels last"]).abs().max()),
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    store(o.out, found)


if __name__ == "__main__":
    main()
