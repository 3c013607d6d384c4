"""Linear erasers at one hook point of a language model: held-out probes, margins, R-LACE free and in a dictionary, folding, scrubbing.

    python benchmarks/linear_erasure.py --model smollm2 --concept baseball --sae saes/layers.5.mlp_out [--json FILE]

Hook point: the SAE's. Rows: LEACE, SAL, INLP with 8 rounds, R-LACE free and among the 8, 32 and 128 features that tell most, LEACE folded into the weights, and LEACE at `resid_post` of
every layer, one after another; beside LEACE's orthogonal projections of rank 1 on random directions. Probes are new logistic ones on `validation` tokens; margins,
neighbours and perplexity are those of `efface eval` on `validation`, as shares of the base's.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from _timing import machine

from efface.base.files import write_json
from efface.deactivate.concept import Concept
from efface.deactivate.erasing import erase
from efface.llm.evaluation.cells import figures
from efface.llm.evaluation.suite import SuiteConfig, evaluate, unedited
from efface.llm.models import load_model
from efface.sae import SAE


def rows(point: str, sae: SAE | None, layers: bool) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> (method, settings)."""
    at = [point]
    found: dict[str, tuple[str, dict[str, Any]]] = {
        "LEACE": ("leace", {"at": at}),
        "SAL": ("sal", {"at": at}),
        "INLP, 8 rounds": ("inlp", {"at": at}),
        "R-LACE": ("rlace", {"at": at}),
    }
    if sae is not None:
        found |= {f"R-LACE among {n} features": ("rlace", {"at": at, "features": n, "rounds": 20}) for n in (8, 32, 128)}
    if point.rpartition(".")[2] in ("mlp_in", "mlp_hidden", "mlp_out"):
        found["LEACE, folded"] = ("leace", {"at": at, "fold": True})
    if layers:
        found["LEACE, every resid_post"] = ("leace", {"at": ["layers.*.resid_post"]})
    return found


def main() -> None:
    """Command line; see the module's docstring."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", default="smollm2")
    args.add_argument("--concept", default="baseball")
    args.add_argument("--sae", type=Path)
    args.add_argument("--at", help="hook point, where no SAE is given")
    args.add_argument("--texts", type=int, default=200)
    args.add_argument("--draws", type=int, default=3, help="of the random control beside LEACE")
    args.add_argument("--only-probes", action="store_true", help="no margins")
    args.add_argument("--layers", action="store_true", help="scrub every layer, too")
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--json", type=Path)
    o = args.parse_args()
    torch.set_num_threads(o.threads)
    sae = SAE.load(o.sae) if o.sae else None
    point = o.at or (str(sae.card["hook_point"]) if sae else args.error("--sae or --at is needed"))
    host, concept = load_model(o.model), Concept.load(o.concept)
    out: dict[str, Any] = {
        "model": o.model,
        "concept": o.concept,
        "hook_point": point,
        "split": "validation",
        "machine": machine(),
        "rows": {},
    }
    base = None
    for name, (method, settings) in rows(point, sae, o.layers).items():
        start = time.perf_counter()
        edit = erase(method, host, concept, [sae] if sae else [], texts=o.texts, **settings)
        seconds = time.perf_counter() - start
        points = edit.evidence["points"]
        draws = o.draws if name == "LEACE" else 0
        suite = SuiteConfig(texts=40, max_tokens=64, continuations=0, draws=draws, controls=("random directions",))
        if not o.only_probes:
            base = base or unedited(host, concept, "validation", suite)
        result = {} if o.only_probes else figures(evaluate(host, [edit], concept, "validation", suite, base=base))
        row = {"seconds": seconds, **{k: points[-1].get(k) for k in ("rank", "vectors", "variance removed", "probe", "game")}, **result}
        row["fold"] = edit.evidence.get("fold")
        out["rows"][name] = row
        print(name, row, flush=True)
        if o.json:
            write_json(o.json, out)


if __name__ == "__main__":
    main()
