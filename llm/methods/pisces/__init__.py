"""PISCES: concept erasure by rewriting MLP value vectors in SAE feature space (Gur-Arieh et al., EMNLP 2025)."""

from typing import TYPE_CHECKING, Any

from .config import FeatureRef, PiscesConfig

if TYPE_CHECKING:
    from .fit import fit

__all__ = ["FeatureRef", "PiscesConfig", "fit"]


def __getattr__(name: str) -> Any:
    if name == "fit":
        from .fit import fit

        return fit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
