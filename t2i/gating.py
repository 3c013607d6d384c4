"""A concept's gate on an image host: features and weights from `train`, calibrated on `validation`, judged on `test`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..base.errors import InputError
from ..deactivate.gate import Gate
from ..llm import gating as _texts
from .features import features
from .pools import with_general

if TYPE_CHECKING:
    from ..deactivate.concept import Concept
    from ..sae import SAE
    from .host import ImageHost


def concept_gate(
    host: "ImageHost",
    concepts: "Concept | Sequence[Concept]",
    saes: "Sequence[SAE]",
    *,
    fpr: float = 0.01,
    weights: str = "fitted",
    per: str = "prompt",
    seed: int = 0,
    other_model: bool = False,
    pool: int = _texts.POOL,
) -> Gate:
    """The gate of one concept, which reads prompts; see `llm.gating.concept_gate`.

    Args:
        host: The pipeline.
        concepts: One.
        saes: All at hook points of one text encoder.
        fpr: Share of general prompts of `validation` at which it may fire.
        weights: `fitted` or `equal`.
        per: `prompt`.
        seed: Of choices of prompts.
        other_model: Accept SAEs that were trained on another text encoder.
        pool: General prompts that the threshold is taken from, at most.

    Raises:
        InputError: `per` is another, more than one concept, or SAEs of several encoders.
        MatchedNothing: No feature carries the concept.
    """
    if per != "prompt":
        raise InputError(f"gate per {per}: pictures are not written token by token; a pipeline's gate decides per prompt")
    listed: list[Any] = list(concepts) if isinstance(concepts, Sequence) else [concepts]
    read: Any = host  # what is done with a host there both kinds can
    return _texts.concept_gate(
        read,
        [with_general(c) for c in listed],
        saes,
        fpr=fpr,
        weights=weights,
        seed=seed,
        other_model=other_model,
        pool=pool,
        find=features,
    )


def judge_gate(host: "ImageHost", gate: Gate, concept: "Concept", split: str = "test", seed: int = 0) -> dict[str, Any]:
    """What the gate does on a split it was not made with; see `llm.gating.judge_gate`."""
    return _texts.judge_gate(host, gate, with_general(concept), split, seed)  # pyright: ignore[reportArgumentType]
