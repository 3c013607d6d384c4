"""Concepts of the miniature, made from the table: `icons/dog`, `icons/style-noto`, `icons/flag-france`. Torch-free.

Every split has templates of its own, so that the splits share no line; held-out ways to ask stand in `test` alone.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import product
from typing import TYPE_CHECKING, Any

from ...base.errors import UnknownName
from ...deactivate.concept import Record
from .packs import STYLES
from .table import Flag, Table, packaged_table

if TYPE_CHECKING:
    from .data import IconData

SPLITS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "train": (("{x}", "an icon of {x}"), ("{x}, {style} style", "a {style} drawing of {x}")),
    "validation": (("{x} icon", "a drawing of {x}"), ("{x} in {style} style", "{style} style {x}")),
    "test": (("a picture of {x}", "{x} on white"), ("a picture of {x} in {style} style", "{style} {x}")),
}
"""Split -> templates without a style, and with one: those of the captions, dealt out."""
STYLE_PAIRS = {
    "noto": "blob", "blob": "noto", "twemoji": "emojione", "emojione": "twemoji", "fluent": "flat", "flat": "fluent",
    "contrast": "monotone", "monotone": "contrast",
}  # fmt: skip
"""The style closest to each, which must survive."""
STYLE_ANCHORS = {s: "noto" if s in ("twemoji", "emojione") else "twemoji" for s in STYLE_PAIRS}
"""The style that an eraser may draw instead: neither the style itself nor the closest."""
FLAGS_NEAR = 5
"""Closest flags that must survive."""
GROUPS = "flag_groups.json"


def names(table: Table | None = None) -> list[str]:
    """Objects, styles, flags, as they stand behind `icons/`."""
    table = table or packaged_table()
    return [*map(plain, table.objects), *(f"style-{p.style}" for p in STYLES), *(f"flag-{plain(n)}" for n in flags(table))]


def plain(name: str) -> str:
    """A name in lower case, ASCII and hyphens: `the Åland Islands` is `the-aland-islands`."""
    ascii_only = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_only.lower()).strip("-")


def mapping(name: str, table: Table | None = None) -> dict[str, Any]:
    """What a concept file of that name would hold.

    Raises:
        UnknownName: No such object, style or flag.
    """
    values = records(name, table)
    lines = {key: {split: [_line(r) for r in rows] for split, rows in values[key].items()} for key in ("target", "neighbours", "general")}
    return {**values, **lines}


def _line(record: Record) -> dict[str, Any]:
    """A record as a line of a concept file."""
    return {"text": record.text, "subject": record.subject, "labels": dict(record.labels)}


def records(name: str, table: Table | None = None) -> dict[str, Any]:
    """The same with each line as a `Record`, which concepts that have it in common share: it must not be changed.

    Nine in ten lines of a flag or an object are those of every other one.

    Raises:
        UnknownName: No such object, style or flag.
    """
    table = table or packaged_table()
    objects = {plain(n): n for n in table.objects}
    if name in objects:
        return object_concept(objects[name], table)
    kind, _, rest = name.partition("-")
    if kind == "style" and rest in STYLE_PAIRS:
        return style_concept(rest, table)
    if kind == "flag" and rest in (known := {plain(n): n for n in flags(table)}):
        return flag_concept(known[rest], table)
    raise UnknownName("concept", f"icons/{name}", [f"icons/{n}" for n in names(table)], "`efface concepts` lists them")


def object_concept(name: str, table: Table) -> dict[str, Any]:
    """An object: its drawings' names and other ways to ask, in every style."""
    thing = table.objects[name]
    first, *variants = (table.icons[k] for k in thing.icons)
    seen = [(w, "seen") for w in first.ask] + [(w, "variant") for v in variants for w in (v.name, *v.ask)]
    held = [(w, "held_out") for w in first.held_out]
    own = {"train": [(first.name, "name"), *seen], "validation": [(first.name, "name"), *seen]}
    target = {
        split: list(_asked(split, [(w, {"object": name, "way": way}) for w, way in ways]))
        for split, ways in {**own, "test": [*own["train"], *held]}.items()
    }
    close = [*table.objects[thing.pair].icons[:1], *(k for k, i in table.icons.items() if i.name in thing.near)]
    rest = [k for k in table.icons if k not in thing.icons]
    return {
        **_head(name, "object", "icons/object"),
        "target": target,
        "neighbours": {s: list(_things(s, table, close)) for s in SPLITS},  # the pair first
        "general": {s: [*_things(s, table, [k for k in rest if k not in close]), *_flags(s, table)] for s in SPLITS},
        "synonyms": {"seen": [w for w, _ in seen], "held_out": [w for w, _ in held]},
        "anchor": table.icons[table.objects[thing.pair].icons[0]].name,
    }


