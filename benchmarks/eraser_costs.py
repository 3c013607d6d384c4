"""Seconds of the pieces of a cell of llm_erasers.yaml: a look at `validation`, a few training steps of each method, a whole fit of the others.

    python benchmarks/eraser_costs.py --concept baseball --steps 3 look elm npo graddiff

Run it where the grid is run: SAES/… are the grid's. Nothing is measured on `test`.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from efface.deactivate.concept import Concept
from efface.deactivate.erasing import erase
from efface.deactivate.evaluation.grid import Grid
from efface.llm.evaluation.cell_inputs import fewer, parsed
from efface.llm.evaluation.trials import Looking
from efface.llm.evaluation.validation import Validation
from efface.llm.models import load_model
from efface.sae import SAE

GRID = Path(__file__).with_name("llm_erasers.yaml")
TRAINED = ("elm", "npo", "graddiff", "rmu", "crisp")


def main() -> None:
    """Command line; see the module's docstring."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--concept", default="baseball")
    args.add_argument("--steps", type=int, default=3, help="training steps; 0: all of the grid's")
    args.add_argument("--threads", type=int, default=1)
    args.add_argument("pieces", nargs="+", help="look, or erasers of the grid")
    o = args.parse_args()
    torch.set_num_threads(o.threads)
    inputs = {c.axes["eraser"]: c.inputs for c in Grid.load(GRID).cells() if c.axes["concept"] == o.concept}
    cell = parsed(inputs["elm"])[0]
    host, concept = load_model(cell.model), Concept.load(o.concept)
    saes = [SAE.load(p.parent) for p in sorted(Path(cell.sae).glob("*/efface.json"))]
    for piece in o.pieces:
        begun = time.perf_counter()
        if piece == "look":
            Validation(host, fewer(concept, cell.questions, cell.seed), Looking(cell.texts, cell.max_tokens), cell.max_tokens)
            print(f"look: {time.perf_counter() - begun:.1f} s", flush=True)
            continue
        _, settings, trials, _ = parsed(inputs[piece])
        with tempfile.TemporaryDirectory() as folder:
            own = {**settings, **{k: v for k, v in trials[0].items() if k != "factor"}}
            if piece in TRAINED:
                own |= {"run": f"{folder}/run"} | ({"steps": o.steps} if o.steps else {})
            erase(piece, host, [concept], saes, **own)
            log = Path(folder) / "run/log.jsonl"
            steps = [round(json.loads(line)["seconds"], 2) for line in log.read_text().splitlines()] if log.is_file() else []
        print(f"{piece}: {time.perf_counter() - begun:.1f} s, of its steps {steps}", flush=True)


if __name__ == "__main__":
    main()
