"""Settings of RMU. Torch-free: the command line builds its help from them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ....base.errors import InputError
from ...tuning.config import Modules, Retain, TuningConfig, scaled_layer

EFFACE: Mapping[str, Any] = {
    "relative": True,
    "steering": 1.5,
    "keep": 20.0,
    "forget": ("target", "questions"),
    "retain": ("neighbours", "questions", "general"),
    "length": 48,
    "batch": 8,
    "steps": 80,
    "lr": 3e-3,
    "weight_decay": 0.0,
    "schedule": "linear",
    "clip": 1.0,
    "scales": (0.3, 0.5, 0.7, 0.85, 1.0, 1.2),
    "min_kept": 0.93,
    "min_coherence": 0.988,
}
"""Preset `efface`: the control vector in units of the host's own activations."""


@dataclass(frozen=True)
class RmuConfig(TuningConfig):
    """How RMU misdirects activations. Formulas: Li et al., arXiv:2403.03218, as in the method's README."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"efface": EFFACE}
    """What a preset sets besides, where a config is made of named values (command line, `erase`)."""

    layer: int | None = None
    """Layer whose output is misdirected. Unset: the authors' 7 of 32, scaled to the host's depth."""
    layers: tuple[int, ...] = ()
    """Layers whose matrices are trained, none behind `layer`. Empty: `layer` and the two before it, as the authors'."""
    modules: tuple[Modules, ...] = ("down_proj",)
    """Which of their matrices. Authors: the down-projection."""
    rank: int = 0
    """0: the matrices themselves are trained, as the authors do; else the rank of a LoRA of each."""
    dropout: float = 0.0
    """LoRA dropout."""
    steering: float = 20.0
    """Norm of the control vector. Authors: 20 in the code, 6.5 for the released Zephyr. Where `relative`: in mean norms of the
    host's activations on the forget texts.
    """
    relative: bool = False
    """Whether `steering` counts in norms of activations, which differ between models and layers by orders of magnitude (Dang et al.,
    arXiv:2408.06223).
    """
    keep: float = 100.0
    """Weight alpha of the retain loss. Authors: 100 in the code, 1200 for the released Zephyr."""
    steps: int = 80
    """Optimiser steps. Authors: 80 batches."""
    batch: int = 4
    """Texts of each pool in a batch. Authors: 4."""
    accumulate: int = 1
    """Micro-batches a step."""
    length: int = 512
    """Tokens of a text that are read. Authors: 512, cyber 768."""
    retain: tuple[Retain, ...] = ("general",)
    """What must stay. Authors: general text (wikitext)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_weights("keep")
        if not (math.isfinite(self.steering) and self.steering > 0):
            raise InputError(f"steering must be above 0, {self.steering} found")

    def place(self, n_layers: int) -> tuple[int, tuple[int, ...]]:
        """The layer that is misdirected, and those that are trained.

        Raises:
            InputError: The host has no such layer, or a trained one lies behind it and would get no gradient.
        """
        layer = scaled_layer(7, n_layers) if self.layer is None else self.layer
        if not 0 <= layer < n_layers:
            raise InputError(f"layer: {layer} given; the host has layers 0 to {n_layers - 1}")
        layers = self.layers or tuple(range(max(0, layer - 2), layer + 1))
        if behind := [x for x in layers if x > layer]:
            raise InputError(f"layers: {behind} lie behind layer {layer}, whose output is misdirected, and would get no gradient")
        return layer, layers
