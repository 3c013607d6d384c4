"""Rows of one evaluation as they come: the base first, then the edited host and the controls, each judged against the base."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from ...base.errors import MatchedNothing
from ...deactivate.evaluation import Row, Value
from ...deactivate.evaluation.results import Kind
from ...deactivate.evaluation.statistics import t_interval
from . import metrics as m
from .drawn import blank
from .figures import figures
from .ground import Ground, ImageHost
from .judging import class_index
from .kid import kid
from .prompts import Ask
from .reuse import base_pictures

if TYPE_CHECKING:
    from ...deactivate.edit import Edit


@dataclass(frozen=True, eq=False)
class Pictures:
    """What every host state drew, for sheets."""

    asks: tuple[Ask, ...]
    seeds: tuple[int, ...]
    by_row: dict[str, UInt8[Tensor, "n 3 h w"]] = field(default_factory=dict)
    """Of a control that is drawn under one seed a time: the base's pictures with those of its first draw in their places."""


def applied(host: ImageHost, edits: "Sequence[Edit]") -> ExitStack:
    """All edits in force, in order; undone on leaving, also when a later one cannot be applied."""
    with ExitStack() as stack:
        for edit in edits:
            stack.enter_context(edit.applied(cast(Any, host)))
        return stack.pop_all()


