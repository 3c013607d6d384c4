"""SAeUron: features of an SAE on the U-Net, chosen and scaled step by step (Cywiński & Deja, ICML 2025)."""

from .config import SAeUronConfig

__all__ = ["SAeUronConfig"]
