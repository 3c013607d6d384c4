"""An edit and its gate as plain values: parts, features, how much each layer's weights change, how to take it back."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..parts import Dense, LowRank, WeightsPart
from .plain import flat, shortened

if TYPE_CHECKING:
    from ..any_gate import AnyGate
    from ..edit import Edit

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|resblocks)\.(\d+)(?:\.|$)")


def edit_values(edit: "Edit", folder: Path | str) -> dict[str, Any]:
    """What a page shows of an edit."""
    return {
        "name": edit.name,
        "folder": str(folder),
        "eraser": edit.eraser,
        "digest": edit.digest,
        "concepts": edit.concept_names,
        "host": dict(edit.host),
        "config": flat(edit.config),
        "seeds": flat(edit.seeds),
        "parts": [_part(p.describe()) for p in edit.parts],
        "changes": [c for part in edit.weights for c in weight_changes(part)],
        "features": [{"hook_point": p, "id": i, **rest} for p, i, rest in edit_features(edit)],
        "gate": gate_values(edit.gate) if edit.gate is not None else None,
        "cards": [flat(c) for c in edit.cards],
        "undo": _undo(edit, str(folder)),
        "measure": _measure(edit, str(folder)),
    }


def _measure(edit: "Edit", folder: str) -> str:
    """The command that measures the edit; a concept that is not packaged is a file that the reader has."""
    from ..concept import Concept, generated_concepts, packaged_concepts

    known, asked = {*packaged_concepts(), *generated_concepts()}, []
    for name, row in zip(edit.concept_names, edit.concepts, strict=True):
        plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        maybe = (n for n in (plain, f"icons/{plain}", f"icons/style-{plain.removesuffix('-style')}") if n in known)
        own = row["digest"] if isinstance(row, Mapping) else row.digest
        asked.append(next((n for n in maybe if Concept.load(n).digest == own), "FILE.yaml"))
    words = " ".join(f"--concept {n}" for n in asked or ["FILE.yaml"])
    return f"efface eval --model {edit.host.get('name') or 'M'} --edit {folder} {words} --out OUT"


def _part(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": str(values.get("kind", "")), "rows": flat({k: v for k, v in values.items() if k != "kind"})}


def _undo(edit: "Edit", folder: str) -> str:
    """The command that takes the edit out of a checkpoint, or why none is needed."""
    if all(p.permanent for p in edit.parts) and edit.gate is None:
        return f"efface undo {folder} --model CHECKPOINT --out BASE"
    return "It lies on the host while a command or a block runs and changes no file; leave out --edit and it is not there."


def weight_changes(part: WeightsPart) -> list[dict[str, Any]]:
    """Tensor, layer, Frobenius norm and rank of every change."""
    found = []
    for name, delta in part.deltas.items():
        match = _LAYER.search(name)
        rank = delta.rank if isinstance(delta, LowRank) else None
        found.append({"tensor": name, "layer": int(match.group(1)) if match else None, "norm": delta_norm(delta), "rank": rank})
    return shortened(found)


@torch.no_grad()
def delta_norm(delta: LowRank | Dense) -> float:
    """Frobenius norm in float64; of B A from the two small Gram matrices: ‖BA‖² = tr((BᵀB)(AAᵀ))."""
    if isinstance(delta, LowRank):
        B, A = delta.B.double(), delta.A.double()
        return math.sqrt(max(float(((B.T @ B) * (A @ A.T).T).sum()), 0.0))
    return float(delta.change.double().norm())


def edit_features(edit: "Edit") -> Iterator[tuple[str, int, dict[str, Any]]]:
    """(hook point, feature, what else is known) of every feature that an edit's parts or evidence name, each once."""
    seen: set[tuple[str, int]] = set()
    for point, number, rest in _named(edit):
        if (point, number) not in seen:
            seen.add((point, number))
            yield point, number, rest


def _named(edit: "Edit") -> Iterator[tuple[str, int, dict[str, Any]]]:
    plans = edit.evidence.get("concepts", ()) if isinstance(edit.evidence, Mapping) else ()
    for plan in plans:
        if not isinstance(plan, Mapping):
            continue
        for f in plan.get("features") or ():
            number = f.get("id", f.get("feature")) if isinstance(f, Mapping) else None
            point = f.get("hook_point", plan.get("hook_point")) if isinstance(f, Mapping) else None
            if isinstance(number, int) and point:
                scores = f.get("auroc")
                auroc = scores if isinstance(scores, Mapping) else {}
                kept = {"score": f.get("score"), "rho": f.get("rho"), **{f"auroc_{k}": v for k, v in auroc.items()}}
                yield str(point), number, shortened({k: v for k, v in kept.items() if isinstance(v, int | float)})
    for part in edit.parts:
        point, ids = getattr(part, "hook_point", None), getattr(part, "features", None)
        if point and isinstance(ids, tuple):
            yield from ((str(point), int(i), {}) for i in ids)


def gate_values(gate: "AnyGate") -> dict[str, Any]:
    """What a page shows of a gate: what it listens to, its curve, its threshold and what fires at it."""
    sources = [
        {
            "hook_point": s.hook_point,
            "features": list(s.features),
            "weights": [float(w) for w in s.weights],
        }
        for s in getattr(gate, "sources", ())
        if hasattr(s, "features") and hasattr(s, "weights")
    ]
    found = gate.calibration.as_dict() if gate.calibration is not None else None
    return shortened({
        "kind": type(gate).__name__,
        "per": gate.per,
        "summary": gate.summary(),
        "hook_points": gate.hook_points(),
        "sources": sources,
        "calibration": found,
    })  # fmt: skip
