"""diffusers, which is optional: its classes by name."""

from typing import Any

from ..base.errors import InputError
from ..base.running import quiet


def diffusers_class(name: str) -> Any:
    """A class that diffusers exports.

    Raises:
        InputError: diffusers is not installed.
    """
    try:
        import diffusers
    except ImportError:
        raise InputError("image models need diffusers: pip install 'efface[t2i]'") from None
    with quiet():  # transformers recommends torchvision, which nothing here needs
        return getattr(diffusers, name)


def channels_last(pipeline: Any) -> Any:
    """The pipeline with its convolutions in the layout that they are fastest in (`benchmarks/layout.py`); no value is changed."""
    from torch import channels_last, nn

    parts: list[Any] = [p for p in pipeline.components.values() if isinstance(p, nn.Module)]
    for part in parts:
        if any(isinstance(m, nn.Conv2d) for m in part.modules()):
            part.to(memory_format=channels_last)
    return pipeline
