"""`efface eval` on a language model.

The edited host beside the base and every control, with intervals, under one protocol card.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np

from ...base.errors import InputError, UnknownName
from ...base.files import cache_dir, digest
from ...base.running import progress
from ...deactivate.evaluation import ProtocolCard, Result, Row, Value, count_look
from ...deactivate.evaluation.statistics import paired_bootstrap, t_interval
from ..pools import general_texts, pool_texts
from .controls import RandomFeatures, random_directions, string_filter
from .metrics import METRICS, Measured, figures
from .relearn import RelearnConfig, RelearnCurve, relearn
from .scoring import JUDGE, TEMPLATES, Scores, score_questions
from .suite_config import SuiteConfig
from .texts import continuation_texts, text_figures
from .writing import beginnings, read, write

if TYPE_CHECKING:
    from ...deactivate.concept import Concept
    from ...deactivate.edit import Edit
    from ...sae import SAE
    from ..host import Host

log = logging.getLogger("efface")
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class _Ground:
    """Texts and questions of one evaluation, the same for every row."""

    concept: "Concept"
    split: Split
    config: SuiteConfig
    texts: dict[str, list[str]]
    beginnings: tuple[str, ...] = ()
    reader: "Host | None" = None

    def measure(self, host: "Host") -> Measured:
        """The host as it stands."""
        c, seed = self.concept, self.config.seed
        target = score_questions(host, c.require("questions", self.split), c.form, concept=c, seed=seed)
        near = c.neighbour_questions.get(self.split, ())
        neighbours = score_questions(host, near, c.form, concept=c, seed=seed) if near else None
        texts = {n: text_figures(host, t, self.config.max_tokens) for n, t in self.texts.items()}
        return Measured(target, neighbours, texts, write(host, self.beginnings, seed) if self.beginnings else None)

    def read(self, host: "Host", measured: Measured) -> Measured:
        """The same with what the reader (the host as it stands now) makes of what was written."""
        if measured.written is None or measured.written.nll:
            return measured
        return replace(measured, written=read(self.reader or host, measured.written))


def evaluate(
    host: "Host",
    edits: "Sequence[Edit]",
    concept: "Concept",
    split: str = "validation",
    config: SuiteConfig | None = None,
    *,
    saes: "Sequence[SAE]" = (),
    gold: "Sequence[Host]" = (),
    base: Measured | None = None,
    relearn_config: RelearnConfig | None = None,
    name: str = "",
    commands: Sequence[str] = (),
) -> Result:
    """Measures margins, accuracies, text figures and HM-local of the base, the host with all `edits`, and the controls.

    The host is left as it was. A look at `test` is counted on the card. Without `saes` there is no «random features»
    row; the result's
    `extra["absent"]` says so, as for every control that does not apply. `gold` are hosts that were trained without the concept;
    `base` is what `unedited` gave for the same host, concept, split and settings.

    Raises:
        InputError: The concept has no questions in the split.
        UnknownName: An unknown split.
    """
    config = config or SuiteConfig()
    ground = _ground(host, concept, split, config)
    looks = count_look(cache_dir() / "looks", concept.digest, split)
    card = _card(host, ground, looks)
    base = ground.read(host, base or ground.measure(host))
    run = _Run(host, ground, base, edits, relearn_config or RelearnConfig())
    run.add("base", "base", lambda: nullcontext(), note="identity: the host unedited")
    label = " + ".join(dict.fromkeys(e.eraser for e in edits))
    if edits:
        run.add(label, "edited", lambda: applied(host, edits))
    run.control("string filter", [string_filter(concept, base)], "answers nothing where the question names the concept")
    if edits:
        _random_controls(run, saes)
        run.compare(label)
    if gold:
        run.control("gold", [ground.measure(g) for g in gold], f"trained without the concept, {len(gold)} seeds")
    used = {m for r in run.rows for m in r.metrics}
    described = {k: m for k, m in METRICS.items() if k in used}
    return Result(name or concept.name, card, tuple(run.rows), described, tuple(commands), run.extra)


def unedited(host: "Host", concept: "Concept", split: str, config: SuiteConfig) -> Measured:
    """What `evaluate` measures of the host as it stands, for several evaluations of the same questions and texts.

    Raises:
        InputError: The concept has no questions in the split.
        UnknownName: An unknown split.
    """
    ground = _ground(host, concept, split, config)
    return ground.read(host, ground.measure(host))


def applied(host: "Host", edits: "Sequence[Edit]") -> ExitStack:
    """All edits in force, in order; undone on leaving, also when a later one cannot be applied."""
    with ExitStack() as stack:
        for edit in edits:
            stack.enter_context(edit.applied(host))
        return stack.pop_all()


def _ground(host: "Host", concept: "Concept", split: str, config: SuiteConfig) -> _Ground:
    if split not in get_args(Split):
        raise UnknownName("split", split, get_args(Split))
    concept.require("questions", split)
    neutral = general_texts(concept, split, config.texts, config.seed)
    pools = {"neutral": neutral, "concept": pool_texts(concept, "target", split, config.texts, config.seed)}
    if config.continuations and neutral:
        pools["continuation"] = continuation_texts(host, neutral[: config.continuations])
    starts = beginnings(host, concept, split, config.written, config.seed) if config.written else ()
    if config.written and not starts:
        raise InputError(f"suite: written={config.written}, but {concept.name!r} has no texts in target.{split} to begin with")
    reader = _reader(config.reader, str(host.device)) if config.reader else None
    return _Ground(concept, cast(Split, split), config, {k: v for k, v in pools.items() if v}, starts, reader)


@lru_cache(maxsize=1)
def _reader(model: str, device: str) -> "Host":
    """Kept for the next evaluation of a grid."""
    from ..models import load_model

    return load_model(model, device=device)


def _card(host: "Host", ground: _Ground, looks: int) -> ProtocolCard:
    concept, config = ground.concept, ground.config
    asked = {"concept": concept.digest, "templates": TEMPLATES, "texts": ground.texts}
    if ground.beginnings:
        asked["beginnings"] = [*ground.beginnings, ground.reader.digest if ground.reader else ""]
    left_out = ("seed", "relearn", "draws", "controls", *(() if config.written else ("written", "reader")))
    extra = {k: v for k, v in asdict(config).items() if k not in left_out}
    return ProtocolCard(
        suite="language", host=host.name, host_digest=host.digest, concept=concept.name, prompts_digest=digest(asked),
        judge="log-probability of the options", judge_digest=digest(JUDGE), split=ground.split,
        n=len(concept.questions[ground.split]), seeds=(config.seed,), looks=looks,
        extra={"form": concept.form, **extra},
    )  # fmt: skip


class _Run:
    """Rows of one evaluation as they come."""

    def __init__(self, host: "Host", ground: _Ground, base: Measured, edits: "Sequence[Edit]", attack: RelearnConfig) -> None:
        self.host, self.ground, self.base, self.edits, self.attack = host, ground, base, edits, attack
        self.rows: list[Row] = []
        self.measured: dict[str, list[Measured]] = {}
        digests, unseen = [e.digest for e in edits], _count_unseen(base.target)
        self.extra: dict[str, Any] = {"edits": digests, "items": {}, "relearn": {}, "written": {}, "absent": [], "unseen": unseen}

    def add(
        self,
        name: str,
        kind: Literal["base", "edited"],
        state: "Callable[[], AbstractContextManager[object]]",
        note: str = "",
    ) -> None:
        """A row of the host in a state, relearning included."""
        log.info("measuring %s", name)
        with state():
            now = self.base if kind == "base" else self.ground.measure(self.host)
            curves = [relearn(self.host, self.ground.concept, m, self.attack, self.ground.split) for m in self.ground.config.relearn]
        now = self.ground.read(self.host, now)
        values = figures(now, self.base)
        values |= {f"relearn_{c.mode}": Value(c.accuracy[-1], n=c.n_items, unit="items") for c in curves}
        self._keep(name, [now], curves)
        self.rows.append(Row(name, kind, values, note))

    def control(self, name: str, draws: list[Measured], note: str = "") -> None:
        """A control row: the mean over draws, with a t-interval over them where there are two or more."""
        draws = [self.ground.read(self.host, d) for d in draws]
        each = [figures(d, self.base) for d in draws]
        shared = [k for k in each[0] if all(k in e for e in each)]
        values = {k: t_interval([e[k].mean for e in each], unit="draws") if len(each) > 1 else each[0][k] for k in shared}
        self._keep(name, draws, [])
        self.rows.append(Row(name, "control", values, note))

    def _keep(self, name: str, draws: list[Measured], curves: list[RelearnCurve]) -> None:
        self.measured[name] = draws
        self.extra["items"][name] = {
            "margin": [d.target.margins for d in draws],
            "credit": [[i.credit for i in d.target.items] for d in draws],
            "neighbours_margin": [d.neighbours.margins for d in draws if d.neighbours],
        }
        if written := [asdict(d.written) for d in draws if d.written]:
            self.extra["written"][name] = written
        if curves:
            self.extra["relearn"][name] = [c.to_dict() for c in curves]

    def compare(self, label: str) -> None:
        """Paired interval of (fall - 3 x fall under a random control), item by item.

        Falls are in shares of the mean base margin.
        """
        t0 = np.array(self.base.target.margins)
        if t0.mean() <= 0:
            self.extra["absent"].append("fall - 3 x random: the base margin is not above 0")
            return
        unseen = np.array([not i.suppressed for i in self.base.target.items])
        fallen = {n: (t0 - np.mean([d.target.margins for d in draws], axis=0)) / t0.mean() for n, draws in self.measured.items()}
        for name in ("random features", "random directions"):
            if name not in fallen:
                continue
            for part, chosen in (("all", np.ones_like(unseen)), ("unseen", unseen)):
                if chosen.any():
                    pair = paired_bootstrap([fallen[label][chosen]], [fallen[name][chosen]], factor=3.0)
                    self.extra[f"fall - 3 x {name}, {part}"] = {**asdict(pair), "verdict": pair.verdict}


def _count_unseen(scores: Scores) -> dict[str, int]:
    n = sum(not i.suppressed for i in scores.items)
    return {"unseen": n, "suppressed": scores.n - n}


def _random_controls(run: _Run, saes: "Sequence[SAE]") -> None:
    """«random features» and «random directions», each drawn `draws` times.

    One that does not apply is named in `extra["absent"]`.
    """
    host, config = run.host, run.ground.config
    if not config.draws:
        run.extra["absent"].append("random controls: draws is 0")
        return
    makers: dict[str, Callable[[], Callable[[int], list[Edit]]]] = {
        "random features": lambda: _feature_draws(run, saes),
        "random directions": lambda: lambda seed: [random_directions(host, e, seed) for e in run.edits],
    }
    for name, make in makers.items():
        if name not in config.controls:
            run.extra["absent"].append(f"{name}: not asked for")
            continue
        try:
            draw = make()
            drawn = [_behind_gates(draw(config.seed + i), run.edits) for i in range(config.draws)]
        except InputError as e:
            run.extra["absent"].append(f"{name}: {e}")
            continue
        draws = []
        for edits in progress(drawn, desc=name, unit="draw"):
            with applied(host, edits):
                draws.append(run.ground.measure(host))
        run.control(name, draws, f"{config.draws} draws")


def _behind_gates(drawn: "Sequence[Edit]", edits: "Sequence[Edit]") -> "list[Edit]":
    """Each control behind the gate of the edit that it stands for."""
    return [replace(d, gate=e.gate) for d, e in zip(drawn, edits, strict=True)]


def _feature_draws(run: _Run, saes: "Sequence[SAE]") -> "Callable[[int], list[Edit]]":
    if not saes:
        raise InputError("the edit's SAEs were not given (--sae)")
    sources = [RandomFeatures(run.host, e, saes, run.ground.concept) for e in run.edits]
    return lambda seed: [s.draw(seed) for s in sources]
