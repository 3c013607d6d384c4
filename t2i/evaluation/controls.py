"""Random controls of an edit of a pipeline: as many other features of its SAEs, and other directions of equal norm."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...base.errors import InputError, MatchedNothing
from ...deactivate.edit import Edit
from ...deactivate.evaluation.controls import control_edit, random_projection, redrawn
from ...deactivate.layer import DeactivationPart
from ...deactivate.parts import LowRank, Part, ProjectionPart, WeightsPart
from ...deactivate.replacement import ReplacementPart
from ...deactivate.stepwise import StepwisePart
from ...llm.pools import pool_texts
from ...llm.scanning import scan
from ..pools import with_general
from .step_controls import OtherFeatures, turned_steps

if TYPE_CHECKING:
    from ...deactivate.concept import Concept
    from .ground import ImageHost, ImageSuiteConfig

FEATURES, DIRECTIONS = "random features", "random directions"
TEXTS = 300
"""General prompts of `train` that show which features live."""


def random_controls(
    host: "ImageHost", edits: Sequence[Any], concept: "Concept", config: "ImageSuiteConfig"
) -> tuple[dict[str, list[list[Edit]]], list[str]]:
    """(control -> its draws, what does not apply and why)."""
    if not edits:
        return {}, []
    if not config.control_draws:
        return {}, ["random controls: control_draws is 0"]
    made: dict[str, list[list[Edit]]] = {}
    absent: list[str] = []
    for name in (FEATURES, DIRECTIONS):
        if name not in config.controls:
            absent.append(f"{name}: not asked for")
            continue
        try:
            sources = [_source(name, host, e, concept) for e in edits]
            made[name] = [[s.draw(config.seed + i) for s in sources] for i in range(config.control_draws)]
        except InputError as e:
            absent.append(f"{name}: {e}")
    return made, absent


def _source(name: str, host: Any, edit: Any, concept: "Concept") -> "RandomFeatures | RandomDirections":
    if not isinstance(edit, Edit):
        raise InputError("no draws were given")
    return RandomFeatures(host, edit, concept) if name == FEATURES else RandomDirections(edit)


class RandomFeatures:
    """Draws of «random features»: each deactivation layer with as many other features of its SAE, all else alike.

    A part that works step by step (`StepwisePart`) gets as many others of each step (`step_controls`).
    Drawn are features that fire on the concept's general prompts of `train`, and none that the edit itself changes; the gate in front
    of the edit stands in front of the draw too.

    Raises:
        InputError: The edit has a part that is no deactivation layer.
        MatchedNothing: An SAE has too few other features that fire.
    """

    def __init__(self, host: Any, edit: Edit, concept: "Concept") -> None:
        self.edit, self.layers = edit, [layer for p in edit.parts if (layer := _layer(p))]
        stepwise = [p for p in edit.parts if isinstance(p, StepwisePart)]
        if len(self.layers) + len(stepwise) < len(edit.parts):
            raise InputError(f"needs an edit by features alone; {edit.eraser} has other parts")
        texts = pool_texts(with_general(concept), "general", "train", TEXTS)
        self.steps = {id(p): OtherFeatures(host, p, texts) for p in stepwise}
        self.pools: list[list[int]] = []
        for layer in self.layers:
            point = layer.hook_point
            used = {f for other in self.layers if other.hook_point == point for f in other.features}
            alive = scan(host.reader([point]), texts, {point: layer.sae})[point].fired.nonzero()[:, 0].tolist()
            self.pools.append([f for f in alive if f not in used])
            if len(self.pools[-1]) < len(layer.features):
                raise MatchedNothing(
                    f"the SAE at {point} has {len(self.pools[-1])} other features that fire, {len(layer.features)} are needed"
                )

    def draw(self, seed: int) -> Edit:
        """One control edit."""
        rng = random.Random(f"random features/{seed}")
        drawn = [rng.sample(pool, len(layer.features)) for pool, layer in zip(self.pools, self.layers, strict=True)]
        layers = iter([replace(layer, features=tuple(ids)) for layer, ids in zip(self.layers, drawn, strict=True)])
        parts: list[Part] = []
        for p in self.edit.parts:
            if (steps := self.steps.get(id(p))) is not None:
                parts.append(steps.draw(rng))
            else:
                parts.append(replace(p, layer=next(layers)) if isinstance(p, ReplacementPart) else next(layers))
        return control_edit(parts, FEATURES, seed, self.edit.gate)


def _layer(part: Part) -> DeactivationPart | None:
    """The layer that says at which features a part acts."""
    inner = part.layer if isinstance(part, ReplacementPart) else part
    return inner if isinstance(inner, DeactivationPart) else None


class RandomDirections:
    """Draws of «random directions»: the edit with every direction that it writes replaced by a Gaussian one of the same norm.

    When it writes, and how much of each, stays. Directions are the decoder rows of deactivated features, and what low-rank changes of
    linear weights write; a projection becomes an orthogonal one of equal rank on random directions.

    Raises:
        InputError: The edit has another part.
    """

    def __init__(self, edit: Edit) -> None:
        self.edit = edit
        for part in edit.parts:
            if isinstance(part, DeactivationPart | StepwisePart | ProjectionPart):
                continue
            deltas = part.deltas if isinstance(part, WeightsPart) else {}
            held = {part.base[n].module for n in deltas if n in part.base} if isinstance(part, WeightsPart) else set()
            if not deltas or not all(isinstance(d, LowRank) for d in deltas.values()) or held - {"Linear"}:
                raise InputError(f"needs deactivated features or low-rank changes of linear weights; {edit.eraser} has another part")

    def draw(self, seed: int) -> Edit:
        """One control edit."""
        gen = torch.Generator().manual_seed(seed)
        return control_edit([_turned(part, gen) for part in self.edit.parts], DIRECTIONS, seed, self.edit.gate)


@dataclass(frozen=True, eq=False)
class TurnedLayer(DeactivationPart):
    """A deactivation layer that writes other directions than its features' own. A control: lives in memory alone."""

    rows: Tensor | None = None

    def directions(self) -> Float[Tensor, "f d"]:
        """As given."""
        return super().directions() if self.rows is None else self.rows

    def tensors(self) -> dict[str, Tensor]:
        """The features' ids, and what they write."""
        return {**super().tensors(), "directions": self.directions()}


def _turned(part: Part, gen: torch.Generator) -> Part:
    if isinstance(part, StepwisePart):
        return turned_steps(part, gen)
    if isinstance(part, ProjectionPart):
        return random_projection(part, gen)
    if isinstance(part, DeactivationPart):
        own = {name: getattr(part, name) for name in ("sae", "features", "value", "mode", "fingerprint", "keep_error", "spare_first")}
        return TurnedLayer(**own, rows=redrawn(part.directions().detach().T, gen).T.contiguous())
    assert isinstance(part, WeightsPart)
    low = {n: d for n, d in part.deltas.items() if isinstance(d, LowRank)}
    return WeightsPart({n: LowRank(redrawn(d.B, gen), d.A) for n, d in low.items()}, portability=part.portability)
