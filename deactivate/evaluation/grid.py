"""Grids of idempotent cells (eraser × concept × seed × host), keyed by the digest of their inputs, resumable."""

import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from ...base.errors import ArtefactError, UnknownName
from ...base.files import canonical_json, read_json, write_json, write_text
from ...base.running import log, progress
from .compare import layout
from .grid_spec import FORMAT, Cell, Grid, matches

CellFunction = Callable[[Mapping[str, Any], Path], Mapping[str, Any]]
"""(inputs, a folder of the cell's own that outlives an interrupt) -> figures. Equal inputs must give equal figures. What the
inputs only name (files) is told by a function in its attribute `reads`, if it has one: inputs -> mapping of name to digest."""


@dataclass(frozen=True)
class Outcome:
    """A cell and what came of it."""

    cell: Cell
    status: str
    """`done`, `failed` or `missing` (not computed yet)."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    seconds: float = 0.0

    @property
    def shown(self) -> str:
        """The status; `old` where what the cell read has changed and computing it again failed: its figures are of before."""
        return "old" if self.status == "done" and self.error else self.status


@dataclass(frozen=True)
class GridTable:
    """All outcomes of a grid."""

    outcomes: tuple[Outcome, ...]

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """Cells that raised."""
        return tuple(o for o in self.outcomes if o.status == "failed")

    def plain(self) -> str:
        """Aligned text: axes, status, figures; the errors under it."""
        axes = list(self.outcomes[0].cell.axes)
        figures = list(dict.fromkeys(k for o in self.outcomes for k, v in o.figures.items() if not isinstance(v, dict | list)))
        body = [
            [*(_short(o.cell.axes[a]) for a in axes), o.shown, *(_short(o.figures.get(f, "–")) for f in figures)] for o in self.outcomes
        ]
        errors = [
            f"{'old figures, ' * (o.shown == 'old')}failed {o.cell.key[:12]}: {o.error.strip().splitlines()[-1]}"
            for o in self.outcomes
            if o.error
        ]
        return "\n".join([layout([*axes, "status", *figures], body), *errors]) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Plain values: one object for `--json`."""
        cells = [
            {"key": o.cell.key, **o.cell.axes, "status": o.shown, "figures": dict(o.figures), "error": o.error, "seconds": o.seconds}
            for o in self.outcomes
        ]
        return {"format": FORMAT, "kind": "efface grid", "cells": cells}


def run_grid(
    grid: Grid, out: Path, *, only: Mapping[str, Any] | None = None, workers: int = 0, retry_failed: bool = True, executor: Executor | None = None,
) -> GridTable:  # fmt: skip
    """Computes what is missing under `out` and writes `table.json` and `table.txt`.

    A cell is a folder `cells/<key>` with `cell.json` (written whole, last) and `work/`, where its function may keep
    checkpoints. A cell that is done is not computed again, unless the files that it read have changed; one that raised is recorded with its traceback and
    computed again next time; figures that it had before stay, with the error beside them. An interrupt ends the run; everything finished is kept.

    Args:
        grid: What to compute.
        out: Folder; several grids may share one.
        only: Axis -> value, or a list of values: other cells are left as they are, and stand in the table all the same.
        workers: Processes; 0: in this one. Each starts afresh (spawned), so a cell cannot leave anything behind for
            the next.
        retry_failed: Whether recorded failures are computed again.
        executor: Any executor instead of own processes: that of a cluster engine, say; `out` must be shared.
    """
    cells = grid.cells()
    pattern = grid.checked("only", only or {})
    asked = [c for c in cells if matches(pattern, c.axes)]
    wanted = ("missing", "failed") if retry_failed else ("missing",)
    todo = [c for c in asked if _outcome(out, c).status in wanted or _changed(out, c)]
    if len(todo) < len(asked):
        log.info("%d of %d cells are there already", len(asked) - len(todo), len(asked))
    for status in progress(_statuses(todo, out, workers, executor), total=len(todo), desc="grid", unit="cell"):
        if status:
            log.warning("cell failed: %s", status)
    table = GridTable(tuple(_outcome(out, c) for c in cells))
    write_json(out / "table.json", table.to_json())
    write_text(out / "table.txt", table.plain())
    return table


