"""RMU: representation misdirection for unlearning (Li et al., The WMDP Benchmark, 2024)."""

from .config import RmuConfig

__all__ = ["RmuConfig"]
