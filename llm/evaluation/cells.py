"""A cell of `efface bench` grids: one eraser on one concept of one host, fitted, measured beside its controls, attacked.

format: 1
cell: efface.llm.evaluation.cells:erasure
axes: {concept: [baseball, dogs], eraser: [pisces]}
common: {model: smollm2, sae: SAES, split: test, set: {preset: efface, search: true}}

Besides the fields of `ErasureCell` a cell takes `set`, a mapping of the eraser's settings; `trials`, a list of such mappings of which the
best on `validation` is taken (`trials.choose`); and `attacks`, a mapping of attacks to their settings.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.config import from_mapping
from ...base.errors import InputError, MatchedNothing
from ...base.files import read_json, sha256_bytes, write_json
from .cell_inputs import ROWS, UNFITTED, ErasureCell, fewer, parsed

if TYPE_CHECKING:
    from ...deactivate.concept import Concept
    from ...deactivate.edit import Edit
    from ...deactivate.evaluation import Result
    from ...sae import SAE
    from ..host import Host
    from .metrics import Measured
    from .suite import SuiteConfig

SHOWN = ("efficacy", "efficacy_unseen", "specificity", "coherence", "hm_local", "ppl_written", "distinct_written")
"""Metrics that stand in the figures with their intervals."""
_BASES: "dict[tuple[Any, ...], Measured]" = {}


def erasure(inputs: Mapping[str, Any], work: Path) -> dict[str, Any]:
    """Fits, measures and attacks; leaves `edit/`, `fit.json`, `result.json` in `work`; an edit that lies there is not fitted again.

    Returns shares of the base's figures, see `figures`; HM-local and its parts; `seconds to fit` (trials included), `seconds of a fit`,
    `peak bytes` of the process while the edit was made, `stored bytes` of its folder; and what attacks did (`attacks.summary`).
    """
    from ...deactivate.concept import Concept
    from .suite import evaluate

    cell, settings, trials, attacks = parsed(inputs)
    host, saes = _loaded(cell.model, cell.dtype, cell.device, cell.sae, cell.layers)
    concept = Concept.load(cell.concept)
    asked, begun = fewer(concept, cell.questions, cell.seed), time.perf_counter()
    edit = None if cell.row in UNFITTED else _edit(cell, settings, trials, host, saes, concept, asked, work, reads(inputs))
    edits, golds = [edit] if edit else [], [_gold(g, cell.dtype, cell.device) for g in cell.gold]
    used = _used(saes, edit) if edit else []
    suite = _suite(cell, bool(saes))
    seen = {"gold": golds if cell.row == "gold" else (), "base": _base(host, asked, cell.split, suite)}
    result = evaluate(host, edits, asked, cell.split, suite, saes=used, **seen)
    write_json(work / "result.json", result.to_json())
    found = {**figures(result, cell.row), **_costs(work)}
    if golds and cell.row in ("edited", "base", "gold"):
        found |= _beside_gold(host, edits, cell)
    if attacks and cell.row in ROWS:
        found |= _attacked(cell, attacks, host, edits, asked, used, golds, work, found["intervals"])
    return {**found, "seconds": time.perf_counter() - begun}


def _edit(
    cell: ErasureCell, settings: Mapping[str, Any], trials: Sequence[Mapping[str, Any]], host: "Host", saes: "Sequence[SAE]",
    concept: "Concept", asked: "Concept", work: Path, read: Mapping[str, str],
) -> "Edit":  # fmt: skip
    """The edit that lies in `work`, or a new one where what was read for it has changed."""
    from ...deactivate.edit import Edit
    from .trials import Fits, Looking, choose

    whole = all((work / name).is_file() for name in ("reads.json", "fit.json"))
    if (work / "edit").is_dir() and (not whole or read_json(work / "reads.json") != read):
        shutil.rmtree(work / "edit")  # the concept file or an SAE has changed since
    if not (work / "edit").is_dir():
        write_json(work / "reads.json", read)
        own = work / "fits"
        kept = Fits(Path(cell.fits) if cell.fits else own, host, concept, saes, cell.seed, read)
        looking = Looking(cell.texts, cell.max_tokens, cell.seed)
        method, fpr = cell.method or cell.eraser, cell.fpr if cell.gated else None
        found = choose(kept, method, settings, trials, asked=asked, fpr=fpr, looking=looking)
        write_json(work / "fit.json", found.record())
        found.edit.save(work / "edit")
        shutil.rmtree(own, ignore_errors=True)  # they were for a run that is interrupted before it has chosen
    return Edit.load(work / "edit")


def _suite(cell: ErasureCell, by_features: bool) -> "SuiteConfig":
    from .suite import SuiteConfig

    control = cell.row if cell.row.startswith("random ") else "random directions"
    if cell.row == "edited" and by_features and (cell.method or cell.eraser) == "pisces":
        control = "random features"
    return from_mapping(
        SuiteConfig,
        {"texts": cell.texts, "max_tokens": cell.max_tokens, "continuations": 0, "draws": cell.draws, "controls": (control,),
         "relearn": cell.relearn, "seed": cell.seed, "written": cell.written, "reader": cell.reader},
        where="suite",
    )  # fmt: skip


def _costs(work: Path) -> dict[str, Any]:
    """What the edit in `work` took, and what it takes to keep."""
    if not (work / "edit").is_dir():
        return {"trials": 0, "seconds to fit": 0.0, "stored bytes": 0}
    stored = sum(p.stat().st_size for p in (work / "edit").rglob("*") if p.is_file())
    fit = read_json(work / "fit.json")
    costs = {"trials": len(fit["tried"]), "seconds to fit": fit["seconds"], "seconds of a fit": fit["longest"]}
    return {**costs, "peak bytes": fit["peak"] if fit["peak own"] else None, "stored bytes": stored, "chosen": fit["best"]}


def _beside_gold(host: "Host", edits: "Sequence[Edit]", cell: ErasureCell) -> dict[str, Any]:
    """KS distance of truth ratios to the gold models' (of gold itself: among its seeds), in a domain of the synthetic world."""
    from .suite import applied
    from .truth_ratio import gold_distance

    domain = cell.concept.removeprefix("synthetic/").partition("-")[0]
    gold = [_gold_ratios(g, cell.dtype, cell.device, domain) for g in cell.gold]
    with applied(host, edits):
        told = gold_distance(_ratios(host, domain), gold)
    return {"KS to gold": told.spread if cell.row == "gold" else told.mean, "KS among gold": told.spread}


