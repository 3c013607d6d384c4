"""Module paths and calls, one file a family of pipelines, and nowhere else. `family_of(pipeline)` finds a pipeline's family."""

from typing import Any

from ...base.errors import UnknownName
from .encoders import ENCODERS
from .family import Encoder, Family
from .flux import FLUX
from .sd3 import SD3
from .sdxl import SDXL
from .stable_diffusion import STABLE_DIFFUSION

__all__ = ["FAMILIES", "Encoder", "Family", "encoder_of", "family_of"]

FAMILIES: tuple[Family, ...] = (STABLE_DIFFUSION, SDXL, SD3, FLUX)


def family_of(pipeline: Any) -> Family:
    """The family that knows where such a pipeline keeps its parts.

    Raises:
        UnknownName: No adapter serves its class.
    """
    by_class = {c: family for family in FAMILIES for c in family.pipelines}
    name = type(pipeline).__name__
    if name not in by_class:
        raise UnknownName("kind of pipeline", name, by_class, f"Pipelines served: {', '.join(sorted(by_class))}")
    return by_class[name]


def encoder_of(model: Any) -> Encoder:
    """What knows where a text encoder keeps its layers.

    Raises:
        UnknownName: No adapter serves its kind.
    """
    by_type = {t: encoder for encoder in ENCODERS for t in encoder.model_types}
    kind = str(getattr(model.config, "model_type", ""))
    if kind not in by_type:
        raise UnknownName("kind of text encoder", kind, by_type)
    return by_type[kind]
