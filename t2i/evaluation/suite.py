"""Evaluation of edits on an image host: base, edited host and controls on the same prompts and seeds, judged by every copy."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_args, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from ...base.errors import InputError, MatchedNothing, UnknownName
from ...base.files import cache_dir, digest
from ...base.running import progress
from ...deactivate.evaluation import ProtocolCard, Result, Row, Value, count_look
from ...deactivate.evaluation.results import Kind
from ...deactivate.evaluation.statistics import t_interval
from . import metrics as m
from .drawn import Copy, Drawn, blank, judged, load_copies
from .figures import METRICS, figures
from .judging import class_index
from .kid import kid
from .prompts import Ask, asks

if TYPE_CHECKING:
    from ...deactivate.concept import Concept
    from ...deactivate.edit import Edit

Split = Literal["train", "validation", "test"]


@runtime_checkable
class ImageHost(Protocol):
    """What the suite asks of a host."""

    name: str
    digest: str
    sampling: Mapping[str, Any]
    """Sampler, steps, guidance: plain values for the card."""

    def generate(self, prompts: Sequence[str], *, seeds: Sequence[int]) -> UInt8[Tensor, "n 3 h w"]:
        """Picture i of prompt i under seed i, whatever stands beside it."""
        ...


@dataclass(frozen=True)
class ImageSuiteConfig:
    """How much is drawn, and what counts as no harm."""

    seeds: tuple[int, ...] = (0, 1)
    """Each prompt is drawn once a seed; base, edits and controls with the same."""
    grid: tuple[str, ...] = ()
    """Objects whose cells are drawn whole, for UnlearnCanvas' rates."""
    general: int = 200
    """Further general prompts."""
    ways: int = 40
    """Prompts a way to ask other than by name."""
    margin: float = 0.05
    """«No harm»: accuracy within this of the base's."""
    kid_size: int = 50
    """Pictures in a subset of KID."""
    draws: int = 2000
    """Of the bootstrap."""
    batch: int = 32
    """Prompts drawn at once."""
    seed: int = 0
    """Of the choice of prompts."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise InputError(f"seeds: different numbers from 0 up expected, {self.seeds} found")
        for name, least in (("general", 0), ("ways", 0), ("kid_size", 2), ("draws", 100), ("batch", 1)):
            if getattr(self, name) < least:
                raise InputError(f"image suite: {name} must be at least {least}, {getattr(self, name)} found")
        if not 0 < self.margin < 1:
            raise InputError(f"margin: a share in (0, 1) expected, {self.margin} found")


@dataclass(frozen=True, eq=False)
class Pictures:
    """What every host state drew, for sheets."""

    asks: tuple[Ask, ...]
    seeds: tuple[int, ...]
    by_row: dict[str, UInt8[Tensor, "n 3 h w"]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Figures, and the pictures behind them."""

    result: Result
    pictures: Pictures


@dataclass(frozen=True, eq=False)
class _Ground:
    """One evaluation's prompts and judges."""

    concept: "Concept"
    config: ImageSuiteConfig
    head: str
    target: str
    asks: tuple[Ask, ...]
    """One a picture."""
    seeds: tuple[int, ...]
    copies: Sequence[Copy]
    neighbours: tuple[str, ...]
    """Classes of its neighbours, the pair first."""

    def draw(self, host: ImageHost, note: str) -> UInt8[Tensor, "n 3 h w"]:
        """All prompts under all seeds."""
        texts, step = [a.text for a in self.asks], self.config.batch
        starts = progress(range(0, len(texts), step), desc=note, unit="batch")
        return torch.cat([host.generate(texts[i : i + step], seeds=self.seeds[i : i + step]) for i in starts])

    def judge(self, images: Tensor) -> list[Drawn]:
        """A copy after the other."""
        return [judged(images, self.asks, self.seeds, copy, self.head, self.target) for copy in self.copies]