def _ratios(host: "Host", domain: str) -> list[float]:
    from ..synthetic.gold import items
    from ..synthetic.world import packaged_world
    from .scoring import score_questions
    from .truth_ratio import truth_ratios

    world = packaged_world()
    return list(truth_ratios(score_questions(host, items(world.of(domain), "question", world.seed), "question")))


@lru_cache(maxsize=16)
def _gold_ratios(model: str, dtype: str, device: str, domain: str) -> list[float]:
    """Of a gold model; the same for every cell."""
    return _ratios(_gold(model, dtype, device), domain)


def _attacked(
    cell: ErasureCell, attacks: Mapping[str, Mapping[str, Any]], host: "Host", edits: "Sequence[Edit]", asked: "Concept",
    saes: "Sequence[SAE]", golds: "Sequence[Host]", work: Path, intervals: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    from ..attacks.summary import attacked

    begun = time.perf_counter()
    found = attacked(
        host, edits, asked, work / "attacked", cell.split, attacks, ROWS[cell.row], saes=saes if cell.row == "random features" else (),
        gold=golds[0] if cell.row == "gold" else None, decoys=cell.decoys, seed=cell.seed,
    )  # fmt: skip
    return {**found, "intervals": {**intervals, **found["intervals"]}, "seconds to attack": time.perf_counter() - begun}


def reads(inputs: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the concept and of the SAEs' manifests (which hold those of their tensors and of the model)."""
    from ...deactivate.concept import Concept

    folder, layers = str(inputs.get("sae") or ""), inputs.get("layers") or ()
    found = {"concept": Concept.load(str(inputs.get("concept", ""))).digest}
    for path in sorted(Path(folder).glob("*/efface.json")) if folder else ():
        if not layers or int(read_json(path)["hook_point"].split(".")[1]) in layers:
            found[f"SAE {path.parent.name}"] = sha256_bytes(path.read_bytes())
    return found


setattr(erasure, "reads", reads)  # noqa: B010  (what `deactivate.evaluation.grid` asks a cell's function for)


@lru_cache(maxsize=1)
def _loaded(model: str, dtype: str, device: str, folder: str, layers: tuple[int, ...]) -> "tuple[Host, tuple[SAE, ...]]":
    """Host and SAEs; kept for the next cell, which often wants the same."""
    from ...sae import SAE
    from ..models import load_model
    from ..scanning import layer_of

    if folder and not Path(folder).is_dir():
        raise InputError(f"inputs of the cell: sae {folder} is no folder; `python benchmarks/saes.py` or `efface train` makes SAEs")
    found = [SAE.load(p) for p in sorted(Path(folder).iterdir()) if (p / "efface.json").is_file()] if folder else []
    return load_model(model, dtype=dtype, device=device), tuple(s for s in found if not layers or layer_of(s) in layers)


def _base(host: "Host", asked: "Concept", split: str, suite: "SuiteConfig") -> "Measured":
    """The unedited host; measured once for the cells that ask it the same."""
    from .suite import unedited

    key = (host.digest, asked.digest, split, replace(suite, draws=0, controls=(), relearn=()))  # but for what is done to edits
    if key not in _BASES:
        _BASES[key] = unedited(host, asked, split, suite)
    return _BASES[key]


@lru_cache(maxsize=4)
def _gold(model: str, dtype: str, device: str) -> "Host":
    """A model that was trained without a concept; small, and kept for the next cells."""
    from ..models import load_model

    return load_model(model, dtype=dtype, device=device)


def _used(saes: "tuple[SAE, ...]", edit: "Edit") -> "list[SAE]":
    """Those of the layers that the edit changes: the control draws from no others."""
    from ..reporting import used_features

    points = {f.hook_point for f in used_features(edit.evidence)}
    return [s for s in saes if not points or str(s.card["hook_point"]) in points]


def figures(result: "Result", row: str = "edited") -> dict[str, Any]:
    """What the goals are about, as shares of the base's figures; None where the concept has no such items.

    Args:
        result: Of the suite.
        row: Kind or name of the row that the figures are of.

    Raises:
        MatchedNothing: It is not there; says why.
    """
    rows = {r.kind if r.kind != "control" else r.name: r.metrics for r in result.rows}
    if row not in rows:
        raise MatchedNothing(f"row {row!r} was not measured: {'; '.join(result.extra.get('absent', ())) or 'it needs an edit'}")
    base, edited = rows["base"], rows[row]
    name = next((n for n in rows if n.startswith("random ")), "random")
    random = rows.get(name, {}) if row == "edited" else {}

    def lost(row: Mapping[str, Any], metric: str) -> float | None:
        return 1 - row[metric].mean / base[metric].mean if metric in row and metric in base else None

    pair = result.extra.get(f"fall - 3 x {name}, unseen", {}).get("difference", {}) if row == "edited" else {}
    found = {
        "margin lost": lost(edited, "margin"),
        "unseen margin lost": lost(edited, "margin_unseen"),
        "neighbours lost": lost(edited, "neighbours_margin"),
        "perplexity": edited["ppl_neutral"].mean / base["ppl_neutral"].mean - 1 if "ppl_neutral" in edited else None,
        "accuracy before": base["accuracy"].mean,
        "accuracy": edited["accuracy"].mean,
        f"{name}: unseen margin lost": lost(random, "margin_unseen"),
        f"{name}: neighbours lost": lost(random, "neighbours_margin"),
        **{f"fall - 3 x {name}, unseen, {k}": pair.get(k) for k in ("mean", "low", "high")},
        **{m.replace("_", " "): edited[m].mean if m in edited else None for m in SHOWN},
    }
    intervals = {m.replace("_", " "): [edited[m].low, edited[m].high, edited[m].n] for m in SHOWN if m in edited}
    return {**{k: None if v is None else float(v) for k, v in found.items()}, "intervals": intervals}
