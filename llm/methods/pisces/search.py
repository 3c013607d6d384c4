"""The grid over tau and mu on `validation`, in random order with monotone pruning (pisces.md §5)."""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ....base.errors import MatchedNothing
from ....base.running import progress
from ...evaluation.validation import Validation
from .config import PiscesConfig
from .surgery import Factors, PrefixCache, trial


@dataclass(frozen=True)
class Cell:
    """One setting and what it did on `validation`."""

    tau: float
    mu: float
    n: int
    """Features edited."""
    fall: float
    kept: float
    coherence: float
    objective: float
    """Harmonic mean of the three."""


@dataclass(frozen=True)
class Found:
    """The best cell, and every cell that was tried."""

    best: Cell
    cells: tuple[Cell, ...]
    pruned: int
    """Cells that were never run, because a weaker one was too strong or a stronger one too weak."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"best": asdict(self.best), "cells": [asdict(c) for c in self.cells], "pruned": self.pruned}


class Objective(Validation):
    """What a cell of the grid does on `validation`."""

    def cell(self, tau: float, mu: float, n: int) -> Cell:
        """The host as it stands, against the base."""
        return Cell(tau, mu, n, **asdict(self.seen()))


def search(
    objective: Objective,
    factors: Callable[[float, float, int], dict[int, Factors]],
    config: PiscesConfig,
    first_layer: int,
    counts: Sequence[int],
) -> Found:
    """Runs the grid.

    `factors(tau, mu, n)` gives the edit of the first n features. Nothing below `first_layer` is computed twice.

    A cell whose fall is under `weak` discards all cells with mu no larger and tau no smaller; one that keeps less than
    `min_kept` of
    the neighbours or `min_coherence` of the text discards all with mu no smaller and tau no larger (for the same n).

    Raises:
        MatchedNothing: No cell moved anything.
    """
    grid = [(t, m, n) for t in config.grid_tau for m in config.grid_mu for n in counts]
    random.Random(config.seed).shuffle(grid)
    waiting = dict.fromkeys(grid)
    cells: list[Cell] = []
    with PrefixCache(objective.host, first_layer):
        for key in progress(grid, desc="search", unit="cell"):
            if key not in waiting:
                continue
            with trial(objective.host, factors(*key)):
                cell = objective.cell(*key)
            cells.append(cell)
            for other in [k for k in waiting if k == key or prunes(cell, k, config)]:
                del waiting[other]
    fit = [c for c in cells if c.kept >= config.min_kept and c.coherence >= config.min_coherence]
    best = max(fit or cells, key=lambda c: (c.objective, -c.mu, c.tau))
    if best.fall <= 0:
        limits = " and keeps min_kept and min_coherence" if len(fit) < len(cells) else ""
        raise MatchedNothing(
            f"search: no cell of the grid lowers the concept's margin{limits}; try other features, a larger grid_mu or a smaller grid_tau"
        )
    return Found(best, tuple(cells), len(grid) - len(cells))


def prunes(cell: Cell, other: tuple[float, float, int], config: PiscesConfig) -> bool:
    """Whether the outcome of `cell` settles `other` without running it."""
    tau, mu, n = other
    if n != cell.n:
        return False
    if cell.kept < config.min_kept or cell.coherence < config.min_coherence:
        return mu >= cell.mu and tau <= cell.tau
    return cell.fall < config.weak and mu <= cell.mu and tau >= cell.tau
