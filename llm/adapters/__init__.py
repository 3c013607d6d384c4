"""Module paths, one file a model family, and nowhere else. `family_of(config)` finds the family of a config."""

from transformers import PretrainedConfig

from ...base.errors import UnknownName
from .family import Family
from .gemma import GEMMA
from .gpt2 import GPT2
from .gpt_neox import GPT_NEOX
from .llama import LLAMA

__all__ = ["FAMILIES", "Family", "family_of"]

FAMILIES: tuple[Family, ...] = (LLAMA, GEMMA, GPT2, GPT_NEOX)


def family_of(config: PretrainedConfig) -> Family:
    """The family that knows where such a model keeps its modules.

    Raises:
        UnknownName: No adapter serves `config.model_type`.
    """
    by_type = {t: family for family in FAMILIES for t in family.model_types}
    if config.model_type not in by_type:
        hint = f"Families served: {', '.join(sorted(by_type))}"
        raise UnknownName("model family", config.model_type, by_type, hint)
    return by_type[config.model_type]
