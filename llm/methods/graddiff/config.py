"""Settings of gradient difference. Torch-free: the command line builds its help from them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ....base.errors import InputError
from ...tuning.config import TuningConfig

EFFACE: Mapping[str, Any] = {
    "ceiling": 9.0,
    "retain_loss": "kl",
    "keep": 2.0,
    "forget": ("target", "questions"),
    "retain": ("neighbours", "questions", "general"),
    "length": 48,
    "batch": 6,
    "steps": 40,
    "accumulate": 1,
    "lr": 3e-4,
    "dropout": 0.0,
    "clip": 1.0,
    "schedule": "linear",
    "scales": (0.3, 0.5, 0.7, 0.85, 1.0, 1.2),
    "min_kept": 0.93,
    "min_coherence": 0.988,
}
"""Preset `efface`: the ascent ends somewhere, and what stays is held to the base."""


@dataclass(frozen=True)
class GradDiffConfig(TuningConfig):
    """How gradient difference trains. Formulas: Maini et al., arXiv:2401.06121, as in the method's README."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"efface": EFFACE}
    """What a preset sets besides, where a config is made of named values (command line, `erase`)."""

    ceiling: float | None = None
    """Nats from which a token is forgotten enough and counts no more. Unset: the ascent has no end, as published."""
    retain_loss: Literal["nll", "kl"] = "nll"
    """On what must stay: its likelihood (published), or the divergence from the base."""
    keep: float = 1.0
    """Weight of the retain loss; 0 leaves it out, which is gradient ascent."""
    rank: int = 8
    """Rank of the LoRA of each matrix of all layers; 0: the matrices themselves, as published."""
    alpha: int = 32
    """LoRA alpha."""
    steps: int = 63
    """Optimiser steps. Authors: 5 passes over 400 texts in batches of 32."""
    batch: int = 4
    """Texts of each pool in a micro-batch."""
    accumulate: int = 8
    """Micro-batches a step."""
    lr: float = 1e-5
    """Learning rate. Authors: 1e-5, for all weights of a model of 7B parameters."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_weights("keep")
        if self.ceiling is not None and not (math.isfinite(self.ceiling) and self.ceiling > 0):
            raise InputError(f"ceiling must be above 0 nats, or left out; {self.ceiling} found")

    def layers_of(self, n_layers: int) -> tuple[int, ...]:
        """Layers to train: those named, or all."""
        return self.layers or tuple(range(n_layers))
