"""Gradient difference: ascent on what is unlearnt, descent on what must stay (Liu et al., 2022; Maini et al., 2024)."""

from .config import GradDiffConfig

__all__ = ["GradDiffConfig"]
