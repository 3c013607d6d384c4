"""Random controls of an edit that changes features step by step: other features of its SAE at each step, and other directions."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ...base.errors import MatchedNothing
from ...deactivate.evaluation.controls import redrawn
from ...deactivate.stepwise import StepFeatures, StepwisePart

if TYPE_CHECKING:
    from ..host import ImageHost

DRAWN = 16
"""General prompts that are drawn to see which features live at which step."""


class OtherFeatures:
    """At each step as many other features that fire there in general prompts, above their own means; factors are kept, by lot.

    Raises:
        MatchedNothing: At a step too few other features fire.
    """

    def __init__(self, host: "ImageHost", part: StepwisePart, texts: Sequence[str], seed: int = 0) -> None:
        from ..methods.saeuron.config import SAeUronConfig
        from ..methods.saeuron.fit import means

        drawing = SAeUronConfig().drawing(part.sae.card.get("token_policy") or {})
        found = means(host, part.sae, texts[:DRAWN], seed, drawing, "random features")
        self.part, self.means = part, found.mean()
        self.places = [min(range(len(found.times)), key=lambda i, s=s: abs(found.times[i] - s.time)) for s in part.steps]
        self.pools = [[f for f in self.means[i].nonzero()[:, 0].tolist() if f not in part.features] for i in self.places]
        for pool, step in zip(self.pools, part.steps, strict=True):
            if len(pool) < len(set(step.features)):
                raise MatchedNothing(
                    f"at step {step.time:g} the SAE has {len(pool)} other features that fire, {len(set(step.features))} are needed"
                )

    def draw(self, rng: random.Random) -> StepwisePart:
        """One control part."""
        steps = []
        for step, pool, place in zip(self.part.steps, self.pools, self.places, strict=True):
            ids, factors = rng.sample(pool, len(set(step.features))), list(step.factors)
            rng.shuffle(factors)
            own = self.means[place, ids].tolist()
            steps.append(StepFeatures(step.time, tuple(ids), tuple(factors[: len(ids)]), tuple(own)))
        part = self.part
        return StepwisePart(part.sae, tuple(steps), part.between, part.everywhere, part.compat, part.fingerprint)


@dataclass(frozen=True, eq=False)
class TurnedSteps(StepwisePart):
    """A stepwise part that writes other directions than its features' own. A control: lives in memory alone."""

    rows: Float[Tensor, "f d"] = field(default_factory=lambda: torch.zeros(0, 0))
    """One a feature of `features`."""

    def written(self, ids: Sequence[int]) -> Float[Tensor, "f d"]:
        """As given."""
        return self.rows[[self.features.index(f) for f in ids]]

    def tensors(self) -> dict[str, Tensor]:
        """The steps, and what is written."""
        return {**super().tensors(), "directions": self.rows}


def turned_steps(part: StepwisePart, gen: torch.Generator) -> TurnedSteps:
    """The part with Gaussian directions of the same norms."""
    rows = redrawn(part.written(part.features).detach().T, gen).T.contiguous()
    return TurnedSteps(part.sae, part.steps, part.between, part.everywhere, part.compat, part.fingerprint, part.portability, rows=rows)
