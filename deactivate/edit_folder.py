"""The folder of an edit: manifest last, every file with its digest, a card for people."""

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..base.errors import ArtefactError, InputError, near_paths
from ..base.files import PICKLES, inside, load_tensors, new_folder, read_json, reading, sha256_file, write_json, write_text
from .edit import Edit
from .parts import BaseTensor, Part, ProjectionPart, WeightsPart, tensor_digest

FORMAT = 1
MANIFEST, CARD = "edit.json", "README.md"
_KEYS = {
    *("format", "efface", "name", "digest", "eraser", "config", "concepts", "host", "parts", "gate"),
    *("evidence", "seeds", "versions", "cards", "files"),
}


def save_edit(edit: Edit, folder: Path) -> None:
    """Writes `edit` beside `folder` and renames.

    Raises:
        InputError: The folder exists, or an `exact` part does not know its base (`edit.bound(host)` tells it).
    """
    for part in edit.weights:
        if part.portability == "exact" and set(part.base) != set(part.deltas):
            raise InputError(f"edit {edit.name} does not know the base it was made for; save edit.bound(host)")
    with new_folder(folder) as work:
        for i, part in enumerate(edit.parts):
            part.save(work / f"part-{i}")
        if edit.gate is not None:
            edit.gate.save(work / "gate")
        files = sorted(p for p in work.rglob("*") if p.is_file())
        write_text(work / CARD, card(edit))
        write_json(work / MANIFEST, manifest(edit, {p.relative_to(work).as_posix(): p for p in files}))


def manifest(edit: Edit, files: dict[str, Path]) -> dict[str, Any]:
    """What stands in `edit.json`."""
    versions = {p: importlib.metadata.version(p) for p in ("torch", "transformers", "safetensors")}
    return {
        "format": FORMAT,
        "efface": __version__,
        "name": edit.name,
        "digest": edit.digest,
        "eraser": edit.eraser,
        "config": edit.config,
        "concepts": list(edit.concepts),
        "host": dict(edit.host),
        "parts": [_entry(part, i) for i, part in enumerate(edit.parts)],
        "gate": "gate" if edit.gate else None,
        "evidence": edit.evidence,
        "seeds": dict(edit.seeds),
        "versions": versions,
        "cards": edit.cards,
        "files": {name: {"sha256": sha256_file(path), "bytes": path.stat().st_size} for name, path in files.items()},
    }


def _entry(part: Part, i: int) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "kind": part.kind,
        "portability": part.portability,
        "folder": f"part-{i}",
        "settings": part.settings(),
        "tensors": {n: tensor_digest(n, t) for n, t in part.tensors().items()},
    }
    if isinstance(part, WeightsPart):
        entry["base"] = {n: dataclasses.asdict(b) for n, b in part.base.items()}
    return entry


def load_edit(folder: Path) -> Edit:
    """Reads and checks an edit folder."""
    from .any_gate import load_gate

    if not (folder / MANIFEST).is_file():
        near = near_paths(folder, lambda p: (p / MANIFEST).is_file())
        raise ArtefactError(f"{folder} is not an edit folder: {MANIFEST} is missing{near}; `efface erase` writes one")
    values = read_json(folder / MANIFEST)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ArtefactError(f"{folder / MANIFEST}: not an edit of format {FORMAT}")
    if odd := sorted(set(values) ^ _KEYS):
        raise ArtefactError(f"{folder / MANIFEST}: keys missing or unknown: {', '.join(odd)}")
    with reading(folder / MANIFEST):
        check_files(folder, values["files"])
        parts = [load_part(entry, inside(folder, entry["folder"])) for entry in values["parts"]]
        names = ("eraser", "config", "concepts", "evidence", "seeds", "cards", "host")
        gate = load_gate(inside(folder, values["gate"])) if values["gate"] else None
        edit = Edit(parts, gate=gate, **{n: values[n] for n in names})
    if edit.digest != values["digest"]:
        raise ArtefactError(f"{folder}: its content is not what its digest {str(values['digest'])[:12]} says; the manifest was altered")
    return edit


def part_classes() -> dict[tuple[str, str], type[Part]]:
    """(kind, form) -> class of the parts that can be loaded."""
    from .layer import DeactivationPart
    from .replacement import ReplacementPart
    from .stepwise import StepwisePart

    return {(c.kind, c.form): c for c in (WeightsPart, ProjectionPart, DeactivationPart, ReplacementPart, StepwisePart)}


def load_part(entry: Mapping[str, Any], folder: Path) -> Part:
    """A part from its manifest entry and its folder.

    Raises:
        ArtefactError: Unknown kind, or tensors that are not those of the manifest.
    """
    known, kind = part_classes(), (entry["kind"], entry["settings"].get("form", ""))
    if kind not in known:
        found = " ".join(map(str, kind)).strip()
        raise ArtefactError(f"{folder}: unknown kind of part {found!r}; this version reads {', '.join(' '.join(k).strip() for k in known)}")
    tensors = load_tensors(folder / "tensors.safetensors")
    found = {n: tensor_digest(n, t) for n, t in tensors.items()}
    if found != entry["tensors"]:
        odd = sorted(n for n in {*found, *entry["tensors"]} if found.get(n) != entry["tensors"].get(n))
        raise ArtefactError(f"{folder}: tensors differ from the manifest: {', '.join(odd)}")
    part = known[kind].build(entry["settings"], tensors, folder)
    if isinstance(part, WeightsPart):
        base = {n: BaseTensor(**{**b, "shape": tuple(b["shape"])}) for n, b in entry["base"].items()}
        return replace(part, base=base, portability=entry["portability"])
    if part.portability != entry["portability"]:
        raise ArtefactError(f"{folder}: portability {entry['portability']!r} of a {part.kind} part is unknown")
    return part


def check_files(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Raises unless each listed file lies in the folder and has the listed size and sha256, and none is a pickle."""
    for name, entry in files.items():
        path = inside(folder, name)
        if path.suffix in PICKLES:
            raise ArtefactError(f"{path}: pickled weights are refused")
        if not path.is_file():
            raise ArtefactError(f"{path} is missing")
        if path.stat().st_size != entry["bytes"] or sha256_file(path) != entry["sha256"]:
            raise ArtefactError(f"{path} is truncated or was altered: its sha256 is not the manifest's")


def card(edit: Edit) -> str:
    """The model card of an edit."""
    names = ", ".join(edit.concept_names) or "no named concept"
    parts = "\n".join(f"- `{json.dumps(p.describe(), ensure_ascii=False)}`" for p in edit.parts)
    how = "Behind a gate: in force only for prompts at which it fires." if edit.gate else "In force for every prompt."
    gate = f"\n\n## Gate\n\n{edit.gate.summary()}" if edit.gate else ""
    cards = "\n".join(f"```json\n{json.dumps(c, indent=2, ensure_ascii=False)}\n```" for c in edit.cards)
    config = json.dumps(edit.config, indent=2, ensure_ascii=False)
    return f"""# {edit.name}

An edit by `{edit.eraser}` that takes out: {names}. Made for {edit.host.get("name", "a host not named")}. {how}

## Parts

{parts}

## Settings

```json
{config}
```{gate}

## How it was measured

{cards or "No figures are stored with this edit. Measure it: `efface eval --model M --edit THIS --concept C --out D`."}

## Attacks tried

None is stored with this edit.

## Known failures

An edit of weights lowers what the model says about the concept; it is no proof that nothing of it can be brought back,
by training above all.
"""
