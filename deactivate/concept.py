"""A concept: what is to be taken out, its neighbours, everything else, and the questions that tell if it is gone."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from ..base.errors import InputError, UnknownName, near_paths
from ..base.files import digest
from .concept_file import SPLITS, Reader, Record, parse_file

FORMAT = 1
SUFFIXES = (".yaml", ".yml", ".json")
"""Of concept files."""
KINDS = ("knowledge", "object", "style", "identity", "attribute", "topic")
FORMS = ("question", "cloze")
KEYS = (
    *("format", "name", "kind", "form", "target", "neighbours", "general", "anchor", "synonyms", "tokens"),
    *("questions", "neighbour_questions", "relearn", "judge"),
)
GENERATED = {"icons": "t2i.icons.concepts", "synthetic": "llm.synthetic.concepts"}
"""First part of a name (`icons/dog`) -> module whose `mapping(rest)` makes the concept and whose `names()` lists them.

Where thousands of lines are alike in all concepts of a family, `records(rest)` makes the same of records that they share.
"""
_HOW = {
    "target": "target: {%s: [a sentence that shows it, …]}",
    "neighbours": "neighbours: {%s: [a sentence about something close, …]}",
    "general": "general: {%s: [any other sentence, …]}",
    "questions": "questions: {%s: [{q: …, options: [a, b, c, d], answer: a}, …]}",
    "neighbour_questions": "neighbour_questions: {%s: [{q: …, options: [a, b, c, d], answer: a}, …]}",
    "synonyms": "synonyms: {seen: [another name, …], held_out: [another name, …]}",
    "tokens": "tokens: [' Word', …]  (single tokens, with their leading space)",
    "relearn": "relearn: [a paragraph about it without the test answers, …]",
    "anchor": "anchor: what to put in its place",
    "judge": "judge: folder/class",
}


@dataclass(frozen=True)
class Question:
    """A question, or the beginning of a sentence (cloze), with its options."""

    q: str
    options: tuple[str, ...]
    answer: str
    """One of the options."""


@dataclass(frozen=True)
class Concept:
    """A concept file, read and checked (`Concept.load`). Every split is a tuple, empty where the file has none."""

    name: str
    kind: str
    form: str
    records: Mapping[str, tuple[Record, ...]]
    """Split -> target lines as records; `target` has their texts."""
    neighbours: Mapping[str, tuple[str, ...]]
    general: Mapping[str, tuple[str, ...]]
    """Empty: the host's packaged pool is meant."""
    questions: Mapping[str, tuple[Question, ...]]
    neighbour_questions: Mapping[str, tuple[Question, ...]]
    synonyms: Mapping[str, tuple[str, ...]]
    """Keys `seen` and `held_out`."""
    tokens: tuple[str, ...] = ()
    relearn: tuple[str, ...] = ()
    anchor: str | None = None
    """What to put in its place; "" is «nothing», None is «not said»."""
    judge: str | None = None
    labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Line of `neighbours` or `general` -> what it asks for, where the file says so."""

    @cached_property
    def target(self) -> dict[str, tuple[str, ...]]:
        """Split -> texts that show the concept."""
        return {split: tuple(r.text for r in records) for split, records in self.records.items()}

    @cached_property
    def digest(self) -> str:
        """sha256 of the content, the same whether it was written as YAML, JSON or with lines in files of their own."""
        return digest(_plain({f: getattr(self, f) for f in self.__dataclass_fields__ if f != "labels" or self.labels}))

    @classmethod
    def load(cls, source: "str | Path | Concept") -> "Concept":
        """A concept from a YAML or JSON file, or a packaged one by its name.

        Raises:
            UnknownName: Neither a file nor a packaged concept; names the nearest packaged ones.
            InputError: No such file; else see `from_mapping`.
        """
        if isinstance(source, Concept):
            return source
        path = Path(source)
        if path.is_file():
            return cls.from_mapping(parse_file(path), folder=path.parent, where=str(path))
        family, _, rest = str(source).partition("/")
        if family in GENERATED and rest:
            maker = _maker(family)
            return cls.from_mapping(getattr(maker, "records", maker.mapping)(rest), where=f"packaged concept {source}")
        packaged = packaged_concepts()
        key = re.sub(r"[^a-z0-9]+", "-", str(source).lower()).strip("-")
        if key in packaged and path.suffix not in SUFFIXES:
            return cls.from_mapping(parse_file(packaged[key]), where=f"packaged concept {key}")
        if path.suffix in SUFFIXES or path.exists():
            found = "is a folder" if path.is_dir() else "is not there"
            near = near_paths(path, lambda p: p.suffix in SUFFIXES)
            raise InputError(f"concept file {source} {found}{near}; `efface concepts --new FILE.yaml` writes one to begin with")
        hint = "Give a concept file (`efface concepts --new FILE.yaml` writes one to begin with), or one that `efface concepts` lists"
        raise UnknownName("concept", str(source), [*packaged, *generated_concepts()], hint)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, folder: Path | None = None, where: str = "concept") -> "Concept":
        """A concept from what a concept file holds; `{file, field}` entries are looked up in `folder`.

        Raises:
            UnknownName: An unknown key, kind, form or split.
            InputError: Another format, a value of another type, an empty concept, or splits that share a line (which it
                names).
        """
        for key in values:
            if key not in KEYS:
                raise UnknownName(f"key in {where}", str(key), KEYS)
        if values.get("format") != FORMAT:
            raise InputError(f"{where}: format {values.get('format')!r} is unknown; this version reads `format: {FORMAT}`")
        read = Reader(where, folder)
        name = read.text(values.get("name"), "name")
        kind = read.choice(values.get("kind", "topic"), "kind", KINDS)
        form = read.choice(values.get("form", "question"), "form", FORMS)
        lines = read.splits(values.get("target"), "target", read.record)
        near, general = (read.splits(values.get(n), n, read.record) for n in ("neighbours", "general"))
        concept = cls(
            name, kind, form,
            records=lines,
            neighbours=_texts(near),
            general=_texts(general),
            questions=_questions(read, values, "questions"),
            neighbour_questions=_questions(read, values, "neighbour_questions"),
            synonyms=read.splits(values.get("synonyms"), "synonyms", read.text, ("seen", "held_out")),
            tokens=read.lines(values.get("tokens"), "tokens", read.token),
            relearn=read.lines(values.get("relearn"), "relearn", read.text),
            anchor=read.optional(values.get("anchor"), "anchor"),
            judge=read.optional(values.get("judge"), "judge"),
            labels={r.text: r.labels for splits in (near, general) for rows in splits.values() for r in rows if r.labels},
        )  # fmt: skip
        if not any(concept.target.values()):
            raise InputError(f"{where}: the concept is empty: target has no line in any split; add {_HOW['target'] % 'train'}")
        _check_disjoint(concept, where)
        return concept

    def require(self, name: str, split: str | None = None) -> Any:
        """The field `name` (of `split`), which must not be empty.

        Raises:
            InputError: It is; says what to write into the concept file.
        """
        if name not in _HOW:
            raise UnknownName("concept field", name, _HOW)
        value = getattr(self, name)
        if isinstance(value, Mapping):
            known = tuple(value)
            if split is not None and split not in value:
                raise UnknownName(f"split of {name}", split, known)
            value = value[split] if split is not None else (value if any(value.values()) else None)
        if value is None or (value == () and name != "anchor"):
            place = f"{name}.{split}" if split else name
            how = _HOW[name] % (split or "train") if "%s" in _HOW[name] else _HOW[name]
            raise InputError(f"concept {self.name!r} has no {place}, which is needed here; add to its file: {how}")
        return value


def packaged_concepts() -> dict[str, Traversable]:
    """Name -> file of each concept that ships with the package."""
    root = (__package__ or "efface.deactivate").rpartition(".")[0]
    try:
        folder = files(f"{root}.llm.concepts")
        return {f.name.rsplit(".", 1)[0]: f for f in folder.iterdir() if f.name.endswith((".yaml", ".json"))}
    except (ModuleNotFoundError, FileNotFoundError):
        return {}


def generated_concepts(families: Iterable[str] = tuple(GENERATED)) -> list[str]:
    """Names of the concepts that are made on demand: `icons/dog`."""
    return [f"{family}/{name}" for family in families for name in _maker(family).names()]


def _maker(family: str) -> Any:
    root = (__package__ or "efface.deactivate").rpartition(".")[0]
    return import_module(f"{root}.{GENERATED[family]}")


def _texts(splits: Mapping[str, tuple[Record, ...]]) -> dict[str, tuple[str, ...]]:
    return {s: tuple([r.text for r in rows]) for s, rows in splits.items()}


def _questions(read: Reader, values: Mapping[str, Any], name: str) -> dict[str, tuple[Question, ...]]:
    splits = read.splits(values.get(name), name, read.question)
    return {s: tuple(Question(q["q"], q["options"], q["answer"]) for q in lines) for s, lines in splits.items()}


def _places(concept: Concept) -> Iterator[tuple[str, str, Sequence[str]]]:
    """(group, place, lines): lines of one group must not stand in two places."""
    for name in ("target", "neighbours", "general"):
        yield from (("texts", f"{name}.{split}", texts) for split, texts in getattr(concept, name).items())
    for name in ("questions", "neighbour_questions"):
        for split, items in getattr(concept, name).items():
            yield "questions", f"{name}.{split}", [f"{i.q} — {i.answer}" for i in items]
    yield from (("synonyms", f"synonyms.{key}", words) for key, words in concept.synonyms.items())


def _check_disjoint(concept: Concept, where: str) -> None:
    seen: dict[str, dict[str, set[str]]] = {}  # group -> place -> its lines, in one spelling
    for group, place, lines in _places(concept):
        before = seen.setdefault(group, {})
        before[place] = {_plainly(line) for line in lines}
        for first, known in before.items():
            if first != place and not known.isdisjoint(before[place]):
                line = next(x for x in lines if _plainly(x) in known)
                raise InputError(f"{where}: splits must be disjoint; {first} and {place} share the line {line!r}; keep it in one of them")


def _plainly(line: str) -> str:
    """A line without what is no difference: case, and how much white space."""
    return " ".join(line.casefold().split())


def _plain(value: object) -> object:
    """Dataclasses, mappings and tuples as JSON values."""
    if isinstance(value, Question | Record):
        return {f: _plain(getattr(value, f)) for f in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(v) for v in value]
    return value


__all__ = ["FORMS", "KINDS", "SPLITS", "Concept", "Question", "Record", "generated_concepts", "packaged_concepts"]
