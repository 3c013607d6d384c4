"""The language side of `efface inspect`: a concept's dossier, and how tokens are spelt."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..base.errors import MatchedNothing
from ..deactivate.inspect.dossiers import dossier
from .features import FeatureConfig, features
from .gating import concept_gate, judge_gate
from .pools import general_texts, pool_texts
from .vocabulary import token_strings

if TYPE_CHECKING:
    from ..deactivate.concept import Concept
    from ..sae import SAE
    from .host import Host

EXAMPLES = {"target": 3, "neighbours": 2, "general": 2}
"""Prompts shown of a concept where none are given."""


def spell(host: "Host", ids: Sequence[int]) -> list[str]:
    """Each token alone, leading spaces in it."""
    return token_strings(host.tokenizer, torch.tensor(list(ids)))


def concept_dossier(
    host: "Host", concept: "Concept", saes: "Sequence[SAE]", *, seed: int = 0, gated: bool = True, other_model: bool = False
) -> dict[str, Any]:
    """Ranked features with their evidence, and the gate fitted on them with its curve and what it does on `test`."""
    report = features(host, concept, saes, FeatureConfig(seed=seed), other_model=other_model)

    def gate() -> Any:
        made = concept_gate(host, concept, saes, seed=seed, other_model=other_model)
        return made, judge_gate(host, made, concept, seed=seed)

    return dossier(concept, report.to_dict(), gate if gated else None)


def example_prompts(concept: "Concept", seed: int = 0) -> list[str]:
    """A few texts of `validation`: of the concept, of its neighbours, and general ones."""
    found = [
        *pool_texts(concept, "target", "validation", EXAMPLES["target"], seed),
        *pool_texts(concept, "neighbours", "validation", EXAMPLES["neighbours"], seed),
        *general_texts(concept, "validation", EXAMPLES["general"], seed),
    ]
    if not found:
        raise MatchedNothing(f"concept {concept.name!r} has no texts in validation; name prompts with --prompt")
    return found