def evaluate(
    host: ImageHost, edits: "Sequence[Edit]", concept: "Concept", split: str = "validation", config: ImageSuiteConfig | None = None, *,
    copies: Sequence[Copy] | None = None, cells: Mapping[str, Sequence[str]] | None = None,
    controls: "Mapping[str, Sequence[Sequence[Edit]]] | None" = None, name: str = "", commands: Sequence[str] = (),
) -> Evaluation:  # fmt: skip
    """Draws a split's prompts with and without the edits, with the same seeds, and judges both.

    Rows: the base (identity), the host with all `edits`, and the controls: blank output, a string filter on the concept's names, and
    whatever `controls` holds. The host is left as it was. A look at `test` is counted.

    Args:
        host: Draws.
        edits: In force together.
        concept: With labels; its `judge` names head and class list.
        split: Of the concept.
        config: How much.
        copies: Judges; None: those of the concept's family.
        cells: Object -> styles that the base draws; None: everything is drawn.
        controls: Name -> draws, each a list of edits («random features» with as many features and equal norms).
        name: Of the result; empty: the concept's.
        commands: That made it.

    Raises:
        InputError: The concept lacks labels, or the base draws nothing of it.
        UnknownName: Unknown split, or a class that the judges do not know.
    """
    if split not in get_args(Split):
        raise UnknownName("split", split, get_args(Split))
    ground = _ground(concept, split, config or ImageSuiteConfig(), copies, cells)
    looks = count_look(cache_dir() / "looks", concept.digest, split)
    run = _Run(host, ground)
    if edits:
        run.host_row(" + ".join(dict.fromkeys(e.eraser for e in edits)), "edited", lambda: _applied(host, edits))
    filtered = named_in(ground.asks, (ground.target, concept.name, *concept.synonyms.get("seen", ())))
    run.control("blank output", [np.ones(len(ground.asks), bool)], "every picture is white")
    run.control("string filter", [filtered], f"{int(filtered.sum())} of {len(filtered)} pictures are white: their prompts name it")
    for label, draws in (controls or {}).items():
        run.drawn_control(label, draws)
    if not controls:
        run.extra["absent"].append("random features: no draws were given")
    used = {k for r in run.rows for k in r.metrics}
    described = {k: METRICS[_plain(k)] if _plain(k) == k else _of_copy(k) for k in sorted(used, key=_order)}
    result = Result(name or concept.name, _card(host, ground, split, looks), tuple(run.rows), described, tuple(commands), run.extra)
    return Evaluation(result, run.pictures)


def named_in(asked: Sequence[Ask], names: Sequence[str]) -> Bool[np.ndarray, " n"]:
    """Prompts that hold one of the names as whole words, in any case."""
    words = sorted({n.casefold().strip() for n in names} - {""}, key=len, reverse=True)
    if not words:
        raise MatchedNothing("string filter: the concept has no name")
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, words)) + r")(?!\w)")
    return np.array([bool(pattern.search(a.text.casefold())) for a in asked])


def _applied(host: ImageHost, edits: "Sequence[Edit]") -> ExitStack:
    with ExitStack() as stack:
        for edit in edits:
            stack.enter_context(edit.applied(cast(Any, host)))
        return stack.pop_all()


def _ground(
    concept: "Concept", split: str, config: ImageSuiteConfig, copies: Sequence[Copy] | None, cells: Mapping[str, Sequence[str]] | None
) -> _Ground:
    family, _, head = concept.require("judge").partition("/")
    found = asks(concept, split, grid=config.grid, general=config.general, ways=config.ways, cells=cells, seed=config.seed)
    target = next(a.labels[head] for a in found if a.group == "target")
    near = tuple(dict.fromkeys(a.labels[head] for a in found if a.group == "neighbours" and a.labels.get(head, target) != target))
    pairs = [(a, s) for a in found for s in config.seeds]
    every = load_copies(family) if copies is None else copies
    class_index(every[0][head], target)
    return _Ground(concept, config, head, target, tuple(a for a, _ in pairs), tuple(s for _, s in pairs), every, near)


def _card(host: ImageHost, ground: _Ground, split: str, looks: int) -> ProtocolCard:
    judges = {j.name: j for copy in ground.copies for j in copy.values()}
    config = {k: v for k, v in asdict(ground.config).items() if k not in ("seeds", "batch", "grid", "draws")}
    return ProtocolCard(
        suite="images", host=host.name, host_digest=host.digest, concept=ground.concept.name,
        prompts_digest=digest([[a.text, a.group, dict(a.labels), a.way] for a in ground.asks]),
        judge=", ".join(judges), judge_digest=digest([j.digest for j in judges.values()]), split=cast(Split, split), n=len(ground.asks),
        seeds=ground.config.seeds, thresholds={n: j.threshold for n, j in judges.items()}, looks=looks,
        extra={"sampling": dict(host.sampling), **config, "grid": list(ground.config.grid)},
    )  # fmt: skip


