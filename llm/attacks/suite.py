"""`efface attack`: attacks on an edited host and on its controls, question by question, under one protocol card.

A question counts as recovered where the unedited host answers it, the host in that state does not, and does with the attack.
On the unedited host itself, the control, attacks are tried at the questions that it does not answer. Each attack that is told
the answer is also aimed at a decoy, a wrong option that does not win by itself: how often that one is brought up is what the
attack achieves on something that the model never knew.
"""

import dataclasses
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from ...base.errors import InputError, MatchedNothing, NumericsError
from ...base.files import cache_dir, digest, read_json, sha256_file, write_json
from ...deactivate.concept import Question
from ...deactivate.evaluation import ProtocolCard, Result, Row, Value, count_look
from ...deactivate.evaluation.statistics import wilson
from ..evaluation.controls import RandomFeatures, random_directions
from ..evaluation.scoring import JUDGE, TEMPLATES, Item, score_questions
from ..evaluation.suite import applied
from .metrics import described
from .registry import AttackRow, attack, attacks

if TYPE_CHECKING:
    from ...deactivate.concept import Concept
    from ...deactivate.edit import Edit
    from ...sae import SAE
    from ..host import Host

log = logging.getLogger("efface")
FORMAT = 1


@dataclass(frozen=True)
class State:
    """What is attacked."""

    name: str
    """Its row's name."""
    kind: Literal["edited", "base", "control"]
    host: "Host"
    edits: "Sequence[Edit]"


@dataclass(frozen=True)
class _Run:
    """What one run of attacks has in common."""

    concept: "Concept"
    split: str
    rows: "Sequence[AttackRow]"
    settings: Mapping[str, Mapping[str, Any]]
    seed: int
    folder: Path
    known: Sequence[int]
    """Places of the questions that the unedited host answers."""

    def cell(self, state: State, row: AttackRow, decoy: bool, told: "Concept") -> dict[str, Any]:
        """One attack's result on one state, from its file where it was run before.

        Raises:
            InputError: The attack does not apply. Nothing is kept then.
        """
        made = row.make(self.settings.get(row.name), self.seed)
        inputs = {
            "format": FORMAT, "host": state.host.digest, "edits": [e.digest for e in state.edits], "concept": told.digest,
            "split": self.split, "attack": row.name, "config": _plain(made), "decoy": decoy,
        }  # fmt: skip
        path = self.folder / f"{row.name}{'-decoy' if decoy else ''}-{digest(inputs)[:16]}.json"
        if path.is_file() and (kept := read_json(path)).get("inputs") == inputs:
            return kept["result"]
        before = state.host.digest
        found = made.run(state.host, state.edits, told, self.split).to_dict()
        if state.host.digest != before:
            raise NumericsError(f"{row.name} left {state.host.name} changed: load it anew, and report this as a fault")
        write_json(path, _jsonable({"inputs": inputs, "state": state.name, "result": found}))
        return read_json(path)["result"]


