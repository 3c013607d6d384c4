"""Protocol cards: what makes two figures comparable. Tables refuse to mix them; every look at `test` is counted."""

import dataclasses
import json
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from ... import __version__
from ...base.config import from_mapping
from ...base.errors import InputError, MatchedNothing, UnknownName
from ...base.files import canonical_json, digest

Split = Literal["train", "validation", "test"]
NOT_PROTOCOL = ("looks",)
"""Fields that say what happened rather than how it was measured: not in the digest, not compared."""


@dataclass(frozen=True)
class ProtocolCard:
    """How a figure was measured. Figures may share a table when their cards agree in everything but `looks`."""

    suite: str
    """Name of the evaluation: «language», «icons», …"""
    host: str
    """Name of the host."""
    host_digest: str
    """Content hash of the unedited host."""
    concept: str
    """Name of the concept, or of the set of concepts."""
    prompts_digest: str
    """Hash of everything the host was asked: concept file, pools, templates."""
    judge: str
    """Who decides: «log-probability of the options», a classifier's name, …"""
    judge_digest: str
    """Hash of the judge's weights or of its rule."""
    split: Split
    """Which split was read."""
    n: int
    """Items scored."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of everything drawn."""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """Every threshold that a figure depends on, by name."""
    chat_template: str = "none"
    """«none», or a digest of the chat template used."""
    versions: Mapping[str, str] = field(default_factory=lambda: library_versions())
    """Library versions."""
    looks: int = 0
    """How often this split had been looked at, this time included (`count_look`). Only `test` is counted."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What the suite adds (plain values): question form, context length; for images sampler, steps, guidance."""

    def __post_init__(self) -> None:
        if self.split not in ("train", "validation", "test"):
            raise UnknownName("split", self.split, ("train", "validation", "test"))
        if self.n < 1:
            raise InputError(f"card: n is {self.n}; a protocol that scored nothing measures nothing")
        if self.split == "test" and self.looks < 1:
            raise InputError("card: a look at split test must be counted; set looks=count_look(folder, concept.digest, 'test')")
        canonical_json(self.to_json())  # refuses NaN and values that JSON does not know

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def digest(self) -> str:
        """Hash of the protocol: every field but `looks`."""
        return digest({k: v for k, v in self.to_json().items() if k not in NOT_PROTOCOL})

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json`."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return json.loads(json.dumps({k: dict(v) if isinstance(v, Mapping) else v for k, v in plain.items()}))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ProtocolCard":
        """Inverse of `to_json`; unknown keys and wrong types are refused."""
        mappings = {k: v for k, v in values.items() if k in ("thresholds", "versions", "extra")}
        for name, value in mappings.items():
            if not isinstance(value, Mapping):
                raise InputError(f"card: {name} must be a mapping, {value!r} found")
        plain = from_mapping(_Plain, {k: v for k, v in values.items() if k not in mappings}, where="card")
        return cls(**{f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}, **mappings)


@dataclass(frozen=True)
class _Plain:
    """The fields of a card that `from_mapping` can cast."""

    suite: str
    host: str
    host_digest: str
    concept: str
    prompts_digest: str
    judge: str
    judge_digest: str
    split: Split
    n: int
    seeds: tuple[int, ...] = (0,)
    chat_template: str = "none"
    looks: int = 0


def library_versions() -> dict[str, str]:
    """Versions of what figures depend on, read from package metadata (nothing heavy is imported)."""
    found = {"efface": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def differences(a: ProtocolCard, b: ProtocolCard) -> dict[str, tuple[Any, Any]]:
    """Field (`extra.steps` for entries of mappings) -> the two values, for every field of the protocol that differs."""
    found: dict[str, tuple[Any, Any]] = {}
    one, other = a.to_json(), b.to_json()
    for name in one:
        if name in NOT_PROTOCOL or one[name] == other[name]:
            continue
        if isinstance(one[name], dict):
            keys = sorted(one[name].keys() | other[name].keys())
            pairs = {f"{name}.{k}": (one[name].get(k, "absent"), other[name].get(k, "absent")) for k in keys}
            found.update({k: v for k, v in pairs.items() if v[0] != v[1]})
        else:
            found[name] = (one[name], other[name])
    return found


def require_comparable(cards: Sequence[ProtocolCard], ignore: Iterable[str] = ()) -> None:
    """Nothing where all cards describe one protocol.

    Args:
        cards: At least one.
        ignore: Fields allowed to differ («versions», «host», «extra.context»); whoever prints the table must print
            them too.

    Raises:
        MatchedNothing: No card.
        InputError: Names the first differing field, both values, and how many more fields differ.
    """
    if not cards:
        raise MatchedNothing("no protocol card to compare; give at least one result")
    allowed = set(ignore)
    known = {f.name for f in dataclasses.fields(ProtocolCard)}
    for name in allowed:
        if name.split(".")[0] not in known:
            raise UnknownName("field of the protocol card", name, known)
    for i, card in enumerate(cards[1:], start=2):
        found = {k: v for k, v in differences(cards[0], card).items() if k not in allowed and k.split(".")[0] not in allowed}
        if found:
            name, (a, b) = next(iter(found.items()))
            more = f" ({len(found) - 1} more: {', '.join(list(found)[1:6])})" if len(found) > 1 else ""
            raise InputError(
                f"results 1 and {i} were measured differently: {name} is {_short(a)} and {_short(b)}{more}; evaluate both the same way"
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 24 else text[:20] + "…" + text[-1]


def count_look(folder: Path, concept_digest: str, split: str) -> int:
    """Records one look at a split; how many there were, this one included.

    Call it before scoring, so that a crashed run counts too. Only `test` is counted; `train` and `validation` are
    there to be looked at and give 0. One line is appended a look (a single write in append mode), so looks of
    parallel processes are never lost.

    Args:
        folder: Usually `cache_dir() / "looks"`: a place that outlives single outputs.
        concept_digest: `Concept.digest`.
        split: `train`, `validation` or `test`.
    """
    if split != "test":
        return looks(folder, concept_digest, split)
    path = _tally(folder, concept_digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, b"look\n")
    finally:
        os.close(handle)
    return looks(folder, concept_digest, split)


def looks(folder: Path, concept_digest: str, split: str) -> int:
    """Looks counted so far, without adding one."""
    if split not in ("train", "validation", "test"):
        raise UnknownName("split", split, ("train", "validation", "test"))
    path = _tally(folder, concept_digest)
    return path.read_bytes().count(b"\n") if split == "test" and path.is_file() else 0


def _tally(folder: Path, concept_digest: str) -> Path:
    if not re.fullmatch(r"[0-9a-f]{8,64}", concept_digest):
        raise InputError(f"concept digest {concept_digest!r} is not a hexadecimal digest; pass Concept.digest")
    return folder / f"{concept_digest}.test"
