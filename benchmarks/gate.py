"""How well gates of the packaged concepts tell target from neighbours, and how often they fire on general text. `test` split.

    python benchmarks/gate.py --model smollm2 --sae SAES [--concept NAME …] [--fpr 0.01] [--json FILE]

Features, standardisation and threshold come from `train` and `validation`.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from efface.base.errors import MatchedNothing
from efface.base.files import write_json
from efface.deactivate.concept import Concept, packaged_concepts
from efface.llm.gating import concept_gate, judge_gate
from efface.llm.host import Host
from efface.llm.models import load_model
from efface.sae import SAE


def remember(host: Host, points: list[str]) -> None:
    """Forward passes that were run before are not run again: all gates read the same general pool, in the same batches."""
    run, store = host.activations, {}

    def activations(input_ids: torch.Tensor, attention_mask: torch.Tensor, hook_points: Sequence[str]) -> dict[str, torch.Tensor]:
        key = tuple(input_ids.shape), input_ids.numpy().tobytes()
        if key not in store:
            store[key] = run(input_ids, attention_mask, points)
        return {p: store[key][p] for p in hook_points}

    host.activations = activations  # type: ignore[method-assign]


def main() -> None:
    """Command line; see the module's docstring."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", default="smollm2")
    args.add_argument("--sae", type=Path, required=True, help="folder of SAE folders")
    args.add_argument("--layers", type=int, nargs="*", help="of these only")
    args.add_argument("--concept", nargs="*", default=sorted(packaged_concepts()))
    args.add_argument("--fpr", type=float, default=0.01)
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--json", type=Path)
    options = args.parse_args()
    torch.set_num_threads(options.threads)
    host = load_model(options.model)
    saes = [SAE.load(p) for p in sorted(options.sae.iterdir()) if (p / "efface.json").is_file()]
    saes = [s for s in saes if not options.layers or int(str(s.card["hook_point"]).split(".")[1]) in options.layers]
    remember(host, [str(s.card["hook_point"]) for s in saes])
    found: dict[str, dict[str, Any]] = {}
    for name in options.concept:
        concept = Concept.load(name)
        try:
            gate = concept_gate(host, concept, saes, fpr=options.fpr)
        except MatchedNothing as e:
            found[name] = {"error": str(e)}
            print(name, e, flush=True)
            continue
        found[name] = {"features": {s.hook_point: list(s.features) for s in gate.sources}, **judge_gate(host, gate, concept)}
        print(name, json.dumps(found[name]), flush=True)
        if options.json:
            write_json(options.json, {"model": options.model, "fpr": options.fpr, "concepts": found})


if __name__ == "__main__":
    main()
