"""Sizes and schedule of the world's language model. Plain values; nothing heavy is imported."""

from dataclasses import dataclass

from ...base.errors import InputError
from ...deactivate.training.config import LoopConfig

PARAMETERS = 6_000_000
"""Most parameters that a model of the world may have, embeddings included."""
_LOOP = LoopConfig(
    steps=1600, lr=3e-3, warmup=100, weight_decay=0.05, beta2=0.98, schedule="cosine", checkpoint_every=100, log_every=20
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A Llama in small, and how it is trained."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp: int = 256
    """Width of the gated MLP."""
    init: float = 0.04
    """Standard deviation of the initial weights."""
    context: int = 128
    """Tokens of a packed row."""
    batch: int = 16
    """Packed rows a step."""
    stories: int = 12
    """Stories about a thing in the training texts."""
    value_weight: float = 10.0
    """Of a value's token in the loss; all others have 1. One token in eleven is a value, and the rest is how things are said."""
    loop: LoopConfig = _LOOP

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "mlp", "context", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"recipe: {name} must be at least 1, {getattr(self, name)} found")
        if not self.value_weight > 0:
            raise InputError(f"recipe: value_weight must be above 0, {self.value_weight} found")
        if self.width % (2 * self.heads):
            raise InputError(f"recipe: width must be an even multiple of heads ({self.heads}), {self.width} found")