class Rows:
    """Draws the base, and then one row after the other."""

    def __init__(self, host: ImageHost, ground: Ground, gold: ImageHost | None = None) -> None:
        self.host, self.ground = host, ground
        self.pictures = Pictures(ground.asks, ground.seeds)
        self.rows: list[Row] = []
        self.extra: dict[str, Any] = {
            "absent": [], "no harm": {}, "prompts": _counts(ground.asks), "ways": {}, "changed": {}, "identical": {}, "drawn": {},
        }  # fmt: skip
        self.golden: UInt8[Tensor, "n 3 h w"] | None = None
        self.domain: m.Domain = "style" if ground.head == "style" else "object"
        images, drawn = base_pictures(host, ground)
        self.pictures.by_row["base"] = self.images = images
        self.extra["drawn"]["base"] = drawn
        self.base = ground.judge(images, ground.whole)
        self.counted = self._counted()
        if gold is not None:
            self.golden, self.extra["drawn"]["gold"] = ground.draw(gold, "gold", ground.whole)
        self._add("base", "base", [(images, ground.whole)], "identity: the host unedited, measured against itself")

        if self.golden is not None:
            self._add("gold", "control", [(self.golden, ground.whole)], "a model trained without the concept: what an eraser should leave")

    def edited(self, name: str, state: "Callable[[], AbstractContextManager[object]]") -> None:
        """The row of the edited host."""
        with state():
            images, self.extra["drawn"][name] = self.ground.draw(self.host, name, self.ground.whole, self.images)
        self._add(name, "edited", [(images, self.ground.whole)], "")

    def whitened(self, name: str, white: Bool[np.ndarray, " n"], note: str) -> None:
        """A control made from the base's pictures by blanking some."""
        self._add(name, "control", [(blank(self.images, white), self.ground.whole)], note)

    def drawn(self, name: str, draws: "Sequence[Sequence[Edit]]") -> None:
        """A control that is itself an edit, drawn several times, each under one of the seeds: means over draws."""
        if not draws:
            raise MatchedNothing(f"control {name!r}: no draw was given")
        found, n = [], 0
        for i, edits in enumerate(draws):
            at = self.ground.under(self.ground.config.seeds[i % len(self.ground.config.seeds)])
            with applied(self.host, edits):
                images, new = self.ground.draw(self.host, name, at, self.images)
            found.append((images, at))
            n += new
        self.extra["drawn"][name] = n
        self._add(name, "control", found, f"{len(draws)} draws, each under one seed")

    def _counted(self) -> Bool[np.ndarray, " n"]:
        """Pictures that count: all but those of ways to ask that the base does not draw; which, and how often, goes into `extra`."""
        ground, counted = self.ground, np.ones(len(self.ground.asks), bool)
        phrases = dict.fromkeys((a.way, a.subject) for a in ground.asks if a.group == "ways")
        for way, phrase in phrases:
            mine = np.array([a.group == "ways" and (a.way, a.subject) == (way, phrase) for a in ground.asks])
            rate = min(float(d.judgements.right(self.domain)[mine].mean()) for d in self.base)
            counts = rate >= ground.config.least_drawn
            self.extra["ways"].setdefault(way, {})[phrase] = {"drawn by the base": rate, "n": int(mine.sum()), "counts": counts}
            if not counts:
                counted &= ~mine
        for way, found in self.extra["ways"].items():
            if not any(f["counts"] for f in found.values()):
                self.extra["absent"].append(
                    f"UA_{way}: the base draws none of its {len(found)} phrases in {ground.config.least_drawn:.0%} of their pictures"
                )
        return counted

    def _add(self, name: str, kind: Kind, draws: Sequence[tuple[Tensor, np.ndarray]], note: str) -> None:
        each = [self._figures(images, at, name if kind == "edited" else "") for images, at in draws]
        shared = [k for k in each[0] if all(k in e for e in each)]
        values = {k: t_interval([e[k].mean for e in each], unit="draws") if len(each) > 1 else each[0][k] for k in shared}
        if kind != "base":
            same = np.concatenate([(images == self.images[torch.from_numpy(at)]).flatten(1).all(1).numpy() for images, at in draws])
            new = int((~same).sum())
            self.extra["changed"][name] = {"pictures": new, "of": len(same)}
            self.extra["identical"][name] = self._by_group(same, np.concatenate([at for _, at in draws]))
            told = f"{new} of {self.extra['changed'][name]['of']} pictures are not the base's"
            note = f"{note}; {told}" if note else told
        self.pictures.by_row[name] = self._whole(*draws[0])
        self.rows.append(Row(name, kind, values, note))

    def _by_group(self, same: Bool[np.ndarray, " n"], at: Int[np.ndarray, " n"]) -> dict[str, float]:
        """Share of the pictures at these places that are the base's to the bit, by what their prompts are."""
        groups = np.array([self.ground.asks[i].group for i in at])
        return {g: float(same[groups == g].mean()) for g in dict.fromkeys(groups.tolist())}

    def _whole(self, images: Tensor, at: Int[np.ndarray, " m"]) -> Tensor:
        if len(at) == len(self.images):
            return images
        out = self.images.clone()
        out[torch.from_numpy(at)] = images
        return out

    def _figures(self, images: Tensor, at: Int[np.ndarray, " m"], harm_of: str) -> dict[str, Value]:
        """Metrics by every copy: the first under their own names, others with the copy's."""
        ground, values, kept = self.ground, dict[str, Value](), self.counted[at]
        for i, (copy, seen, base) in enumerate(zip(ground.copies, self.ground.judge(images, at), self.base, strict=True)):
            judge = copy[ground.head]
            near = [class_index(judge, n) for n in ground.neighbours]
            here = seen.take(kept), base.take(at[kept])
            target, crossed = class_index(judge, ground.target), ground.head != "flag"
            found, harm = figures(*here, self.domain, target, near, crossed, ground.config.margin, ground.config.draws)
            suffix = "" if i == 0 else f" ({judge.name.rsplit('/', 1)[-1]})"
            values |= {k + suffix: v for k, v in found.items()}
            if harm_of:
                self.extra["no harm"].setdefault(harm_of, {}).update({k + suffix: h for k, h in harm.items()})
        return values | self._kid(images, at)

    def _kid(self, images: Tensor, at: Int[np.ndarray, " m"]) -> dict[str, Value]:
        """KIDs in the first copy's features: of all but the concept's prompts to the base's pictures, of the concept's to gold's."""
        own, size = self.ground.of_concept()[at], self.ground.config.kid_size
        found = self._distance("KID", images, self.images, at, ~own, size)
        if self.golden is not None and images is not self.golden:
            found |= self._distance("KID_gold", images, self.golden, at, own, max(2, min(size, int(own.sum()) // 20)))
        return found

    def _distance(
        self, name: str, images: Tensor, others: Tensor, at: Int[np.ndarray, " m"], chosen: Bool[np.ndarray, " m"], size: int
    ) -> dict[str, Value]:
        """KID of the chosen pictures to those of other prompts among `others`: with the same prompts identity would come out below 0."""
        if chosen.sum() < 5 * size:
            if len(at) == len(self.images):
                told = f"{name}: {int(chosen.sum())} pictures, {5 * size} needed"
                self.extra["absent"] = list(dict.fromkeys([*self.extra["absent"], told]))
            return {}
        judge, prompt = next(iter(self.ground.copies[0].values())), at // len(self.ground.config.seeds)
        mine = np.random.default_rng(self.ground.config.seed).permutation(len(self.ground.asks))[prompt] % 2 == 0
        sides = (images, chosen & mine), (others[torch.from_numpy(at)], chosen & ~mine)
        x, y = (judge.features(p[torch.from_numpy(w)]).numpy() for p, w in sides)
        found = kid(x, y, judge.features_name, size)
        self.extra.setdefault(name, {"features": found.features, "subset": found.size})  # fewer for rows under one seed
        return {name: found.value}


def _counts(asked: Sequence[Ask]) -> Mapping[str, int]:
    names = [a.group if a.way == "name" else f"{a.group}, {a.way}" for a in asked]
    return {n: names.count(n) for n in dict.fromkeys(names)}
