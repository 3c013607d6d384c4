"""Which prompts of `test` open the gates of the edits that a grid left behind, no picture drawn: a prompt that opens none is drawn to the bit.

    efface bench benchmarks/itd.yaml --out DIR
    python benchmarks/false_triggers.py DIR --model icons [--json FILE]

Each edit's concept: all its general prompts, its neighbours', its own by name and in other words (`seen` by the fit, `held_out` from it), beside the
string filter on the concept's name and seen synonyms. Wilson intervals; of all edits together the sums.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from efface.base.files import read_json, write_json
from efface.deactivate.concept import Concept
from efface.deactivate.edit import Edit
from efface.deactivate.evaluation.statistics import wilson
from efface.t2i.evaluation.prompts import Ask, asks
from efface.t2i.evaluation.suite import named_in
from efface.t2i.models import load_pipeline
from efface.t2i.pools import with_general


def every(concept: Concept, split: str) -> list[Ask]:
    """All prompts of a split that have labels, each once."""
    found = asks(concept, split, general=10**6, ways=10**6)
    return list({a.text: a for a in found}.values())


def main() -> None:
    """Command line; see the module's docstring."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("grid", type=Path)
    args.add_argument("--model", default="icons")
    args.add_argument("--split", default="test")
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--json", type=Path)
    o = args.parse_args()
    torch.set_num_threads(o.threads)
    host, rows = load_pipeline(o.model), {}
    fired, of = Counter[str](), Counter[str]()
    for place in sorted(o.grid.glob("cells/*/cell.json")):
        cell = read_json(place)
        concept = with_general(Concept.load(cell["inputs"]["concept"]))
        gate = Edit.load(place.parent / "work" / "edit").gate
        assert gate is not None
        asked = every(concept, o.split)
        open_ = gate.fires(gate.score(host, [a.text for a in asked], batch=64)).numpy()
        by_name = named_in(asked, (concept.name, *concept.synonyms.get("seen", ())))
        kinds = np.array([a.group if a.group != "ways" else f"ways, {a.way}" for a in asked])
        row = {}
        for kind in dict.fromkeys(kinds.tolist()):
            mine = kinds == kind
            for name, what in (("gate", open_), ("string filter", by_name)):
                v = wilson(int(what[mine].sum()), int(mine.sum()))
                row[f"{kind}: {name}"] = {"rate": v.mean, "low": v.low, "high": v.high, "n": v.n}
                fired[f"{kind}: {name}"] += int(what[mine].sum())
                of[f"{kind}: {name}"] += int(mine.sum())
        rows[cell["inputs"]["concept"]] = row
        print(cell["inputs"]["concept"], {k: f"{v['rate']:.4f} of {v['n']}" for k, v in row.items()}, flush=True)
    total = {k: wilson(fired[k], of[k]) for k in of}
    together = {k: {"rate": v.mean, "low": v.low, "high": v.high, "n": v.n} for k, v in total.items()}
    print("together", {k: f"{v['rate']:.4f} [{v['low']:.4f}, {v['high']:.4f}] of {v['n']}" for k, v in together.items()})
    if o.json:
        write_json(o.json, {"model": host.name, "digest": host.digest, "split": o.split, "edits": rows, "together": together})


if __name__ == "__main__":
    main()
