"""What every row of one evaluation shares: prompts, seeds, judges, and the way in which pictures are drawn."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from ...base.errors import InputError, UnknownName
from ...base.running import progress
from .drawn import Copy, Drawn, judged, load_copies
from .judging import class_index
from .prompts import Ask, Cells, asks

if TYPE_CHECKING:
    from ...deactivate.concept import Concept

Control = Literal["random features", "random directions"]


@runtime_checkable
class ImageHost(Protocol):
    """What the suite asks of a host.

    One with a method `moved(prompts) -> Bool[Tensor, "n"]` is asked which pictures the edits on it can change; of batches without
    any the base's pictures are taken.
    """

    name: str

    @property
    def digest(self) -> str:
        """Of everything that draws."""
        ...

    @property
    def sampling(self) -> Mapping[str, Any]:
        """Sampler, steps, guidance: plain values for the card."""
        ...

    def generate(self, prompts: Sequence[str], *, seeds: Sequence[int]) -> UInt8[Tensor, "n 3 h w"]:
        """Picture i of prompt i under seed i, whatever stands beside it."""
        ...


@dataclass(frozen=True)
class ImageSuiteConfig:
    """How much is drawn, and what counts as no harm.

    As it stands: 204 prompts of an object on `test`, 408 pictures of the base, 132 of an edit behind a gate that fires on the
    concept alone, and at most 66 for each draw of a random control.
    """

    seeds: tuple[int, ...] = (0, 1)
    """Each prompt is drawn once a seed; base, edits and controls with the same."""
    grid: tuple[str, ...] = ()
    """Objects whose cells are drawn whole, for UnlearnCanvas' rates."""
    target: int = 40
    """Prompts by name, at most."""
    ways: int = 16
    """Prompts a way to ask other than by name."""
    neighbours: int = 48
    """Prompts of neighbours: all of the pair's, of the others what there is room for."""
    general: int = 90
    """Further general prompts."""
    least_drawn: float = 0.8
    """Share of the base's pictures in which every copy of the judges sees the concept, below which another way to ask does not count."""
    controls: tuple[Control, ...] = ("random features", "random directions")
    """Random controls to draw."""
    control_draws: int = 3
    """Draws of each, every one under one of the seeds; 0: no random control."""
    margin: float = 0.05
    """«No harm»: accuracy within this of the base's."""
    kid_size: int = 50
    """Pictures in a subset of KID."""
    draws: int = 2000
    """Of the bootstrap."""
    batch: int = 8
    """Prompts drawn at once."""
    seed: int = 0
    """Of the choice of prompts and of random controls."""
    reuse: bool = True
    """Take the base's pictures from the cache, where they were drawn alike before."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise InputError(f"seeds: different numbers from 0 up expected, {self.seeds} found")
        least = {"general": 0, "ways": 0, "neighbours": 0, "target": 1, "control_draws": 0, "kid_size": 2, "draws": 100, "batch": 1}
        for name, at_least in least.items():
            if getattr(self, name) < at_least:
                raise InputError(f"image suite: {name} must be at least {at_least}, {getattr(self, name)} found")
        for name in ("margin", "least_drawn"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name}: a share in (0, 1) expected, {getattr(self, name)} found")
        if unknown := [c for c in self.controls if c not in get_args(Control)]:
            raise UnknownName("control", unknown[0], get_args(Control))


@dataclass(frozen=True, eq=False)
class Ground:
    """One evaluation's prompts and judges."""

    concept: "Concept"
    config: ImageSuiteConfig
    head: str
    target: str
    asks: tuple[Ask, ...]
    """One a picture: each prompt under all seeds, prompt after prompt."""
    seeds: tuple[int, ...]
    copies: Sequence[Copy]
    neighbours: tuple[str, ...]
    """Classes of its neighbours, the pair first."""

    @property
    def whole(self) -> Int[np.ndarray, " n"]:
        """Places of all pictures."""
        return np.arange(len(self.asks))

    def under(self, seed: int) -> Int[np.ndarray, " m"]:
        """Places of the pictures of one seed."""
        return np.flatnonzero(np.array(self.seeds) == seed)

    def of_concept(self) -> Bool[np.ndarray, " n"]:
        """Pictures whose prompts ask for the concept."""
        return np.array([a.group in ("target", "ways") for a in self.asks])

    def batches(self, at: Int[np.ndarray, " m"]) -> Iterator[Int[np.ndarray, " b"]]:
        """Places in the order of drawing: a seed after the other, so that the pictures of one seed come in the same batches alone."""
        seeds = np.array(self.seeds)[at]
        for seed in self.config.seeds:
            mine = at[seeds == seed]
            yield from (mine[i : i + self.config.batch] for i in range(0, len(mine), self.config.batch))

    def draw(
        self, host: ImageHost, note: str, at: Int[np.ndarray, " m"], base: UInt8[Tensor, "n 3 h w"] | None = None
    ) -> tuple[UInt8[Tensor, "m 3 h w"], int]:
        """(pictures of these places in their order, how many were drawn for them).

        With `base`, batches in which the host says that nothing can have changed are taken from there.
        """
        moved = getattr(host, "moved", None) if base is not None else None
        found, order, drawn = [], [], 0
        for places in progress(list(self.batches(at)), desc=note, unit="batch"):
            texts = [self.asks[i].text for i in places]
            order.append(places)
            if moved is not None and base is not None and not moved(texts).any():
                found.append(base[torch.from_numpy(places)])
                continue
            found.append(host.generate(texts, seeds=[self.seeds[i] for i in places]))
            drawn += len(places)
        back = np.argsort(np.concatenate(order), kind="stable")
        return torch.cat(found)[torch.from_numpy(back)], drawn

    def judge(self, images: UInt8[Tensor, "m 3 h w"], at: Int[np.ndarray, " m"]) -> list[Drawn]:
        """What each copy says of the pictures of these places."""
        asked, seeds = [self.asks[i] for i in at], [self.seeds[i] for i in at]
        return [judged(images, asked, seeds, copy, self.head, self.target) for copy in self.copies]


def ground(concept: "Concept", split: str, config: ImageSuiteConfig, copies: Sequence[Copy] | None, cells: Cells | None) -> Ground:
    """Prompts and judges of an evaluation; see `suite.evaluate`."""
    family, _, head = concept.require("judge").partition("/")
    head = head.split("/")[0]
    found = asks(
        concept, split, grid=config.grid, general=config.general, ways=config.ways, neighbours=config.neighbours, target=config.target,
        cells=cells, seed=config.seed,
    )  # fmt: skip
    target = next(a.labels[head] for a in found if a.group == "target")
    near = tuple(dict.fromkeys(a.labels[head] for a in found if a.group == "neighbours" and a.labels.get(head, target) != target))
    pairs = [(a, s) for a in found for s in config.seeds]
    every = load_copies(family) if copies is None else copies
    class_index(every[0][head], target)
    return Ground(concept, config, head, target, tuple(a for a, _ in pairs), tuple(s for _, s in pairs), every, near)
