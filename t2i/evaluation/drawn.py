"""Pictures of one host state with what each copy of the judges says of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from ...base.errors import InputError, UnknownName
from .judging import FAMILIES, Judge, class_index, load_judges, verdicts
from .metrics import NOT_ASKED, Judgements
from .prompts import Ask

Copy = Mapping[str, Judge]
"""Head -> judge, all of one copy."""


def load_copies(name: str = "icons", heads: Sequence[str] = ("object", "style", "flag", "mark"), *, asked: str = "") -> list[Copy]:
    """The copies of a family of judges; two judges that disagree are told from one that errs.

    Args:
        name: The family (`icons`), with a head (`icons/object`), and one copy of it (`icons/object/A`).
        heads: What each copy is asked.
        asked: The judge that a concept names: its head must be that of `name`, where that has one.

    Raises:
        UnknownName: No such family, head or copy.
        InputError: `name` has another head than the concept.
    """
    family, _, rest = name.partition("/")
    head, _, copy = rest.partition("/")
    if family not in FAMILIES:
        raise UnknownName("judge", name, FAMILIES, f"There is {', '.join(FAMILIES)}")
    if head and head not in heads:
        raise UnknownName(f"head of the judges {family}", head, heads)
    wanted = asked.split("/")[1] if "/" in asked else ""
    if head and wanted and head != wanted:
        raise InputError(f"judge {name}: the concept is judged by its {wanted} (judge: {asked}); use {family}/{wanted}")
    by_head = {h: load_judges("/".join(x for x in (family, h, copy) if x)) for h in heads}
    return [dict(zip(heads, judges, strict=True)) for judges in zip(*by_head.values(), strict=True)]


@dataclass(frozen=True, eq=False)
class Drawn:
    """Every prompt under every seed, prompt by prompt, and one copy's word on each picture.

    The heads `flag` and `object` share the first place of `judgements`: a concept that is a flag is judged by flags, all as one style.
    """

    asks: tuple[Ask, ...]
    """One a picture."""
    seeds: tuple[int, ...]
    judgements: Judgements
    right: Bool[np.ndarray, " n"]
    """Whether all that was asked for is there: object, style, flag."""
    asked_score: Float[np.ndarray, " n"]
    """Probability of the asked class of the concept's head; 0 where none was asked."""
    concept_score: Float[np.ndarray, " n"]
    """Probability of the concept's own class."""
    marked: Bool[np.ndarray, " n"]

    def where(self, *groups: str, way: str | None = None) -> Bool[np.ndarray, " n"]:
        """Pictures of these groups, and of this way to ask."""
        return np.array([a.group in groups and way in (None, a.way) for a in self.asks])

    def take(self, at: Int[np.ndarray, " m"] | Bool[np.ndarray, " n"]) -> "Drawn":
        """Some of the pictures, by their places or by a mask."""
        places = np.flatnonzero(at) if at.dtype == bool else at
        j = self.judgements
        return Drawn(
            tuple(self.asks[i] for i in places), tuple(self.seeds[i] for i in places),
            Judgements(j.asked_object[places], j.asked_style[places], j.object[places], j.style[places]),
            self.right[places], self.asked_score[places], self.concept_score[places], self.marked[places],
        )  # fmt: skip


def judged(images: UInt8[Tensor, "n 3 h w"], asks: Sequence[Ask], seeds: Sequence[int], copy: Copy, head: str, concept: str) -> Drawn:
    """What a copy says of pictures.

    Args:
        images: One an ask and seed.
        asks: One a picture.
        seeds: One a picture.
        copy: The judges.
        head: The concept's: `object`, `style` or `flag`.
        concept: Its class.

    Raises:
        InputError: Another number of pictures than of prompts.
        UnknownName: A label that is no class of its judge.
    """
    if not len(images) == len(asks) == len(seeds):
        raise InputError(f"{len(images)} pictures for {len(asks)} prompts and {len(seeds)} seeds; the host must draw one each")
    scores = {h: judge.scores(images) for h, judge in copy.items()}
    said = {h: verdicts(copy[h], s).numpy() for h, s in scores.items()}
    asked = {h: _asked(copy[h], h, asks) for h in copy if h != "mark"}
    right = np.ones(len(asks), dtype=bool)
    for h, wanted in asked.items():
        right &= (wanted == NOT_ASKED) | (said[h] == wanted)
    own = scores[head].numpy().astype(np.float64)
    place = asked[head].clip(min=0)
    asked_score = np.where(asked[head] == NOT_ASKED, 0.0, own[np.arange(len(own)), place])
    if head == "flag":
        whole = np.where(asked["flag"] == NOT_ASKED, NOT_ASKED, 0)
        judgements = Judgements(asked["flag"], whole, said["flag"], whole)
    else:
        judgements = Judgements(asked["object"], asked["style"], said["object"], said["style"])
    marked = said["mark"] == copy["mark"].classes.index("marked")
    return Drawn(
        tuple(asks), tuple(seeds), judgements, right, asked_score, own[:, class_index(copy[head], concept)].copy(), marked
    )  # fmt: skip


def _asked(judge: Judge, head: str, asks: Sequence[Ask]) -> np.ndarray:
    known = {name: class_index(judge, name) for name in {a.labels[head] for a in asks if head in a.labels}}
    return np.array([known[a.labels[head]] if head in a.labels else NOT_ASKED for a in asks])


def blank(images: UInt8[Tensor, "n 3 h w"], where: Bool[np.ndarray, " n"]) -> UInt8[Tensor, "n 3 h w"]:
    """White pictures in these places."""
    return torch.where(torch.from_numpy(where)[:, None, None, None], torch.full_like(images, 255), images)
