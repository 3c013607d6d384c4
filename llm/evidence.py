"""What is known of a concept's features.

Settings of the search, evidence of each, the ranked report. Torch-free plain values.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from ..base.errors import InputError


@dataclass(frozen=True)
class FeatureConfig:
    """How candidates are found and ranked."""

    topk: int = 30
    """How many promoted and suppressed tokens of a feature are searched for the concept's tokens."""
    minmatch: int = 1
    """How many of the concept's tokens must be among them."""
    min_rho: float = 2.0
    """Least ratio of activation per token on the concept to that on neighbours and on general text."""
    n_contrast: int = 100
    """How many features the activation contrast nominates a hook point."""
    texts: int | None = 200
    """At most so many texts of each pool and split are read; None: all."""
    min_auroc: float = 0.6
    """Least AUROC of a feature in the set that is judged together (the first feature is always in it)."""
    fpr: float = 0.01
    """False-positive rate on `validation` at which false triggers on `test` are reported."""
    seed: int = 0
    """Choice of texts where a pool has more."""

    def __post_init__(self) -> None:
        if not 0 <= self.fpr < 1:
            raise InputError(f"fpr must lie in [0, 1), {self.fpr} found")


@dataclass(frozen=True)
class FeatureEvidence:
    """One feature and why it is thought to carry the concept."""

    hook_point: str
    id: int
    direction: Literal["suppress_positive", "suppress_negative"]
    """The end of the feature's direction at which the concept sits."""
    source: Literal["vocabulary", "contrast", "both", "given", "effect"]
    matched: tuple[str, ...]
    """The concept's tokens among the promoted (or, at the negative end, suppressed) ones."""
    promoted: tuple[str, ...]
    suppressed: tuple[str, ...]
    fired: int | None
    """Tokens of the concept's `train` texts on which it is active (None, as the next two, where the texts were not
    read).
    """
    delta_phi: float | None
    """Firings on the concept minus those on as many tokens of control text (the larger of neighbours and general)."""
    rho: float | None
    """Activation per token on the concept over that on control text (the larger of the two)."""
    auroc: dict[str, float | None]
    """Of its maximum in a text as a detector, target against neighbours and general, a split."""
    effects: dict[str, float] = field(default_factory=dict)
    """What the filters measured, where they ran; of features chosen by effect: the change of the margin and of the
    neighbours' margin that was predicted of each feature's change, as shares.
    """

    @property
    def layer(self) -> int:
        """Layer number of the hook point."""
        return int(self.hook_point.split(".")[1])

    @property
    def score(self) -> float:
        """What features are ranked by: AUROC on `validation` (`train` where there is none).

        Negative-end features come last.
        """
        best = self.auroc.get("validation")
        best = self.auroc.get("train") if best is None else best
        return (0.5 if best is None else best) - (1.0 if self.direction == "suppress_negative" else 0.0)


@dataclass(frozen=True)
class FeatureReport:
    """Ranked features of a concept, and how well the first of them detect it together."""

    concept: str
    host: str
    features: tuple[FeatureEvidence, ...]
    split_tokens: tuple[str, ...]
    """Tokens of the concept that this tokenizer splits, so that the vocabulary cannot be searched for them."""
    n_set: int = 0
    """How many of the first features the set below holds."""
    set_auroc: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Split -> `all`, `neighbours`, `general`: AUROC of the set's summed, scaled maxima against that pool."""
    threshold: float | None = None
    """Set score at the stated false-positive rate on `validation`."""
    triggers: dict[str, float] = field(default_factory=dict)
    """Share of `test` texts over the threshold: `target` (recall), `neighbours`, `general`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)
