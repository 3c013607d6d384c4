"""The grid over tau and mu on `validation`, in random order with monotone pruning (pisces.md §5)."""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ....base.errors import InputError, MatchedNothing
from ....base.running import progress
from ....deactivate.evaluation.statistics import harmonic_mean
from ...evaluation.metrics import fall, kept
from ...evaluation.scoring import score_questions
from ...evaluation.texts import cut_text, text_figures
from ...pools import general_texts
from .config import PiscesConfig
from .surgery import Factors, PrefixCache, trial

if TYPE_CHECKING:
    from ....deactivate.concept import Concept
    from ...host import Host


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


@runtime_checkable
class Probing(Protocol):
    """The settings that say what an `Objective` reads."""

    @property
    def n_probe(self) -> int:
        """Neutral texts."""
        ...

    @property
    def seed(self) -> int:
        """Of their choice."""
        ...


class Objective:
    """Fall of the concept's margin, neighbours' margin kept, base bits per byte over edited; all on `validation`.

    Raises:
        InputError: Questions are missing, or the unedited host's margin is not above 0, so that nothing can fall.
    """

    def __init__(self, host: "Host", concept: "Concept", config: Probing, max_tokens: int = 48) -> None:
        self.host, self.form = host, concept.form
        self.questions = concept.require("questions", "validation")
        self.near = concept.require("neighbour_questions", "validation")
        texts = general_texts(concept, "validation", config.n_probe, config.seed)
        self.texts = [cut_text(host, t, max_tokens) for t in texts]
        self.base = self.margins()
        for name, margins in zip(("questions", "neighbour_questions"), self.base[:2], strict=True):
            if sum(margins) <= 0:
                raise InputError(
                    f"search: {host.name} has no positive margin on {name}.validation of {concept.name!r}; nothing can be told from it"
                )

    def margins(self) -> tuple[list[float], list[float], float]:
        """Margins on the concept's and the neighbours' questions, and bits per byte, of the host as it stands."""
        own = score_questions(self.host, self.questions, self.form).margins
        near = score_questions(self.host, self.near, self.form).margins
        return own, near, text_figures(self.host, self.texts).bits_per_byte

    def cell(self, tau: float, mu: float, n: int) -> Cell:
        """The host as it stands, against the base."""
        own, near, bpb = self.margins()
        parts = fall(own, self.base[0]) or 0.0, kept(near, self.base[1]) or 0.0, min(1.0, self.base[2] / bpb)
        return Cell(tau, mu, n, *parts, harmonic_mean(parts))


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
