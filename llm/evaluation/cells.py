"""A cell of `efface bench` grids: one eraser on one concept of one host, fitted, measured beside its controls.

format: 1
cell: efface.llm.evaluation.cells:erasure
axes: {concept: [baseball, dogs], eraser: [pisces]}
common: {model: smollm2, sae: SAES, split: test, set: {preset: efface, search: true}}
"""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.config import from_mapping
from ...base.errors import InputError
from ...base.files import read_json, sha256_bytes, write_json

if TYPE_CHECKING:
    from ...deactivate.edit import Edit
    from ...deactivate.evaluation import Result
    from ...sae import SAE
    from ..host import Host


@dataclass(frozen=True)
class ErasureCell:
    """Inputs of a cell, besides `set`: a mapping of the eraser's settings."""

    model: str
    """Alias, folder or hub id."""
    concept: str
    """Packaged name or file."""
    eraser: str
    """A name of `efface methods`."""
    sae: str = ""
    """Folder of SAE folders, where the eraser needs them."""
    layers: tuple[int, ...] = ()
    """SAEs of these layers only; empty: all."""
    split: str = "test"
    """Split that is measured."""
    draws: int = 10
    """Draws of random features."""
    texts: int = 60
    """Neutral and concept texts read, at most."""
    max_tokens: int = 64
    """Tokens read of each."""
    relearn: tuple[str, ...] = ()
    """Fine-tuning attacks: full, lora."""
    dtype: str = "float32"
    seed: int = 0


def erasure(inputs: Mapping[str, Any], work: Path) -> dict[str, Any]:
    """Fits, measures, and leaves `edit/` and `result.json` in `work`; an edit that lies there is not fitted again.

    Returns shares of the base's figures: see `figures`.
    """
    from ...deactivate.concept import Concept
    from ...deactivate.edit import Edit
    from ...deactivate.erasing import erase
    from .suite import SuiteConfig, evaluate

    settings = inputs.get("set") or {}
    if not isinstance(settings, Mapping):
        raise InputError(f"inputs of the cell: set must map settings of the eraser to values, {settings!r} found")
    cell = from_mapping(ErasureCell, {k: v for k, v in inputs.items() if k != "set"}, where="inputs of the cell")
    host, saes = _loaded(cell.model, cell.dtype, cell.sae, cell.layers)
    concept = Concept.load(cell.concept)
    started, read = time.perf_counter(), reads(inputs)
    if (work / "edit").is_dir() and (not (work / "reads.json").is_file() or read_json(work / "reads.json") != read):
        shutil.rmtree(work / "edit")  # the concept file or an SAE has changed since
    if not (work / "edit").is_dir():
        write_json(work / "reads.json", read)
        edit = erase(cell.eraser, host, [concept], saes, seed=cell.seed, **settings)
        edit.save(work / "edit")
    edit, fitted = Edit.load(work / "edit"), time.perf_counter() - started
    controls = ("random features",) if saes and cell.eraser == "pisces" else ("random directions",)
    suite = from_mapping(
        SuiteConfig,
        {"texts": cell.texts, "max_tokens": cell.max_tokens, "continuations": 0, "draws": cell.draws, "controls": controls,
         "relearn": cell.relearn, "seed": cell.seed},
        where="suite",
    )  # fmt: skip
    result = evaluate(host, [edit], concept, cell.split, suite, saes=_used(saes, edit))
    write_json(work / "result.json", result.to_json())
    return {**figures(result), "seconds to fit": fitted, "seconds": time.perf_counter() - started}


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
def _loaded(model: str, dtype: str, folder: str, layers: tuple[int, ...]) -> "tuple[Host, tuple[SAE, ...]]":
    """Host and SAEs; kept for the next cell, which often wants the same."""
    from ...sae import SAE
    from ..models import load_model
    from ..scanning import layer_of

    found = [SAE.load(p) for p in sorted(Path(folder).iterdir()) if (p / "efface.json").is_file()] if folder else []
    return load_model(model, dtype=dtype), tuple(s for s in found if not layers or layer_of(s) in layers)


def _used(saes: "tuple[SAE, ...]", edit: "Edit") -> "list[SAE]":
    """Those of the layers that the edit changes: the control draws from no others."""
    from ..reporting import used_features

    points = {f.hook_point for f in used_features(edit.evidence)}
    return [s for s in saes if not points or str(s.card["hook_point"]) in points]


def figures(result: "Result") -> dict[str, float | None]:
    """What the goals are about, as shares of the base's figures; None where the concept has no such items."""
    rows = {r.kind if r.kind != "control" else r.name: r.metrics for r in result.rows}
    base, edited = rows["base"], rows["edited"]
    random = next((m for name, m in rows.items() if name.startswith("random ")), {})
    name = next((n for n in rows if n.startswith("random ")), "random")

    def lost(row: Mapping[str, Any], metric: str) -> float | None:
        return 1 - row[metric].mean / base[metric].mean if metric in row and metric in base else None

    pair = result.extra.get(f"fall - 3 x {name}, unseen", {}).get("difference", {})
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
    }
    return {k: None if v is None else float(v) for k, v in found.items()}
