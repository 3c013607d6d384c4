"""The judges' recipe: two architectures, two data seeds, one augmentation. Plain values; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Literal

from ....base.errors import UnknownName
from ....deactivate.training.config import LoopConfig


@dataclass(frozen=True)
class Augmentation:
    """What a small autoencoder and a diffusion model do to a drawing. Strengths are drawn uniformly up to the value, a picture each."""

    rotate: float = 6.0
    """Degrees, either way."""
    scale: float = 0.08
    """Share by which it grows or shrinks."""
    shift: float = 3.0
    """Pixels, either way, on each axis."""
    wobble: float = 1.6
    """Pixels by which the corners of a 5 x 5 grid are displaced, smoothly between them."""
    lines: float = 0.3
    """Share of pictures whose thin dark or thin light lines fade."""
    blur: float = 1.5
    """Standard deviation in pixels of the Gaussian that the picture is mixed with."""
    halved: float = 0.25
    """Share of pictures brought to half the size and back."""
    blocks: float = 0.05
    """Quantisation step of the lowest frequencies of 8 x 8 blocks, as JPEG does it; a third of the pictures."""
    contrast: float = 0.25
    """Share by which the distance from the mean grows or shrinks."""
    colour: float = 0.12
    """Gain a channel, either way."""
    brightness: float = 0.06
    """Offset a channel, of 0 to 1."""
    saturation: float = 0.4
    """Share by which the distance from grey grows or shrinks."""
    noise: float = 0.06
    """Standard deviation of white noise, of 0 to 1; half of the pictures."""
    clouds: float = 0.08
    """Standard deviation of noise that is smooth over 8 pixels; half of the pictures."""
    patch: int = 14
    """Side of a patch that is wiped out in one picture of eight."""


_DEFAULT_LOOP = LoopConfig(steps=1200)


@dataclass(frozen=True)
class JudgeRecipe:
    """One judge: a trunk and four heads (object, style, flag, mark)."""

    name: str
    architecture: Literal["convolutions", "pixels"]
    """`convolutions`: residual ones at 8 x 8 and 4 x 4; `pixels`: residual fully connected layers on the picture at 32 x 32."""
    widths: tuple[int, ...]
    """Channels at 16 x 16, 8 x 8 and 4 x 4, and of the readout; or of all layers."""
    depth: int
    """Residual blocks at 8 x 8; or layers."""
    seed: int
    """Of weights and data."""
    batch: int = 64
    main: float = 0.66
    """Share of a batch from the main set."""
    other: float = 0.12
    """From the other drawings, which are `none`."""
    flags: float = 0.16
    """From the flags; the rest is no drawing at all: plain colours, clouds, averages of two drawings, shuffled patches."""
    marked: float = 0.4
    """Share of drawings and flags under the mark."""
    threshold: float = 0.5
    """Probability that a class needs to be said."""
    augmentation: Augmentation = Augmentation()
    loop: LoopConfig = _DEFAULT_LOOP
    refine: LoopConfig | None = None
    """A second training that begins with the weights of the first: more flags, and what is close to something else is shown more often.
    None: there is none.
    """
    refine_main: float = 0.58
    """`main` in the second training."""
    refine_other: float = 0.09
    """`other` in it."""
    refine_flags: float = 0.28
    """`flags` in it."""
    rank: int = 0
    """Directions of the discriminant that is asked beside the network; 0: there is none."""
    draws: int = 12
    """Augmented views of every drawing and flag that the discriminant is fitted on."""
    trust: float = 0.1
    """What its log-likelihoods of drawings are multiplied by: it takes views for Gaussian, and is surer than it may be."""
    trust_flags: float = 0.4
    """What those of flags are multiplied by."""
    short: int = 600
    """Steps of the trainings that leave a style out."""


def _loop(seed: int, steps: int, lr: float, warmup: int = 60) -> LoopConfig:
    return LoopConfig(
        steps=steps, lr=lr, warmup=warmup, weight_decay=0.03, schedule="cosine", average=0.99, seed=seed, checkpoint_every=50, log_every=20
    )


RECIPES = {
    "A": JudgeRecipe(
        "A", "convolutions", (48, 80, 128, 256), 1, seed=0, loop=_loop(0, 1200, 3e-3), refine=_loop(2, 1000, 1.5e-3, 30), rank=60
    ),
    "B": JudgeRecipe("B", "pixels", (320,), 3, seed=1, loop=_loop(1, 2000, 2e-3), refine=_loop(3, 1500, 1e-3, 30), rank=48),
}
"""By name."""


def judge_recipe(name: str) -> JudgeRecipe:
    """A recipe by name.

    Raises:
        UnknownName: No such judge.
    """
    if name not in RECIPES:
        raise UnknownName("judge", name, RECIPES)
    return RECIPES[name]
