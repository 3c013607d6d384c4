"""What distinguishes the architectures: extra weights, which latents are active at which value, the training loss."""

from ...base.errors import UnknownName
from ..config import ARCHITECTURES
from .base import Architecture
from .dense import Gated, Relu
from .jumprelu import JumpRelu
from .topk import BatchTopKFamily, TopKFamily

_CLASSES: dict[str, type[Architecture]] = {
    "relu": Relu,
    "topk": TopKFamily,
    "batchtopk": BatchTopKFamily,
    "jumprelu": JumpRelu,
    "matryoshka": BatchTopKFamily,
    "gated": Gated,
}


def architecture(name: str) -> Architecture:
    """The architecture of that name."""
    if name not in _CLASSES:
        raise UnknownName("architecture", name, ARCHITECTURES)
    return _CLASSES[name]()


__all__ = ["Architecture", "architecture"]
