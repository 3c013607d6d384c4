"""What an adapter answers: which parts a family of pipelines has, where their modules lie, and how the parts are called."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..states import States


@dataclass(frozen=True)
class Encoder:
    """Module paths of one kind of text encoder. Paths of a layer start at the layer."""

    name: str
    model_types: tuple[str, ...]
    """`config.model_type` of the encoders it serves."""
    layers: tuple[str, ...]
    """The list of layers, by the versions of transformers; the first that exists counts."""
    mlp: str
    """The MLP block; its input is `mlp_in`."""
    down: str
    """The down-projection; its input is `mlp_hidden`, its output `mlp_out`."""
    attention: str
    """The attention block."""
    causal: bool = False
    """Whether no token sees what comes behind it."""


@dataclass(frozen=True)
class Family:
    """One family of pipelines."""

    name: str
    pipelines: tuple[str, ...]
    """diffusers' classes it serves."""
    denoiser: str
    """Component that predicts noise: `unet` or `transformer`."""
    encoders: tuple[str, ...]
    """Components that read text, in the pipeline's order."""
    blocks: tuple[str, ...]
    """Patterns of module paths in the denoiser whose output is a hook point."""
    width: Callable[[Any, Any], int]
    """(denoiser, block) -> width of the vectors that the block puts out."""
    cross: str
    """Pattern of the parameters in the denoiser that make keys and values of the text."""
    encode: Callable[[Any, Sequence[str]], tuple[Tensor, Tensor | None]]
    """(pipeline, prompts) -> vectors a token, pooled vectors."""
    predict: Callable[[Any, Tensor, Tensor, States], Tensor]
    """(pipeline, latents, steps, states) -> the denoiser's output, in the layout of the latents."""
    call: Callable[[States, States | None], dict[str, Any]]
    """(states, negative states) -> what the pipeline's call is given for them."""
    optional: tuple[str, ...] = ()
    """Text encoders that may be missing."""
    unread: tuple[str, ...] = ()
    """Text encoders of whose last layer nothing is read."""
    lengths: Mapping[str, int] = field(default_factory=dict)
    """Tokens that a text encoder is given, where that is not its tokenizer's own length."""
    spatial: bool = False
    """Blocks put out pictures `[b d h w]`."""
    index: int = 0
    """Which element of a block's output is the picture's, where it is a tuple."""
    clock: float = 1.0
    """The scheduler's time over that which the denoiser is told."""
    flow: bool = False
    """Trained by flow matching: the denoiser predicts noise minus picture."""
    negative: bool = True
    """Takes a negative prompt, in one call with the prompt."""
    zero_negative: bool = False
    """Stands zeros in for an empty negative prompt where the pipeline's config says `force_zeros_for_empty_prompt`."""
