"""What fine-tuning erasers of language models share: settings, texts, adapters, the frozen host beside the trained one, one fit."""

from .config import TuningConfig

__all__ = ["TuningConfig"]