def compute_cell(cell: Cell, out: Path) -> str:
    """Computes and records one cell; the last line of its error, or nothing. Interrupts pass and record nothing."""
    folder = out / "cells" / cell.key
    (folder / "work").mkdir(parents=True, exist_ok=True)
    begun, figures, reads, error = time.perf_counter(), {}, {}, ""
    try:
        function = _resolve(cell.function)
        reads = _reads(function, cell)
        figures = dict(function(cell.inputs, folder / "work"))
        canonical_json(figures)
    except Exception:
        figures, error = {}, traceback.format_exc()
    _record(cell, out, figures, error, time.perf_counter() - begun, reads)
    return error.strip().splitlines()[-1] if error else ""


def _reads(function: CellFunction, cell: Cell) -> dict[str, Any]:
    """Digests of what the cell's inputs name; none where its function does not tell."""
    return dict(getattr(function, "reads", lambda _: {})(cell.inputs))


def _changed(out: Path, cell: Cell) -> bool:
    """Whether a done cell read files that are different by now. What is not there any more has not changed."""
    path = out / "cells" / cell.key / "cell.json"
    if _outcome(out, cell).status != "done" or not (before := read_json(path).get("reads")):
        return False
    try:
        now = _reads(_resolve(cell.function), cell)
    except Exception as e:
        log.warning("cell %s kept, though what it read cannot be looked at: %s: %s", cell.key[:12], type(e).__name__, e)
        return False
    if gone := [name for name in before if name not in now]:
        log.warning("cell %s kept, though what it read is not there any more: %s", cell.key[:12], ", ".join(gone))
        return False
    changed = [name for name in now if now[name] != before.get(name)]
    if changed:
        log.info("cell %s computed again: %s changed", cell.key[:12], ", ".join(changed))
    return bool(changed)


def _record(cell: Cell, out: Path, figures: Mapping[str, Any], error: str, seconds: float, reads: Mapping[str, Any] | None = None) -> None:
    path = out / "cells" / cell.key / "cell.json"
    if error and _outcome(out, cell).status == "done":  # what was measured stays, and so does what it was measured on
        write_json(path, {**read_json(path), "error": error})
        return
    about = {"format": FORMAT, "key": cell.key, "function": cell.function, "inputs": cell.inputs, "reads": dict(reads or {})}
    state = {"status": "failed" if error else "done", "figures": figures, "error": error, "seconds": seconds}
    write_json(path, {**about, **state})


def _statuses(todo: list[Cell], out: Path, workers: int, executor: Executor | None) -> Iterator[str]:
    if executor is None and workers < 1:
        yield from (compute_cell(c, out) for c in todo)
    elif executor is not None:
        yield from _pooled(todo, out, executor)
    else:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield from _pooled(todo, out, pool)


def _pooled(todo: Iterable[Cell], out: Path, pool: Executor) -> Iterator[str]:
    futures = {pool.submit(compute_cell, c, out): c for c in todo}
    try:
        for future in as_completed(futures):
            try:
                yield future.result()
            except BrokenProcessPool:
                cell = futures[future]
                if _outcome(out, cell).status == "missing":
                    _record(cell, out, {}, "a worker process died while this cell waited or ran (out of memory?)", 0.0)
                yield "a worker process died"
    finally:
        for future in futures:
            future.cancel()


def _resolve(name: str) -> CellFunction:
    module, _, function = name.partition(":")
    found = getattr(import_module(module), function, None)
    if not callable(found):
        raise UnknownName("cell function", name, [f"{module}:{n}" for n in vars(import_module(module)) if not n.startswith("_")])
    return cast(CellFunction, found)


def _outcome(out: Path, cell: Cell) -> Outcome:
    path = out / "cells" / cell.key / "cell.json"
    if not path.is_file():
        return Outcome(cell, "missing")
    try:
        values = read_json(path)
        if values["format"] != FORMAT or values["key"] != cell.key:
            raise ArtefactError(f"{path} is of another format or cell")
        return Outcome(cell, values["status"], values["figures"], values["error"], values["seconds"])
    except (ArtefactError, KeyError, TypeError) as e:
        log.warning("cell computed again: %s", e)
        return Outcome(cell, "missing")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return str(value.get("name") or canonical_json(dict(value)))
    return str(value)


__all__ = ["FORMAT", "Cell", "CellFunction", "Grid", "GridTable", "Outcome", "compute_cell", "run_grid"]
