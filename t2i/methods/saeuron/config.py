"""Settings of SAeUron. Torch-free: the command line builds its help from them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ....base.errors import InputError, UnknownName
from ...drawing_config import DrawingConfig


@dataclass(frozen=True)
class SAeUronConfig:
    """How SAeUron chooses features step by step and what it does to them. Formulas: the method's README."""

    preset: Literal["paper", "efface"] = "paper"
    """`paper`: both halves of the guided batch are edited, factor gamma times the feature's mean activation. `efface`: the rows of
    prompts alone, factor gamma.
    """
    percentile: float = 99.999
    """Of the scores of all features at a step: those above it are edited, 0 to 100. Authors: 99.999 for styles, one of 99.99, 99.995
    and 99.999 for objects.
    """
    gamma: float = -1.0
    """Strength: below 0 turns a feature round, 0 removes it. Authors: -1 for styles, one of -1, -5, -10, … -30 for objects."""
    by_mean: bool | None = None
    """Multiply by gamma times the feature's mean activation on the concept (authors), which depends on the scale of the activations;
    else by gamma. Unset: the preset's.
    """
    rows: Literal["all", "conditional"] | None = None
    """Rows that are edited: those of negative and empty prompts too, or those of prompts alone. A gate in front of the edit rules the
    former out. Unset: the preset's.
    """
    n_concepts: int = 20
    """How many concepts the threshold's mean is over, the one taken out included; prompts of neighbours and of the general pool stand
    for the others. Authors: 20 objects, 50 styles.
    """
    prompts: int = 80
    """At most so many of the concept's `train` prompts are drawn (authors: 80)."""
    rest: int = 320
    """At most so many other prompts are drawn, at most half of them neighbours."""
    between: tuple[float, float] | None = None
    """Edit only calls of the denoiser whose time lies in this range, on the scheduler's scale (0 to 1000). Unset: all."""
    denoise_steps: int | None = None
    """Denoising steps of the drawings that activations are collected from. Unset: those of the SAE's card."""
    guidance: float | None = None
    """Guidance scale of those drawings (authors: 9). Unset: that of the SAE's card."""
    size: tuple[int, int] | None = None
    """Height and width of those drawings in pixels. Unset: those of the SAE's card."""
    pictures: int = 8
    """Pictures drawn at a time."""
    search: bool = False
    """Choose `percentile` and `gamma` on `validation`: the first pair, fewest features and mildest factor first, with which the judge no
    longer sees the concept.
    """
    grid_percentile: tuple[float, ...] = (99.999, 99.995, 99.99)
    """Percentiles that the search tries, highest first (authors' for objects)."""
    grid_gamma: tuple[float, ...] = (-1.0, -5.0, -10.0, -15.0, -20.0, -25.0, -30.0)
    """Strengths that the search tries at each percentile, mildest first (authors' for objects)."""
    n_search: int = 24
    """Prompts of a concept that the search draws for each pair."""
    enough: float = 0.95
    """Share of them that must not show it."""
    compat: Literal["none", "official"] = "none"
    """`official`: the sign of the reconstruction error and the count of steps as in the authors' released code (README)."""
    seed: int = 0
    """Of the choice of prompts and of their noise."""

    def __post_init__(self) -> None:
        for name, value in (("percentile", self.percentile), *(("grid_percentile", p) for p in self.grid_percentile)):
            if not 0 <= value < 100:
                raise InputError(f"{name} must lie in [0, 100), {value} found")
        for name, value in (("gamma", self.gamma), *(("grid_gamma", g) for g in self.grid_gamma)):
            if not math.isfinite(value):
                raise InputError(f"{name} must be a finite number, {value} found")
        if self.search and not (self.grid_percentile and self.grid_gamma):
            raise InputError("search needs at least one value in grid_percentile and in grid_gamma")
        if self.search and self.compat == "official":
            raise InputError("search draws with an edit several times, and compat=official runs off its list of steps then; leave one out")
        if not 0 < self.enough <= 1:
            raise InputError(f"enough must lie in (0, 1], {self.enough} found")
        for name, least in (("n_concepts", 2), ("prompts", 1), ("rest", 1), ("pictures", 1), ("n_search", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, {getattr(self, name)} found")
        if self.compat not in ("none", "official"):
            raise UnknownName("compat", self.compat, ("none", "official"))
        if self.between is not None and not 0 <= self.between[0] <= self.between[1]:
            raise InputError(f"between: two times from 0 up, the lower first; {list(self.between)} found")
        self.drawing({})

    @property
    def by_mean_or_default(self) -> bool:
        """`by_mean`, or the preset's."""
        return self.preset == "paper" if self.by_mean is None else self.by_mean

    @property
    def everywhere(self) -> bool:
        """Whether negative and empty prompts are edited too: `rows`, or the preset's."""
        return self.preset == "paper" if self.rows is None else self.rows == "all"

    def drawing(self, policy: Mapping[str, Any]) -> DrawingConfig:
        """How pictures are drawn for the statistics: as for the SAE (`policy`, of its card) where nothing else is said.

        Only rows of prompts are read, as in the authors' code, at every step.
        """
        size = self.size or policy.get("size")
        steps = policy.get("denoise_steps", DrawingConfig.denoise_steps) if self.denoise_steps is None else self.denoise_steps
        return DrawingConfig(
            denoise_steps=int(steps),
            guidance=policy.get("guidance") if self.guidance is None else self.guidance,
            negative=str(policy.get("negative", "")),
            size=None if size is None else (int(size[0]), int(size[1])),
            halves="conditional",
            pictures=self.pictures,
        )
