"""Which cells (object x style) and flags the base draws well enough to be erased and judged: both judges, unused seeds, 30 pictures."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor

from ...base.errors import ArtefactError, InputError, MatchedNothing
from ...base.files import cache_dir, digest, read_json, reading, write_json
from ...base.running import progress
from ...deactivate.evaluation.statistics import wilson
from ..evaluation.judging import Judge, class_index, load_judges, verdicts
from .concepts import SPLITS, flags
from .draw import folder_digest
from .packs import STYLES
from .table import Table, packaged_table

FORMAT = 1
TABLE = "cells.json"
"""The table of admitted cells: beside a pipeline's weights it is used by evaluations."""
FIRST_SEED = 900_000
"""Seeds of admission begin here; evaluations begin at 0 and must stay below."""


@runtime_checkable
class Generate(Protocol):
    """What draws: prompt i with seed i."""

    def __call__(self, prompts: Sequence[str], *, seeds: Sequence[int]) -> UInt8[Tensor, "n 3 h w"]:
        """Pictures."""
        ...


@dataclass(frozen=True)
class AdmissionConfig:
    """When a cell is admitted."""

    images: int = 30
    """Pictures a cell."""
    rate: float = 0.9
    """Share that each judge must see drawn right."""
    first_seed: int = FIRST_SEED
    """Picture i of a cell is drawn with this + i; the seeds are used for nothing else."""
    batch: int = 32
    """Prompts drawn at once."""

    def __post_init__(self) -> None:
        if self.images < 30:
            raise InputError(f"images: at least 30 a cell, {self.images} found; below that 90 % cannot be told from 75 %")
        if not 0 < self.rate <= 1:
            raise InputError(f"rate: a share in (0, 1] expected, {self.rate} found")


@dataclass(frozen=True)
class Cell:
    """An object in a style, or a flag."""

    name: str
    style: str | None
    prompts: tuple[str, ...]
    """By the plain name, in the templates of all splits."""


@dataclass(frozen=True)
class Admitted:
    """What one judge family says of a cell."""

    name: str
    style: str | None
    admitted: bool
    judges: dict[str, dict[str, float | int]]
    """Judge -> rate, low, high (Wilson), n: pictures in which object and style, or flag, are right."""


def object_cells(table: Table) -> list[Cell]:
    """The evaluation objects in every style."""
    templates = [t for _, with_style in SPLITS.values() for t in with_style]
    return [
        Cell(o.name, p.style, tuple(t.format(x=table.icons[o.icons[0]].name, style=p.style) for t in templates))
        for o in table.objects.values()
        for p in STYLES
    ]


def flag_cells(table: Table) -> list[Cell]:
    """Every flag that can be told apart."""
    templates = [t for without, _ in SPLITS.values() for t in without]
    return [Cell(n, None, tuple(t.format(x=f"the flag of {n}") for t in templates)) for n in flags(table)]


def admit(
    generate: Generate, cells: Sequence[Cell], judges: Mapping[str, Sequence[Judge]], config: AdmissionConfig, kept: Path | None = None
) -> tuple[list[Admitted], UInt8[Tensor, "cells 3 h w"]]:
    """Draws every cell and asks all judges; and the first picture of each cell.

    A picture is right where the judge says the cell's object and its style (`judges["object"]`, `judges["style"]`, copy by copy), or
    its flag (`judges["flag"]`).

    Args:
        generate: Draws.
        cells: What is asked for.
        judges: Head -> copies.
        config: When a cell is admitted.
        kept: Folder in which each cell is kept when it is done, and found again by the next call.

    Raises:
        MatchedNothing: No cells.
        UnknownName: A judge has no class of a cell's name.
    """
    if not cells:
        raise MatchedNothing("no cell to check")
    found, first = [], []
    for cell in progress(cells, desc="cells", unit="cell"):
        rates, picture = _kept(kept / f"{digest([cell.name, cell.style])[:20]}.json" if kept else None, generate, cell, judges, config)
        found.append(Admitted(cell.name, cell.style, all(r["rate"] >= config.rate for r in rates.values()), rates))
        first.append(picture)
    return found, torch.stack(first)


def _kept(
    place: Path | None, generate: Generate, cell: Cell, judges: Mapping[str, Sequence[Judge]], config: AdmissionConfig
) -> tuple[dict[str, dict[str, float | int]], Tensor]:
    """A cell's rates and first picture: those that lie at `place`, else new ones, which are put there."""
    if place is not None and place.is_file():
        with reading(place):
            values = read_json(place)
            return values["rates"], torch.tensor(values["first"], dtype=torch.uint8)
    images = _draw(generate, cell, config)
    rates = _rates(cell, images, judges)
    if place is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, {"rates": rates, "first": images[0].tolist()})
    return rates, images[0]


