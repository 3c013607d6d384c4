"""What is kept of each feature, and how it is labelled: plain values, torch-free."""

from dataclasses import dataclass, fields
from typing import Literal

from ...base.errors import InputError


@dataclass(frozen=True)
class EvidenceConfig:
    """Sizes of the evidence. Memory while collecting is about `d_sae * slots * (before + after + 1) * 8` bytes an SAE.

    `slots` is `top + reservoir + 2 * held`; the length of the corpus does not enter.
    """

    context: int = 128
    """Most tokens of a window of text that the host reads at once, its BOS token included."""
    forward_tokens: int = 2048
    """Most tokens (padding included) in one forward pass."""
    before: int = 16
    """Tokens kept in front of a context's peak."""
    after: int = 8
    """Tokens kept behind it; held-out contexts are as long as these three together."""
    top: int = 12
    """Strongest contexts kept a feature."""
    reservoir: int = 30
    """Contexts drawn evenly from all in which a feature fires; they are dealt to the quantiles."""
    quantiles: int = 5
    """Equal shares of the activation distribution that the reservoir's contexts are named by."""
    held_out: int = 4
    """One document in so many is held out for scoring labels (half of them `validation`, half `test`)."""
    held: int = 16
    """Held-out contexts kept a feature and split."""
    background: int = 1000
    """Contexts kept a split whatever fires in them: where a feature does not, they are its negatives."""
    tokens: int = 10
    """Promoted, suppressed and firing tokens kept a feature."""
    neighbours: int = 10
    """Nearest features kept a feature."""
    words: int = 4
    """Most words in a label."""
    least: int = 5
    """Held-out contexts a split below which a feature's label cannot be scored, so that it gets none."""
    labels: Literal["words", "host"] = "words"
    """`words`: from tokens and contexts alone. `host`: the host writes labels too, and the one that detects better on
    `validation` is taken."""
    written: int = 50
    """At most so many features, a seeded choice, get a label written by the host; 0: all."""
    seed: int = 0
    """Of every choice among contexts and features."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value, least = getattr(self, f.name), _LEAST.get(f.name, 1)
            if isinstance(value, int) and value < least:
                raise InputError(f"{f.name} must be at least {least}; found {value}")
        if self.reservoir < self.quantiles:
            raise InputError(f"reservoir must hold at least one context a quantile; found {self.reservoir} and quantiles {self.quantiles}")
        if self.held < self.least:
            raise InputError(f"held must be at least `least`; found {self.held} and {self.least}: no label could be scored")

    @property
    def span(self) -> int:
        """Tokens of a context."""
        return self.before + self.after + 1


_LEAST = {"context": 2, "before": 0, "after": 0, "held_out": 2, "written": 0, "seed": 0}
