"""The recipe of the miniature: sizes and schedules. Plain values; nothing heavy is imported."""

from dataclasses import dataclass

from ...base.errors import UnknownName
from ...deactivate.training.config import LoopConfig

SAMPLING = {"steps": 10, "guidance": 1.5}
"""How the miniatures are drawn unless told otherwise: what `efface icons check` admits their cells with; stands in their manifest."""
_CROPS = LoopConfig(steps=4000, lr=1e-3, warmup=150, schedule="cosine", checkpoint_every=250, log_every=25)
_DECODER = LoopConfig(steps=400, lr=5e-4, warmup=30, schedule="cosine", checkpoint_every=100, log_every=25)
_TEXT = LoopConfig(steps=1500, lr=1e-3, warmup=100, beta2=0.98, weight_decay=0.05, schedule="cosine", checkpoint_every=150, log_every=25)
_DENOISER = LoopConfig(
    steps=24000, lr=1e-3, warmup=500, weight_decay=0.01, schedule="cosine", average=0.999, checkpoint_every=250, log_every=25
)


@dataclass(frozen=True)
class VaeRecipe:
    """Autoencoder: 8 x down, `channels` a level."""

    channels: tuple[int, ...] = (24, 48, 64, 96)
    latent: int = 16
    groups: int = 8
    crop: int = 32
    """Side of the crops of the first stage."""
    batch: int = 24
    whole_batch: int = 16
    """Of whole drawings in the second stage, which trains the decoder alone."""
    noise: float = 0.4
    """Largest standard deviation of the noise on latents (variance 1) in the second stage."""
    kl: float = 1e-5
    colour: float = 2.0
    """Weight of the error of 4 x 4 means: without it hues drift, and a flag is its hues."""
    carry: bool = True
    """Start with the colours passing (`vae_start.py`)."""
    flags_share: float = 0.25
    """Of a batch that is flags: of all drawings they are a twelfth."""
    crops: LoopConfig = _CROPS
    decoder: LoopConfig = _DECODER


@dataclass(frozen=True)
class TextRecipe:
    """Text tower, trained against an image tower that is thrown away."""

    vocabulary: int = 2000
    tokens: int = 24
    """Longest prompt, with the first and last token."""
    width: int = 192
    layers: int = 6
    heads: int = 6
    image_layers: int = 4
    patch: int = 16
    """Side of the image tower's patches: it is thrown away, and finer ones cost four times as much."""
    projection: int = 128
    batch: int = 160
    """Captions a step."""
    pictures: int = 40
    """Drawings a step."""
    style_weight: float = 0.3
    """Of telling the style, beside telling the thing."""
    main_share: float = 0.6
    """Of a batch that is of the main set and the flags; the rest are other names."""
    concepts_share: float = 0.0
    """Of a batch that is drawings of the twenty concepts, before `main_share` is taken of what is left."""
    loop: LoopConfig = _TEXT


@dataclass(frozen=True)
class UnetRecipe:
    """Denoiser of the latents."""

    channels: tuple[int, ...] = (96, 192)
    head: int = 4
    """What diffusers calls `attention_head_dim`."""
    groups: int = 16
    batch: int = 32
    flags_share: float = 0.2
    """Of a batch that is flags."""
    concepts_share: float = 0.2
    """Of a batch that is drawings of the twenty concepts, which are evaluated; the rest of the main set shares what is left."""
    noisy: float = 1.0
    """Steps are drawn as T (1 - u^noisy), u uniform: 1 is uniform, 2.5 puts two thirds of them into the noisiest third, where only the
    caption says what is to be drawn."""
    whitening: float = 1e-5
    """Floor of the whitening of text states, as a share of their largest second moment."""
    loop: LoopConfig = _DENOISER


@dataclass(frozen=True)
class Recipe:
    """All three."""

    name: str
    vae: VaeRecipe = VaeRecipe()
    text: TextRecipe = TextRecipe()
    unet: UnetRecipe = UnetRecipe()
    only_concepts: bool = False
    """Whether autoencoder and U-Net learn the twenty concepts alone."""


RECIPES = {
    "icons": Recipe("icons"),
    "icons-xs": Recipe(
        "icons-xs",
        VaeRecipe((16, 24, 32, 48), latent=8, groups=4,
            crops=LoopConfig(steps=900, lr=3e-3, warmup=50, schedule="cosine", checkpoint_every=300, log_every=25),
            decoder=LoopConfig(steps=200, lr=1e-3, warmup=20, schedule="cosine", checkpoint_every=100, log_every=25),
        ),
        TextRecipe(
            1000, 24, 96, 3, 4, 2, 16, 64, concepts_share=0.5,
            loop=LoopConfig(steps=400, lr=2e-3, warmup=40, weight_decay=0.05, schedule="cosine", checkpoint_every=100, log_every=25),
        ),
        UnetRecipe(
            (36, 72), groups=9, flags_share=0.0, concepts_share=0.0,
            loop=LoopConfig(steps=2500, lr=1.5e-3, warmup=100, weight_decay=0.01, schedule="cosine", average=0.995, checkpoint_every=250, log_every=25),
        ),
        only_concepts=True,
    ),
}  # fmt: skip


def recipe(name: str) -> Recipe:
    """A recipe by name.

    Raises:
        UnknownName: No such recipe.
    """
    if name not in RECIPES:
        raise UnknownName("recipe", name, RECIPES)
    return RECIPES[name]