def _draw(generate: Generate, cell: Cell, config: AdmissionConfig) -> UInt8[Tensor, "n 3 h w"]:
    prompts = [cell.prompts[i % len(cell.prompts)] for i in range(config.images)]
    seeds = [config.first_seed + i for i in range(config.images)]
    steps = range(0, config.images, config.batch)
    return torch.cat([generate(prompts[i : i + config.batch], seeds=seeds[i : i + config.batch]) for i in steps])


def _rates(cell: Cell, images: Tensor, judges: Mapping[str, Sequence[Judge]]) -> dict[str, dict[str, float | int]]:
    asked = {"flag": cell.name} if cell.style is None else {"object": cell.name, "style": cell.style}
    out = {}
    for copies in zip(*(judges[head] for head in asked), strict=True):
        right = torch.ones(len(images), dtype=torch.bool)
        for judge, name in zip(copies, asked.values(), strict=True):
            right &= verdicts(judge, judge.scores(images)) == class_index(judge, name)
        value = wilson(int(right.sum()), len(right))
        low, high = value.interval
        out[copies[0].name] = {"rate": value.mean, "low": low, "high": high, "n": value.n}
    return out


def check(
    generate: Generate, out: Path, about: dict[str, Any], config: AdmissionConfig, table: Table | None = None, *, with_flags: bool = True
) -> dict[str, Any]:
    """Admission of all cells and flags: `cells.json`, and `cells.png` (objects down, styles across, first pictures).

    Cells that are done lie in the user's cache until all are: an interrupted check goes on where it was.

    Args:
        generate: Draws.
        out: Folder.
        about: What drew (name, digest, sampler): written down.
        config: When a cell is admitted.
        table: Names; None: the packaged ones.
        with_flags: Also the flags.
    """
    table = table or packaged_table()
    judges = {head: load_judges(f"icons/{head}") for head in ("object", "style", "flag")}
    versions = {j.name: {"version": j.version, "digest": j.digest, "threshold": j.threshold} for copies in judges.values() for j in copies}
    kept = cache_dir() / "admission" / digest([about, asdict(config), versions])[:20]
    objects, pictures = admit(generate, object_cells(table), judges, config, kept)
    flagged = admit(generate, flag_cells(table), judges, config, kept)[0] if with_flags else []
    found = {
        "format": FORMAT, "about": about, "config": asdict(config), "judges": versions,
        "cells": [asdict(a) for a in objects], "flags": [asdict(a) for a in flagged],
        "admitted": {"cells": sum(a.admitted for a in objects), "flags": sum(a.admitted for a in flagged)},
    }  # fmt: skip
    write_json(out / TABLE, {**found, "digest": digest(found)})
    from ..evaluation.sheets import write_sheet

    write_sheet(out / "cells.png", pictures, columns=len(STYLES))
    shutil.rmtree(kept, ignore_errors=True)
    return found


def admitted_cells(path: Path) -> dict[str, list[str]]:
    """Object -> styles that `check` admitted (none: an empty list), from its `cells.json`.

    Raises:
        ArtefactError: Not such a file.
    """
    with reading(path):
        values = read_json(path)
        if values["format"] != FORMAT or digest({k: v for k, v in values.items() if k != "digest"}) != values["digest"]:
            raise ArtefactError(f"{path}: changed by hand, or of another format; run `efface icons check` again")
        out: dict[str, list[str]] = {}
        for cell in values["cells"]:
            styles = out.setdefault(cell["name"], [])
            if cell["admitted"]:
                styles.append(cell["style"])
        return out


def cells_of(model: str, path: Path | None, sampling: Mapping[str, Any]) -> tuple[dict[str, list[str]] | None, str]:
    """(object -> styles that a pipeline draws, a sentence on where that is known from).

    Args:
        model: An alias or a folder; a table that lies there as `cells.json` is used.
        path: A table, or the folder that `efface icons check` wrote, instead.
        sampling: How the host draws (`ImageHost.sampling`).

    Raises:
        ArtefactError: Not such a file.
        InputError: The table is of another model.
    """
    from ..aliases import ALIASES, packaged

    folder = packaged(model) if model in ALIASES else Path(model).expanduser()
    named = path / TABLE if path is not None and path.is_dir() else path
    place = named or folder / TABLE
    if named is None and not place.is_file():
        return None, f"No table of admitted cells for {model} (efface icons check): what the base does not draw counts as erased."
    found = admitted_cells(place)
    with reading(place):
        about = read_json(place)["about"]
        if about.get("digest") and folder.is_dir() and about["digest"] != folder_digest(folder):
            raise InputError(f"--cells {place}: of another model ({about.get('model')}); run `efface icons check --model {model}`")
        n, all_of = sum(map(len, found.values())), len(STYLES) * len(found)
        unlike = [f"{k} {about[k]:g}" for k in ("steps", "guidance") if k in about and about[k] != sampling[k]]
    note = f"{n} of {all_of} cells are admitted ({place.name}); the others are left out"
    return found, note + (f". They were admitted with {', '.join(unlike)}, and are drawn otherwise here." if unlike else ".")
