"""NPO: negative preference optimisation (Zhang et al., 2024)."""

from .config import NpoConfig

__all__ = ["NpoConfig"]
