"""What is known of a concept, as a page shows it; and the cache that it is kept in, since a model has to read texts for it."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ... import __version__
from ...base.errors import MatchedNothing
from ...base.files import cache_dir, digest, write_json
from ..layer import sae_digest
from .edits import edit_features, gate_values
from .plain import shortened

if TYPE_CHECKING:
    from ...sae import SAE
    from ..concept import Concept
    from ..edit import Edit

FEATURES = 300
"""Ranked features kept, the first ones."""
FORMAT = 2


def dossier(concept: "Concept", report: Mapping[str, Any], gate: Callable[[], Any] | None = None) -> dict[str, Any]:
    """Plain values of a report on a concept's features, and of its gate.

    Args:
        concept: What it is of.
        report: `FeatureReport.to_dict()`.
        gate: Makes (gate, what it does on `test` or None where that was not asked for); None: there is none. Where no feature is good enough for one, the dossier says so.
    """
    kept = list(report["features"])[:FEATURES]
    values: dict[str, Any] = {
        "name": concept.name,
        "kind": concept.kind,
        "digest": concept.digest,
        "report": {**report, "features": kept, "found": len(report["features"])},
        "gate": None,
        "test": None,
        "no_gate": "" if gate is not None else "no gate was asked for",
    }
    if gate is not None:
        try:
            made, test = gate()
            values |= {"gate": gate_values(made), "test": test}
        except MatchedNothing as e:
            values["no_gate"] = str(e)
    return shortened(values)


def edit_dossier(concept: "Concept", edit: "Edit") -> dict[str, Any]:
    """A concept as an edit knows it: the features that it uses in their order, what it measured of them, and its gate."""
    evidence = edit.evidence if isinstance(edit.evidence, Mapping) else {}
    known = {
        (str(f.get("hook_point", plan.get("hook_point"))), f.get("id", f.get("feature"))): f
        for plan in evidence.get("concepts", ())
        if isinstance(plan, Mapping)
        for f in plan.get("features") or ()
        if isinstance(f, Mapping)
    }
    rows = []
    for point, number, rest in edit_features(edit):
        f = known.get((point, number), {})
        auroc = f.get("auroc")
        kept = {name: f.get(name) for name in ("rho", "delta_phi", "fired", "source", "label")}
        promoted, prompts = list(f.get("promoted") or ()), list(f.get("prompts") or ())
        own = {"hook_point": point, "id": number, "auroc": dict(auroc) if isinstance(auroc, Mapping) else {}}
        rows.append({**rest, **kept, **own, "promoted": promoted, "prompts": prompts})
    report = {"concept": concept.name, "features": rows, "n_set": 0, "set_auroc": {}, "triggers": {}, "of_edit": edit.name}
    values = dossier(concept, report)
    return {**values, "gate": gate_values(edit.gate) if edit.gate is not None else None, "no_gate": "this edit has none"}


def kept_dossier(
    host: Any, concept: "Concept", saes: "Sequence[SAE]", settings: Mapping[str, Any], make: Callable[[], dict[str, Any]]
) -> dict:
    """`make()`, or what it gave before for the same host, SAEs, concept, settings and version."""
    key = [FORMAT, __version__, host.digest, [sae_digest(s) for s in saes], concept.digest, dict(settings)]
    place = cache_dir() / "inspect" / f"{digest(key)[:32]}.json"
    try:
        kept = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        kept = None
    if isinstance(kept, dict) and kept.get("digest") == concept.digest:
        return kept
    made = make()
    write_json(place, made)
    return made
