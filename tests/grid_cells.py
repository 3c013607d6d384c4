"""Cell functions of the grid tests; importable by worker processes."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efface.base.errors import InputError


def score(inputs: Mapping[str, Any], work: Path) -> dict[str, Any]:
    with (work.parent.parent.parent / "calls.txt").open("a") as f:
        f.write(f"{inputs['eraser']} {inputs['seed']}\n")
    if inputs["eraser"] == "broken" and not (work.parent.parent.parent / "mended").exists():
        raise ValueError("no such layer")
    if inputs["eraser"] == "interrupted" and not (work.parent.parent.parent / "mended").exists():
        raise KeyboardInterrupt
    if inputs["eraser"] == "nan":
        return {"margin": float("nan")}
    if inputs["eraser"] == "killed":
        os._exit(9)
    return {"margin": inputs["seed"] / 2 + inputs.get("shift", 0), "pid": os.getpid()}


def told(inputs: Mapping[str, Any], work: Path) -> dict[str, Any]:
    return {**score({"eraser": "told", **inputs}, work), "length": len(Path(inputs["file"]).read_text())}


def _reads(inputs: Mapping[str, Any]) -> dict[str, str]:
    if not Path(inputs["file"]).is_file():
        raise InputError(f"{inputs['file']} is missing")
    more = {p.name: p.read_text() for p in Path(inputs["file"]).parent.glob("more*.txt")}
    return {"file": Path(inputs["file"]).read_text(), **more}


told.reads = _reads  # type: ignore[attr-defined]
