"""How well gates of the packaged concepts tell target from neighbours, and how often they fire on general text. `test` split.

    python benchmarks/gate.py --model smollm2 --sae SAES [--concept NAME …] [--fpr 0.01] [--json FILE]

Features, standardisation and threshold come from `train` and `validation`.
`--probe 8 14` instead fits a logistic regression on the mean of `resid_post` over each `train` text (target against neighbours and 200 general texts) and
scores `validation`: what any linear reading of the host could do with as many texts.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from efface.base.errors import MatchedNothing
from efface.base.files import cache_dir, write_json
from efface.deactivate.concept import Concept, packaged_concepts
from efface.deactivate.evaluation.auroc import auroc
from efface.deactivate.evaluation.cards import count_look
from efface.llm.gating import concept_gate, judge_gate
from efface.llm.host import Host
from efface.llm.models import load_model
from efface.llm.pools import general_texts, pool_texts
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


def means(host: Host, texts: Sequence[str], points: list[str]) -> dict[str, np.ndarray]:
    """Hook point -> mean over each text's tokens."""
    rows: dict[str, list[torch.Tensor]] = {p: [] for p in points}
    for first in range(0, len(texts), 32):
        ids, mask = host.encode_texts(list(texts[first : first + 32]))
        keep = host.keep_mask(ids, mask)[..., None].float()
        for p, x in host.activations(ids, mask, points).items():
            rows[p].append((x * keep).sum(1) / keep.sum(1).clamp(min=1))
    return {p: torch.cat(r).numpy() for p, r in rows.items()}


def probe(host: Host, concept: Concept, points: list[str]) -> dict[str, dict[str, float]]:
    """Hook point -> AUROC on `validation` against neighbours and general texts."""
    pools = {
        (pool, split): means(host, texts, points)
        for split in ("train", "validation")
        for pool, texts in (
            ("target", pool_texts(concept, "target", split)),
            ("neighbours", pool_texts(concept, "neighbours", split)),
            ("general", general_texts(concept, split, 200, 0)),
        )
    }
    found: dict[str, dict[str, float]] = {}
    for p in points:
        x = [pools[pool, "train"][p] for pool in ("target", "neighbours", "general")]
        y = np.repeat([1, 0, 0], [len(part) for part in x])
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.003, class_weight="balanced", max_iter=500)).fit(
            np.concatenate(x), y
        )
        scores = {pool: model.decision_function(pools[pool, "validation"][p]).tolist() for pool in ("target", "neighbours", "general")}
        found[p] = {pool: auroc(scores["target"], scores[pool]).mean for pool in ("neighbours", "general")}
    return found


def main() -> None:
    """Command line; see the module's docstring."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", default="smollm2")
    args.add_argument("--sae", type=Path, help="folder of SAE folders")
    args.add_argument("--layers", type=int, nargs="*", help="of these only")
    args.add_argument("--concept", nargs="*", default=sorted(packaged_concepts()))
    args.add_argument("--probe", type=int, nargs="*", help="layers of the supervised probe, in the place of gates")
    args.add_argument("--fpr", type=float, default=0.01)
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--json", type=Path)
    options = args.parse_args()
    torch.set_num_threads(options.threads)
    host = load_model(options.model)
    if options.probe:
        points = [f"layers.{n}.resid_post" for n in options.probe]
        probed = {name: probe(host, Concept.load(name), points) for name in options.concept}
        print(json.dumps(probed, indent=1))
        if options.json:
            write_json(options.json, {"model": options.model, "split": "validation", "concepts": probed})
        return
    if not options.sae:
        args.error("--sae SAES is needed, or --probe LAYERS")
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
        count_look(cache_dir() / "looks", concept.digest, "test")
        found[name] = {"features": {s.hook_point: len(s.features) for s in gate.sources}, **judge_gate(host, gate, concept)}
        print(name, json.dumps(found[name]), flush=True)
        if options.json:
            write_json(options.json, {"model": options.model, "fpr": options.fpr, "concepts": found})


if __name__ == "__main__":
    main()