def run_attacks(
    name: "str | Sequence[str]",
    host: "Host",
    edits: "Sequence[Edit]",
    concept: "Concept",
    folder: Path,
    split: str = "validation",
    *,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    saes: "Sequence[SAE]" = (),
    gold: "Host | None" = None,
    decoys: bool = True,
    states: Sequence[str] = (),
    curves: bool = False,
    seed: int = 0,
    commands: Sequence[str] = (),
) -> Result:
    """Runs one attack or all of them on the edited host, its controls and the base, and counts what came back.

    Args:
        name: An attack of the registry, several, or `all`: of more than one those that do not apply are named in `extra["absent"]`.
        host: Left as it was.
        edits: In force together; none: the base alone, as the attack's own control.
        concept: With questions in the split, and train questions for some attacks.
        folder: Where each attack's result goes as soon as it is there; what lies there of the same inputs is used.
        split: `validation` or `test`; a look at `test` is counted on the card.
        settings: Attack -> its settings.
        saes: Of the edits, for the control «random features»; without them, other directions of the same norm.
        gold: A host that was trained without the concept.
        decoys: Whether attacks are also aimed at wrong options.
        states: Names of rows (`identity`, `gold`, …) or kinds (`edited`) that alone are attacked; empty: all.
        curves: Run attacks that are not judged question by question (relearning) where nothing is wrong, too.
        seed: Of everything drawn.
        commands: What made this result.

    Raises:
        UnknownName: No such attack.
        InputError: The concept has no questions in the split, or a single attack does not apply.
        MatchedNothing: The unedited host answers none of the questions, so that an edit took nothing.
    """
    chosen = attacks() if name == "all" else [attack(n) for n in ([name] if isinstance(name, str) else name)]
    for row in chosen:
        row.make((settings or {}).get(row.name), seed)
    questions = concept.require("questions", split)
    looks = count_look(cache_dir() / "looks", concept.digest, split)
    known = [i for i, item in enumerate(score_questions(host, questions, concept.form).items) if item.credit == 1.0]
    if not known and (edits or gold is not None):
        raise MatchedNothing(
            f"{host.name} answers none of the {len(questions)} questions of {concept.name!r} unedited: nothing can come back"
        )
    run = _Run(concept, split, chosen, settings or {}, seed, folder, known)
    found, absent = _states(host, edits, saes, gold, seed, concept)
    wanted = [s for s in found if not states or s.name in states or s.kind in states]
    if not wanted:
        raise MatchedNothing(f"states: none of {', '.join(states)} is there to attack; {', '.join([s.name for s in found] + absent)}")
    rows: list[Row] = []
    extra: dict[str, Any] = {"edits": [e.digest for e in edits], "absent": absent, "attacks": {}, "questions": {}}
    for state in wanted:
        _attack_state(run, state, questions, rows, extra, decoys, curves)
        if refused := [a for a in extra["absent"] if state is wanted[0] and a.startswith(f"{name} on {state.name}: ")]:
            raise InputError(refused[0])
    used = {m for r in rows for m in r.metrics}
    card = _card(host, run, looks, len(questions))
    return Result(concept.name, card, tuple(rows), {k: m for k, m in described(chosen).items() if k in used}, tuple(commands), extra)


def _card(host: "Host", run: _Run, looks: int, n: int) -> ProtocolCard:
    concept = run.concept
    return ProtocolCard(
        suite="attacks, language", host=host.name, host_digest=host.digest, concept=concept.name,
        prompts_digest=digest({"concept": concept.digest, "templates": TEMPLATES}), judge="log-probability of the options",
        judge_digest=digest(JUDGE), split=cast(Literal["train", "validation", "test"], run.split), n=n, seeds=(run.seed,),
        looks=looks, extra={"form": concept.form, "attacks": {r.name: _plain(r.make(run.settings.get(r.name), run.seed)) for r in run.rows}},
    )  # fmt: skip


def _states(
    host: "Host", edits: "Sequence[Edit]", saes: "Sequence[SAE]", gold: "Host | None", seed: int, concept: "Concept"
) -> tuple[list[State], list[str]]:
    states, absent = [], []
    if edits:
        states.append(State(" + ".join(dict.fromkeys(e.eraser for e in edits)), "edited", host, edits))
    states.append(State("identity", "base", host, ()))
    makers: dict[str, Callable[[Edit], Edit]] = {"random directions": lambda e: random_directions(host, e, seed)}
    if saes:
        makers = {"random features": lambda e: RandomFeatures(host, e, saes, concept).draw(seed), **makers}
    for kind, make in makers.items() if edits else ():
        try:
            drawn = [dataclasses.replace(make(e), gate=e.gate) for e in edits]
        except InputError as e:
            absent.append(f"{kind}: {e}")
            continue
        states.append(State(kind, "control", host, drawn))
        break
    if gold is not None:
        states.append(State("gold", "control", gold, ()))
    return states, absent


