"""Reads a concept source: a plain-text file whose form `source/README.md` describes."""

from dataclasses import dataclass
from pathlib import Path

from ...base.errors import InputError, UnknownName

HEADERS = ("name", "kind", "tokens", "synonyms", "neighbours")
SECTIONS = ("items", "neighbour items", "sentences", "neighbour sentences", "relearn")
TRAINING = ("training items", "training neighbour items", "training sentences", "training neighbour sentences")
"""Sections that may be absent; nothing of them goes into `test`."""


@dataclass(frozen=True)
class Item:
    """A cloze item: a sentence that breaks off right before the answer."""

    q: str
    answer: str
    wrong: tuple[str, ...]

    @property
    def options(self) -> tuple[str, ...]:
        """The answer, then the wrong options."""
        return (self.answer, *self.wrong)


@dataclass(frozen=True)
class Source:
    """What a concept source holds, duplicates removed."""

    name: str
    kind: str
    tokens: tuple[str, ...]
    """Words that name the concept, without the leading space of the concept file."""
    synonyms: tuple[str, ...]
    neighbours: tuple[str, ...]
    items: tuple[Item, ...]
    neighbour_items: tuple[Item, ...]
    sentences: tuple[str, ...]
    neighbour_sentences: tuple[str, ...]
    relearn: tuple[str, ...]
    training_items: tuple[Item, ...] = ()
    training_neighbour_items: tuple[Item, ...] = ()
    training_sentences: tuple[str, ...] = ()
    training_neighbour_sentences: tuple[str, ...] = ()


def parse(path: Path) -> Source:
    """The source in `path`. A line that stands in an earlier section of its kind is left out of the later one.

    Raises:
        InputError: A header or section is missing, or an item has a repeated option or fewer than two; names the line.
        UnknownName: A header or section that does not exist.
    """
    headers: dict[str, str] = {}
    sections: dict[str, dict[str, tuple[int, str]]] = {name: {} for name in (*SECTIONS, *TRAINING)}
    here: dict[str, tuple[int, str]] | None = None
    for number, raw in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = raw.strip()
        if line.startswith("== ") and line.endswith(" =="):
            name = line.strip("= ")
            if name not in sections:
                raise UnknownName(f"section in {path.name}, line {number}", name, sections)
            here = sections[name]
        elif line.startswith("#") and here is None:
            key, _, value = line.lstrip("# ").partition(":")
            if key not in HEADERS:
                raise UnknownName(f"header in {path.name}, line {number}", key, HEADERS)
            headers[key] = value.strip()
        elif line and here is not None:
            here.setdefault(" ".join(line.split("|")[0].casefold().split()), (number, line))
        elif line:
            raise InputError(f"{path.name}, line {number}: text before the first section; begin with `== items ==`")
    missing = [h for h in HEADERS if not headers.get(h)] + [s for s in SECTIONS if not sections[s]]
    if missing:
        raise InputError(f"{path.name}: {', '.join(missing)} missing; source/README.md says what a source holds")
    for name in TRAINING:
        for seen in sections[name].keys() & sections[name.removeprefix("training ")].keys():
            del sections[name][seen]
    items, near, more, more_near = (tuple(_item(path, n, x) for n, x in sections[s].values()) for s in (*SECTIONS[:2], *TRAINING[:2]))
    texts, more_texts = ([tuple(x for _, x in sections[s].values()) for s in names] for names in (SECTIONS[2:], TRAINING[2:]))
    tokens, synonyms, neighbours = (_list(headers[h], sign) for h, sign in (("tokens", ","), ("synonyms", ";"), ("neighbours", ",")))
    sentences, near_sentences, relearn = texts
    more_sentences, more_near_sentences = more_texts
    return Source(
        headers["name"], headers["kind"], tokens, synonyms, neighbours, items, near, sentences, near_sentences, relearn,
        more, more_near, more_sentences, more_near_sentences,
    )  # fmt: skip


def _list(value: str, separator: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(x.strip() for x in value.split(separator) if x.strip()))


def _item(path: Path, number: int, line: str) -> Item:
    q, *options = (part.strip() for part in line.split("|"))
    distinct = {o.casefold() for o in options if o}
    if not q or len(options) < 2 or len(distinct) != len(options):
        raise InputError(
            f"{path.name}, line {number}: an item is `sentence | answer | wrong | wrong | wrong`, no option twice; found {line!r}"
        )
    return Item(q, options[0], tuple(options[1:]))
