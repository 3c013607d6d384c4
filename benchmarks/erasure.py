"""Does PISCES take a concept out, and more than random features do? One concept after another, on `test`, beside its controls.

    python benchmarks/erasure.py --model smollm2 --sae SAES --out DIR [--concept NAME …] [--set KEY=VALUE …] [--draws 10]

Settings are chosen on `validation`. A concept whose folder is there is not run again. `--json FILE` gathers all of them.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from efface.base.config import from_mapping, parse_assignments
from efface.base.files import new_folder, write_json
from efface.deactivate.concept import Concept, packaged_concepts
from efface.deactivate.evaluation import Result
from efface.llm.evaluation.suite import SuiteConfig, evaluate
from efface.llm.host import Host
from efface.llm.methods.pisces import PiscesConfig
from efface.llm.methods.pisces.fit import fit
from efface.llm.models import load_model
from efface.sae import SAE

GOALS = {"unseen margin lost": 0.5, "neighbours lost": 0.1, "perplexity": 0.03}


def one(host: Host, concept: Concept, saes: list[SAE], config: PiscesConfig, suite: SuiteConfig, out: Path) -> None:
    """Fits, measures, and leaves `edit/` and `result.json` in `out`."""
    started = time.perf_counter()
    edit = fit(host, [concept], (), config, saes).bound(host)
    fitted = time.perf_counter() - started
    used = {int(n.split(".")[2]) for part in edit.parts for n in part.deltas}  # type: ignore[attr-defined]
    mine = [s for s in saes if int(str(s.card["hook_point"]).split(".")[1]) in used]
    result = evaluate(host, [edit], concept, "test", suite, saes=mine)
    with new_folder(out) as work:
        edit.save(work / "edit")
        write_json(work / "result.json", result.to_json())
        write_json(work / "seconds.json", {"fit": fitted, "evaluate": time.perf_counter() - started - fitted})


def summary(folder: Path) -> dict[str, Any]:
    """The figures that the goals are about, from a concept's folder."""
    result = Result.load(folder / "result.json")
    rows = {r.name: r.metrics for r in result.rows}
    base, edited, random = rows["base"], rows["pisces"], rows.get("random features")
    plan = json.loads((folder / "edit" / "edit.json").read_text())["evidence"]["concepts"][0]

    def lost(row: Any, name: str) -> float:
        return 1 - row[name].mean / base[name].mean

    pair = result.extra.get("fall - 3 x random features, unseen", {}).get("difference", {})
    figures = {
        "unseen margin lost": lost(edited, "margin_unseen"),
        "margin lost": lost(edited, "margin"),
        "accuracy": [base["accuracy"].mean, edited["accuracy"].mean],
        "neighbours lost": lost(edited, "neighbours_margin"),
        "perplexity": edited["ppl_neutral"].mean / base["ppl_neutral"].mean - 1,
        "random: unseen margin lost": lost(random, "margin_unseen") if random else None,
        "random: neighbours lost": lost(random, "neighbours_margin") if random else None,
        "random: perplexity": random["ppl_neutral"].mean / base["ppl_neutral"].mean - 1 if random else None,
        "fall - 3 x random features, unseen": {k: pair.get(k) for k in ("mean", "low", "high")},
        "items": result.extra["unseen"],
        "features": len(plan["features"]),
        "layers": sorted({f["hook_point"] for f in plan["features"]}),
        "tau": plan["tau"],
        "mu": plan["mu"],
        "validation": (plan["search"] or {}).get("best"),
        **json.loads((folder / "seconds.json").read_text()),
    }
    reached = figures["unseen margin lost"] >= GOALS["unseen margin lost"] and all(
        figures[k] <= GOALS[k] for k in ("neighbours lost", "perplexity")
    )
    return {**figures, "goals": bool(reached), "beats 3 x random": bool((pair.get("low") or -1) > 0)}


def main() -> None:
    """Command line; see the module's docstring."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", default="smollm2")
    args.add_argument("--sae", type=Path, required=True, help="folder of SAE folders")
    args.add_argument("--layers", type=int, nargs="*", help="of these only")
    args.add_argument("--out", type=Path, required=True)
    args.add_argument("--concept", nargs="*", default=sorted(packaged_concepts()))
    args.add_argument("--set", nargs="*", default=[], dest="settings")
    args.add_argument("--draws", type=int, default=10)
    args.add_argument("--texts", type=int, default=60)
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--json", type=Path)
    options = args.parse_args()
    torch.set_num_threads(options.threads)
    config = from_mapping(PiscesConfig, {"preset": "efface", "search": True, **parse_assignments(options.settings)}, where="--set")
    suite = SuiteConfig(texts=options.texts, max_tokens=64, continuations=0, draws=options.draws, controls=("random features",))
    todo = [c for c in options.concept if not (options.out / c / "result.json").is_file()]
    if todo:
        host = load_model(options.model)
        folders = [p for p in sorted(options.sae.iterdir()) if (p / "efface.json").is_file()]
        saes = [SAE.load(p) for p in folders]
        saes = [s for s in saes if not options.layers or int(str(s.card["hook_point"]).split(".")[1]) in options.layers]
        for name in todo:
            one(host, Concept.load(name), saes, config, suite, options.out / name)
            print(name, json.dumps(summary(options.out / name)), flush=True)
    found = {c: summary(options.out / c) for c in options.concept}
    if options.json:
        write_json(options.json, {"model": options.model, "settings": options.settings, "concepts": found})
    for name, f in found.items():
        print(
            f"{name:14} unseen -{f['unseen margin lost']:.0%}  neighbours -{f['neighbours lost']:.0%}  ppl {f['perplexity']:+.1%}  {f['goals']}"
        )


if __name__ == "__main__":
    main()