def _attack_state(
    run: _Run, state: State, questions: Sequence[Question], rows: list[Row], extra: dict[str, Any], decoys: bool, curves: bool
) -> None:
    with applied(state.host, state.edits):
        items = score_questions(state.host, questions, run.concept.form).items
    asked = list(range(len(items))) if state.kind == "base" else run.known
    wrong = [i for i in asked if items[i].credit < 1.0]
    metrics: dict[str, Value] = {"accuracy": wilson(sum(i.credit == 1.0 for i in items), len(items))}
    extra["questions"][state.name] = {"asked": list(asked), "wrong": wrong, "recovered": {}}
    if not wrong:
        extra["absent"].append(f"every attack on {state.name}: it answers all questions, there is nothing to bring back")
        rows.append(Row(state.name, state.kind, metrics, "answers all questions"))
        if curves:
            _cells(dataclasses.replace(run, rows=[r for r in run.rows if not r.aimed]), state, [], [], False, extra)
        return
    own = [questions[i] for i in wrong]
    hits = _cells(run, state, wrong, own, False, extra)
    metrics |= rates(hits, len(wrong), len(asked))
    rows.append(Row(state.name, state.kind, metrics))
    if not decoys:
        return
    aims = [decoy(items[i], questions[i], run.seed) for i in wrong]
    kept = [j for j, q in enumerate(aims) if q is not None]
    if not kept:
        extra["absent"].append(f"decoys on {state.name}: its wrong questions have two options each")
        return
    false = _cells(run, state, [wrong[j] for j in kept], [q for q in aims if q is not None], True, extra)
    rows.append(
        Row(f"{state.name}, decoys", "control", {"accuracy": metrics["accuracy"], **rates(false, len(kept), 0)}, "aimed at a wrong option")
    )


def _cells(
    run: _Run, state: State, wrong: Sequence[int], own: Sequence[Question], decoy: bool, extra: dict[str, Any]
) -> dict[str, list[bool | None]]:
    """Attack -> by wrong question, whether it was recovered."""
    told = dataclasses.replace(run.concept, questions={**run.concept.questions, run.split: tuple(own)})
    hits: dict[str, list[bool | None]] = {}
    label = f"{state.name}, decoys" if decoy else state.name
    for row in run.rows:
        if decoy and not row.aimed:
            continue
        log.info("%s on %s", row.name, label)
        try:
            found = run.cell(state, row, decoy, told if row.aimed else run.concept)
        except InputError as e:
            extra["absent"].append(f"{row.name} on {label}: {e}")
            continue
        back = found["recovered"]
        hits[row.name] = back if row.aimed else [back[i] for i in wrong]
        extra["attacks"].setdefault(label, {})[row.name] = found
        extra["questions"].setdefault(label, {"wrong": list(wrong), "recovered": {}})["recovered"][row.name] = hits[row.name]
    return hits


def rates(hits: Mapping[str, Sequence[bool | None]], wrong: int, n: int) -> dict[str, Value]:
    """Union and single rates with Wilson intervals, over the questions that are wrong without an attack.

    A single rate counts the questions that its attack tried; for the union, what no attack tried is not recovered.

    Args:
        hits: Attack -> by wrong question.
        wrong: Questions that are wrong without an attack.
        n: Questions asked, right ones included, over which the union is also given; 0: not.
    """
    if not hits:
        return {}
    union = [any(h) for h in zip(*hits.values(), strict=True)]
    out = {"union": wilson(sum(union), wrong)}
    if n:
        out["recovered"] = wilson(sum(union), n)
    for name, h in hits.items():
        tried = [x for x in h if x is not None]
        if tried:
            out[f"asr_{name}"] = wilson(sum(tried), len(tried))
    return out


def decoy(item: Item, question: Question, seed: int) -> Question | None:
    """The question with a wrong option in the place of its answer, one that does not win by itself; None where there is none."""
    best = max(item.scores)
    free = [o for o, s in zip(item.options, item.scores, strict=True) if o != question.answer and s < best]
    if not free:
        return None
    picked = random.Random(f"decoy/{seed}/{question.q}/{question.answer}").choice(sorted(free))
    return Question(question.q, question.options, picked)


def _plain(attack: object) -> dict[str, Any]:
    config = getattr(attack, "config", None)
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise MatchedNothing(f"attack {attack!r} has no config")
    values = dataclasses.asdict(config)
    if (words := values.get("words")) and Path(words).is_file():
        values["words sha256"] = sha256_file(Path(words))
    return _jsonable(values)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    return value
