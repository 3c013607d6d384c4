"""What a gated edit costs in a whole generation: base and edited host in turn, the same prompts and seeds.

    python benchmarks/itd_cost.py --model icons --edit EDIT [--pairs 60] [--batch 1] [--out results/itd_cost.json]

Half of the prompts open the gate. A prompt's score is kept while an edit lies on a host, so each pair uses a prompt that was not
drawn before: the gate's reading is in the time. Stated is the ratio of the sums, with a 95 % bootstrap interval over pairs.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from _timing import machine

from efface.deactivate.concept import Concept
from efface.deactivate.edit import Edit
from efface.t2i.models import load_pipeline


def main() -> None:
    """Command line; see the module's docstring."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", default="icons")
    args.add_argument("--edit", type=Path, required=True)
    args.add_argument("--concept", default="icons/dog")
    args.add_argument("--pairs", type=int, default=60)
    args.add_argument("--batch", type=int, default=1)
    args.add_argument("--steps", type=int, help="denoising steps; the model's own unless given")
    args.add_argument("--threads", type=int, default=2)
    args.add_argument(
        "--clock", choices=["wall", "processor"], default="wall", help="processor: of one thread, where the machine is not quiet"
    )
    args.add_argument("--out", type=Path)
    o = args.parse_args()
    clock = time.perf_counter if o.clock == "wall" else time.process_time
    torch.set_num_threads(o.threads)
    host, edit, concept = load_pipeline(o.model), Edit.load(o.edit), Concept.load(o.concept)
    half = o.pairs * o.batch // 2 + 4 * o.batch
    prompts = [p for pair in zip(concept.target["validation"][:half], concept.general["validation"][:half], strict=False) for p in pair]
    seconds: list[tuple[float, float]] = []
    fires = edit.gate.fires(edit.gate.score(host, prompts)).double().mean().item() if edit.gate else 1.0
    for i in range(o.pairs + 3):
        some = prompts[i * o.batch : (i + 1) * o.batch]
        pair = {}
        for name in ("base", "edited") if i % 2 else ("edited", "base"):
            start = clock()
            if name == "base":
                host.generate(some, seed=i, batch=o.batch, steps=o.steps)
                pair[name] = clock() - start
                continue
            with edit.applied(host):  # put on and taken off outside of the time: it stays on in use
                start = clock()
                host.generate(some, seed=i, batch=o.batch, steps=o.steps)
                pair[name] = clock() - start
        if i >= 3:
            seconds.append((pair["base"], pair["edited"]))
    x = np.array(seconds)
    draws = np.random.default_rng(0).integers(len(x), size=(2000, len(x)))
    sums = x[draws].sum(1)
    ratios = sums[:, 1] / sums[:, 0]
    low, high = np.quantile(ratios, [0.025, 0.975])
    found = {
        "model": host.name, "edit": edit.name, "pairs": len(x), "batch": o.batch, "steps": o.steps or host.steps, "share that fires": fires, "clock": o.clock,
        "seconds": {"base": float(np.median(x[:, 0])), "edited": float(np.median(x[:, 1]))},
        "cost": {"mean": float(x[:, 1].sum() / x[:, 0].sum() - 1), "low": float(low - 1), "high": float(high - 1)}, "machine": machine(),
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    if o.out:
        o.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
