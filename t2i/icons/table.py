"""What the drawings show and how one asks for it: `names.yaml` and `flags.yaml`, checked."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from ...base.config import from_mapping
from ...base.errors import InputError


@dataclass(frozen=True)
class Icon:
    """One drawing of the main set."""

    icon: str
    """Key in the packs."""
    name: str
    category: str
    ask: tuple[str, ...]
    """Other ways to ask for it."""
    held_out: tuple[str, ...] = ()
    """Further ones, in captions, but kept from a concept's `train` and `validation`."""


@dataclass(frozen=True)
class Object:
    """An object that is erased and judged."""

    name: str
    icons: tuple[str, ...]
    """Keys of all drawings that show it, itself first: what a model retrained without it must lack."""
    pair: str
    """The near object that must survive; also what an eraser may draw instead."""
    near: tuple[str, ...]
    """Names of further icons that are close and must survive."""


@dataclass(frozen=True)
class Flag:
    """The flag of a country or territory."""

    code: str
    """ISO 3166-1 alpha-2, lower case."""
    twemoji: str
    """Key in twemoji."""
    name: str
    """As in «the flag of …»."""
    ask: tuple[str, ...]
    adjective: str | None = None
    """As in «the … flag»."""
    parent: str | None = None
    """Code of the country whose flag it flies."""
    territory: bool = False
    """Whether a country of the same looks should give a class of flags its name."""


@dataclass(frozen=True)
class Table:
    """All of it."""

    icons: Mapping[str, Icon]
    """By key."""
    objects: Mapping[str, Object]
    """By name."""
    flags: Mapping[str, Flag]
    """By code."""

    @property
    def evaluated(self) -> tuple[str, ...]:
        """Keys of all drawings of the objects."""
        return tuple(dict.fromkeys(k for o in self.objects.values() for k in o.icons))


@cache
def packaged_table() -> Table:
    """The table that ships."""
    here = files(__spec__.parent)
    return load_table(here / "names.yaml", here / "flags.yaml")


def load_table(names: Path | Traversable, flags: Path | Traversable) -> Table:
    """Reads and checks both files.

    Raises:
        InputError: A file is no table, or breaks one of the rules: names the line.
    """
    things, countries = _read(names), _read(flags)
    icons = _keyed([_entry(Icon, v, names) for v in things.get("icons", ())], "icon", names)
    objects = _keyed([_entry(Object, v, names) for v in things.get("concepts", ())], "name", names)
    found = _keyed([_entry(Flag, v, flags) for v in countries.get("flags", ())], "code", flags)
    table = Table(icons, objects, found)
    _check(table, names, flags)
    return table


def _read(path: Path | Traversable) -> Mapping[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(e).split())})") from None
    if not isinstance(values, Mapping) or values.get("format") != 1:
        raise InputError(f"{path}: a mapping that begins with `format: 1` expected")
    return values


def _entry(kind: Any, values: Any, path: Path | Traversable) -> Any:
    if not isinstance(values, Mapping):
        raise InputError(f"{path}: a mapping expected, {values!r} found")
    return from_mapping(kind, values, where=f"{path}: {next(iter(values.values()), 'entry')!r}")


def _keyed(entries: list[Any], key: str, path: Path | Traversable) -> dict[str, Any]:
    _once((getattr(e, key) for e in entries), f"{path}: {key}")
    return {getattr(e, key): e for e in entries}


def _once(values: Iterable[str], where: str) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise InputError(f"{where} {value!r} stands there twice")
        seen.add(value)


def _check(table: Table, names: Path | Traversable, flags: Path | Traversable) -> None:
    _once((p for i in table.icons.values() for p in (i.name, *i.ask, *i.held_out)), f"{names}: phrase")
    _once((p for f in table.flags.values() for p in (f.name, *f.ask)), f"{flags}: phrase")
    _once((f.adjective for f in table.flags.values() if f.adjective), f"{flags}: adjective")
    _once((k for o in table.objects.values() for k in o.icons), f"{names}: an icon of two concepts,")
    known = {i.name: i.icon for i in table.icons.values()}
    for o in table.objects.values():
        where = f"{names}: concept {o.name!r}"
        if missing := [k for k in o.icons if k not in table.icons]:
            raise InputError(f"{where}: icon {missing[0]!r} is not in the list of icons")
        if o.pair not in table.objects or table.objects[o.pair].pair != o.name:
            raise InputError(f"{where}: pair {o.pair!r} is no concept that has {o.name!r} as its pair")
        if wrong := [n for n in o.near if known.get(n) is None or known[n] in o.icons]:
            raise InputError(f"{where}: near {wrong[0]!r} is no other icon's name")
        if not table.icons[o.icons[0]].held_out:
            raise InputError(f"{where}: its first icon has no held_out")
    for f in table.flags.values():
        if f.parent is not None and f.parent not in table.flags:
            raise InputError(f"{flags}: {f.code!r}: parent {f.parent!r} is no code in the list")
