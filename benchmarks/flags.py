"""Many identities at once, after MACE's celebrities: 1, 10 and 100 flags erased by ItD without retraining, 100 others kept.

    python benchmarks/flags.py --model icons --sae SAE --out FOLDER [--erase 1 10 100] [--kept 100] [--split test] [--set value=-8]

Flags that the base draws in at least 90 % of the pictures (`efface icons check`, by both judges) are dealt by lot into erased and kept. Each is
asked for by its name in the split's templates, one picture a prompt and seed. Acc_e and Acc_s are mean probabilities of the asked flag (judge A;
B beside it), H_c their harmonic mean; the base, a random-feature edit behind the same gate and a string filter stand beside.
Seconds are of the fit, gate calibration included.
"""

import argparse
import json
import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from _timing import machine

from efface.base.config import parse_assignments
from efface.deactivate.concept import Concept
from efface.deactivate.edit import Edit
from efface.deactivate.erasing import erase
from efface.sae import SAE
from efface.t2i.evaluation.judging import class_index, load_judges
from efface.t2i.evaluation.metrics import mace
from efface.t2i.icons.concepts import plain
from efface.t2i.models import load_pipeline


def drawn_flags(path: Path) -> list[str]:
    """Names of the admitted flags."""
    return [f["name"] for f in json.loads(path.read_text())["flags"] if f["admitted"]]


def main() -> None:
    """Command line; see the module's docstring."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", default="icons")
    args.add_argument("--sae", required=True)
    args.add_argument("--cells", type=Path, required=True)
    args.add_argument("--out", type=Path, required=True)
    args.add_argument("--erase", type=int, nargs="+", default=[1, 10, 100])
    args.add_argument("--kept", type=int, default=100)
    args.add_argument("--split", default="validation")
    args.add_argument("--seeds", type=int, default=2)
    args.add_argument("--set", action="append", default=[])
    args.add_argument("--threads", type=int, default=2)
    o = args.parse_args()
    torch.set_num_threads(o.threads)
    host, sae = load_pipeline(o.model), SAE.load(o.sae)
    judges = load_judges("icons/flag")
    names = drawn_flags(o.cells)
    random.Random(0).shuffle(names)
    concepts = {n: Concept.load(f"icons/flag-{plain(n)}") for n in names}
    most = min(max(o.erase), len(names) - min(o.kept, len(names) // 2))
    erased, kept = names[:most], names[most : most + o.kept]
    asked = [(n, p, s) for n in (*erased, *kept) for p in concepts[n].target[o.split][:2] for s in range(o.seeds)]

    def draw() -> torch.Tensor:
        return host.generate([p for _, p, _ in asked], seeds=[1000 + s for *_, s in asked], batch=32)

    def judged(images: torch.Tensor, n: int) -> dict[str, dict[str, float]]:
        out = {}
        for judge in judges:
            scores = judge.scores(images).numpy()
            p = np.array([scores[i, class_index(judge, name)] for i, (name, *_) in enumerate(asked)])
            mine, rest = (np.array([name in some for name, *_ in asked]) for some in (set(erased[:n]), set(kept)))
            out[judge.name] = {k: v.mean for k, v in mace(p[mine], p[rest]).items()}
        return out

    base = draw()
    rows = [{"erased": 0, "row": "base", **judged(base, most)}]
    for n in sorted({min(n, most) for n in o.erase}):
        start = time.perf_counter()
        edit = erase("itd", host, [concepts[f] for f in erased[:n]], [sae], preset="efface", **parse_assignments(o.set))
        seconds = time.perf_counter() - start
        with edit.applied(host):
            after = draw()
        same = (after == base).flatten(1).all(1).numpy()
        mine = np.array([name in set(erased[:n]) for name, *_ in asked])
        rest = np.array([name in set(kept) for name, *_ in asked])
        about = {"seconds_to_fit": seconds, "erased_untouched": float(same[mine].mean()), "kept_bit_identical": float(same[rest].mean())}
        rows.append({"erased": n, "row": "itd", **judged(after, n), **about})
        layer = edit.parts[0]
        others = [f for f in range(sae.cfg.d_sae) if f not in set(layer.features)]
        drawn = random.Random(n).sample(others, min(len(layer.features), len(others)))
        control = replace(layer, features=tuple(drawn))
        with Edit([control], "random features", gate=edit.gate).applied(host):
            rows.append({"erased": n, "row": "random features", **judged(draw(), n)})
        white = base.clone()
        white[torch.from_numpy(mine)] = 255
        rows.append({"erased": n, "row": "string filter", **judged(white, n)})
        for row in rows[-3:]:
            print(json.dumps(row), flush=True)
    o.out.mkdir(parents=True, exist_ok=True)
    found = {
        "model": host.name,
        "digest": host.digest,
        "split": o.split,
        "flags": {"erased": erased, "kept": kept},
        "set": o.set,
        "rows": rows,
    }
    (o.out / "flags.json").write_text(json.dumps({**found, "machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
