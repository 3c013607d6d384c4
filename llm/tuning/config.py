"""Settings that every fine-tuning eraser of language models shares. Torch-free: the command line builds its help from them."""

import math
from dataclasses import dataclass
from typing import Literal

from ...base.errors import InputError
from ...deactivate.training.config import LoopConfig

Forget = Literal["target", "questions", "relearn"]
Retain = Literal["neighbours", "questions", "general"]
Modules = Literal["attention", "mlp", "down_proj"]
DEPTH = 32
"""Layers of the models that published layer numbers belong to; other depths are scaled."""


@dataclass(frozen=True)
class TuningConfig:
    """What is trained, on which texts, for how long, and how the result is scaled. Methods set other defaults."""

    preset: Literal["paper", "efface"] = "paper"
    """`paper`: the published settings. `efface`: ours (the method's README says what differs)."""
    layers: tuple[int, ...] = ()
    """Layers whose matrices are trained. Empty: the published ones, scaled from 32 layers to the host's depth."""
    modules: tuple[Modules, ...] = ("attention", "mlp")
    """Which of their matrices: all of attention, all of the MLP, or its down-projection alone."""
    rank: int = 4
    """Rank of the LoRA of each matrix; 0: the matrices themselves are trained."""
    alpha: int = 16
    """LoRA alpha: the change is alpha / rank times B A."""
    dropout: float = 0.05
    """LoRA dropout, in [0, 1); the host's own dropout stays off."""
    steps: int = 750
    """Optimiser steps. With several concepts micro-batches take turns."""
    batch: int = 1
    """Texts of each pool in a micro-batch."""
    accumulate: int = 4
    """Micro-batches a step. Their gradients are averaged, which AdamW cannot tell from the sum."""
    lr: float = 5e-5
    """AdamW's learning rate."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay (0.01 is torch's default, which published codes leave in place)."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rate does after warm-up."""
    warmup: int = 0
    """Steps of linear warm-up."""
    clip: float | None = None
    """Largest gradient norm; none: no clipping."""
    forget: tuple[Forget, ...] = ("target",)
    """What is unlearnt, from `train`: the concept's texts, its questions with their answers, its `relearn` paragraphs
    (with the latter, relearning on the same paragraphs is no measure of anything any more).
    """
    retain: tuple[Retain, ...] = ("neighbours", "general")
    """What must stay, from `train`: neighbours' texts, their questions with the answers, general texts. Each of them has an
    equal share in the batches.
    """
    texts: int | None = None
    """At most so many texts of each pool. Unset: all."""
    length: int = 128
    """Tokens of a text that are read. A question that is longer with its answer is left out."""
    search: bool = False
    """Try `scales` on `validation` and keep the best (needs `questions` and `neighbour_questions` there)."""
    scales: tuple[float, ...] = (0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.2, 1.5)
    """Search: factors on the trained change."""
    min_kept: float = 0.9
    """Search: least share of the neighbours' margin that a scale must keep; others are chosen only where none does."""
    min_coherence: float = 0.985
    """Search: the same for base bits per byte over edited, on neutral text."""
    n_probe: int = 24
    """Search: neutral texts read."""
    compat: Literal["none", "official"] = "none"
    """`official`: known faults of the authors' code as they are (README)."""
    run: str | None = None
    """Folder for checkpoints and a log. A run that was stopped goes on from there. Unset: nothing is written."""
    seed: int = 0
    """Of initial adapters, order of texts, dropout, and everything drawn."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "n_probe", "alpha"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, {getattr(self, name)} found")
        if self.rank < 0:
            raise InputError(f"rank must be at least 1, or 0 to train the matrices themselves; {self.rank} found")
        if self.length < 2:
            raise InputError(f"length must be at least 2 tokens, {self.length} found")
        if self.texts is not None and self.texts < 1:
            raise InputError(f"texts must be at least 1, or left out for all; {self.texts} found")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must lie in [0, 1), {self.dropout} found")
        for name in ("modules", "forget", "retain", "scales"):
            if not getattr(self, name):
                raise InputError(f"{name} must name at least one")
        if any(not (math.isfinite(s) and s > 0) for s in self.scales):
            raise InputError(f"scales must be numbers above 0, {self.scales} found")
        self.loop  # noqa: B018  (building it is the check)

    @property
    def loop(self) -> LoopConfig:
        """Settings of the training loop."""
        return LoopConfig(
            self.steps, self.lr, self.weight_decay, schedule=self.schedule, warmup=self.warmup, clip=self.clip,
            accumulate=self.accumulate, seed=self.seed,
        )  # fmt: skip

    def check_weights(self, *names: str) -> None:
        """Raises unless the fields named are finite numbers of at least 0."""
        for name in names:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} must be a number of at least 0, {value} found")


def scaled_layer(layer: int, n_layers: int) -> int:
    """A layer of a 32-layer model at the same relative depth of another."""
    return min(n_layers - 1, round(layer * n_layers / DEPTH))


def scaled_layers(first: int, end: int, n_layers: int) -> tuple[int, ...]:
    """Layers `first` to `end` - 1 of a 32-layer model at the same relative depth of another; at least one."""
    start = scaled_layer(first, n_layers)
    return tuple(range(start, max(start + 1, min(n_layers, round(end * n_layers / DEPTH)))))
