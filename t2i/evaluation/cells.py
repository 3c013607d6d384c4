"""A cell of `efface bench` grids on image pipelines: one eraser on one concept, fitted, drawn, judged beside its controls.

format: 1
cell: efface.t2i.evaluation.cells:erasure
axes: {concept: [icons/dog, icons/style-noto], eraser: [itd]}
common: {model: icons, sae: [SAE], split: test, set: {preset: efface}}
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
    from ...deactivate.evaluation import Result
    from ...sae import SAE
    from ..host import ImageHost


@dataclass(frozen=True)
class PictureCell:
    """Inputs of a cell, besides `set`, the eraser's settings, and `suite`, those of the image suite: mappings."""

    model: str
    """Alias, folder or hub id."""
    concept: str
    """Packaged name or file."""
    eraser: str
    """A name of `efface methods`."""
    sae: tuple[str, ...] = ()
    """SAE folders, where the eraser needs them."""
    split: str = "validation"
    """Split that is measured."""
    cells: str = ""
    """`cells.json` of `efface icons check`; empty: the packaged one."""
    gold: str = ""
    """A pipeline trained without the concept; empty: none."""
    dtype: str = "float32"
    seed: int = 0


def erasure(inputs: Mapping[str, Any], work: Path) -> dict[str, Any]:
    """Fits, draws and judges; leaves `edit/`, `result.json`, `report.html` and sheets in `work`. An edit that lies there is not fitted again.

    Returns the goals' figures: see `goals`.
    """
    from ...deactivate.concept import Concept
    from ...deactivate.edit import Edit
    from ...deactivate.erasing import erase
    from ..icons.cells import cells_of
    from ..models import load_pipeline
    from .reporting import write_evaluation
    from .suite import ImageSuiteConfig, evaluate

    for name in ("set", "suite"):
        if not isinstance(inputs.get(name) or {}, Mapping):
            raise InputError(f"inputs of the cell: {name} must map settings to values, {inputs[name]!r} found")
    plain = {k: v for k, v in inputs.items() if k not in ("set", "suite")}
    cell = from_mapping(PictureCell, plain, where="inputs of the cell")
    host, saes = _loaded(cell.model, cell.dtype, cell.sae)
    concept, read = Concept.load(cell.concept), reads(inputs)
    started = time.perf_counter()
    if (work / "edit").is_dir() and (not (work / "reads.json").is_file() or read_json(work / "reads.json") != read):
        shutil.rmtree(work / "edit")  # the concept file or an SAE has changed since
    if not (work / "edit").is_dir():
        write_json(work / "reads.json", read)
        erase(cell.eraser, host, [concept], saes, seed=cell.seed, **(inputs.get("set") or {})).save(work / "edit")
    edit, fitted = Edit.load(work / "edit"), time.perf_counter() - started
    admitted, note = cells_of(cell.model, Path(cell.cells) if cell.cells else None, host.sampling)
    suite = from_mapping(ImageSuiteConfig, dict(inputs.get("suite") or {}), where="suite")
    never = load_pipeline(cell.gold, dtype=cell.dtype) if cell.gold else None
    found = evaluate(host, [edit], concept, cell.split, suite, cells=admitted, gold=never)
    shutil.rmtree(work / "report", ignore_errors=True)
    (work / "report").mkdir()
    write_evaluation(work / "report", found, notes=(note,))
    return {**goals(found.result), "seconds to fit": fitted, "seconds": time.perf_counter() - started}


def reads(inputs: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the concept and of the SAEs' manifests (which hold those of their tensors and of the model)."""
    from ...deactivate.concept import Concept

    found = {"concept": Concept.load(str(inputs.get("concept", ""))).digest}
    for folder in inputs.get("sae") or ():
        path = Path(folder) / "efface.json"
        if path.is_file():
            found[f"SAE {folder}"] = sha256_bytes(path.read_bytes())
    return found


setattr(erasure, "reads", reads)  # noqa: B010  (what `deactivate.evaluation.grid` asks a cell's function for)


@lru_cache(maxsize=1)
def _loaded(model: str, dtype: str, folders: tuple[str, ...]) -> "tuple[ImageHost, tuple[SAE, ...]]":
    """Host and SAEs; kept for the next cell, which often wants the same."""
    from ...sae import SAE
    from ..models import load_pipeline

    return load_pipeline(model, dtype=dtype), tuple(SAE.load(f) for f in folders)


GOALS = (
    "UA",
    "UA_rel",
    "UA_seen",
    "UA_held_out",
    "IRA",
    "IRA_rel",
    "IRA_nb",
    "CRA",
    "CRA_rel",
    "CRA_0",
    "ALIGN",
    "kept",
    "H_c",
    "KID_gold",
)
BESIDE = ("UA_rel", "UA_held_out", "IRA_rel", "ALIGN", "kept", "KID_gold")
"""Figures of the goals, and those that are told of the controls too."""


def goals(result: "Result") -> dict[str, float | None]:
    """The edited host's figures, the base's accuracies, and the controls' beside them; None where the prompts do not measure one."""
    rows = {r.kind if r.kind != "control" else r.name: r.metrics for r in result.rows}
    found = {k: rows["edited"][k].mean if k in rows["edited"] else None for k in GOALS}
    same = result.extra.get("identical", {}).get(next((r.name for r in result.rows if r.kind == "edited"), ""), {})
    found |= {"identical": same.get("general"), "identical neighbours": same.get("neighbours")}
    found |= {f"base {k}": rows["base"][k].mean for k in ("UA", "IRA", "CRA") if k in rows["base"]}
    for name, metrics in rows.items():
        if name not in ("base", "edited", "blank output"):
            found |= {f"{name}: {k}": metrics[k].mean for k in BESIDE if k in metrics}
    return {k: None if v is None else float(v) for k, v in found.items()}
