"""`efface concepts`: the packaged ones; what a concept file holds and which command still lacks what; a small file to begin with."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..base.errors import InputError
from . import completion as complete
from . import options as o

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from ..deactivate.concept import Concept

SAMPLE = "own_concept.yaml"
FAMILIES = {"icons/flag-": "flags", "synthetic/thing-": "things of the synthetic world"}
"""What the names of very many concepts begin with, and what they are."""
FIELDS = ("target", "neighbours", "general", "questions", "neighbour_questions")
SPLITS = ("train", "validation", "test")
NEEDS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "features, gate": (("target.train",), ("target.validation",)),
    "erase pisces": (("target.train",), ("target.validation",)),
    "erase pisces --set preset=efface": (
        ("target.train",), ("questions.train", "questions.validation"), ("neighbour_questions.train", "neighbour_questions.validation"),
    ),
    "erase elm | npo | graddiff | crisp": (("target.train",), ("neighbours.train",)),
    "erase rmu": (("target.train",),),
    "erase leace | sal | inlp | rlace": (("target.train",),),
    "erase … --search, of a language model": (("questions.validation",), ("neighbour_questions.validation",)),
    "eval, attack on a language model": (("questions.validation",),),
    "erase itd | saeuron": (("target.train",), ("neighbours.train",)),
    "eval of a pipeline": (("judge",), ("target.validation",)),
}  # fmt: skip
"""Command -> what it needs of a concept, each with what would do as well. `docs/concepts.md` says what becomes of it without the rest."""
FEW: Mapping[str, tuple[str, int, str]] = {
    "features, gate": ("target.train", 30, "a gate gives its features equal weights"),
    "erase pisces --set preset=efface": ("questions.train", 100, "they are learnt by heart"),
}
"""Command -> of what it wants more than there may be, how many, and what happens with fewer."""


def concepts(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Concept files or packaged names: what they hold, and what which command lacks.", autocompletion=complete.concepts
        ),
    ] = None,
    new: Annotated[Path | None, typer.Option("--new", help="Write a small concept file there, to be changed into one of your own.")] = None,
    as_json: o.Json = False,
) -> None:
    """Packaged concepts; what concept files hold and which command still lacks what; a file to begin with."""
    from ..base.files import write_text
    from ..deactivate.concept import Concept, generated_concepts, packaged_concepts

    if new is not None:
        if names:
            raise InputError("concepts: --new writes a file, names ask what files hold; give one of them")
        if new.exists():
            raise InputError(f"--new {new} exists already; choose another name")
        if new.suffix not in (".yaml", ".yml"):
            raise InputError(f"--new {new}: a concept file is YAML; name one that ends in .yaml")
        write_text(new, _sample().read_text(encoding="utf-8"))
        return o.emit({"file": str(new)}, f"{new}: change its lines; `efface concepts {new}` says what it holds", as_json)
    if not names:
        known = [*sorted(packaged_concepts()), *generated_concepts()]
        return o.emit({"concepts": known}, listed(known), as_json)
    found = [Concept.load(n) for n in names]
    return o.emit({"concepts": [about(c) for c in found]}, "\n\n".join(map(told, found)), as_json)


def listed(known: Sequence[str]) -> str:
    """Names of concepts, a line each; of the families the first ones."""
    lines = [n for n in known if not n.startswith(tuple(FAMILIES))]
    for prefix, what in FAMILIES.items():
        own = [n for n in known if n.startswith(prefix)]
        lines += [*own[:2], f"… and {len(own) - 2} more {what}"]
    how = "`efface concepts NAME` says what one holds, --new FILE.yaml begins one of your own, --json names them all"
    return "\n".join([*lines, "", how])


def about(concept: "Concept") -> dict[str, Any]:
    """What a concept holds, and what each command lacks of it."""
    counts = {f: {s: len(getattr(concept, f).get(s, ())) for s in SPLITS} for f in FIELDS}
    extras = {"tokens": len(concept.tokens), "relearn": len(concept.relearn), "judge": concept.judge, "anchor": concept.anchor}
    missing = {command: lacking(concept, needs) for command, needs in NEEDS.items()}
    few = {command: said for command in FEW if not missing[command] and (said := too_few(concept, command))}
    found = {"name": concept.name, "kind": concept.kind, "form": concept.form, "lines": counts, **extras, "lacks": missing, "few": few}
    return {**found, "of_the_sample": left_over(concept)}


def left_over(concept: "Concept") -> list[str]:
    """Lines that are still those of `--new`; none where nothing was changed."""
    from ..deactivate.concept import Concept

    mine, theirs = (set(_lines(c)) for c in (concept, Concept.load(str(_sample()))))
    return sorted(mine & theirs) if mine != theirs else []


def _lines(concept: "Concept") -> Iterator[str]:
    for field in ("target", "neighbours"):
        yield from (line for split in getattr(concept, field).values() for line in split)
    for field in ("questions", "neighbour_questions"):
        yield from (q.q for split in getattr(concept, field).values() for q in split)


def _sample() -> "Traversable":
    return files(__spec__.parent).joinpath(SAMPLE)


def lacking(concept: "Concept", needs: tuple[tuple[str, ...], ...]) -> list[str]:
    """Those of `needs` that a concept has not, in words."""
    return [" or ".join(some) for some in needs if not any(_has(concept, place) for place in some)]


def too_few(concept: "Concept", command: str) -> str:
    """What there is less of than the command wants; "" where there is enough."""
    place, least, what = FEW[command]
    field, _, split = place.partition(".")
    found = len(getattr(concept, field).get(split, ()))
    return "" if found >= least else f"{found} of {place}: below {least} {what}"


def _has(concept: "Concept", place: str) -> bool:
    name, _, split = place.partition(".")
    value = getattr(concept, name)
    return bool(value.get(split) if split else value)


def told(concept: "Concept") -> str:
    """The same as tables."""
    found = about(concept)
    lines = o.table(["", *SPLITS], [[f, *(str(n) if n else "-" for n in found["lines"][f].values())] for f in FIELDS])
    rest = f"tokens {found['tokens']}, relearn {found['relearn']}, judge {concept.judge or '-'}"
    if left := found["of_the_sample"]:
        rest += f"\nstill of the sample: {len(left)} lines, such as {left[0]!r}"
    needs = o.table(
        ["command", "lacks"],
        [[command, ", ".join(some) or found["few"].get(command, "nothing")] for command, some in found["lacks"].items()],
    )
    return f"{concept.name} ({concept.kind}, {concept.form})\n{lines}\n{rest}\n\n{needs}"
