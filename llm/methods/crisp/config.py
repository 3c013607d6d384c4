"""Settings of CRISP. Torch-free: the command line builds its help from them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ....base.errors import InputError
from ...tuning.config import TuningConfig, scaled_layers

EFFACE: Mapping[str, Any] = {
    "relative": True,
    "balance": 0.5,
    "coherence": 0.2,
    "min_auroc": 0.6,
    "forget": ("target", "questions"),
    "retain": ("neighbours", "questions", "general"),
    "length": 48,
    "batch": 8,
    "steps": 80,
    "lr": 1e-3,
    "dropout": 0.0,
    "weight_decay": 0.0,
    "schedule": "linear",
    "clip": 1.0,
    "scales": (0.3, 0.5, 0.7, 0.85, 1.0, 1.2),
    "min_kept": 0.93,
    "min_coherence": 0.988,
}
"""Preset `efface`: losses in units of the host's own activations, features that also detect the concept on `validation`."""


@dataclass(frozen=True)
class CrispConfig(TuningConfig):
    """How CRISP chooses features and suppresses them. Formulas: Ashuach et al., arXiv:2508.13650, as in the method's README."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"efface": EFFACE}
    """What a preset sets besides, where a config is made of named values (command line, `erase`)."""

    n_features: int = 10
    """Features suppressed a hook point, those with the largest difference of firings first. Authors' code: 10."""
    n_contrast: int = 100
    """Features a hook point among which they are, by that difference."""
    min_rho: float = 2.0
    """Least ratio of a feature's activation on the concept to that on what must stay. Authors: 2, in their code 3."""
    min_auroc: float = 0.0
    """Least AUROC on `validation`, target against neighbours and general texts; 0: not asked for."""
    balance: float = 0.99
    """Weight beta of what must stay; 1 - beta is that of the features. Authors: 0.99."""
    coherence: float = 0.01
    """Weight of the last layer's activations on neighbours' texts, times `balance`. Authors: 0.01."""
    relative: bool = False
    """Divide each loss by its scale on the frozen host: features by their mean activation, distances by the mean square of activations."""
    other_model: bool = False
    """Accept SAEs trained on another model, as the authors use a base model's on its instruction-tuned version."""
    rank: int = 4
    """LoRA rank. Authors: 4."""
    alpha: int = 8
    """LoRA alpha. Authors: twice the rank."""
    steps: int = 1000
    """Optimiser steps. Authors: one pass over the texts, one a step."""
    accumulate: int = 1
    """Micro-batches a step."""
    lr: float = 1e-5
    """Learning rate. Authors' code: 1e-5; 1e-4 to 5e-4 in later use of it."""
    length: int = 512
    """Tokens of a text that are read."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_weights("coherence", "min_rho", "min_auroc")
        if not (math.isfinite(self.balance) and 0 <= self.balance < 1):
            raise InputError(f"balance must lie in [0, 1), {self.balance} found: with 1 no feature would be suppressed")
        for name in ("n_features", "n_contrast"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, {getattr(self, name)} found")

    def layers_of(self, n_layers: int, deepest: int) -> tuple[int, ...]:
        """Layers to train: those named, or the authors' 3 to 9 of 32 as far as the deepest SAE's layer.

        Raises:
            InputError: None lies at or in front of the deepest SAE, so that no feature could be reached.
        """
        layers = self.layers or tuple(x for x in scaled_layers(3, 10, n_layers) if x <= deepest) or tuple(range(deepest + 1))
        if min(layers) > deepest:
            raise InputError(f"layers: {list(layers)} lie behind the deepest SAE (layer {deepest}); none of them changes its features")
        return layers
