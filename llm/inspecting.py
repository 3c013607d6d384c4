"""The language side of `efface inspect`, and what both sides share: a concept's dossier, and how tokens are spelt."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..base.errors import MatchedNothing, UnknownName
from ..base.files import cache_dir
from ..deactivate.evaluation.cards import count_look
from ..deactivate.inspect.dossiers import dossier
from .evidence import FeatureReport
from .features import CHOOSING, SPLITS, FeatureConfig, features
from .gating import concept_gate, judge_gate
from .pools import general_texts, pool_texts
from .vocabulary import token_strings

if TYPE_CHECKING:
    from ..deactivate.concept import Concept
    from ..sae import SAE
    from .host import Host

EXAMPLES = {"target": 3, "neighbours": 2, "general": 2}
"""Prompts shown of a concept where none are given."""
POOL = 1000
"""General texts that the threshold of a page's gate is taken from; `efface gate` reads more of them."""


def spell(host: "Host", ids: Sequence[int]) -> list[str]:
    """Each token alone, leading spaces in it."""
    return token_strings(host.tokenizer, torch.tensor(list(ids)))


def splits_to(split: str) -> tuple[str, ...]:
    """What is read where figures of `split` are asked for: all that chooses, and `test` only by its name.

    Raises:
        UnknownName: Another split than validation and test.
    """
    if split not in ("validation", "test"):
        raise UnknownName("split", split, ("validation", "test"))
    return SPLITS if split == "test" else CHOOSING


def concept_dossier(
    host: Any,
    concept: "Concept",
    saes: "Sequence[SAE]",
    *,
    split: str = "validation",
    seed: int = 0,
    gated: bool = True,
    other_model: bool = False,
    find: Callable[..., FeatureReport] = features,
    fit: Callable[..., Any] = concept_gate,
    judge: Callable[..., dict[str, Any]] = judge_gate,
) -> dict[str, Any]:
    """Ranked features with their evidence, and the gate fitted on them with its curve; on a host of either kind.

    Args:
        host: The model.
        concept: What to look for.
        saes: At least one.
        split: `test`: the figures of `test` too, which is a look at it, counted before anything is read.
        seed: Of choices of texts.
        gated: Whether a gate is fitted.
        other_model: Accept SAEs that were trained on another model.
        find: Ranks features on this kind of host.
        fit: Makes the gate.
        judge: Says what it does on `test`.
    """
    splits = splits_to(split)
    looks = count_look(cache_dir() / "looks", concept.digest, split)
    report = find(host, concept, saes, FeatureConfig(seed=seed), splits=splits, other_model=other_model)

    def gate() -> Any:
        made = fit(host, concept, saes, seed=seed, other_model=other_model, pool=POOL)
        return made, judge(host, made, concept, seed=seed) if split == "test" else None

    return {**dossier(concept, report.to_dict(), gate if gated else None), "looks": looks}


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
