"""A look at `validation` of a concept for each of several settings of an eraser: what the settings of a grid were chosen by.

    python benchmarks/looks.py elm aviation --set preset=efface length=24 --look eta=3.0 --look eta=0.0 --factors 0.7 1 1.4

Trains once a `--look`; prints fall of the margin / share of the neighbours' margin kept / coherence = their harmonic mean at each factor,
as a cell of `efface bench` takes them (`llm.evaluation.trials`), the accuracy on the concept's questions, and the seconds of the fit.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from efface.base.files import write_json
from efface.deactivate.concept import Concept
from efface.deactivate.erasing import erase
from efface.llm.evaluation.cell_inputs import fewer
from efface.llm.evaluation.scoring import score_questions
from efface.llm.evaluation.trials import Looking, multiplied
from efface.llm.evaluation.validation import Validation
from efface.llm.models import load_model


def setting(text: str) -> tuple[str, Any]:
    """name=value, the value as YAML has it."""
    name, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"{text!r} is no name=value")
    return name, yaml.safe_load(value)


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("eraser")
    args.add_argument("concept")
    args.add_argument("--model", default="smollm2")
    args.add_argument("--set", type=setting, nargs="+", default=[], help="settings of all looks")
    args.add_argument("--look", type=setting, nargs="+", action="append", default=[], help="settings of one look")
    args.add_argument("--factors", type=float, nargs="+", default=[0.7, 1.0, 1.4])
    args.add_argument("--questions", type=int, default=64)
    args.add_argument("--texts", type=int, default=24)
    args.add_argument("--threads", type=int, default=1)
    args.add_argument("--json", type=Path)
    o = args.parse_args()
    torch.set_num_threads(o.threads)
    host, concept, found = load_model(o.model), Concept.load(o.concept), []
    judge = Validation(host, fewer(concept, o.questions, 0), Looking(o.texts, 64), o.questions)
    base = score_questions(host, judge.questions, judge.form).accuracy
    print(f"base: right {base:.2f}", flush=True)
    for look in o.look or [[]]:
        own = dict([*o.set, *look])
        begun = time.perf_counter()
        edit = erase(o.eraser, host, [concept], (), seed=0, **own)
        seconds, seen = time.perf_counter() - begun, {}
        for factor in o.factors:
            with multiplied(edit, factor).applied(host):
                z, right = judge.seen(), score_questions(host, judge.questions, judge.form).accuracy
            seen[f"{factor:g}"] = {"fall": z.fall, "kept": z.kept, "coherence": z.coherence, "objective": z.objective, "accuracy": right}
        found.append({"settings": own, "seconds": seconds, "seen": seen})
        shown = "  ".join(
            f"{f}: {s['fall']:.2f} / {s['kept']:.2f} / {s['coherence']:.3f} = {s['objective']:.2f}, right {s['accuracy']:.2f}"
            for f, s in seen.items()
        )
        print(f"\n{json.dumps(dict(look))}, fit {seconds:.0f} s | {shown}", flush=True)
    if o.json:
        write_json(o.json, {"eraser": o.eraser, "concept": o.concept, "model": o.model, "base accuracy": base, "looks": found})


if __name__ == "__main__":
    main()
