"""Settings of the training loop. Imports nothing heavy, so that a method's config can hold them."""

from dataclasses import dataclass
from typing import Literal

from ...base.errors import InputError, UnknownName

SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class LoopConfig:
    """What every fine-tuning eraser shares: AdamW, schedule, clipping, accumulation, checkpoints."""

    steps: int
    """Optimiser steps."""
    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    beta1: float = 0.9
    """AdamW's first moment decay."""
    beta2: float = 0.999
    """AdamW's second moment decay."""
    eps: float = 1e-8
    """AdamW's denominator term."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rate does after warm-up: stay, fall linearly to 0, or follow half a cosine to 0."""
    warmup: int = 0
    """Steps of linear warm-up; step t of them runs at (t + 1) / (warmup + 1) of the peak."""
    clip: float | None = 1.0
    """Largest gradient norm over all parameters; none: no clipping. The norm before clipping is logged."""
    average: float | None = None
    """Decay of an exponential moving average of the parameters, in [0, 1); step t decays by min(it, (1 + t) / (10 + t)).
    None: no average is kept.
    """
    accumulate: int = 1
    """Micro-batches a step; their gradients are averaged."""
    seed: int = 0
    """Each step seeds python, numpy and torch from (seed, step, process), so resumed and unbroken runs draw alike."""
    checkpoint_every: int = 200
    """Steps between checkpoints; one more is written at the end and on SIGINT or SIGTERM."""
    keep: int = 2
    """Newest checkpoints kept."""
    log_every: int = 1
    """Steps between lines of the log."""

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "checkpoint_every", "keep", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: at least 1 expected, {getattr(self, name)} found")
        for name in ("lr", "eps"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}: a number above 0 expected, {getattr(self, name)} found")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}: a number in [0, 1) expected, {getattr(self, name)} found")
        if self.average is not None and not 0 <= self.average < 1:
            raise InputError(f"average: a decay in [0, 1) expected, {self.average} found; leave it out (null) to keep none")
        if self.weight_decay < 0:
            raise InputError(f"weight_decay: 0 or more expected, {self.weight_decay} found")
        if self.schedule not in SCHEDULES:
            raise UnknownName("schedule", self.schedule, SCHEDULES)
        if not 0 <= self.warmup <= self.steps:
            raise InputError(f"warmup: between 0 and steps ({self.steps}) expected, {self.warmup} found")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip: a norm above 0 expected, {self.clip} found; leave it out (null) to clip nothing")
