"""diffusers, which is optional: its classes by name."""

from typing import Any

from ..base.errors import InputError


def diffusers_class(name: str) -> Any:
    """A class that diffusers exports.

    Raises:
        InputError: diffusers is not installed.
    """
    try:
        import diffusers
    except ImportError:
        raise InputError("image models need diffusers: pip install 'efface[t2i]'") from None
    return getattr(diffusers, name)