class _Run:
    """Rows of one evaluation as they come; the base is the first."""

    def __init__(self, host: ImageHost, ground: _Ground) -> None:
        self.host, self.ground = host, ground
        self.pictures = Pictures(ground.asks, ground.seeds)
        self.rows: list[Row] = []
        self.extra: dict[str, Any] = {"absent": [], "no harm": {}, "prompts": _counts(ground.asks)}
        self.domain: m.Domain = "style" if ground.head == "style" else "object"
        self.base: list[Drawn] = []
        self.host_row("base", "base", nullcontext, "identity: the host unedited, measured against itself")

    def host_row(self, name: str, kind: Kind, state: "Callable[[], AbstractContextManager[object]]", note: str = "") -> None:
        """A row of the host in a state."""
        with state():
            images = self.ground.draw(self.host, name)
        self._add(name, kind, [images], note)

    def control(self, name: str, whites: Sequence[Bool[np.ndarray, " n"]], note: str) -> None:
        """A control made from the base's pictures by blanking some."""
        self._add(name, "control", [blank(self.pictures.by_row["base"], w) for w in whites], note)

    def drawn_control(self, name: str, draws: "Sequence[Sequence[Edit]]") -> None:
        """A control that is itself an edit, drawn several times: means over draws."""
        if not draws:
            raise MatchedNothing(f"control {name!r}: no draw was given")
        found = []
        for edits in draws:
            with _applied(self.host, edits):
                found.append(self.ground.draw(self.host, name))
        self._add(name, "control", found, f"{len(draws)} draws")

    def _add(self, name: str, kind: Kind, draws: Sequence[Tensor], note: str) -> None:
        each = [self._figures(images, name if kind == "edited" else "") for images in draws]
        shared = [k for k in each[0] if all(k in e for e in each)]
        values = {k: t_interval([e[k].mean for e in each], unit="draws") if len(each) > 1 else each[0][k] for k in shared}
        self.pictures.by_row[name] = draws[0]
        self.rows.append(Row(name, kind, values, note))

    def _figures(self, images: Tensor, harm_of: str) -> dict[str, Value]:
        """Metrics by every copy: the first under their own names, others with the copy's."""
        ground, values = self.ground, dict[str, Value]()
        now = ground.judge(images)
        self.base = self.base or now
        for i, (copy, seen, base) in enumerate(zip(ground.copies, now, self.base, strict=True)):
            judge = copy[ground.head]
            near = [class_index(judge, n) for n in ground.neighbours]
            found, harm = figures(
                seen, base, self.domain, class_index(judge, ground.target), near, ground.head != "flag", ground.config.margin
            )
            suffix = "" if i == 0 else f" ({judge.name.rsplit('/', 1)[-1]})"
            values |= {k + suffix: v for k, v in found.items()}
            if harm_of:
                self.extra["no harm"].setdefault(harm_of, {}).update({k + suffix: h for k, h in harm.items()})
        return values | self._kid(images)

    def _kid(self, images: Tensor) -> dict[str, Value]:
        """KID of everything but the concept's own prompts to the base's, in the first copy's features."""
        rest, size = ~self._of_concept(), self.ground.config.kid_size
        before = self.pictures.by_row.get("base", images)
        if rest.sum() < 5 * size:
            self.extra["absent"] = list(dict.fromkeys([*self.extra["absent"], f"KID: {int(rest.sum())} pictures, {5 * size} needed"]))
            return {}
        judge, prompt = next(iter(self.ground.copies[0].values())), np.arange(len(rest)) // len(self.ground.config.seeds)
        mine = np.random.default_rng(self.ground.config.seed).permutation(prompt[-1] + 1)[prompt] % 2 == 0
        x, y = (judge.features(p[torch.from_numpy(w)]).numpy() for p, w in ((images, rest & mine), (before, rest & ~mine)))
        found = kid(x, y, judge.features_name, size)  # other prompts on each side: with the same on both, identity would come out below 0
        self.extra["KID"] = {"features": found.features, "subset": found.size}
        return {"KID": found.value}

    def _of_concept(self) -> Bool[np.ndarray, " n"]:
        return np.array([a.group in ("target", "ways") for a in self.ground.asks])


def _counts(asked: Sequence[Ask]) -> dict[str, int]:
    names = [a.group if a.way == "name" else f"{a.group}, {a.way}" for a in asked]
    return {n: names.count(n) for n in dict.fromkeys(names)}


def _plain(metric: str) -> str:
    return metric.split(" (")[0]


def _order(metric: str) -> tuple[int, str]:
    return list(METRICS).index(_plain(metric)), metric


def _of_copy(metric: str) -> Any:
    known = METRICS[_plain(metric)]
    return replace(known, label=f"{known.label}, judge {metric.rsplit('(', 1)[1].rstrip(')')}")
