"""Settings of ELM. Torch-free: the command line builds its help from them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ....base.errors import InputError
from ...tuning.config import TuningConfig, scaled_layers

REPO: Mapping[str, Any] = {"rank": 256, "eta": 1000.0, "eta_start": 1.0, "retain_loss": "hard"}
"""Preset `repo`: defaults of the authors' code, which are not the paper's."""

EFFACE: Mapping[str, Any] = {
    "rank": 16,
    "alpha": 32,
    "dropout": 0.0,
    "steps": 100,
    "batch": 6,
    "accumulate": 1,
    "lr": 1.5e-3,
    "weight_decay": 0.0,
    "schedule": "linear",
    "warmup": 3,
    "clip": 1.0,
    "forget": ("questions",),
    "retain": ("questions", "general"),
    "length": 48,
    "eta": 3.0,
    "temperature": 4.0,
    "top_k": 0,
    "positions": "counted",
    "keep": 8.0,
    "fluency": 0.1,
    "continuations": 4,
    "continuation_tokens": 16,
    "continuation_batch": 1,
    "scales": (0.5, 0.7, 1.0, 1.4),
    "min_kept": 0.93,
    "min_coherence": 0.988,
}
"""Preset `efface`: a flat target of the whole vocabulary instead of one token from the far tail."""


@dataclass(frozen=True)
class ElmConfig(TuningConfig):
    """How ELM makes its targets and what it weighs. Formulas: Gandikota et al., arXiv:2410.02760, as in the method's README."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"repo": REPO, "efface": EFFACE}
    """What a preset sets besides, where a config is made of named values (command line, `erase`)."""

    preset: Literal["paper", "repo", "efface"] = "paper"  # pyright: ignore[reportIncompatibleVariableOverride]: one more than the others have
    """`paper`: the paper's settings after its sweep. `repo`: the defaults of the authors' code (rank 256, eta 1000 with a ramp,
    hard retain loss). `efface`: ours (README).
    """
    eta: float = 500.0
    """Strength of the guidance away from the expert; 0: none. Authors: 500 (paper), 1000 (code)."""
    eta_start: float | None = None
    """Strength at a text's first token, rising linearly to `eta` at its last. Unset: `eta` everywhere, as the paper writes it; code: 1."""
    temperature: float = 1.2
    """The base's logits are divided by it when targets are made (code: 1.2). The student's never are."""
    top_k: int = 50
    """Tokens that a target keeps (code: 50); below 0: the |top_k| lowest; 0: all."""
    topk_mode: Literal["after", "before"] = "after"
    """Keep the best `after` guidance (code), which may come from the far tail; or, `before` it, the base's own best."""
    action: Literal["erase", "enhance", "random"] = "erase"
    """Away from the expert, towards it, or a softmax of Gaussian noise (the paper's ablation)."""
    erase_loss: Literal["ce", "hard", "kld"] = "ce"
    """Cross-entropy to the target, to its most probable token, or its Kullback-Leibler divergence."""
    retain_loss: Literal["soft", "hard"] = "soft"
    """Cross-entropy to the base's distribution (paper) or to its most probable token (code)."""
    positions: Literal["all", "counted"] = "all"
    """Where erase and retain losses are taken: at all positions, all alike; or, of questions, at the answer's alone, and every text
    alike.
    """
    erase: float = 1.0
    """Weight of the erase loss; 0 leaves it out."""
    keep: float = 1.0
    """Weight of the retain loss; 0 leaves it out."""
    fluency: float = 1.0
    """Weight of the fluency loss; 0 leaves it out, as the authors do from 32B parameters on."""
    fluency_texts: Literal["guided", "random"] = "guided"
    """What follows a forget text in the fluency loss: what the base writes when it is led away from the concept, or any general
    text (ablation).
    """
    gamma: float = 3.0
    """Strength of that guidance; 0 samples from the base."""
    continuations: int = 0
    """Forget texts that get a continuation; 0: all."""
    continuation_tokens: int = 100
    """Tokens of a continuation. Authors: 100 to 300."""
    continuation_batch: int = 0
    """Continuations in a micro-batch; 0: as many as texts of the other pools."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_weights("erase", "keep", "fluency", "eta", "gamma")
        if self.eta_start is not None and not (math.isfinite(self.eta_start) and self.eta_start >= 0):
            raise InputError(f"eta_start must be a number of at least 0, or left out; {self.eta_start} found")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(f"temperature must be above 0, {self.temperature} found")
        if not self.erase + self.keep + self.fluency:
            raise InputError("erase, keep and fluency are all 0: nothing would be trained")
        if self.continuations < 0 or self.continuation_batch < 0:
            raise InputError("continuations and continuation_batch must be at least 0")
        if self.continuation_tokens < 1:
            raise InputError(f"continuation_tokens must be at least 1, {self.continuation_tokens} found")

    @property
    def guided(self) -> bool:
        """Whether the expert and the novice have any say."""
        return bool(self.eta or self.eta_start)

    def layers_of(self, n_layers: int) -> tuple[int, ...]:
        """Layers to train: those named, or the authors' 4 to 7 of 32."""
        return self.layers or scaled_layers(4, 8, n_layers)