def style_concept(style: str, table: Table) -> dict[str, Any]:
    """A style: every name of the main set in it. The neighbour is the evaluation objects in the closest style."""
    pair, keys = STYLE_PAIRS[style], list(table.icons)
    shown = [o.icons[0] for o in table.objects.values()]
    others = [p.style for p in STYLES if p.style not in (style, pair)]

    def general(split: str) -> list[Record]:
        rest = [k for k in keys if k not in shown]
        return [*_things(split, table, keys, others), *_things(split, table, rest, [pair], bare=False), *_flags(split, table)]

    return {
        **_head(style, "style", "icons/style"),
        "target": {s: list(_things(s, table, keys, [style], bare=False)) for s in SPLITS},
        "neighbours": {s: list(_things(s, table, shown, [pair], bare=False)) for s in SPLITS},
        "general": {s: general(s) for s in SPLITS},
        "anchor": f"{STYLE_ANCHORS[style]} style",
    }


def flag_concept(name: str, table: Table) -> dict[str, Any]:
    """A flag, by its country, its adjective and its description."""
    flag, groups = flags(table)[name], flag_groups()
    near = [table.flags[c].name for c in groups["near"][flag.code]]
    ways = [(w, "name") for w in _called(flag)] + [(w, "seen") for w in flag.ask]
    return {
        **_head(f"the flag of {name}", "object", "icons/flag"),
        "target": {s: list(_asked(s, [(w, {"flag": name, "way": way}) for w, way in ways], styles=())) for s in SPLITS},
        "neighbours": {s: list(_flags(s, table, near)) for s in SPLITS},
        "general": {
            s: [*_flags(s, table, [n for n in flags(table) if n not in (*near, name)]), *_things(s, table, list(table.icons))]
            for s in SPLITS
        },
        "synonyms": {"seen": [w for w, _ in ways[1:]]},
        "anchor": "",
    }


def everything(split: str, table: Table) -> Iterator[Record]:
    """A split's lines of all things and all flags."""
    yield from _things(split, table, list(table.icons))
    yield from _flags(split, table)


def flags(table: Table) -> dict[str, Flag]:
    """Name -> flag of each class that can be told apart: what the model is taught and the judge knows."""
    known = [codes[0] for codes in flag_groups()["classes"] if codes[0] in table.flags]
    return {table.flags[c].name: table.flags[c] for c in known}


@cache
def flag_groups() -> dict[str, Any]:
    """`classes` (codes of flags that are one picture) and `near` (code -> closest other classes), made by `group_flags`."""
    import json

    return json.loads((files(__spec__.parent) / GROUPS).read_text(encoding="utf-8"))


def group_flags(data: "IconData") -> dict[str, Any]:
    """What `flag_groups.json` holds, from the drawings: mean absolute difference over all packs says which flags are close."""
    import torch

    first = [codes[0] for codes in data.flag_classes]
    pixels = data.flags[:, [data.codes.index(c) for c in first]].float().flatten(2) / 255
    apart = torch.stack([torch.cdist(p, p, p=1) / p.shape[1] for p in pixels]).mean(0)
    order = apart.fill_diagonal_(9.0).argsort(1)[:, :FLAGS_NEAR].tolist()
    return {"classes": [list(c) for c in data.flag_classes], "near": {c: [first[j] for j in o] for c, o in zip(first, order, strict=True)}}


def _head(name: str, kind: str, judge: str) -> dict[str, Any]:
    return {"format": 1, "name": name, "kind": kind, "judge": judge}


def _called(flag: Flag) -> list[str]:
    return [f"the flag of {flag.name}", *([f"the {flag.adjective} flag"] if flag.adjective else [])]


def _asked(
    split: str, ways: Iterable[tuple[str, Mapping[str, str]]], styles: Sequence[str] | None = None, bare: bool = True
) -> Iterator[Record]:
    """Each way in the split's templates: `bare` ones without a style, and one a style."""
    wanted = tuple([p.style for p in STYLES] if styles is None else styles)
    for way, labels in ways:
        yield from _templated(split, way, tuple(labels.items()), wanted, bare)


@cache
def _templated(split: str, way: str, labels: tuple[tuple[str, str], ...], styles: tuple[str, ...], bare: bool) -> tuple[Record, ...]:
    """One way to ask in the split's templates, made once."""
    without, with_style = SPLITS[split]
    plain = [Record(t.format(x=way), dict(labels), way) for t in without] if bare else []
    styled = [Record(t.format(x=way, style=s), {**dict(labels), "style": s}, way) for t, s in product(with_style, styles)]
    return (*plain, *styled)


def _things(split: str, table: Table, keys: Iterable[str], styles: Sequence[str] | None = None, bare: bool = True) -> Iterator[Record]:
    """Drawings of the main set by name; the label is the class that judges know."""
    own = {k: (o.name, "variant" if i else "name") for o in table.objects.values() for i, k in enumerate(o.icons)}
    known = {k: own.get(k, (table.icons[k].name, "name")) for k in keys}
    entries = [(table.icons[k].name, {"object": name, "way": way}) for k, (name, way) in known.items()]
    return _asked(split, entries, styles, bare)


def _flags(split: str, table: Table, wanted: Iterable[str] | None = None) -> Iterator[Record]:
    """Flags by country and adjective."""
    found = flags(table)
    chosen = [found[n] for n in (found if wanted is None else wanted)]
    return _asked(split, [(w, {"flag": f.name, "way": "name"}) for f in chosen for w in _called(f)], styles=())
