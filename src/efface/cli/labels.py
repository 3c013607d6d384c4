"""`efface labels`: what the labels of an SAE are worth, and the same evidence in the formats of other tools."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..base.errors import InputError
from . import completion as complete
from . import options as o
from .evidence import FOLDER

if TYPE_CHECKING:
    from ..sae.evidence import FeatureStore


def labels(
    sae: o.Saes,
    kind: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Also write it all as neuronpedia or saedashboard.",
            autocompletion=complete.one_of("neuronpedia", "saedashboard"),
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="--format: where it goes; must not exist.")] = None,
    source: Annotated[str, typer.Option("--source", help="--format: the SAE's id there; unset: LAYER-efface.")] = "",
    model: Annotated[str, typer.Option("--model", "-m", help="--format: the model's id there; unset: as the SAE names it.")] = "",
    as_json: o.Json = False,
) -> None:
    """Labels of an SAE's features: how many stand, their median scores beside those of shuffled labels; with --format, an export."""
    if (kind is None) != (out is None):
        raise InputError("labels: --format and --out go together; give both, or neither")
    folders = o.sae_folders(sae)
    if kind is not None and len(folders) != 1:
        raise InputError(f"--format {kind}: one SAE is exported at a time, and {len(folders)} are given; name one of them")
    stores = {str(p): _store(p) for p in folders}
    found: dict[str, Any] = {"labels": {p: s.manifest.get("labels") or {} for p, s in stores.items()}}
    heads = ["SAE", "labelled", "of", "detection (median AUROC)", "shuffled", "fuzzing", "shuffled"]
    text = o.table(heads, [_row(p, r) for p, r in found["labels"].items()])
    if kind is not None and out is not None:
        store = next(iter(stores.values()))
        found["written"] = {"out": str(out), **_export(store, out, kind, model, source)}
        text += f"\n{out}: " + ", ".join(f"{n} {what}" for what, n in found["written"].items() if what != "out")
    o.emit(found, text, as_json)


def _store(folder: Path) -> "FeatureStore":
    from ..sae.evidence import FeatureStore

    place = folder / FOLDER
    if not place.exists():
        raise InputError(f"{folder} has no evidence yet, so no labels: efface features --sae {folder} --all")
    return FeatureStore.open(place)


def _row(place: str, report: dict[str, Any]) -> list[str]:
    medians = [(report.get(name) or {}).get("median") for name in ("labelled", "labelled, shuffled", "fuzzing", "fuzzing, shuffled")]
    stand = (report.get("labelled") or {}).get("n", 0)
    return [place, str(stand), str(sum((report.get("status") or {}).values())), *("-" if m is None else f"{m:.3f}" for m in medians)]


def _export(store: "FeatureStore", out: Path, kind: str, model: str, source: str) -> dict[str, int]:
    from ..sae.labels.exchange import export_store

    point = str(store.manifest.get("hook_point") or "")
    layer = next((part for part in point.split(".") if part.isdigit()), "0")
    named = model or str((store.manifest.get("host") or {}).get("name") or "")
    if not named:
        raise InputError("--model: the evidence names no model; say what it is called there")
    return export_store(store, out, kind, named, source or f"{layer}-efface")
