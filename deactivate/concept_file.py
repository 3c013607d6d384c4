"""Reading a concept file: values are checked one by one, and an error names the line that is wrong."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ..base.errors import ArtefactError, InputError, UnknownName
from ..base.files import inside

T = TypeVar("T")
SPLITS = ("train", "validation", "test")
RECORD_KEYS = ("text", "labels", "subject", "image", "mask", "replacement")
QUESTION_KEYS = ("q", "options", "answer")


@dataclass(frozen=True)
class Record:
    """A line with what else is known of it; plain strings have only their text."""

    text: str
    labels: Mapping[str, str] = field(default_factory=dict)
    subject: str | None = None
    image: str | None = None
    mask: str | None = None
    replacement: str | None = None


def parse_file(path: Path | Traversable) -> Mapping[str, Any]:
    """The mapping in a YAML or JSON file (JSON is read as the YAML it is).

    Raises:
        InputError: Neither, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.name.endswith(".json") else yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError) as e:
        hint = "" if path.name.endswith(".json") else "; indent with spaces, and put text that holds «: » or « #» in quotes"
        raise InputError(f"{path}: not valid YAML or JSON ({' '.join(str(e).split())}){hint}") from None
    if not isinstance(values, Mapping):
        raise InputError(f"{path}: a concept file is a mapping that begins with `format: 1`; found {type(values).__name__}")
    return values


class Reader:
    """Casts values of a concept file; `where` names it in errors, `folder` is where its `{file, field}` entries lie."""

    def __init__(self, where: str, folder: Path | None) -> None:
        self.where, self.folder = where, folder

    def fail(self, place: str, expected: str, found: object) -> InputError:
        """The error for `found` at `place`."""
        return InputError(f"{self.where}: {place}: {expected} expected, {found!r} found")

    def text(self, value: object, place: str) -> str:
        """Text that is not blank."""
        if not isinstance(value, str):
            raise self.fail(place, "text (in quotes where YAML would read something else)", value)
        if not value.strip():
            raise self.fail(place, "text that is not blank", value)
        return value

    def token(self, value: object, place: str) -> str:
        """Text that may be white space."""
        if not isinstance(value, str) or not value:
            raise self.fail(place, "a token as text", value)
        return value

    def optional(self, value: object, place: str) -> str | None:
        """Text, possibly empty, or None."""
        if value is not None and not isinstance(value, str):
            raise self.fail(place, "text", value)
        return value

    def choice(self, value: object, place: str, known: tuple[str, ...]) -> str:
        """One of `known`."""
        if value not in known:
            raise UnknownName(f"{place} in {self.where}", str(value), known, f"One of {', '.join(known)}")
        return str(value)

    def record(self, value: object, place: str) -> Record:
        """A line of `target`, `neighbours` or `general`; a `Record` has been read before, or was made by code of ours."""
        if isinstance(value, Record):
            return value
        if not isinstance(value, Mapping):
            return Record(self.text(value, place))
        if len(value) == 1 and any(isinstance(k, str) and " " in k for k in value):
            raise self.fail(place, "text in quotes (a colon with a space behind it makes it a key)", value)
        for key in value:
            if key not in RECORD_KEYS:
                raise UnknownName(f"key in {self.where}: {place}", str(key), RECORD_KEYS)
        labels = value.get("labels") or {}
        if not isinstance(labels, Mapping) or not all(isinstance(x, str) for pair in labels.items() for x in pair):
            raise self.fail(f"{place}.labels", "a mapping of text to text", labels)
        rest = {k: self.optional(value[k], f"{place}.{k}") for k in RECORD_KEYS[2:] if k in value}
        return Record(self.text(value.get("text"), f"{place}.text"), dict(labels), **rest)

    def question(self, value: object, place: str) -> dict[str, Any]:
        """A question as keyword arguments of `Question`."""
        if not isinstance(value, Mapping):
            raise self.fail(place, "{q: …, options: […], answer: …}", value)
        for key in value:
            if key not in QUESTION_KEYS:
                raise UnknownName(f"key in {self.where}: {place}", str(key), QUESTION_KEYS)
        options = value.get("options")
        if not isinstance(options, list) or len(options) < 2:
            raise self.fail(f"{place}.options", "a list of at least two options", options)
        texts = tuple(self.text(o, f"{place}.options[{i}]") for i, o in enumerate(options))
        if len(set(texts)) != len(texts):
            raise self.fail(f"{place}.options", "different options", options)
        answer = self.text(value.get("answer"), f"{place}.answer")
        if answer not in texts:
            raise self.fail(f"{place}.answer", f"one of the options {list(texts)}", answer)
        return {"q": self.text(value.get("q"), f"{place}.q"), "options": texts, "answer": answer}

    def lines(self, value: object, place: str, each: Callable[[object, str], T]) -> tuple[T, ...]:
        """A list, or `{file, field}`."""
        if value is None:
            return ()
        items = self._from_file(value, place) if isinstance(value, Mapping) else value
        if not isinstance(items, list):
            raise self.fail(place, "a list or {file: relative/path.jsonl, field: text}", items)
        found: list[T] = []
        for item in items:
            try:
                found.append(each(item, place))
            except InputError:
                each(item, f"{place}[{len(found)}]")  # fails again, and says which one it is
                raise
        return tuple(found)

    def splits(
        self, value: object, place: str, each: Callable[[object, str], T], known: tuple[str, ...] = SPLITS
    ) -> dict[str, tuple[T, ...]]:
        """Split -> lines; absent splits are empty."""
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise self.fail(place, f"a mapping of {', '.join(known)} to lists", value)
        for key in value:
            if key not in known:
                raise UnknownName(f"split in {self.where}: {place}", str(key), known)
        return {s: self.lines(value.get(s), f"{place}.{s}", each) for s in known}

    def _from_file(self, value: Mapping[Any, Any], place: str) -> list[object]:
        for key in value:
            if key not in ("file", "field"):
                raise UnknownName(f"key in {self.where}: {place}", str(key), ("file", "field"))
        name, key = self.text(value.get("file"), f"{place}.file"), self.optional(value.get("field"), f"{place}.field")
        if self.folder is None:
            raise InputError(f"{self.where}: {place}: a concept that is not a file of its own cannot name the file {name!r}")
        path = inside(self.folder, name)
        if path.suffix != ".jsonl":
            raise self.fail(f"{place}.file", "the relative path of a .jsonl file", name)
        if not path.is_file():
            raise ArtefactError(f"{self.where}: {place}: {path} is missing")
        return [self._row(row, key, f"{path}:{n}") for n, row in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if row.strip()]

    def _row(self, row: str, key: str | None, place: str) -> object:
        try:
            value = json.loads(row)
        except json.JSONDecodeError as e:
            raise InputError(f"{place}: not valid JSON ({e})") from None
        if key is None:
            return value
        if not isinstance(value, Mapping) or key not in value:
            known = list(value) if isinstance(value, Mapping) else []
            raise UnknownName(f"field in {place}", key, known)
        return value[key]
