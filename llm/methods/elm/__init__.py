"""ELM: erasure of language memory by self-classification and low-rank adapters (Gandikota et al., 2024)."""

from .config import ElmConfig

__all__ = ["ElmConfig"]
