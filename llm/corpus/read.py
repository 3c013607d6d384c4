"""Reads the embedded corpus and the general pool."""

import json
from collections.abc import Iterator
from importlib.resources import files

from ...base.errors import ArtefactError, InputError, UnknownName

SPLITS = ("train", "validation", "test")


def corpus() -> Iterator[str]:
    """The documents of the embedded corpus, in file order. They were shuffled over areas when they were written."""
    for record in records("corpus"):
        yield record["text"]


def pool(split: str) -> list[str]:
    """Single sentences, questions and requests about everything that no packaged concept is about.

    Splits share no subject, and no text stands in the embedded corpus.

    Raises:
        UnknownName: `split` is none of train, validation, test.
    """
    if split not in SPLITS:
        raise UnknownName("split of the general pool", split, SPLITS)
    return [r["text"] for r in records("pool") if r["split"] == split]


general_pool = pool
"""The packaged pool that stands in for a concept's missing `general` texts."""


def records(name: str) -> Iterator[dict[str, str]]:
    """Records of `corpus` (keys text, area, topic) or `pool` (also split, kind).

    Raises:
        InputError: The file is not part of this installation.
        ArtefactError: It is damaged.
    """
    import zstandard

    package = __package__ or "efface.llm.corpus"
    path = files(package) / "data" / f"{name}.jsonl.zst"
    if not path.is_file():
        raise InputError(f"{package}: data/{path.name} is missing; reinstall the package, or run python -m {package}.pack")
    try:  # in one piece: a stream would end early in a truncated file and not say so
        lines = zstandard.ZstdDecompressor().decompress(path.read_bytes()).decode().strip("\n").split("\n")
        yield from map(json.loads, lines)
    except (zstandard.ZstdError, UnicodeDecodeError, json.JSONDecodeError) as e:
        raise ArtefactError(f"{path} is damaged ({e}); reinstall the package") from None
