"""PISCES: concept erasure by rewriting MLP value vectors in SAE feature space (Gur-Arieh et al., EMNLP 2025)."""

from .config import FeatureRef, PiscesConfig

__all__ = ["FeatureRef", "PiscesConfig"]
