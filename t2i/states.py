"""What passes between the parts of an image host: encoded prompts, and pictures with their captions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float, UInt8
from torch import Tensor

from ..base.errors import InputError, MatchedNothing


@dataclass(frozen=True, eq=False)
class States:
    """Prompts as the denoiser reads them."""

    embeds: Float[Tensor, "b t d"]
    """One vector a token, at the encoders' fixed lengths."""
    prompts: tuple[str | None, ...]
    """The prompt of each row; None for a row that guides away (the negative prompt), which edits leave alone."""
    pooled: Float[Tensor, "b p"] | None = None
    """One vector a prompt, where the family has one."""

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.embeds):
            raise InputError(f"states: {len(self.embeds)} rows and {len(self.prompts)} prompts; one prompt a row, None for a negative one")

    def __len__(self) -> int:
        return len(self.prompts)

    def with_tensors(self, embeds: Tensor, pooled: Tensor | None) -> "States":
        """The same prompts with other vectors."""
        return replace(self, embeds=embeds, pooled=pooled)


@dataclass(frozen=True, eq=False)
class Batch:
    """Captions with their pictures or latents, for `ImageHost.loss`."""

    captions: Sequence[str]
    images: UInt8[Tensor, "b 3 h w"] | None = None
    latents: Float[Tensor, "b c p q"] | None = None
    """As the denoiser sees them (`ImageHost.latents`), instead of images."""
    seed: int = 0
    """Row i draws its noise and its step from seed `seed + i`."""
    steps: Sequence[int] | None = None
    """Noise level of each row, 0 to the scheduler's training steps; drawn where not given."""

    def __post_init__(self) -> None:
        if isinstance(self.captions, str) or not len(self.captions):
            raise MatchedNothing(f"batch: captions must be a list of at least one string; found {self.captions!r}")
        given = [x for x in (self.images, self.latents) if x is not None]
        if len(given) != 1:
            raise InputError("batch: give either images or latents")
        if len(given[0]) != len(self.captions) or (self.steps is not None and len(self.steps) != len(self.captions)):
            raise InputError(
                f"batch: {len(self.captions)} captions, {len(given[0])} pictures; one each, and one step each where steps are given"
            )
