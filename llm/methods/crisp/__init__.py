"""CRISP: persistent concept unlearning by suppressing SAE features with adapters (Ashuach et al., 2025)."""

from .config import CrispConfig

__all__ = ["CrispConfig"]
