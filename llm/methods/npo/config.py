"""Settings of NPO. Torch-free: the command line builds its help from them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ....base.errors import InputError
from ...tuning.config import TuningConfig

EFFACE: Mapping[str, Any] = {
    "per_token": True,
    "retain_loss": "kl",
    "beta": 0.5,
    "forget": ("target", "questions"),
    "retain": ("neighbours", "questions", "general"),
    "length": 48,
    "batch": 6,
    "steps": 40,
    "accumulate": 1,
    "lr": 5e-4,
    "dropout": 0.0,
    "clip": 1.0,
    "schedule": "linear",
    "scales": (0.3, 0.5, 0.7, 0.85, 1.0, 1.2),
    "min_kept": 0.93,
    "min_coherence": 0.988,
}
"""Preset `efface`: a text's length does not weigh, and what stays is held to the base."""


@dataclass(frozen=True)
class NpoConfig(TuningConfig):
    """How NPO lowers likelihoods. Formulas: Zhang et al., arXiv:2404.05868, as in the method's README."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"efface": EFFACE}
    """What a preset sets besides, where a config is made of named values (command line, `erase`)."""

    beta: float = 0.1
    """Inverse temperature, above 0; towards 0 the loss becomes gradient ascent. Authors: 0.1."""
    per_token: bool = False
    """Divide a text's log-ratio by its tokens; the authors sum them."""
    retain_loss: Literal["nll", "kl"] = "nll"
    """On what must stay: its likelihood (authors' NPO + RT), or the divergence from the base (their NPO + KL)."""
    keep: float = 1.0
    """Weight of the retain loss; 0 leaves it out."""
    rank: int = 8
    """Rank of the LoRA of each matrix of all layers; 0: the matrices themselves, as in the paper."""
    alpha: int = 32
    """LoRA alpha."""
    steps: int = 125
    """Optimiser steps. Authors: 10 passes over 400 texts in batches of 32."""
    batch: int = 4
    """Texts of each pool in a micro-batch."""
    accumulate: int = 8
    """Micro-batches a step."""
    lr: float = 1e-5
    """Learning rate. Authors: 1e-5, for all weights of a model of 7B parameters."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_weights("keep")
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise InputError(f"beta must be above 0, {self.beta} found")

    def layers_of(self, n_layers: int) -> tuple[int, ...]:
        """Layers to train: those named, or all."""
        return self.layers or tuple(range(n_layers))
